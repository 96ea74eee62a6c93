"""The history encoder against a plain numpy twin, and the shipped model against its own record."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from flink_jobs.intensity import InProcessClient
from models.tpp import encoder as kernel
from models.tpp import spec
from models.tpp.mixture import upper_quantiles

MODEL = Path(__file__).parents[2] / "triton_repo" / "intensity" / "1"


@pytest.fixture(scope="module")
def weights() -> dict[str, NDArray[np.float32]]:
    with np.load(MODEL / "encoder.npz") as file:
        return {name: file[name] for name in ("W1", "b1", "W2", "b2")}


def _events(count: int, seed: int = 5) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Return elapsed, zgap, ratio, is_first [count, 4] of a bursty sequence, and marks."""
    rng = np.random.default_rng(seed)
    log_gap = np.where(rng.random(count) < 0.3, rng.normal(-4, 1, count), rng.normal(0, 1, count))
    elapsed = np.exp(log_gap)
    phi = np.stack(
        [elapsed, np.clip(log_gap / 1.5, -6, 6), np.minimum(elapsed, 20), np.zeros(count)], 1
    )
    phi[0] = (0.0, 0.0, 1.0, 1.0)
    marks = rng.integers(0, 9, count).astype(np.uint8)
    return phi, np.where(marks == spec.MARKS, spec.NO_MARK, marks).astype(np.uint8)


def _numpy_twin(
    weights: dict[str, NDArray[np.float32]], phi: NDArray[np.float64], marks: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """The formula of `models.tpp.spec` in float64, but for the decays, which are float32."""
    h = np.zeros(spec.MEMORY)
    by_count = np.exp(-1 / spec.COUNT_CONSTANTS).astype(np.float32)
    by_time = np.empty(2 * spec.TIME_DOUBLINGS, np.float32)
    found = np.empty((len(phi), spec.MEMORY))
    for n, (elapsed, zgap, ratio, is_first) in enumerate(phi):
        one_hot = np.zeros(spec.MARKS)
        if marks[n] < spec.MARKS:
            one_hot[marks[n]] = 1.0
        u = np.concatenate([[zgap, ratio, is_first], one_hot])
        e = weights["W2"] @ np.maximum(weights["W1"] @ u + weights["b1"], 0) + weights["b2"]
        decay = np.float32(np.exp(-elapsed / spec.TIME_CONSTANTS.max()))
        for k in reversed(range(spec.TIME_DOUBLINGS)):
            by_time[k] = by_time[k + spec.TIME_DOUBLINGS] = decay
            decay *= decay
        h = np.concatenate([by_time, by_count]) * h + e
        found[n] = h
    return found


def _run_kernel(
    weights: dict[str, NDArray[np.float32]], phi: NDArray[np.float64], marks: NDArray[np.uint8]
) -> NDArray[np.float32]:
    e = kernel.Encoder.of(weights)
    memory, hidden = np.zeros(spec.MEMORY, np.float32), np.empty(kernel.SCRATCH, np.float32)
    found = np.empty((len(phi), spec.MEMORY), np.float32)
    for n, (elapsed, zgap, ratio, is_first) in enumerate(phi):
        kernel.encoder_step(
            memory, elapsed, zgap, ratio, is_first, marks[n], e.w1, e.b1, e.w2, e.b2, hidden
        )
        found[n] = memory
    return found


@pytest.mark.compiled
def test_kernel_equals_the_numpy_twin_over_10000_events(
    weights: dict[str, NDArray[np.float32]],
) -> None:
    phi, marks = _events(10_000)
    expected = _numpy_twin(weights, phi, marks)
    found = _run_kernel(weights, phi, marks)
    # Relative to the size that a component reaches: the longest sum a thousand events.
    size = np.abs(expected).max(0)
    worst = np.abs(found - expected).max(0) / np.maximum(size, 1.0)
    # The kernel adds the parts of e to the memory one by one, in float32: 2e-5 is what that costs
    # where a component sums a thousand events (with e summed first it is 2e-6).
    assert worst.max() < 1e-5


def test_float32_squares_stay_near_the_formula() -> None:
    for elapsed in np.geomspace(1e-4, 1e3, 50):
        decay = np.float32(np.exp(-elapsed / spec.TIME_CONSTANTS.max()))
        for k in reversed(range(spec.TIME_DOUBLINGS)):
            assert abs(decay - np.exp(-elapsed / spec.TIME_CONSTANTS[k])) < 1e-3
            decay *= decay


@pytest.mark.compiled
def test_memory_and_answers_stay_in_range_over_a_million_events(
    weights: dict[str, NDArray[np.float32]],
) -> None:
    phi, marks = _events(1_000)
    e = kernel.Encoder.of(weights)
    memory, hidden = np.zeros(spec.MEMORY, np.float32), np.empty(kernel.SCRATCH, np.float32)
    heights = []
    for turn in range(1_000):
        for n in range(len(phi)):
            elapsed, zgap, ratio, is_first = phi[n]
            kernel.encoder_step(
                memory, elapsed, zgap, ratio, is_first, marks[n], e.w1, e.b1, e.w2, e.b2, hidden
            )  # fmt: skip
        heights.append(float(np.abs(memory).max()))
        if turn == 20:
            settled = heights[-1]
    assert max(heights[20:]) <= settled * 1.01
    x = np.concatenate([memory, [0.0, 1.0, 0.0, np.log1p(1e6) / 5, 2.0]]).astype(np.float32)[None]
    y = InProcessClient(MODEL / "decoder.onnx").submit(x).result(0)
    assert y is not None
    assert np.isfinite(y).all()


def test_decoder_answers_as_when_it_was_exported() -> None:
    with np.load(MODEL / "check.npz") as check:
        x, y = check["x"], check["y"]
    answer = InProcessClient(MODEL / "decoder.onnx").submit(x).result(0)
    assert answer is not None
    np.testing.assert_allclose(answer, y, atol=1e-5)


def test_answers_are_probabilities() -> None:
    with np.load(MODEL / "check.npz") as check:
        y = check["y"].astype(np.float64)
    np.testing.assert_allclose(np.exp(y[:, spec.LOG_WEIGHT]).sum(1), 1.0, atol=1e-5)
    np.testing.assert_allclose(np.exp(y[:, spec.LOG_MARK]).sum(1), 1.0, atol=1e-5)
    assert (y[:, spec.LOG_SD] >= spec.LOG_SD_RANGE[0]).all()
    medians = upper_quantiles(y[:, :12], np.full(len(y), np.log(0.5)))
    # The next gap is of the order of the entity's own mean log gap: m is what y is relative to.
    assert (np.abs(medians) < 6).all()


def test_encoder_without_a_weight_is_refused(weights: dict[str, NDArray[np.float32]]) -> None:
    broken = {name: value for name, value in weights.items() if name != "b2"}
    with pytest.raises(ValueError, match=r"encoder weights b2: expected shape \(64,\)"):
        kernel.Encoder.of(broken)
