"""Event sequences of known processes and their likelihoods: what sequence detection is judged on.

The normal sequences are Poisson with rate 1 on [0, 100]. The eight anomalous processes are the
univariate scenarios of Shchur, Tuerkmen, Januschowski, Gasthaus and Guennemann, Detecting Anomalous
Event Sequences with Temporal Point Processes (NeurIPS 2021, section 6.1); `detectability` 0 is the
normal process (Stopping, SelfCorrecting: nearly), and 1 is as far from it as they go.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.tpp.gamma import log_gamma_tails

END = 100.0  # of the window that is observed, in units of the normal process's mean gap
PERIOD = 50.0  # of InhomogeneousPoisson's rate
HIGHEST_RATE = 2.0


@dataclass(frozen=True, slots=True)
class Sequences:
    """Event sequences on [0, END], one after another.

    Attributes:
        time: float64[e], event times, ascending within a sequence.
        offset: int64[n + 1], where each sequence begins in `time`; the last one is e.
    """

    time: NDArray[np.float64]
    offset: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offset) - 1

    def __getitem__(self, i: int) -> NDArray[np.float64]:
        return self.time[self.offset[i] : self.offset[i + 1]]

    def __iter__(self) -> Iterator[NDArray[np.float64]]:
        return (self[i] for i in range(len(self)))

    @classmethod
    def of(cls, each: list[NDArray[np.float64]]) -> Sequences:
        """Join sequences."""
        offset = np.concatenate([[0], np.cumsum([len(s) for s in each])]).astype(np.int64)
        return cls(np.concatenate(each) if each else np.empty(0), offset)


Draw = Callable[[np.random.Generator, float], NDArray[np.float64]]
LogRatio = Callable[[NDArray[np.float64], float], float]


@dataclass(frozen=True, slots=True)
class Scenario:
    """An anomalous process with a detectability.

    Attributes:
        name: as in the paper.
        detectabilities: the grid on which it is judged.
        draw: one sequence from a generator and the detectability.
        log_ratio: log likelihood of a sequence under the anomalous process, less that under Poisson
            with rate 1; -inf where the anomalous process cannot have made it.
    """

    name: str
    detectabilities: tuple[float, ...]
    draw: Draw
    log_ratio: LogRatio

    def sample(self, seed: np.random.SeedSequence, count: int, detectability: float) -> Sequences:
        """Draw `count` sequences."""
        rng = np.random.default_rng(seed)
        return Sequences.of([self.draw(rng, detectability) for _ in range(count)])

    def log_ratios(self, sequences: Sequences, detectability: float) -> NDArray[np.float64]:
        """Return float64[n], the log likelihood ratio of each sequence."""
        return np.array([self.log_ratio(s, detectability) for s in sequences])


def normal_sample(seed: np.random.SeedSequence, count: int) -> Sequences:
    """Draw `count` sequences of the normal process."""
    rng = np.random.default_rng(seed)
    return Sequences.of([_poisson(rng, 1.0, END) for _ in range(count)])


def _poisson(rng: np.random.Generator, rate: float, end: float) -> NDArray[np.float64]:
    return np.sort(rng.uniform(0.0, end, rng.poisson(rate * end)))


# --- a constant rate, and none at all ------------------------------------------------------------


def _rate_log_ratio(time: NDArray[np.float64], rate: float) -> float:
    return len(time) * math.log(rate) - (rate - 1.0) * END


def _stop_at(d: float) -> float:
    return END * (1.0 - 0.3 * d)


def _stopping_log_ratio(time: NDArray[np.float64], d: float) -> float:
    return END - _stop_at(d) if not len(time) or time[-1] <= _stop_at(d) else -math.inf


# --- a rate that comes and goes ------------------------------------------------------------------


def _wave(time: NDArray[np.float64], d: float) -> NDArray[np.float64]:
    rate = 1.0 + 2.0 * d * np.sin(2.0 * math.pi * time / PERIOD)
    return np.asarray(np.clip(rate, 0.0, HIGHEST_RATE), np.float64)


def _inhomogeneous(rng: np.random.Generator, d: float) -> NDArray[np.float64]:
    """Thin a Poisson process of the highest rate (Lewis and Shedler 1979)."""
    time = _poisson(rng, HIGHEST_RATE, END)
    return time[rng.uniform(0.0, HIGHEST_RATE, len(time)) < _wave(time, d)]


def _inhomogeneous_log_ratio(time: NDArray[np.float64], d: float) -> float:
    # Midpoints: the clipped sine has kinks, so a fine grid is as good as any rule.
    step = PERIOD / 4096.0
    mean = float(np.mean(_wave(np.arange(0.5 * step, PERIOD, step), d)))
    with np.errstate(divide="ignore"):
        return float(np.sum(np.log(_wave(time, d)))) - (mean - 1.0) * END


# --- renewal with gamma gaps of mean 1 -----------------------------------------------------------


def _renewal(rng: np.random.Generator, shape: float) -> NDArray[np.float64]:
    time = np.empty(0)
    while not len(time) or time[-1] <= END:
        last = time[-1] if len(time) else 0.0
        time = np.concatenate([time, last + np.cumsum(rng.gamma(shape, 1.0 / shape, 128))])
    return time[time <= END]


def _renewal_log_ratio(time: NDArray[np.float64], shape: float) -> float:
    gap = np.diff(time, prepend=0.0)
    last = time[-1] if len(time) else 0.0
    # Gaps of a small shape underflow to 0 now and then; the density is there, and infinite.
    log_gap = np.log(np.maximum(gap, 1e-300))
    constant = shape * math.log(shape) - math.lgamma(shape)
    log_density = np.sum(constant + (shape - 1.0) * log_gap - shape * gap)
    censored = float(log_gamma_tails(shape, shape * (END - last))[1])
    return float(log_density) + censored + END


# --- intensities that depend on the past ---------------------------------------------------------


def _hawkes(rng: np.random.Generator, d: float) -> NDArray[np.float64]:
    """Grow the clusters, generation by generation (Hawkes and Oakes 1974)."""
    generation = _poisson(rng, 1.0 - d, END)
    every = [generation]
    while len(generation):
        parent = np.repeat(generation, rng.poisson(d, len(generation)))
        generation = parent + rng.exponential(size=len(parent))
        generation = generation[generation <= END]
        every.append(generation)
    return np.sort(np.concatenate(every))


@njit(cache=True)
def _hawkes_log_ratio(time, d):  # type: ignore[no-untyped-def]
    base = 1.0 - d
    total = END - base * END
    excited = 0.0
    last = 0.0
    for t in time:
        excited *= math.exp(-(t - last))
        rate = base + excited
        if rate <= 0.0:
            return -math.inf
        total += math.log(rate) - d * (1.0 - math.exp(-(END - t)))
        excited += d
        last = t
    return total


@njit(cache=True)
def _correct(a, unit):  # type: ignore[no-untyped-def]
    """Invert the compensator of exp(a t - a N(t)) event by event (time rescaling)."""
    out = np.empty(len(unit))
    t = 0.0
    for n in range(len(unit)):
        t += math.log1p(a * unit[n] * math.exp(a * (n - t))) / a
        if t > END:
            return out[:n]
        out[n] = t
    return out


def _self_correcting(rng: np.random.Generator, d: float) -> NDArray[np.float64]:
    # It holds its own count near the time: four times END is far out of reach.
    return np.asarray(_correct(d + 1e-5, rng.exponential(size=4 * int(END))), np.float64)


@njit(cache=True)
def _self_correcting_log_ratio(time, a):  # type: ignore[no-untyped-def]
    total = END
    last = 0.0
    for n in range(len(time) + 1):
        t = time[n] if n < len(time) else END
        total -= math.exp(a * (last - n)) * math.expm1(a * (t - last)) / a
        if n < len(time):
            total += a * (t - n)
        last = t
    return total


_GRID = tuple(round(0.1 * k, 1) for k in range(10))
SCENARIOS = (
    Scenario(
        "IncreasingRate",
        _GRID,
        lambda rng, d: _poisson(rng, 1.0 + 0.5 * d, END),
        lambda time, d: _rate_log_ratio(time, 1.0 + 0.5 * d),
    ),
    Scenario(
        "DecreasingRate",
        _GRID,
        lambda rng, d: _poisson(rng, 1.0 - 0.5 * d, END),
        lambda time, d: _rate_log_ratio(time, 1.0 - 0.5 * d),
    ),
    Scenario("InhomogeneousPoisson", _GRID, _inhomogeneous, _inhomogeneous_log_ratio),
    Scenario(
        "RenewalUp",
        _GRID,
        lambda rng, d: _renewal(rng, 1.0 + 4.0 * d),
        lambda time, d: _renewal_log_ratio(time, 1.0 + 4.0 * d),
    ),
    Scenario(
        "RenewalDown",
        _GRID,
        lambda rng, d: _renewal(rng, 1.0 - d),
        lambda time, d: _renewal_log_ratio(time, 1.0 - d),
    ),
    Scenario("Hawkes", _GRID, _hawkes, lambda time, d: float(_hawkes_log_ratio(time, d))),
    Scenario(
        "SelfCorrecting",
        _GRID,
        _self_correcting,
        lambda time, d: float(_self_correcting_log_ratio(time, d + 1e-5)),
    ),
    Scenario(
        "Stopping",
        _GRID,
        lambda rng, d: _poisson(rng, 1.0, _stop_at(d)),
        _stopping_log_ratio,
    ),
)
