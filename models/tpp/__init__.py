"""The temporal point process: its memory in the stream and its decoder on Triton."""
