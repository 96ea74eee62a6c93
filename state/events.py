"""A batch of events in columns: the wire between parse and score, and the base of the log."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from state.columns import ColumnReader, Strings, write_columns

__all__ = ["EventBatch", "Strings", "decode", "encode", "hash_strings"]

FORM_VERSION = 1
_MAGIC = b"EdEB"
_HEADER = struct.Struct("<4sHHIHxx")  # magic, form version, entity kinds, events, bytes of topic

FNV_OFFSET = np.uint64(0xCBF29CE484222325)
FNV_PRIME = np.uint64(0x100000001B3)


@dataclass(frozen=True, slots=True)
class EventBatch:
    """n events of one topic in arrival order, with K entity kinds in the settings' order.

    Attributes:
        topic: Kafka topic the events came from.
        time_ms: int64[n], event time, milliseconds since the epoch, UTC.
        value: float64[n], as found (payments: minor units of the currency); NaN is missing.
        mark: uint8[n], index into the settings' marks; 255 where missing or unknown.
        owned: uint8[n], bit k is set where this message's shard owns the entity of kind k.
        partition: int32[n], Kafka partition.
        offset: int64[n], Kafka offset.
        ingest_ms: int64[n], Kafka record timestamp, milliseconds since the epoch.
        event_id: n identifiers (payments: `payment_id`).
        ids: K columns of n entity identifiers of 1 to 64 bytes; empty where there is none.
        hashes: uint64[K, n], `hash_strings` of each column of `ids`.
    """

    topic: str
    time_ms: NDArray[np.int64]
    value: NDArray[np.float64]
    mark: NDArray[np.uint8]
    owned: NDArray[np.uint8]
    partition: NDArray[np.int32]
    offset: NDArray[np.int64]
    ingest_ms: NDArray[np.int64]
    event_id: Strings
    ids: tuple[Strings, ...]
    hashes: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.time_ms)

    def part(self, start: int, stop: int) -> EventBatch:
        """Return the events from `start` up to `stop`."""
        return EventBatch(
            topic=self.topic,
            time_ms=self.time_ms[start:stop],
            value=self.value[start:stop],
            mark=self.mark[start:stop],
            owned=self.owned[start:stop],
            partition=self.partition[start:stop],
            offset=self.offset[start:stop],
            ingest_ms=self.ingest_ms[start:stop],
            event_id=self.event_id.part(start, stop),
            ids=tuple(ids.part(start, stop) for ids in self.ids),
            hashes=self.hashes[:, start:stop],
        )


@njit(cache=True, nogil=True)
def _hash(data: NDArray[np.uint8], offsets: NDArray[np.int32], out: NDArray[np.uint64]) -> None:
    for i in range(len(out)):
        h = FNV_OFFSET
        for j in range(offsets[i], offsets[i + 1]):
            h = (h ^ np.uint64(data[j])) * FNV_PRIME
        # FNV alone leaves the high bits weak on short ids; murmur's finaliser spreads them.
        h = (h ^ (h >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
        h = (h ^ (h >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
        out[i] = h ^ (h >> np.uint64(33))


def hash_strings(strings: Strings) -> NDArray[np.uint64]:
    """Hash each string to 64 bits, the same in every process and release (FNV-1a, murmur3 mix)."""
    out = np.empty(len(strings), np.uint64)
    _hash(strings.data, strings.offsets, out)
    return out


def encode(batch: EventBatch) -> bytes:
    """Write `batch` in form version 1: a header, then each column, padded to 8 bytes."""
    topic = batch.topic.encode()
    head = _HEADER.pack(_MAGIC, FORM_VERSION, len(batch.ids), len(batch), len(topic)) + topic
    return write_columns(
        head,
        [
            batch.time_ms,
            batch.value,
            batch.offset,
            batch.ingest_ms,
            batch.hashes,
            batch.partition,
            batch.mark,
            batch.owned,
            batch.event_id,
            *batch.ids,
        ],
    )


def decode(data: bytes) -> EventBatch:
    """Read what `encode` wrote; the columns are read-only views of `data`.

    Raises:
        ValueError: `data` is no event batch, or one of an unknown form version.
    """
    if len(data) < _HEADER.size or data[:4] != _MAGIC:
        raise ValueError(f"expected an event batch, found {data[:4]!r} in {len(data)} bytes")
    _, version, kinds, n, topic_bytes = _HEADER.unpack_from(data)
    if version != FORM_VERSION:
        raise ValueError(
            f"expected event batch form {FORM_VERSION}, found {version}: "
            "parse and score must run the same release"
        )
    read = ColumnReader(data, _HEADER.size + topic_bytes)
    return EventBatch(  # in the order of encode
        topic=data[_HEADER.size : _HEADER.size + topic_bytes].decode(),
        time_ms=read.take(np.int64, n),
        value=read.take(np.float64, n),
        offset=read.take(np.int64, n),
        ingest_ms=read.take(np.int64, n),
        hashes=read.take(np.uint64, kinds * n).reshape(kinds, n),
        partition=read.take(np.int32, n),
        mark=read.take(np.uint8, n),
        owned=read.take(np.uint8, n),
        event_id=read.strings(n),
        ids=tuple(read.strings(n) for _ in range(kinds)),
    )
