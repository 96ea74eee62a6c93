"""Twelve views of a metric: what of it is watched for values that it never had before.

Each view is a number computed from the newest observation and a bounded memory of the earlier
ones; a view that cannot be told yet is NaN. Spans count observations, not seconds, so that one
configuration serves every cadence; time enters through the hour of the day and of the week.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

HOUR_MS = 3_600_000
DAY_HOURS = 24
WEEK_HOURS = 168

# Exponential means: weight 1/span for the newest observation, 1/n while there are n < span.
SPANS = (2.5, 8.0, 30.0, 100.0, 300.0, 1500.0)
FASTEST, FAST, MIDDLE, SLOW, SLOWER, SLOWEST = range(len(SPANS))
PROFILE_SPAN = 20.0  # days or weeks that the mean of an hour remembers
SMOOTH_SPAN = 8.0  # of the smoothed departures from the profiles
BASE_SPAN = 100.0  # of the robust level
DEVIATION_SPAN = 300.0  # of the mean absolute deviation from it
SIZE_SPAN = 10.0  # of the mean size of departures from the robust level
TURN_SPAN = 30.0  # of the mean agreement in sign of successive changes
CUT = 3.0  # mean absolute deviations that one observation moves the robust level by at most
UNCUT = 20  # observations before there is a deviation to cut by
UNIT_SHARE = 0.1  # of the overall deviation, added to that of an hour: an hour may be constant
UNITS = 30.0  # the standardised departure is cut here

VIEWS = (
    "value",
    "level_8",
    "level_30",
    "departure_300",
    "shift_8_100",
    "shift_100_1500",
    "size",
    "turns",
    "day_smoothed",
    "day_standardised",
    "week",
    "week_smoothed",
)
VALUE, LEVEL_8, LEVEL_30, DEPARTURE, SHIFT_FAST, SHIFT_SLOW = range(6)
SIZE, TURNS, DAY_SMOOTHED, DAY_STANDARDISED, WEEK, WEEK_SMOOTHED = range(6, 12)

# Means of the profiles are single precision: they are differences from the entity's first value.
FIELDS = (
    ("anchor", np.float64),  # the first value
    ("levels", np.float64, len(SPANS)),  # exponential means of the value
    ("robust_level", np.float64),  # mean of the value, each one cut
    ("deviation", np.float64),  # mean absolute deviation from it, cut at CUT
    ("outlier_size", np.float64),
    ("turns", np.float64),
    ("last", np.float64),  # the newest value
    ("change", np.float64),  # the newest value less the one before
    ("day_smoothed", np.float64),
    ("week_smoothed", np.float64),
    ("events", np.uint32),  # observations so far
    ("day_told", np.uint32),  # observations whose hour of the day was known
    ("week_told", np.uint32),
    ("day_mean", np.float32, DAY_HOURS),
    ("day_deviation", np.float32, DAY_HOURS),
    ("day_count", np.uint8, DAY_HOURS),
    ("week_mean", np.float32, WEEK_HOURS),
    ("week_count", np.uint8, WEEK_HOURS),
)
COUNTED = 250  # where the counts of the hours stop


@njit(cache=True)
def gain(span, count):  # type: ignore[no-untyped-def]
    """Weight of the newest of `count` observations in a mean over about `span` of them."""
    return max(1.0 / span, 1.0 / count)


@njit(cache=True)
def observe(memory, time_ms, value, views):  # type: ignore[no-untyped-def]
    """Tell all views of one observation, and remember it.

    Args:
        memory: record with FIELDS; zeros before the first observation. Changed.
        time_ms: event time, ms.
        value: the observation, finite.
        views: float64[len(VIEWS)], filled; NaN where a view cannot be told yet.
    """
    if memory.events == 0:
        memory.anchor = value
    y = value - memory.anchor
    if memory.events < np.uint32(0xFFFFFFFF):
        memory.events += np.uint32(1)
    levels(memory, y, views)
    outliers(memory, y, views)
    day(memory, time_ms, y, views)
    week(memory, time_ms, y, views)
    memory.last = y


@njit(cache=True)
def levels(memory, y, views):  # type: ignore[no-untyped-def]
    """Tell the value, its means over several spans, and how far these are apart."""
    mean = memory.levels
    views[VALUE] = y
    views[DEPARTURE] = y - mean[SLOWER]
    for k in range(len(SPANS)):
        mean[k] += gain(SPANS[k], memory.events) * (y - mean[k])
    views[LEVEL_8] = mean[FAST]
    views[LEVEL_30] = mean[MIDDLE]
    views[SHIFT_FAST] = mean[FAST] - mean[SLOW]
    views[SHIFT_SLOW] = mean[SLOW] - mean[SLOWEST]


@njit(cache=True)
def outliers(memory, y, views):  # type: ignore[no-untyped-def]
    """Tell how large departures from a robust level have been of late, and how often y turned.

    The logarithm-like arsinh makes a hundredfold outlier weigh little more than a tenfold one: the
    view rises when departures are many, whatever the largest was.
    """
    departure = y - memory.robust_level
    cut = departure
    if memory.events > UNCUT + 1:
        reach = CUT * memory.deviation
        cut = min(max(departure, -reach), reach)
    units = math.asinh(departure / memory.deviation) if memory.deviation > 0.0 else 0.0
    memory.outlier_size += gain(SIZE_SPAN, memory.events) * (units - memory.outlier_size)
    views[SIZE] = memory.outlier_size
    memory.robust_level += gain(BASE_SPAN, memory.events) * cut
    memory.deviation += gain(DEVIATION_SPAN, memory.events) * (abs(cut) - memory.deviation)
    change = y - memory.last
    agreement = 0.0
    if change * memory.change > 0.0:
        agreement = 1.0
    elif change * memory.change < 0.0:
        agreement = -1.0
    memory.turns += gain(TURN_SPAN, memory.events) * (agreement - memory.turns)
    memory.change = change
    views[TURNS] = memory.turns


@njit(cache=True)
def day(memory, time_ms, y, views):  # type: ignore[no-untyped-def]
    """Tell the departure from what is usual at this hour of the day, smoothed and standardised."""
    hour = (time_ms // HOUR_MS) % DAY_HOURS
    count = memory.day_count[hour]
    views[DAY_SMOOTHED] = np.nan
    views[DAY_STANDARDISED] = np.nan
    departure = y - memory.day_mean[hour]
    if count >= 1:
        memory.day_told = min(memory.day_told + 1, 0xFFFFFFFF)
        step = gain(SMOOTH_SPAN, memory.day_told) * (departure - memory.day_smoothed)
        memory.day_smoothed += step
        views[DAY_SMOOTHED] = memory.day_smoothed
        usual = memory.day_deviation[hour]
        if count >= 2:
            unit = usual + UNIT_SHARE * memory.deviation
            units = departure / unit if unit > 0.0 else 0.0
            views[DAY_STANDARDISED] = min(max(units, -UNITS), UNITS)
        memory.day_deviation[hour] = usual + gain(PROFILE_SPAN, count) * (abs(departure) - usual)
    memory.day_mean[hour] += gain(PROFILE_SPAN, count + 1) * departure
    memory.day_count[hour] = min(count + 1, COUNTED)


@njit(cache=True)
def week(memory, time_ms, y, views):  # type: ignore[no-untyped-def]
    """Tell the departure from what is usual at this hour of the week, as it is and smoothed."""
    hour = (time_ms // HOUR_MS) % WEEK_HOURS
    count = memory.week_count[hour]
    views[WEEK] = np.nan
    views[WEEK_SMOOTHED] = np.nan
    departure = y - memory.week_mean[hour]
    if count >= 1:
        memory.week_told = min(memory.week_told + 1, 0xFFFFFFFF)
        step = gain(SMOOTH_SPAN, memory.week_told) * (departure - memory.week_smoothed)
        memory.week_smoothed += step
        views[WEEK] = departure
        views[WEEK_SMOOTHED] = memory.week_smoothed
    memory.week_mean[hour] += gain(PROFILE_SPAN, count + 1) * departure
    memory.week_count[hour] = min(count + 1, COUNTED)
