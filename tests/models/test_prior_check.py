"""The misfit of a prior: quiet on what it was fitted on, loud where the stream has changed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from models.prior import PIT_BINS, KindPrior
from models.prior_check import BLOCK, FEWEST, MISFIT, PERIOD, CheckModel, PriorCheck

PRIOR = KindPrior(
    value_mean=8.0, value_between_var=0.5, value_within_var=0.5,
    gap_mean=5.0, gap_between_var=1.0, gap_within_var=3.0,
)  # fmt: skip


def columns(
    n: int, seed: int, shift: float = 0.0, gap_shift: float = 0.0, heavy: bool = False
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    rng = np.random.default_rng(seed)
    value = rng.standard_t(3, n) if heavy else rng.normal(size=n)
    gap = 5.0 + gap_shift + 2.0 * rng.normal(size=n)
    timed = rng.random(n) < 0.9
    value = np.where(rng.random(n) < 0.05, np.nan, 8.0 + shift + value)
    return value.astype(np.float32), np.where(timed, gap, 0.0).astype(np.float32), timed


def check(period: int = 1, block: int = 1, window: float = math.inf) -> PriorCheck:
    return PriorCheck(CheckModel.of(PRIOR), period, block, window)


def test_quiet_where_the_prior_is_right() -> None:
    one = check()
    one.add(*columns(50_000, 1))
    assert one.misfit().worst < 0.01


def test_doubled_amounts_are_loud() -> None:
    one = check()
    one.add(*columns(50_000, 2, shift=math.log(2.0)))
    misfit = one.misfit()
    # A normal that is shifted by d standard deviations is 2 Phi(d / 2) - 1 away.
    assert misfit.value == pytest.approx(math.erf(math.log(2.0) / 2.0 / math.sqrt(2.0)), abs=0.01)
    assert misfit.value > MISFIT
    assert misfit.gap < 0.01
    assert misfit.worst == misfit.value


def test_gaps_four_times_as_long_are_loud() -> None:
    one = check()
    one.add(*columns(50_000, 3, gap_shift=math.log(4.0)))
    assert one.misfit().gap > MISFIT
    assert one.misfit().value < 0.01


def test_what_the_prior_was_fitted_on_is_no_misfit_though_it_is_no_normal() -> None:
    before = check()
    before.add(*columns(100_000, 4, heavy=True, shift=0.8))
    assert before.misfit().value > MISFIT
    value_pit, gap_pit = before.shares()
    fitted = replace(PRIOR, value_pit=value_pit, gap_pit=gap_pit)
    today = PriorCheck(CheckModel.of(fitted), 1, 1, math.inf)
    today.add(*columns(100_000, 5, heavy=True, shift=0.8))
    assert today.misfit().worst < 0.01
    assert len(value_pit) == PIT_BINS
    assert sum(value_pit) == pytest.approx(1.0, abs=1e-3)


def test_nothing_is_said_of_few_events() -> None:
    one = check()
    one.add(*columns(FEWEST // 2, 6))
    assert math.isnan(one.misfit().worst)
    assert one.shares() == ((), ())
    value, gap, timed = columns(4 * FEWEST, 7)
    one.add(np.full_like(value, np.nan), gap, timed)
    assert math.isnan(one.misfit().value)
    assert one.misfit().worst == one.misfit().gap


def test_it_forgets() -> None:
    one = check(window=2_000)
    one.add(*columns(100_000, 8, shift=3.0))
    assert one.misfit().value > 0.5
    assert one.value_counts.sum() < 4_000
    one.add(*columns(40_000, 9))
    assert one.misfit().value < 0.05


def test_batches_do_not_matter() -> None:
    whole, parts = check(50, 7, 300), check(50, 7, 300)
    value, gap, timed = columns(5_000, 10)
    whole.add(value, gap, timed)
    at = 0
    for size in np.random.default_rng(11).integers(0, 60, 400).tolist():
        parts.add(value[at : at + size], gap[at : at + size], timed[at : at + size])
        at += size
    parts.add(value[at:], gap[at:], timed[at:])
    assert np.array_equal(whole.value_counts, parts.value_counts)
    assert np.array_equal(whole.gap_counts, parts.gap_counts)


def test_a_fixed_part_of_the_events_is_counted() -> None:
    one = PriorCheck(CheckModel.of(PRIOR), window=math.inf)
    n = 20 * PERIOD
    for start in range(0, n, 100):
        value = np.full(min(100, n - start), 8.0, np.float32)
        one.add(value, value, np.zeros(len(value), np.bool_))
    assert one.value_counts.sum() == 20 * BLOCK
    assert one.gap_counts.sum() == 0


def test_infinite_and_wild_values_fall_into_the_ends() -> None:
    one = check()
    value = np.array([-np.inf, np.inf, -1e30, 1e30], np.float32)
    one.add(value, value, np.ones(4, np.bool_))
    assert one.value_counts[0] == one.value_counts[-1] == 2
    assert one.gap_counts.sum() == 4
