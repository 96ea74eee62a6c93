"""Laws of a single gap: exponential, Weibull, gamma, and mixtures of log-normals.

All are of a positive gap in the data's unit of time. A log-normal is a mixture of one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.baselines.renewal import log_normal_log_survival
from models.tpp.gamma import log_gamma_tails

_Reals = NDArray[np.float64]
_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
NARROWEST = 1e-3
"""Least standard deviation of a mixture's component: without it one on a repeated gap would have
infinite likelihood."""


class GapLaw(Protocol):
    """What every law offers; gaps are float64[n]."""

    @property
    def name(self) -> str:
        """The law's name."""

    def log_density(self, gap: _Reals) -> _Reals:
        """Return the log density of each gap, nats."""

    def log_survival(self, gap: _Reals) -> _Reals:
        """Return log P(longer than each gap), nats."""

    def sample(self, count: int, rng: np.random.Generator) -> _Reals:
        """Return `count` gaps."""


@dataclass(frozen=True, slots=True)
class Weibull:
    """Weibull's law; of shape 1 it is the exponential, and the process Poisson's.

    Attributes:
        shape: above 0.
        scale: in the unit of time.
    """

    shape: float
    scale: float

    @property
    def name(self) -> str:
        """The law's name."""
        return "poisson" if self.shape == 1.0 else "weibull"

    def log_density(self, gap: _Reals) -> _Reals:
        """See `GapLaw`."""
        log_ratio = np.log(gap / self.scale)
        found: _Reals = (
            math.log(self.shape / self.scale)
            + (self.shape - 1.0) * log_ratio
            - np.exp(self.shape * log_ratio)
        )
        return found

    def log_survival(self, gap: _Reals) -> _Reals:
        """See `GapLaw`."""
        return -((gap / self.scale) ** self.shape)

    def sample(self, count: int, rng: np.random.Generator) -> _Reals:
        """See `GapLaw`."""
        return self.scale * rng.weibull(self.shape, count)


@njit(cache=True)
def _upper_gamma_logs(shape, x, out):  # type: ignore[no-untyped-def]
    for i in range(len(x)):
        out[i] = log_gamma_tails(shape, x[i])[1]


@dataclass(frozen=True, slots=True)
class Gamma:
    """The gamma law.

    Attributes:
        shape: above 0.
        scale: in the unit of time.
    """

    shape: float
    scale: float

    @property
    def name(self) -> str:
        """The law's name."""
        return "gamma"

    def log_density(self, gap: _Reals) -> _Reals:
        """See `GapLaw`."""
        x = gap / self.scale
        constant = math.lgamma(self.shape) + math.log(self.scale)
        found: _Reals = (self.shape - 1.0) * np.log(x) - x - constant
        return found

    def log_survival(self, gap: _Reals) -> _Reals:
        """See `GapLaw`."""
        out = np.empty(len(gap))
        _upper_gamma_logs(self.shape, gap / self.scale, out)
        return out

    def sample(self, count: int, rng: np.random.Generator) -> _Reals:
        """See `GapLaw`."""
        return rng.gamma(self.shape, self.scale, count)


@njit(cache=True)
def _mixture_walk(y, log_weight, mean, sd, log_density, log_survival):  # type: ignore[no-untyped-def]
    """Fill log density of y and log P(Y > y) under a mixture of normals."""
    for i in range(len(y)):
        best_pdf = best_tail = -math.inf
        pdf = tail = 0.0
        for k in range(len(mean)):
            z = (y[i] - mean[k]) / sd[k]
            term = log_weight[k] - 0.5 * z * z - math.log(sd[k]) - _HALF_LOG_2PI
            if term > best_pdf:
                pdf = pdf * math.exp(best_pdf - term) + 1.0
                best_pdf = term
            else:
                pdf += math.exp(term - best_pdf)
            term = log_weight[k] + log_normal_log_survival(z)
            if term > best_tail:
                tail = tail * math.exp(best_tail - term) + 1.0
                best_tail = term
            else:
                tail += math.exp(term - best_tail)
        log_density[i] = best_pdf + math.log(pdf)
        log_survival[i] = min(best_tail + math.log(tail), 0.0)


@dataclass(frozen=True, slots=True)
class LogNormalMixture:
    """A mixture of log-normals.

    Attributes:
        weight: sums to 1.
        mean: of the log gap, by component.
        sd: of the log gap, by component.
    """

    weight: tuple[float, ...]
    mean: tuple[float, ...]
    sd: tuple[float, ...]

    @property
    def name(self) -> str:
        """The law's name."""
        return "log_normal" if len(self.weight) == 1 else f"log_normal_mixture{len(self.weight)}"

    def _walk(self, gap: _Reals) -> tuple[_Reals, _Reals]:
        out = np.empty(len(gap)), np.empty(len(gap))
        log_weight = np.log(np.array(self.weight))
        _mixture_walk(np.log(gap), log_weight, np.array(self.mean), np.array(self.sd), *out)
        return out

    def log_density(self, gap: _Reals) -> _Reals:
        """See `GapLaw`."""
        found: _Reals = self._walk(gap)[0] - np.log(gap)
        return found

    def log_survival(self, gap: _Reals) -> _Reals:
        """See `GapLaw`."""
        return self._walk(gap)[1]

    def sample(self, count: int, rng: np.random.Generator) -> _Reals:
        """See `GapLaw`."""
        which = rng.choice(len(self.weight), count, p=np.array(self.weight))
        found: _Reals = np.exp(rng.normal(np.array(self.mean)[which], np.array(self.sd)[which]))
        return found
