"""Benchmarks side by side on one stack: eddy, a pass-through, the naive job, eddy alone."""
