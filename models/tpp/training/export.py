"""Write a trained model as the server and the stream read it.

The ONNX graph is built node by node: it is small, its bytes depend on the weights alone, and it
needs no exporter whose operator set changes under it.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.tpp import spec
from models.tpp.training.network import Decoder, Encoder, encoder_arrays

OPSET = 17
IR_VERSION = 8  # the one that opset 17 came with: older runtimes read it


def decoder_graph(decoder: Decoder, model_version: str) -> onnx.ModelProto:
    """Return the decoder as an ONNX model of opset 17: x float32 [rows, 69] -> y [rows, 32]."""
    constants: dict[str, NDArray[np.float32] | NDArray[np.int64]] = {
        "one": np.array(1.0, np.float32),
        "half": np.array(0.5, np.float32),
        "root_half": np.array(np.sqrt(0.5), np.float32),
        "mean_low": np.array(-spec.MEAN_LIMIT, np.float32),
        "mean_high": np.array(spec.MEAN_LIMIT, np.float32),
        "sd_low": np.array(spec.LOG_SD_RANGE[0], np.float32),
        "sd_high": np.array(spec.LOG_SD_RANGE[1], np.float32),
        "no_mark": np.array(spec.MARKS, np.float32),
        "zero": np.array(0.0, np.float32),
        "columns": np.array([spec.MARK, 1], np.int64),
        "heads": np.array([3 * spec.COMPONENTS, spec.MARKS], np.int64),
        "thirds": np.array([spec.COMPONENTS] * 3, np.int64),
        "one_axis": np.array([1], np.int64),
    }
    for name, value in decoder.state_dict().items():
        constants[name] = value.numpy().astype(np.float32)
    node = helper.make_node
    nodes = [
        node("Split", ["x", "columns"], ["history", "mark_number"], axis=1),
        node("Mul", ["history", "scale"], ["scaled"]),
        node("Abs", ["scaled"], ["size"]),
        node("Add", ["size", "one"], ["size1"]),
        node("Log", ["size1"], ["log_size"]),
        node("Sign", ["scaled"], ["sign"]),
        node("Mul", ["sign", "log_size"], ["symlog"]),
        node("Gemm", ["symlog", "input.weight", "input.bias"], ["z0"], transB=1),
        node(
            "LayerNormalization", ["z0", "norm.weight", "norm.bias"], ["z1"], axis=-1, epsilon=1e-5
        ),
        node("Gemm", ["z1", "up.weight", "up.bias"], ["z2"], transB=1),
        # GELU is an operator of its own only from opset 20 on.
        node("Mul", ["z2", "root_half"], ["g0"]),
        node("Erf", ["g0"], ["g1"]),
        node("Add", ["g1", "one"], ["g2"]),
        node("Mul", ["z2", "g2"], ["g3"]),
        node("Mul", ["g3", "half"], ["gelu"]),
        node("Gemm", ["gelu", "down.weight", "down.bias"], ["z3"], transB=1),
        node("Add", ["z0", "z3"], ["z4"]),
        node("Gemm", ["z4", "output.weight", "output.bias"], ["raw"], transB=1),
        node("Split", ["raw", "heads"], ["raw_gap", "raw_mark"], axis=1),
        *_mixture_nodes("gap"),
        node("LogSoftmax", ["raw_mark"], ["mark"], axis=-1),
        node("Gemm", ["z4", "amount.hidden.weight", "amount.hidden.bias"], ["a0"], transB=1),
        # eddy's server refuses other marks; any other runtime must not read past the end.
        node("Clip", ["mark_number", "zero", "no_mark"], ["mark_known"]),
        node("Cast", ["mark_known"], ["mark_index"], to=TensorProto.INT64),
        node("Squeeze", ["mark_index", "one_axis"], ["mark_row"]),
        node("Gather", ["amount.mark.weight", "mark_row"], ["a_mark"]),
        node("Add", ["a0", "a_mark"], ["a1"]),
        node("Sigmoid", ["a1"], ["a2"]),
        node("Mul", ["a1", "a2"], ["a3"]),
        node(
            "Gemm", ["a3", "amount.output.weight", "amount.output.bias"], ["raw_amount"], transB=1
        ),
        *_mixture_nodes("amount"),
        node("Concat", ["gap", "mark", "amount"], ["y"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "intensity",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", spec.INPUT])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", spec.OUTPUT])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="eddy",
    )
    helper.set_model_props(
        model, {"feature_version": spec.FEATURE_VERSION, "model_version": model_version}
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _mixture_nodes(head: str) -> list[onnx.NodeProto]:
    """Return the nodes that bring the parameters of a mixture into their ranges."""
    raw = [f"raw_{head}_{part}" for part in ("weight", "mean", "sd")]
    told = [f"{head}_{part}" for part in ("weight", "mean", "sd")]
    return [
        helper.make_node("Split", [f"raw_{head}", "thirds"], raw, axis=1),
        helper.make_node("LogSoftmax", [raw[0]], [told[0]], axis=-1),
        helper.make_node("Clip", [raw[1], "mean_low", "mean_high"], [told[1]]),
        helper.make_node("Clip", [raw[2], "sd_low", "sd_high"], [told[2]]),
        helper.make_node("Concat", told, [head], axis=1),
    ]


def model_version(encoder: Encoder, decoder: Decoder) -> str:
    """Name a model by its weights: the same weights have the same name everywhere."""
    digest = hashlib.sha256(spec.FEATURE_VERSION.encode())
    for module in (encoder, decoder):
        for name, value in module.state_dict().items():
            digest.update(name.encode())
            digest.update(value.numpy().astype("<f4").tobytes())
    return "tpp-" + digest.hexdigest()[:12]


def write_model(
    encoder: Encoder, decoder: Decoder, check: NDArray[np.float32], folder: Path
) -> str:
    """Write decoder.onnx, encoder.npz and check.npz.

    Args:
        encoder: trained.
        decoder: trained.
        check: float32 [rows, 69], inputs whose answers are kept, to compare runtimes with.
        folder: the version's folder in the model repository.

    Returns:
        The version.
    """
    version = model_version(encoder, decoder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "decoder.onnx").write_bytes(decoder_graph(decoder, version).SerializeToString())
    np.savez(folder / "encoder.npz", **encoder_arrays(encoder))
    with torch.no_grad():
        answers = decoder(torch.from_numpy(check)).numpy()
    np.savez(folder / "check.npz", x=check, y=answers)
    return version


def name_in_configs(folder: Path, version: str) -> None:
    """Name the weights in ../configs, where this folder is the only version of its model.

    Several versions share the configurations, which then can name none of them: the card does.

    Raises:
        ValueError: a configuration lacks the parameters that name the version.
    """
    versions = [path for path in folder.parent.iterdir() if path.is_dir() and path.name.isdigit()]
    if [path.name for path in versions] != [folder.name]:
        return
    for config in sorted((folder.parent / "configs").glob("*.pbtxt")):
        text = config.read_text()
        for key, value in (("feature_version", spec.FEATURE_VERSION), ("model_version", version)):
            pattern = rf'(key: "{key}" value: {{ string_value: ")[^"]*(")'
            text, changed = re.subn(pattern, rf"\g<1>{value}\g<2>", text)
            if changed != 1:
                raise ValueError(f"{config} must have one parameter {key}, found {changed}")
        config.write_text(text)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
