"""Classical point processes: the references beside which a neural model is judged.

Each is a frozen record of its parameters with two methods: `score`, the log density and the
compensator of each gap, and `simulate`. `classical_fit` fits them by maximum likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.tpp.classical_kernels import (
    hawkes_walk,
    multivariate_hawkes_walk,
    self_correcting_walk,
    warp_walk,
    warped,
)
from models.tpp.gap_laws import GapLaw
from models.tpp.sequences import Sequences

_Reals = NDArray[np.float64]


class Process(Protocol):
    """What every classical process offers."""

    @property
    def name(self) -> str:
        """The family's name."""

    def score(self, data: Sequences) -> tuple[_Reals, _Reals]:
        """Return the log density (nats) and the compensator of each gap, each [n].

        For a first event both are of the time since 0.
        """

    def simulate(self, events: int, sequences: int, rng: np.random.Generator) -> Sequences:
        """Return `sequences` sequences of `events` events each."""


def mean_nll(process: Process, data: Sequences) -> float:
    """Return nats per event over the gaps after each first event; no survival term."""
    with np.errstate(all="ignore"):  # the gap before a first event may be 0, and is not counted
        log_density, _ = process.score(data)
    return -float(log_density[~data.first].mean())


def pit(process: Process, data: Sequences) -> _Reals:
    """Return P(gap <= observed) of the gaps after each first event: uniform for the true model."""
    with np.errstate(all="ignore"):
        _, compensator = process.score(data)
    return -np.expm1(-compensator[~data.first])


def draw(process: Process, events: int, sequences: int, seed: int) -> Sequences:
    """Simulate with a seed."""
    return process.simulate(events, sequences, np.random.default_rng(seed))


@njit(cache=True)
def _hawkes_times(base, branching, decay, events, rng):  # type: ignore[no-untyped-def]
    """Ogata's thinning (1981); the intensity falls between events, so it is its own bound."""
    kernels = len(decay)
    excitation = np.zeros(kernels)
    out = np.empty(events)
    time = 0.0
    done = 0
    while done < events:
        bound = base
        for m in range(kernels):
            bound += branching[m] * decay[m] * excitation[m]
        wait = rng.exponential() / bound
        time += wait
        intensity = base
        for m in range(kernels):
            excitation[m] *= math.exp(-decay[m] * wait)
            intensity += branching[m] * decay[m] * excitation[m]
        if rng.random() * bound <= intensity:
            out[done] = time
            done += 1
            for m in range(kernels):
                excitation[m] += 1.0
    return out


@dataclass(frozen=True, slots=True)
class Hawkes:
    """Intensity base + sum over kernels of branching decay exp(-decay elapsed), past events summed.

    Attributes:
        base: rate without excitation, per unit of time.
        branching: expected children of an event by kernel; their sum is below 1.
        decay: per unit of time, by kernel.
    """

    base: float
    branching: tuple[float, ...]
    decay: tuple[float, ...]

    @property
    def name(self) -> str:
        """The family's name."""
        return f"hawkes{len(self.decay)}"

    def score(self, data: Sequences) -> tuple[_Reals, _Reals]:
        """See `Process`."""
        out = np.empty(len(data)), np.empty(len(data))
        hawkes_walk(
            data.gap, data.first, self.base, np.array(self.branching), np.array(self.decay), *out
        )
        return out

    def simulate(self, events: int, sequences: int, rng: np.random.Generator) -> Sequences:
        """See `Process`."""
        kernel = np.array(self.branching), np.array(self.decay)
        return Sequences.join(
            [_hawkes_times(self.base, *kernel, events, rng) for _ in range(sequences)]
        )


@dataclass(frozen=True, slots=True)
class SelfCorrecting:
    """Intensity exp(base + drift t - drop N(t)), t and N since the sequence began.

    Attributes:
        base: log rate at the start.
        drift: growth of the log rate per unit of time.
        drop: what each event takes from the log rate.
    """

    base: float
    drift: float
    drop: float

    @property
    def name(self) -> str:
        """The family's name."""
        return "self_correcting"

    def score(self, data: Sequences) -> tuple[_Reals, _Reals]:
        """See `Process`."""
        out = np.empty(len(data)), np.empty(len(data))
        self_correcting_walk(
            data.gap, data.time, data.first, self.base, self.drift, self.drop, *out
        )
        return out

    def simulate(self, events: int, sequences: int, rng: np.random.Generator) -> Sequences:
        """See `Process`; by inversion of the compensator."""
        found = []
        for _ in range(sequences):
            mass = rng.exponential(size=events)
            time, times = 0.0, np.empty(events)
            for n in range(events):
                log_rate = self.base + self.drift * time - self.drop * n
                time += math.log1p(mass[n] * self.drift * math.exp(-log_rate)) / self.drift
                times[n] = time
            found.append(times)
        return Sequences.join(found)


@dataclass(frozen=True, slots=True)
class Clock:
    """A clock that runs at rate 1 + depth sin(2 pi t / period + phase).

    Attributes:
        period: in the data's unit of time.
        depth: in [0, 1).
        phase: radians.
    """

    period: float = 1.0
    depth: float = 0.0
    phase: float = 0.0

    def unwarp(self, target: _Reals) -> _Reals:
        """Return the times [n] at which the clock shows `target` [n]; by bisection."""
        reach = self.depth * self.period / math.pi + 1e-9
        low, high = target - reach, target + reach
        for _ in range(80):
            middle = 0.5 * (low + high)
            turn = 2.0 * math.pi / self.period
            shown = middle + self.depth / turn * (
                math.cos(self.phase) - np.cos(turn * middle + self.phase)
            )
            low, high = (
                np.where(shown < target, middle, low),
                np.where(shown < target, high, middle),
            )
        return 0.5 * (low + high)

    def shown(self, time: float) -> float:
        """Return what the clock shows at `time`, 0 at 0."""
        return float(warped(time, self.period, self.depth, self.phase))


@dataclass(frozen=True, slots=True)
class Renewal:
    """Independent gaps of one law, on the plain clock or on one whose rate swings.

    Attributes:
        law: of the gaps.
        clock: None for the plain one.
        begins: earliest and latest time at which a simulated sequence begins: not (0, 0) where
            sequences are pieces of a longer one.
    """

    law: GapLaw
    clock: Clock | None = None
    begins: tuple[float, float] = (0.0, 0.0)

    @property
    def name(self) -> str:
        """The family's name."""
        return self.law.name if self.clock is None else f"periodic_{self.law.name}"

    def score(self, data: Sequences) -> tuple[_Reals, _Reals]:
        """See `Process`."""
        if self.clock is None:
            return self.law.log_density(data.gap), -self.law.log_survival(data.gap)
        gap, log_rate = np.empty(len(data)), np.empty(len(data))
        clock = self.clock
        warp_walk(data.time, data.gap, clock.period, clock.depth, clock.phase, gap, log_rate)
        gap = np.maximum(gap, np.finfo(np.float64).tiny)
        return self.law.log_density(gap) + log_rate, -self.law.log_survival(gap)

    def simulate(self, events: int, sequences: int, rng: np.random.Generator) -> Sequences:
        """See `Process`."""
        times = [np.cumsum(self.law.sample(events, rng)) for _ in range(sequences)]
        if self.clock is not None:
            clock = self.clock
            # Even on the clock that swings: a piece of n events is long where events are rare.
            earliest, latest = (clock.shown(time) for time in self.begins)
            starts = rng.uniform(earliest, latest, sequences)
            times = [clock.unwarp(start + time) for start, time in zip(starts, times, strict=True)]
        return Sequences.join([_parted(time) for time in times])


def _parted(time: _Reals) -> _Reals:
    """Part times that rounding made equal."""
    for i in np.flatnonzero(np.diff(time) <= 0.0):
        time[i + 1] = np.nextafter(time[i], np.inf)
    return time


@dataclass(frozen=True, slots=True)
class MultivariateHawkes:
    """Processes that excite each other, one by mark.

    Attributes:
        base: float64[d], rates without excitation.
        branching: float64[d, d], children of mark `to` that an event of mark `from` brings.
        decay: float64[d, d], per unit of time.
    """

    base: _Reals
    branching: _Reals
    decay: _Reals

    @property
    def name(self) -> str:
        """The family's name."""
        return "multivariate_hawkes"

    def score_marked(self, data: Sequences) -> tuple[_Reals, _Reals, _Reals]:
        """Return log density of the gap, log probability of its mark, and compensator, each [n].

        Raises:
            ValueError: the data have no marks, or marks that the model has not.
        """
        if data.mark is None or not 0 <= data.mark.min() <= data.mark.max() < len(self.base):
            raise ValueError(
                f"expected marks from 0 to {len(self.base) - 1}, found "
                f"{None if data.mark is None else np.unique(data.mark)[:10].tolist()}"
            )
        out = np.empty(len(data)), np.empty(len(data)), np.empty(len(data))
        multivariate_hawkes_walk(
            data.gap, data.first, data.mark, self.base, self.branching, self.decay, *out
        )
        return out

    def score(self, data: Sequences) -> tuple[_Reals, _Reals]:
        """See `Process`: the gap alone."""
        log_density, _, compensator = self.score_marked(data)
        return log_density, compensator

    def simulate(self, events: int, sequences: int, rng: np.random.Generator) -> Sequences:
        """See `Process`; with marks."""
        times, marks = [], []
        for _ in range(sequences):
            time, mark = _multivariate_times(self.base, self.branching, self.decay, events, rng)
            times.append(time)
            marks.append(mark)
        return Sequences.join(times, marks)


@njit(cache=True)
def _multivariate_times(base, branching, decay, events, rng):  # type: ignore[no-untyped-def]
    kinds = len(base)
    excitation = np.zeros((kinds, kinds))
    times, marks = np.empty(events), np.empty(events, np.int64)
    time = 0.0
    done = 0
    while done < events:
        bound = base.sum() + (branching * decay * excitation).sum()
        wait = rng.exponential() / bound
        time += wait
        excitation *= np.exp(-decay * wait)
        level = rng.random() * bound
        for to in range(kinds):
            level -= base[to] + (branching[to] * decay[to] * excitation[to]).sum()
            if level <= 0.0:
                times[done], marks[done] = time, to
                done += 1
                excitation[:, to] += 1.0
                break
    return times, marks


def best_of(fits: Sequence[Process], data: Sequences) -> Process:
    """Return the process under which `data` are likeliest; one that has no answer is the last."""

    def badness(process: Process) -> float:
        found = mean_nll(process, data)
        return math.inf if math.isnan(found) else found

    return min(fits, key=badness)
