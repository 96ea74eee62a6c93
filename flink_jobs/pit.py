"""Predictive PIT: where each event fell in what was predicted of it, by the job's own steps."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from models.prior_check import CheckModel, PriorCheck

BINS = 100
_Z = np.array([NormalDist().inv_cdf(k / BINS) for k in range(1, BINS)])
_NATS = -np.log1p(-np.arange(1, BINS) / BINS)


class PitCounts:
    """Counts of PITs in BINS equal parts of (0, 1), by kind; an observer of the scorer.

    Attributes:
        value: float64[kinds, BINS], values in the normal predicted by the entity's level.
        gap: float64[kinds, BINS], gaps in what was in charge: intensity model or log-normal.
        population: by kind, values and gaps in the population's prior.
    """

    def __init__(self, checks: list[CheckModel], min_events: int) -> None:
        self._min_events = min_events
        self.value = np.zeros((len(checks), BINS))
        self.gap = np.zeros((len(checks), BINS))
        self.population = [PriorCheck(check, 1, 1, np.inf) for check in checks]

    def __call__(self, kind: int, advanced: NDArray[np.void], decided: NDArray[np.void]) -> None:
        """Take the records of one kind in one batch; young entities count for the population."""
        self.population[kind].add(advanced["value"], advanced["log_gap"], advanced["timed"])
        warm = advanced["events"] >= self._min_events
        known = warm & ~np.isnan(advanced["value"])
        z = (advanced["value"] - advanced["typical"])[known] / advanced["spread"][known]
        self.value[kind] += np.bincount(np.searchsorted(_Z, z), minlength=BINS)
        nats = decided["compensator"][warm & advanced["timed"]]
        self.gap[kind] += np.bincount(np.searchsorted(_NATS, nats), minlength=BINS)


def kolmogorov(counts: NDArray[np.float64]) -> float:
    """Return the largest distance of a PIT's distribution from the uniform one; NaN if empty.

    Args:
        counts: float64[B], in B equal parts of (0, 1).
    """
    total = float(counts.sum())
    if total == 0.0:
        return float("nan")
    uniform = np.arange(1, len(counts) + 1) / len(counts)
    return float(np.max(np.abs(np.cumsum(counts) / total - uniform)))
