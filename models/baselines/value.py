"""Conjugate baseline of values: normal with unknown mean and variance for each entity.

The normal-inverse-gamma posterior (Gelman et al., Bayesian Data Analysis, 3.3) begins at the
population's prior and predicts with Student's t, so that the p-values are honest from an entity's
first event on. Forgetting is West and Harrison's (1997, ch. 10) discount of the degrees of belief.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from models.baselines.component import Component
from models.baselines.tails import log_t_sf, log_t_two_sided, surprise

FORGET_NOTHING = 1.0
CLIP_NOTHING = math.inf
FARTHEST = (
    1e30  # a value beyond it counts as this: squares, and levels told in float32, stay finite
)

VALUE_STATE = np.dtype(
    [("mean", np.float64), ("events", np.float64), ("shape", np.float64), ("scale", np.float64)],
    align=True,
)


class ValueParameters(NamedTuple):
    """Prior and settings of the conjugate value baseline.

    Attributes:
        mean: the population's mean of the transformed value.
        mean_events: how many events the prior's mean is worth, > 0: within over between variance.
        shape: of the inverse gamma of the variance, > 0; 2 shape is the prior's dof.
        scale: of the inverse gamma; scale / shape is the typical variance within an entity.
        discount: in (0, 1]; 1 / (1 - discount) is the memory in events.
        clip: standard deviations at which an event's pull is cut (Huber 1964); inf for none.
        var_floor: least variance, > 0: a constant series stays quiet.
    """

    mean: float
    mean_events: float
    shape: float
    scale: float
    discount: float
    clip: float
    var_floor: float


@njit(cache=True)
def value_predict(mean, events, shape, scale, var_floor):  # type: ignore[no-untyped-def]
    """Return (location, spread, dof) of the Student t that predicts the next value."""
    var = max(scale / shape, var_floor)
    return mean, math.sqrt(var * (events + 1.0) / events), 2.0 * shape


@njit(cache=True)
def value_update(y, mean, events, shape, scale, p):  # type: ignore[no-untyped-def]
    """Return (mean, events, shape, scale) after the finite value `y`."""
    _, spread, _ = value_predict(mean, events, shape, scale, p.var_floor)
    pull = min(max(y - mean, -p.clip * spread), p.clip * spread)
    events *= p.discount
    shape *= p.discount
    scale *= p.discount
    after = events + 1.0
    scale += 0.5 * events / after * pull * pull
    return mean + pull / after, after, shape + 0.5, scale


@njit(cache=True)
def bounded(y):  # type: ignore[no-untyped-def]
    """Return `y` within FARTHEST of 0."""
    return min(max(y, -FARTHEST), FARTHEST)


@njit(cache=True)
def value_begin(entity, p):  # type: ignore[no-untyped-def]
    """Give a record the prior of its mean and variance."""
    entity["mean"] = p.mean
    entity["events"] = p.mean_events
    entity["shape"] = p.shape
    entity["scale"] = p.scale


@njit(cache=True, nogil=True)
def _walk(state, row, fresh, time_ms, value, mark, partner, p, out):  # type: ignore[no-untyped-def] # noqa: ARG001
    for i in range(len(row)):
        entity = state[row[i]]
        if fresh[i] or entity["events"] == 0.0:
            value_begin(entity, p)
        level, spread, dof = value_predict(
            entity["mean"], entity["events"], entity["shape"], entity["scale"], p.var_floor
        )
        y = value[i]
        out[i, 2] = level
        out[i, 3] = spread
        if not math.isfinite(y):
            out[i, 0] = 0.0
            out[i, 1] = 0.0
            continue
        y = bounded(y)
        t = (y - level) / spread
        out[i, 0] = surprise(log_t_two_sided(t, dof))
        out[i, 1] = surprise(log_t_sf(t, dof))
        entity["mean"], entity["events"], entity["shape"], entity["scale"] = value_update(
            y, entity["mean"], entity["events"], entity["shape"], entity["scale"], p
        )


def value_component(parameters: ValueParameters, name: str = "value") -> Component:
    """Return the conjugate value baseline.

    It tells `value` (two-sided) and `value_high` (upper) surprises, and level and spread of the
    prediction. A missing or non-finite value is not scored and teaches nothing.

    Args:
        parameters: prior and settings.
        name: of the component; two with different settings can stand side by side.

    Raises:
        ValueError: a parameter is out of its range.
    """
    p = parameters
    positive = (p.mean_events, p.shape, p.scale, p.clip, p.var_floor)
    if not (math.isfinite(p.mean) and min(positive) > 0.0 and 0.0 < p.discount <= 1.0):
        raise ValueError(
            f"{name}: expected a finite mean, positive mean_events, shape, scale, clip and "
            f"var_floor, and a discount in (0, 1]; found {p}"
        )
    tells = (name, f"{name}_high", f"{name}_level", f"{name}_spread")
    return Component(name, 1, VALUE_STATE, tells, tells[:2], p, _walk)
