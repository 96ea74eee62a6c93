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
from models.tpp.sequence_families import (
    CELLS_IN_ALL,
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
    (-0.3993, -0.3966, -0.3819, -0.2438, -0.2438, -0.2438, -0.0098,
     0.5448, 0.6189, 1.4622, 1.5200, 2.6747, 2.7083, 4.1568),
    (-0.5680, -0.4891, -0.3535, -0.2911, -0.1877, 0.0100, 0.0751,
     0.2885, 0.6538, 1.3109, 2.1963, 2.2611, 3.3191, 3.3729),
    (-0.5362, -0.4953, -0.4181, -0.3155, -0.1696, -0.0542, 0.3322,
     0.6312, 1.3267, 1.3267, 1.7910, 2.4832, 3.2854, 4.1929),
    (-0.5526, -0.5022, -0.4276, -0.3015, -0.1620, 0.0086, 0.3647,
     0.8761, 1.3587, 1.8463, 2.8257, 3.0918, 3.9181, 4.8862),
    (-0.5478, -0.4942, -0.4180, -0.2894, -0.1486, 0.0053, 0.3936,
     0.8166, 1.3639, 1.8804, 2.6928, 3.2336, 4.1928, 4.9162),
    (-0.5470, -0.4906, -0.4115, -0.2821, -0.1411, 0.0234, 0.3898,
     0.8768, 1.4086, 2.0210, 2.7172, 3.5048, 4.3962, 5.1278),
    (-0.5472, -0.4884, -0.4081, -0.2803, -0.1404, 0.0202, 0.3932,
     0.8791, 1.4306, 2.1083, 2.7326, 3.4972, 4.2033, 4.9938),
    (-0.5472, -0.4866, -0.4055, -0.2770, -0.1374, 0.0192, 0.3875,
     0.8698, 1.4018, 2.0792, 2.7771, 3.4577, 4.4052, 5.1082),
    (-0.5460, -0.4844, -0.4023, -0.2739, -0.1348, 0.0195, 0.3904,
     0.8485, 1.3931, 2.0514, 2.7249, 3.4882, 4.2703, 5.0689),
)
# fmt: on

NULL = Null(np.array(LENGTHS), np.array(SURPRISES), np.array(_LOG_E))
