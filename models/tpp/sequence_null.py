"""The p-value of the sequence statistic: what its e-value is when the model is true.

An e-value e bounds the p-value by 1 / e, several times too large. `simulate` draws windows of a
Poisson process with rate 1 and `fit` keeps the quantiles of the log e-value by the window's length;
`NULL` is one such fit, stored below, so that nothing is simulated when the job starts.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.tpp.sequence import LEVELS, SEQUENCE, begin, observe
from models.tpp.sequence_tests import (
    CELLS_IN_ALL,
    FAMILIES,
    LOG_WEIGHT,
    X_LOG_X,
    combine,
    judge,
)

LENGTHS = (1.0, 2.0, 5.0, 10.0, 20.0, 35.0, 50.0, 75.0, 100.0)  # expected events
SURPRISES = (0.05, 0.2, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0)  # nats
FIT_COUNT = 1_000_000  # of windows: 45 are beyond the last surprise
FIT_SEED = 20_211_206
_CHUNK = 20_000


class Null(NamedTuple):
    """The statistic's distribution under the model.

    Attributes:
        length: float64[L], ascending, expected events in the window.
        surprise: float64[K], ascending, -log p in nats.
        log_e: float64[L, K], the log e-value that is exceeded with probability p.
    """

    length: NDArray[np.float64]
    surprise: NDArray[np.float64]
    log_e: NDArray[np.float64]


@njit(cache=True)
def null_surprise(log_e, length, null):  # type: ignore[no-untyped-def]
    """Return -log p of a log e-value from a window of `length` expected events, nats, >= 0.

    Linear between the knots, flat in length beyond the grid's ends. Past the last knot a surprise
    grows as fast as the log e-value: the e-value's own bound, so that it is never overstated.
    """
    at = min(max(np.searchsorted(null.length, length), 1), len(null.length) - 1)
    part = (length - null.length[at - 1]) / (null.length[at] - null.length[at - 1])
    part = min(max(part, 0.0), 1.0)
    last_e = last = 0.0
    for k in range(len(null.surprise)):
        knot = (1.0 - part) * null.log_e[at - 1, k] + part * null.log_e[at, k]
        if log_e <= knot:
            if k == 0:
                return 0.0
            return last + (null.surprise[k] - last) * (log_e - last_e) / (knot - last_e)
        last_e, last = knot, null.surprise[k]
    return last + log_e - last_e


@njit(cache=True, nogil=True)
def _simulate(state, gaps, length, x_log_x, log_weight, out):  # type: ignore[no-untyped-def]
    count = np.zeros(CELLS_IN_ALL)
    level = np.zeros(LEVELS)
    log_e = np.zeros(len(log_weight))
    entity = state[0]
    for i in range(len(gaps)):
        begin(entity)
        seen = 0.0
        for gap in gaps[i]:
            if seen + gap > length:
                break
            observe(entity, gap)
            seen += gap
        judge(entity, length - seen, count, level, x_log_x, log_e)
        out[i] = combine(log_e, log_weight)


def simulate(length: float, count: int, seed: np.random.SeedSequence) -> NDArray[np.float64]:
    """Return float64[count], log e-values of windows of a Poisson process with rate 1.

    Args:
        length: of each window, expected events.
        count: how many.
        seed: of the generator.
    """
    rng = np.random.default_rng(seed)
    # Twelve standard deviations: a window with more events than that is not met in 1e30 draws.
    room = int(length + 12.0 * math.sqrt(length) + 40.0)
    state = np.zeros(1, SEQUENCE).view(np.recarray)
    out = np.empty(count)
    for begun in range(0, count, _CHUNK):
        some = out[begun : begun + _CHUNK]
        gaps = rng.exponential(size=(len(some), room))
        _simulate(state, gaps, length, X_LOG_X, LOG_WEIGHT, some)
    return out


def fit(count: int = FIT_COUNT, seed: int = FIT_SEED) -> Null:
    """Simulate the null distribution on the grid LENGTHS x SURPRISES."""
    seeds = np.random.SeedSequence(seed).spawn(len(LENGTHS))
    surprise = np.array(SURPRISES)
    each = [
        np.quantile(simulate(length, count, own), 1.0 - np.exp(-surprise))
        for length, own in zip(LENGTHS, seeds, strict=True)
    ]
    # Short windows repeat a few values: knots must differ for the interpolation between them.
    log_e = np.maximum.accumulate(np.array(each) + 1e-6 * np.arange(len(surprise)), axis=1)
    return Null(np.array(LENGTHS), surprise, log_e)


# fmt: off
_LOG_E = (
    (-0.3993, -0.3967, -0.3826, -0.2438, -0.2438, -0.2438, -0.0083, 0.5449, 0.6248, 1.4634, 1.5101, 2.6789, 2.7031, 3.6354),
    (-0.5690, -0.4872, -0.3442, -0.2891, -0.1699, 0.0100, 0.0833, 0.4383, 0.6655, 1.3046, 2.1953, 2.2869, 3.3279, 4.5698),
    (-0.5364, -0.4942, -0.4139, -0.3028, -0.1657, -0.0503, 0.3393, 0.6453, 1.3267, 1.3267, 1.8217, 2.5826, 3.2771, 3.8550),
    (-0.5537, -0.5023, -0.4252, -0.2946, -0.1554, 0.0116, 0.3755, 0.8934, 1.4730, 1.9537, 3.0038, 4.4427, 4.7668, 4.8862),
    (-0.5482, -0.4935, -0.4150, -0.2821, -0.1436, 0.0138, 0.4199, 0.8720, 1.4580, 2.0596, 3.2105, 4.2930, 8.4149, 10.8764),
    (-0.5473, -0.4891, -0.4070, -0.2707, -0.1233, 0.0343, 0.4136, 0.9012, 1.4781, 2.2572, 3.1566, 4.4007, 8.5205, 10.4025),
    (-0.5479, -0.4887, -0.4051, -0.2767, -0.1335, 0.0265, 0.4007, 0.8837, 1.4943, 2.1418, 3.0940, 3.9507, 10.4301, 10.6518),
    (-0.5460, -0.4850, -0.4012, -0.2719, -0.1309, 0.0259, 0.4022, 0.8923, 1.4583, 2.2051, 2.9108, 4.7400, 11.1103, 12.4087),
    (-0.5450, -0.4843, -0.4018, -0.2719, -0.1304, 0.0301, 0.4141, 0.9012, 1.4776, 2.2819, 3.0525, 4.6086, 5.9950, 12.0393),
)
# fmt: on

NULL = Null(np.array(LENGTHS), np.array(SURPRISES), np.array(_LOG_E))

assert len(FAMILIES) == len(LOG_WEIGHT)
