"""The mathematics of detection: baselines, point processes, decisions and simulation."""
