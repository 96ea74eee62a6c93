"""Renewal baseline: the gaps of an entity, their regularity, and time in which nights are short.

Gaps are log-normal with a mean and variance per entity that begin at the population's prior. They
are measured in operational time, the integral of a weekly profile of activity (mean 1), so that a
quiet night is no silence (the random time change of point processes, Daley and Vere-Jones 7.4).
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.baselines.local_level import CLIP, SHIFT

HOUR_MS = 3_600_000
HOURS = 168  # of a week, the first is Monday 00:00 UTC
_EPOCH_HOUR = 72  # the epoch was a Thursday
MIN_GAP_S = 1e-3
GAP_PRIOR_EVENTS = 3.0  # weight of the population's mean log gap
BURST = 8.0  # times the expected rate that the burst CUSUM looks for
LIMIT = 40.0  # nats, of the CUSUM
LULL = 3.0
RHYTHM_EVENTS = 10.0  # memory of the short-term statistics of regularity


def cumulative_profile(profile: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return float64[169], operational hours from Monday 00:00 UTC to the start of each hour.

    Args:
        profile: float64[168], relative activity by hour of the week, positive; scaled to mean 1.
    """
    scaled = np.asarray(profile, np.float64) / np.mean(profile)
    return np.concatenate([[0.0], np.cumsum(scaled)])


@njit(cache=True)
def operational_s(time_ms, cumulative):  # type: ignore[no-untyped-def]
    """Return operational seconds since a fixed origin at `time_ms` (epoch milliseconds, UTC)."""
    hour = time_ms // HOUR_MS + _EPOCH_HOUR
    week = hour // HOURS
    at = hour - week * HOURS
    part = (time_ms % HOUR_MS) / HOUR_MS
    inside = cumulative[at] + part * (cumulative[at + 1] - cumulative[at])
    return (week * float(HOURS) + inside) * 3600.0


@njit(cache=True)
def wall_ms(operational, cumulative):  # type: ignore[no-untyped-def]
    """Invert `operational_s`: the first millisecond at which it reaches `operational`."""
    hours = operational / 3600.0
    week = math.floor(hours / HOURS)
    inside = hours - week * float(HOURS)
    at = min(np.searchsorted(cumulative, inside, side="right") - 1, HOURS - 1)
    part = (inside - cumulative[at]) / (cumulative[at + 1] - cumulative[at])
    return math.ceil((week * float(HOURS) + at - _EPOCH_HOUR + part) * HOUR_MS)


@njit(cache=True)
def gap_step(log_gap, mean, var, events, prior_events):  # type: ignore[no-untyped-def]
    """Update the running mean and variance of the log gap, forgetting beyond 64 events.

    Returns:
        (mean, var) after this gap; squared errors are cut at 9 variances.
    """
    weight = 1.0 / (min(events, 64.0) + prior_events + 1.0)
    error = log_gap - mean
    square = min(error * error, 9.0 * var)
    return mean + weight * error, max(var + weight * (square * (1.0 - weight) - var), 1e-4)


@njit(cache=True)
def log_normal_log_survival(z):  # type: ignore[no-untyped-def]
    """Log of the standard normal's upper tail at `z`, also where erfc underflows."""
    if z < 25.0:
        return math.log(0.5 * math.erfc(z * 0.7071067811865476))
    inverse = 1.0 / (z * z)
    series = 1.0 - inverse * (1.0 - 3.0 * inverse * (1.0 - 5.0 * inverse))
    return -0.5 * z * z - math.log(z * 2.5066282746310002) + math.log(series)


@njit(cache=True)
def burst_step(cusum, compensator):  # type: ignore[no-untyped-def]
    """CUSUM for a rate BURST times the expected one, given -log survival of the gap, in nats.

    A gap of LULL expected events or more ends any burst.
    """
    if compensator > LULL:
        return 0.0
    return min(max(0.0, cusum + math.log(BURST) - (BURST - 1.0) * compensator), LIMIT)


@njit(cache=True)
def surge_step(cusum, compensator, z):  # type: ignore[no-untyped-def]
    """CUSUM for events that are both faster and larger: the sum of both log likelihood ratios.

    Neither needs to be striking alone; where one speaks against an attack it weakens the other.
    """
    if compensator > LULL:
        return 0.0
    u = min(max(z, -CLIP), CLIP)
    step = math.log(BURST) - (BURST - 1.0) * compensator + SHIFT * (u - 0.5 * SHIFT)
    return min(max(0.0, cusum + step), LIMIT)


@njit(cache=True)
def rhythm_step(log_gap, mean, var, gaps):  # type: ignore[no-untyped-def]
    """Update the short-term mean and variance of the log gap with gap number `gaps` (from 1)."""
    weight = 1.0 / min(gaps, RHYTHM_EVENTS)
    error = log_gap - mean
    return mean + weight * error, (1.0 - weight) * (var + weight * error * error)


@njit(cache=True)
def rhythm_surprise(var, usual_var, gaps):  # type: ignore[no-untyped-def]
    """Log likelihood ratio of the short-term variance against the usual one, where it is smaller.

    Half the number of gaps times the Kullback-Leibler divergence of two normals; zero before six
    gaps have been seen.
    """
    ratio = (var + 1e-6) / usual_var
    if gaps < 6.0 or ratio >= 1.0:
        return 0.0
    return 0.5 * min(gaps, RHYTHM_EVENTS) * (ratio - 1.0 - math.log(ratio))
