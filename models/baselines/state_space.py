"""Leaves of the structural models: exact transitions of each block, prediction and update.

A state is made of blocks: local level, (damped) trend, one pair for each seasonal harmonic,
autoregression, regression coefficients. Their transitions are applied block by block: with 8
states F P F' would be 1,024 multiplications, of which 2x2 rotations need 200.

All variances are multiples of the observation's noise variance; elapsed times are in intervals of
the spec. Sources: Harvey (1989), ch. 9 (continuous time); Durbin and Koopman (2012), ch. 3 and 4.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

# Kinds of blocks.
LEVEL = 0  # integrated white noise; 1 state
TREND = 1  # level and slope, the slope an Ornstein-Uhlenbeck process or integrated noise; 2 states
SEASON = 2  # one harmonic: a rotating pair; 2 states
DECAY = 3  # Ornstein-Uhlenbeck, the AR(1) with a positive coefficient; 1 state
AUTOREGRESSION = 4  # AR(p) in companion form, by whole intervals; p states
COEFFICIENT = 5  # of a regressor; 1 state

# Columns of a block's row in `blocks`.
KIND, START, SIZE, NOISE, RATE, LEVEL_NOISE = 0, 1, 2, 3, 4, 5
# Columns of a block's row in `steps`: what `transition` computes of an elapsed time.
STEPS = 5
_SMALL = 0.02  # below this rate * time the closed forms cancel, and their series is exact


@njit(cache=True)
def damped_noise(rate, time):  # type: ignore[no-untyped-def]
    """Return the covariance that white noise on a damped slope gives level and slope.

    d level = slope dt, d slope = -rate slope dt + dW: with x = rate * time and E = exp(-x),
    var(level) = (x - 2 (1 - E) + (1 - E^2) / 2) / rate^3, cov = (1 - E)^2 / (2 rate^2),
    var(slope) = (1 - E^2) / (2 rate). At rate 0 they are t^3/3, t^2/2, t: the integrated Wiener
    process. The level's variance cancels to third order, so small x takes its series.

    Args:
        rate: of the damping, per interval, >= 0.
        time: elapsed, intervals, >= 0.

    Returns:
        (var(level), cov, var(slope)) for noise of variance 1 per interval.
    """
    x = rate * time
    if x < _SMALL:
        # Each term: (-1)^n (2^(n-1) - 2) x^n / n! for n = 3, 4, ..., divided by x^3.
        level = 1 / 3 - x * (1 / 4 - x * (7 / 60 - x * (1 / 24 - x * (31 / 2520 - x / 320))))
        cov = 1 / 2 - x * (1 / 2 - x * (7 / 24 - x * (1 / 8 - x * (31 / 720 - x / 80))))
        slope = 1 - x * (1 - x * (2 / 3 - x * (1 / 3 - x * (2 / 15 - x * 2 / 45))))
        return level * time**3, cov * time * time, slope * time
    faded = -math.expm1(-x)
    faded_twice = -math.expm1(-2.0 * x)
    return (
        (x - 2.0 * faded + 0.5 * faded_twice) / rate**3,
        0.5 * faded * faded / (rate * rate),
        0.5 * faded_twice / rate,
    )


@njit(cache=True)
def transition(blocks, time, longest, steps):  # type: ignore[no-untyped-def]
    """Compute each block's transition over an elapsed time into `steps`.

    Args:
        blocks: float64[b, 6], as `structural_spec.compile_spec` makes it.
        time: elapsed, intervals, >= 0.
        longest: intervals; the noise of a longer gap is that of `longest`, since a level unseen
            for so long is unknown in any case and t^3 would leave single precision. Seasons
            rotate by the whole gap.
        steps: float64[b, STEPS], filled.
    """
    noise_time = min(time, longest)
    for b in range(len(blocks)):
        kind = blocks[b, KIND]
        if kind == SEASON:
            angle = blocks[b, RATE] * time
            steps[b, 0] = math.cos(angle)
            steps[b, 1] = math.sin(angle)
            steps[b, 2] = blocks[b, NOISE] * noise_time
        elif kind == TREND:
            rate = blocks[b, RATE]
            x = rate * noise_time
            level, cov, slope = damped_noise(rate, noise_time)
            steps[b, 0] = -math.expm1(-x) / rate if x > 0.0 else noise_time
            steps[b, 1] = math.exp(-x)
            steps[b, 2] = blocks[b, NOISE] * level + blocks[b, LEVEL_NOISE] * noise_time
            steps[b, 3] = blocks[b, NOISE] * cov
            steps[b, 4] = blocks[b, NOISE] * slope
        elif kind == DECAY:
            x = blocks[b, RATE] * noise_time
            steps[b, 0] = math.exp(-x)
            steps[b, 2] = blocks[b, NOISE] * -math.expm1(-2.0 * x)
        elif kind == AUTOREGRESSION:
            steps[b, 0] = math.floor(noise_time + 0.5)
        else:
            steps[b, 2] = blocks[b, NOISE] * noise_time


@njit(cache=True)
def predict_mean(blocks, powers, steps, mean):  # type: ignore[no-untyped-def]
    """Carry the mean over the elapsed time of `steps`: mean <- F mean.

    Args:
        blocks: float64[b, 6].
        powers: float64[k, p, p], the autoregression's transition over 2^k intervals.
        steps: float64[b, STEPS], of `transition`.
        mean: float64[d], changed in place.
    """
    for b in range(len(blocks)):
        kind = blocks[b, KIND]
        at = int(blocks[b, START])
        if kind == SEASON:
            first, second = mean[at], mean[at + 1]
            mean[at] = steps[b, 0] * first + steps[b, 1] * second
            mean[at + 1] = steps[b, 0] * second - steps[b, 1] * first
        elif kind == TREND:
            mean[at] += steps[b, 0] * mean[at + 1]
            mean[at + 1] *= steps[b, 1]
        elif kind == AUTOREGRESSION:
            scratch = np.empty(powers.shape[1])
            whole = int(steps[b, 0])
            for k in range(len(powers)):
                if (whole >> k) & 1:
                    _multiply(powers[k], at, mean, scratch)
        elif kind == DECAY:
            mean[at] *= steps[b, 0]


@njit(cache=True)
def predict_cov(blocks, powers, noises, steps, noise_ratio, cov):  # type: ignore[no-untyped-def]
    """Carry the covariance over the elapsed time of `steps`: cov <- F cov F' + Q.

    Args:
        blocks: float64[b, 6].
        powers: float64[k, p, p], the autoregression's transition over 2^k intervals.
        noises: float64[k, p, p], its process noise over 2^k intervals.
        steps: float64[b, STEPS], of `transition`.
        noise_ratio: factor of all process noise.
        cov: float64[d, d], symmetric, changed in place; afterwards its lower triangle counts.
    """
    for b in range(len(blocks)):
        kind = blocks[b, KIND]
        at = int(blocks[b, START])
        if kind == SEASON:
            _rotate(at, steps[b, 0], steps[b, 1], cov)
            cov[at, at] += noise_ratio * steps[b, 2]
            cov[at + 1, at + 1] += noise_ratio * steps[b, 2]
        elif kind == TREND:
            _drift(at, steps[b], noise_ratio, cov)
        elif kind == AUTOREGRESSION:
            whole = int(steps[b, 0])
            for k in range(len(powers)):
                if (whole >> k) & 1:
                    _companion(at, powers[k], noises[k], noise_ratio, cov)
        else:
            if kind == DECAY:
                _fade(at, steps[b, 0], cov)
            cov[at, at] += noise_ratio * steps[b, 2]


@njit(cache=True)
def _rotate(at, cosine, sine, cov):  # type: ignore[no-untyped-def]
    """Rotate the rows, then the columns, of a seasonal pair."""
    for j in range(len(cov)):
        first, second = cov[at, j], cov[at + 1, j]
        cov[at, j] = cosine * first + sine * second
        cov[at + 1, j] = cosine * second - sine * first
    for j in range(len(cov)):
        first, second = cov[j, at], cov[j, at + 1]
        cov[j, at] = cosine * first + sine * second
        cov[j, at + 1] = cosine * second - sine * first


@njit(cache=True)
def _drift(at, step, noise_ratio, cov):  # type: ignore[no-untyped-def]
    """Move a level by its slope, damp the slope, and add the noise of both."""
    reach, kept = step[0], step[1]
    for j in range(len(cov)):
        cov[at, j] += reach * cov[at + 1, j]
        cov[at + 1, j] *= kept
    for j in range(len(cov)):
        cov[j, at] += reach * cov[j, at + 1]
        cov[j, at + 1] *= kept
    cov[at, at] += noise_ratio * step[2]
    cov[at, at + 1] += noise_ratio * step[3]
    cov[at + 1, at] += noise_ratio * step[3]
    cov[at + 1, at + 1] += noise_ratio * step[4]


@njit(cache=True)
def _fade(at, kept, cov):  # type: ignore[no-untyped-def]
    """Let one state fade towards 0."""
    for j in range(len(cov)):
        cov[at, j] *= kept
    for j in range(len(cov)):
        cov[j, at] *= kept


@njit(cache=True)
def _multiply(matrix, at, vector, scratch):  # type: ignore[no-untyped-def]
    """Multiply vector[at : at + p] by a matrix float64[p, p], in place."""
    p = len(matrix)
    for i in range(p):
        scratch[i] = vector[at + i]
    for i in range(p):
        total = 0.0
        for k in range(p):
            total += matrix[i, k] * scratch[k]
        vector[at + i] = total


@njit(cache=True)
def _companion(at, power, noise, noise_ratio, cov):  # type: ignore[no-untyped-def]
    """Carry an autoregression over 2^k intervals by its matrix for them."""
    scratch = np.empty(len(power))
    for j in range(len(cov)):
        _multiply(power, at, cov[:, j], scratch)
    for j in range(len(cov)):
        _multiply(power, at, cov[j], scratch)
    for i in range(len(power)):
        for j in range(len(power)):
            cov[at + i, at + j] += noise_ratio * noise[i, j]


@njit(cache=True)
def project(cov, loading, pull):  # type: ignore[no-untyped-def]
    """Return loading' cov loading, and fill `pull` with cov loading (float64[d])."""
    var = 0.0
    for i in range(len(loading)):
        total = 0.0
        for j in range(len(loading)):
            total += cov[i, j] * loading[j]
        pull[i] = total
        var += loading[i] * total
    return max(var, 0.0)


@njit(cache=True)
def condition_mean(mean, pull, innovation, innovation_var):  # type: ignore[no-untyped-def]
    """Update the mean with an innovation: mean += pull / innovation_var * innovation.

    Args:
        mean: float64[d], changed in place.
        pull: float64[d], cov loading, before the update.
        innovation: the observation less what was expected.
        innovation_var: loading' cov loading plus the observation's noise, > 0.
    """
    share = innovation / innovation_var
    for i in range(len(mean)):
        mean[i] += pull[i] * share


@njit(cache=True)
def condition_cov(cov, pull, innovation_var):  # type: ignore[no-untyped-def]
    """Update the covariance with an observation: cov -= pull pull' / innovation_var.

    Args:
        cov: float64[d, d], changed in place, symmetric to the last bit afterwards.
        pull: float64[d], cov loading, before the update.
        innovation_var: loading' cov loading plus the observation's noise, > 0.
    """
    for i in range(len(cov)):
        gain = pull[i] / innovation_var
        for j in range(i + 1):
            cov[i, j] -= gain * pull[j]
            cov[j, i] = cov[i, j]


@njit(cache=True)
def start_level(loading, level, innovation, mean, cov, pull):  # type: ignore[no-untyped-def]
    """Begin a level of which nothing is known with its first observation: exact diffuse start.

    level = y - (rest of the state) - noise, so var(level) = 1 + var(rest), and the level's
    covariance with another state is minus that state's with the rest (Durbin and Koopman 2012,
    sec. 5.2, for one diffuse element).

    Args:
        loading: float64[d], of this observation; loading[level] is 1.
        level: index of the level, which has mean 0 and no covariance yet.
        innovation: observation less what the rest of the state expected.
        mean: float64[d], changed in place.
        cov: float64[d, d], changed in place.
        pull: float64[d], scratch.
    """
    rest_var = project(cov, loading, pull)
    mean[level] = innovation
    for j in range(len(mean)):
        cov[level, j] = -pull[j]
        cov[j, level] = -pull[j]
    cov[level, level] = 1.0 + rest_var


@njit(cache=True)
def unpack(packed, row, cov):  # type: ignore[no-untyped-def]
    """Fill a symmetric matrix float64[d, d] from the lower triangle in a row of `packed`."""
    at = 0
    for i in range(len(cov)):
        for j in range(i + 1):
            cov[i, j] = packed[row, at]
            cov[j, i] = packed[row, at]
            at += 1


@njit(cache=True)
def pack(cov, rounding, packed, row):  # type: ignore[no-untyped-def]
    """Store the lower triangle of a covariance, its diagonal made larger by `rounding`.

    Rounding to single precision moves entry (i, j) by at most u sqrt(cov_ii cov_jj), u = 2^-24:
    off the diagonal no eigenvalue of the scaled matrix falls by more than (d - 1) u, and the
    diagonal by u. With rounding = (d + 1) u the stored matrix is positive semi-definite whatever
    the number of updates; one u is left for double precision's own errors
    (docs/decisions/0008-covariance-form.md).
    """
    at = 0
    for i in range(len(cov)):
        for j in range(i):
            packed[row, at] = cov[i, j]
            at += 1
        packed[row, at] = cov[i, i] * (1.0 + rounding)
        at += 1
