"""The parse step: messages of Kafka in, columns of events and rejected messages out.

Bad input is data: whatever a message holds, `parse` returns. A message either becomes one row of
an `EventBatch` or one `Rejected` with its reason; none is dropped. `docs/event-contract.md` has
the rules, `parse_message` their meaning, `parse_columns` the compiled reading of the plain cases.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass

import numpy as np
import orjson
from numpy.typing import NDArray

from flink_jobs.parse_columns import ACCEPTED, LEFT, VALUE_LEFT, gather, read_rows
from flink_jobs.parse_json import walk
from flink_jobs.parse_mapping import EventMapping, compile_mapping
from flink_jobs.parse_message import NO_MARK, Fault, Reason, read_message
from flink_jobs.settings import EventSettings
from state.events import EventBatch, Strings, hash_strings

# With base64 and the other fields within Kafka's default limit of 1 MiB on a message: a dead
# letter that the broker refuses would stop the job, which is what dead letters are to prevent.
DEAD_LETTER_MAX_BYTES = 512 * 1024


@dataclass(frozen=True, slots=True)
class Records:
    """n Kafka records of one topic, in arrival order.

    Attributes:
        topic: where they came from.
        values: n messages; None for a record without a value (a tombstone).
        partition: int32[n].
        offset: int64[n].
        timestamp_ms: int64[n], milliseconds since the epoch; -1 where the record has none.
    """

    topic: str
    values: list[bytes] | list[bytes | None]
    partition: NDArray[np.int32]
    offset: NDArray[np.int64]
    timestamp_ms: NDArray[np.int64]

    def __post_init__(self) -> None:
        n = len(self.values)
        if not len(self.partition) == len(self.offset) == len(self.timestamp_ms) == n:
            raise ValueError(
                f"expected {n} of each column of the records, found {len(self.partition)} "
                f"partitions, {len(self.offset)} offsets, {len(self.timestamp_ms)} timestamps"
            )


@dataclass(frozen=True, slots=True)
class Rejected:
    """A message that is no event; `detail` repeats nothing of it, `value` is all of it."""

    reason: Reason
    detail: str
    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    value: bytes


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a batch of records holds: (shard, its events) by shard, and the rest."""

    batches: list[tuple[int, EventBatch]]
    rejected: list[Rejected]


@dataclass(frozen=True, slots=True)
class _Columns:
    """n rows as `read_rows` fills them; spans lie within `data`."""

    data: NDArray[np.uint8]
    status: NDArray[np.uint8]
    time_ms: NDArray[np.int64]
    value: NDArray[np.float64]
    mark: NDArray[np.uint8]
    spans: NDArray[np.int64]


def _joined(records: Records, max_bytes: int) -> tuple[bytes, NDArray[np.int64]]:
    """Join the messages, a NUL after each; the empty and the oversized count as empty."""
    values = [value or b"" for value in records.values]
    starts = np.zeros(len(values) + 1, np.int64)
    lengths = np.fromiter(map(len, values), np.int64, len(values))
    if lengths.size and lengths.max() > max_bytes:
        for row in np.flatnonzero(lengths > max_bytes).tolist():
            values[row] = b""
        lengths[lengths > max_bytes] = 0
    np.cumsum(lengths + 1, out=starts[1:])
    values.append(b"")
    return b"\0".join(values), starts


def _read_values(columns: _Columns, joined: bytes, mapping: EventMapping) -> None:
    """Round the values that the kernel left, and leave their rows where that finds a fault."""
    rows = np.flatnonzero(columns.status == VALUE_LEFT)
    if not rows.size:
        return
    spans = columns.spans[-1, rows].tolist()
    values = np.array([float(joined[start : start + length]) for start, length in spans])
    roles = mapping.roles
    good = np.isfinite(values) & (values >= roles.value_min) & (values <= roles.value_max)
    if roles.value_integer:
        good &= values == np.floor(values)
    columns.value[rows] = values
    columns.status[rows] = np.where(good, ACCEPTED, LEFT)


def _read_left(
    columns: _Columns, records: Records, mapping: EventMapping
) -> tuple[_Columns, list[Rejected]]:
    """Read the rows that are left exactly, one by one; return all rows, and what is no event."""
    rejected: list[Rejected] = []
    extra: list[bytes] = []
    at = len(columns.data)
    for row in np.flatnonzero(columns.status == LEFT).tolist():
        raw, timestamp_ms = records.values[row] or b"", int(records.timestamp_ms[row])
        event = read_message(raw, timestamp_ms, mapping)
        if isinstance(event, Fault):
            partition, offset = int(records.partition[row]), int(records.offset[row])
            place = (records.topic, partition, offset, timestamp_ms)
            rejected.append(Rejected(event.reason, event.detail, *place, raw))
            continue
        columns.status[row] = ACCEPTED
        columns.time_ms[row] = event.time_ms
        columns.value[row] = event.value
        columns.mark[row] = event.mark
        for span, identifier in zip(columns.spans, (event.event_id, *event.ids), strict=False):
            span[row] = at, len(identifier)
            extra.append(identifier)
            at += len(identifier)
    if extra:
        more = np.frombuffer(b"".join(extra), np.uint8)
        data = np.concatenate([columns.data, more])
        columns = _Columns(
            data, columns.status, columns.time_ms, columns.value, columns.mark, columns.spans
        )
    return columns, rejected


def _read(records: Records, mapping: EventMapping) -> tuple[_Columns, list[Rejected]]:
    n = len(records.values)
    joined, starts = _joined(records, mapping.settings.max_message_bytes)
    columns = _Columns(
        data=np.frombuffer(joined, np.uint8),
        status=np.empty(n, np.uint8),
        time_ms=np.empty(n, np.int64),
        value=np.empty(n, np.float64),
        mark=np.empty(n, np.uint8),
        spans=np.empty((len(mapping.entities) + 2, n, 2), np.int64),
    )
    good = np.empty(n, np.uint8)
    tokens = np.empty((n, len(mapping.targets), 3), np.int64)
    walk(columns.data, starts, *mapping.trie, mapping.roles.max_nesting, good, tokens)
    read_rows(
        columns.data,
        np.asarray(records.timestamp_ms, np.int64),
        good,
        tokens,
        mapping.roles,
        mapping.entities,
        mapping.mark_starts,
        mapping.marks,
        columns.status,
        columns.time_ms,
        columns.value,
        columns.mark,
        columns.spans,
    )
    _read_values(columns, joined, mapping)
    return _read_left(columns, records, mapping)


def _batch(
    columns: _Columns,
    records: Records,
    rows: NDArray[np.int64],
    owned: NDArray[np.uint8],
    strings: list[Strings],
    hashes: NDArray[np.uint64],
) -> EventBatch:
    return EventBatch(
        topic=records.topic,
        time_ms=columns.time_ms[rows],
        value=columns.value[rows],
        mark=columns.mark[rows],
        owned=owned,
        partition=np.asarray(records.partition, np.int32)[rows],
        offset=np.asarray(records.offset, np.int64)[rows],
        ingest_ms=np.asarray(records.timestamp_ms, np.int64)[rows],
        event_id=strings[0],
        ids=tuple(strings[1:]),
        hashes=hashes,
    )


def _strings(columns: _Columns, rows: NDArray[np.int64]) -> list[Strings]:
    return [Strings(*gather(columns.data, spans, rows)) for spans in columns.spans[:-1]]


def _split(columns: _Columns, records: Records, shards: int) -> list[tuple[int, EventBatch]]:
    """Return for each shard that owns an entity the events in which it does."""
    rows = np.flatnonzero(columns.status == ACCEPTED)
    if not rows.size:
        return []
    strings = _strings(columns, rows)
    hashes = np.stack([hash_strings(ids) for ids in strings[1:]])
    bits = (1 << np.arange(len(hashes), dtype=np.uint8))[:, None]
    present = bits * (columns.spans[1:-1, rows, 1] > 0)
    if shards == 1:
        owned = present.sum(axis=0).astype(np.uint8)
        return [(0, _batch(columns, records, rows, owned, strings, hashes))]
    shard_of = hashes % np.uint64(shards)
    batches = []
    for shard in range(shards):
        owned = (present * (shard_of == np.uint64(shard))).sum(axis=0).astype(np.uint8)
        mine = np.flatnonzero(owned)
        if mine.size:
            taken = rows[mine]
            batch = _batch(
                columns, records, taken, owned[mine], _strings(columns, taken), hashes[:, mine]
            )
            batches.append((shard, batch))
    return batches


def parse(records: Records, settings: EventSettings, shards: int) -> Parsed:
    """Read `records` into one batch per shard, by `hash % shards` of each event's entities.

    An event is in the batch of every shard that owns one of its entities, with all of its
    entities, and in arrival order; `owned` says which of them are the shard's.

    Raises:
        ValueError: the settings cannot be used, or there is no shard; never for a message.
    """
    if shards < 1:
        raise ValueError(f"expected at least one shard, found {shards}")
    columns, rejected = _read(records, compile_mapping(settings))
    return Parsed(_split(columns, records, shards), rejected)


def dead_letter(rejected: Rejected) -> bytes:
    """Write `rejected` as JSON by `contract/dead-letter.schema.json`.

    The message goes along in base64, cut off after `DEAD_LETTER_MAX_BYTES`; the whole of it is
    known by length and SHA-256, and found by partition and offset while Kafka keeps it.
    """
    value = rejected.value
    return orjson.dumps(
        {
            "reason": rejected.reason,
            "detail": rejected.detail,
            "topic": rejected.topic,
            "partition": rejected.partition,
            "offset": rejected.offset,
            "timestamp_ms": rejected.timestamp_ms,
            "value_base64": base64.b64encode(value[:DEAD_LETTER_MAX_BYTES]).decode(),
            "value_bytes": len(value),
            "value_sha256": hashlib.sha256(value).hexdigest(),
            "value_truncated": len(value) > DEAD_LETTER_MAX_BYTES,
        }
    )


__all__ = ["NO_MARK", "Parsed", "Records", "Rejected", "dead_letter", "parse"]
