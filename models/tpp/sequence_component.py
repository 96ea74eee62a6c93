"""The sequence detector as a component: one record for each entity, one surprise at any moment."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.baselines.component import Component
from models.tpp.sequence import LEVELS, SEQUENCE, SHORTEST, admit, begin, observe
from models.tpp.sequence_families import (
    CELLS_IN_ALL,
    FAMILIES,
    LOG_WEIGHT,
    X_LOG_X,
    combine,
    judge,
)
from models.tpp.sequence_null import NULL, Null, null_surprise

VERSION = 1  # of SEQUENCE and what its fields mean
# The surprise; events seen and expected in the window; by how much the spacings are less regular
# than exponential ones, in nats of their log's mean; and the families' log e-values.
TELLS = (
    "sequence",
    "sequence_seen",
    "sequence_expected",
    "sequence_irregularity",
    *(f"sequence_{name}" for name in FAMILIES),
)
FIRST_FAMILY = len(TELLS) - len(FAMILIES)
# A window of 100 changes little with one event, and judging costs far more than counting:
# the walk judges at each EVERY-th event, and at each while the last answer was beyond CLOSE nats.
EVERY = 4
CLOSE = 5.0
_EULER = 0.5772156649015329  # mean log of a unit exponential, less


class SequenceParameters(NamedTuple):
    """What the kernels read.

    Attributes:
        null: distribution of the statistic under the model.
        log_weight: float64[F], of the families.
        x_log_x: float64[k], a table of n log n.
    """

    null: Null
    log_weight: NDArray[np.float64]
    x_log_x: NDArray[np.float64]


PARAMETERS = SequenceParameters(NULL, LOG_WEIGHT, X_LOG_X)


@njit(cache=True)
def _score(entity, waited, p, count, level, log_e, out):  # type: ignore[no-untyped-def]
    """Fill `out` with the surprise and the families' log e-values `waited` after the last event."""
    length = judge(entity, waited, count, level, p.x_log_x, log_e)
    out[0] = null_surprise(combine(log_e, p.log_weight), length, p.null)
    seen = count.sum()
    out[1] = seen
    out[2] = length
    out[3] = 0.0
    if seen > 0.0:
        # Of all blocks: those that the waiting has moved out of the window still tell its manner.
        mean_log = entity.logs.sum() / seen
        out[3] = math.log(max(entity.total.sum() / seen, SHORTEST)) - mean_log - _EULER
    out[FIRST_FAMILY:] = log_e


@njit(cache=True)
def _known(compensator):  # type: ignore[no-untyped-def]
    return compensator >= 0.0  # false for NaN


@njit(cache=True, nogil=True)
def _walk(state, row, fresh, compensator, source, p, out):  # type: ignore[no-untyped-def]
    count = np.zeros(CELLS_IN_ALL)
    level = np.zeros(LEVELS)
    log_e = np.zeros(len(p.log_weight))
    for i in range(len(row)):
        entity = state[row[i]]
        out[i, 0] = 0.0
        out[i, 1:] = math.nan
        if fresh[i]:
            begin(entity)
        if not _known(compensator[i]) or not admit(entity, source[i]):
            continue
        observe(entity, compensator[i])
        entity.unjudged += 1
        if entity.unjudged >= EVERY:
            _score(entity, 0.0, p, count, level, log_e, out[i])
            entity.unjudged = EVERY - 1 if out[i, 0] > CLOSE else 0


def walk(state, row, fresh, time_ms, value, mark, partner, parameters, out):  # type: ignore[no-untyped-def]
    """Take in events in order and score every few: `models.baselines.component.Component.walk`.

    `value` is not the event's value but the compensator of the gap before it, the expected number
    of events in it: -log survival under the model that predicted it, and `mark` is a number for
    that model. NaN (no gap: a first event, or one older than its entity's newest) and negative
    ones are not counted and not scored; neither are some of another model (`sequence.admit`).
    """
    del time_ms, partner  # all that they say is in the compensator
    _walk(state.view(np.recarray), row, fresh, value, mark, parameters, out)


SEQUENCE_COMPONENT = Component(
    name="sequence",
    version=VERSION,
    state=SEQUENCE,
    tells=TELLS,
    surprises=("sequence",),
    parameters=PARAMETERS,
    walk=walk,
)


@njit(cache=True, nogil=True)
def _take(state, row, compensator):  # type: ignore[no-untyped-def]
    for i in range(len(row)):
        if _known(compensator[i]):
            observe(state[row[i]], compensator[i])


def take(state: NDArray[np.void], row: NDArray[np.int32], compensator: NDArray[np.float64]) -> None:
    """Take in events of one model in order without scoring them: the same window as of `walk`.

    Args:
        state: SEQUENCE[r], changed.
        row: int32[m], the record of each event's entity.
        compensator: float64[m], expected events in the gap before each.
    """
    _take(state.view(np.recarray), row, compensator)


@njit(cache=True, nogil=True)
def _score_at(state, row, waited, p, out):  # type: ignore[no-untyped-def]
    count = np.zeros(CELLS_IN_ALL)
    level = np.zeros(LEVELS)
    log_e = np.zeros(len(p.log_weight))
    for i in range(len(row)):
        _score(state[row[i]], waited[i], p, count, level, log_e, out[i])


def score_at(
    state: NDArray[np.void],
    row: NDArray[np.int32],
    waited: NDArray[np.float64],
    parameters: SequenceParameters = PARAMETERS,
) -> NDArray[np.float64]:
    """Score entities at a moment of their own, without changing them: what a timer asks.

    Args:
        state: SEQUENCE[r].
        row: int32[m], whom to score.
        waited: float64[m], expected events since each one's last event: the compensator of the
            time that has passed without one, >= 0.
        parameters: as of the component.

    Returns:
        float64[m, len(TELLS)]: -log p of the sequence so far, and what stands behind it.

    Raises:
        ValueError: `waited` has a negative or non-finite number.
    """
    if not np.all(np.isfinite(waited) & (waited >= 0.0)):
        raise ValueError("expected waited of finite compensators >= 0, found others")
    out = np.empty((len(row), len(TELLS)))
    _score_at(state.view(np.recarray), row, waited, parameters, out)
    return out
