"""The detector of metric streams: records of twelve views, one score, one alert for an incident.

A view (`metric_views`) of a healthy metric stays within the range that it has had. After n
exchangeable observations the next leaves the range with probability 2 / (n + 1) only, whatever
their distribution (the argument of conformal prediction, Vovk, Gammerman and Shafer 2005): no
normality is asked for, heavy tails and counts widen their own range, and what occurs again and
again is no record any more. How far a record lies outside, in units of the range, is its strength.
The score is the largest weighted strength of the views over `threshold`, so that 1 is anomalous.

A high score opens an incident. For `quiet_events` observations after it only a score that is
`escalation` times as high is told; all others are 0.

What votes where surprises are fused is `alarm`, the score in nats; `surprise`, which knows neither
weights nor incidents, is told beside it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.baselines.component import Component
from models.baselines.metric_views import (
    CUT,
    FASTEST,
    FIELDS,
    HOUR_MS,
    SPANS,
    UNCUT,
    VIEWS,
    gain,
    observe,
)
from models.baselines.tails import MAX_SURPRISE

VERSION = 1
TELLS = ("surprise", "score", "typical", "low", "high", "view", "alarm")
SURPRISE, SCORE, TYPICAL, LOW, HIGH, VIEW, ALARM = range(len(TELLS))
# -log p that a score of 1 stands for: p = 1e-6. An uncalibrated surprise is taken at half its word,
# so that at false_alerts_per_million = 1000 alerts are just the scores above 1.
ALARM_NATS = -math.log(1e-6)

VALUE_LIMIT = 1e15  # beyond it a value counts as missing: profiles are single precision
STRENGTH_LIMIT = 100.0  # ranges; a constant that changes leaves a range of nothing
RELATIVE_RANGE = 1e-9  # of the values' size: narrower ranges are rounding
ROUNDING = 1e-6  # ranges; what is outside by less is rounding, in a metric that repeats itself
FORGETTING = 1e-5  # share of its width that a range loses with each observation
WARM_EVENTS = 150  # observations of a view before its records count,
WARM_MS = 24 * HOUR_MS  # and time: a range must have seen a whole day
EXTREME = 1.0  # ranges outside, from which on
BELIEVED = 0.5  # only this share widens the range: one glitch must not make the detector deaf
TOLD_COUNT = 255
BAND_MISSES = 0.005  # share of values above the band, and as many below
BAND_STEP = 1.0  # mean absolute deviations that a value outside moves the band's edge by

# By how much the strength of a view counts: half for those whose ranges are made of few independent
# values, as the weeks that a metric has had, and leave them more often.
WEIGHTS = {
    "value": 1.0,
    "level_8": 1.0,
    "level_30": 1.0,
    "departure_300": 1.0,
    "shift_8_100": 1.0,
    "shift_100_1500": 1.0,
    "size": 1.0,
    "turns": 0.5,
    "day_smoothed": 0.5,
    "day_standardised": 1.0,
    "week": 0.5,
    "week_smoothed": 0.5,
}

STATE = np.dtype(
    [
        *FIELDS,
        ("lowest", np.float64, len(VIEWS)),
        ("highest", np.float64, len(VIEWS)),
        ("range_ms", np.int64, len(VIEWS)),  # event time at which each range began
        ("told", np.uint8, len(VIEWS)),  # how often each view was told, up to TOLD_COUNT
        ("peak", np.float64),  # score that opened or raised the incident
        ("since_peak", np.uint32),  # observations after it
        ("error", np.float64),  # mean absolute error of `typical`, cut as the robust level's
        ("below", np.float64),  # edges of the band, from `typical`
        ("above", np.float64),
    ],
    align=True,
)


class MetricParameters(NamedTuple):
    """Settings of the detector; one set serves every metric.

    Attributes:
        weights: float64[len(VIEWS)], >= 0.
        threshold: strength, in ranges, that is a score of 1.
        quiet_events: observations for which an incident silences what is not higher by far.
        escalation: how many times the incident's score a score must be to be told meanwhile.
        opening_score: least score that opens an incident.
    """

    weights: NDArray[np.float64]
    threshold: float = 0.06
    quiet_events: int = 60
    escalation: float = 2.0
    opening_score: float = 0.5


def default_parameters() -> MetricParameters:
    """Return the settings that eddy ships."""
    return MetricParameters(np.array([WEIGHTS[view] for view in VIEWS]))


@njit(cache=True)
def record_strength(record, view, time_ms, told, narrowest):  # type: ignore[no-untyped-def]
    """Hold one view against its range, and widen or forget the range.

    Args:
        record: of STATE; the view's `lowest`, `highest` and `told` are changed.
        view: its number.
        time_ms: event time, ms.
        told: what it tells; not NaN.
        narrowest: width, > 0, below which a range is rounding.

    Returns:
        By how many widths it lies outside the range, <= STRENGTH_LIMIT; 0 inside, and while the
        range is made of fewer than WARM_EVENTS or of less than WARM_MS.
    """
    if record.told[view] == 0:
        record.lowest[view] = told
        record.highest[view] = told
        record.range_ms[view] = time_ms
    low = record.lowest[view]
    high = record.highest[view]
    width = max(high - low, narrowest)
    # Towards the newest, never past it: a metric that has settled is judged by its new range.
    low += FORGETTING * max(told - low, 0.0)
    high -= FORGETTING * max(high - told, 0.0)
    strength = max(told - high, low - told, 0.0) / width
    if strength < ROUNDING:
        strength = 0.0
    warm = record.told[view] >= WARM_EVENTS and time_ms - record.range_ms[view] >= WARM_MS
    if warm and strength > EXTREME:
        record.lowest[view] = low - BELIEVED * max(low - told, 0.0)
        record.highest[view] = high + BELIEVED * max(told - high, 0.0)
    else:
        record.lowest[view] = min(low, told)
        record.highest[view] = max(high, told)
    if record.told[view] < TOLD_COUNT:
        record.told[view] += np.uint8(1)
    return min(strength, STRENGTH_LIMIT) if warm else 0.0


@njit(cache=True)
def record_surprise(strength, events, views):  # type: ignore[no-untyped-def]
    """-log of a bound of the predictive p-value of a record, nats.

    One of n + 1 exchangeable values is the largest or the smallest with probability 2 / (n + 1).
    With exponential tails the range of n values is about 2 log n mean excesses wide, which gives
    the strength its weight. Bonferroni's bound is paid for looking at `views` of them.
    """
    if strength <= 0.0:
        return 0.0
    n = float(events)
    return max(math.log((n + 1.0) / (2.0 * views)) + 2.0 * math.log(n) * strength, 0.0)


@njit(cache=True)
def incident_score(record, score, p):  # type: ignore[no-untyped-def]
    """Return the score, or 0 where an open incident silences it; open or raise the incident."""
    record.since_peak = min(record.since_peak + 1, 0xFFFFFFFF)
    silent = record.peak > 0.0 and record.since_peak < p.quiet_events
    if silent and score <= p.escalation * record.peak:
        return 0.0
    if score >= p.opening_score:
        record.peak = score
        record.since_peak = 0
    return score


@njit(cache=True)
def expected_band(record, out):  # type: ignore[no-untyped-def]
    """Write the typical value and the band of 99%, as they stand before the next observation."""
    typical = record.anchor + record.levels[FASTEST]
    out[TYPICAL] = typical
    out[LOW] = typical + record.below
    out[HIGH] = typical + record.above


@njit(cache=True)
def learn_band(record, error):  # type: ignore[no-untyped-def]
    """Move the band's edges so that each leaves out BAND_MISSES of the errors.

    Quantiles by stochastic approximation (Robbins and Monro 1951), in steps of the mean absolute
    error; no distribution is assumed.
    """
    reach = CUT * record.error if record.events > UNCUT else math.inf
    size = min(abs(error), reach) if record.error > 0.0 else abs(error)
    record.error += gain(SPANS[-2], record.events) * (size - record.error)
    step = BAND_STEP * record.error
    record.above += step * ((1.0 if error > record.above else 0.0) - BAND_MISSES)
    record.below -= step * ((1.0 if error < record.below else 0.0) - BAND_MISSES)
    record.above = max(record.above, 0.0)
    record.below = min(record.below, 0.0)


@njit(cache=True)
def score_event(record, time_ms, value, p, views, out):  # type: ignore[no-untyped-def]
    """Score one observation of one entity and learn from it.

    Args:
        record: of STATE. Changed.
        time_ms: event time, ms.
        value: the observation; not finite or beyond VALUE_LIMIT is missing.
        p: MetricParameters.
        views: float64[len(VIEWS)], scratch.
        out: float32[len(TELLS)], filled.
    """
    out[:] = np.nan
    out[SURPRISE] = 0.0
    out[ALARM] = 0.0
    if record.events > 0:
        expected_band(record, out)
    if not abs(value) <= VALUE_LIMIT:
        return
    if record.events > 0:
        learn_band(record, value - record.anchor - record.levels[FASTEST])
    observe(record, time_ms, value, views)
    narrowest = RELATIVE_RANGE * (abs(record.anchor) + abs(value)) + 1e-12
    best = 0.0
    strongest = 0.0
    for view in range(len(VIEWS)):
        if math.isnan(views[view]):
            continue
        strength = record_strength(record, view, time_ms, views[view], narrowest)
        strongest = max(strongest, strength)
        if p.weights[view] * strength > best:
            best = p.weights[view] * strength
            out[VIEW] = view
    out[SURPRISE] = record_surprise(strongest, record.events, len(VIEWS))
    score = incident_score(record, best / p.threshold, p)
    out[SCORE] = score
    out[ALARM] = min(ALARM_NATS * score, MAX_SURPRISE)


@njit(cache=True, nogil=True)
def walk(  # type: ignore[no-untyped-def]
    state, row, fresh, time_ms, value,
    mark, partner,  # noqa: ARG001 - the contract has them
    parameters, out,
):  # fmt: skip
    """Walk a batch; see `component.Component`. Marks and partners are not looked at."""
    views = np.empty(len(VIEWS))
    for i in range(len(row)):
        record = state[row[i]]
        if fresh[i]:
            reset(record)
        score_event(record, time_ms[i], value[i], parameters, views, out[i])


@njit(cache=True)
def reset(record):  # type: ignore[no-untyped-def]
    """Set a record to zeros, field by field: numba assigns no whole record."""
    record.anchor = 0.0
    record.levels[:] = 0.0
    record.robust_level = 0.0
    record.deviation = 0.0
    record.outlier_size = 0.0
    record.turns = 0.0
    record.last = 0.0
    record.change = 0.0
    record.day_smoothed = 0.0
    record.week_smoothed = 0.0
    record.events = 0
    record.day_told = 0
    record.week_told = 0
    record.day_mean[:] = 0.0
    record.day_deviation[:] = 0.0
    record.day_count[:] = 0
    record.week_mean[:] = 0.0
    record.week_count[:] = 0
    record.lowest[:] = 0.0
    record.highest[:] = 0.0
    record.range_ms[:] = 0
    record.told[:] = 0
    record.peak = 0.0
    record.since_peak = 0
    record.error = 0.0
    record.below = 0.0
    record.above = 0.0


def metric_component(parameters: MetricParameters | None = None) -> Component:
    """Return the detector of metric streams.

    Args:
        parameters: None takes those that eddy ships.

    Raises:
        ValueError: A parameter is out of its range.
    """
    p = default_parameters() if parameters is None else parameters
    if p.weights.shape != (len(VIEWS),) or not (p.weights >= 0.0).all():
        raise ValueError(f"expected {len(VIEWS)} weights of at least 0, found {p.weights}")
    if not (p.threshold > 0.0 and p.quiet_events >= 0 and p.escalation >= 1.0):
        raise ValueError(
            "expected threshold > 0, quiet_events >= 0 and escalation >= 1, found"
            f" {p.threshold}, {p.quiet_events} and {p.escalation}"
        )
    return Component("metric", VERSION, STATE, TELLS, ("alarm",), p, walk)
