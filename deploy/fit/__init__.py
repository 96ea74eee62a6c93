"""`eddy fit`: priors and calibration from a user's own stream, with a report."""
