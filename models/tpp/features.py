"""Features of an event of feature version 4, one event at a time, in bounded memory.

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
    LEVEL_FEATURES,
    MARK_FEATURES,
    PROFILE_FEATURES,
    RATIO_LIMIT,
    RECENT_MARKS,
    Architecture,
)
from models.tpp.sequences import Sequences

# What an entity's history is, beside its memory: float64[HISTORY + 3 levels].
LAST_TIME = 0
COUNT = 1
LAST_MARK = 2
LAST_SLOT = 3  # of the last mark among the recent ones
RUN_LENGTH = 4  # events of the last mark in a row, its first one not counted
RUN_BEGAN = 5
RUN_SUM = 6  # of the log gaps within the row
KINDS = 7  # how often a mark was new
RECENT = 8  # the recent marks, then for each of them:
_TIME = RECENT + RECENT_MARKS  # its last time,
_CAME = _TIME + RECENT_MARKS  # how often it came,
_FOLLOWED = _CAME + RECENT_MARKS  # how often another event came after it,
_AFTER = _FOLLOWED + RECENT_MARKS  # the sum of the log gaps after it,
_AGAIN = _AFTER + RECENT_MARKS  # and how often it came again at once
HISTORY = _AGAIN + RECENT_MARKS  # then weight, sum and sum of squares for each level
NO_MARK = -1.0
_SHRINKAGE = 2.0
"""How many average events a mark's own means in a sequence begin with."""
_LEAST_VARIANCE = 1e-4


def new_history(levels: int = 0) -> NDArray[np.float64]:
    """Return the history of an entity without events, float64[HISTORY + 3 levels]."""
    found = np.zeros(HISTORY + 3 * levels)
    found[LAST_MARK] = NO_MARK
    found[RECENT : RECENT + RECENT_MARKS] = NO_MARK
    return found


@njit(cache=True)
def mark_age(history, mark, time):  # type: ignore[no-untyped-def]
    """Return the time since `mark` last came, or -1, and note it in place of the oldest."""
    oldest = 0
    for slot in range(RECENT_MARKS):
        if history[RECENT + slot] == mark:
            age = time - history[_TIME + slot]
            history[_TIME + slot] = time
            history[_CAME + slot] += 1.0
            history[LAST_SLOT] = slot
            return age
        if (
            history[RECENT + slot] == NO_MARK or history[_TIME + slot] < history[_TIME + oldest]
        ) and history[RECENT + oldest] != NO_MARK:
            oldest = slot
    history[RECENT + oldest] = mark
    history[_TIME + oldest] = time
    history[_CAME + oldest] = 1.0
    history[_FOLLOWED + oldest] = 0.0
    history[_AFTER + oldest] = 0.0
    history[_AGAIN + oldest] = 0.0
    history[LAST_SLOT] = oldest
    history[KINDS] += 1.0
    return -1.0


@njit(cache=True)
def mark_step(history, time, mark, z, log_mean, log_sd, out):  # type: ignore[no-untyped-def]
    """Fill out [MARK_FEATURES] for an event of `mark` and advance the marks' part of `history`.

    Args:
        history: float64[HISTORY or more], of the time and mark of the event before.
        time: of the event.
        mark: its number.
        z: standardised log gap before it; any for a first event.
        log_mean: of the log gap.
        log_sd: of the log gap.
        out: float32[MARK_FEATURES].
    """
    again = history[COUNT] > 0.0 and history[LAST_MARK] == mark
    if history[COUNT] > 0.0:
        last = int(history[LAST_SLOT])
        history[_FOLLOWED + last] += 1.0
        history[_AFTER + last] += z
        if again:
            history[_AGAIN + last] += 1.0
    if again:
        history[RUN_LENGTH] += 1.0
        history[RUN_SUM] += z
    else:
        history[RUN_LENGTH] = 0.0
        history[RUN_SUM] = 0.0
        history[RUN_BEGAN] = time
    age = mark_age(history, mark, time)
    slot = int(history[LAST_SLOT])
    weight = history[_FOLLOWED + slot] + _SHRINKAGE
    out[0] = 0.0 if age < 0.0 else (math.log1p(age) - log_mean) / log_sd
    out[1] = 1.0 if age < 0.0 else 0.0
    out[2] = 1.0 if again else 0.0
    out[3] = math.log1p(history[RUN_LENGTH])
    out[4] = (math.log1p(time - history[RUN_BEGAN]) - log_mean) / log_sd
    out[5] = history[RUN_SUM] / (history[RUN_LENGTH] + 1.0)
    out[6] = math.log(history[_CAME + slot])
    out[7] = history[_AFTER + slot] / weight
    out[8] = history[_AGAIN + slot] / weight
    out[9] = math.log(history[KINDS])


@njit(cache=True)
def level_step(sums, levels, z, out):  # type: ignore[no-untyped-def]
    """Add z to running sums (float64[3 levels], changed in place) and fill out [2 levels]."""
    for k in range(len(levels)):
        keep = math.exp(-1.0 / levels[k])
        sums[3 * k] = keep * sums[3 * k] + 1.0
        sums[3 * k + 1] = keep * sums[3 * k + 1] + z
        sums[3 * k + 2] = keep * sums[3 * k + 2] + z * z
        weight = sums[3 * k] + 1.0
        mean = sums[3 * k + 1] / weight
        variance = (sums[3 * k + 2] + 1.0) / weight - mean * mean
        out[2 * k] = mean
        out[2 * k + 1] = 0.5 * math.log(max(variance, _LEAST_VARIANCE))


@njit(cache=True, nogil=True)
def feature_step(  # type: ignore[no-untyped-def]
    history, time, mark, amount, scales, has_marks, has_amount, has_clock, levels, profile,
    periods, out
):  # fmt: skip
    """Fill out [features] for an event and advance `history` (changed in place).

    Args:
        history: float64[HISTORY + 3 levels], as `new_history` begins it.
        time: of the event, not before the one before.
        mark: number of the mark, any where the architecture has none.
        amount: above 0, any where the architecture has none.
        scales: float64[6], the fields of `Scales` in order.
        has_marks: as the architecture says.
        has_amount: likewise.
        has_clock: likewise.
        levels: float64[l], likewise.
        profile: float32[p], of the mark; [0] where the architecture has none.
        periods: float64[q], of the clock.
        out: float32[features].

    Returns:
        The gap before the event in mean gaps, 0 for a first event: what the memory fades by.
    """
    gap_mean, log_mean, log_sd, span, amount_mean, amount_sd = scales
    is_first = history[COUNT] == 0.0
    elapsed = 0.0
    z = 0.0
    out[0] = 0.0
    out[1] = 1.0
    out[2] = 1.0 if is_first else 0.0
    at = 3
    if not is_first:
        gap = max(time - history[LAST_TIME], 1e-12 * gap_mean)
        elapsed = gap / gap_mean
        z = (math.log(gap) - log_mean) / log_sd
        z = min(max(z, -FEATURE_LIMIT), FEATURE_LIMIT)
        out[0] = z
        out[1] = min(elapsed, RATIO_LIMIT)
        level_step(history[HISTORY:], levels, z, out[at:])
    at += LEVEL_FEATURES * len(levels)
    if has_marks:
        mark_step(history, time, float(mark), z, log_mean, log_sd, out[at:])
        at += MARK_FEATURES
    for k in range(len(profile)):
        out[at + k] = profile[k]
    at += len(profile)
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
def _walk(  # type: ignore[no-untyped-def]
    time, starts, mark, amount, scales, flags, levels, profile, periods, empty, elapsed, out
):
    for s in range(len(starts) - 1):
        history = empty.copy()
        for n in range(starts[s], starts[s + 1]):
            elapsed[n] = feature_step(
                history, time[n], mark[n], amount[n], scales,
                flags[0], flags[1], flags[2], levels, profile[n], periods, out[n],
            )  # fmt: skip


def scale_array(architecture: Architecture) -> NDArray[np.float64]:
    """Return the architecture's scales as `feature_step` takes them, float64[6]."""
    s = architecture.scales
    return np.array(
        [s.gap_mean, s.log_gap_mean, s.log_gap_sd, s.span, s.log_amount_mean, s.log_amount_sd]
    )


def features(
    data: Sequences, architecture: Architecture, profile: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return every event's features, float32[n, features], and elapsed mean gaps, float64[n].

    Args:
        data: of the process.
        architecture: says which features.
        profile: float32[n, PROFILE_FEATURES], of each event's mark; None without profiles.

    Raises:
        ValueError: the architecture asks for marks, amounts or profiles that are not given.
    """
    for what, wanted, given in (
        ("marks", architecture.marks > 0, data.mark),
        ("amounts", architecture.amount, data.amount),
        ("profiles", architecture.profiles > 0, profile),
    ):
        if wanted and given is None:
            raise ValueError(f"expected events with {what}, found none; train a model without")
    n = len(data)
    out, elapsed = np.zeros((n, architecture.features), np.float32), np.zeros(n)
    mark = np.zeros(n, np.int64) if data.mark is None else data.mark
    amount = np.ones(n) if data.amount is None else data.amount
    if profile is None or not architecture.profiles:
        profile = np.zeros((n, 0), np.float32)
    elif profile.shape != (n, PROFILE_FEATURES):
        raise ValueError(f"expected profiles [{n}, {PROFILE_FEATURES}], found {profile.shape}")
    flags = np.array([architecture.marks > 0, architecture.amount, architecture.clock])
    levels = np.array(architecture.levels, np.float64)
    _walk(
        data.time, data.starts, mark, amount, scale_array(architecture), flags, levels, profile,
        np.array(architecture.clock_periods, np.float64), new_history(len(levels)), elapsed, out,
    )  # fmt: skip
    return out, elapsed
