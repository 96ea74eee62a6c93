"""Gaps and counts against scipy and plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special, stats

from models.baselines.counts import BUCKETS, counts_component
from models.baselines.gaps import (
    GAMMA,
    WEIBULL,
    gamma_gaps,
    log_normal_gaps,
    shaped_log_cdf,
    shaped_log_density,
    shaped_log_survival,
    weibull_gaps,
)
from models.baselines.renewal import HOURS
from tests.models.component_cases import START_MS, events_of, walk
from tests.models.family_cases import gapped

HOUR_S = 3600.0
HOUR_MS = 3_600_000
SHAPES = (0.5, 1.0, 3.0)


@pytest.mark.parametrize("u", [1e-4, 0.3, 1.0, 40.0, 1e5])
@pytest.mark.parametrize("shape", SHAPES)
def test_gamma_gap_is_beta_prime(u: float, shape: float) -> None:
    model = stats.betaprime(shape, 6.0, scale=2.5)
    assert shaped_log_density(GAMMA, u, shape, 6.0, 2.5) == pytest.approx(model.logpdf(u), rel=1e-8)
    below = special.betainc(shape, 6.0, u / (u + 2.5))
    above = special.betainc(6.0, shape, 2.5 / (u + 2.5))
    assert shaped_log_cdf(GAMMA, u, shape, 6.0, 2.5) == pytest.approx(
        math.log(below), rel=1e-8, abs=1e-12
    )
    assert shaped_log_survival(GAMMA, u, shape, 6.0, 2.5) == pytest.approx(
        math.log(above), rel=1e-8, abs=1e-12
    )


@pytest.mark.parametrize("u", [1e-4, 0.3, 1.0, 40.0, 1e5])
@pytest.mark.parametrize("shape", SHAPES)
def test_weibull_gap_is_lomax_in_its_power(u: float, shape: float) -> None:
    model = stats.lomax(6.0, scale=2.5)
    wanted = model.logpdf(u**shape) + math.log(shape) + (shape - 1.0) * math.log(u)
    assert shaped_log_density(WEIBULL, u, shape, 6.0, 2.5) == pytest.approx(wanted, rel=1e-8)
    assert shaped_log_survival(WEIBULL, u, shape, 6.0, 2.5) == pytest.approx(
        model.logsf(u**shape), rel=1e-8, abs=1e-12
    )
    below = -6.0 * math.log1p(u**shape / 2.5)
    assert shaped_log_cdf(WEIBULL, u, shape, 6.0, 2.5) == pytest.approx(
        math.log(-math.expm1(below)), rel=1e-8, abs=1e-12
    )


def test_log_normal_gaps_learn_the_closed_form() -> None:
    gap_s = np.ceil(np.exp(np.random.default_rng(1).normal(7.0, 1.0, 100)) * 1000.0) / 1000.0
    events = gapped(gap_s)
    out, state = walk(log_normal_gaps(6.0, 2.0, 3.0, 4.0), events)
    y = np.log(gap_s[1:])
    n, mean = len(y), y.mean()
    scale = 4.0 + 0.5 * np.sum((y - mean) ** 2) + n / (2.0 + n) * (mean - 6.0) ** 2
    assert state["mean"][0] == pytest.approx((12.0 + n * mean) / (2.0 + n), rel=1e-8)
    assert state["scale"][0] == pytest.approx(scale, rel=1e-8)
    t = (y[0] - 6.0) / math.sqrt(4.0 / 3.0 * 1.5)
    assert out[1, 0] == pytest.approx(-stats.t.logcdf(t, 6.0), rel=1e-5)
    assert out[1, 1] == pytest.approx(-stats.t.logsf(t, 6.0), rel=1e-5)
    spread = math.sqrt(2.0)
    density = stats.t.pdf(t, 6.0) / spread / gap_s[1]
    assert out[1, 2] == pytest.approx(density / stats.t.sf(t, 6.0), rel=1e-5)
    assert out[1, 3] == pytest.approx(math.exp(6.0), rel=1e-6)


@pytest.mark.parametrize("family", [GAMMA, WEIBULL])
def test_shapes_are_averaged_by_their_marginal_likelihood(family: int) -> None:
    """After n gaps: rates are conjugate, and the weights are those of the closed-form evidence."""
    rng = np.random.default_rng(2)
    drawn = rng.gamma(3.0, 1 / 3.0, 60) if family == GAMMA else rng.weibull(3.0, 60)
    gap_s = np.ceil(HOUR_S * drawn * 1000.0) / 1000.0
    make = gamma_gaps if family == GAMMA else weibull_gaps
    events = gapped(gap_s)
    events.time_ms[:] -= START_MS  # near the epoch, where operational seconds keep more digits
    _, state = walk(make(SHAPES, HOUR_S, 4.0), events)
    u = gap_s[1:] / HOUR_S
    n = len(u)
    evidence = []
    for k, shape in enumerate(SHAPES):
        if family == GAMMA:
            a, b, power, trials = 4.0 * shape, 4.0, u, n * shape
            front = (shape - 1.0) * np.log(u).sum() - n * math.lgamma(shape)
        else:
            a, b = 4.0, 4.0 * math.gamma(1.0 + 1.0 / shape) ** -shape
            power, trials = u**shape, float(n)
            front = n * math.log(shape) + (shape - 1.0) * np.log(u).sum()
        after_a, after_b = a + trials, b + power.sum()
        assert state["a"][0, k] == pytest.approx(after_a, rel=1e-8)
        assert state["b"][0, k] == pytest.approx(after_b, rel=1e-8)
        evidence.append(
            front + a * math.log(b) - math.lgamma(a)
            + math.lgamma(after_a) - after_a * math.log(after_b)
        )  # fmt: skip
    wanted = np.array(evidence) - special.logsumexp(evidence)
    assert state["log_weight"][0, :3] == pytest.approx(wanted, rel=1e-8, abs=1e-8)
    assert np.argmax(wanted) == 2  # the shape that the gaps were drawn with


def test_hazard_of_exponential_gaps_is_their_rate() -> None:
    gap_s = np.random.default_rng(3).exponential(100.0, 4000)
    out, _ = walk(weibull_gaps((1.0,), 300.0, 1.0), gapped(gap_s))
    assert out[-1000:, 2].mean() == pytest.approx(0.01, rel=0.06)
    assert out[-1, 3] == pytest.approx(100.0, rel=0.06)


def test_an_older_event_has_no_gap() -> None:
    events = gapped(np.array([10.0, 10.0, 10.0]))
    events.time_ms[2] -= 15_000
    out, state = walk(gamma_gaps(SHAPES, HOUR_S, 4.0), events)
    assert out[2, :2].tolist() == [0.0, 0.0]
    assert math.isnan(out[2, 2])
    assert state["last_ms"][0] == events.time_ms[1]


@pytest.mark.parametrize("make", [gamma_gaps, weibull_gaps])
@pytest.mark.parametrize("shapes", [(), (0.0,), (1.0,) * 9])
def test_odd_shapes_are_refused(make: object, shapes: tuple[float, ...]) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match="gap: expected 1 to 8 positive shapes"):
        make(shapes, HOUR_S, 4.0)


def test_odd_log_normals_are_refused() -> None:
    with pytest.raises(ValueError, match="gap: expected a finite mean"):
        log_normal_gaps(6.0, 2.0, 0.0, 4.0)


def count_plainly(
    time_ms: NDArray[np.int64], window_ms: int, profile: NDArray[np.float64]
) -> list[tuple[float, float, float]]:
    """(-log P(>=), -log P(<=), expected) by counting the past anew, but for the first.

    As many or more are counted for a whole bucket at least.
    """
    scaled = profile / profile.mean()
    width = window_ms // BUCKETS

    def hours(first: int, last: int) -> float:
        """Integral of the profile, minute by minute: all times here are whole minutes."""
        minutes = np.arange(first, last, 60_000)
        return float(scaled[(minutes // HOUR_MS + 72) % HOURS].sum() / 60.0)

    told = []
    for i in range(1, len(time_ms)):
        now, first = int(time_ms[i]), int(time_ms[0])
        begin = max((now // width - BUCKETS + 1) * width, first)
        before = time_ms[1:i]
        left = float((before < begin).sum())
        count = float((before >= begin).sum())
        shape, rate, exposure = 2.0 + left, 3.0 + hours(first, begin), hours(begin, now)
        exposure = max(exposure, 1e-3 / 3600.0)
        p = rate / (rate + exposure)
        whole = rate / (rate + max(hours(begin, max(now, begin + width)), exposure))
        told.append(
            (
                -stats.nbinom.logsf(count - 1, shape, whole),
                -stats.nbinom.logcdf(count, shape, p),
                shape / rate * exposure,
            )
        )
    return told


def test_counts_are_negative_binomial_given_what_has_left_the_window() -> None:
    rng = np.random.default_rng(4)
    profile = rng.uniform(0.2, 3.0, HOURS)
    time_ms = START_MS + 60_000 * np.cumsum(rng.integers(1, 200, 300))
    time_ms[150:] += 9 * 24 * HOUR_MS  # an absence
    window_ms = 16 * HOUR_MS
    component = counts_component(window_ms, 2.0, 3.0, profile=profile)
    out, _ = walk(component, events_of(time_ms, np.full(300, np.nan)))
    assert out[0, :2].tolist() == [0.0, 0.0]
    wanted = np.array(count_plainly(time_ms, window_ms, profile))
    assert out[1:, 0] == pytest.approx(wanted[:, 0], rel=1e-5, abs=1e-6)
    assert out[1:, 1] == pytest.approx(wanted[:, 1], rel=1e-5, abs=1e-6)
    assert out[1:, 2] == pytest.approx(wanted[:, 2], rel=1e-5, abs=1e-9)


def test_late_events_count_where_their_bucket_is_still_there() -> None:
    hour = START_MS + HOUR_MS * np.array([0, 20, 21, 19, 2, 22])
    out, state = walk(counts_component(8 * HOUR_MS, 2.0, 3.0), events_of(hour, np.zeros(6)))
    assert math.isnan(out[3, 2])
    assert out[3:5, 0].tolist() == [0.0, 0.0]
    assert state["count"][0].sum() == 4.0  # at 19, 20, 21, 22: the one at 2 has no place


def test_first_events_of_one_second_are_no_burst() -> None:
    component = counts_component(24 * HOUR_MS, 2.0, 2.0)
    for stamps in (np.zeros(6), np.arange(6), 1_000 * (np.arange(6) // 3)):
        time_ms = (START_MS + stamps).astype(np.int64)
        out, _ = walk(component, events_of(time_ms, np.zeros(6)))
        assert np.isfinite(out[1:]).all()
        assert out[:, 0].max() < 5.0
        assert out[:, 1].max() < 0.1
    many = np.full(200, START_MS, np.int64)  # more than three hours hold
    out, _ = walk(component, events_of(many, np.zeros(200)))
    assert 20.0 < out[-1, 0] < 1_000.0


def test_a_day_of_many_events_is_surprising() -> None:
    usual = START_MS + HOUR_MS * np.arange(1000)
    rush = usual[-1] + 60_000 * np.arange(1, 60)
    time_ms = np.append(usual, rush)
    out, _ = walk(counts_component(8 * HOUR_MS, 2.0, 3.0), events_of(time_ms, np.zeros(1059)))
    assert out[100:1000, 0].max() < 2.0
    assert out[-1, 0] > 40.0


@pytest.mark.parametrize(("window_ms", "shape"), [(7, 1.0), (0, 1.0), (8, 0.0)])
def test_odd_counts_are_refused(window_ms: int, shape: float) -> None:
    with pytest.raises(ValueError, match="counts: expected a positive window_ms"):
        counts_component(window_ms, shape, 1.0)
