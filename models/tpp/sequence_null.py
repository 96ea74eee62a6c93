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
    (-0.399284, -0.396635, -0.381716, -0.243843, -0.243842, -0.243841, -0.008305,
     0.545673, 0.620557, 1.462401, 1.521160, 2.674882, 2.709013, 4.156773),
    (-0.567124, -0.487203, -0.349912, -0.290462, -0.183889, 0.010020, 0.077235,
     0.307952, 0.657487, 1.312899, 2.196777, 2.263255, 3.319201, 3.471425),
    (-0.535778, -0.494703, -0.416951, -0.312967, -0.167485, -0.051756, 0.333668,
     0.633462, 1.326692, 1.326693, 1.799537, 2.488416, 3.287914, 4.198973),
    (-0.552342, -0.501717, -0.426682, -0.299901, -0.160203, 0.010270, 0.367392,
     0.879214, 1.362189, 1.849459, 2.825856, 3.095808, 3.928680, 4.886165),
    (-0.547607, -0.493866, -0.417201, -0.288005, -0.146855, 0.007590, 0.396486,
     0.819308, 1.374576, 1.892736, 2.693693, 3.236827, 4.195525, 4.963050),
    (-0.546899, -0.490228, -0.410876, -0.280808, -0.138989, 0.025620, 0.393284,
     0.879512, 1.410845, 2.024038, 2.718268, 3.511721, 4.396841, 5.177401),
    (-0.547014, -0.488090, -0.407493, -0.279052, -0.138707, 0.022247, 0.396151,
     0.881979, 1.433110, 2.110772, 2.734543, 3.498041, 4.207830, 4.993819),
    (-0.547159, -0.486337, -0.404962, -0.275845, -0.135863, 0.021378, 0.390542,
     0.872800, 1.409708, 2.092752, 2.778244, 3.458445, 4.407774, 5.108198),
    (-0.546021, -0.484221, -0.401761, -0.272849, -0.133293, 0.021519, 0.393560,
     0.851507, 1.400767, 2.052698, 2.726498, 3.490294, 4.270749, 5.068858),
)
# fmt: on

NULL = Null(np.array(LENGTHS), np.array(SURPRISES), np.array(_LOG_E))
