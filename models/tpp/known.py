"""Processes of known likelihood to develop on: those of the literature, and two no reference fits.

After Omi, Ueda and Aihara (NeurIPS 2019) and Shchur, Bilos and Guennemann (ICLR 2020), 64 sequences
of 1,024 events each. `log_autoregressive` and `regimes` are ours: no classical reference of
`classical_fit` has their form, so they show what the data alone teach.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.tpp.classical import Clock, Hawkes, Process, Renewal, SelfCorrecting, draw
from models.tpp.gap_laws import LogNormalMixture, Weibull
from models.tpp.sequences import Sequences

_Reals = NDArray[np.float64]
_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
SEQUENCES = 64
EVENTS = 1_024


@dataclass(frozen=True, slots=True)
class LogAutoregressive:
    """Log gaps follow y_n = mean + coefficient (y_{n-1} - mean) + sd noise.

    Attributes:
        mean: of the log gap.
        coefficient: in (-1, 1).
        sd: of the noise.
    """

    mean: float
    coefficient: float
    sd: float

    @property
    def name(self) -> str:
        """The family's name."""
        return "log_autoregressive"

    def score(self, data: Sequences) -> tuple[_Reals, _Reals]:
        """See `models.tpp.classical.Process`; the chain begins with the time to a first event."""
        y = np.log(data.gap) - self.mean
        expected = np.where(data.first, 0.0, self.coefficient * np.roll(y, 1))
        stationary = self.sd / math.sqrt(1.0 - self.coefficient**2)
        sd = np.where(data.first, stationary, self.sd)
        law = LogNormalMixture((1.0,), (0.0,), (1.0,))
        z = np.exp((y - expected) / sd)
        log_density = -0.5 * np.log(z) ** 2 - np.log(sd) - _HALF_LOG_2PI - np.log(data.gap)
        return log_density, -law.log_survival(z)

    def simulate(self, events: int, sequences: int, rng: np.random.Generator) -> Sequences:
        """See `models.tpp.classical.Process`."""
        found = []
        for _ in range(sequences):
            y = np.empty(events)
            level = rng.normal(0.0, self.sd / math.sqrt(1.0 - self.coefficient**2))
            for n in range(events):
                y[n] = level
                level = self.coefficient * level + rng.normal(0.0, self.sd)
            found.append(np.cumsum(np.exp(self.mean + y)))
        return Sequences.join(found)


@njit(cache=True)
def _regime_walk(gap, first, rate, stay, log_density, compensator):  # type: ignore[no-untyped-def]
    """Fill the forward filter's predictive density of each gap, and its distribution."""
    regimes = len(rate)
    belief = np.full(regimes, 1.0 / regimes)
    for i in range(len(gap)):
        if first[i]:
            belief[:] = 1.0 / regimes
        density = 0.0
        tail = 0.0
        for r in range(regimes):
            part = belief[r] * math.exp(-rate[r] * gap[i])
            tail += part
            density += rate[r] * part
        log_density[i] = math.log(density)
        compensator[i] = -math.log(tail)
        total = 0.0
        for r in range(regimes):
            belief[r] *= rate[r] * math.exp(-rate[r] * gap[i]) / density
            total += belief[r]
        for r in range(regimes):
            share = belief[r] / total
            belief[r] = stay * share + (1.0 - stay) / (regimes - 1) * (1.0 - share)


@dataclass(frozen=True, slots=True)
class Regimes:
    """Exponential gaps whose rate is that of a hidden regime, which may change at each event.

    Attributes:
        rate: of each regime.
        stay: chance that an event leaves the regime as it is.
    """

    rate: tuple[float, ...]
    stay: float

    @property
    def name(self) -> str:
        """The family's name."""
        return "regimes"

    def score(self, data: Sequences) -> tuple[_Reals, _Reals]:
        """See `models.tpp.classical.Process`; by the forward filter."""
        out = np.empty(len(data)), np.empty(len(data))
        _regime_walk(data.gap, data.first, np.array(self.rate), self.stay, *out)
        return out

    def simulate(self, events: int, sequences: int, rng: np.random.Generator) -> Sequences:
        """See `models.tpp.classical.Process`."""
        found = []
        for _ in range(sequences):
            regime = int(rng.integers(len(self.rate)))
            gaps = np.empty(events)
            for n in range(events):
                gaps[n] = rng.exponential() / self.rate[regime]
                if rng.random() >= self.stay:
                    others = [r for r in range(len(self.rate)) if r != regime]
                    regime = others[int(rng.integers(len(others)))]
            found.append(np.cumsum(gaps))
        return Sequences.join(found)


_HEAVY = LogNormalMixture((1.0,), (-0.5 * math.log(37.0),), (math.sqrt(math.log(37.0)),))
_SWING = Clock(20_000.0, 0.99, 0.0)

KNOWN: Final[dict[str, Process]] = {
    "hawkes1": Hawkes(0.2, (0.8,), (1.0,)),
    "self_correcting": SelfCorrecting(0.0, 1.0, 1.0),
    "nonstationary_poisson": Renewal(Weibull(1.0, 1.0), _SWING),
    "nonstationary_renewal": Renewal(_HEAVY, _SWING),
    "log_autoregressive": LogAutoregressive(-1.0, 0.8, 0.7),
    "regimes": Regimes((0.3, 6.0), 0.97),
}
"""The law of the renewal ones has mean 1 and standard deviation 6."""
IN_PIECES: Final = frozenset({"nonstationary_poisson", "nonstationary_renewal"})
"""One long sequence cut into 64, on one absolute clock: so each piece sees another phase."""


def known_sequences(name: str, seed: int = 1) -> dict[int, Sequences]:
    """Simulate a known process: 64 sequences of 1,024 events by their number.

    Raises:
        ValueError: no process has that name.
    """
    if name not in KNOWN:
        raise ValueError(f"expected a process of {sorted(KNOWN)}, found {name!r}")
    if name in IN_PIECES:
        whole = draw(KNOWN[name], EVENTS * SEQUENCES, 1, seed)
        times = np.split(whole.time, SEQUENCES)
    else:
        times = np.split(draw(KNOWN[name], EVENTS, SEQUENCES, seed).time, SEQUENCES)
    return {number: Sequences.join([time]) for number, time in enumerate(times)}
