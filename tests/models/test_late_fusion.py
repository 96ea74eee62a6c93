"""Fusion learned from labels against its formulas, and against statsmodels' logistic regression."""

from __future__ import annotations

import math

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st

from models.late_fusion import fuse, learn_fusion, logistic, noisy_or, prior_weights


@given(st.floats(-800.0, 800.0))
@settings(derandomize=True, max_examples=50, deadline=None)
def test_logistic(x: float) -> None:
    wanted = 1.0 / (1.0 + math.exp(-x)) if x > -700.0 else 0.0
    assert logistic(x) == pytest.approx(wanted, rel=1e-12, abs=1e-300)


def test_noisy_or() -> None:
    assert noisy_or(0.0, 0.3) == 0.3
    assert noisy_or(1.0, 0.3) == 1.0
    assert noisy_or(0.5, 0.5) == 0.75


def test_one_label_is_one_newton_step() -> None:
    """Gain P x / (1 + s x'Px) with s = p (1 - p): Penny and Roberts 1999, eq. 11."""
    mean, cov = prior_weights((0.2, -1.0), (2.0, 0.5))
    x = np.array([1.0, 0.7])
    p = 1.0 / (1.0 + math.exp(-(0.2 - 0.7)))
    s = p * (1.0 - p)
    prior = cov.copy()
    gain = prior @ x / (1.0 + s * x @ prior @ x)
    learn_fusion(mean, cov, x[None], np.zeros(1), np.ones(1))
    assert mean == pytest.approx(np.array([0.2, -1.0]) + gain * (1.0 - p), rel=1e-12)
    assert cov == pytest.approx(np.linalg.inv(np.linalg.inv(prior) + s * np.outer(x, x)), rel=1e-10)


def test_what_the_other_cause_explains_is_not_learned() -> None:
    start = prior_weights((-4.0, 1.0), (1.0, 1.0))
    x = np.array([[1.0, 0.0]])
    moved = []
    for other in (0.0, 0.5, 0.999999):
        mean, cov = (each.copy() for each in start)
        learn_fusion(mean, cov, x, np.array([other]), np.ones(1))
        moved.append(mean[0] + 4.0)
    assert moved[0] > 10.0 * moved[1] > 0.0
    assert moved[2] == pytest.approx(0.0, abs=1e-5)


def test_an_unknown_label_teaches_nothing() -> None:
    mean, cov = prior_weights((1.0,), (1.0,))
    learn_fusion(mean, cov, np.ones((1, 1)), np.zeros(1), np.array([math.nan]))
    assert mean.tolist() == [1.0]
    assert cov.tolist() == [[1.0]]


@pytest.mark.compiled
def test_weights_approach_the_maximum_likelihood_and_stay_positive_definite() -> None:
    rng = np.random.default_rng(1)
    x = np.column_stack([np.ones(40_000), rng.normal(size=(40_000, 2))])
    y = (rng.uniform(size=40_000) < 1 / (1 + np.exp(-(x @ [-3.0, 1.0, -0.5])))).astype(np.float64)
    mean, cov = prior_weights((0.0, 0.0, 0.0), (3.0, 3.0, 3.0))
    learn_fusion(mean, cov, x, np.zeros(len(y)), y)
    fit = sm.Logit(y, x).fit(disp=0)
    assert mean == pytest.approx(fit.params, abs=0.06)
    assert np.linalg.eigvalsh(cov).min() > 0.0
    assert np.sqrt(np.diag(cov)) == pytest.approx(fit.bse, rel=0.1)
    out = np.empty(len(y))
    fuse(mean, x, np.full(len(y), 0.1), out)
    assert out == pytest.approx(1 - 0.9 * (1 - 1 / (1 + np.exp(-x @ mean))), rel=1e-9)


@pytest.mark.parametrize(("mean", "sd"), [((1.0,), (1.0, 2.0)), ((1.0,), (0.0,))])
def test_odd_priors_are_refused(mean: tuple[float, ...], sd: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="expected as many positive sd as means"):
        prior_weights(mean, sd)
