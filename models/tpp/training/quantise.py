"""int8 forms of an exported decoder, by onnxruntime's quantizer."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from onnxruntime import InferenceSession
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from models.tpp import spec

_BATCH = 2_048


class _Rows(CalibrationDataReader):  # type: ignore[misc]  # as in network.py
    """Hands a sample of inputs to the quantizer, which asks for their ranges."""

    def __init__(self, x: NDArray[np.float32]) -> None:
        self._parts: Iterator[NDArray[np.float32]] = iter(np.array_split(x, -(-len(x) // _BATCH)))

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        part = next(self._parts, None)
        return None if part is None else {"x": part}


def quantise(decoder: Path, out: Path, how: str, x: NDArray[np.float32]) -> str:
    """Write the int8 form of a decoder beside its check.npz, and return its version.

    Weights are quantized with 7 bits of range: on x86 without VNNI sums of products of 8 bits
    saturate, and the answers would depend on the machine.

    Args:
        decoder: ONNX file.
        out: ONNX file to write; its folder exists.
        how: "dynamic" (activations by the range of each batch) or "static" (by those of `x`, as
            QDQ).
        x: float32 [rows, 69], inputs of the training's time.
    """
    logging.getLogger().setLevel(logging.ERROR)  # it asks for a pre-processing that changes nothing
    if how == "dynamic":
        quantize_dynamic(
            decoder, out, weight_type=QuantType.QInt8, reduce_range=True,
            op_types_to_quantize=["MatMul"],
        )  # fmt: skip
    else:
        quantize_static(
            decoder, out, _Rows(x), quant_format=QuantFormat.QDQ, op_types_to_quantize=["Gemm"],
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, reduce_range=True,
        )  # fmt: skip
    model = onnx.load(out)
    version = "tpp-" + hashlib.sha256(model.graph.SerializeToString()).hexdigest()[:12]
    del model.metadata_props[:]
    helper.set_model_props(
        model, {"feature_version": spec.FEATURE_VERSION, "model_version": version}
    )
    out.write_bytes(model.SerializeToString())
    return version


def answers(decoder: Path, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return y float32 [rows, 32] of an ONNX decoder."""
    session = InferenceSession(str(decoder), providers=["CPUExecutionProvider"])
    (y,) = session.run(["y"], {"x": x})
    found: NDArray[np.float32] = y
    return found
