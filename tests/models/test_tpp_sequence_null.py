"""The sequence statistic's p-value is uniform when the model is true."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numba import config
from numpy.typing import NDArray

from models.tpp.sequence import SEQUENCE, WINDOW
from models.tpp.sequence_component import score_at, take
from models.tpp.sequence_null import LENGTHS, NULL, SURPRISES, fit, null_surprise, simulate

COMPILED = not config.DISABLE_JIT  # type: ignore[attr-defined]  # coverage runs the kernels as Python, far slower
COUNT = 20_000 if COMPILED else 150


def surprises_at(end: float, seed: int) -> NDArray[np.float64]:
    """Score COUNT entities whose model is true at `end` expected events."""
    rng = np.random.default_rng(seed)
    room = int(end + 10.0 * math.sqrt(end) + 20.0)
    time = np.cumsum(rng.exponential(size=(COUNT, room)), axis=1)
    inside = time <= end
    row, at = np.nonzero(inside)
    gaps = np.diff(time, prepend=0.0, axis=1)[row, at]
    state = np.zeros(COUNT, SEQUENCE)
    take(state, row.astype(np.int32), gaps)
    last = np.where(inside, time, 0.0).max(1)
    return score_at(state, np.arange(COUNT, dtype=np.int32), end - last)[:, 0]


@pytest.mark.parametrize("end", [7.0, 30.0, 66.6, 100.0, 130.0, 213.0])
@pytest.mark.compiled
def test_false_alarms_come_as_often_as_the_p_value_says(end: float) -> None:
    surprise = surprises_at(end, int(end))
    assert np.isfinite(surprise).all()
    assert (surprise >= 0.0).all()
    # A window that has slid begins inside a spacing, which is a longer one.
    slack = 0.1 if end <= WINDOW else 0.2
    for level in (0.2, 0.05, 0.01, 0.001):
        found = float(np.mean(surprise > -math.log(level)))
        assert abs(found - level) < slack * level + 4.0 * math.sqrt(level / COUNT), (level, found)


@pytest.mark.compiled
def test_the_stored_table_is_what_the_fit_simulates() -> None:
    again = fit(count=COUNT, seed=3)
    np.testing.assert_array_equal(again.length, NULL.length)
    np.testing.assert_array_equal(again.log_e, fit(count=COUNT, seed=3).log_e)
    if not COMPILED:
        pytest.skip("too few windows to compare")
    # To -log p of 4, 370 windows of the small fit are beyond.
    kept = np.array(SURPRISES) <= 4.0
    assert kept.sum() >= 8
    np.testing.assert_allclose(again.log_e[2:, kept], NULL.log_e[2:, kept], atol=0.15)


def test_the_table_is_in_order() -> None:
    assert NULL.log_e.shape == (len(LENGTHS), len(SURPRISES))
    # Short windows have few values, so that some knots repeat.
    assert (np.diff(NULL.log_e, axis=1) >= 0.0).all()
    assert (np.diff(NULL.log_e[4:], axis=1) > 0.0).all()
    # An e-value e has p <= 1/e: no knot may promise less surprise than its own log e-value.
    assert (NULL.surprise >= NULL.log_e).all()


def test_surprise_follows_the_knots_and_goes_on_with_slope_one() -> None:
    for at, length in enumerate(LENGTHS):
        for knot, surprise in zip(NULL.log_e[at], SURPRISES, strict=True):
            found = null_surprise(knot, length, NULL)
            if length >= 20.0 and surprise > SURPRISES[0]:
                assert found == pytest.approx(surprise)
            # Of knots that repeat, the first: the surprise of a value is never overstated.
            assert found <= surprise + 1e-9
    last = NULL.log_e[-1, -1]
    assert null_surprise(last + 500.0, 100.0, NULL) == pytest.approx(SURPRISES[-1] + 500.0)
    assert null_surprise(-5.0, 50.0, NULL) == 0.0
    # Beyond the grid's ends the nearest length counts.
    assert null_surprise(2.0, 0.01, NULL) == null_surprise(2.0, LENGTHS[0], NULL)
    assert null_surprise(2.0, 300.0, NULL) == null_surprise(2.0, LENGTHS[-1], NULL)
    grid = np.linspace(-1.0, 30.0, 400)
    for length in (3.3, 88.0):
        values = [null_surprise(x, length, NULL) for x in grid]
        assert (np.diff(values) >= 0.0).all()


@pytest.mark.compiled
def test_simulation_follows_from_its_seed_alone() -> None:
    first = simulate(15.0, 500, np.random.SeedSequence(9))
    np.testing.assert_array_equal(first, simulate(15.0, 500, np.random.SeedSequence(9)))
    assert (first != simulate(15.0, 500, np.random.SeedSequence(10))).any()
    # An e-value's mean is at most 1.
    assert np.exp(first).mean() < 1.1
