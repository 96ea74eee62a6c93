"""What a model without a streamed memory costs: a GRU that reads an entity's last 64 events anew.

The weights are random, for only the cost is of interest; the heads are those of eddy's decoder.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploy.bench.onnx_file import model, node
from models.tpp import spec

WINDOW = 64
HIDDEN = 64
WIDTH, INNER = 64, 128  # of the decoder's residual block
NAME = "gru_window"


def window_graph(seed: int = 1, window: int = WINDOW) -> bytes:
    """Return the GRU as an ONNX model: x float32 [rows, 64, 11] -> y [rows, 32].

    x holds what eddy's encoder reads of each event (three features of the gap and the mark, one
    hot). The GRU is PyTorch's form (reset applied after the product, `linear_before_reset`).
    """
    draw = np.random.default_rng(seed)

    def weights(*shape: int) -> NDArray[np.float32]:
        return draw.normal(0.0, 1.0 / np.sqrt(shape[-1]), shape).astype(np.float32)

    wide = HIDDEN + spec.PHI
    constants: dict[str, NDArray[np.float32] | NDArray[np.int64]] = {
        "W": weights(1, 3 * HIDDEN, spec.ENCODER_INPUT),
        "R": weights(1, 3 * HIDDEN, HIDDEN),
        "B": np.zeros((1, 6 * HIDDEN), np.float32),
        "zero": np.array([0], np.int64),
        "last": np.array(window - 1, np.int64),
        "phi_begin": np.array([0], np.int64),
        "phi_end": np.array([spec.PHI], np.int64),
        "one_axis": np.array([1], np.int64),
        "input.weight": weights(WIDTH, wide),
        "input.bias": np.zeros(WIDTH, np.float32),
        "norm.weight": np.ones(WIDTH, np.float32),
        "norm.bias": np.zeros(WIDTH, np.float32),
        "up.weight": weights(INNER, WIDTH),
        "up.bias": np.zeros(INNER, np.float32),
        "down.weight": weights(WIDTH, INNER),
        "down.bias": np.zeros(WIDTH, np.float32),
        "output.weight": weights(spec.OUTPUT, WIDTH),
        "output.bias": np.zeros(spec.OUTPUT, np.float32),
        "one": np.array(1.0, np.float32),
        "half": np.array(0.5, np.float32),
        "root_half": np.array(np.sqrt(0.5), np.float32),
        "parts": np.array([4, 8, spec.MARKS, 4, 8], np.int64),
    }
    nodes = [
        node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
        node("GRU", ["steps", "W", "R", "B"], ["", "h1"], hidden_size=HIDDEN,
             linear_before_reset=1),
        node("Squeeze", ["h1", "zero"], ["h"]),
        node("Gather", ["x", "last"], ["newest"], axis=1),
        node("Slice", ["newest", "phi_begin", "phi_end", "one_axis"], ["phi"]),
        node("Concat", ["h", "phi"], ["z"], axis=1),
        *_head_nodes(),
    ]  # fmt: skip
    return model(
        nodes,
        {"x": ["rows", window, spec.ENCODER_INPUT]},
        {"y": ["rows", spec.OUTPUT]},
        constants,
        {"feature_version": spec.FEATURE_VERSION, "model_version": "gru-window"},
    )


def _head_nodes() -> list[bytes]:
    """Return the block and the heads of eddy's decoder, as `models.tpp.training.export` has them.

    From z [rows, HIDDEN + 3] to y.
    """
    return [
        node("Gemm", ["z", "input.weight", "input.bias"], ["z0"], transB=1),
        node("LayerNormalization", ["z0", "norm.weight", "norm.bias"], ["z1"], axis=-1,
             epsilon=1e-5),
        node("Gemm", ["z1", "up.weight", "up.bias"], ["z2"], transB=1),
        node("Mul", ["z2", "root_half"], ["g0"]),
        node("Erf", ["g0"], ["g1"]),
        node("Add", ["g1", "one"], ["g2"]),
        node("Mul", ["z2", "g2"], ["g3"]),
        node("Mul", ["g3", "half"], ["gelu"]),
        node("Gemm", ["gelu", "down.weight", "down.bias"], ["z3"], transB=1),
        node("Add", ["z0", "z3"], ["z4"]),
        node("Gemm", ["z4", "output.weight", "output.bias"], ["raw"], transB=1),
        node("Split", ["raw", "parts"], ["raw_gap", "gap", "raw_mark", "raw_amount", "amount"],
             axis=1),
        node("LogSoftmax", ["raw_gap"], ["gap_weight"], axis=-1),
        node("LogSoftmax", ["raw_mark"], ["mark"], axis=-1),
        node("LogSoftmax", ["raw_amount"], ["amount_weight"], axis=-1),
        node("Concat", ["gap_weight", "gap", "mark", "amount_weight", "amount"], ["y"], axis=1),
    ]  # fmt: skip


CONFIG = f"""name: "{NAME}"
backend: "python"
max_batch_size: 0
input [ {{ name: "x" data_type: TYPE_FP32 dims: [ -1, {WINDOW}, {spec.ENCODER_INPUT} ] }} ]
output [ {{ name: "y" data_type: TYPE_FP32 dims: [ -1, {spec.OUTPUT} ] }} ]
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
"""


def write_window_model(repository: Path) -> Path:
    """Write the GRU with its server code into a model repository; return the model's folder."""
    folder = repository / NAME / "1"
    folder.mkdir(parents=True)
    (folder / "decoder.onnx").write_bytes(window_graph())
    (repository / NAME / "config.pbtxt").write_text(CONFIG, "utf-8")
    shutil.copyfile(Path(__file__).with_name("gru_server.py"), folder / "model.py")
    return folder


def window_rows(rows: int, seed: int = 2) -> NDArray[np.float32]:
    """Return windows as the stream would send them: float32 [rows, 64, 11]."""
    draw = np.random.default_rng(seed)
    x = np.zeros((rows, WINDOW, spec.ENCODER_INPUT), np.float32)
    x[..., 0] = draw.normal(size=(rows, WINDOW)).clip(-spec.ZGAP_LIMIT, spec.ZGAP_LIMIT)
    x[..., 1] = draw.exponential(size=(rows, WINDOW)).clip(1e-3, spec.RATIO_LIMIT)
    marks = draw.integers(0, spec.MARKS, (rows, WINDOW))
    np.put_along_axis(x, spec.PHI + marks[..., None], 1.0, axis=2)
    return x
