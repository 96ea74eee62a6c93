"""Fusion learned from late labels: evidences combined by a logistic, and causes by a noisy or.

The weights are filtered online (extended Kalman filter of a logistic observation: Penny and Roberts
1999; one Newton step at the prediction for each label), from a prior that trusts each evidence at
its word. An event is positive if any cause makes it so (Pearl's noisy or 1988); a label teaches the
logistic only the part of it that the other cause leaves unexplained.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

FLOOR = 1e-12


@njit(cache=True)
def logistic(x):  # type: ignore[no-untyped-def]
    """Return 1 / (1 + exp(-x)) without overflow."""
    if x >= 0.0:
        return 1.0 / (1.0 + math.exp(-x))
    e = math.exp(x)
    return e / (1.0 + e)


@njit(cache=True)
def noisy_or(first, second):  # type: ignore[no-untyped-def]
    """Return the probability that at least one of two independent causes acts."""
    return first + second - first * second


@njit(cache=True, nogil=True)
def fuse(mean, features, other, out):  # type: ignore[no-untyped-def]
    """Fill out[m] with the probability of each event: noisy or of the logistic and `other`.

    Args:
        mean: float64[d], the weights.
        features: float64[m, d], finite.
        other: float64[m], probability by the other cause, in [0, 1].
        out: float64[m].
    """
    for i in range(len(other)):
        total = 0.0
        for k in range(len(mean)):
            total += mean[k] * features[i, k]
        out[i] = noisy_or(logistic(total), other[i])


@njit(cache=True, nogil=True)
def learn_fusion(mean, cov, features, other, label):  # type: ignore[no-untyped-def]
    """Update the weights in place with m labels, in the order of their arrival.

    The target of each is the posterior probability that the logistic's cause acted: 0 for a
    negative label, own / (noisy or) for a positive one.

    Args:
        mean: float64[d], the weights' mean; changed.
        cov: float64[d, d], their covariance, symmetric positive definite; changed.
        features: float64[m, d], of the judged events, as they were when the events came.
        other: float64[m], as above.
        label: float64[m], 0 or 1; NaN teaches nothing.
    """
    size = len(mean)
    gain = np.empty(size)
    for i in range(len(label)):
        if not math.isfinite(label[i]):
            continue
        total = 0.0
        for k in range(size):
            total += mean[k] * features[i, k]
        own = logistic(total)
        target = label[i] * own / max(noisy_or(own, other[i]), FLOOR)
        variance = 0.0
        for k in range(size):
            gain[k] = 0.0
            for j in range(size):
                gain[k] += cov[k, j] * features[i, j]
            variance += gain[k] * features[i, k]
        # Joseph's form is not needed: the subtracted term is less than cov in each direction by
        # the factor variance * slope / (1 + variance * slope) < 1.
        slope = max(own * (1.0 - own), FLOOR)
        shrink = slope / (1.0 + variance * slope)
        for k in range(size):
            mean[k] += gain[k] * (target - own) / (1.0 + variance * slope)
            for j in range(size):
                cov[k, j] -= shrink * gain[k] * gain[j]


def prior_weights(
    mean: tuple[float, ...], sd: tuple[float, ...]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (mean, cov) of independent normal weights, to be learned by `learn_fusion`.

    Raises:
        ValueError: lengths differ, or a deviation is not positive.
    """
    if len(mean) != len(sd) or not min(sd) > 0.0:
        raise ValueError(f"expected as many positive sd as means, found {mean} and {sd}")
    return np.array(mean, np.float64), np.diag(np.square(np.array(sd, np.float64)))
