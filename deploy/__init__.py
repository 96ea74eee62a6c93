"""Running eddy: the command line, the local stack, submission, demo and benchmarks."""
