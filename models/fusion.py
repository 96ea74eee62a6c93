"""Fusion: the detectors' surprises, calibrated to p-values and combined into one.

The combination is the Cauchy test of Liu and Xie (2020), which stays valid under any dependence
between the detectors in the tail that matters here.
"""

from __future__ import annotations

import math

from numba import njit

from models.detectors import DETECTORS, FUSED

__all__ = ["DETECTORS", "FUSED", "calibrated_p", "fuse"]


@njit(cache=True)
def fuse(surprise, offset, slope):  # type: ignore[no-untyped-def]
    """Return the log of the combined p-value.

    Args:
        surprise: float[D], in nats.
        offset: float64[D], of each detector's calibrated tail; inf switches a detector off.
        slope: float64[D], of the tail.

    Far in the tail tan((.5 - p) pi) is 1 / (pi p) to double precision, so the sum is kept in logs
    and p-values below 1e-300 do not vanish.
    """
    largest = -1e300
    total = 0.0
    count = 0
    for d in range(len(surprise)):
        if offset[d] == math.inf:
            continue
        count += 1
        term = -min(0.0, offset[d] - slope[d] * surprise[d])  # -log p
        if term > largest:
            total = total * math.exp(largest - term) + 1.0
            largest = term
        else:
            total += math.exp(term - largest)
    return min(0.0, math.log(count) - largest - math.log(total))


def calibrated_p(surprise: float, offset: float, slope: float) -> float:
    """Return the calibrated p-value of one surprise; 0 where it underflows."""
    return math.exp(min(0.0, offset - slope * surprise))
