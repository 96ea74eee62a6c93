"""The predicted next gap: a mixture of normals of y = log(gap) - m.

After Shchur, Bilos and Guennemann, Intensity-Free Learning of Temporal Point Processes (2020),
equation 5, in log space.

`params` are float64 [12]: 4 log weights, 4 means, 4 log sds. Weights are normalised here, since
stored ones are rounded. Densities are of y: for the density of the gap subtract its log.
All functions are compiled scalars, for the kernels; the vectorised ones end in `s`.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.baselines.renewal import log_normal_log_survival
from models.tpp.spec import COMPONENTS

Reals = NDArray[np.float64] | NDArray[np.float32]

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
_STEPS = 60


@njit(cache=True)
def mixture_log_pdf(params, y):  # type: ignore[no-untyped-def]
    """Log density of y, nats."""
    best, total = -math.inf, 0.0
    mass_best, mass = -math.inf, 0.0
    for k in range(COMPONENTS):
        log_sd = params[8 + k]
        z = (y - params[4 + k]) * math.exp(-log_sd)
        term = params[k] - log_sd - _HALF_LOG_2PI - 0.5 * z * z
        best, total = _add(best, total, term)
        mass_best, mass = _add(mass_best, mass, params[k])
    return best + math.log(total) - mass_best - math.log(mass)


@njit(cache=True)
def _add(best, total, term):  # type: ignore[no-untyped-def]
    """Add exp(term) to the sum exp(best) * total, keeping its largest term as the scale."""
    if term > best:
        return term, total * math.exp(best - term) + 1.0
    return best, total + math.exp(term - best)


@njit(cache=True)
def _log_tail(params, y, sign):  # type: ignore[no-untyped-def]
    best, total = -math.inf, 0.0
    mass_best, mass = -math.inf, 0.0
    for k in range(COMPONENTS):
        z = sign * (y - params[4 + k]) * math.exp(-params[8 + k])
        best, total = _add(best, total, params[k] + log_normal_log_survival(z))
        mass_best, mass = _add(mass_best, mass, params[k])
    # Rounding must not make a probability of more than 1.
    return min(best + math.log(total) - mass_best - math.log(mass), 0.0)


@njit(cache=True)
def mixture_log_survival(params, y):  # type: ignore[no-untyped-def]
    """Log P(Y > y), nats, finite far into the tail (erfc itself ends at 1e-300)."""
    return _log_tail(params, y, 1.0)


@njit(cache=True)
def mixture_log_cdf(params, y):  # type: ignore[no-untyped-def]
    """Log P(Y <= y), nats, finite far into the lower tail."""
    return _log_tail(params, y, -1.0)


@njit(cache=True)
def mixture_cdf(params, y):  # type: ignore[no-untyped-def]
    """P(Y <= y), of full relative precision in the lower tail."""
    return math.exp(_log_tail(params, y, -1.0))


@njit(cache=True)
def normal_upper_quantile(log_survival):  # type: ignore[no-untyped-def]
    """Return z with log P(Z > z) = log_survival for a standard normal, to 1e-12.

    Args:
        log_survival: below 0; above -1e-15 the answer is the lowest z that float64 tells, -8.

    Newton's method inside a bracket: P(Z > z) <= exp(-z^2 / 2) / 2 for z >= 0.
    """
    low = -8.0
    high = 0.0
    if log_survival < -0.6931471805599453:
        low = 0.0
        high = math.sqrt(-2.0 * (log_survival + 0.6931471805599453))
    z = high
    for _ in range(_STEPS):
        error = log_normal_log_survival(z) - log_survival
        if error > 0.0:
            low = z
        else:
            high = z
        # slope of log survival: -density / survival
        slope = -math.exp(-0.5 * z * z - _HALF_LOG_2PI - (error + log_survival))
        after = z - error / slope if slope < 0.0 else 0.5 * (low + high)
        if not low <= after <= high:
            after = 0.5 * (low + high)
        if abs(after - z) <= 1e-12 * (1.0 + abs(z)):
            return after
        z = after
    return z


@njit(cache=True)
def mixture_quantile_lower_bound(params, z):  # type: ignore[no-untyped-def]
    """Return a y that is not above the mixture's upper quantile at the normal's upper quantile z.

    At the least of the components' own quantiles every component has at least the survival asked
    for, so the mixture has: a cheap bound of a silence deadline.
    """
    bound = math.inf
    for k in range(COMPONENTS):
        bound = min(bound, params[4 + k] + z * math.exp(params[8 + k]))
    return bound


@njit(cache=True)
def mixture_upper_quantile(params, log_survival):  # type: ignore[no-untyped-def]
    """Return y with log P(Y > y) = log_survival (< 0), to 1e-9.

    The components' own quantiles bracket it; Newton's method on the log, which is nearly a
    parabola in the tail, is kept inside the bracket by halving.
    """
    z = normal_upper_quantile(log_survival)
    low, high = math.inf, -math.inf
    for k in range(COMPONENTS):
        own = params[4 + k] + z * math.exp(params[8 + k])
        low = min(low, own)
        high = max(high, own)
    y = 0.5 * (low + high)
    for _ in range(_STEPS):
        error = mixture_log_survival(params, y) - log_survival
        if error > 0.0:
            low = y
        else:
            high = y
        slope = -math.exp(mixture_log_pdf(params, y) - (error + log_survival))
        after = y - error / slope if slope < 0.0 else 0.5 * (low + high)
        if not low < after < high:
            after = 0.5 * (low + high)
        if abs(after - y) <= 1e-9:
            return after
        y = after
    return y


@njit(cache=True)
def _each(params, y, what, out):  # type: ignore[no-untyped-def]
    for i in range(len(y)):
        if what == 0:
            out[i] = mixture_log_pdf(params[i], y[i])
        elif what == 1:
            out[i] = mixture_log_survival(params[i], y[i])
        elif what == 2:
            out[i] = mixture_log_cdf(params[i], y[i])
        else:
            out[i] = mixture_upper_quantile(params[i], y[i])


def _map(params: Reals, y: Reals, what: int) -> NDArray[np.float64]:
    params = np.ascontiguousarray(params, np.float64)
    y = np.ascontiguousarray(y, np.float64)
    if params.ndim != 2 or params.shape[1] != 3 * COMPONENTS or y.shape != params.shape[:1]:
        raise ValueError(
            f"expected params [n, {3 * COMPONENTS}] and y [n], "
            f"found {list(params.shape)} and {list(y.shape)}"
        )
    out = np.empty(len(y))
    _each(params, y, what, out)
    return out


def log_pdfs(params: Reals, y: Reals) -> NDArray[np.float64]:
    """Return the log density of y [n] under the mixtures params [n, 12]."""
    return _map(params, y, 0)


def log_survivals(params: Reals, y: Reals) -> NDArray[np.float64]:
    """Return log P(Y > y) of y [n] under the mixtures params [n, 12]."""
    return _map(params, y, 1)


def log_cdfs(params: Reals, y: Reals) -> NDArray[np.float64]:
    """Return log P(Y <= y) of y [n] under the mixtures params [n, 12]."""
    return _map(params, y, 2)


def upper_quantiles(params: Reals, log_survival: Reals) -> NDArray[np.float64]:
    """Return the y [n] at which the mixtures params [n, 12] have log survival [n]."""
    return _map(params, log_survival, 3)
