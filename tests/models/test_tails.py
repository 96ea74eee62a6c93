"""Log tail probabilities against scipy, and where scipy underflows against exact series."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special, stats

from models.baselines.tails import (
    MAX_SURPRISE,
    log_beta_binomial_sf,
    log_beta_cdf,
    log_complement,
    log_negative_binomial_sf,
    log_sum,
    log_t_sf,
    log_t_two_sided,
    surprise,
)


@given(st.floats(0.05, 300.0), st.floats(0.05, 300.0), st.floats(1e-6, 1.0 - 1e-6))
@settings(derandomize=True, max_examples=200, deadline=None)
def test_incomplete_beta(a: float, b: float, x: float) -> None:
    wanted = special.betainc(a, b, x)
    found = log_beta_cdf(a, b, x, 1.0 - x)
    if 1e-290 < wanted < 1.0:
        assert math.exp(found) == pytest.approx(wanted, rel=1e-8)
    assert found <= 0.0


def test_incomplete_beta_at_its_ends() -> None:
    assert log_beta_cdf(2.0, 3.0, 0.0, 1.0) == -math.inf
    assert log_beta_cdf(2.0, 3.0, 1.0, 0.0) == 0.0


@pytest.mark.parametrize("dof", [0.5, 1.0, 3.7, 30.0, 2000.0])
@pytest.mark.parametrize("t", [-30.0, -2.0, -1e-9, 0.0, 1e-5, 0.7, 3.0, 12.0])
def test_student_t(dof: float, t: float) -> None:
    assert log_t_sf(t, dof) == pytest.approx(stats.t.logsf(t, dof), rel=1e-8, abs=1e-12)
    wanted = math.log(2.0) + stats.t.logsf(abs(t), dof)
    # scipy's own log of a half loses what |t| = 1e-9 takes from it.
    assert log_t_two_sided(t, dof) == pytest.approx(wanted, rel=1e-8, abs=1e-9)


def test_student_t_where_the_probability_underflows() -> None:
    """P(T > t) -> C t**-dof / dof; at t = 1e100 with 10 dof that is 1e-1000."""
    dof = 10.0
    constant = math.lgamma(5.5) - math.lgamma(5.0) - 0.5 * math.log(dof * math.pi)
    constant += 5.5 * math.log(dof) - math.log(dof)
    assert log_t_sf(1e100, dof) == pytest.approx(constant - dof * math.log(1e100), rel=1e-12)


@pytest.mark.parametrize(("shape", "rate", "exposure"), [(0.3, 2.0, 5.0), (40.0, 8.0, 1.0)])
@pytest.mark.parametrize("k", [0, 1, 3, 20, 90])
def test_negative_binomial(shape: float, rate: float, exposure: float, k: int) -> None:
    found = log_negative_binomial_sf(float(k), shape, rate, exposure)
    wanted = stats.nbinom.logsf(k - 1, shape, rate / (rate + exposure))
    assert found == pytest.approx(wanted, rel=1e-8, abs=1e-12)


def test_negative_binomial_is_the_mixture_of_poissons() -> None:
    wanted, _ = integrate.quad(
        lambda rate: stats.poisson.sf(4, 3.0 * rate) * stats.gamma.pdf(rate, 2.5, scale=1 / 1.5),
        0.0, 60.0, epsabs=1e-13,
    )  # fmt: skip
    assert math.exp(log_negative_binomial_sf(5.0, 2.5, 1.5, 3.0)) == pytest.approx(wanted, rel=1e-8)


@pytest.mark.parametrize(("a", "b"), [(0.4, 7.0), (3.0, 60.0), (500.0, 400.0)])
@pytest.mark.parametrize("k", [0, 1, 5, 40, 63])
def test_beta_binomial(a: float, b: float, k: int) -> None:
    j = np.arange(k, 64)
    log_pmf = stats.betabinom.logpmf(j, 63, a, b)
    wanted = special.logsumexp(log_pmf)
    assert log_beta_binomial_sf(float(k), 63.0, a, b) == pytest.approx(wanted, rel=1e-8, abs=1e-10)


@given(st.floats(-700.0, 0.0), st.floats(-700.0, 0.0))
@settings(derandomize=True, max_examples=100, deadline=None)
def test_sums_of_logs(a: float, b: float) -> None:
    assert log_sum(a, b) == pytest.approx(np.logaddexp(a, b), abs=1e-12)


def test_sums_with_nothing() -> None:
    assert log_sum(-math.inf, -math.inf) == -math.inf
    assert log_sum(-3.0, -math.inf) == -3.0


@pytest.mark.parametrize("p", [1e-12, 0.1, 0.5, 0.9, 1.0 - 1e-9])
def test_complement(p: float) -> None:
    assert log_complement(math.log(p)) == pytest.approx(math.log1p(-p), rel=1e-6, abs=1e-15)


def test_limits_of_surprise() -> None:
    assert log_complement(0.0) == -math.inf
    assert surprise(1e-17) == 0.0
    assert surprise(-2.5) == 2.5
    assert surprise(-math.inf) == MAX_SURPRISE
