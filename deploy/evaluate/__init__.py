"""Harnesses that hold eddy's detectors against data with known answers."""
