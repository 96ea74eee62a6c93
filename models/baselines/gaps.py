"""Renewal baselines: log-normal, gamma and Weibull gaps, learned online for each entity.

All three are Bayesian and predict honestly from the second event on, with the population as prior:

- log-normal: the conjugate normal of the log gap; the next gap is log-Student-t.
- gamma and Weibull: the rate is conjugate given the shape (Gelman et al., 2.6), and the shape is
  one of a few, weighted by how well each predicted the gaps so far (Bayesian model averaging). The
  next gap given the shape is beta prime (gamma) or Lomax in gap**shape (Weibull).

Gaps are measured in operational time, see `renewal.operational_s`. The job's own log-normal kernel
with its CUSUMs stays in renewal.py.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.baselines.component import Component
from models.baselines.episodes import log_t_density
from models.baselines.renewal import HOURS, MIN_GAP_S, cumulative_profile, operational_s
from models.baselines.tails import log_beta_cdf, log_complement, log_sum, log_t_sf, surprise
from models.baselines.value import value_begin, value_predict

MAX_SHAPES = 8
GAMMA = 0
WEIBULL = 1
VAR_FLOOR = 1e-6  # of the log gap: clockwork stays finite

LOG_NORMAL_STATE = np.dtype(
    [
        ("mean", np.float64),
        ("events", np.float64),
        ("shape", np.float64),
        ("scale", np.float64),
        ("last_ms", np.int64),
    ],
    align=True,
)
SHAPED_STATE = np.dtype(
    [
        ("a", np.float64, (MAX_SHAPES,)),
        ("b", np.float64, (MAX_SHAPES,)),
        ("log_weight", np.float64, (MAX_SHAPES,)),
        ("last_ms", np.int64),
        ("begun", np.int64),
    ],
    align=True,
)


class LogNormalParameters(NamedTuple):
    """Prior and settings of log-normal gaps.

    Attributes:
        mean: the population's mean log gap, log operational seconds.
        mean_events: gaps that it is worth, > 0.
        shape: of the inverse gamma of the log gap's variance, > 0.
        scale: of the inverse gamma, > 0.
        discount: in (0, 1]; 1 / (1 - discount) is the memory in gaps.
        cumulative: float64[169], operational hours by hour of the week.
    """

    mean: float
    mean_events: float
    shape: float
    scale: float
    discount: float
    cumulative: NDArray[np.float64]


class ShapedParameters(NamedTuple):
    """Prior and settings of gamma or Weibull gaps.

    Attributes:
        family: GAMMA or WEIBULL.
        shapes: float64[k], 1 <= k <= MAX_SHAPES, the shapes that are weighed, positive.
        typical_s: the population's mean gap, operational seconds.
        prior_gaps: gaps that it is worth, > 0.
        discount: in (0, 1]; 1 / (1 - discount) is the memory in gaps.
        cumulative: float64[169], operational hours by hour of the week.
    """

    family: int
    shapes: NDArray[np.float64]
    typical_s: float
    prior_gaps: float
    discount: float
    cumulative: NDArray[np.float64]


@njit(cache=True)
def _gap_s(time_ms, last_ms, cumulative):  # type: ignore[no-untyped-def]
    gap = operational_s(time_ms, cumulative) - operational_s(last_ms, cumulative)
    return max(gap, MIN_GAP_S)


@njit(cache=True)
def shaped_log_density(family, u, shape, a, b):  # type: ignore[no-untyped-def]
    """Return the log density of the next gap `u` (in typical gaps), the rate integrated out."""
    if family == GAMMA:
        front = math.lgamma(shape + a) - math.lgamma(shape) - math.lgamma(a)
        return front + (shape - 1.0) * math.log(u) + a * math.log(b) - (shape + a) * math.log(b + u)
    front = math.log(shape) + (shape - 1.0) * math.log(u) + math.log(a) - math.log(b)
    return front - (a + 1.0) * math.log1p(u**shape / b)


@njit(cache=True)
def shaped_log_survival(family, u, shape, a, b):  # type: ignore[no-untyped-def]
    """Return log P(gap > u), the rate integrated out."""
    if family == GAMMA:
        return log_beta_cdf(a, shape, b / (b + u), u / (b + u))
    return -a * math.log1p(u**shape / b)


@njit(cache=True)
def shaped_log_cdf(family, u, shape, a, b):  # type: ignore[no-untyped-def]
    """Return log P(gap <= u), exact also where it is tiny."""
    if family == GAMMA:
        return log_beta_cdf(shape, a, u / (b + u), b / (b + u))
    return log_complement(-a * math.log1p(u**shape / b))


@njit(cache=True)
def _silent(out, i, typical):  # type: ignore[no-untyped-def]
    out[i, 0] = 0.0
    out[i, 1] = 0.0
    out[i, 2] = math.nan
    out[i, 3] = typical


@njit(cache=True, nogil=True)
def _walk_log_normal(state, row, fresh, time_ms, value, mark, partner, p, out):  # type: ignore[no-untyped-def] # noqa: ARG001
    for i in range(len(row)):
        entity = state[row[i]]
        if fresh[i] or entity["events"] == 0.0:
            value_begin(entity, p)
            entity["last_ms"] = time_ms[i]
            _silent(out, i, math.exp(p.mean))
            continue
        level, spread, dof = value_predict(
            entity["mean"], entity["events"], entity["shape"], entity["scale"], VAR_FLOOR
        )
        if time_ms[i] < entity["last_ms"]:
            _silent(out, i, math.exp(level))
            continue
        log_gap = math.log(_gap_s(time_ms[i], entity["last_ms"], p.cumulative))
        t = (log_gap - level) / spread
        log_survival = log_t_sf(t, dof)
        out[i, 0] = surprise(log_t_sf(-t, dof))
        out[i, 1] = surprise(log_survival)
        log_density = log_t_density(t, dof) - math.log(spread) - log_gap
        out[i, 2] = math.exp(min(log_density - log_survival, 50.0))
        out[i, 3] = math.exp(level)
        events = entity["events"] * p.discount
        error = log_gap - entity["mean"]
        entity["scale"] = (
            entity["scale"] * p.discount + 0.5 * events / (events + 1.0) * error * error
        )
        entity["shape"] = entity["shape"] * p.discount + 0.5
        entity["mean"] += error / (events + 1.0)
        entity["events"] = events + 1.0
        entity["last_ms"] = time_ms[i]


@njit(cache=True)
def _begin_shaped(entity, time_ms, p):  # type: ignore[no-untyped-def]
    shapes = len(p.shapes)
    for k in range(shapes):
        shape = p.shapes[k]
        if p.family == GAMMA:
            entity["a"][k] = p.prior_gaps * shape
            entity["b"][k] = p.prior_gaps
        else:
            # The mean of a Weibull gap is scale * Gamma(1 + 1/shape); it is one typical gap.
            entity["a"][k] = p.prior_gaps
            entity["b"][k] = p.prior_gaps * math.exp(-shape * math.lgamma(1.0 + 1.0 / shape))
        entity["log_weight"][k] = -math.log(shapes)
    entity["last_ms"] = time_ms
    entity["begun"] = 1


@njit(cache=True)
def _learn_shaped(entity, u, log_density, p):  # type: ignore[no-untyped-def]
    """Update rates and weights with gap `u`; its predictive log density under all is given."""
    shapes = len(p.shapes)
    total = -math.inf
    for k in range(shapes):
        shape = p.shapes[k]
        one = shaped_log_density(p.family, u, shape, entity["a"][k], entity["b"][k])
        entity["log_weight"][k] = p.discount * entity["log_weight"][k] + one - log_density
        total = log_sum(total, entity["log_weight"][k])
        if p.family == GAMMA:
            entity["a"][k] = p.discount * entity["a"][k] + shape
            entity["b"][k] = p.discount * entity["b"][k] + u
        else:
            entity["a"][k] = p.discount * entity["a"][k] + 1.0
            entity["b"][k] = p.discount * entity["b"][k] + u**shape
    for k in range(shapes):
        entity["log_weight"][k] -= total


@njit(cache=True, nogil=True)
def _walk_shaped(state, row, fresh, time_ms, value, mark, partner, p, out):  # type: ignore[no-untyped-def] # noqa: ARG001
    for i in range(len(row)):
        entity = state[row[i]]
        if fresh[i] or entity["begun"] == 0:
            _begin_shaped(entity, time_ms[i], p)
            _silent(out, i, p.typical_s)
            continue
        if time_ms[i] < entity["last_ms"]:
            _silent(out, i, p.typical_s)
            continue
        u = _gap_s(time_ms[i], entity["last_ms"], p.cumulative) / p.typical_s
        log_cdf = -math.inf
        log_survival = -math.inf
        log_density = -math.inf
        typical = 0.0
        for k in range(len(p.shapes)):
            shape, a, b = p.shapes[k], entity["a"][k], entity["b"][k]
            weight = entity["log_weight"][k]
            log_cdf = log_sum(log_cdf, weight + shaped_log_cdf(p.family, u, shape, a, b))
            survival = shaped_log_survival(p.family, u, shape, a, b)
            log_survival = log_sum(log_survival, weight + survival)
            log_density = log_sum(
                log_density, weight + shaped_log_density(p.family, u, shape, a, b)
            )
            mean = shape * b / a
            if p.family == WEIBULL:
                mean = (b / a) ** (1.0 / shape) * math.exp(math.lgamma(1.0 + 1.0 / shape))
            typical += math.exp(weight) * mean
        out[i, 0] = surprise(log_cdf)
        out[i, 1] = surprise(log_survival)
        out[i, 2] = math.exp(min(log_density - log_survival, 50.0)) / p.typical_s
        out[i, 3] = typical * p.typical_s
        _learn_shaped(entity, u, log_density, p)
        entity["last_ms"] = time_ms[i]


def _tells(name: str) -> tuple[str, ...]:
    return (f"{name}_short", f"{name}_long", f"{name}_hazard", f"{name}_typical")


def log_normal_gaps(
    mean: float,
    mean_events: float,
    shape: float,
    scale: float,
    discount: float = 1.0,
    profile: NDArray[np.float64] | None = None,
    name: str = "gap",
) -> Component:
    """Return log-normal gaps; see `LogNormalParameters`.

    Every renewal component tells `name_short` (-log P(gap <= this)), `name_long` (-log survival,
    the compensator of the renewal process), `name_hazard` (per operational second, at the end of
    the gap; NaN where no gap is scored) and `name_typical` (operational seconds). An entity's first
    event has no gap; one that is older than the newest is neither scored nor learned.

    Args:
        mean: see `LogNormalParameters`, as the next four.
        mean_events: gaps.
        shape: of the variance.
        scale: of the variance.
        discount: of the past at each gap.
        profile: float64[168], relative activity by hour of the week; None is flat.
        name: of the component.

    Raises:
        ValueError: a parameter is out of its range.
    """
    if not (math.isfinite(mean) and min(mean_events, shape, scale) > 0.0 and 0.0 < discount <= 1.0):
        raise ValueError(
            f"{name}: expected a finite mean, positive mean_events, shape and scale, and a "
            f"discount in (0, 1]; found {mean}, {mean_events}, {shape}, {scale}, {discount}"
        )
    p = LogNormalParameters(mean, mean_events, shape, scale, discount, _cumulative(profile))
    tells = _tells(name)
    return Component(name, 1, LOG_NORMAL_STATE, tells, tells[:2], p, _walk_log_normal)


def gamma_gaps(
    shapes: tuple[float, ...],
    typical_s: float,
    prior_gaps: float,
    discount: float = 1.0,
    profile: NDArray[np.float64] | None = None,
    name: str = "gap",
) -> Component:
    """Return gamma gaps; see `ShapedParameters`, and `log_normal_gaps` for what it tells."""
    return _shaped(GAMMA, shapes, typical_s, prior_gaps, discount, profile, name)


def weibull_gaps(
    shapes: tuple[float, ...],
    typical_s: float,
    prior_gaps: float,
    discount: float = 1.0,
    profile: NDArray[np.float64] | None = None,
    name: str = "gap",
) -> Component:
    """Return Weibull gaps; see `ShapedParameters`, and `log_normal_gaps` for what it tells."""
    return _shaped(WEIBULL, shapes, typical_s, prior_gaps, discount, profile, name)


def _shaped(
    family: int,
    shapes: tuple[float, ...],
    typical_s: float,
    prior_gaps: float,
    discount: float,
    profile: NDArray[np.float64] | None,
    name: str,
) -> Component:
    fits = 1 <= len(shapes) <= MAX_SHAPES and min(shapes, default=0.0) > 0.0
    if not (fits and min(typical_s, prior_gaps) > 0.0 and 0.0 < discount <= 1.0):
        raise ValueError(
            f"{name}: expected 1 to {MAX_SHAPES} positive shapes, positive typical_s and "
            f"prior_gaps, and a discount in (0, 1]; found {shapes}, "
            f"{typical_s}, {prior_gaps}, {discount}"
        )
    p = ShapedParameters(
        family, np.array(shapes, np.float64), typical_s, prior_gaps, discount, _cumulative(profile)
    )
    tells = _tells(name)
    return Component(name, 1, SHAPED_STATE, tells, tells[:2], p, _walk_shaped)


def _cumulative(profile: NDArray[np.float64] | None) -> NDArray[np.float64]:
    return cumulative_profile(np.ones(HOURS) if profile is None else profile)
