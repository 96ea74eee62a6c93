"""A prior of one entity kind from events: which entities are fitted, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.baselines.renewal import HOUR_MS, HOURS, MIN_GAP_S, cumulative_profile, operational_s
from models.empirical_bayes import (
    NormalPopulation,
    VariancePopulation,
    common_ratio,
    normal_population,
    variance_population,
)
from models.level_fit import FEWEST_VALUES, RATIOS, LevelFit, noise_var_at, without_outliers
from models.prior import LEVEL_NOISE, KindPrior
from models.prior_fit import fit_profile

FEWEST_GAPS = 4  # of an entity that takes part in the moments of the gaps
GAP_ENTITIES = 5_000  # more add nothing to the moments of a population
FEWEST_FOR_NOISE = 5  # entities, below which the level noise stays at its default
ENOUGH = 30  # entities, below which moments between them are said to be uncertain
LEVEL_NOISE_RANGE = (1e-6, 0.1)
_VAR_FLOOR = 1e-4  # as the job's kernels floor them
_BETWEEN_FLOOR = 0.01


@dataclass(frozen=True, slots=True)
class KindStream:
    """The events of one kind, grouped by entity, in time order within each.

    Attributes:
        entity: uint64[E], hash of each entity, rising.
        starts: int64[E + 1], where each entity's events begin.
        time_ms: int64[n].
        value: float64[n], transformed; NaN is missing.
    """

    entity: NDArray[np.uint64]
    starts: NDArray[np.int64]
    time_ms: NDArray[np.int64]
    value: NDArray[np.float64]

    @classmethod
    def of(
        cls, entity: NDArray[np.uint64], time_ms: NDArray[np.int64], value: NDArray[np.float64]
    ) -> KindStream:
        """Group n events that are in time order by their entity's hash."""
        order = np.argsort(entity, kind="stable")
        who, starts = np.unique(entity[order], return_index=True)
        return cls(who, np.append(starts, len(order)), time_ms[order], value[order])

    def values(self, index: int) -> NDArray[np.float64]:
        """Return the finite values of one entity, in order."""
        values = self.value[self.starts[index] : self.starts[index + 1]]
        finite: NDArray[np.float64] = values[np.isfinite(values)]
        return finite


@dataclass(frozen=True, slots=True)
class GapFits:
    """Log-normal gaps of some entities, in operational seconds.

    Attributes:
        count: int64[m], gaps of each that were kept.
        mean: float64[m], of the log gap.
        var: float64[m], of the log gap.
        trimmed: gaps that were left out as outliers.
    """

    count: NDArray[np.int64]
    mean: NDArray[np.float64]
    var: NDArray[np.float64]
    trimmed: int


@dataclass(frozen=True, slots=True)
class KindFit:
    """The prior of one kind, and what it was made of.

    Attributes:
        prior: without calibration.
        values: of the levels at each entity's first value; None where fewer than two were fitted.
        noise: of the noise variances within entities; None likewise.
        gaps: of the mean log gaps; None likewise.
        gap_noise: of the variances of log gaps within entities; None likewise.
        notes: what a person should know, one sentence each.
    """

    prior: KindPrior
    values: NormalPopulation | None
    noise: VariancePopulation | None
    gaps: NormalPopulation | None
    gap_noise: VariancePopulation | None
    notes: tuple[str, ...]


def sample_entities(stream: KindStream, size: int, seed: int) -> NDArray[np.int64]:
    """Draw entities with at least FEWEST_VALUES finite values, without replacement.

    Args:
        stream: of the kind.
        size: entities to draw at most.
        seed: the same gives the same entities, whatever the order of the events.

    Returns:
        int64[m], indices into `stream.entity`, rising.
    """
    finite = np.concatenate([[0], np.cumsum(np.isfinite(stream.value))])
    eligible = np.flatnonzero(np.diff(finite[stream.starts]) >= FEWEST_VALUES)
    return _draw(eligible, size, seed)


def _draw(eligible: NDArray[np.int64], size: int, seed: int) -> NDArray[np.int64]:
    if len(eligible) <= size:
        return eligible
    return np.sort(np.random.default_rng(seed).choice(eligible, size, replace=False))


def fit_gaps(stream: KindStream, profile: Sequence[float], seed: int) -> GapFits:
    """Fit the log-normal gaps of each entity (at most GAP_ENTITIES), outliers left out.

    Args:
        stream: of the kind.
        profile: 168 rates by hour of the week.
        seed: of the draw.
    """
    eligible = np.flatnonzero(np.diff(stream.starts) > FEWEST_GAPS)
    cumulative = cumulative_profile(np.array(profile))
    fits, trimmed = [], 0
    for index in _draw(eligible, GAP_ENTITIES, seed).tolist():
        gaps = log_gaps(stream.time_ms[stream.starts[index] : stream.starts[index + 1]], cumulative)
        kept = without_outliers(gaps)
        trimmed += len(gaps) - len(kept)
        fits.append((len(kept), float(np.mean(kept)), float(np.var(kept, ddof=1))))
    count, mean, var = (np.array(column) for column in zip(*fits, strict=True)) if fits else (
        np.zeros(0), np.zeros(0), np.zeros(0)
    )  # fmt: skip
    return GapFits(count.astype(np.int64), mean, var, trimmed)


@njit(cache=True)
def log_gaps(time_ms, cumulative):  # type: ignore[no-untyped-def]
    """Return float64[n - 1], logs of the operational seconds between n events in order."""
    out = np.empty(len(time_ms) - 1)
    before = operational_s(time_ms[0], cumulative)
    for i in range(1, len(time_ms)):
        now = operational_s(time_ms[i], cumulative)
        out[i - 1] = math.log(max(now - before, MIN_GAP_S))
        before = now
    return out


def profile_of(stream: KindStream) -> tuple[tuple[float, ...], list[str]]:
    """Fit the weekly profile, and say where the stream is too short for one."""
    profile = fit_profile(stream.time_ms)
    span_h = (int(stream.time_ms.max()) - int(stream.time_ms.min())) / HOUR_MS
    if span_h < HOURS:
        return profile, [f"less than a week of events ({span_h:.1f} h): the weekly profile is flat"]
    if span_h < 2 * HOURS:
        return profile, ["less than two weeks of events: the weekly profile is one week's chance"]
    return profile, []


def fit_kind_prior(
    stream: KindStream,
    levels: Sequence[LevelFit],
    profile: tuple[float, ...],
    partner_mean: float,
    seed: int,
) -> KindFit:
    """Turn fits of single entities into the prior of their kind; never fails for lack of data.

    Args:
        stream: of the kind.
        levels: fits of the entities that `sample_entities` drew.
        profile: from `profile_of`.
        partner_mean: expected number of distinct partners in two windows.
        seed: of the entities whose gaps are fitted.

    Returns:
        The prior; `notes` name each fallback that was taken.
    """
    notes: list[str] = []
    prior = KindPrior()
    level_noise = _level_noise(levels, notes)
    value, values, noise = _value_prior(stream, levels, level_noise, notes)
    gaps = fit_gaps(stream, profile, seed)
    gap, gap_means, gap_noise = _gap_prior(gaps, prior, notes)
    return KindFit(
        prior=KindPrior(
            value_mean=value[0],
            value_between_var=value[1],
            value_within_var=value[2],
            level_noise=level_noise,
            gap_mean=gap[0],
            gap_between_var=gap[1],
            gap_within_var=gap[2],
            partner_mean=partner_mean,
            profile=profile,
        ),
        values=values,
        noise=noise,
        gaps=gap_means,
        gap_noise=gap_noise,
        notes=tuple(notes),
    )


def _value_prior(
    stream: KindStream, levels: Sequence[LevelFit], level_noise: float, notes: list[str]
) -> tuple[tuple[float, float, float], NormalPopulation | None, VariancePopulation | None]:
    """Return (mean, between, within) of the values and the populations behind them."""
    known = stream.value[np.isfinite(stream.value)]
    if not len(known):
        notes.append("no values: the value's prior is plain (0, 1, 1), nothing is scored by it")
        return (0.0, 1.0, 1.0), None, None
    if len(levels) < 2:
        # One entity, or none with enough values: all values as one, and as uncertain between
        # entities as within.
        kept = without_outliers(known)
        var = max(float(np.var(kept)), _VAR_FLOOR)
        notes.append(
            f"{len(levels)} entities have {FEWEST_VALUES} values: mean and variance are those of "
            "all values together, between entities the same"
        )
        return (float(np.mean(kept)), max(var, _BETWEEN_FLOOR), var), None, None
    if len(levels) < ENOUGH:
        notes.append(f"only {len(levels)} entities have {FEWEST_VALUES} values: uncertain moments")
    moving = [fit for fit in levels if fit.how != "constant"]
    if len(moving) < len(levels):
        constant = len(levels) - len(moving)
        notes.append(f"{constant} of {len(levels)} entities always have the same value")
    values = normal_population(
        np.array([fit.level for fit in levels]), np.array([fit.level_var for fit in levels])
    )
    noise = None
    within = _VAR_FLOOR
    if len(moving) >= 2:
        # Constant entities say nothing of how the noise of the others is spread.
        noise = variance_population(
            np.maximum([noise_var_at(fit, level_noise) for fit in moving], _VAR_FLOOR),
            np.array([fit.count - 1.0 for fit in moving]),
        )
        within = max(noise.mean, _VAR_FLOOR)
    elif moving:
        within = max(moving[0].noise_var, _VAR_FLOOR)
    return (values.mean, max(values.var, _BETWEEN_FLOOR), within), values, noise


def _level_noise(levels: Sequence[LevelFit], notes: list[str]) -> float:
    moving = [fit.profile for fit in levels if fit.how != "constant"]
    if len(moving) < FEWEST_FOR_NOISE:
        notes.append(
            f"{len(moving)} entities tell the level noise, fewer than {FEWEST_FOR_NOISE}: "
            f"it stays at {LEVEL_NOISE:g}"
        )
        return LEVEL_NOISE
    ratio = common_ratio(np.array(moving), RATIOS)
    low, high = LEVEL_NOISE_RANGE
    if ratio > high:
        notes.append(
            f"levels move so fast (level noise {ratio:.2g} of the noise) that a level says little: "
            f"it is limited to {high:g}"
        )
    return min(max(ratio, low), high)


def _gap_prior(
    gaps: GapFits, plain: KindPrior, notes: list[str]
) -> tuple[tuple[float, float, float], NormalPopulation | None, VariancePopulation | None]:
    if not len(gaps.count):
        notes.append(
            f"no entity has {FEWEST_GAPS} gaps: the gaps' prior is the built-in wide one, and "
            "gaps are scored by it until an entity's own are known"
        )
        return (plain.gap_mean, plain.gap_between_var, plain.gap_within_var), None, None
    if float(gaps.var.max()) <= _VAR_FLOOR:
        notes.append("all gaps of an entity are equal: clockwork, any other gap is a surprise")
    if len(gaps.count) < 2:
        within = max(float(gaps.var[0]), _VAR_FLOOR)
        notes.append(
            f"1 entity has {FEWEST_GAPS} gaps: between entities they are taken to vary as within"
        )
        return (float(gaps.mean[0]), max(within, _BETWEEN_FLOOR), within), None, None
    if len(gaps.count) < ENOUGH:
        notes.append(f"only {len(gaps.count)} entities have {FEWEST_GAPS} gaps: uncertain moments")
    var = np.maximum(gaps.var, _VAR_FLOOR)
    means = normal_population(gaps.mean, var / gaps.count)
    noise = variance_population(var, gaps.count - 1.0)
    # Weighted by events, as they are scored: the plain mean over entities would be that of those
    # with a few gaps, whose variances say least.
    within = max(float(np.average(var, weights=np.minimum(gaps.count, 64))), _VAR_FLOOR)
    return (means.mean, max(means.var, _BETWEEN_FLOOR), within), means, noise
