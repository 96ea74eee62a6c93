"""Bayesian online change points (Adams and MacKay 2007): level shifts, and drifts as many of them.

Values between two changes are normal with a mean and variance of their own, from the population's
normal-inverse-gamma prior; a change comes with a constant hazard. The posterior over the run length
is held for a bounded set of hypotheses: where it is full, the least probable one is dropped and the
rest renormalised, which is exact until then.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from models.baselines.component import Component
from models.baselines.episodes import log_t_density
from models.baselines.tails import log_sum, log_t_sf, surprise
from models.baselines.value import bounded, value_predict

HYPOTHESES = 16

CHANGE_STATE = np.dtype(
    [
        ("log_weight", np.float64, (HYPOTHESES,)),
        ("mean", np.float64, (HYPOTHESES,)),
        ("scale", np.float64, (HYPOTHESES,)),
        ("run", np.int64, (HYPOTHESES,)),
        ("used", np.int64),
    ],
    align=True,
)


class ChangeParameters(NamedTuple):
    """Prior and settings of change points.

    Attributes:
        mean: the population's mean of the transformed value.
        mean_events: events that it is worth after each change, > 0.
        shape: of the inverse gamma of the variance, > 0.
        scale: of the inverse gamma, > 0.
        hazard: probability of a change at each event, in (0, 1).
        recent: a change counts as recent for so many events, > 0.
        var_floor: least variance, > 0.
    """

    mean: float
    mean_events: float
    shape: float
    scale: float
    hazard: float
    recent: int
    var_floor: float


@njit(cache=True)
def _predict(entity, k, p):  # type: ignore[no-untyped-def]
    run = float(entity["run"][k])
    return value_predict(
        entity["mean"][k], p.mean_events + run, p.shape + 0.5 * run, entity["scale"][k], p.var_floor
    )


@njit(cache=True)
def _two_sided(entity, y, p):  # type: ignore[no-untyped-def]
    """Return (log p two-sided, level): 2 min(S, 1 - S) of the mixture over run lengths."""
    above = -math.inf
    below = -math.inf
    level = 0.0
    for k in range(entity["used"]):
        centre, spread, dof = _predict(entity, k, p)
        weight = entity["log_weight"][k]
        level += math.exp(weight) * centre
        t = (y - centre) / spread
        above = log_sum(above, weight + log_t_sf(t, dof))
        below = log_sum(below, weight + log_t_sf(-t, dof))
    return min(above, below) + 0.6931471805599453, level


@njit(cache=True)
def _observe(entity, y, p):  # type: ignore[no-untyped-def]
    """Grow every hypothesis by `y`, add the one of a change, and bound their number."""
    used = entity["used"]
    total = -math.inf
    for k in range(used):
        centre, spread, dof = _predict(entity, k, p)
        error = y - centre
        events = p.mean_events + float(entity["run"][k])
        entity["log_weight"][k] += log_t_density(error / spread, dof) - math.log(spread)
        total = log_sum(total, entity["log_weight"][k])
        entity["mean"][k] += error / (events + 1.0)
        entity["scale"][k] += 0.5 * events / (events + 1.0) * error * error
        entity["run"][k] += 1
    stay = math.log1p(-p.hazard) - total
    for k in range(used):
        entity["log_weight"][k] += stay
    place = used
    if used == HYPOTHESES:
        place = 0
        for k in range(1, used):
            if entity["log_weight"][k] < entity["log_weight"][place]:
                place = k
    else:
        entity["used"] = used + 1
    entity["log_weight"][place] = math.log(p.hazard)
    entity["mean"][place] = p.mean
    entity["scale"][place] = p.scale
    entity["run"][place] = 0
    total = -math.inf
    for k in range(entity["used"]):
        total = log_sum(total, entity["log_weight"][k])
    for k in range(entity["used"]):
        entity["log_weight"][k] -= total


@njit(cache=True, nogil=True)
def _walk(state, row, fresh, time_ms, value, mark, partner, p, out):  # type: ignore[no-untyped-def] # noqa: ARG001
    for i in range(len(row)):
        entity = state[row[i]]
        if fresh[i] or entity["used"] == 0:
            entity["used"] = 1
            entity["log_weight"][0] = 0.0
            entity["mean"][0] = p.mean
            entity["scale"][0] = p.scale
            entity["run"][0] = 0
        y = value[i]
        log_p, level = 0.0, math.nan
        if math.isfinite(y):
            log_p, level = _two_sided(entity, bounded(y), p)
            _observe(entity, bounded(y), p)
        recent = 0.0
        run = 0.0
        for k in range(entity["used"]):
            weight = math.exp(entity["log_weight"][k])
            run += weight * entity["run"][k]
            if entity["run"][k] <= p.recent:
                recent += weight
        out[i, 0] = surprise(log_p)
        out[i, 1] = level
        out[i, 2] = min(recent, 1.0)
        out[i, 3] = run


def change_point_component(parameters: ChangeParameters, name: str = "change") -> Component:
    """Return the change-point baseline.

    It tells the surprise `name` (two-sided, of the value under the mixture over run lengths),
    `name_level` (predicted; NaN where there is no value), `name_recent` (probability that the last
    change is at most `recent` events old, this one included) and `name_run` (expected run length).
    A missing or non-finite value is not scored and ages no run.

    Raises:
        ValueError: a parameter is out of its range.
    """
    p = parameters
    positive = (p.mean_events, p.shape, p.scale, p.recent, p.var_floor)
    if not (math.isfinite(p.mean) and min(positive) > 0.0 and 0.0 < p.hazard < 1.0):
        raise ValueError(
            f"{name}: expected a finite mean, positive mean_events, shape, scale, recent and "
            f"var_floor, and a hazard in (0, 1); found {p}"
        )
    tells = (name, f"{name}_level", f"{name}_recent", f"{name}_run")
    return Component(name, 1, CHANGE_STATE, tells, tells[:1], p, _walk)
