"""Risk of an entity from late labels: beta-Bernoulli with exponential forgetting in time.

Each label is one Bernoulli trial of weight exp(-age / memory), its age counted from the judged
event, not from the label's arrival; the beta prior is the population's. With an infinite memory the
posterior is the conjugate one. What time takes away, the prior gets back: an entity without labels
returns to the population's risk.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from models.baselines.labelled import LabelledComponent
from models.baselines.tails import MAX_SURPRISE

RISK_STATE = np.dtype(
    [("positives", np.float64), ("labels", np.float64), ("time_ms", np.int64)], align=True
)


class RiskParameters(NamedTuple):
    """Prior and settings of the risk.

    Attributes:
        positives: of the beta prior, > 0.
        negatives: of the beta prior, > 0; positives / (positives + negatives) is the base rate.
        memory_ms: time in which a label's weight falls to 1/e, > 0; inf for no forgetting.
    """

    positives: float
    negatives: float
    memory_ms: float


@njit(cache=True)
def risk_at(entity, time_ms, p):  # type: ignore[no-untyped-def]
    """Return (risk, weight of labels) at `time_ms`; labels judge events up to now, never later."""
    if entity["labels"] == 0.0:
        return p.positives / (p.positives + p.negatives), 0.0
    fade = math.exp(-max(time_ms - entity["time_ms"], 0) / p.memory_ms)
    labels = entity["labels"] * fade
    return (p.positives + entity["positives"] * fade) / (p.positives + p.negatives + labels), labels


@njit(cache=True, nogil=True)
def _walk(state, row, fresh, time_ms, value, mark, partner, p, out):  # type: ignore[no-untyped-def] # noqa: ARG001
    base = math.log(p.positives / p.negatives)
    for i in range(len(row)):
        entity = state[row[i]]
        if fresh[i]:
            entity["positives"] = 0.0
            entity["labels"] = 0.0
            entity["time_ms"] = 0
        risk, labels = risk_at(entity, time_ms[i], p)
        out[i, 0] = risk
        out[i, 1] = min(math.log(risk) - math.log1p(-risk) - base, MAX_SURPRISE)
        out[i, 2] = labels


@njit(cache=True, nogil=True)
def _learn(state, row, fresh, event_time_ms, label, p):  # type: ignore[no-untyped-def]
    for i in range(len(row)):
        entity = state[row[i]]
        if fresh[i]:
            entity["positives"] = 0.0
            entity["labels"] = 0.0
            entity["time_ms"] = 0
        if not math.isfinite(label[i]):
            continue
        weight = 1.0
        if entity["labels"] == 0.0:
            entity["time_ms"] = event_time_ms[i]
        elif event_time_ms[i] >= entity["time_ms"]:
            fade = math.exp(-(event_time_ms[i] - entity["time_ms"]) / p.memory_ms)
            entity["positives"] *= fade
            entity["labels"] *= fade
            entity["time_ms"] = event_time_ms[i]
        else:
            weight = math.exp(-(entity["time_ms"] - event_time_ms[i]) / p.memory_ms)
        entity["positives"] += weight * label[i]
        entity["labels"] += weight


def risk_component(parameters: RiskParameters, name: str = "risk") -> LabelledComponent:
    """Return the risk from late labels.

    It tells `name` (posterior mean probability), `name_evidence` (its log odds less the prior's: a
    log Bayes factor in nats, of either sign) and `name_labels` (the weight of the labels behind
    it). None is a surprise: a bad name says nothing against this event's own data. Labels of one
    entity may arrive in any order with the same result up to rounding.

    Raises:
        ValueError: a parameter is not positive.
    """
    if not min(parameters) > 0.0:
        raise ValueError(f"{name}: expected positive parameters, found {parameters}")
    tells = (name, f"{name}_evidence", f"{name}_labels")
    return LabelledComponent(name, 1, RISK_STATE, tells, (), parameters, _walk, _learn)
