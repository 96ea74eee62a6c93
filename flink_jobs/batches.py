"""Batches as the score step cuts them: the events of one kind, their places, their partners."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flink_jobs.advance import KindEvents
from flink_jobs.alerts import EventPlace
from flink_jobs.settings import EventSettings
from state.columns import Strings
from state.events import EventBatch
from state.log import LoggedBatch

LARGEST = 1e30  # values beyond count as this: scores are float32, and squares are taken


def transformed(value: NDArray[np.float64], event: EventSettings) -> NDArray[np.float64]:
    """Return values as all that scores, fits and learns takes them; NaN, for missing, stays."""
    if event.value_transform == "log":
        found: NDArray[np.float64] = np.log(np.maximum(value, 1.0))
        return found
    return np.clip(value, -LARGEST, LARGEST)


def empty_batch(topic: str, kinds: int) -> EventBatch:
    """Return a batch without events: the clock alone goes on."""
    none = Strings.of([])
    return EventBatch(
        topic=topic,
        time_ms=np.zeros(0, np.int64),
        value=np.zeros(0),
        mark=np.zeros(0, np.uint8),
        owned=np.zeros(0, np.uint8),
        partition=np.zeros(0, np.int32),
        offset=np.zeros(0, np.int64),
        ingest_ms=np.zeros(0, np.int64),
        event_id=none,
        ids=(none,) * kinds,
        hashes=np.zeros((kinds, 0), np.uint64),
    )


def place_of(batch: LoggedBatch, i: int) -> EventPlace:
    """Return where event i lies in Kafka."""
    return EventPlace(batch.event_id[i], int(batch.partition[i]), int(batch.offset[i]))


def known_hashes(batch: EventBatch, k: int) -> NDArray[np.uint64]:
    """Return uint64[n], the hashes of the entities of kind k; 0 where the event has none."""
    return np.where(np.diff(batch.ids[k].offsets) > 0, batch.hashes[k], np.uint64(0))


def kind_events(
    batch: LoggedBatch, k: int, newer: NDArray[np.bool_] | None, hashed: int | None
) -> KindEvents:
    """Return the events of a batch that have an entity of kind k here.

    Args:
        batch: n events.
        k: index of the kind.
        newer: bool[n], those of them that count; None for all.
        hashed: index of the kind whose hashes the kind's components read as partners, or None.
    """
    mine = batch.row[k] >= 0 if newer is None else newer
    # A log of form 1 has no hashes: its events are replayed as if they had no partner.
    hashes = None if hashed is None else batch.hashes.get(hashed)
    return KindEvents(
        event=np.flatnonzero(mine).astype(np.int32),
        row=batch.row[k][mine],
        fresh=batch.fresh[k][mine],
        time_ms=batch.time_ms[mine],
        value=batch.value[mine],
        mark=batch.mark[mine],
        partner=batch.partner[k][mine],
        partner_hash=None if hashes is None else hashes[mine],
    )
