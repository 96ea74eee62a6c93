"""Each test's null against scipy, brute force and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import integrate, stats

from models.tpp.gamma import log_gamma_tails, log_poisson_tails
from models.tpp.sequence import CELL, SHORTEST
from models.tpp.sequence_families import (
    CELLS_IN_ALL,
    FAMILIES,
    LOG_WEIGHT,
    X_LOG_X,
    combine,
    dispersion_tails,
    log_e_value,
    lull_log_p,
    pairs_skew,
    pairs_z,
    place_log_e,
    regulation_log_p,
    serial_log_p,
    skewed_tails,
    two_sided,
)


@pytest.mark.parametrize("shape", [0.3, 1.0, 7.5, 60.0, 900.0])
@pytest.mark.parametrize("at", [0.05, 0.5, 0.9, 1.0, 1.1, 2.0, 6.0])
def test_gamma_tails_equal_scipy(shape: float, at: float) -> None:
    lower, upper = log_gamma_tails(shape, at * shape)
    wanted = stats.gamma.logcdf(at * shape, shape), stats.gamma.logsf(at * shape, shape)
    # The smaller one to full precision, whose own logs scipy loses below 1e-300.
    if max(wanted) > -700.0 and min(wanted) > -700.0:
        assert min(lower, upper) == pytest.approx(min(wanted), rel=1e-10)
        assert math.exp(lower) + math.exp(upper) == pytest.approx(1.0, abs=1e-12)


def test_gamma_tails_at_and_beyond_the_ends() -> None:
    assert log_gamma_tails(2.0, 0.0) == (-math.inf, 0.0)
    # P(G > x) of shape 1 is exp(-x), also where it underflows.
    assert log_gamma_tails(1.0, 5000.0)[1] == pytest.approx(-5000.0)


@pytest.mark.parametrize(("count", "mean"), [(0, 15.0), (3, 1.0), (70, 100.0), (100, 100.0)])
@pytest.mark.parametrize("shift", [0, 40])
def test_poisson_mid_p_equals_scipy(count: int, mean: float, shift: int) -> None:
    lower, upper = log_poisson_tails(float(count + shift), mean)
    law = stats.poisson(mean)
    half = 0.5 * law.pmf(count + shift)
    assert lower == pytest.approx(math.log(law.cdf(count + shift) - half), rel=1e-8, abs=1e-9)
    assert upper == pytest.approx(math.log(law.sf(count + shift) + half), rel=1e-8, abs=1e-9)


def test_the_calibrator_is_an_e_value() -> None:
    for log_p in (-1e-5, -0.01, -1.0, -5.0, -50.0):
        integral, _ = integrate.quad(
            lambda k, log_p: k * math.exp((k - 1.0) * log_p), 0.0, 1.0, args=(log_p,)
        )
        assert log_e_value(log_p) == pytest.approx(math.log(integral), abs=1e-6)
    # Its mean over uniform p-values is 1; in u = -log p the integrand is e(u) exp(-u). The tail
    # beyond u = 1e6 holds 1e-6 of it.
    mean, _ = integrate.quad(
        lambda v: math.exp(log_e_value(-math.exp(v)) - math.exp(v) + v),
        -20.0, math.log(1e6), limit=200,
    )  # fmt: skip
    assert mean == pytest.approx(1.0, abs=1e-4)
    assert log_e_value(-1e5) == pytest.approx(1e5 - 2.0 * math.log(1e5))


def test_the_mean_of_e_values_is_weighted_and_survives_large_ones() -> None:
    assert np.exp(LOG_WEIGHT).sum() == pytest.approx(1.0)
    assert len(LOG_WEIGHT) == len(FAMILIES)
    log_e = np.linspace(-1.0, 3.0, len(FAMILIES))
    wanted = math.log(float(np.exp(LOG_WEIGHT) @ np.exp(log_e)))
    assert combine(log_e, LOG_WEIGHT) == pytest.approx(wanted)
    log_e[3] = 5000.0
    assert combine(log_e, LOG_WEIGHT) == pytest.approx(5000.0 + LOG_WEIGHT[3])


def uniform_enough(p: NDArray[np.float64], levels: tuple[float, ...], slack: float) -> None:
    """Assert that p-values are below each level as often as it says, times 1 +- slack."""
    for level in levels:
        found = float(np.mean(p < level))
        noise = 4.0 * math.sqrt(level / len(p))
        assert abs(found - level) < slack * level + noise, (level, found)


@pytest.mark.parametrize("events", [5, 20, 100])
def test_dispersion_is_uniform_on_both_sides_whatever_the_rate(events: int) -> None:
    gaps = np.random.default_rng(events).exponential(3.0, (20_000, events))
    logs = np.log(np.maximum(gaps, SHORTEST))
    tails = np.array(
        [
            dispersion_tails(float(events), t, s)
            for t, s in zip(gaps.sum(1), logs.sum(1), strict=True)
        ]
    )
    for side in np.exp(tails).T:
        uniform_enough(side, (0.3, 0.05, 0.01, 0.001), 0.05)


def test_dispersion_of_clockwork_and_of_equal_times_is_finite() -> None:
    lower, _ = dispersion_tails(50.0, 50.0, 0.0)
    assert -1000.0 < lower < -100.0
    assert np.isfinite(dispersion_tails(50.0, 0.0, 50.0 * math.log(SHORTEST))).all()


def pair_sums(times: NDArray[np.float64], reach: float) -> NDArray[np.float64]:
    ordered = np.sort(times, 1)
    total = np.zeros(len(times))
    for later in range(1, times.shape[1]):
        apart = ordered[:, later, None] - ordered[:, :later]
        total += np.exp(-apart / reach).sum(1)
    return total


@pytest.mark.parametrize(("events", "length"), [(12, 10.0), (40, 50.0), (100, 80.0)])
@pytest.mark.parametrize("reach", [1.0, 6.0])
def test_pairs_are_standardised(events: int, length: float, reach: float) -> None:
    times = np.random.default_rng(events).uniform(0.0, length, (6_000, events))
    z = np.array([pairs_z(s, float(events), length, reach, False) for s in pair_sums(times, reach)])
    assert z.mean() == pytest.approx(0.0, abs=0.06)
    assert z.std() == pytest.approx(1.0, abs=0.06)
    skew = pairs_skew(float(events), length, reach)
    assert skew == pytest.approx(stats.skew(z), rel=0.3)
    p = np.exp([two_sided(*skewed_tails(x, skew)) for x in z])
    uniform_enough(p, (0.2, 0.05, 0.01), 0.35)


def test_the_right_tail_of_a_skewed_variable_is_the_gammas() -> None:
    for z in (0.5, 3.0, 8.0):
        _, upper = skewed_tails(z, 0.8)
        assert upper == pytest.approx(stats.pearson3.logsf(z, 0.8), rel=1e-8)


@pytest.mark.parametrize("length", [20.0, 100.0])
def test_lull_is_uniform_in_its_tail(length: float) -> None:
    rng = np.random.default_rng(5)
    p = []
    for _ in range(6_000):
        time = np.sort(rng.uniform(0.0, length, rng.poisson(length)))
        longest = np.diff(time, prepend=0.0, append=length).max()
        p.append(math.exp(lull_log_p(longest, length)))
    uniform_enough(np.array(p), (0.2, 0.05, 0.01), 0.1)
    # Far out it is the number of places times the tail.
    assert lull_log_p(90.0, 100.0) == pytest.approx(-90.0 + math.log(11.0))
    assert lull_log_p(500.0, 100.0) == -500.0


def test_regulation_is_the_lower_tail_of_squared_brownian_motion() -> None:
    steps = np.random.default_rng(6).normal(0.0, 1.0 / math.sqrt(2000.0), (4_000, 2000))
    mean_square = (np.cumsum(steps, 1) ** 2).mean(1)
    for level in (0.02, 0.05, 0.1, 0.2):
        found = float(np.mean(mean_square < level))
        assert math.exp(regulation_log_p(level)) == pytest.approx(found, abs=0.025)
    assert regulation_log_p(1e-3) == pytest.approx(-125.0, abs=5.0)


@pytest.mark.parametrize("events", [40, 100])
def test_serial_is_uniform(events: int) -> None:
    centred = np.random.default_rng(7).uniform(-0.5, 0.5, (20_000, events))
    products = (centred[:, 1:] * centred[:, :-1]).sum(1)
    p = np.exp([serial_log_p(s, float(events)) for s in products])
    uniform_enough(p, (0.2, 0.05, 0.01), 0.25)


@pytest.mark.parametrize("events", [2, 5, 12])
def test_serial_does_not_overstate_a_few_events(events: int) -> None:
    centred = np.random.default_rng(7).uniform(-0.5, 0.5, (20_000, events))
    products = (centred[:, 1:] * centred[:, :-1]).sum(1)
    p = np.exp([serial_log_p(s, float(events)) for s in products])
    for level in (0.2, 0.05, 0.01):
        assert np.mean(p < level) < level


def test_serial_sees_both_directions() -> None:
    assert serial_log_p(5.0, 80.0) == serial_log_p(-5.0, 80.0) < math.log(1e-6)


def _place_by_integration(count: NDArray[np.float64], length: float) -> float:
    """Average the binomial likelihood ratio over prior and segments, numerically."""
    events = count.sum()
    cells = math.ceil(length / CELL)
    edges = np.minimum(np.arange(cells + 1) * CELL, length)
    ratios = []
    for span in (1, 2, 3, 4, 6, 8, 10):
        for first in range(cells - span + 1) if span < cells else ():
            share = (edges[first + span] - edges[first]) / length
            inside = count[first : first + span].sum()

            def ratio(b: float, share: float = share, inside: float = inside) -> float:
                p = share * math.exp(b) / (1.0 - share + share * math.exp(b))
                log_ratio = inside * math.log(p / share)
                log_ratio += (events - inside) * math.log((1.0 - p) / (1.0 - share))
                return math.exp(log_ratio) * float(stats.norm.pdf(b))

            ratios.append(integrate.quad(ratio, -8.0, 8.0, limit=200)[0])
    return math.log(float(np.mean(ratios)))


@pytest.mark.parametrize(("length", "burst"), [(100.0, 0), (100.0, 25), (62.5, 5)])
@pytest.mark.compiled
def test_place_averages_likelihood_ratios(length: float, burst: int) -> None:
    rng = np.random.default_rng(8)
    cells = math.ceil(length / CELL)
    count = np.zeros(CELLS_IN_ALL)
    count[:cells] = rng.poisson(CELL, cells)
    count[4] += burst
    found = place_log_e(count, count.sum(), length, X_LOG_X)
    # Laplace's method takes the prior for flat about the fit: far out it falls short by a tenth.
    assert found == pytest.approx(_place_by_integration(count, length), rel=0.12, abs=0.4)
    assert (found > 3.0) == (burst > 10)


def test_place_needs_two_cells_and_an_event() -> None:
    count = np.zeros(CELLS_IN_ALL)
    assert place_log_e(count, 0.0, 100.0, X_LOG_X) == 0.0
    count[0] = 40.0
    assert place_log_e(count, 40.0, 4.0, X_LOG_X) == 0.0
    # More events than the table holds are computed.
    count[:2] = 3000.0, 1000.0
    small = place_log_e(count, 4000.0, 10.0, X_LOG_X[:10])
    assert small == pytest.approx(place_log_e(count, 4000.0, 10.0, X_LOG_X))
    assert small > 300.0
