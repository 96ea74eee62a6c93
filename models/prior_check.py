"""Whether the prior still fits: today's events against those that it was fitted on.

The probability integral transform (PIT, Dawid 1984) of an event under the population's prior is
uniform where the prior is right. Real populations are no normal distributions and active entities
come more often, so what is watched is the distance from the histogram that the prior's own stream
gave, not from the uniform one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.prior import PIT_BINS, KindPrior

# Of every PERIOD events the first BLOCK are looked at: a call costs more than an event, and by
# number it does not matter where batches end.
PERIOD = 1024
BLOCK = 32
# Events that are remembered: when there are twice as many, all counts are halved.
WINDOW = 4096
FEWEST = 512  # events before which nothing is said
# Kolmogorov distance above which the prior does not fit; docs/guides/fitting.md has the figures.
# Gaps of a matching stream come to .15 on its first day, when no long one can have been seen.
MISFIT = 0.2

EDGES = np.array([NormalDist().inv_cdf(k / PIT_BINS) for k in range(1, PIT_BINS)])


class Misfit(NamedTuple):
    """Kolmogorov distance, 0 to 1, by what was compared; NaN where too few events were seen."""

    value: float
    gap: float

    @property
    def worst(self) -> float:
        """The larger of the two, NaN where neither is known."""
        known = [d for d in self if not math.isnan(d)]
        return max(known) if known else math.nan


@dataclass(frozen=True, slots=True)
class CheckModel:
    """What the population's prior expects of one kind.

    Attributes:
        value: (mean, standard deviation) of a value whosever it is.
        gap: the same of a log gap.
        value_expected: float64[PIT_BINS], distribution function at the upper end of each part.
        gap_expected: the same of the gaps.
    """

    value: tuple[float, float]
    gap: tuple[float, float]
    value_expected: NDArray[np.float64]
    gap_expected: NDArray[np.float64]

    @classmethod
    def of(cls, prior: KindPrior) -> CheckModel:
        """Gather the model; a prior without histograms is expected to be right."""
        value_sd = math.sqrt(prior.value_between_var + prior.value_within_var)
        gap_sd = math.sqrt(prior.gap_between_var + prior.gap_within_var)
        expected = []
        for shares in (prior.value_pit, prior.gap_pit):
            bins = np.array(shares or (1.0,) * PIT_BINS)
            expected.append(np.cumsum(bins) / np.sum(bins))
        return cls((prior.value_mean, value_sd), (prior.gap_mean, gap_sd), *expected)


class PriorCheck:
    """Counts into which part of the prior events fall, forgets, and tells the distance.

    Args:
        model: of the kind.
        period: of so many events, the first `block` are counted.
        block: see there; `period` for all.
        window: see WINDOW; math.inf never forgets.
    """

    def __init__(
        self,
        model: CheckModel,
        period: int = PERIOD,
        block: int = BLOCK,
        window: float = WINDOW,
    ) -> None:
        self._model = model
        self._period, self._block, self._window = period, block, window
        self._seen = 0
        self.value_counts = np.zeros(PIT_BINS)
        self.gap_counts = np.zeros(PIT_BINS)

    def add(
        self,
        value: NDArray[np.float32],
        log_gap: NDArray[np.float32],
        timed: NDArray[np.bool_],
    ) -> None:
        """Take n events, of which those are counted whose turn it is.

        One call with all events equals a call for each of them.

        Args:
            value: float32[n], transformed; NaN is missing.
            log_gap: float32[n], operational seconds.
            timed: bool[n], False where there is no gap.
        """
        n, first = len(value), self._seen % self._period
        self._seen += n
        if first >= self._block and first + n <= self._period:
            return
        _count(
            value, log_gap, timed, first, self._period, self._block, self._window,
            *self._model.value, *self._model.gap, EDGES, self.value_counts, self.gap_counts,
        )  # fmt: skip

    def misfit(self) -> Misfit:
        """Return how far today's events are from those that the prior was fitted on."""
        model = self._model
        return Misfit(
            _distance(self.value_counts, model.value_expected),
            _distance(self.gap_counts, model.gap_expected),
        )

    def shares(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the PIT histograms of values and gaps, as a prior keeps them."""
        return _shares(self.value_counts), _shares(self.gap_counts)


def _distance(counts: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    total = float(counts.sum())
    if total < FEWEST:
        return math.nan
    return float(np.max(np.abs(np.cumsum(counts) / total - expected)))


def _shares(counts: NDArray[np.float64]) -> tuple[float, ...]:
    total = float(counts.sum())
    if total < FEWEST:
        return ()
    return tuple(np.round(counts / total, 5).tolist())


@njit(cache=True)
def _add(counts, total, z, edges, window):  # type: ignore[no-untyped-def]
    """Count one event; return the total, which is not summed anew for each."""
    counts[np.searchsorted(edges, z)] += 1.0
    if total + 1.0 < 2.0 * window:
        return total + 1.0
    for b in range(len(counts)):
        counts[b] *= 0.5
    return counts.sum()


@njit(cache=True, nogil=True)
def _count(  # type: ignore[no-untyped-def]
    value,
    log_gap,
    timed,
    first,
    period,
    block,
    window,
    value_mean,
    value_sd,
    gap_mean,
    gap_sd,
    edges,
    value_counts,
    gap_counts,
):
    values, gaps = value_counts.sum(), gap_counts.sum()
    for i in range(len(value)):
        if (first + i) % period < block:
            if not math.isnan(value[i]):
                z = (value[i] - value_mean) / value_sd
                values = _add(value_counts, values, z, edges, window)
            if timed[i]:
                z = (log_gap[i] - gap_mean) / gap_sd
                gaps = _add(gap_counts, gaps, z, edges, window)
