"""Tests that kill servers while payments flow."""
