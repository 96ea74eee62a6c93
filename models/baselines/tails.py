"""Logs of tail probabilities, compiled: what turns a prediction into an honest p-value.

They stay exact where the probability itself underflows, so that no surprise becomes infinite.
"""

from __future__ import annotations

import math

from numba import njit

TINY = 1e-300  # Lentz's method divides by no zero
TOLERANCE = 1e-15
MAX_TERMS = 20_000
MAX_SURPRISE = 1e4  # nats; beyond it no evidence is told apart, and float32 sums stay finite


@njit(cache=True)
def log_sum(a, b):  # type: ignore[no-untyped-def]
    """Return log(exp(a) + exp(b)); minus infinity is the log of zero."""
    high = max(a, b)
    if high == -math.inf:
        return high
    return high + math.log1p(math.exp(min(a, b) - high))


@njit(cache=True)
def log_complement(log_p):  # type: ignore[no-untyped-def]
    """Return log(1 - exp(log_p)) for log_p <= 0 (Maechler 2012: two branches keep the digits)."""
    if log_p >= 0.0:
        return -math.inf
    if log_p > -0.6931471805599453:
        return math.log(-math.expm1(log_p))
    return math.log1p(-math.exp(log_p))


@njit(cache=True)
def surprise(log_p):  # type: ignore[no-untyped-def]
    """Return -log p, at least 0 (rounding) and at most MAX_SURPRISE."""
    return min(max(0.0, -log_p), MAX_SURPRISE)


@njit(cache=True)
def _beta_fraction(a, b, x):  # type: ignore[no-untyped-def]
    """Continued fraction of the incomplete beta function, by Lentz's method (DLMF 8.17.22)."""
    c = 1.0
    d = 1.0 - (a + b) * x / (a + 1.0)
    d = 1.0 / (d if abs(d) > TINY else TINY)
    value = d
    for m in range(1, MAX_TERMS):
        for odd in range(2):
            if odd == 0:
                term = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m))
            else:
                term = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0))
            d = 1.0 + term * d
            d = 1.0 / (d if abs(d) > TINY else TINY)
            c = 1.0 + term / c
            c = c if abs(c) > TINY else TINY
            value *= c * d
        if abs(c * d - 1.0) < TOLERANCE:
            break
    return value


@njit(cache=True)
def log_beta_cdf(a, b, x, y):  # type: ignore[no-untyped-def]
    """Return log I_x(a, b), the log of the regularised incomplete beta function.

    Args:
        a: > 0.
        b: > 0.
        x: in [0, 1].
        y: 1 - x, given apart so that neither loses its digits near zero.
    """
    if x <= 0.0:
        return -math.inf
    if y <= 0.0:
        return 0.0
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front += a * math.log(x) + b * math.log(y)
    if x < (a + 1.0) / (a + b + 2.0):
        return min(0.0, front + math.log(_beta_fraction(a, b, x) / a))
    return log_complement(min(0.0, front + math.log(_beta_fraction(b, a, y) / b)))


@njit(cache=True)
def log_t_sf(t, dof):  # type: ignore[no-untyped-def]
    """Return log P(T > t) of Student's t with `dof` > 0 degrees of freedom."""
    square = t * t
    half = log_beta_cdf(0.5 * dof, 0.5, dof / (dof + square), square / (dof + square))
    half -= 0.6931471805599453
    return half if t >= 0.0 else log_complement(half)


@njit(cache=True)
def log_t_two_sided(t, dof):  # type: ignore[no-untyped-def]
    """Return log P(|T| > |t|) of Student's t."""
    square = t * t
    return log_beta_cdf(0.5 * dof, 0.5, dof / (dof + square), square / (dof + square))


@njit(cache=True)
def log_negative_binomial_sf(k, shape, rate, exposure):  # type: ignore[no-untyped-def]
    """Return log P(N >= k), N ~ Poisson(lambda exposure), lambda ~ Gamma(shape, rate).

    P(N >= k) = I_x(k, shape) with x = exposure / (rate + exposure).
    """
    if k <= 0.0:
        return 0.0
    total = rate + exposure
    return log_beta_cdf(k, shape, exposure / total, rate / total)


@njit(cache=True)
def log_beta_binomial_sf(k, n, a, b):  # type: ignore[no-untyped-def]
    """Return log P(X >= k) for X ~ BetaBinomial(n, a, b), summed from the far end.

    Args:
        k: integer as a float, <= n.
        n: number of trials.
        a: > 0.
        b: > 0.
    """
    if k <= 0.0:
        return 0.0
    term = math.lgamma(n + a) - math.lgamma(n + a + b) + math.lgamma(a + b) - math.lgamma(a)
    total = term
    j = n
    while j > k:
        # P(j - 1) / P(j)
        term += math.log(j / (n - j + 1.0) * (n - j + b) / (j - 1.0 + a))
        total = log_sum(total, term)
        j -= 1.0
    return min(0.0, total)
