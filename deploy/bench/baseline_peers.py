"""The models that baselines are compared with: pykalman, river and simdkalman, one event at a time.

A program of its own with nothing of eddy in it, so that `eddy bench baselines --peers-python` can
run it in another environment. It writes JSON: {"versions", "systems", "left_out"}.
"""

from __future__ import annotations

import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import numpy.typing as npt

ENTITIES = 1_000  # that simdkalman carries side by side
PERIOD = 288  # a day of five minutes
HARMONICS = 3
REPEATS = 5
Floats = npt.NDArray[np.float64]
Measured = dict[str, float]


def matrices(season: bool) -> tuple[Floats, Floats, Floats]:
    """Return transition, process noise and observation matrix of the model that eddy runs.

    Args:
        season: level, trend and a day of 3 harmonics (8 states) in place of a local level.
    """
    if not season:
        return np.eye(1), np.array([[0.05]]), np.ones((1, 1))
    transition = np.zeros((8, 8))
    transition[:2, :2] = [[1.0, 1.0], [0.0, 1.0]]
    for k in range(1, HARMONICS + 1):
        angle = 2.0 * math.pi * k / PERIOD
        at = 2 * k
        transition[at : at + 2, at : at + 2] = [
            [math.cos(angle), math.sin(angle)],
            [-math.sin(angle), math.cos(angle)],
        ]
    noise = 1e-4 * np.eye(8)
    noise[0, 0] = 0.05
    observation = np.array([[1.0, 0.0] + [1.0, 0.0] * HARMONICS])
    return transition, noise, observation


def measure(step: Callable[[float], object], values: Floats, per_step: int = 1) -> Measured:
    """Time a step over all values several times.

    Args:
        step: takes a value.
        values: float64[n].
        per_step: entities that one step serves.

    Returns:
        Microseconds for one event of one entity, the median of the repeats, and how many events.
    """
    for value in values[:20]:
        step(value)
    seconds = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        for value in values:
            step(value)
        seconds.append(time.perf_counter() - begin)
    events = len(values) * per_step
    return {"us_per_event": 1e6 * statistics.median(seconds) / events, "events": events}


def pykalman_step(season: bool) -> Callable[[float], object]:
    """Return a step of pykalman's `filter_update`."""
    from pykalman import KalmanFilter

    transition, noise, observation = matrices(season)
    d = len(transition)
    model = KalmanFilter(transition, observation, noise, np.eye(1), np.zeros(d), np.zeros(1))
    state = [np.zeros(d), np.eye(d)]

    def step(value: float) -> None:
        state[:] = model.filter_update(state[0], state[1], observation=np.array([value]))

    return step


def simdkalman_step(season: bool, entities: int) -> Callable[[float], object]:
    """Return a step of simdkalman for one entity, or for many that see a value at once."""
    import simdkalman

    transition, noise, observation = matrices(season)
    d = len(transition)
    model = simdkalman.KalmanFilter(transition, noise, observation, np.eye(1))
    state = [np.zeros((entities, d, 1)), np.tile(np.eye(d), (entities, 1, 1))]

    def step(value: float) -> None:
        mean, cov = model.predict_next(state[0], state[1])
        state[0], state[1] = model.update(mean, cov, np.full((entities, 1, 1), value))[:2]

    return step


def river_step(season: bool) -> Callable[[float], object]:
    """Return a step of river's Holt-Winters smoothing: a forecast, then learning."""
    from river import time_series

    if season:
        model = time_series.HoltWinters(alpha=0.2, beta=0.05, gamma=0.05, seasonality=PERIOD)
    else:
        model = time_series.HoltWinters(alpha=0.2)
    for n in range(2 * PERIOD):
        model.learn_one(float(n % 7))

    def step(value: float) -> None:
        model.forecast(horizon=1)
        model.learn_one(value)

    return step


def main() -> None:
    """Measure what can be imported."""
    values = np.cumsum(np.random.default_rng(1).normal(0.0, 0.2, 4_000))
    found: dict[str, dict[str, object]] = {"versions": {}, "systems": {}, "left_out": {}}
    makers: dict[str, list[tuple[str, Callable[[bool], Callable[[float], object]], int]]] = {
        "pykalman": [("filter_update", pykalman_step, 1)],
        "river": [("HoltWinters", river_step, 1)],
        "simdkalman": [
            ("one entity", lambda season: simdkalman_step(season, 1), 1),
            ("1,000 entities", lambda season: simdkalman_step(season, ENTITIES), ENTITIES),
        ],
    }
    for package, steps in makers.items():
        try:
            __import__(package)
        except ImportError as error:
            found["left_out"][package] = f"not importable by this interpreter: {error}"
            continue
        python = platform.python_version()
        with_numpy = f"{version(package)} (Python {python}, numpy {np.__version__})"
        found["versions"][package] = with_numpy
        for label, make, entities in steps:
            for model, season in (("local level", False), ("level, trend, day", True)):
                # Many at once take long: fewer steps of them.
                some = values if entities == 1 else values[:60]
                measured = measure(make(season), some, entities)
                found["systems"][f"{package} {label}: {model}"] = measured
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
