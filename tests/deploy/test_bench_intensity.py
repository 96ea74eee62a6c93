"""`eddy bench intensity`: the GRU it compares with, the file it is written to, and a short run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from deploy.bench import gru_window, intensity
from deploy.bench.onnx_file import model, node
from deploy.stack.options import REPOSITORY, StackOptions
from flink_jobs.model_files import load_encoder
from models.tpp import spec

SHIPPED = REPOSITORY / "triton_repo" / "intensity" / "1"
WEIGHTS = json.loads((SHIPPED / "card.json").read_text("utf-8"))["model_version"]


def _run(graph: bytes, x: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    answer: NDArray[np.float32] = y
    return answer


def test_a_written_file_computes_what_it_says() -> None:
    weights = np.arange(6, dtype=np.float32).reshape(2, 3)
    graph = model(
        [
            node("Gemm", ["x", "w"], ["z"], alpha=0.5, transB=0),
            node("ReduceSum", ["z", "axis"], ["y"], keepdims=1),
        ],
        {"x": ["rows", 2]},
        {"y": ["rows", 1]},
        {"w": weights, "axis": np.array([1], np.int64)},
        {"feature_version": "x" * 300},
    )
    x = np.array([[1.0, 2.0], [-3.0, 0.5]], np.float32)
    np.testing.assert_allclose(_run(graph, x), 0.5 * (x @ weights).sum(1, keepdims=True))
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map == {"feature_version": "x" * 300}
    assert session.get_inputs()[0].shape == ["rows", 2]


def _gru(
    x: NDArray[np.float64], w: NDArray[np.float64], r: NDArray[np.float64]
) -> NDArray[np.float64]:
    """PyTorch's GRU without biases; gates in ONNX's order: update, reset, candidate."""
    hidden = r.shape[1]
    h = np.zeros((len(x), hidden))
    parts = [slice(k * hidden, (k + 1) * hidden) for k in range(3)]

    def squashed(z: NDArray[np.float64]) -> NDArray[np.float64]:
        return 1.0 / (1.0 + np.exp(-z))

    for step in range(x.shape[1]):
        a, b = x[:, step] @ w.T, h @ r.T
        update = squashed(a[:, parts[0]] + b[:, parts[0]])
        reset = squashed(a[:, parts[1]] + b[:, parts[1]])
        candidate = np.tanh(a[:, parts[2]] + reset * b[:, parts[2]])
        h = update * h + (1.0 - update) * candidate
    return h


def test_the_gru_is_a_gru() -> None:
    """The heads are passed by: with an identity in their place, y would be the hidden state."""
    draw = np.random.default_rng(4)
    hidden, width, window = 5, 3, 7
    w = draw.normal(size=(3 * hidden, width)).astype(np.float32)
    r = draw.normal(size=(3 * hidden, hidden)).astype(np.float32)
    graph = model(
        [
            node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
            node("GRU", ["steps", "W", "R"], ["", "h1"], hidden_size=hidden, linear_before_reset=1),
            node("Squeeze", ["h1", "zero"], ["y"]),
        ],
        {"x": ["rows", window, width]},
        {"y": ["rows", hidden]},
        {"W": w[None], "R": r[None], "zero": np.array([0], np.int64)},
        {},
    )
    x = draw.normal(size=(6, window, width)).astype(np.float32)
    expected = _gru(x.astype(np.float64), w.astype(np.float64), r.astype(np.float64))
    np.testing.assert_allclose(_run(graph, x), expected, atol=1e-5)


def test_the_window_model_reads_every_event_and_answers_like_the_decoder() -> None:
    x = gru_window.window_rows(4)
    assert x.shape == (4, 64, spec.ENCODER_INPUT)
    np.testing.assert_array_equal(x[..., spec.PHI :].sum(-1), 1.0)
    graph = gru_window.window_graph()
    y = _run(graph, x)
    assert y.shape == (4, spec.OUTPUT)
    np.testing.assert_allclose(np.exp(y[:, spec.LOG_WEIGHT]).sum(1), 1.0, atol=1e-5)
    np.testing.assert_allclose(np.exp(y[:, spec.LOG_MARK]).sum(1), 1.0, atol=1e-5)
    assert y.tobytes() == _run(gru_window.window_graph(), x).tobytes()
    for event in (40, 63):
        other = x.copy()
        other[:, event, 0] += 1.0
        assert (np.abs(_run(graph, other) - y).max(axis=1) > 0.0).all()


def test_the_encoder_is_timed() -> None:
    us = intensity.encoder_us_per_event(load_encoder(SHIPPED), 100, 20_000, 2)
    assert 0.0 < us < 1_000.0


def test_variants_of_the_configuration_differ_where_they_should(tmp_path: Path) -> None:
    names = intensity._lay_repository(tmp_path, SHIPPED, [SHIPPED])
    assert names == {"decoder": "intensity", f"decoder {WEIGHTS}": "variant_1"}

    def config(name: str) -> str:
        return (tmp_path / name / "configs" / "python-cpu.pbtxt").read_text("utf-8")

    assert 'name: "intensity_batched"' in config("intensity_batched")
    assert "max_batch_size: 4096\ndynamic_batching { }" in config("intensity_batched")
    assert "dims: [ 69 ]" in config("intensity_batched")
    assert "kind: KIND_CPU count: 2" in config("intensity_two")
    assert config("variant_1").replace("variant_1", "intensity") == config("intensity")
    assert (tmp_path / "gru_window" / "1" / "model.py").is_file()


@pytest.mark.stack
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_short_run_on_a_real_triton(triton_venv: Path, tmp_path: Path) -> None:
    options = StackOptions(root=tmp_path / "bench", triton_venv=triton_venv)
    found = intensity.run_intensity(SHIPPED, [SHIPPED], 0.2, options, print)
    assert not options.root.exists()
    assert set(found) == {"benchmark", "machine", "versions", "input", "systems", "ratios"}
    for rows in ("1 row", "32 rows", "128 rows", "512 rows", "1,024 rows", "4,096 rows"):
        figures = found["systems"][f"decoder, {rows}"]
        assert all(isinstance(v, float) and math.isfinite(v) for v in figures.values())
        assert 0.0 < float(figures["p50_ms"] or 0) <= float(figures["p99_ms"] or 0)
    assert f"decoder {WEIGHTS}, 128 rows" in found["systems"]
    assert set(found["ratios"]) >= {
        "gru_cpu_over_decoder_cpu_128_rows",
        "gru_cpu_over_decoder_cpu_512_rows",
        "best_decoder_rows_per_s_over_goal",
    }
    assert found["versions"]["onnxruntime (Triton)"] != ""
