"""Chains of marks, distinct partners and change points against plain Python and scipy."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special, stats

from models.baselines.change_point import HYPOTHESES, ChangeParameters, change_point_component
from models.baselines.distinct_partners import partners_component
from models.baselines.marks import mark_log_p, markov_component, variable_order_component
from tests.models.component_cases import Events, events_of, walk

BASE = (0.4, 0.3, 0.2, 0.1)
DAY_MS = 86_400_000


def marked(mark: NDArray[np.int64]) -> Events:
    n = len(mark)
    return events_of(np.arange(n), np.full(n, np.nan), mark.astype(np.uint8))


def p_value(probability: NDArray[np.float64], mark: int) -> float:
    return float(probability[probability <= probability[mark] * (1 + 1e-12)].sum())


def test_the_markov_chain_is_dirichlet_by_context() -> None:
    mark = np.random.default_rng(1).integers(0, 4, 300)
    mark[10:20] = 255
    out, _ = walk(markov_component(BASE, 5.0), marked(mark))
    count: dict[int, NDArray[np.float64]] = defaultdict(lambda: np.zeros(4))
    last = -1
    for i, m in enumerate(mark):
        if m == 255:
            assert out[i, 0] == 0.0
            assert math.isnan(out[i, 1])
            continue
        probability = (5.0 * np.array(BASE) + count[last]) / (5.0 + count[last].sum())
        assert out[i, 1] == pytest.approx(probability[m], rel=1e-6)
        assert out[i, 0] == pytest.approx(-math.log(p_value(probability, m)), rel=1e-5, abs=1e-6)
        count[last][m] += 1.0
        last = m


def test_forgetting_bounds_the_counts() -> None:
    _, state = walk(markov_component(BASE, 5.0, 0.9), marked(np.zeros(400, np.int64)))
    assert state["count"][0, 0] == pytest.approx([10.0] + [0.0] * 7, rel=1e-5)


@pytest.mark.parametrize("order", [2, 3])
def test_variable_order_mixes_the_hierarchy(order: int) -> None:
    """With few contexts none gives way, so dictionaries must say the same."""
    rng = np.random.default_rng(order)
    mark = np.where(rng.uniform(size=300) < 0.1, rng.integers(0, 2, 300), np.arange(300) % 2)
    out, _ = walk(variable_order_component((0.6, 0.4), 2.0, 1.0, 0.05, order), marked(mark))
    count: dict[tuple[int, ...], NDArray[np.float64]] = defaultdict(lambda: np.zeros(2))
    weight = np.full(order + 1, 1.0 / (order + 1))
    past: tuple[int, ...] = ()
    for i, m in enumerate(mark):
        base = np.array([0.6, 0.4])
        by_order = []
        for k in range(order + 1):
            if k <= len(past):
                seen = count[past[:k]]
                base = (2.0 * base + seen) / (2.0 + seen.sum())
            by_order.append(base)
        mixed = weight @ np.array(by_order)
        assert out[i, 1] == pytest.approx(mixed[m], rel=1e-6), i
        assert out[i, 0] == pytest.approx(-math.log(p_value(mixed, m)), rel=1e-5, abs=1e-6)
        weight = weight * np.array([each[m] for each in by_order]) / mixed[m]
        weight = 0.95 * weight + 0.05 / (order + 1)
        for k in range(min(order, len(past)) + 1):
            count[past[:k]][m] += 1.0
        past = (int(m), *past)[:order]


def test_variable_order_learns_what_order_one_cannot() -> None:
    """0 0 1 0 2: what follows a 0 depends on the mark before it, and on the one before that."""
    mark = np.tile([0, 0, 1, 0, 2], 200)
    low, _ = walk(markov_component(BASE, 2.0), marked(mark))
    high, _ = walk(variable_order_component(BASE, 2.0), marked(mark))
    assert high[-100:, 1].min() > 0.9
    assert low[-100:, 1].min() < 0.4


def test_many_contexts_stay_within_their_table() -> None:
    mark = np.random.default_rng(3).integers(0, 8, 5000)
    base = (1.0,) * 8
    out, _ = walk(variable_order_component(base, 4.0, 0.99), marked(mark))
    assert -np.log(out[1000:, 1]).mean() == pytest.approx(math.log(8.0), abs=0.12)


@pytest.mark.parametrize("mark", [0, 1, 2])
def test_ties_count_together(mark: int) -> None:
    probability = np.array([0.25, 0.25, 0.5])
    assert mark_log_p(probability, mark) == pytest.approx(math.log((0.5, 0.5, 1.0)[mark]), abs=1e-9)


def test_odd_chains_are_refused() -> None:
    with pytest.raises(ValueError, match="mark: expected 2 to 8 positive probabilities"):
        markov_component((1.0,), 2.0)
    with pytest.raises(ValueError, match="mark: expected an order of 2 or 3, found 4"):
        variable_order_component(BASE, 2.0, order=4)


def partnered(day: NDArray[np.int64], partner: NDArray[np.int64]) -> Events:
    n = len(day)
    return events_of(day * DAY_MS, np.full(n, np.nan), None, partner.astype(np.uint64))


def test_partners_are_beta_binomial_by_window() -> None:
    rng = np.random.default_rng(4)
    day = np.sort(rng.integers(100, 130, 200))
    partner = rng.integers(1, 1 << 40, 200)
    out, state = walk(partners_component(DAY_MS, 4.0, 3.0), partnered(day, partner))
    share = 1.0 - math.exp(-4.0 / 64.0)
    a, b = 3.0 * 63.0 * share, 3.0 * 63.0 * (1.0 - share)
    for window in np.unique(day):
        seen: set[int] = set()
        for i in np.flatnonzero(day == window):
            seen.add(int(partner[i]) % 64)
            j = np.arange(len(seen) - 1, 64)
            wanted = -special.logsumexp(stats.betabinom.logpmf(j, 63, a, b))
            assert out[i, 0] == pytest.approx(wanted, rel=1e-5, abs=1e-6)
            assert out[i, 1] == pytest.approx(64.0 * math.log(64.0 / (64.0 - len(seen))), rel=1e-6)
        if window != day[-1]:
            a, b = a + len(seen) - 1, b + 64 - len(seen)
    assert state["set"][0] == pytest.approx(a, rel=1e-12)
    assert state["clear"][0] == pytest.approx(b, rel=1e-12)


def test_no_partner_and_a_window_that_is_over() -> None:
    events = partnered(np.array([5, 5, 4]), np.array([9, 0, 7]))
    out, state = walk(partners_component(DAY_MS, 4.0, 3.0), events)
    assert out[1:, 0].tolist() == [0.0, 0.0]
    assert np.isnan(out[1:, 1]).all()
    assert state["bits"][0] == 1 << 9


@pytest.mark.compiled
def test_p_values_of_whole_windows_are_honest() -> None:
    """Poisson partners, hashed: of the last p-value of a window, randomised, .01 are below .01."""
    rng = np.random.default_rng(5)
    windows = 60_000
    partners = 1 + rng.poisson(20.0, windows)
    day = np.repeat(np.arange(1, windows + 1), partners)
    out, _ = walk(
        partners_component(DAY_MS, 15.0, 2.0), partnered(day, rng.integers(1, 1 << 60, len(day)))
    )
    last = np.cumsum(partners) - 1
    rate = {a: float((out[last[500:], 0] >= -math.log(a)).mean()) for a in (0.1, 0.01, 0.001)}
    for nominal, found in rate.items():
        assert nominal / 2.0 < found <= 1.05 * nominal + 1e-4, rate


def test_odd_partners_are_refused() -> None:
    with pytest.raises(ValueError, match="partners: expected positive"):
        partners_component(DAY_MS, 0.0, 3.0)


CHANGE = ChangeParameters(1.0, 0.2, 2.0, 3.0, 0.05, 5, 1e-12)


def test_change_points_are_those_of_adams_and_mackay() -> None:
    """All run lengths in numpy, while none has to be dropped."""
    n = HYPOTHESES - 1
    y = np.concatenate([np.full(8, 0.0), np.full(n - 8, 9.0)])
    y = y + np.random.default_rng(6).normal(0.0, 1.0, n)
    out, state = walk(change_point_component(CHANGE), events_of(np.arange(n), y))
    p = CHANGE
    weight = np.array([1.0])
    mean, events = np.array([p.mean]), np.array([p.mean_events])
    shape, scale = np.array([p.shape]), np.array([p.scale])
    for i, value in enumerate(y):
        spread = np.sqrt(scale / shape * (1.0 + 1.0 / events))
        above = weight @ stats.t.sf((value - mean) / spread, 2.0 * shape)
        two_sided = 2.0 * min(above, 1.0 - above)
        assert out[i, 0] == pytest.approx(-math.log(two_sided), rel=1e-5, abs=1e-6)
        assert out[i, 1] == pytest.approx(weight @ mean, rel=1e-5)
        grown = weight * stats.t.pdf((value - mean) / spread, 2.0 * shape) / spread
        weight = np.append(grown * (1.0 - p.hazard), grown.sum() * p.hazard)
        weight /= weight.sum()
        scale = np.append(scale + 0.5 * events / (events + 1.0) * (value - mean) ** 2, p.scale)
        mean = np.append((events * mean + value) / (events + 1.0), p.mean)
        events = np.append(events + 1.0, p.mean_events)
        shape = np.append(shape + 0.5, p.shape)
        runs = np.append(np.arange(i + 1, 0, -1), 0)
        assert out[i, 3] == pytest.approx(weight @ runs, rel=1e-5)
        assert out[i, 2] == pytest.approx(weight[runs <= p.recent].sum(), rel=1e-5)
    assert np.exp(state["log_weight"][0, : n + 1]) == pytest.approx(weight, rel=1e-8, abs=1e-14)
    assert state["mean"][0, : n + 1] == pytest.approx(mean, rel=1e-8)
    assert state["scale"][0, : n + 1] == pytest.approx(scale, rel=1e-8)


def test_a_level_shift_is_told_and_then_normal() -> None:
    rng = np.random.default_rng(7)
    y = np.concatenate([rng.normal(0.0, 1.0, 300), rng.normal(8.0, 1.0, 300)])
    p = CHANGE._replace(hazard=0.002, scale=2.0)
    out, _ = walk(change_point_component(p), events_of(np.arange(600), y))
    assert out[299, 2] < 0.1
    assert out[303, 2] > 0.9
    assert out[300, 0] > 8.0
    assert out[330:, 0].mean() == pytest.approx(1.0, abs=0.2)  # -log of uniform p-values
    assert out[-1, 1] == pytest.approx(8.0, abs=0.4)


def test_a_drift_keeps_runs_short() -> None:
    rng = np.random.default_rng(8)
    calm = rng.normal(0.0, 1.0, 400)
    drift = calm + 0.2 * np.maximum(np.arange(400) - 200, 0)
    component = change_point_component(CHANGE._replace(hazard=0.01))
    still, _ = walk(component, events_of(np.arange(400), calm))
    moving, _ = walk(component, events_of(np.arange(400), drift))
    assert moving[-100:, 3].mean() < 0.3 * still[-100:, 3].mean()
    assert moving[-50:, 1].mean() == pytest.approx(drift[-50:].mean(), abs=6.0)


def test_odd_change_points_are_refused() -> None:
    with pytest.raises(ValueError, match="change: expected a finite mean"):
        change_point_component(CHANGE._replace(hazard=0.0))
