"""A component small enough to be checked by eye: how far a value lies from the last, and visits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numba import njit

from models.baselines import registry
from models.baselines.component import Component
from models.baselines.registry import Context, Entry


class StepParameters(NamedTuple):
    """Numbers that the kernel reads."""

    scale: float


STEP = np.dtype([("last", np.float64), ("events", np.uint32), ("partners", np.uint64)], align=True)


@njit(cache=True, nogil=True)
def _walk(state, row, fresh, time_ms, value, mark, partner, p, out):  # type: ignore[no-untyped-def] # noqa: ARG001
    for i in range(len(row)):
        entity = state[row[i]]
        if fresh[i]:
            entity["last"] = np.nan
            entity["events"] = 0
            entity["partners"] = 0
        entity["events"] += np.uint32(1)
        # A sum that depends on every partner in turn: one lost in the log would be noticed.
        entity["partners"] = entity["partners"] * np.uint64(31) + partner[i]
        out[i, 0] = 0.0
        if not np.isnan(value[i]):
            if not np.isnan(entity["last"]):
                out[i, 0] = abs(value[i] - entity["last"]) / p.scale
            entity["last"] = value[i]
        out[i, 1] = entity["last"]
        out[i, 2] = 0.5
        out[i, 3] = entity["events"]
        out[i, 4] = np.float32(entity["partners"] % np.uint64(1009))


def step_component(context: Context, name: str = "step", version: int = 1) -> Component:
    """Return a component whose surprise is the step of the value over the sd within an entity."""
    return Component(
        name,
        version,
        STEP,
        ("size", "last", "sd", "events", "partners"),
        ("size",),
        StepParameters(context.prior.value_within_var**0.5),
        _walk,
    )


STEP_TEXT = "a step of {size:.1f} sd to {actual:value} after {last:value}, event {events:.0f}"


@contextmanager
def registered(version: int = 1) -> Iterator[None]:
    """Let settings name `step` and its twin `pace`, which reads partners, in the context."""
    entries = {
        "step": Entry(
            lambda context: step_component(context, "step", version),
            texts={"size": STEP_TEXT},
            expected=("last", "sd"),
        ),
        "pace": Entry(lambda context: step_component(context, "pace", version), reads_partner=True),
    }
    before = dict(registry.REGISTRY)
    registry.REGISTRY.update(entries)
    try:
        yield
    finally:
        registry.REGISTRY.clear()
        registry.REGISTRY.update(before)
