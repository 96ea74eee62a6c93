"""Upper tail of an entity's values: a running quantile, and exponential excesses over it.

Peaks over a threshold (Coles 2001, ch. 4) with shape 0: the quantile moves by stochastic
approximation (Robbins and Monro 1951), the excesses are exponential with a gamma prior on their
rate, so the predictive tail is Lomax. Unlike the conjugate normal it assumes nothing about the body
of the values, which makes it the baseline of mixed populations (all payments of a network).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from models.baselines.component import Component
from models.baselines.tails import surprise

EXCEEDANCE_STATE = np.dtype(
    [
        ("threshold", np.float64),
        ("shape", np.float64),
        ("rate", np.float64),
        ("events", np.float64),
    ],
    align=True,
)


class ExceedanceParameters(NamedTuple):
    """Prior and settings of the upper tail.

    Attributes:
        quantile: in (0, 1), of the values below the threshold.
        threshold: the population's quantile, where an entity begins.
        shape: gamma prior of the excesses' rate, > 0: how many excesses it is worth.
        rate: gamma prior, > 0; rate / shape is the typical excess.
        memory: events, > 0, that the threshold looks back once it has seen them.
        discount: in (0, 1], of the gamma at each excess.
    """

    quantile: float
    threshold: float
    shape: float
    rate: float
    memory: float
    discount: float


@njit(cache=True, nogil=True)
def _walk(state, row, fresh, time_ms, value, mark, partner, p, out):  # type: ignore[no-untyped-def] # noqa: ARG001
    for i in range(len(row)):
        entity = state[row[i]]
        if fresh[i] or entity["shape"] == 0.0:
            entity["threshold"] = p.threshold
            entity["shape"] = p.shape
            entity["rate"] = p.rate
            entity["events"] = 0.0
        y = value[i]
        out[i, 0] = 0.0
        out[i, 1] = entity["threshold"]
        if not math.isfinite(y):
            continue
        excess = y - entity["threshold"]
        mean_excess = entity["rate"] / entity["shape"]
        if excess > 0.0:
            log_p = math.log(1.0 - p.quantile)
            log_p -= entity["shape"] * math.log1p(excess / entity["rate"])
            out[i, 0] = surprise(log_p)
        # The density at the threshold is (1 - quantile) / mean excess where the tail is
        # exponential; Robbins and Monro's best step divides by it. At most a tenth of the memory
        # is ever given to one event, or the first ones would throw the threshold about.
        entity["events"] = min(entity["events"] + 1.0, p.memory)
        step = mean_excess / (1.0 - p.quantile) / (entity["events"] + 0.1 * p.memory)
        entity["threshold"] += step * (p.quantile - (1.0 if excess <= 0.0 else 0.0))
        if excess > 0.0:
            # One excess counts for at most ten typical ones, so none inflates the tail for good.
            entity["shape"] = entity["shape"] * p.discount + 1.0
            entity["rate"] = entity["rate"] * p.discount + min(excess, 10.0 * mean_excess)


def exceedance_component(parameters: ExceedanceParameters, name: str = "tail") -> Component:
    """Return the baseline of the upper tail; it tells the surprise `name` and its threshold.

    At or below the threshold nothing is surprising (0). A missing value is not scored.

    Raises:
        ValueError: a parameter is out of its range.
    """
    p = parameters
    positive = (p.shape, p.rate, p.memory)
    unit = 0.0 < p.quantile < 1.0 and 0.0 < p.discount <= 1.0
    if not (math.isfinite(p.threshold) and min(positive) > 0.0 and unit):
        raise ValueError(
            f"{name}: expected a quantile in (0, 1), a finite threshold, positive shape, rate and "
            f"memory, and a discount in (0, 1]; found {p}"
        )
    return Component(name, 1, EXCEEDANCE_STATE, (name, f"{name}_threshold"), (name,), p, _walk)
