"""The local-level filter against other people's filters, a dense solve, and rough treatment."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pykalman import KalmanFilter
from scipy import integrate, stats
from statsmodels.tsa.statespace.structural import UnobservedComponents

from models.baselines.local_level import (
    CLIP,
    CUT,
    GAUSSIAN,
    LIMIT,
    OUTLIER,
    SHIFT,
    local_level_step,
    noise_var_step,
    outlier_surprise,
    shift_step,
)

LEVEL, LEVEL_VAR, NOISE_VAR, LEVEL_NOISE_VAR = 5.0, 3.0, 0.7, 0.05
DOF = 4.0

Track = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def series(n: int = 60, seed: int = 1) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    level = LEVEL + np.cumsum(rng.normal(0, LEVEL_NOISE_VAR**0.5, n))
    noisy: NDArray[np.float64] = level + rng.normal(0, NOISE_VAR**0.5, n)
    return noisy


def walk(y: NDArray[np.float64], dof: float = GAUSSIAN) -> Track:
    """Return the filtered means and variances, and the standardised innovations."""
    level, level_var = LEVEL, LEVEL_VAR
    found = []
    for value in y:
        level, level_var, z, _ = local_level_step(
            value, level, level_var, NOISE_VAR, LEVEL_NOISE_VAR, dof
        )
        found.append((level, level_var, z))
    columns = np.array(found).T
    return columns[0], columns[1], columns[2]


def test_equals_pykalman() -> None:
    y = series()
    # pykalman gives the state at the first observation, so the level's noise is added to it.
    theirs = KalmanFilter(
        transition_matrices=[[1.0]],
        observation_matrices=[[1.0]],
        transition_covariance=[[LEVEL_NOISE_VAR]],
        observation_covariance=[[NOISE_VAR]],
        initial_state_mean=[LEVEL],
        initial_state_covariance=[[LEVEL_VAR + LEVEL_NOISE_VAR]],
    )
    mean, cov = theirs.filter(y)
    level, level_var, _ = walk(y)
    np.testing.assert_allclose(level, mean[:, 0], rtol=0, atol=1e-9)
    np.testing.assert_allclose(level_var, cov[:, 0, 0], rtol=0, atol=1e-9)


def test_equals_statsmodels() -> None:
    y = series(seed=2)
    model = UnobservedComponents(y, "llevel")
    model.ssm.initialize_known(np.array([LEVEL]), np.array([[LEVEL_VAR + LEVEL_NOISE_VAR]]))
    model.ssm.tolerance = 0.0  # to the end, not until the variance seems steady
    theirs = model.filter([NOISE_VAR, LEVEL_NOISE_VAR])
    level, level_var, z = walk(y)
    np.testing.assert_allclose(level, theirs.filtered_state[0], rtol=0, atol=1e-9)
    np.testing.assert_allclose(level_var, theirs.filtered_state_cov[0, 0], rtol=0, atol=1e-9)
    errors = theirs.filter_results
    standard = errors.forecasts_error[0] / np.sqrt(errors.forecasts_error_cov[0, 0])
    np.testing.assert_allclose(z, standard, rtol=0, atol=1e-9)


def test_equals_one_dense_joint_gaussian_solve() -> None:
    """The last level given all observations, and their joint density, without any recursion."""
    y = series(n=25, seed=3)
    n = len(y)
    steps = np.minimum.outer(np.arange(1, n + 1), np.arange(1, n + 1))
    level_cov = LEVEL_VAR + LEVEL_NOISE_VAR * steps
    y_cov = level_cov + NOISE_VAR * np.eye(n)
    gain = np.linalg.solve(y_cov, level_cov[:, -1])
    level, level_var, z = walk(y)
    assert level[-1] == pytest.approx(LEVEL + gain @ (y - LEVEL), abs=1e-9)
    assert level_var[-1] == pytest.approx(level_cov[-1, -1] - gain @ level_cov[:, -1], abs=1e-9)
    innovation_var = np.concatenate([[LEVEL_VAR], level_var[:-1]]) + LEVEL_NOISE_VAR + NOISE_VAR
    log_density = np.sum(stats.norm.logpdf(z) - 0.5 * np.log(innovation_var))
    joint = stats.multivariate_normal(np.full(n, LEVEL), y_cov).logpdf(y)
    assert log_density == pytest.approx(joint, abs=1e-9)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(
    y=st.floats(-1e6, 1e6),
    level=st.floats(-1e6, 1e6),
    level_var=st.floats(0, 1e6),
    noise_var=st.floats(1e-6, 1e6),
    level_noise_var=st.floats(0, 1e3),
    dof=st.sampled_from([GAUSSIAN, 1.0, DOF, 30.0]),
)
def test_a_step_stays_between_what_was_known_and_what_was_seen(
    y: float, level: float, level_var: float, noise_var: float, level_noise_var: float, dof: float
) -> None:
    after, after_var, z, weight = local_level_step(
        y, level, level_var, noise_var, level_noise_var, dof
    )
    slack = 1e-9 * (abs(level) + abs(y) + 1.0)
    assert min(y, level) - slack <= after <= max(y, level) + slack
    assert 0.0 <= after_var <= (level_var + level_noise_var) * (1 + 1e-12)
    assert 0.0 < weight <= (1.0 if dof == GAUSSIAN else 1.0 + 1.0 / dof)
    assert z * (y - level) >= 0.0


def test_the_weight_is_that_of_a_student_t() -> None:
    _, _, z, weight = local_level_step(9.0, 5.0, 3.0, 1.0, 0.0, DOF)
    assert z == pytest.approx(2.0)
    assert weight == pytest.approx(5.0 / 8.0)


def test_an_outlier_pulls_the_robust_level_by_a_bounded_amount() -> None:
    settled, settled_var, _ = walk(series())
    level, level_var = settled[-1], settled_var[-1]
    sd = (level_var + LEVEL_NOISE_VAR + NOISE_VAR) ** 0.5
    pulls = {}
    for size in (1.0, 2.0, 10.0, 50.0, 1e3, 1e6):
        after, *_ = local_level_step(
            level + size * sd, level, level_var, NOISE_VAR, LEVEL_NOISE_VAR, DOF
        )
        pulls[size] = (after - level) / sd
    assert max(pulls.values()) < 0.6
    assert pulls[50.0] < 0.05
    assert pulls[1e6] < pulls[1e3] < pulls[50.0] < pulls[10.0]
    plain, *_ = local_level_step(
        level + 50.0 * sd, level, level_var, NOISE_VAR, LEVEL_NOISE_VAR, GAUSSIAN
    )
    assert (plain - level) / sd > 10.0


def test_the_robust_level_follows_a_true_shift() -> None:
    y = series(200, seed=4)
    shift = 10.0
    y[100:] += shift
    level, _, z = walk(y, DOF)
    assert abs(level[95] - level[105]) < 0.6 * shift
    assert abs(z[100]) > 5.0
    np.testing.assert_allclose(level[150:], walk(y)[0][150:], atol=0.6)


def test_a_constant_series_is_quiet() -> None:
    level, level_var, noise_var = LEVEL, LEVEL_VAR, NOISE_VAR
    for n in range(2000):
        level, level_var, z, _ = local_level_step(
            5.0, level, level_var, noise_var, 2e-5 * noise_var, DOF
        )
        noise_var = noise_var_step(noise_var, z, 1.0 / (min(n, 200) + 20))
        assert z == 0.0
    assert level == 5.0
    assert 1e-6 <= noise_var < 0.01
    assert outlier_surprise(z) == 0.0


def test_noise_var_learns_that_of_normal_data() -> None:
    rng = np.random.default_rng(5)
    for sd in (0.2, 1.0, 4.0):
        noise_var, tail = 1.0, []
        for n, y in enumerate(rng.normal(0, sd, 6000)):
            noise_var = noise_var_step(noise_var, y / noise_var**0.5, 1.0 / (min(n, 200) + 20))
            tail.append(noise_var)
        assert np.mean(tail[2000:]) == pytest.approx(sd * sd, rel=0.1)


def test_one_outlier_changes_the_noise_var_by_a_bounded_factor() -> None:
    assert noise_var_step(2.0, 1e9, 0.05) == pytest.approx(2.0 * (1 + 0.05 * (CUT * 9.0 - 1)))
    assert noise_var_step(2.0, 0.0, 0.05) == pytest.approx(1.9)
    assert noise_var_step(1e-6, 0.0, 0.5) == 1e-6


def test_cut_makes_up_for_the_clipped_square() -> None:
    mean, _ = integrate.quad(
        lambda z: min(z * z, CLIP * CLIP) * stats.norm.pdf(z), -12, 12, limit=200
    )
    assert pytest.approx(1.0, abs=1e-3) == CUT * mean


@given(st.floats(-1e12, 1e12))
@settings(derandomize=True, deadline=None)
def test_outlier_surprise_is_hubers_loss(z: float) -> None:
    inside = min(abs(z), OUTLIER)
    assert outlier_surprise(z) == pytest.approx(0.5 * inside**2 + OUTLIER * (abs(z) - inside))


def _plain_cusum(z: NDArray[np.float64]) -> list[float]:
    total, found = 0.0, []
    for value in z:
        u = float(np.clip(value, -CLIP, CLIP))
        ratio = float(stats.norm.logpdf(u, SHIFT) - stats.norm.logpdf(u))
        total = min(max(0.0, total + ratio), LIMIT)
        found.append(total)
    return found


def test_the_shift_cusum_sums_log_likelihood_ratios() -> None:
    rng = np.random.default_rng(6)
    z = np.concatenate([rng.normal(0, 1, 60), rng.normal(1.5, 1, 40), [50.0], rng.normal(0, 1, 60)])
    found, total = [], 0.0
    for value in z:
        total = shift_step(total, value)
        found.append(total)
    np.testing.assert_allclose(found, _plain_cusum(z), rtol=0, atol=1e-9)
    assert max(found) == LIMIT
    assert found[-1] < 5.0
