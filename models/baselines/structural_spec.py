"""Structural models put together from parts: the frozen spec, its checks, its compiled form.

Every variance here is a multiple of the noise variance of one observation, which each entity
learns for itself; every rate and noise is per `interval_s`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.baselines.calendar import Regressor, compile_regressors
from models.baselines.state_space import (
    AUTOREGRESSION,
    COEFFICIENT,
    DECAY,
    KIND,
    LEVEL,
    LEVEL_NOISE,
    NOISE,
    RATE,
    SEASON,
    SIZE,
    START,
    TREND,
)

STATES_LIMIT = 32
PRIOR_VAR_LIMIT = 1e5  # docs/decisions/0008-covariance-form.md
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Level:
    """Where the series is: d level = slope dt + sqrt(noise_var) dW.

    Attributes:
        noise_var: what the level gains in one interval; 0 is a constant.
        mean: of the level before the first event; None takes the first observation (exact
            diffuse start: the first event is not scored).
        var: of the level around `mean`; without a mean it has no meaning.
    """

    noise_var: float = 0.05
    mean: float | None = None
    var: float = 1.0


@dataclass(frozen=True, slots=True)
class Trend:
    """How fast the level moves: d slope = -damping slope dt + sqrt(noise_var) dW.

    Attributes:
        noise_var: what the slope gains in one interval.
        damping: per interval; 0 is the local linear trend (integrated Wiener process).
        var: of the slope (per interval) before the first event.
    """

    noise_var: float = 1e-4
    damping: float = 0.0
    var: float = 0.01


@dataclass(frozen=True, slots=True)
class Season:
    """A trigonometric season: harmonic k is a pair that rotates by 2 pi k dt / period_s.

    Attributes:
        period_s: 86,400 for a day, 604,800 for a week.
        harmonics: how many.
        noise_var: what each of a pair gains in one interval.
        var: of each before the first event.
    """

    period_s: float
    harmonics: int = 3
    noise_var: float = 1e-4
    var: float = 4.0


@dataclass(frozen=True, slots=True)
class Autoregression:
    """What returns to zero: x_n = sum(coefficients_k x_{n-k}) + N(0, noise_var), by interval.

    One positive coefficient is an Ornstein-Uhlenbeck process, exact at any elapsed time. Otherwise
    the process steps once an interval: a gap counts as its nearest whole number of intervals (0:
    the same value is seen again), and missing intervals are stepped over exactly.
    """

    coefficients: tuple[float, ...]
    noise_var: float = 0.5


@dataclass(frozen=True, slots=True)
class Noise:
    """The noise of an observation, and how an entity learns it.

    Attributes:
        var: before the first event; None takes it from the first innovation that is not zero.
        prior_events: how many events `var` counts for.
        memory_events: events after which an old one counts for 1/e.
        learns: False keeps `var`, and the predictive distribution stays Gaussian.
        ratio_rate: how fast the factor of all process noise is learnt from the correlation of
            successive innovations; 0 keeps it at 1.
        smallest_sd: a standard deviation below which nothing is told apart; besides, nothing is
            told apart below a millionth of the expected value.
        constant_events: of a series without any noise so far, after which a change is a surprise.
    """

    var: float | None = None
    prior_events: float = 10.0
    memory_events: float = 200.0
    learns: bool = True
    ratio_rate: float = 0.02
    smallest_sd: float = 1e-9
    constant_events: int = 30


@dataclass(frozen=True, slots=True)
class Robust:
    """How far one event may pull.

    Attributes:
        dof: of the Student-t weight; 0 for the plain Kalman filter.
        shift_score: innovations beyond this many standard deviations, all on one side, ...
        shift_events: ... this many in a row, are a true shift: the level is set free to follow.
            0 turns it off.
    """

    dof: float = 4.0
    shift_score: float = 3.0
    shift_events: int = 5


@dataclass(frozen=True, slots=True)
class StructuralSpec:
    """A structural model; the observation is the sum of its parts and noise.

    Attributes:
        level: every model has one; Level(noise_var=0, mean=m, var=0) is a known constant.
        trend: of the level.
        seasons: of different periods.
        autoregression: what neither level nor season explain.
        regressors: known functions of time, each with a coefficient of its own.
        interval_s: the unit of elapsed time, the usual gap between two events.
        clock: "time" counts elapsed event time, "event" one interval for each event.
        longest_gap: intervals; the noise of a longer gap is that of this one.
        noise: of an observation.
        robust: update.
    """

    level: Level = field(default_factory=Level)
    trend: Trend | None = None
    seasons: tuple[Season, ...] = ()
    autoregression: Autoregression | None = None
    regressors: tuple[Regressor, ...] = ()
    interval_s: float = 1.0
    clock: Literal["time", "event"] = "time"
    longest_gap: float = 10_000.0
    noise: Noise = field(default_factory=Noise)
    robust: Robust = field(default_factory=Robust)

    def __post_init__(self) -> None:
        _check(self)

    @property
    def states(self) -> int:
        """Number of state variables."""
        count = 1 + (self.trend is not None) + len(self.regressors)
        count += 2 * sum(season.harmonics for season in self.seasons)
        return count + (len(self.autoregression.coefficients) if self.autoregression else 0)


class Rules(NamedTuple):
    """The numbers of a spec that say how to score and to learn.

    They stand apart from the arrays: passing an array to a compiled function counts references,
    and to pass all of them cost half as much as the whole event of a local level.
    """

    noise_var: float
    prior_events: float
    memory_events: float
    learns: bool
    ratio_rate: float
    smallest_var: float
    constant_events: float
    robust_dof: float
    shift_score: float
    shift_events: float


class Parameters(NamedTuple):
    """What the kernel reads; see `models.baselines.state_space` for the blocks."""

    rules: Rules
    blocks: Floats
    powers: Floats
    noises: Floats
    loading: Floats
    regressors: NDArray[np.int64]
    regressor_values: Floats
    prior_mean: Floats
    prior_cov: Floats
    origin: float
    level_known: bool
    interval_ms: float
    by_event: bool
    longest_gap: float
    rounding: float


def _need(found: float, name: str, least: float, above: bool = False) -> None:
    """Refuse a number that is not finite or too small."""
    if not math.isfinite(found) or found < least or (above and found == least):
        wanted = f"above {least:g}" if above else f"at least {least:g}"
        raise ValueError(f"{name}: expected a finite number {wanted}, found {found}")


def _check(spec: StructuralSpec) -> None:
    """Raise ValueError where a part of the spec makes no sense."""
    _need(spec.interval_s, "interval_s", 0.0, above=True)
    _need(spec.longest_gap, "longest_gap", 1.0)
    if spec.clock not in ("time", "event"):
        raise ValueError(f'clock: expected "time" or "event", found {spec.clock!r}')
    _need(spec.level.noise_var, "level.noise_var", 0.0)
    _need(spec.level.var, "level.var", 0.0)
    if spec.level.mean is not None:
        _need(spec.level.mean, "level.mean", -1e15)
    if spec.trend is not None:
        _need(spec.trend.noise_var, "trend.noise_var", 0.0)
        _need(spec.trend.damping, "trend.damping", 0.0)
        _need(spec.trend.var, "trend.var", 0.0)
    _check_seasons(spec)
    if spec.autoregression is not None:
        _check_autoregression(spec.autoregression)
    names = [regressor.name for regressor in spec.regressors]
    if len(set(names)) < len(names):
        raise ValueError(f"regressors: expected each name once, found {names}")
    _check_noise(spec.noise, spec.robust)
    if spec.states > STATES_LIMIT:
        raise ValueError(
            f"expected at most {STATES_LIMIT} states, found {spec.states}; "
            "take fewer harmonics or regressors"
        )


def _check_seasons(spec: StructuralSpec) -> None:
    frequencies: list[float] = []
    for season in spec.seasons:
        _need(season.period_s, "season.period_s", 0.0, above=True)
        _need(season.noise_var, "season.noise_var", 0.0)
        _need(season.var, "season.var", 0.0)
        if season.harmonics < 1:
            raise ValueError(f"season.harmonics: expected at least 1, found {season.harmonics}")
        frequencies += [k / season.period_s for k in range(1, season.harmonics + 1)]
    frequencies.sort()
    for lower, upper in pairwise(frequencies):
        if math.isclose(lower, upper, rel_tol=1e-9):
            raise ValueError(
                f"seasons: expected each frequency once, found a period of {1 / upper:g} s twice; "
                "take fewer harmonics of the longer season"
            )


def _check_autoregression(part: Autoregression) -> None:
    if not part.coefficients:
        raise ValueError("autoregression.coefficients: expected at least one, found none")
    for coefficient in part.coefficients:
        _need(coefficient, "autoregression.coefficients", -math.inf)
    _need(part.noise_var, "autoregression.noise_var", 0.0)
    largest = float(np.max(np.abs(np.linalg.eigvals(companion(part.coefficients)))))
    if largest >= 1.0:
        raise ValueError(
            f"autoregression.coefficients: expected a stationary process, found {part.coefficients}"
            f" with a root of size {largest:.6g}; make their sum smaller, or let the level wander"
        )


def _check_noise(noise: Noise, robust: Robust) -> None:
    if noise.var is not None:
        _need(noise.var, "noise.var", 0.0, above=True)
    elif not noise.learns:
        raise ValueError("noise: expected noise.var where noise.learns is false, found None")
    _need(noise.prior_events, "noise.prior_events", 1.0)
    _need(noise.memory_events, "noise.memory_events", 2.0)
    _need(noise.ratio_rate, "noise.ratio_rate", 0.0)
    _need(noise.smallest_sd, "noise.smallest_sd", 1e-15)
    _need(noise.constant_events, "noise.constant_events", 1)
    if noise.prior_events > noise.memory_events:
        raise ValueError(
            f"noise.prior_events: expected at most memory_events ({noise.memory_events:g}), "
            f"found {noise.prior_events:g}"
        )
    _need(robust.dof, "robust.dof", 0.0)
    _need(robust.shift_score, "robust.shift_score", 1.0)
    if not 0 <= robust.shift_events < 1000:
        raise ValueError(f"robust.shift_events: expected 0 to 999, found {robust.shift_events}")


def companion(coefficients: Sequence[float]) -> Floats:
    """Return the companion matrix float64[p, p] of an autoregression."""
    p = len(coefficients)
    matrix = np.zeros((p, p))
    matrix[0] = coefficients
    matrix[np.arange(1, p), np.arange(p - 1)] = 1.0
    return matrix


def stationary_cov(coefficients: Sequence[float], noise_var: float) -> Floats:
    """Solve V = F V F' + Q for the autoregression's companion form, float64[p, p]."""
    p = len(coefficients)
    matrix = companion(coefficients)
    noise = np.zeros(p * p)
    noise[0] = noise_var
    solved = np.linalg.solve(np.eye(p * p) - np.kron(matrix, matrix), noise).reshape(p, p)
    symmetric: Floats = 0.5 * (solved + solved.T)
    return symmetric


def compile_spec(spec: StructuralSpec, rounding_bits: int | None) -> Parameters:
    """Turn a spec into the numbers that the kernel reads.

    Args:
        spec: checked by its constructor.
        rounding_bits: of the stored significand (24 for single precision); None stores exactly.

    Raises:
        ValueError: a prior variance is too large for the stored precision.
    """
    blocks, loading, mean, var = _blocks(spec)
    if rounding_bits is not None and var.max() > PRIOR_VAR_LIMIT:
        raise ValueError(
            f"expected prior variances of at most {PRIOR_VAR_LIMIT:g} noise variances in single "
            f"precision, found {var.max():g}; take a smaller one, or leave out level.mean"
        )
    cov = np.diag(var)
    powers, noises = np.zeros((0, 1, 1)), np.zeros((0, 1, 1))
    for block in blocks:
        if block[KIND] == AUTOREGRESSION:
            assert spec.autoregression is not None
            at, size = int(block[START]), int(block[SIZE])
            part = spec.autoregression
            cov[at : at + size, at : at + size] = stationary_cov(part.coefficients, part.noise_var)
            powers, noises = _doublings(part, spec.longest_gap)
    first = spec.states - len(spec.regressors)
    table, values = compile_regressors(spec.regressors, first)
    noise, robust = spec.noise, spec.robust
    rules = Rules(
        noise_var=noise.var or 0.0,
        prior_events=noise.prior_events,
        memory_events=noise.memory_events,
        learns=noise.learns,
        ratio_rate=noise.ratio_rate,
        smallest_var=noise.smallest_sd**2,
        constant_events=float(noise.constant_events),
        robust_dof=robust.dof,
        shift_score=robust.shift_score,
        shift_events=float(robust.shift_events),
    )
    return Parameters(
        rules=rules,
        blocks=blocks,
        powers=powers,
        noises=noises,
        loading=loading,
        regressors=table,
        regressor_values=values,
        prior_mean=mean,
        prior_cov=cov[np.tril_indices(spec.states)][None],
        origin=spec.level.mean or 0.0,
        level_known=spec.level.mean is not None,
        interval_ms=1000.0 * spec.interval_s,
        by_event=spec.clock == "event",
        longest_gap=spec.longest_gap,
        rounding=0.0 if rounding_bits is None else (spec.states + 1) * 2.0**-rounding_bits,
    )


def _blocks(spec: StructuralSpec) -> tuple[Floats, Floats, Floats, Floats]:
    """Lay out the blocks: their table, the loading, and the prior's mean and variances."""
    rows: list[Floats] = []
    loading: list[float] = []
    var: list[float] = []

    def add(kind: int, loads: list[float], variances: list[float], noise: float) -> Floats:
        row = np.zeros(6)
        row[[KIND, START, SIZE, NOISE]] = kind, len(loading), len(loads), noise
        rows.append(row)
        loading.extend(loads)
        var.extend(variances)
        return row

    level_var = spec.level.var if spec.level.mean is not None else 0.0
    if spec.trend is None:
        add(LEVEL, [1.0], [level_var], spec.level.noise_var)
    else:
        row = add(TREND, [1.0, 0.0], [level_var, spec.trend.var], spec.trend.noise_var)
        row[[RATE, LEVEL_NOISE]] = spec.trend.damping, spec.level.noise_var
    for season in spec.seasons:
        for k in range(1, season.harmonics + 1):
            row = add(SEASON, [1.0, 0.0], [season.var, season.var], season.noise_var)
            row[RATE] = 2.0 * math.pi * k * spec.interval_s / season.period_s
    if spec.autoregression is not None:
        coefficients = spec.autoregression.coefficients
        noise_var = spec.autoregression.noise_var
        if len(coefficients) == 1 and coefficients[0] > 0.0:
            stationary = noise_var / (1.0 - coefficients[0] ** 2)
            row = add(DECAY, [1.0], [stationary], stationary)
            row[RATE] = -math.log(coefficients[0])
        else:
            p = len(coefficients)
            add(AUTOREGRESSION, [1.0] + [0.0] * (p - 1), [0.0] * p, noise_var)
    for regressor in spec.regressors:
        add(COEFFICIENT, [0.0], [regressor.var], regressor.noise_var)
    return np.array(rows), np.array(loading), np.zeros(len(loading)), np.array(var)


def _doublings(part: Autoregression, longest_gap: float) -> tuple[Floats, Floats]:
    """Return the transition and process noise over 2^k intervals, up to the longest gap."""
    power = companion(part.coefficients)
    noise = np.zeros_like(power)
    noise[0, 0] = part.noise_var
    powers, noises = [], []
    for _ in range(int(longest_gap + 0.5).bit_length()):
        powers.append(power)
        noises.append(noise)
        noise = power @ noise @ power.T + noise
        power = power @ power
    return np.array(powers), np.array(noises)
