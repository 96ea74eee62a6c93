"""The conjugate, renewal, count, mark, partner, change and risk components under contract."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from models.baselines.change_point import ChangeParameters, change_point_component
from models.baselines.compromise import CompromiseParameters, compromise_component
from models.baselines.counts import counts_component
from models.baselines.distinct_partners import partners_component
from models.baselines.episodes import EpisodesParameters, episodes_component
from models.baselines.exceedance import ExceedanceParameters, exceedance_component
from models.baselines.gaps import gamma_gaps, log_normal_gaps, weibull_gaps
from models.baselines.marks import markov_component, variable_order_component
from models.baselines.risk import RiskParameters, risk_component
from models.baselines.value import ValueParameters, value_component
from tests.models.component_cases import START_MS, Case, Events, events_of, measurements

DAY_MS = 86_400_000
CONJUGATE = ValueParameters(50.0, 0.5, 3.0, 3.0 * 100.0, 1.0, 1e6, 1e-4)
ROBUST = ValueParameters(50.0, 0.5, 3.0, 3.0 * 100.0, 0.98, 3.0, 1e-4)
TAIL = ExceedanceParameters(0.85, 95.0, 2.0, 100.0, 2000.0, 1.0)
EPISODES = EpisodesParameters(50.0, 0.5, 3.0, 3.0 * 100.0, 1e-4, 1e-3, 0.03, 0.3, 6.0)
CHANGE = ChangeParameters(50.0, 0.1, 3.0, 3.0 * 4.0, 0.01, 5, 1e-4)
BASE = (0.4, 0.3, 0.2, 0.1)
HOUR_S = 3600.0


def busy(seed: int, n: int) -> Events:
    """Events with marks, partners and clustered times."""
    rng = np.random.default_rng(seed)
    time_ms = START_MS + np.cumsum(rng.integers(0, 3, n) * rng.integers(0, 4_000_000, n))
    return events_of(
        time_ms,
        rng.gamma(2.0, 40.0, n),
        rng.integers(0, 9, n).astype(np.uint8),
        rng.integers(0, 1 << 62, n).astype(np.uint64) * rng.integers(0, 2, n).astype(np.uint64),
    )


def normal_values(seed: int, n: int) -> Events:
    rng = np.random.default_rng(seed)
    var = 1.0 / rng.gamma(CONJUGATE.shape, 1.0 / CONJUGATE.scale)
    mean = rng.normal(CONJUGATE.mean, np.sqrt(var / CONJUGATE.mean_events))
    time_ms = START_MS + np.cumsum(rng.integers(1, 4_000_000, n))
    return events_of(time_ms, rng.normal(mean, np.sqrt(var), n))


def exponential_values(seed: int, n: int) -> Events:
    rng = np.random.default_rng(seed)
    return events_of(START_MS + 1000 * np.arange(n), rng.exponential(50.0, n))


def shifting_values(seed: int, n: int) -> Events:
    """Values of the change-point model itself."""
    rng = np.random.default_rng(seed)
    value = np.empty(n)
    for i in range(n):
        if i == 0 or rng.uniform() < CHANGE.hazard:
            var = 1.0 / rng.gamma(CHANGE.shape, 1.0 / CHANGE.scale)
            mean = rng.normal(CHANGE.mean, np.sqrt(var / CHANGE.mean_events))
        value[i] = rng.normal(mean, np.sqrt(var))
    return events_of(START_MS + 1000 * np.arange(n), value)


def gapped(gap_s: NDArray[np.float64]) -> Events:
    """Events with these gaps, rounded up so that none is shorter than a millisecond."""
    time_ms = START_MS + np.cumsum(np.ceil(gap_s * 1000.0).astype(np.int64))
    return events_of(time_ms, np.full(len(gap_s), np.nan))


def log_normal_events(seed: int, n: int) -> Events:
    rng = np.random.default_rng(seed)
    var = 1.0 / rng.gamma(3.0, 1.0 / 3.0)
    mean = rng.normal(8.0, np.sqrt(var / 0.5))
    return gapped(np.exp(rng.normal(mean, np.sqrt(var), n)))


def gamma_events(seed: int, n: int) -> Events:
    rng = np.random.default_rng(seed)
    shape = rng.choice([0.5, 1.0, 3.0])
    rate = rng.gamma(4.0 * shape, 1.0 / (4.0 * HOUR_S))
    return gapped(rng.gamma(shape, 1.0 / rate, n))


def weibull_events(seed: int, n: int) -> Events:
    """Gaps of the model itself; with a shape of .5 many would be shorter than a millisecond."""
    rng = np.random.default_rng(seed)
    shape = rng.choice([0.7, 1.0, 3.0])
    rate = rng.gamma(4.0, math.gamma(1.0 + 1.0 / shape) ** shape / 4.0)
    return gapped(HOUR_S * (rng.exponential(1.0, n) / rate) ** (1.0 / shape))


FAMILY_CASES: list[Case] = [
    Case("value", lambda: value_component(CONJUGATE), measurements, normal_values, warm=0),
    Case("value_robust", lambda: value_component(ROBUST), measurements),
    Case("tail", lambda: exceedance_component(TAIL), busy, exponential_values, warm=5000),
    Case("episodes", lambda: episodes_component(EPISODES), measurements),
    Case(
        "change",
        lambda: change_point_component(CHANGE),
        measurements,
        shifting_values,
        warm=0,
    ),
    Case(
        "gap_log_normal",
        lambda: log_normal_gaps(8.0, 0.5, 3.0, 3.0),
        busy,
        log_normal_events,
        warm=1,
        reads_value=False,
    ),
    Case(
        "gap_gamma",
        lambda: gamma_gaps((0.5, 1.0, 3.0), HOUR_S, 4.0),
        busy,
        gamma_events,
        warm=1,
        reads_value=False,
    ),
    Case(
        "gap_weibull",
        lambda: weibull_gaps((0.7, 1.0, 3.0), HOUR_S, 4.0),
        busy,
        weibull_events,
        warm=1,
        reads_value=False,
    ),
    Case("counts", lambda: counts_component(8 * 3_600_000, 1.0, 1.0), busy, reads_value=False),
    Case(
        "partners",
        lambda: partners_component(DAY_MS, 3.0, 2.0, 0.99),
        busy,
        reads_value=False,
    ),
    Case("markov", lambda: markov_component(BASE, 4.0, 0.99), busy, reads_value=False),
    Case(
        "variable_order",
        lambda: variable_order_component(BASE, 4.0, 0.99),
        busy,
        reads_value=False,
    ),
    Case(
        "risk",
        lambda: risk_component(RiskParameters(1.0, 99.0, 7.0 * DAY_MS)),
        busy,
        reads_value=False,
    ),
    Case(
        "compromise",
        lambda: compromise_component(
            CompromiseParameters(8, 28.0 * DAY_MS, 1e-3 / DAY_MS, 0.01, 0.9)
        ),
        busy,
        reads_value=False,
    ),
]
