"""The components that the contract suite runs, each with events that suit it.

To put another component under contract, append a `Case` to `CASES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from models.baselines.calendar import pay_day, weekend
from models.baselines.component import NO_MARK, NO_PARTNER, Component
from models.baselines.structural import structural
from models.baselines.structural_spec import (
    Autoregression,
    Level,
    Noise,
    Season,
    StructuralSpec,
    Trend,
)

START_MS = 1_767_571_200_000  # 2026-01-05T00:00:00Z
DAY_S = 86_400.0
HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Events:
    """Columns of events, as `Component.walk` takes them; `row` names the entity."""

    row: NDArray[np.int32]
    fresh: NDArray[np.bool_]
    time_ms: NDArray[np.int64]
    value: NDArray[np.float64]
    mark: NDArray[np.uint8]
    partner: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.row)

    def take(self, index: NDArray[np.int64] | slice) -> Events:
        """Return some of the events."""
        return Events(*(getattr(self, column.name)[index].copy() for column in fields(self)))


@dataclass(frozen=True, slots=True)
class Case:
    """A component under contract.

    Attributes:
        name: shown by pytest.
        make: builds it.
        events: (seed, n) -> events of one entity (row 0), as ordinary ones look.
        model_events: (seed, n) -> events of one entity drawn from the component's own model, for
            the test of its p-values; None leaves it out.
        warm: events before its p-values are looked at.
        reads_value: a missing value is not scored.
        quiet_nats: the surprise that events may have which are all the same, once warm.
    """

    name: str
    make: Callable[[], Component]
    events: Callable[[int, int], Events]
    model_events: Callable[[int, int], Events] | None = None
    warm: int = 500
    reads_value: bool = True
    quiet_nats: float = 3.0


def events_of(
    time_ms: NDArray[np.int64],
    value: NDArray[np.float64],
    mark: NDArray[np.uint8] | None = None,
    partner: NDArray[np.uint64] | None = None,
) -> Events:
    """Put the events of one entity together; the first is fresh."""
    n = len(time_ms)
    fresh = np.zeros(n, np.bool_)
    fresh[:1] = True
    return Events(
        row=np.zeros(n, np.int32),
        fresh=fresh,
        time_ms=time_ms,
        value=value,
        mark=np.full(n, NO_MARK, np.uint8) if mark is None else mark,
        partner=np.full(n, NO_PARTNER, np.uint64) if partner is None else partner,
    )


def merge(streams: list[Events], seed: int) -> Events:
    """Interleave entities: stream k becomes row k, each in its own order."""
    owner = np.repeat(np.arange(len(streams)), [len(stream) for stream in streams])
    owner = np.random.default_rng(seed).permutation(owner)
    rank = np.argsort(np.argsort(owner, kind="stable"), kind="stable")
    joined = Events(
        *(
            np.concatenate([getattr(stream, column.name) for stream in streams])
            for column in fields(Events)
        )
    )
    merged = joined.take(rank)
    return Events(
        owner.astype(np.int32),
        merged.fresh,
        merged.time_ms,
        merged.value,
        merged.mark,
        merged.partner,
    )


def walk(
    component: Component,
    events: Events,
    state: NDArray[np.void] | None = None,
    cuts: tuple[int, ...] = (),
) -> tuple[NDArray[np.float32], NDArray[np.void]]:
    """Walk events through a component, in several batches where `cuts` says so.

    Returns:
        (out, state).
    """
    if state is None:
        state = np.zeros(int(events.row.max(initial=0)) + 1, component.state)
    out = np.full((len(events), len(component.tells)), 7.0, np.float32)
    borders = [0, *sorted(cuts), len(events)]
    for first, last in pairwise(borders):
        part = events.take(slice(first, last))
        component.walk(
            state,
            part.row,
            part.fresh,
            part.time_ms,
            part.value,
            part.mark,
            part.partner,
            component.parameters,
            out[first:last],
        )
    return out, state


# --- structural models ---------------------------------------------------------------------------

LOCAL_LEVEL = StructuralSpec(interval_s=300.0)
BY_EVENT = StructuralSpec(level=Level(0.02, mean=8.0, var=4.0), noise=Noise(1.0), clock="event")
LEVEL_TREND_DAY = StructuralSpec(interval_s=300.0, trend=Trend(), seasons=(Season(DAY_S, 3),))
EVERYTHING = StructuralSpec(
    interval_s=300.0,
    trend=Trend(damping=0.05),
    seasons=(Season(DAY_S, 2), Season(7 * DAY_S, 1)),
    autoregression=Autoregression((0.5, -0.3)),
    regressors=(weekend(), pay_day(25, 2)),
)
DRIFTING = StructuralSpec(
    interval_s=300.0, autoregression=Autoregression((0.8,)), trend=Trend(damping=0.1)
)


def measurements(seed: int, n: int) -> Events:
    """Five-minute measurements with a day, wandering, some outliers, gaps and missing values."""
    rng = np.random.default_rng(seed)
    gap_ms = np.where(rng.uniform(size=n) < 0.2, rng.integers(0, 4 * HOUR_MS, n), 300_000)
    time_ms = START_MS + np.cumsum(gap_ms)
    value = 20.0 + 3.0 * np.sin(2 * np.pi * time_ms / (1000 * DAY_S))
    value += np.cumsum(rng.normal(0, 0.1, n)) + rng.normal(0, 0.5, n)
    value[rng.uniform(size=n) < 0.02] += 40.0
    value[rng.uniform(size=n) < 0.03] = np.nan
    return events_of(time_ms, value)


def draw(spec: StructuralSpec, seed: int, n: int) -> Events:
    """Draw events from the model itself: level, slope, seasons, autoregression, and noise.

    Written out part by part, with the noise of each gap in closed form, so that it shares nothing
    with the kernel.
    """
    rng = np.random.default_rng(seed)
    time_ms = START_MS + np.cumsum(rng.integers(100_000, 500_000, n))
    value = np.empty(n)
    gap = np.diff(time_ms, prepend=time_ms[0]) / (1000.0 * spec.interval_s)
    if spec.clock == "event":
        gap[1:] = 1.0
    sd = np.sqrt(spec.noise.var or 4.0)
    level = 100.0 if spec.level.mean is None else rng.normal(spec.level.mean, sd * 2.0)
    slope = 0.0
    pairs = [rng.normal(0, 1.5, 2) for s in spec.seasons for _ in range(s.harmonics)]
    rates = [
        (2 * np.pi * k * spec.interval_s / s.period_s, s.noise_var)
        for s in spec.seasons
        for k in range(1, s.harmonics + 1)
    ]
    for i, dt in enumerate(gap):
        level += rng.normal(0, sd * np.sqrt(spec.level.noise_var * dt))
        if spec.trend is not None:
            assert spec.trend.damping == 0.0
            q = spec.trend.noise_var
            noise = np.array([[dt**3 / 3, dt**2 / 2], [dt**2 / 2, dt]]) * q * sd**2
            pushed = rng.multivariate_normal(np.zeros(2), noise) if dt > 0 else np.zeros(2)
            level, slope = level + slope * dt + pushed[0], slope + pushed[1]
        season = 0.0
        for k, (rate, noise_var) in enumerate(rates):
            cosine, sine = np.cos(rate * dt), np.sin(rate * dt)
            turned = np.array([[cosine, sine], [-sine, cosine]]) @ pairs[k]
            pairs[k] = turned + rng.normal(0, sd * np.sqrt(noise_var * dt), 2)
            season += pairs[k][0]
        value[i] = level + season + rng.normal(0, sd)
    return events_of(time_ms, value)


def _structural_case(name: str, spec: StructuralSpec, drawn: bool = False, warm: int = 500) -> Case:
    return Case(
        name,
        lambda: structural(spec, name),
        measurements,
        model_events=(lambda seed, n: draw(spec, seed, n)) if drawn else None,
        warm=warm,
    )


SPECS = {
    "level": LOCAL_LEVEL,
    "level_by_event": BY_EVENT,
    "level_trend_day": LEVEL_TREND_DAY,
    "all_parts": EVERYTHING,
    "drifting": DRIFTING,
}

CASES: list[Case] = [
    _structural_case("level", LOCAL_LEVEL, drawn=True),
    _structural_case("level_by_event", BY_EVENT, drawn=True),
    _structural_case("level_trend_day", LEVEL_TREND_DAY, drawn=True, warm=2000),
    _structural_case("all_parts", EVERYTHING),
    _structural_case("drifting", DRIFTING),
]
