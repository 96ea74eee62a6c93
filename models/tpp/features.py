"""Features of an event of feature version 2, one event at a time, in bounded memory.

The stream and training walk the same compiled step, so what is learnt is what will be asked.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.tpp.architecture import (
    EXCESS_LIMIT,
    FEATURE_LIMIT,
    RATIO_LIMIT,
    RECENT_MARKS,
    Architecture,
)
from models.tpp.sequences import Sequences

# What an entity's history is, beside its memory: float64[HISTORY].
LAST_TIME = 0
COUNT = 1
LAST_MARK = 2
RECENT = 3  # the recent marks, then their times
HISTORY = RECENT + 2 * RECENT_MARKS
NO_MARK = -1.0


def new_history() -> NDArray[np.float64]:
    """Return the history of an entity without events, float64[HISTORY]."""
    found = np.zeros(HISTORY)
    found[LAST_MARK : RECENT + RECENT_MARKS] = NO_MARK
    return found


@njit(cache=True)
def mark_age(history, mark, time):  # type: ignore[no-untyped-def]
    """Return the time since `mark` last came, or -1, and note it in place of the oldest."""
    oldest = 0
    for slot in range(RECENT_MARKS):
        if history[RECENT + slot] == mark:
            age = time - history[RECENT + RECENT_MARKS + slot]
            history[RECENT + RECENT_MARKS + slot] = time
            return age
        if (
            history[RECENT + slot] == NO_MARK
            or history[RECENT + RECENT_MARKS + slot] < history[RECENT + RECENT_MARKS + oldest]
        ) and history[RECENT + oldest] != NO_MARK:
            oldest = slot
    history[RECENT + oldest] = mark
    history[RECENT + RECENT_MARKS + oldest] = time
    return -1.0


@njit(cache=True, nogil=True)
def feature_step(  # type: ignore[no-untyped-def]
    history, time, mark, amount, scales, has_marks, has_amount, has_clock, periods, out
):
    """Fill out [features] for an event and advance `history` (changed in place).

    Args:
        history: float64[HISTORY], as `new_history` begins it.
        time: of the event, not before the one before.
        mark: number of the mark, any where the architecture has none.
        amount: above 0, any where the architecture has none.
        scales: float64[6], the fields of `Scales` in order.
        has_marks: as the architecture says.
        has_amount: likewise.
        has_clock: likewise.
        periods: float64[p], of the clock.
        out: float32[features].

    Returns:
        The gap before the event in mean gaps, 0 for a first event: what the memory fades by.
    """
    gap_mean, log_mean, log_sd, span, amount_mean, amount_sd = scales
    is_first = history[COUNT] == 0.0
    elapsed = 0.0
    out[0] = 0.0
    out[1] = 1.0
    out[2] = 1.0 if is_first else 0.0
    if not is_first:
        gap = max(time - history[LAST_TIME], 1e-12 * gap_mean)
        elapsed = gap / gap_mean
        z = (math.log(gap) - log_mean) / log_sd
        out[0] = min(max(z, -FEATURE_LIMIT), FEATURE_LIMIT)
        out[1] = min(elapsed, RATIO_LIMIT)
    at = 3
    if has_marks:
        age = mark_age(history, float(mark), time)
        out[at] = 0.0 if age < 0.0 else (math.log1p(age) - log_mean) / log_sd
        out[at + 1] = 1.0 if age < 0.0 else 0.0
        out[at + 2] = 1.0 if history[LAST_MARK] == mark else 0.0
        at += 3
    if has_amount:
        out[at] = (math.log(amount) - amount_mean) / amount_sd
        at += 1
    history[LAST_TIME] = time
    history[COUNT] += 1.0
    history[LAST_MARK] = mark
    if has_clock:
        share = time / span
        excess = time / gap_mean - history[COUNT]
        out[at] = min(max(excess, -EXCESS_LIMIT), EXCESS_LIMIT)
        out[at + 1] = math.log1p(history[COUNT])
        out[at + 2] = share
        out[at + 3] = share * share
        out[at + 4] = math.log1p(max(span - time, 0.0) / gap_mean)
        at += 5
    for p in range(len(periods)):
        angle = 2.0 * math.pi * (time / periods[p])
        out[at] = math.sin(angle)
        out[at + 1] = math.cos(angle)
        at += 2
    return elapsed


@njit(cache=True, nogil=True)
def _walk(time, starts, mark, amount, scales, flags, periods, empty, elapsed, out):  # type: ignore[no-untyped-def]
    for s in range(len(starts) - 1):
        history = empty.copy()
        for n in range(starts[s], starts[s + 1]):
            elapsed[n] = feature_step(
                history, time[n], mark[n], amount[n], scales,
                flags[0], flags[1], flags[2], periods, out[n],
            )  # fmt: skip


def scale_array(architecture: Architecture) -> NDArray[np.float64]:
    """Return the architecture's scales as `feature_step` takes them, float64[6]."""
    s = architecture.scales
    return np.array(
        [s.gap_mean, s.log_gap_mean, s.log_gap_sd, s.span, s.log_amount_mean, s.log_amount_sd]
    )


def features(
    data: Sequences, architecture: Architecture
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return every event's features, float32[n, features], and elapsed mean gaps, float64[n].

    Raises:
        ValueError: the architecture asks for marks or amounts that the data lack.
    """
    for what, wanted, given in (
        ("marks", architecture.marks > 0, data.mark),
        ("amounts", architecture.amount, data.amount),
    ):
        if wanted and given is None:
            raise ValueError(f"expected events with {what}, found none; train a model without")
    n = len(data)
    out, elapsed = np.zeros((n, architecture.features), np.float32), np.zeros(n)
    mark = np.zeros(n, np.int64) if data.mark is None else data.mark
    amount = np.ones(n) if data.amount is None else data.amount
    flags = np.array([architecture.marks > 0, architecture.amount, architecture.clock])
    _walk(
        data.time, data.starts, mark, amount, scale_array(architecture), flags,
        np.array(architecture.clock_periods, np.float64), new_history(), elapsed, out,
    )  # fmt: skip
    return out, elapsed
