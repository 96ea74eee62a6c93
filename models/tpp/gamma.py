"""Tails of the gamma distribution in logs, compiled: Poisson and chi-squared tails follow."""

from __future__ import annotations

import math

from numba import njit

_TERMS = 2000


@njit(cache=True)
def log_gamma_tails(shape, x):  # type: ignore[no-untyped-def]
    """Return (log P(G <= x), log P(G > x)) of a gamma variable with `shape` > 0 and scale 1.

    The tail that the rule computes is of full relative precision however small it is, the other
    one is its complement: series below shape + 1, Legendre's continued fraction above (Abramowitz
    and Stegun 6.5.29 and 6.5.31, by Lentz's method).
    """
    if x <= 0.0:
        return -math.inf, 0.0
    scale = shape * math.log(x) - x - math.lgamma(shape)
    if x < shape + 1.0:
        term = 1.0 / shape
        total = term
        for k in range(1, _TERMS):
            term *= x / (shape + k)
            total += term
            if term < 1e-16 * total:
                break
        lower = min(scale + math.log(total), -1e-300)
        return lower, _log_complement(lower)
    b = x + 1.0 - shape
    c = 1e300
    d = 1.0 / b
    fraction = d
    for i in range(1, _TERMS):
        a = -i * (i - shape)
        b += 2.0
        d = 1.0 / (a * d + b)
        c = b + a / c
        fraction *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    upper = min(scale + math.log(fraction), -1e-300)
    return _log_complement(upper), upper


@njit(cache=True)
def _log_complement(log_p):  # type: ignore[no-untyped-def]
    """Log of 1 - p, by whichever form loses nothing; at least the log of float64's epsilon."""
    if log_p > -0.6931471805599453:
        return math.log(max(-math.expm1(log_p), 1e-16))
    return math.log1p(-math.exp(log_p))


@njit(cache=True)
def log_poisson_tails(count, mean):  # type: ignore[no-untyped-def]
    """Return the logs of P(N < count) + P(N = count) / 2 and of P(N > count) + P(N = count) / 2.

    The mid-p values (Lancaster 1961) of a Poisson variable N with `mean` > 0.
    """
    at = count * math.log(mean) - mean - math.lgamma(count + 1.0)
    # P(N > count) = P(Gamma(count + 1) <= mean)
    above, below_or_at = log_gamma_tails(count + 1.0, mean)
    if count < mean:
        # The lower tail is the small one: P(N <= count) less half of its largest term.
        lower = below_or_at + math.log1p(-0.5 * min(math.exp(at - below_or_at), 1.0))
        return lower, _log_complement(min(lower, -1e-300))
    upper = above if above > at else at
    upper += math.log(math.exp(above - upper) + 0.5 * math.exp(at - upper))
    upper = min(upper, -1e-300)
    return _log_complement(upper), upper
