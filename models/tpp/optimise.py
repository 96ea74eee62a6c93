"""Minimise a smooth function of a few parameters: BFGS with central differences.

Nocedal and Wright, Numerical Optimization (2006), algorithm 6.1, with a backtracking line search.
scipy is a tool of the tests only, so the likelihoods bring their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

_Reals = NDArray[np.float64]
_STEP = 1e-5
_SUFFICIENT = 1e-4
_HALVINGS = 40
_STEEPEST = 1e12  # where the function is flat the inverse Hessian grows without end


def gradient(function: Callable[[_Reals], float], x: _Reals) -> _Reals:
    """Return the central difference gradient of `function` at x [n]."""
    found = np.empty(len(x))
    for i in range(len(x)):
        step = _STEP * max(1.0, abs(x[i]))
        up, down = x.copy(), x.copy()
        up[i] += step
        down[i] -= step
        found[i] = (function(up) - function(down)) / (2.0 * step)
    return found


def minimise(
    function: Callable[[_Reals], float],
    start: _Reals,
    iterations: int = 200,
    tolerance: float = 1e-7,
) -> tuple[_Reals, float]:
    """Return the minimiser found from `start` [n] and its value.

    Args:
        function: of float64[n]; a value that is not finite counts as infinitely bad.
        start: where it must be finite.
        iterations: at most.
        tolerance: of the gradient's largest part, and of the relative decrease per iteration.

    Raises:
        ValueError: the function is not finite at `start`.
    """
    x = np.asarray(start, np.float64).copy()
    value = function(x)
    if not math.isfinite(value):
        raise ValueError(f"expected a finite value at the start, found {value} at {x.tolist()}")
    inverse = np.eye(len(x))
    slope = gradient(function, x)
    for _ in range(iterations):
        if not np.all(np.isfinite(slope)) or np.abs(slope).max() < tolerance:
            break
        direction = -inverse @ slope
        if not np.abs(inverse).max() < _STEEPEST or direction @ slope >= 0.0:
            inverse = np.eye(len(x))
            direction = -slope
        # Parameters are logarithms: a step of more than 2 in one leads nowhere.
        direction *= min(1.0, 2.0 / np.abs(direction).max())
        length, after, found = 1.0, value, x
        for _ in range(_HALVINGS):
            found = x + length * direction
            after = function(found)
            if math.isfinite(after) and after <= value + _SUFFICIENT * length * (direction @ slope):
                break
            length *= 0.5
        else:
            break
        slope_after = gradient(function, found)
        if not np.all(np.isfinite(slope_after)):  # at the edge of where the function is finite
            return found, after
        step, change = found - x, slope_after - slope
        curvature = step @ change
        if curvature > 1e-14:
            rho = 1.0 / curvature
            left = np.eye(len(x)) - rho * np.outer(step, change)
            inverse = left @ inverse @ left.T + rho * np.outer(step, step)
        done = value - after < tolerance * 1e-3 * max(1.0, abs(value))
        x, value, slope = found, after, slope_after
        if done:
            break
    return x, value
