"""Serve the intensity decoder from Triton's Python backend on onnxruntime.

The folder holds a trained `decoder.onnx`. Every request is checked on its own, since Triton lets
nonsense through (a negative ratio scores plausibly): a bad request gets its own error and the good
ones of the same call are answered. All good requests of a call go through one run.

This file runs in the server's environment, which has numpy and onnxruntime and nothing of eddy.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

INPUT = 68
OUTPUT = 20
ZGAP, RATIO, IS_FIRST, LOG_COUNT = 64, 65, 66, 67
# Rounding of a clipped float64 to float32 may pass the limit by one unit in the last place.
ZGAP_LIMIT = 6.0 + 1e-5
RATIO_LIMIT = 20.0 + 1e-5
TOLERANCE = 1e-3  # GPUs may multiply in TF32
WARM_ROWS = (1, 32, 128, 512, 1024)


def find_fault(x):
    """Say what is wrong with one request's input, or return None.

    Args:
        x: the input tensor, expected float32 [rows >= 1, 68].
    """
    if x.dtype != np.float32:
        return f"x must be FP32, found {x.dtype}"
    if x.ndim != 2 or x.shape[1] != INPUT or x.shape[0] < 1:
        return f"x must have shape [rows >= 1, {INPUT}], found {list(x.shape)}"
    if not np.isfinite(x).all():
        row, column = np.argwhere(~np.isfinite(x))[0]
        return f"x must be finite, found {x[row, column]} at [{row}, {column}]"
    ratio = x[:, RATIO]
    if ratio.min() <= 0.0 or ratio.max() > RATIO_LIMIT:
        return f"x[:, {RATIO}] (ratio) must be in (0, 20], found {ratio.min()} to {ratio.max()}"
    first = x[:, IS_FIRST]
    if ((first != 0.0) & (first != 1.0)).any():
        return f"x[:, {IS_FIRST}] (is_first) must be 0 or 1"
    if np.abs(x[:, ZGAP]).max() > ZGAP_LIMIT:
        return f"x[:, {ZGAP}] (zgap) must be in [-6, 6]"
    if x[:, LOG_COUNT].min() < 0.0:
        return f"x[:, {LOG_COUNT}] (log1p(events) / 5) must not be negative"
    return None


def open_session(path, device, device_id):
    """Load the decoder on one CPU thread, or on the GPU where the configuration says so.

    Raises:
        RuntimeError: the GPU was asked for and onnxruntime has no CUDA provider.
    """
    options = onnxruntime.SessionOptions()
    # One thread: the server shares its cores with the stream, and a pool would spin between runs.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if device != "GPU":
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise RuntimeError(
            "the configuration asks for KIND_GPU, but this onnxruntime has no CUDA provider: "
            "install onnxruntime-gpu in the server's environment or use configs/python-cpu.pbtxt"
        )
    cuda = ("CUDAExecutionProvider", {"device_id": int(device_id)})
    return onnxruntime.InferenceSession(path, options, providers=[cuda, "CPUExecutionProvider"])


def check_answers(session, path):
    """Compare the decoder with what training saw it answer.

    A runtime that is broken (with numpy 2 every output of this server is empty) or a file of
    another export is found here and not in the alerts.

    Raises:
        RuntimeError: shape or numbers differ.
    """
    check = np.load(path)
    (y,) = session.run(["y"], {"x": check["x"]})
    if y.shape != check["y"].shape:
        raise RuntimeError(f"decoder.onnx answered {y.shape}, expected {check['y'].shape}")
    worst = float(np.abs(y - check["y"]).max())
    if not worst <= TOLERANCE:
        raise RuntimeError(
            f"decoder.onnx answers otherwise than when it was exported, by up to {worst}: "
            "export it again with `eddy train`"
        )


class TritonPythonModel:
    """The decoder as Triton's Python backend calls it."""

    def initialize(self, args):
        """Load and warm the decoder of this version's folder.

        Raises:
            RuntimeError: the decoder's feature version is not the one in the configuration, or it
                does not answer as it did when it was exported.
        """
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"]
        self.session = open_session(
            str(folder / "decoder.onnx"),
            args["model_instance_kind"],
            args["model_instance_device_id"],
        )
        found = self.session.get_modelmeta().custom_metadata_map.get("feature_version")
        wanted = config["parameters"]["feature_version"]["string_value"]
        if found != wanted:
            raise RuntimeError(
                f"decoder.onnx has feature version {found}, the configuration says {wanted}: "
                "export both by one run of `python -m models.tpp.training`"
            )
        check_answers(self.session, folder / "check.npz")
        canary = np.zeros((max(WARM_ROWS), INPUT), np.float32)
        canary[:, RATIO] = 1.0
        for rows in WARM_ROWS:
            self.session.run(["y"], {"x": canary[:rows]})

    def execute(self, requests):
        """Answer each request, in order: an error for a bad one, y [rows, 20] for a good one."""
        inputs = [pb_utils.get_input_tensor_by_name(request, "x") for request in requests]
        arrays = [None if tensor is None else tensor.as_numpy() for tensor in inputs]
        faults = ["no input named x" if x is None else find_fault(x) for x in arrays]
        good = [x for x, fault in zip(arrays, faults, strict=True) if fault is None]
        if not good:
            answers = np.empty((0, OUTPUT), np.float32)
        else:
            x = good[0] if len(good) == 1 else np.concatenate(good)
            (answers,) = self.session.run(["y"], {"x": x})
        responses = []
        start = 0
        for x, fault in zip(arrays, faults, strict=True):
            if fault is not None:
                error = pb_utils.TritonError(fault, pb_utils.TritonError.INVALID_ARG)
                responses.append(pb_utils.InferenceResponse(error=error))
                continue
            y = answers[start : start + len(x)]
            start += len(x)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", y)]))
        return responses
