"""Simulated payments with labelled anomalies: pure, seeded, reproducible to the byte."""
