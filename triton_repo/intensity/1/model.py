"""Serve the intensity decoder from Triton's Python backend on onnxruntime.

The folder holds a trained `decoder.onnx`: float32, int8 or pruned, the code is the same. Every
request is checked on its own, since Triton lets nonsense through (a negative ratio scores
plausibly): a bad request gets its own error and the good ones of the same call are answered. All
good requests of a call go through one run.

A client that asks for the output `fault` as well gets an answer for each row: what is wrong with
it, "" for nothing, and y is NaN in the rows that have a fault. Without it one bad row is an error
of its request, which costs the good ones nothing.

This file runs in the server's environment, which has numpy and onnxruntime and nothing of eddy.
"""

import json
import time
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

INPUT = 69
OUTPUT = 32
ZGAP, RATIO, IS_FIRST, LOG_COUNT, MARK = 64, 65, 66, 67, 68
NO_MARK = 8
# Rounding of a clipped float64 to float32 may pass the limit by one unit in the last place.
ZGAP_LIMIT = 6.0 + 1e-5
RATIO_LIMIT = 20.0 + 1e-5
TOLERANCE = 1e-3  # GPUs may multiply in TF32
WARM_ROWS = (1, 32, 128, 512, 1024)
METRICS_S = 1.0


def find_fault(x):
    """Say what is wrong with one request's input, or return None.

    Args:
        x: the input tensor, expected float32 [rows >= 1, 69].
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
    mark = x[:, MARK]
    if mark.min() < 0.0 or mark.max() > NO_MARK or (mark != np.rint(mark)).any():
        return f"x[:, {MARK}] (mark) must be a number from 0 to 7, or {NO_MARK} for none"
    return None


def row_faults(x):
    """Say of each row what is wrong with it.

    Args:
        x: float32 [rows, 69], with at least one bad row.

    Returns:
        object [rows], bytes; b"" where the row is good.
    """
    faults = np.full(len(x), b"", object)
    with np.errstate(invalid="ignore"):
        # The last one named wins, so that the most telling comes last.
        mark = x[:, MARK]
        for bad, words in (
            (
                ~((mark >= 0.0) & (mark <= NO_MARK) & (mark == np.rint(mark))),
                f"x[{MARK}] (mark) must be a number from 0 to 7, or {NO_MARK} for none",
            ),
            (x[:, LOG_COUNT] < 0.0, f"x[{LOG_COUNT}] (log1p(events) / 5) must not be negative"),
            (np.abs(x[:, ZGAP]) > ZGAP_LIMIT, f"x[{ZGAP}] (zgap) must be in [-6, 6]"),
            (~np.isin(x[:, IS_FIRST], (0.0, 1.0)), f"x[{IS_FIRST}] (is_first) must be 0 or 1"),
            (
                ~((x[:, RATIO] > 0.0) & (x[:, RATIO] <= RATIO_LIMIT)),
                f"x[{RATIO}] (ratio) must be in (0, 20]",
            ),
            (~np.isfinite(x).all(axis=1), "x must be finite"),
        ):
            faults[bad] = words.encode()
    return faults


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


def tolerance_of(folder):
    """Return how far answers may be from the training's: what the card allows, if it is more.

    int8 kernels differ a little from one kind of CPU to the next.
    """
    try:
        told = json.loads((folder / "card.json").read_text("utf-8")).get("tolerance", 0.0)
    except FileNotFoundError:
        return TOLERANCE
    return max(TOLERANCE, float(told))


def check_answers(session, path, tolerance=TOLERANCE):
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
    if not worst <= tolerance:
        raise RuntimeError(
            f"decoder.onnx answers otherwise than when it was exported, by up to {worst}: "
            "export it again with `eddy train`"
        )


class Counted:
    """Rows and faults on Triton's page of metrics.

    Triton itself counts requests: it does not know that a row of them is an event. Each increment
    is a message to the server's process, so they are sent once a second.
    """

    def __init__(self, name, version):
        self._labels = {"model": name, "version": version}
        self._counters = {
            "rows": self._counter("eddy_intensity_rows_total", "Rows that were answered"),
            "faults": self._counter("eddy_intensity_faults_total", "Requests or rows refused"),
        }
        self._waiting = dict.fromkeys(self._counters, 0)
        self._sent_s = time.monotonic()

    def _counter(self, name, description):
        family = pb_utils.MetricFamily(
            name=name, description=description, kind=pb_utils.MetricFamily.COUNTER
        )
        return family, family.Metric(labels=self._labels)

    def add(self, rows, faults):
        """Count; sends what has waited for a second."""
        self._waiting["rows"] += rows
        self._waiting["faults"] += faults
        if time.monotonic() > self._sent_s + METRICS_S:
            self.send()

    def send(self):
        """Tell Triton what has waited."""
        for name, (_, metric) in self._counters.items():
            if self._waiting[name]:
                metric.increment(self._waiting[name])
                self._waiting[name] = 0
        self._sent_s = time.monotonic()


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
        check_answers(self.session, folder / "check.npz", tolerance_of(folder))
        canary = np.zeros((max(WARM_ROWS), INPUT), np.float32)
        canary[:, RATIO] = 1.0
        for rows in WARM_ROWS:
            self.session.run(["y"], {"x": canary[:rows]})
        self.counted = Counted(args["model_name"], args["model_version"])

    def execute(self, requests):
        """Answer each request, in order: an error for a bad one, y [rows, 32] for a good one."""
        asked = [self._read(request) for request in requests]
        good = [x for x, fault, _ in asked if fault is None]
        if not good:
            answers = np.empty((0, OUTPUT), np.float32)
        else:
            x = good[0] if len(good) == 1 else np.concatenate(good)
            (answers,) = self.session.run(["y"], {"x": x})
        responses = []
        start = refused = 0
        for x, fault, faults in asked:
            if fault is not None:
                refused += 1
                error = pb_utils.TritonError(fault, pb_utils.TritonError.INVALID_ARG)
                responses.append(pb_utils.InferenceResponse(error=error))
                continue
            y = answers[start : start + len(x)]
            start += len(x)
            tensors = [pb_utils.Tensor("y", y)]
            if faults is not None:
                bad = faults != b""
                if bad.any():
                    refused += int(bad.sum())
                    y[bad] = np.nan
                tensors.append(pb_utils.Tensor("fault", faults))
            responses.append(pb_utils.InferenceResponse(tensors))
        self.counted.add(start, refused)
        return responses

    def finalize(self):
        """Tell the last counts before the process ends."""
        self.counted.send()

    def _read(self, request):
        """Return (x, what is wrong with the request or None, what is wrong with each row or None).

        Where each row gets its own answer, a bad row is replaced by a harmless one.
        """
        tensor = pb_utils.get_input_tensor_by_name(request, "x")
        if tensor is None:
            return None, "no input named x", None
        x = tensor.as_numpy()
        fault = find_fault(x)
        if "fault" not in request.requested_output_names():
            return x, fault, None
        if fault is None:
            return x, None, np.full(len(x), b"", object)
        if x.dtype != np.float32 or x.ndim != 2 or x.shape[1] != INPUT or x.shape[0] < 1:
            return x, fault, None
        faults = row_faults(x)
        x = x.copy()
        harmless = np.zeros(INPUT, np.float32)
        harmless[RATIO] = 1.0
        x[faults != b""] = harmless
        return x, None, faults
