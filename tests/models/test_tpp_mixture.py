"""The log-normal mixture against scipy, numerical integration and its own inverse."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import integrate, special

from models.tpp import mixture


def _mixtures(count: int, seed: int = 3) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (count, 4))
    weights = logits - special.logsumexp(logits, axis=1, keepdims=True)
    return np.concatenate(
        [weights, rng.normal(0, 3, (count, 4)), rng.uniform(-2.5, 1.5, (count, 4))], 1
    )


def _scipy_log_survival(p: NDArray[np.float64], y: float, sign: float = 1.0) -> float:
    z = sign * (y - p[4:8]) * np.exp(-p[8:12])
    return float(special.logsumexp(p[:4] + special.log_ndtr(-z)))


@pytest.mark.parametrize("y", [-60.0, -5.0, -0.3, 0.0, 1.0, 7.5, 60.0])
def test_tails_equal_scipy(y: float) -> None:
    for p in _mixtures(50):
        assert mixture.mixture_log_survival(p, y) == pytest.approx(
            _scipy_log_survival(p, y), rel=1e-9, abs=1e-12
        )
        assert mixture.mixture_log_cdf(p, y) == pytest.approx(
            _scipy_log_survival(p, y, -1.0), rel=1e-9, abs=1e-12
        )


def test_survival_is_finite_where_its_exponential_is_zero() -> None:
    p = np.array([0.0, -50, -50, -50, 0, 0, 0, 0, 0, 0, 0, 0], float)
    for y, expected in ((37.5, special.log_ndtr(-37.5)), (300.0, special.log_ndtr(-300.0))):
        assert mixture.mixture_log_survival(p, y) == pytest.approx(expected, rel=1e-12)


def test_density_integrates_to_the_distribution() -> None:
    for p in _mixtures(10):
        for low, high in ((-60.0, -1.0), (-60.0, 2.0), (-60.0, 60.0)):
            area, _ = integrate.quad(
                lambda y: np.exp(mixture.mixture_log_pdf(p, y)),  # noqa: B023 (used at once)
                low, high, points=sorted(np.clip(p[4:8], low, high)), limit=500,
            )  # fmt: skip
            assert area == pytest.approx(mixture.mixture_cdf(p, high), abs=1e-7)


@pytest.mark.parametrize("log_survival", [-1e-6, -0.1, -0.7, -3.0, -20.0, -100.0, -700.0])
def test_upper_quantile_inverts_survival(log_survival: float) -> None:
    params = _mixtures(200)
    quantiles = mixture.upper_quantiles(params, np.full(200, log_survival))
    again = mixture.log_survivals(params, quantiles)
    np.testing.assert_allclose(again, log_survival, rtol=2e-6)


@pytest.mark.parametrize("log_survival", [-1e-3, -0.69, -0.7, -3.0, -40.0, -700.0, -1e5])
def test_normal_quantile_equals_scipy(log_survival: float) -> None:
    z = mixture.normal_upper_quantile(log_survival)
    assert special.log_ndtr(-z) == pytest.approx(log_survival, rel=1e-10)


def test_lower_bound_is_below_the_quantile() -> None:
    z = mixture.normal_upper_quantile(-12.0)
    for p in _mixtures(300):
        bound = mixture.mixture_quantile_lower_bound(p, z)
        assert bound <= mixture.mixture_upper_quantile(p, -12.0) + 1e-9


def test_one_component_is_a_normal() -> None:
    p = np.array([0.0, -80, -80, -80, 2.0, 0, 0, 0, np.log(0.5), 0, 0, 0], float)
    assert mixture.mixture_upper_quantile(p, np.log(0.5)) == pytest.approx(2.0, abs=1e-9)
    assert mixture.mixture_log_pdf(p, 2.0) == pytest.approx(-np.log(0.5 * np.sqrt(2 * np.pi)))


def test_weights_that_were_rounded_are_normalised() -> None:
    p = _mixtures(1)[0]
    shifted = p.copy()
    shifted[:4] += 0.01
    assert mixture.mixture_log_survival(shifted, 0.5) == pytest.approx(
        mixture.mixture_log_survival(p, 0.5), abs=1e-12
    )
    assert mixture.mixture_log_survival(shifted, -80.0) == 0.0


def test_vectorised_functions_check_shapes() -> None:
    with pytest.raises(ValueError, match=r"expected params \[n, 12\]"):
        mixture.log_pdfs(np.zeros((2, 11)), np.zeros(2))


def test_vectorised_functions_equal_the_scalar_ones() -> None:
    params = _mixtures(5)
    y = np.linspace(-3, 3, 5)
    for vector, scalar in (
        (mixture.log_pdfs, mixture.mixture_log_pdf),
        (mixture.log_survivals, mixture.mixture_log_survival),
        (mixture.log_cdfs, mixture.mixture_log_cdf),
    ):
        np.testing.assert_array_equal(
            vector(params, y), [scalar(p, v) for p, v in zip(params, y, strict=True)]
        )
