"""Train the intensity model and write it as Triton and the stream read it (torch lives here)."""
