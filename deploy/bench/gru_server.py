"""Serve the benchmark's GRU from Triton's Python backend, with the care of eddy's own model.

This file runs in the server's environment, which has numpy and onnxruntime and nothing of eddy.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """The GRU as Triton's Python backend calls it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model on one thread and run it once."""
        folder = Path(args["model_repository"]) / args["model_version"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            str(folder / "decoder.onnx"), options, providers=["CPUExecutionProvider"]
        )
        shape = self.session.get_inputs()[0].shape
        self.session.run(["y"], {"x": np.zeros((1, *shape[1:]), np.float32)})

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request, in order."""
        responses = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            if not np.isfinite(x).all():
                error = pb_utils.TritonError("x must be finite")
                responses.append(pb_utils.InferenceResponse(error=error))
                continue
            (y,) = self.session.run(["y"], {"x": x})
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", y)]))
        return responses
