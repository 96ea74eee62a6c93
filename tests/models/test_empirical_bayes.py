"""Populations made with known parameters are found again."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import polygamma

from models.empirical_bayes import (
    FEWEST_DOF,
    STEADIEST_DOF,
    VariancePopulation,
    _trigamma_inverse,
    common_ratio,
    normal_population,
    variance_population,
)


def test_the_spread_of_means_is_freed_of_their_errors() -> None:
    rng = np.random.default_rng(1)
    errors = rng.uniform(0.05, 4.0, 4_000)
    seen = rng.normal(rng.normal(7.0, 1.2, 4_000), np.sqrt(errors))
    found = normal_population(seen, errors)
    assert found.mean == pytest.approx(7.0, abs=0.08)
    assert found.var == pytest.approx(1.44, rel=0.1)
    assert float(np.var(seen)) > 3.0  # what one would take it for


def test_a_population_of_one_mean_has_no_spread() -> None:
    rng = np.random.default_rng(2)
    found = normal_population(rng.normal(3.0, 0.5, 50), np.full(50, 0.5))
    assert found.var == 0.0
    assert found.mean == pytest.approx(3.0, abs=0.3)
    assert normal_population(np.full(5, 2.0), np.zeros(5)) == (2.0, 0.0)


def test_exact_means_have_their_sample_variance() -> None:
    x = np.array([1.0, 4.0, 6.0, 9.0])
    found = normal_population(x, np.zeros(4))
    assert found.mean == pytest.approx(5.0)
    assert found.var == pytest.approx(float(np.var(x, ddof=1)), rel=1e-6)


@pytest.mark.parametrize("dof", [6.0, 20.0])
def test_the_spread_of_variances_is_found(dof: float) -> None:
    rng = np.random.default_rng(3)
    behind = rng.integers(10, 100, 5_000).astype(float)
    true = 0.5 * dof / rng.chisquare(dof, 5_000)
    found = variance_population(true * rng.chisquare(behind) / behind, behind)
    assert found.scale == pytest.approx(0.5, rel=0.03)
    assert found.dof == pytest.approx(dof, rel=0.12)
    assert found.mean == pytest.approx(0.5 * dof / (dof - 2.0), rel=0.05)


def test_equal_variances_have_no_spread() -> None:
    rng = np.random.default_rng(4)
    found = variance_population(0.3 * rng.chisquare(30.0, 200) / 30.0, np.full(200, 30.0))
    assert found.dof > 100.0
    assert found.mean == pytest.approx(0.3, rel=0.05)
    assert variance_population(np.full(9, 2.0), np.full(9, 30.0)).dof == STEADIEST_DOF


def test_wild_variances_are_not_expected_beyond_twice_their_scale() -> None:
    assert VariancePopulation(1.0, 0.5).mean == FEWEST_DOF / (FEWEST_DOF - 2.0)
    found = variance_population(np.array([1e-4, 1.0, 1e4]), np.full(3, 20.0))
    assert math.isfinite(found.mean)


def test_one_member_is_no_population() -> None:
    with pytest.raises(ValueError, match="at least 2 members of a population, found 1"):
        normal_population(np.ones(1), np.ones(1))
    with pytest.raises(ValueError, match="at least 2 members of a population, found 1"):
        variance_population(np.ones(1), np.ones(1))


def test_the_trigamma_function_is_inverted() -> None:
    for x in (1e-5, 0.02, 1.0, 40.0):
        assert float(polygamma(1, _trigamma_inverse(x))) == pytest.approx(x, rel=1e-6)


def test_the_common_ratio_is_where_all_are_likeliest() -> None:
    ratios = np.logspace(-4, 0, 9)
    at = np.log(ratios)
    peaks = np.random.default_rng(5).normal(math.log(0.01), 0.3, 40)
    profiles = -0.5 * (at[None, :] - peaks[:, None]) ** 2
    assert common_ratio(profiles, ratios) == pytest.approx(0.01, rel=0.15)
    # Two entities that shifted, and gain a hundred nats by a moving level, do not rule.
    shifted = np.tile(100.0 * (at - at[0]) / (at[-1] - at[0]), (2, 1))
    assert common_ratio(np.vstack([profiles, shifted]), ratios) == pytest.approx(0.01, rel=0.15)


def test_a_ratio_at_the_edge_is_the_edge() -> None:
    ratios = np.logspace(-4, 0, 9)
    falling = np.tile(-np.arange(9.0), (3, 1))
    assert common_ratio(falling, ratios) == ratios[0]
    assert common_ratio(-falling, ratios) == ratios[-1]
    assert common_ratio(np.zeros((3, 9)), ratios) == ratios[0]
