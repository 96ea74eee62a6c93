"""Local-level Kalman filter with a robust update: what an entity's values normally are.

Model (Durbin and Koopman 2012, ch. 2): y_n = level_n + e_n, level_n = level_{n-1} + w_n,
e ~ N(0, noise_var), w ~ N(0, level_noise_var). A heavy outlier is scored in full but moves the
level little: its observation variance is divided by the weight that a Student-t likelihood with
`dof` degrees of freedom gives it (one step of the EM for t errors, Lange, Little and Taylor 1989).
"""

from __future__ import annotations

import math

from numba import njit

GAUSSIAN = 0.0  # dof that turns the robust update off
SHIFT = 1.5  # standard deviations of the level shift that the CUSUM looks for
OUTLIER = 4.0
LIMIT = 40.0  # nats; a CUSUM without a limit would take as long to fall as it rose
CUT = 1.0050  # 1 / E min(z**2, 9) of a standard normal
CLIP = 3.0  # standard deviations that one event adds to the CUSUM at most


@njit(cache=True)
def local_level_step(y, level, level_var, noise_var, level_noise_var, dof):  # type: ignore[no-untyped-def]
    """Predict, score and update with one observation.

    Args:
        y: the observation, finite.
        level: mean of the level given everything before.
        level_var: its variance, >= 0.
        noise_var: variance of the observation noise, > 0.
        level_noise_var: variance that the level gains before this observation, >= 0.
        dof: degrees of freedom of the robust weight; `GAUSSIAN` for the plain Kalman filter.

    Returns:
        (level, level_var, z, weight): the filtered mean and variance, the standardised innovation,
        and the robust weight in (0, 1 + 1/dof].
    """
    predicted_var = level_var + level_noise_var
    innovation = y - level
    innovation_var = predicted_var + noise_var
    z = innovation / math.sqrt(innovation_var)
    weight = 1.0 if dof == GAUSSIAN else (dof + 1.0) / (dof + z * z)
    observed_var = noise_var / weight
    gain = predicted_var / (predicted_var + observed_var)
    # gain * observed_var, not (1 - gain) * predicted_var: it cannot go below zero by rounding.
    return level + gain * innovation, gain * observed_var, z, weight


@njit(cache=True)
def noise_var_step(noise_var, z, learning_rate):  # type: ignore[no-untyped-def]
    """Move the noise variance towards what the innovation says of it.

    The square is cut at CLIP sd, so that no event multiplies the variance by more than
    1 + learning_rate * (CLIP**2 - 1); CUT makes up for what a normal distribution loses by it. The
    weighted square of the robust level would leave a standard deviation a quarter too small. A
    floor keeps constant series from dividing by zero.
    """
    square = CUT * min(z * z, CLIP * CLIP)
    return max(noise_var * (1.0 + learning_rate * (square - 1.0)), 1e-6)


@njit(cache=True)
def outlier_surprise(z):  # type: ignore[no-untyped-def]
    """Half the squared innovation, linear beyond OUTLIER sd: Huber's (1964) loss, in nats."""
    size = abs(z)
    if size <= OUTLIER:
        return 0.5 * size * size
    return OUTLIER * (size - 0.5 * OUTLIER)


@njit(cache=True)
def shift_step(cusum, z):  # type: ignore[no-untyped-def]
    """Page's (1954) CUSUM for a shift of the mean by +SHIFT sd; the log likelihood ratio, nats."""
    u = min(max(z, -CLIP), CLIP)
    return min(max(0.0, cusum + SHIFT * (u - 0.5 * SHIFT)), LIMIT)
