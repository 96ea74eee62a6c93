"""Compromise of an entity from late labels: a hidden state with a dwell time of its own.

An entity is clean, or compromised for a while in which nearly all its events are positive. The
dwell time is Erlang: the chain passes `stages` exponential stages in turn and then is clean again
(the method of stages, Cox 1955), so that a compromise of some weeks ends after some weeks, which a
plain two-state chain cannot say. Labels are filtered in the order of their events; between them the
chain moves by its exact transition function, computed by uniformisation (Jensen 1953).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from models.baselines.labelled import LabelledComponent

MAX_STAGES = 16
TAIL = 1e-13  # of the Poisson series that uniformisation leaves away
STRIDE = 50.0  # jumps; longer times go in strides, or exp(-jumps) would underflow

COMPROMISE_STATE = np.dtype(
    [
        ("stage", np.float64, (MAX_STAGES,)),
        ("clean", np.float64),
        ("log_evidence", np.float64),
        ("time_ms", np.int64),
        ("begun", np.int64),
    ],
    align=True,
)


class CompromiseParameters(NamedTuple):
    """Prior and settings of the compromise filter.

    Attributes:
        stages: of the dwell time, 1 to MAX_STAGES; its relative deviation is 1 / sqrt(stages).
        dwell_ms: mean dwell time, > 0.
        onset_per_ms: rate at which a clean entity is compromised, > 0.
        positive_clean: probability of a positive label while clean, in (0, 1).
        positive_compromised: the same while compromised, in (0, 1).
    """

    stages: int
    dwell_ms: float
    onset_per_ms: float
    positive_clean: float
    positive_compromised: float


@njit(cache=True)
def compromise_move(p, elapsed_ms, now, jump, total):  # type: ignore[no-untyped-def]
    """Move the distribution over (clean, stage 1..K) by `elapsed_ms`, exactly.

    Args:
        p: CompromiseParameters.
        elapsed_ms: >= 0.
        now: float64[K + 1], the distribution; changed in place.
        jump: float64[K + 1], scratch.
        total: float64[K + 1], scratch.
    """
    stages = p.stages
    leave = stages / p.dwell_ms
    fastest = max(leave, p.onset_per_ms)
    step = leave / fastest
    onset = p.onset_per_ms / fastest
    left = fastest * elapsed_ms
    while left > 0.0:
        mean = min(left, STRIDE)
        left -= mean
        weight = math.exp(-mean)
        covered = weight
        jump[:] = now
        for k in range(stages + 1):
            total[k] = weight * jump[k]
        n = 0
        while 1.0 - covered > TAIL and n < 1000:
            n += 1
            last = jump[stages]
            for k in range(stages, 1, -1):
                jump[k] += step * (jump[k - 1] - jump[k])
            begins = onset * jump[0]
            jump[1] += begins - step * jump[1] if stages > 1 else begins - step * last
            jump[0] += step * last - begins
            weight *= mean / n
            covered += weight
            for k in range(stages + 1):
                total[k] += weight * jump[k]
        mass = total.sum()
        for k in range(stages + 1):
            now[k] = total[k] / mass


@njit(cache=True)
def _load(entity, fresh, time_ms, p, now):  # type: ignore[no-untyped-def]
    """Copy the entity's distribution to `now`; begin at the chain's own equilibrium."""
    stages = p.stages
    if fresh or entity["begun"] == 0:
        ratio = p.onset_per_ms * p.dwell_ms
        entity["begun"] = 1
        entity["time_ms"] = time_ms
        entity["log_evidence"] = 0.0
        entity["clean"] = 1.0 / (1.0 + ratio)
        for k in range(stages):
            entity["stage"][k] = ratio / (1.0 + ratio) / stages
    now[0] = entity["clean"]
    for k in range(stages):
        now[k + 1] = entity["stage"][k]


@njit(cache=True, nogil=True)
def _walk(state, row, fresh, time_ms, value, mark, partner, p, out):  # type: ignore[no-untyped-def] # noqa: ARG001
    now = np.empty(p.stages + 1)
    jump = np.empty(p.stages + 1)
    total = np.empty(p.stages + 1)
    for i in range(len(row)):
        entity = state[row[i]]
        _load(entity, fresh[i], time_ms[i], p, now)
        compromise_move(p, float(max(time_ms[i] - entity["time_ms"], 0)), now, jump, total)
        compromised = min(max(1.0 - now[0], 1e-12), 1.0 - 1e-12)
        risk = p.positive_compromised * compromised + p.positive_clean * (1.0 - compromised)
        out[i, 0] = risk
        out[i, 1] = math.log(compromised) - math.log1p(-compromised)


@njit(cache=True, nogil=True)
def _learn(state, row, fresh, event_time_ms, label, p):  # type: ignore[no-untyped-def]
    now = np.empty(p.stages + 1)
    jump = np.empty(p.stages + 1)
    total = np.empty(p.stages + 1)
    for i in range(len(row)):
        y = label[i]
        entity = state[row[i]]
        if not (0.0 <= y <= 1.0):
            continue
        _load(entity, fresh[i], event_time_ms[i], p, now)
        compromise_move(p, float(max(event_time_ms[i] - entity["time_ms"], 0)), now, jump, total)
        clean = y * p.positive_clean + (1.0 - y) * (1.0 - p.positive_clean)
        compromised = y * p.positive_compromised + (1.0 - y) * (1.0 - p.positive_compromised)
        now[0] *= clean
        now[1:] *= compromised
        likelihood = now.sum()
        entity["log_evidence"] += math.log(likelihood)
        entity["clean"] = now[0] / likelihood
        for k in range(p.stages):
            entity["stage"][k] = now[k + 1] / likelihood
        entity["time_ms"] = max(entity["time_ms"], event_time_ms[i])


def compromise_component(
    parameters: CompromiseParameters, name: str = "compromise"
) -> LabelledComponent:
    """Return the compromise filter.

    It tells `name`, the probability that an event of the entity now is positive, and `name_odds`,
    the log odds of being compromised. Neither is a surprise. `log_evidence` in the state sums the
    log predictive probabilities of the labels so far: summed over entities it compares settings
    (Dawid 1984). Labels arrive in the order of their events; one that is older than the newest is
    taken at the newest's time.

    Raises:
        ValueError: a parameter is out of its range.
    """
    p = parameters
    unit = (p.positive_clean, p.positive_compromised)
    fits = 1 <= p.stages <= MAX_STAGES and min(p.dwell_ms, p.onset_per_ms) > 0.0
    if not (fits and 0.0 < min(unit) <= max(unit) < 1.0):
        raise ValueError(
            f"{name}: expected 1 to {MAX_STAGES} stages, a positive dwell_ms and onset_per_ms, and "
            f"probabilities in (0, 1); found {p}"
        )
    return LabelledComponent(
        name, 1, COMPROMISE_STATE, (name, f"{name}_odds"), (), p, _walk, _learn
    )
