"""Memories of further encoders, kept beside the first one's while models change.

A model whose encoder is another one cannot read the memories that the table holds. A column of its
own is begun for it with the next event of each entity, walks along with the stream, and is warm
once it has seen enough: the model can then take charge, and the first memories go on beside it, so
that there is a way back.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field

import numpy as np
from numba import njit
from numpy.typing import NDArray

from flink_jobs.advance import KindEvents
from flink_jobs.components import mark_begun
from models.tpp.encoder import SCRATCH, Encoder, encoder_step
from models.tpp.spec import INPUT, IS_FIRST, LOG_COUNT, LOG_COUNT_DIVISOR, MARK, MEMORY, RATIO, ZGAP
from state.table import Part, Table

WARM_EVENTS = 64  # after which nine in ten of an entity's memories hardly know their beginning
RECORD = np.dtype(
    [
        ("h", np.float32, MEMORY),
        ("events", np.uint16),  # since it began, at most 65,535
        ("whole", np.uint8),  # it began with the entity's first event
    ],
    align=True,
)


def encoder_digest(encoder: Encoder) -> str:
    """Name an encoder by its weights, 16 hex digits."""
    weights = (encoder.w1, encoder.b1, encoder.w2, encoder.b2)
    data = b"".join(weight.tobytes() for weight in weights)
    return hashlib.blake2b(data, digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class Memory:
    """The memories that one encoder keeps of every entity.

    Attributes:
        digest: of the encoder.
        encoder: its weights.
    """

    digest: str
    encoder: Encoder = field(compare=False)

    @property
    def part(self) -> Part:
        """Its column of a table."""
        return Part(f"memory.{self.digest}", 1, RECORD, self.digest)


class Warmth:
    """How many of a shard's latest events found a warm memory, by encoder; older ones fade."""

    def __init__(self) -> None:
        self._seen: dict[str, NDArray[np.float64]] = {}

    def add(self, digest: str, warm: int, events: int) -> None:
        """Take in a batch of `events`, of which `warm` found one."""
        fade = 0.999 ** (events / 64.0)
        self._seen[digest] = fade * self.seen(digest) + (warm, events)

    def forget(self, digest: str) -> None:
        """Forget an encoder whose memories are dropped."""
        self._seen.pop(digest, None)

    def seen(self, digest: str) -> NDArray[np.float64]:
        """Return float64[2], events of warm memories and of all."""
        return self._seen.get(digest, np.zeros(2))


def share(seen: NDArray[np.float64]) -> float:
    """Return the share of events with a warm memory; NaN before the first event."""
    return float(seen[0] / seen[1]) if seen[1] > 0.0 else math.nan


def remember(
    table: Table,
    memory: Memory,
    events: KindEvents,
    elapsed: NDArray[np.float32],
    x: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Advance the memories of one kind by a batch that `advance` has walked.

    One call with all events equals a call for each of them.

    Args:
        table: holds the memory's part; changed there.
        memory: which.
        events: m events.
        elapsed: float32[m], the gap before each in the entity's usual gaps, as `advance` told it.
        x: float32[m, 69], what `advance` would ask the model that reads the first memories.

    Returns:
        float32[m, 69], what to ask the model that reads these; and bool[m], the memory is warm.
    """
    at = [part.name for part in table.layout].index(memory.part.name)
    begins = mark_begun(events.row, events.fresh, table.begun[at])
    asked, warm = np.empty((len(events), INPUT), np.float32), np.empty(len(events), np.bool_)
    encoder, records = memory.encoder, table.parts[at].view(np.recarray)
    _remember(
        records, events.row, events.fresh, begins, events.mark, elapsed, x,
        encoder.w1, encoder.b1, encoder.w2, encoder.b2, asked, warm,
    )  # fmt: skip
    return asked, warm


@njit(cache=True, nogil=True)
def _remember(  # type: ignore[no-untyped-def]
    records, row, fresh, begins, mark, elapsed, x, w1, b1, w2, b2, asked, warm
):
    hidden = np.empty(SCRATCH, np.float32)
    for i in range(len(row)):
        record = records[row[i]]
        h = record.h
        gap, zgap, ratio, is_first = elapsed[i], x[i, ZGAP], x[i, RATIO], x[i, IS_FIRST]
        if begins[i]:
            h[:] = 0.0
            record.events = 0
            record.whole = fresh[i]
            # As training begins a sequence that it cuts out of a longer one.
            gap, zgap, ratio, is_first = (
                np.float32(0.0), np.float32(0.0), np.float32(1.0), np.float32(1.0)
            )  # fmt: skip
        if record.events < 65535:
            record.events += np.uint16(1)
        encoder_step(h, gap, zgap, ratio, is_first, mark[i], w1, b1, w2, b2, hidden)
        asked[i, :MEMORY] = h
        asked[i, ZGAP], asked[i, RATIO], asked[i, IS_FIRST] = zgap, ratio, is_first
        asked[i, LOG_COUNT], asked[i, MARK] = x[i, LOG_COUNT], x[i, MARK]
        if not record.whole:
            asked[i, LOG_COUNT] = math.log1p(float(record.events)) / LOG_COUNT_DIVISOR
        warm[i] = record.whole != 0 or record.events >= WARM_EVENTS
