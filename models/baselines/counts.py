"""Counts of an entity's events over a sliding window, with a profile of day and week.

Gamma-Poisson: events come at rate lambda in operational time (`renewal.operational_s`: the integral
of the weekly profile), lambda is gamma with the population as prior. The window is a ring of
buckets; lambda is learned only from buckets that have left it, so the count in the window is
negative binomial given what is known, and its p-value honest. The event at hand, and the entity's
first, are not counted: given that an event happens now, the others of a Poisson process are as ever
(Slivnyak's theorem). Until an entity has been known for a whole bucket, too many events are judged
as if it had: the p-value is then too large, never too small.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.baselines.component import Component
from models.baselines.renewal import HOURS, MIN_GAP_S, cumulative_profile, operational_s
from models.baselines.tails import log_complement, log_negative_binomial_sf, surprise

BUCKETS = 8
MIN_GAP_HOURS = MIN_GAP_S / 3600.0
MAX_EMPTY = 4096  # buckets of an absence that are learned from; a longer one counts as so many

COUNTS_STATE = np.dtype(
    [
        ("count", np.float64, (BUCKETS,)),
        ("bucket", np.int64),
        ("first_ms", np.int64),
        ("shape", np.float64),
        ("rate", np.float64),
    ],
    align=True,
)


class CountsParameters(NamedTuple):
    """Prior and settings of counts.

    Attributes:
        bucket_ms: width of a bucket; BUCKETS of them are the window.
        shape: of the gamma prior of the rate, > 0.
        rate: of the prior, operational hours, > 0; shape / rate is the typical rate per hour.
        discount: in (0, 1]; 1 / (1 - discount) is the memory in buckets. The prior
            is not forgotten.
        cumulative: float64[169], operational hours by hour of the week.
    """

    bucket_ms: int
    shape: float
    rate: float
    discount: float
    cumulative: NDArray[np.float64]


@njit(cache=True)
def _exposure(from_ms, to_ms, cumulative):  # type: ignore[no-untyped-def]
    """Return operational hours from one time to another, >= 0."""
    hours = (operational_s(to_ms, cumulative) - operational_s(from_ms, cumulative)) / 3600.0
    return max(hours, 0.0)


@njit(cache=True)
def _leave(entity, bucket, p):  # type: ignore[no-untyped-def]
    """Learn from `bucket`, which leaves the window, and empty its place."""
    place = bucket % BUCKETS
    end_ms = (bucket + 1) * p.bucket_ms
    if end_ms > entity["first_ms"]:
        begin_ms = max(bucket * p.bucket_ms, entity["first_ms"])
        exposure = _exposure(begin_ms, end_ms, p.cumulative)
        entity["shape"] = p.shape + p.discount * (entity["shape"] - p.shape)
        entity["rate"] = p.rate + p.discount * (entity["rate"] - p.rate)
        entity["shape"] += entity["count"][place]
        entity["rate"] += exposure
    entity["count"][place] = 0.0


@njit(cache=True, nogil=True)
def _walk(state, row, fresh, time_ms, value, mark, partner, p, out):  # type: ignore[no-untyped-def] # noqa: ARG001
    for i in range(len(row)):
        entity = state[row[i]]
        bucket = time_ms[i] // p.bucket_ms
        out[i, 0] = 0.0
        out[i, 1] = 0.0
        out[i, 2] = math.nan
        if fresh[i] or entity["shape"] == 0.0:
            for k in range(BUCKETS):
                entity["count"][k] = 0.0
            entity["bucket"] = bucket
            entity["first_ms"] = time_ms[i]
            entity["shape"] = p.shape
            entity["rate"] = p.rate
            continue
        if bucket < entity["bucket"] or time_ms[i] < entity["first_ms"]:
            # Late: it counts where its bucket is still there, and is not scored.
            if time_ms[i] >= entity["first_ms"] and bucket > entity["bucket"] - BUCKETS:
                entity["count"][bucket % BUCKETS] += 1.0
            continue
        begin = max(entity["bucket"] + 1, bucket - MAX_EMPTY)
        if begin > entity["bucket"] + 1:
            for k in range(entity["bucket"] - BUCKETS + 1, entity["bucket"] + 1):
                _leave(entity, k, p)
        for k in range(begin, bucket + 1):
            _leave(entity, k - BUCKETS, p)
        entity["bucket"] = bucket
        from_ms = max((bucket - BUCKETS + 1) * p.bucket_ms, entity["first_ms"])
        exposure = max(_exposure(from_ms, time_ms[i], p.cumulative), MIN_GAP_HOURS)
        # Too many is too many for a whole bucket: an entity's first events, all of one second as
        # many stamps are, would else be infinitely many per hour.
        bucket_end_ms = max(time_ms[i], from_ms + p.bucket_ms)
        at_least = max(_exposure(from_ms, bucket_end_ms, p.cumulative), MIN_GAP_HOURS)
        count = 0.0
        for k in range(BUCKETS):
            count += entity["count"][k]
        shape, rate = entity["shape"], entity["rate"]
        above = log_negative_binomial_sf(count + 1.0, shape, rate, exposure)
        out[i, 0] = surprise(log_negative_binomial_sf(count, shape, rate, at_least))
        out[i, 1] = surprise(log_complement(above))
        out[i, 2] = shape / rate * exposure
        entity["count"][bucket % BUCKETS] += 1.0


def counts_component(
    window_ms: int,
    shape: float,
    rate_hours: float,
    discount: float = 1.0,
    profile: NDArray[np.float64] | None = None,
    name: str = "counts",
) -> Component:
    """Return counts over a sliding window of between 7/8 of `window_ms` and all of it.

    It tells `name_high` (-log P(as many or more)), `name_low` (-log P(as many or fewer)), and
    `name_expected`, all of the other events of the window; NaN where nothing is scored.

    Args:
        window_ms: > 0, a multiple of BUCKETS.
        shape: see `CountsParameters`, as the next two.
        rate_hours: operational hours that the prior is worth.
        discount: of what was learned, at each bucket.
        profile: float64[168], relative activity by hour of the week; None is flat.
        name: of the component.

    Raises:
        ValueError: a parameter is out of its range.
    """
    fits = window_ms > 0 and window_ms % BUCKETS == 0 and 0.0 < discount <= 1.0
    if not (fits and min(shape, rate_hours) > 0.0):
        raise ValueError(
            f"{name}: expected a positive window_ms, a multiple of {BUCKETS}, positive shape and "
            f"rate_hours, and a discount in (0, 1]; found {window_ms}, {shape}, {rate_hours}, "
            f"{discount}"
        )
    cumulative = cumulative_profile(np.ones(HOURS) if profile is None else profile)
    p = CountsParameters(window_ms // BUCKETS, shape, rate_hours, discount, cumulative)
    tells = (f"{name}_high", f"{name}_low", f"{name}_expected")
    return Component(name, 1, COUNTS_STATE, tells, tells[:2], p, _walk)
