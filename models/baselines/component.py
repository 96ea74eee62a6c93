"""The contract of a baseline component: what it remembers of an entity, and how it scores events.

A component walks the events of one batch through its own column of the shard's table, so that the
settings can put components together without new code: the table has one column of records for each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

NO_MARK = 255
NO_PARTNER = 0

Walk = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Component:
    """One baseline component, with its settings already in it.

    `walk(state, row, fresh, time_ms, value, mark, partner, parameters, out)` is compiled (numba,
    nogil, cached) and walks m events in order:

    - state: structured array of `state`, one record for each row of the table; changed in place.
      A record of zeros is what a row holds before its first event.
    - row: int32[m], the record of each event's entity.
    - fresh: bool[m], the record begins anew from the prior with this event.
    - time_ms: int64[m], event time; an event may be older than its entity's newest.
    - value: float64[m], transformed; NaN is missing.
    - mark: uint8[m]; NO_MARK is none.
    - partner: uint64[m], hash of the partner entity; NO_PARTNER is none.
    - parameters: `parameters` below.
    - out: float32[m, len(tells)], filled; what is not scored is 0 for a surprise, NaN for the rest.

    One call with all events equals a call for each of them, bit for bit; entities do not influence
    each other; no clock, randomness or I/O; every output is finite or NaN as said above.

    Attributes:
        name: as the settings name it.
        version: of the stored form; changes with the meaning of `state`.
        state: aligned structured dtype, what one entity's row remembers.
        tells: names of the columns of `out`.
        surprises: those of `tells` that are surprises: -log of a predictive p-value, nats, >= 0.
        parameters: NamedTuple of numbers and arrays that the kernel reads, from prior and settings.
        walk: the kernel.
    """

    name: str
    version: int
    state: np.dtype[np.void]
    tells: tuple[str, ...]
    surprises: tuple[str, ...]
    parameters: Any
    walk: Walk

    def __post_init__(self) -> None:
        missing = sorted(set(self.surprises) - set(self.tells))
        if missing:
            raise ValueError(f"{self.name}: expected surprises among {self.tells}, found {missing}")
