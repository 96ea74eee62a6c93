"""Gaps, operational time and their CUSUMs against scipy and plain Python."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from models.baselines.local_level import CLIP, SHIFT
from models.baselines.renewal import (
    BURST,
    HOUR_MS,
    HOURS,
    LIMIT,
    LULL,
    RHYTHM_EVENTS,
    burst_step,
    cumulative_profile,
    gap_step,
    log_normal_log_survival,
    operational_s,
    rhythm_step,
    rhythm_surprise,
    surge_step,
    wall_ms,
)

MONDAY_MS = 1_767_571_200_000  # 2026-01-05T00:00:00Z
TIMES = st.integers(-(10**13), 10**13)


def profile_of(seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).uniform(0.05, 3.0, HOURS)


CURVES = [cumulative_profile(profile_of(seed)) for seed in range(4)]
FLAT = cumulative_profile(np.ones(HOURS))


def test_the_profile_is_scaled_to_a_week() -> None:
    for curve in CURVES:
        assert len(curve) == HOURS + 1
        assert curve[0] == 0.0
        assert curve[-1] == pytest.approx(HOURS)
    np.testing.assert_allclose(FLAT, np.arange(HOURS + 1))


@given(TIMES)
@settings(derandomize=True, deadline=None)
def test_flat_operational_time_is_wall_time(time_ms: int) -> None:
    gap = operational_s(time_ms + 12_345, FLAT) - operational_s(time_ms, FLAT)
    assert gap == pytest.approx(12.345, abs=1e-5)


def test_operational_time_integrates_the_profile_from_monday() -> None:
    profile = profile_of(0) / profile_of(0).mean()
    start = operational_s(MONDAY_MS, CURVES[0])
    for hour in (0, 1, 23, 24, 100, 167, 168, 169, 400):
        wanted = 3600.0 * sum(profile[h % HOURS] for h in range(hour))
        found = operational_s(MONDAY_MS + hour * HOUR_MS, CURVES[0]) - start
        assert found == pytest.approx(wanted, abs=1e-5)
    half = operational_s(MONDAY_MS + HOUR_MS // 2, CURVES[0]) - start
    assert half == pytest.approx(1800.0 * profile[0], abs=1e-5)
    assert datetime.fromtimestamp(MONDAY_MS / 1000, UTC).strftime("%a %H") == "Mon 00"


@given(TIMES, st.integers(0, 3))
@settings(derandomize=True, deadline=None, max_examples=300)
def test_wall_time_inverts_operational_time(time_ms: int, which: int) -> None:
    curve = CURVES[which]
    back = wall_ms(operational_s(time_ms, curve), curve)
    # One ms of a quiet hour is 2e-5 s: seconds since 1970 are told apart to 1e-7 at best.
    assert abs(back - time_ms) <= 1


@given(TIMES, st.floats(1e-3, 1e8), st.integers(0, 3))
@settings(derandomize=True, deadline=None, max_examples=300)
def test_wall_time_reaches_what_was_asked_for(time_ms: int, gap_s: float, which: int) -> None:
    curve = CURVES[which]
    target = operational_s(time_ms, curve) + gap_s
    at = wall_ms(target, curve)
    assert at >= time_ms
    assert operational_s(at + 1, curve) >= target - 1e-5
    assert operational_s(at - 2, curve) <= target + 1e-5


@given(TIMES, st.integers(1, 10**9), st.integers(0, 3))
@settings(derandomize=True, deadline=None)
def test_operational_time_rises(time_ms: int, step_ms: int, which: int) -> None:
    curve = CURVES[which]
    assert operational_s(time_ms + step_ms, curve) > operational_s(time_ms, curve)


@pytest.mark.parametrize(
    "z",
    [-40.0, -9.0, -1.0, 0.0, 1e-8, 1.0, 5.0, 20.0, 24.9, 25.0, 25.1, 30.0, 38.0, 100.0, 1e4, 1e8],
)
def test_log_survival_equals_scipy_far_into_the_tail(z: float) -> None:
    wanted = float(stats.norm.logsf(z))
    assert log_normal_log_survival(z) == pytest.approx(wanted, rel=1e-9, abs=1e-15)


def test_log_survival_is_good_to_eleven_digits_where_the_series_takes_over() -> None:
    z = np.concatenate([np.linspace(20, 40, 401), np.geomspace(41, 1e6, 50)])
    found = np.array([log_normal_log_survival(v) for v in z])
    np.testing.assert_allclose(found, stats.norm.logsf(z), rtol=1e-11)
    assert (np.diff(found) < 0).all()


def test_gap_step_against_a_plain_mean_while_nothing_is_forgotten() -> None:
    """With prior weight w the mean after n gaps is (w m0 + sum) / (w + n)."""
    rng = np.random.default_rng(7)
    gaps = rng.normal(3.0, 0.5, 60)
    mean, var = 4.0, 1.0
    for n, gap in enumerate(gaps, 1):
        mean, var = gap_step(gap, mean, var, float(n - 1), 3.0)
        assert mean == pytest.approx((3.0 * 4.0 + gaps[:n].sum()) / (3.0 + n), abs=1e-9)
    assert var == pytest.approx(0.25, rel=0.5)


def test_gap_step_forgets_beyond_64_events_and_bounds_an_outlier() -> None:
    weight = 1.0 / 68.0
    mean, var = gap_step(9.0, 3.0, 0.25, 5000.0, 3.0)
    assert mean == pytest.approx(3.0 + weight * 6.0)
    assert var == pytest.approx(0.25 + weight * (9 * 0.25 * (1 - weight) - 0.25))
    assert gap_step(3.0, 3.0, 1e-4, 5.0, 3.0)[1] == 1e-4


def test_gap_step_learns_mean_and_variance() -> None:
    rng = np.random.default_rng(8)
    mean, var, means, variances = 0.0, 4.0, [], []
    for n, gap in enumerate(rng.normal(6.0, 1.3, 8000), 1):
        mean, var = gap_step(gap, mean, var, float(n), 3.0)
        means.append(mean)
        variances.append(var)
    assert np.mean(means[1000:]) == pytest.approx(6.0, abs=0.05)
    assert np.mean(variances[1000:]) == pytest.approx(1.69, rel=0.08)


def test_the_burst_cusum_sums_log_likelihood_ratios_of_poisson_rates() -> None:
    """A gap with compensator c: log of (BURST exp(-BURST c)) / exp(-c)."""
    rng = np.random.default_rng(9)
    c = np.concatenate(
        [rng.exponential(1, 80), rng.exponential(1 / BURST, 60), [3.5], rng.exponential(1, 40)]
    )
    found, wanted, cusum, total = [], [], 0.0, 0.0
    for value in c:
        cusum = burst_step(cusum, value)
        ratio = stats.expon.logpdf(value, scale=1 / BURST) - stats.expon.logpdf(value)
        total = 0.0 if value > LULL else min(max(0.0, total + ratio), LIMIT)
        found.append(cusum)
        wanted.append(total)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9)
    assert max(found) == LIMIT
    assert found[140] == 0.0


def test_the_surge_cusum_adds_the_evidence_of_the_values() -> None:
    rng = np.random.default_rng(10)
    cusum, total = 0.0, 0.0
    for c, z in zip(rng.exponential(0.4, 200), rng.normal(0.8, 2, 200), strict=True):
        cusum = surge_step(cusum, c, z)
        u = min(max(z, -CLIP), CLIP)
        ratio = stats.expon.logpdf(c, scale=1 / BURST) - stats.expon.logpdf(c)
        ratio += stats.norm.logpdf(u, SHIFT) - stats.norm.logpdf(u)
        total = 0.0 if c > LULL else min(max(0.0, total + ratio), LIMIT)
        assert cusum == pytest.approx(total, abs=1e-9)


def test_rhythm_is_the_plain_mean_and_variance_of_the_first_gaps() -> None:
    gaps = np.random.default_rng(11).normal(2, 1, int(RHYTHM_EVENTS))
    mean, var = 0.0, 0.0
    for n, gap in enumerate(gaps, 1):
        mean, var = rhythm_step(gap, mean, var, float(n))
        assert mean == pytest.approx(np.mean(gaps[:n]), abs=1e-12)
        assert var == pytest.approx(np.var(gaps[:n]), abs=1e-12)


def test_rhythm_forgets() -> None:
    mean, var = 100.0, 50.0
    for _ in range(200):
        mean, var = rhythm_step(3.0, mean, var, 500.0)
    assert mean == pytest.approx(3.0, abs=1e-6)
    assert var == pytest.approx(0.0, abs=1e-4)


def test_rhythm_surprise_is_half_the_gaps_times_a_divergence() -> None:
    """Kullback-Leibler divergence of normals with one mean: (r - 1 - log r) / 2."""
    for var, usual, gaps in ((0.1, 1.0, 8.0), (0.01, 2.0, 30.0)):
        ratio = (var + 1e-6) / usual
        wanted = min(gaps, RHYTHM_EVENTS) * 0.5 * (ratio - 1 - math.log(ratio))
        assert rhythm_surprise(var, usual, gaps) == pytest.approx(wanted, rel=1e-12)
    assert rhythm_surprise(0.0, 1.0, 5.0) == 0.0  # too few gaps
    assert rhythm_surprise(1.5, 1.0, 50.0) == 0.0  # no more regular than usual
    assert rhythm_surprise(0.0, 1.0, 50.0) > 60.0  # a machine
