"""Fits of one entity: against the simulation that made it, EM, and the likelihood itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from models.level_fit import (
    FEWEST_VALUES,
    MAX_VALUES,
    RATIOS,
    cross_check,
    fit_level,
    log_likelihood,
    moment_variances,
    noise_var_at,
    standardised_innovations,
    without_outliers,
)


def local_level(
    n: int, noise_var: float, level_noise_var: float, seed: int, level: float = 5.0
) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    steps = rng.normal(0.0, math.sqrt(level_noise_var), n)
    steps[0] = 0.0
    y: NDArray[np.float64] = level + np.cumsum(steps) + rng.normal(0.0, noise_var**0.5, n)
    return y


def test_maximum_likelihood_finds_the_variances_over_many_entities() -> None:
    fits = [fit_level(local_level(200, 0.5, 0.1, seed)) for seed in range(25)]
    assert {fit.how for fit in fits} == {"maximum likelihood"}
    assert np.mean([fit.noise_var for fit in fits]) == pytest.approx(0.5, rel=0.1)
    assert np.mean([fit.level_noise_var for fit in fits]) == pytest.approx(0.1, rel=0.25)
    # The first level, in units of the error that the fit claims for it.
    z = [(fit.level - 5.0) / math.sqrt(fit.level_var) for fit in fits]
    assert abs(float(np.mean(z))) < 0.6
    assert 0.6 < float(np.std(z)) < 1.5


@pytest.mark.compiled
def test_em_and_maximum_likelihood_agree() -> None:
    for seed in (1, 2):
        y = local_level(MAX_VALUES, 0.5, 0.25, seed)
        fit = cross_check(y, fit_level(y))
        assert fit.em_noise_var == pytest.approx(fit.noise_var, rel=0.12)
        assert fit.em_level_noise_var == pytest.approx(fit.level_noise_var, rel=0.5)
        # EM climbs towards the maximum, and cannot pass it.
        assert -1.0 < fit.em_log_likelihood - fit.log_likelihood < 1e-3


def test_the_likelihood_is_that_of_statsmodels() -> None:
    from statsmodels.tsa.statespace.structural import UnobservedComponents

    y = local_level(60, 0.7, 0.2, 3)
    theirs = UnobservedComponents(y, level="llevel")
    theirs.ssm.loglikelihood_burn = 1
    # Their diffuse beginning is a variance of a million, ours is exactly the first value.
    assert log_likelihood(y, 0.7, 0.2) == pytest.approx(float(theirs.loglike([0.7, 0.2])), abs=1e-3)


def test_no_variances_on_a_grid_are_likelier_than_the_fit() -> None:
    y = local_level(120, 0.3, 0.03, 4)
    fit = fit_level(y)
    grid = [
        log_likelihood(y, fit.noise_var * a, fit.level_noise_var * b)
        for a in (0.8, 0.95, 1.05, 1.25)
        for b in (0.5, 0.9, 1.1, 2.0)
    ]
    assert fit.log_likelihood > max(grid)
    assert fit.log_likelihood >= max(fit.profile) - 1e-3
    best = int(np.argmax(fit.profile))
    assert RATIOS[best] == pytest.approx(fit.level_noise_var / fit.noise_var, rel=1.5)


def test_the_profile_holds_the_noise_variance_of_each_ratio() -> None:
    y = local_level(150, 0.3, 0.03, 5)
    fit = fit_level(y)
    for i in (4, 12, 17):
        var = noise_var_at(fit, float(RATIOS[i]))
        assert var == pytest.approx(fit.profile_var[i], rel=1e-9)
        assert log_likelihood(y, var, RATIOS[i] * var) == pytest.approx(fit.profile[i], abs=1e-6)
        for off in (0.9, 1.1):
            assert log_likelihood(y, off * var, RATIOS[i] * off * var) < fit.profile[i]


def test_a_fit_follows_scale_and_shift() -> None:
    y = local_level(80, 0.4, 0.05, 6)
    fit, other = fit_level(y), fit_level(1e4 * y - 7e6)
    assert other.noise_var == pytest.approx(1e8 * fit.noise_var, rel=1e-3)
    assert other.level == pytest.approx(1e4 * fit.level - 7e6, rel=1e-4)


def test_innovations_are_standard_and_independent() -> None:
    z = np.concatenate(
        [
            standardised_innovations(y, fit_level(y))
            for y in (local_level(200, 0.5, 0.1, seed) for seed in range(20))
        ]
    )
    assert float(np.var(z)) == pytest.approx(1.0, abs=0.03)
    assert abs(float(np.mean(z[1:] * z[:-1]))) < 0.05


def test_outliers_are_left_out_and_counted() -> None:
    y = local_level(100, 0.5, 1e-6, 7)
    y[[10, 50]] = 60.0, -40.0
    fit = fit_level(y)
    assert (fit.trimmed, fit.count) == (2, 98)
    assert fit.noise_var == pytest.approx(0.5, rel=0.35)
    mostly = np.array([1.0] * 20 + [9.0])
    assert len(without_outliers(mostly)) == 21


def test_a_constant_has_no_variance_and_nothing_to_check() -> None:
    for value in (7.0, 0.0, -1e6):
        fit = fit_level(np.full(40, value))
        assert (fit.how, fit.level, fit.noise_var) == ("constant", value, 0.0)
        assert cross_check(np.full(40, value), fit) is fit
        assert len(standardised_innovations(np.full(40, value), fit)) == 0


def test_missing_values_are_left_out_and_too_few_refused() -> None:
    y = local_level(60, 0.5, 0.1, 8)
    with_gaps = np.insert(y, [5, 20, 20], np.nan)
    assert fit_level(with_gaps) == fit_level(y)
    with pytest.raises(ValueError, match=f"at least {FEWEST_VALUES} values, found 3"):
        fit_level(np.array([1.0, 2.0, np.nan, np.inf, 3.0]))


@pytest.mark.parametrize(
    "y",
    [
        np.tile([0.0, 1.0], 20),  # alternates: all noise
        np.arange(50.0),  # a line: all level
        np.repeat([1.0, 2.0], 10),  # one step
        1e-9 * np.random.default_rng(1).normal(size=40),
        1e29 * np.random.default_rng(1).normal(size=40),
        np.append(np.full(30, 3.0), 3.1),
    ],
)
def test_odd_series_are_fitted_with_finite_numbers(y: NDArray[np.float64]) -> None:
    fit = fit_level(y)
    numbers = [fit.level, fit.level_var, fit.noise_var, fit.level_noise_var, *fit.profile]
    assert np.isfinite(numbers).all()
    assert fit.noise_var >= 0.0
    assert fit.level_noise_var >= 0.0
    assert np.isfinite(standardised_innovations(y, fit)).all()


def test_moments_start_near_the_truth() -> None:
    noise_var, level_noise_var = moment_variances(local_level(20_000, 0.5, 0.2, 9))
    assert noise_var == pytest.approx(0.5, rel=0.05)
    assert level_noise_var == pytest.approx(0.2, rel=0.12)
