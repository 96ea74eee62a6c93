"""Empirical Bayes: what a population is like, given imprecise fits of some of its members."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import polygamma

FEWEST_DOF = 4.0  # below it the mean of the variances is ruled by the largest of them
STEADIEST_DOF = 1e6
GAIN_TRIMMED = 0.05  # of the entities, those whose level moves most


class NormalPopulation(NamedTuple):
    """Members' means are normal with this mean and variance."""

    mean: float
    var: float


class VariancePopulation(NamedTuple):
    """Members' variances are scaled inverse chi squared: scale * dof / chi2(dof)."""

    scale: float
    dof: float

    @property
    def mean(self) -> float:
        """Expected variance of a new member, at most twice the scale."""
        dof = max(self.dof, FEWEST_DOF)
        return self.scale * dof / (dof - 2.0)


def normal_population(mean: NDArray[np.float64], mean_var: NDArray[np.float64]) -> NormalPopulation:
    """Estimate the members' mean and variance from estimates of each (Paule and Mandel 1982).

    The variance is the one at which the weighted squares about the weighted mean sum up to what is
    expected of them, n - 1; 0 where the estimates' own errors explain all of the spread.

    Args:
        mean: float64[n], n >= 2, estimate of each member's mean.
        mean_var: float64[n], variance of that estimate, >= 0.

    Raises:
        ValueError: fewer than two members.
    """
    if len(mean) < 2:
        raise ValueError(f"expected at least 2 members of a population, found {len(mean)}")
    errors = np.maximum(mean_var, 1e-12)

    def excess(var: float) -> tuple[float, float]:
        weight = 1.0 / (errors + var)
        centre = float(np.sum(weight * mean) / np.sum(weight))
        return float(np.sum(weight * (mean - centre) ** 2)) - (len(mean) - 1), centre

    low, high = 0.0, float(np.var(mean)) * len(mean) / (len(mean) - 1) + 1e-12
    over, centre = excess(low)
    if over <= 0.0:
        return NormalPopulation(centre, 0.0)
    for _ in range(60):
        middle = 0.5 * (low + high)
        over, centre = excess(middle)
        low, high = (middle, high) if over > 0.0 else (low, middle)
    return NormalPopulation(centre, 0.5 * (low + high))


def variance_population(
    variance: NDArray[np.float64], dof: NDArray[np.float64]
) -> VariancePopulation:
    """Estimate how the members' variances are spread (Smyth 2004, section 6.2).

    The moments of the log variances are used, so one wild member does not rule.

    Args:
        variance: float64[n], n >= 2, estimate of each member's variance, > 0.
        dof: float64[n], degrees of freedom behind it, > 0.

    Raises:
        ValueError: fewer than two members.
    """
    if len(variance) < 2:
        raise ValueError(f"expected at least 2 members of a population, found {len(variance)}")
    half = 0.5 * dof
    e = np.log(variance) - polygamma(0, half) + np.log(half)
    spread = float(np.var(e, ddof=1) - np.mean(polygamma(1, half)))
    centre = float(np.mean(e))
    if spread <= 1.0 / STEADIEST_DOF:
        return VariancePopulation(math.exp(centre), STEADIEST_DOF)
    half_dof = min(_trigamma_inverse(spread), 0.5 * STEADIEST_DOF)
    scale = math.exp(centre + float(polygamma(0, half_dof)) - math.log(half_dof))
    return VariancePopulation(scale, 2.0 * half_dof)


def _trigamma_inverse(x: float) -> float:
    """Return y with trigamma(y) = x > 0, by Newton's method (Smyth 2004, appendix)."""
    y = 0.5 + 1.0 / x
    for _ in range(50):
        trigamma = float(polygamma(1, y))
        step = trigamma * (1.0 - trigamma / x) / float(polygamma(2, y))
        y += step
        if -step / y < 1e-10:
            break
    return y


def common_ratio(profiles: NDArray[np.float64], ratios: NDArray[np.float64]) -> float:
    """Return the one ratio under which all members together are most likely.

    Alone, a member's ratio is often 0 by chance (the pile-up of maximum likelihood at the edge,
    Shephard and Harvey 1990); the likelihoods of all of them tell it. Members that gain most by a
    moving level (GAIN_TRIMMED of them) are left out: a shift is not what is usual.

    Args:
        profiles: float64[n, R], each member's log likelihood at each ratio, nats.
        ratios: float64[R], rising, equally far apart in their logarithm.

    Returns:
        The best ratio, refined by a parabola through its neighbours; the first of `ratios` where
        nothing speaks for more.
    """
    gain = profiles.max(axis=1) - profiles[:, 0]
    kept = np.argsort(gain, kind="stable")[: max(1, math.ceil((1.0 - GAIN_TRIMMED) * len(gain)))]
    total = profiles[kept].sum(axis=0)
    best = int(np.argmax(total))
    if best in (0, len(ratios) - 1):
        return float(ratios[best])
    left, top, right = total[best - 1 : best + 2]
    bend = left - 2.0 * top + right
    shift = 0.5 * (left - right) / bend if bend < 0.0 else 0.0
    return float(ratios[best] * (ratios[best + 1] / ratios[best]) ** shift)
