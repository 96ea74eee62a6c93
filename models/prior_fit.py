"""Fit the population's prior from a stream: moments between and within entities, weekly profile."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.baselines.renewal import (
    HOUR_MS,
    HOURS,
    MIN_GAP_S,
    cumulative_profile,
    operational_s,
)
from models.prior import KindPrior, Tail

_EPOCH_HOUR = 72
_MIN_EVENTS = 5  # of an entity that takes part in the moments
STEEPEST = 1.0  # a surprise in nats is never taken for more than it says
TAIL_CLUSTERS = 200  # the largest maxima that make the tail
FEWEST_TAIL_EVENTS = 20_000
_FLOOR = 0.05  # of the profile: an hour without any event still passes


def fit_profile(time_ms: NDArray[np.int64]) -> tuple[float, ...]:
    """Return the relative activity of each hour of the week, smoothed, mean 1, at least .05.

    Args:
        time_ms: int64[n], event times of the whole population.
    """
    hour = (time_ms // HOUR_MS + _EPOCH_HOUR) % HOURS
    counts = np.bincount(hour, minlength=HOURS).astype(np.float64)
    hours_seen = (time_ms.max() - time_ms.min()) / HOUR_MS if len(time_ms) else 0.0
    if hours_seen < HOURS:
        return (1.0,) * HOURS
    smooth = 0.25 * np.roll(counts, 1) + 0.5 * counts + 0.25 * np.roll(counts, -1)
    profile = np.maximum(smooth / smooth.mean(), _FLOOR)
    return tuple(np.round(profile / profile.mean(), 4).tolist())


def fit_kind(
    entity: NDArray[np.int64],
    time_ms: NDArray[np.int64],
    value: NDArray[np.float64],
    partner: NDArray[np.int64] | None = None,
    partner_window_ms: int = 1,
) -> KindPrior:
    """Fit the moments of one kind.

    Args:
        entity: int64[n], number of the event's entity.
        time_ms: int64[n], in order.
        value: float64[n], transformed; NaN is missing.
        partner: int64[n], number of the event's partner, where partners are counted.
        partner_window_ms: time over which they are.

    Returns:
        The prior, without calibration.

    Raises:
        ValueError: fewer than two entities have five events each.
    """
    profile = fit_profile(time_ms)
    order = np.argsort(entity, kind="stable")
    who, when, what = entity[order], time_ms[order], value[order]
    cumulative = cumulative_profile(np.array(profile))
    tau = np.array([operational_s(int(t), cumulative) for t in when])
    same = who[1:] == who[:-1]
    log_gap = np.log(np.maximum(np.diff(tau)[same], MIN_GAP_S))
    gap_mean, gap_between, gap_within = _moments(who[1:][same], log_gap)
    known = np.isfinite(what)
    if known.any():
        value_mean, value_between, value_within = _moments(who[known], what[known])
    else:
        value_mean, value_between, value_within = 0.0, 1.0, 1.0
    return KindPrior(
        value_mean=value_mean,
        value_between_var=value_between,
        value_within_var=value_within,
        gap_mean=gap_mean,
        gap_between_var=gap_between,
        gap_within_var=gap_within,
        partner_mean=fit_partner_mean(entity, time_ms, partner, partner_window_ms),
        profile=profile,
    )


def fit_partner_mean(
    entity: NDArray[np.int64],
    time_ms: NDArray[np.int64],
    partner: NDArray[np.int64] | None,
    window_ms: int,
) -> float:
    """Return the mean number of distinct partners in two windows; 1 where none are counted.

    Args:
        entity: int64[n], number of the event's entity, below 2^43.
        time_ms: int64[n].
        partner: int64[n], number of the event's partner, or None.
        window_ms: length of a window.
    """
    if partner is None:
        return 1.0
    span = entity * (1 << 20) + time_ms // (2 * window_ms)
    pairs = np.unique(np.stack([span, partner]), axis=1)
    return float(pairs.shape[1] / len(np.unique(span)))


def _moments(who: NDArray[np.int64], x: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the mean of the entities' means, their variance, and the variance within."""
    _, group = np.unique(who, return_inverse=True)
    count = np.bincount(group)
    mean = np.bincount(group, x) / count
    square = np.bincount(group, (x - mean[group]) ** 2)
    many = count >= _MIN_EVENTS
    if np.count_nonzero(many) < 2:
        raise ValueError(
            f"expected at least 2 entities with {_MIN_EVENTS} events each to fit a prior, "
            f"found {np.count_nonzero(many)}; give a longer stream"
        )
    within = float(np.mean(square[many] / (count[many] - 1)))
    noise = float(np.mean(within / count[many]))
    between = max(float(np.var(mean[many])) - noise, 0.01)
    return float(np.mean(mean[many])), between, max(within, 1e-4)


def cluster_maxima(
    surprise: NDArray[np.float32], cluster: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the largest surprise of each cluster, and the clusters, rising.

    Args:
        surprise: float32[n].
        cluster: int64[n], events with one number (an entity's week) raise one alert.
    """
    order = np.lexsort((surprise, cluster))
    last = np.append(np.diff(cluster[order]) != 0, True)[: len(order)]
    return surprise[order][last], cluster[order][last]


def fit_tail(
    surprise: NDArray[np.float32],
    cluster: NDArray[np.int64],
    steepest: float = STEEPEST,
    trimmed: int = 0,
) -> Tail:
    """Fit an exponential to the tail of a detector's surprise on normal data.

    What counts is how many alerts a threshold would have raised, not how many events lay beyond
    it: a CUSUM that is high stays high. So the tail is that of the clusters' maxima, per event;
    `fit_tail_of_maxima` has the rest.

    Args:
        surprise: float32[n], of all events; below 20,000 there is no tail to fit.
        cluster: int64[n], events with one number (an entity's week) raise one alert.
        steepest: limit of the slope.
        trimmed: largest maxima that may be anomalies.
    """
    return fit_tail_of_maxima(
        cluster_maxima(surprise, cluster)[0], len(surprise), steepest, trimmed
    )


def fit_tail_of_maxima(
    maxima: NDArray[np.float32], n: int, steepest: float = STEEPEST, trimmed: int = 0
) -> Tail:
    """Fit the tail to the largest TAIL_CLUSTERS of the clusters' maxima.

    The slope is the least of two: that of the mean excess over the start of the tail, and that
    between the start and the tenth largest, so that a tail heavier than exponential is not taken
    for a lighter one.

    Where the traffic may hold anomalies, the `trimmed` largest maxima count only as being at least
    as large as the next: the maximum-likelihood slope of an exponential censored from above
    (Epstein and Sobel 1953), which anomalies among them do not change and which is right without
    any. The far end of the tail is then the tenth below them.

    Args:
        maxima: float32[c], one for each cluster.
        n: events that they are the maxima of.
        steepest: limit of the slope.
        trimmed: less than TAIL_CLUSTERS / 2.

    Raises:
        ValueError: `trimmed` is out of its range.
    """
    if not 0 <= trimmed < TAIL_CLUSTERS // 2:
        raise ValueError(f"expected to trim 0 to {TAIL_CLUSTERS // 2 - 1} maxima, found {trimmed}")
    if n < FEWEST_TAIL_EVENTS:
        return Tail(0.0, 0.5)
    top = np.sort(maxima.astype(np.float64))[-TAIL_CLUSTERS - 1 :]
    excess = top[1:] - top[0]
    if len(excess) < TAIL_CLUSTERS or excess[-1] <= 0.0:
        return Tail(0.0, 1.0)
    known = len(excess) - trimmed
    total = float(excess[:known].sum()) + trimmed * float(excess[known - 1])
    far = trimmed + 10
    by_mean = 1.0 / max(total / known, 1e-3)
    by_far = float(np.log(len(excess) / far)) / max(float(excess[-far]), 1e-3)
    slope = min(by_mean, by_far, steepest)
    return Tail(offset=float(np.log(len(excess) / n) + slope * top[0]), slope=slope)
