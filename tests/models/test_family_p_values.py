"""p-values of the family on data from each model itself: rates at nominal .01 and .001."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from models.baselines.counts import counts_component
from models.baselines.marks import markov_component, variable_order_component
from tests.models.component_cases import START_MS, events_of, walk
from tests.models.family_cases import BASE, FAMILY_CASES

WITHIN = 1.5
CONTINUOUS = [case for case in FAMILY_CASES if case.model_events is not None]


def assert_honest(told: NDArray[np.float64]) -> None:
    """`told`: surprises in nats; rates within a factor of WITHIN, sampling error included."""
    for nominal in (0.01, 0.001):
        rate = float((told > -math.log(nominal)).mean())
        assert nominal / WITHIN < rate < nominal * WITHIN, (nominal, rate)


@pytest.mark.slow
@pytest.mark.parametrize("case", CONTINUOUS, ids=lambda case: case.name)
def test_continuous_predictions(case: object) -> None:
    assert case in CONTINUOUS
    chosen = next(each for each in CONTINUOUS if each is case)
    assert chosen.model_events is not None
    component = chosen.make()
    at = [component.tells.index(name) for name in component.surprises]
    streams = [chosen.model_events(seed, chosen.warm + 2_000) for seed in range(500, 530)]
    told = np.concatenate([walk(component, s)[0][chosen.warm :, at] for s in streams])
    for column in told.T:
        assert_honest(column.astype(np.float64))


@pytest.mark.slow
def test_counts_randomised() -> None:
    """P(N > n) + u P(N = n) is uniform; the told p-value is its conservative end."""
    rng = np.random.default_rng(1)
    told = []
    for _ in range(40):
        rate_per_h = rng.gamma(4.0, 0.5)
        gap_ms = np.ceil(rng.exponential(3_600_000 / rate_per_h, 6_000))
        time_ms = START_MS + np.cumsum(gap_ms).astype(np.int64)
        component = counts_component(8 * 3_600_000, 4.0, 2.0)
        out, _ = walk(component, events_of(time_ms, np.full(6_000, np.nan)))
        at_least = np.exp(-out[1:, 0].astype(np.float64))
        above = -np.expm1(-out[1:, 1].astype(np.float64))  # 1 - P(N <= n)
        told.append(above + rng.uniform(size=5_999) * (at_least - above))
    p = np.concatenate(told)
    assert_honest(-np.log(p))
    for nominal in (0.1, 0.5):
        assert (p < nominal).mean() == pytest.approx(nominal, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("variable", [False, True])
def test_marks_randomised(variable: bool) -> None:
    """Chains drawn from the prior of the order-1 model; ties in probability have measure zero."""
    rng = np.random.default_rng(2)
    make = variable_order_component if variable else markov_component
    component = make(BASE, 4.0)
    told = []
    for _ in range(60):
        rows = rng.dirichlet(4.0 * np.array(BASE), 5)
        mark = np.empty(2_500, np.int64)
        last = 4
        for i in range(2_500):
            last = rng.choice(4, p=rows[last])
            mark[i] = last
        events = events_of(np.arange(2_500), np.full(2_500, np.nan), mark.astype(np.uint8))
        out, _ = walk(component, events)
        p = np.exp(-out[:, 0].astype(np.float64))
        told.append(p - rng.uniform(size=2_500) * out[:, 1])
    p = np.maximum(np.concatenate(told), 1e-12)
    # The chain of variable order shrinks towards order 0, which these chains do not.
    assert_honest(-np.log(p[p > 0.0]))
