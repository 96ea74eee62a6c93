"""Fit a local level to one entity's values: maximum likelihood, and EM as a cross-check.

Model (Durbin and Koopman 2012, ch. 2), in the order of the values as the job's filter has it, so
without regard to the time between them: y_n = level_n + e_n, level_n = level_{n-1} + w_n, with
e ~ N(0, noise_var), w ~ N(0, level_noise_var). A missing value is left out: the job's level does
not move with it either.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.baselines.local_level import GAUSSIAN, local_level_step

MAX_VALUES = 200  # of an entity; more say little about the population and cost much
TRIM_SD = 5.0  # robust standard deviations beyond which a value is an outlier
FEWEST_VALUES = 10  # fewer do not tell the two variances apart
EM_ITERATIONS = 20
# Level noise over observation noise; below the first a level stands still over 200 values.
RATIOS = np.logspace(-6.0, 1.0, 22)


@dataclass(frozen=True, slots=True)
class LevelFit:
    """The local level of one entity.

    Attributes:
        how: "maximum likelihood", or "moments" where it did not converge, or "constant".
        count: values that were fitted.
        trimmed: values that were left out as outliers.
        level: smoothed level at the first value.
        level_var: its variance.
        noise_var: variance of the observation noise.
        level_noise_var: variance that the level gains with each value.
        log_likelihood: given the first value, nats.
        profile: log likelihood at each of RATIOS, the noise variance at its best; nats.
        profile_var: that noise variance.
        em_noise_var: as EM has it; NaN where it was not asked.
        em_level_noise_var: likewise.
        em_log_likelihood: likewise.
    """

    how: str
    count: int
    trimmed: int
    level: float
    level_var: float
    noise_var: float
    level_noise_var: float
    log_likelihood: float
    profile: tuple[float, ...]
    profile_var: tuple[float, ...]
    em_noise_var: float = math.nan
    em_level_noise_var: float = math.nan
    em_log_likelihood: float = math.nan


def without_outliers(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Leave out what lies beyond TRIM_SD robust standard deviations of the median.

    The scale is 1.4826 times the median absolute deviation (Huber 1981); where more than half of
    `x` is one number it is 0, and nothing is left out.

    Args:
        x: float64[n], finite.
    """
    off = np.abs(x - np.median(x))
    scale = 1.4826 * float(np.median(off))
    return x[off <= TRIM_SD * scale] if scale > 0.0 else x


def fit_level(values: NDArray[np.float64]) -> LevelFit:
    """Fit the local level of one entity by maximum likelihood (statsmodels).

    Args:
        values: float64[n], transformed, in order; NaN is missing. The first MAX_VALUES count.

    Returns:
        The fit, without EM.

    Raises:
        ValueError: fewer than FEWEST_VALUES are finite.
    """
    finite = values[np.isfinite(values)][:MAX_VALUES]
    if len(finite) < FEWEST_VALUES:
        raise ValueError(f"expected at least {FEWEST_VALUES} values, found {len(finite)}")
    y = without_outliers(finite)
    trimmed, scale = len(finite) - len(y), float(np.std(y))
    if scale <= 1e-9 * (1.0 + float(np.max(np.abs(y)))):
        flat = (0.0,) * len(RATIOS)
        return LevelFit("constant", len(y), trimmed, float(y[0]), 0.0, 0.0, 0.0, 0.0, flat, flat)
    # In units of its own spread: the optimiser's steps and tolerances are absolute.
    centre = float(np.mean(y))
    scaled = (y - centre) / scale
    noise_var, level_noise_var, how = _maximise(scaled)
    level, level_var = _first_level(scaled, noise_var, level_noise_var)
    jacobian = (len(y) - 1) * math.log(scale)
    profile, profile_var = _profile(scaled, RATIOS)
    return LevelFit(
        how=how,
        count=len(y),
        trimmed=trimmed,
        level=centre + scale * level,
        level_var=scale**2 * level_var,
        noise_var=scale**2 * noise_var,
        level_noise_var=scale**2 * level_noise_var,
        log_likelihood=log_likelihood(scaled, noise_var, level_noise_var) - jacobian,
        profile=tuple((profile - jacobian).tolist()),
        profile_var=tuple((scale**2 * profile_var).tolist()),
    )


def noise_var_at(fit: LevelFit, ratio: float) -> float:
    """Return the entity's noise variance where its level noise is `ratio` of it.

    Alone, maximum likelihood may give all of the variance to the level and none to the noise; the
    population's ratio does not.
    """
    at = np.interp(math.log(ratio), np.log(RATIOS), np.log(np.maximum(fit.profile_var, 1e-300)))
    return math.exp(float(at))


def cross_check(values: NDArray[np.float64], fit: LevelFit) -> LevelFit:
    """Fit the same values by EM (pykalman; Shumway and Stoffer 1982) and note what it finds.

    Args:
        values: as `fit_level` had them.
        fit: what it found; a constant has nothing to check.
    """
    if fit.how == "constant":
        return fit
    from pykalman import KalmanFilter

    y = without_outliers(values[np.isfinite(values)][:MAX_VALUES])
    noise_var, level_noise_var = moment_variances(y)
    model = KalmanFilter(
        transition_matrices=[[1.0]],
        observation_matrices=[[1.0]],
        transition_covariance=[[level_noise_var]],
        observation_covariance=[[noise_var]],
        # What a diffuse beginning leaves after the first value.
        initial_state_mean=[y[0]],
        initial_state_covariance=[[noise_var + level_noise_var]],
        em_vars=["transition_covariance", "observation_covariance"],
    ).em(y[1:], n_iter=EM_ITERATIONS)
    noise_var = float(model.observation_covariance[0, 0])
    level_noise_var = float(model.transition_covariance[0, 0])
    return replace(
        fit,
        em_noise_var=noise_var,
        em_level_noise_var=level_noise_var,
        em_log_likelihood=log_likelihood(y, noise_var, level_noise_var),
    )


def moment_variances(y: NDArray[np.float64]) -> tuple[float, float]:
    """Return (noise_var, level_noise_var) by the moments of the differences.

    Each is at least 1% of their mean square.

    Var(diff) = level_noise_var + 2 noise_var, Cov(diff_n, diff_{n+1}) = -noise_var.
    """
    step = np.diff(y)
    square = float(np.mean(step**2))
    floor = 0.01 * square + 1e-12
    noise_var = max(-float(np.mean(step[1:] * step[:-1])), floor)
    return noise_var, max(square - 2.0 * noise_var, floor)


def log_likelihood(y: NDArray[np.float64], noise_var: float, level_noise_var: float) -> float:
    """Return the log likelihood of y[1:] given y[0] and a diffuse level, nats."""
    z, log_sd = _innovations(y, noise_var, level_noise_var)
    return float(-0.5 * np.sum(z * z) - np.sum(log_sd) - 0.5 * len(z) * math.log(2.0 * math.pi))


def standardised_innovations(values: NDArray[np.float64], fit: LevelFit) -> NDArray[np.float64]:
    """Return what one-step predictions with the fitted variances leave, in their own units.

    Args:
        values: as `fit_level` had them.
        fit: what it found.

    Returns:
        float64[count - 1], standard normal and independent where the model holds; empty for a
        constant.
    """
    if fit.how == "constant":
        return np.empty(0)
    y = without_outliers(values[np.isfinite(values)][:MAX_VALUES])
    z: NDArray[np.float64] = _innovations(y, max(fit.noise_var, 1e-12), fit.level_noise_var)[0]
    return z


def _maximise(y: NDArray[np.float64]) -> tuple[float, float, str]:
    from statsmodels.tsa.statespace.structural import UnobservedComponents

    begin = moment_variances(y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where it does not converge; that is asked below
        model = UnobservedComponents(y, level="llevel")
        found = model.fit(start_params=begin, disp=0, maxiter=100, cov_type="none")
    noise_var, level_noise_var = (float(p) for p in found.params)
    good = math.isfinite(noise_var) and math.isfinite(level_noise_var)
    if good and (found.mle_retvals["converged"] or found.llf > float(model.loglike(begin))):
        return max(noise_var, 1e-9), max(level_noise_var, 0.0), "maximum likelihood"
    return *begin, "moments"


def _first_level(
    y: NDArray[np.float64], noise_var: float, level_noise_var: float
) -> tuple[float, float]:
    """Return mean and variance of the first level given all values: the filter run backwards.

    A random walk looks the same from its end, so the last filtered level of the reversed series is
    the smoothed first one.
    """
    level, level_var = float(y[-1]), noise_var
    for value in y[-2::-1].tolist():
        level, level_var, _, _ = local_level_step(
            value, level, level_var, noise_var, level_noise_var, GAUSSIAN
        )
    return level, level_var


@njit(cache=True)
def _innovations(y, noise_var, level_noise_var):  # type: ignore[no-untyped-def]
    """Return (z, log sd) of each value but the first, which a diffuse level takes as it is."""
    n = len(y)
    standardised = np.empty(n - 1)
    log_sd = np.empty(n - 1)
    level, level_var = y[0], noise_var
    for i in range(1, n):
        log_sd[i - 1] = 0.5 * math.log(level_var + level_noise_var + noise_var)
        level, level_var, standardised[i - 1], _ = local_level_step(
            y[i], level, level_var, noise_var, level_noise_var, 0.0
        )
    return standardised, log_sd


@njit(cache=True)
def _profile(y, ratios):  # type: ignore[no-untyped-def]
    """Concentrate the noise variance out of the likelihood (Harvey 1989, eq. 3.4.5).

    Returns:
        (log likelihood, noise variance) at each ratio.
    """
    out = np.empty(len(ratios))
    noise_vars = np.empty(len(ratios))
    n = len(y) - 1
    for i in range(len(ratios)):
        z, log_sd = _innovations(y, 1.0, ratios[i])
        noise_vars[i] = max(np.mean(z * z), 1e-12)
        spread = math.log(2.0 * math.pi * noise_vars[i])
        out[i] = -0.5 * n * (spread + 1.0) - np.sum(log_sd)
    return out, noise_vars
