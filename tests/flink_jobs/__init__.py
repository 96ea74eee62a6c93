"""Tests of flink_jobs."""
