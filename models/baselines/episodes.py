"""Attack episodes: values of which some, for a while, are far too high.

A hidden two-state chain for each entity (Hamilton 1989): at ease, all values come from the entity's
own normal; under attack, a share of them comes from a wide one-sided distribution above it. The
filter says how likely this very value is an attacker's, given the entity's past: after one blatant
value a moderate one is suspicious too. What is probably the attacker's teaches the entity's normal
little: each value counts with the probability that it is the entity's own (a step of EM).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from models.baselines.component import Component
from models.baselines.value import bounded, value_begin, value_predict

LOG_ODDS_LIMIT = 50.0  # nats; double precision tells no probability beyond it from 0 or 1

EPISODES_STATE = np.dtype(
    [
        ("mean", np.float64),
        ("events", np.float64),
        ("shape", np.float64),
        ("scale", np.float64),
        ("attack", np.float64),
    ],
    align=True,
)


class EpisodesParameters(NamedTuple):
    """Prior and settings of attack episodes.

    Attributes:
        mean: the population's mean of the transformed value.
        mean_events: events that the prior's mean is worth, > 0.
        shape: of the inverse gamma of the variance, > 0.
        scale: of the inverse gamma, > 0.
        var_floor: least variance, > 0.
        onset: probability in (0, 1) that an attack begins with an event.
        end: probability in (0, 1) that it ends with an event.
        share: of an attack's values that are the attacker's, in (0, 1).
        reach: mean excess of the attacker's values over the level, in spreads, > 0.
    """

    mean: float
    mean_events: float
    shape: float
    scale: float
    var_floor: float
    onset: float
    end: float
    share: float
    reach: float


@njit(cache=True)
def log_t_density(t, dof):  # type: ignore[no-untyped-def]
    """Return the log density of the standard Student t."""
    front = math.lgamma(0.5 * (dof + 1.0)) - math.lgamma(0.5 * dof)
    front -= 0.5 * math.log(math.pi * dof)
    return front - 0.5 * (dof + 1.0) * math.log1p(t * t / dof)


@njit(cache=True)
def episode_step(attack, log_own, log_attacker, p):  # type: ignore[no-untyped-def]
    """Filter one value, given both log densities.

    Returns:
        (prior, attack, log_odds): probability of an attack before and after the value, and the log
        odds that the value is the attacker's.
    """
    prior = attack * (1.0 - p.end) + (1.0 - attack) * p.onset
    ratio = math.exp(min(log_attacker - log_own, LOG_ODDS_LIMIT))
    # Relative to the own density: at ease 1, under attack 1 - share + share * ratio.
    under = prior * (1.0 - p.share + p.share * ratio)
    after = under / (under + 1.0 - prior)
    theirs = prior * p.share * ratio
    log_odds = -LOG_ODDS_LIMIT
    if theirs > 0.0:
        log_odds = math.log(theirs) - math.log1p(-prior * p.share)
    return prior, after, min(max(log_odds, -LOG_ODDS_LIMIT), LOG_ODDS_LIMIT)


@njit(cache=True, nogil=True)
def _walk(state, row, fresh, time_ms, value, mark, partner, p, out):  # type: ignore[no-untyped-def] # noqa: ARG001
    for i in range(len(row)):
        entity = state[row[i]]
        if fresh[i] or entity["events"] == 0.0:
            value_begin(entity, p)
            entity["attack"] = p.onset / (p.onset + p.end)
        y = value[i]
        if not math.isfinite(y):
            out[i, 0] = math.nan
            out[i, 1] = entity["attack"]
            continue
        level, spread, dof = value_predict(
            entity["mean"], entity["events"], entity["shape"], entity["scale"], p.var_floor
        )
        y = bounded(y)
        t = (y - level) / spread
        attacker = -math.inf
        if t > 0.0:
            attacker = -t / p.reach - math.log(p.reach)
        _, entity["attack"], log_odds = episode_step(
            entity["attack"], log_t_density(t, dof), attacker, p
        )
        out[i, 0] = log_odds
        out[i, 1] = entity["attack"]
        own = 1.0 / (1.0 + math.exp(log_odds))
        after = entity["events"] + own
        error = y - entity["mean"]
        entity["scale"] += 0.5 * own * entity["events"] / after * error * error
        entity["shape"] += 0.5 * own
        entity["mean"] += own * error / after
        entity["events"] = after


def episodes_component(parameters: EpisodesParameters, name: str = "episodes") -> Component:
    """Return the baseline of attack episodes.

    It tells `name_odds`, the log odds (nats, within 50 of 0) that this value is an attacker's, and
    `name_attack`, the probability that the entity is under attack. None is a surprise: they are
    posteriors under a model of attacks, to be fused as evidence. A missing value has NaN odds.

    Raises:
        ValueError: a parameter is out of its range.
    """
    p = parameters
    positive = (p.mean_events, p.shape, p.scale, p.var_floor, p.reach)
    unit = (p.onset, p.end, p.share)
    if not (math.isfinite(p.mean) and min(positive) > 0.0 and 0.0 < min(unit) <= max(unit) < 1.0):
        raise ValueError(
            f"{name}: expected a finite mean, positive mean_events, shape, scale, var_floor and "
            f"reach, and onset, end and share in (0, 1); found {p}"
        )
    tells = (f"{name}_odds", f"{name}_attack")
    return Component(name, 1, EPISODES_STATE, tells, (), p, _walk)
