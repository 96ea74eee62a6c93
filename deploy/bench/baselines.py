"""What a baseline costs: microseconds for one event of one entity on one core, beside other tools.

Everything is measured in one run: eddy's kernels in this process, the others in a program of their
own (`baseline_peers.py`), before and after it eddy again.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploy.bench.report import Json, Number, Report, machine
from models.baselines.calendar import pay_day, weekend
from models.baselines.component import Component
from models.baselines.structural import structural
from models.baselines.structural_spec import (
    Autoregression,
    Season,
    StructuralSpec,
    Trend,
)
from models.baselines.structural_vector import structural_vector

PEERS = Path(__file__).with_name("baseline_peers.py")
PEERS_TIMEOUT_S = 300.0
ENTITIES = 1_000
START_MS = 1_767_571_200_000
INTERVAL_S = 300.0
DAY_S = 86_400.0
LOCAL_LEVEL = "local level"
LEVEL_TREND_DAY = "level, trend, day"
GOALS_US = {LOCAL_LEVEL: 0.5, LEVEL_TREND_DAY: 5.0}

_LEVEL = StructuralSpec(interval_s=INTERVAL_S)
_TREND_DAY = StructuralSpec(interval_s=INTERVAL_S, trend=Trend(), seasons=(Season(DAY_S, 3),))


class BaselinesReport(Report):
    """The report, with what could not be measured and why."""

    left_out: dict[str, str]


def components() -> dict[str, Component]:
    """Return the components that are measured; add a line for another one.

    The first two are those that the other tools are compared with.
    """
    everything = StructuralSpec(
        interval_s=INTERVAL_S,
        trend=Trend(damping=0.05),
        seasons=(Season(DAY_S, 3), Season(7 * DAY_S, 2)),
        autoregression=Autoregression((0.5, -0.3)),
        regressors=(weekend(), pay_day(25, 2)),
    )
    return {
        LOCAL_LEVEL: structural(_LEVEL),
        LEVEL_TREND_DAY: structural(_TREND_DAY),
        "damped trend, day, week, AR(2), weekend, pay day": structural(everything),
        "4 values, local level": structural_vector(_LEVEL, 4),
        "4 values, level, trend, day": structural_vector(_TREND_DAY, 4),
    }


def measure(component: Component, rounds: int, repeats: int, regular: bool) -> dict[str, float]:
    """Time a component over `ENTITIES` entities in turn, one batch for each round of them.

    Args:
        component: any; its events have a value, a mark and a partner.
        rounds: events of each entity in one repeat.
        repeats: of which the median counts.
        regular: whether all entities report each interval, or with gaps of their own.

    Returns:
        Microseconds for one event, how many were timed, and the bytes of an entity.
    """
    rng = np.random.default_rng(1)
    state = np.zeros(ENTITIES, component.state)
    row = np.arange(ENTITIES, dtype=np.int32)
    values = 4 if any(tell.startswith("expected_3") for tell in component.tells) else 1
    level = rng.normal(50.0, 10.0, (ENTITIES, values))
    out = np.empty((ENTITIES, len(component.tells)), np.float32)
    fresh = np.ones(ENTITIES, np.bool_)
    time_ms = np.full(ENTITIES, START_MS, np.int64)
    step_ms = int(1000 * INTERVAL_S)
    seconds = []
    for repeat in range(repeats + 1):  # the first compiles, and warms
        spent = 0.0
        for _ in range(rounds):
            level += rng.normal(0.0, 0.2, level.shape)
            value = level + rng.normal(0.0, 1.0, level.shape)
            value = value if values > 1 else value[:, 0]
            time_ms = time_ms + (step_ms if regular else rng.integers(1, 2 * step_ms, ENTITIES))
            mark = rng.integers(0, 8, ENTITIES).astype(np.uint8)
            partner = rng.integers(1, 1 << 40, ENTITIES).astype(np.uint64)
            spent += _walk(component, state, row, fresh, time_ms, value, mark, partner, out)
            fresh[:] = False
        if repeat > 0:
            seconds.append(spent)
    events = rounds * ENTITIES
    return {
        "us_per_event": 1e6 * statistics.median(seconds) / events,
        "events": events,
        "bytes_per_entity": component.state.itemsize,
    }


def _walk(component: Component, state: NDArray[np.void], *columns: NDArray[np.generic]) -> float:
    """Walk one batch; return the seconds that it took."""
    *events, out = columns
    begin = time.perf_counter()
    component.walk(state, *events, component.parameters, out)
    return time.perf_counter() - begin


def run_peers(python: Path | None) -> dict[str, dict[str, object]]:
    """Run the other tools in their interpreter; what does not run is left out, with the reason."""
    command = [str(python or sys.executable), "-I", str(PEERS)]
    one_core = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **one_core},
            capture_output=True,
            text=True,
            timeout=PEERS_TIMEOUT_S,
            check=True,
        )
        found: dict[str, dict[str, object]] = json.loads(done.stdout)
    except subprocess.CalledProcessError as error:
        return _without_peers(f"its program ended with {error.returncode}: {error.stderr[-300:]}")
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        return _without_peers(f"its program did not answer: {error}")
    return found


def _without_peers(reason: str) -> dict[str, dict[str, object]]:
    return {
        "versions": {},
        "systems": {},
        "left_out": dict.fromkeys(("pykalman", "river", "simdkalman"), reason),
    }


def run_baselines(
    pythons: Sequence[Path], short: bool, progress: Callable[[str], None]
) -> BaselinesReport:
    """Measure eddy's components and the other tools.

    Args:
        pythons: interpreters that have the other tools; none takes this one.
        short: fewer events: shows that it works.
        progress: told of each step.

    Returns:
        The report; `ratios` say how many times eddy is faster.
    """
    rounds, repeats = (5, 2) if short else (100, 7)
    systems: dict[str, dict[str, Number]] = {}
    for name, component in components().items():
        for label, regular in (("regular", True), ("irregular", False)):
            progress(f"eddy: {name}, {label}")
            figures = measure(component, rounds, repeats, regular)
            systems[f"eddy: {name}, {label}"] = {k: _digits(v) for k, v in figures.items()}
    versions: dict[str, str] = {"python": platform.python_version()}
    for package in ("eddy-streams", "numba", "numpy"):
        versions[package] = _version(package)
    left_out: dict[str, str] = {}
    interpreters: list[Path | None] = [*pythons] or [None]
    for python in interpreters:
        progress("other tools: pykalman, river, simdkalman (a minute)")
        found = run_peers(python)
        versions |= {name: str(value) for name, value in found["versions"].items()}
        left_out |= {name: str(reason) for name, reason in found["left_out"].items()}
        for name, measured in found["systems"].items():
            assert isinstance(measured, dict)
            systems[name] = {key: _digits(float(value)) for key, value in measured.items()}
    for package in [name for name in left_out if name in versions]:
        del left_out[package]  # one of the interpreters has it
    for name, component in list(components().items())[:2]:
        progress(f"eddy: {name}, once more")
        again = measure(component, rounds, repeats, regular=True)["us_per_event"]
        systems[f"eddy: {name}, regular"]["us_per_event_after"] = _digits(again)
    settings: Json = {
        "entities": ENTITIES,
        "batch": ENTITIES,
        "interval_s": INTERVAL_S,
        "short": short,
        "eddy": "scores, p-values, learned noise and robust update; state stored for each event",
        "others": "their filter step alone; river: forecast and learn_one of Holt-Winters",
        "goals_us": GOALS_US,
    }
    return {
        "benchmark": "baselines",
        "machine": machine(),
        "versions": versions,
        "input": settings,
        "systems": systems,
        "ratios": ratios(systems),
        "left_out": left_out,
    }


def ratios(systems: dict[str, dict[str, Number]]) -> dict[str, Number]:
    """Return how many times the slower of eddy's two measurements is faster than each other tool.

    >>> ratios({"eddy: m, regular": {"us_per_event": 0.5}, "x: m": {"us_per_event": 50.0}})
    {'x / eddy: m': 100.0}
    """
    found: dict[str, Number] = {}
    for name, figures in systems.items():
        tool, _, model = name.partition(": ")
        mine = systems.get(f"eddy: {model}, regular")
        if tool == "eddy" or mine is None:
            continue
        ours = [mine.get(key) for key in ("us_per_event", "us_per_event_after")]
        slowest = max(value for value in ours if value is not None)
        theirs = figures["us_per_event"]
        found[f"{tool} / eddy: {model}"] = _digits(theirs / slowest) if theirs else None
    return found


def _digits(value: float) -> Number:
    return int(value) if value == int(value) and value > 10 else float(f"{value:.4g}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
