"""A shard's state as a log of events and pages of its tables: written little, restored exactly.

Keys of the one map a shard has:

| key | record |
|---|---|
| 0 | the form: what rows, pages and replay depend on, as JSON |
| 2 seq (seq >= 1) | the events of batch seq, with the rows they went to |
| 2 seq + 1 | what the intensity model answered for batch seq: the batch is decided |
| -1 - (page * kinds + kind) | a page of a table, as of the batch named in it |

Pages are written in round robin, only when every batch is decided, so that a page holds what both
steps made of all batches up to its own. An event record is removed when all pages are newer.
"""

from __future__ import annotations

import json
import struct
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from state.columns import ColumnReader, Strings, write_columns
from state.table import MEMORY, ROW, ROW_VERSION, Table

# Since 2 a batch keeps hashes of partners where a component reads them; since 3 answers name the
# slot of the model that gave them; since 4 they say how surprising the event's own amount was.
LOG_VERSION = 4
FORMER_ANSWER = ("mixture", "mark_surprise")  # all that an answer said before version 4
FORM_KEY = 0
COMPONENTS = "components"  # in the form: by kind and name, version/fingerprint of each part
JOINED = "joined"  # in the form: by kind and name, the last batch that was decided without the part
_EVENTS = struct.Struct("<4sHHIIqq")  # magic, version, kinds, events, partitions, 2 times
_ANSWERS = struct.Struct("<4sHHBxxx")  # magic, version, kinds, slot of the model, 0 for no answer
_PAGE = struct.Struct("<4sHHIIq")  # magic, row version, kind, first row, rows, batch
_PARTS = struct.Struct("<q")  # of a page: how many parts' columns follow the rows
_PART = struct.Struct("<QQ")  # of each: fingerprint, bytes of a record


class Store(Protocol):
    """What the log needs of a keyed map, as Flink's MapState gives it."""

    def put(self, key: int, value: bytes) -> None:
        """Set `key`."""

    def remove(self, key: int) -> None:
        """Drop `key`."""

    def items(self) -> Iterable[tuple[int, bytes]]:
        """Go through all entries in any order."""


@dataclass(frozen=True, slots=True)
class LoggedBatch:
    """What a replay needs of a batch; n events, K kinds.

    Attributes:
        topic: Kafka topic.
        watermark_ms: event time up to which silences were told after this batch.
        late_ms: event time before which events are late after this batch.
        clocks: int64[P], latest event time of each partition; the least int64 if never seen.
        used: int64[K], rows in use in each table after this batch.
        cursor: int64[K], cursor of each table after this batch.
        time_ms: int64[n].
        value: float64[n], transformed.
        offset: int64[n].
        partition: int32[n].
        row: int32[K, n], -1 where the event has no entity of the kind here.
        mark: uint8[n].
        partner: uint8[K, n].
        fresh: bool[K, n].
        event_id: n strings.
        names: K columns, the ids of the events where `fresh` is set, in order.
        hashes: by kind whose ids are partners that a component reads, uint64[n]; 0 is none.
    """

    topic: str
    watermark_ms: int
    late_ms: int
    clocks: NDArray[np.int64]
    used: NDArray[np.int64]
    cursor: NDArray[np.int64]
    time_ms: NDArray[np.int64]
    value: NDArray[np.float64]
    offset: NDArray[np.int64]
    partition: NDArray[np.int32]
    row: NDArray[np.int32]
    mark: NDArray[np.uint8]
    partner: NDArray[np.uint8]
    fresh: NDArray[np.bool_]
    event_id: Strings
    names: tuple[Strings, ...]
    hashes: Mapping[int, NDArray[np.uint64]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.time_ms)


def encode_batch(batch: LoggedBatch) -> bytes:
    """Write a batch record of the current version."""
    kinds = len(batch.row)
    topic = batch.topic.encode()
    head = _EVENTS.pack(
        b"EdLb",
        LOG_VERSION,
        kinds,
        len(batch),
        len(batch.clocks),
        batch.watermark_ms,
        batch.late_ms,
    ) + struct.pack("<HH", len(topic), sum(1 << kind for kind in batch.hashes))
    columns: list[NDArray[Any] | Strings] = [
        batch.clocks,
        batch.used,
        batch.cursor,
        batch.time_ms,
        batch.value,
        batch.offset,
        batch.partition,
        batch.row,
        batch.mark,
        batch.partner,
        batch.fresh,
        batch.event_id,
        *batch.names,
        *(batch.hashes[kind] for kind in sorted(batch.hashes)),
    ]
    return write_columns(head + topic, columns)


def decode_batch(data: bytes) -> LoggedBatch:
    """Read a batch record, of this version or one before.

    Raises:
        ValueError: the record's version is not known.
    """
    magic, version, kinds, n, partitions, watermark_ms, late_ms = _EVENTS.unpack_from(data)
    _check("event log", magic, b"EdLb", version, LOG_VERSION)
    (topic_bytes,) = struct.unpack_from("<H", data, _EVENTS.size)
    at, hashed = _EVENTS.size + 2, 0
    if version > 1:
        (hashed,) = struct.unpack_from("<H", data, at)
        at += 2
    read = ColumnReader(data, at + topic_bytes)
    clocks = read.take(np.int64, partitions)
    used, cursor = read.take(np.int64, kinds), read.take(np.int64, kinds)
    time_ms, value = read.take(np.int64, n), read.take(np.float64, n)
    offset, partition = read.take(np.int64, n), read.take(np.int32, n)
    row = read.take(np.int32, kinds * n).reshape(kinds, n)
    mark = read.take(np.uint8, n)
    partner = read.take(np.uint8, kinds * n).reshape(kinds, n)
    fresh = read.take(np.bool_, kinds * n).reshape(kinds, n)
    event_id = read.strings(n)
    names = tuple(read.strings(int(np.count_nonzero(f))) for f in fresh)
    hashes = {kind: read.take(np.uint64, n) for kind in range(kinds) if hashed >> kind & 1}
    return LoggedBatch(
        data[at : at + topic_bytes].decode(), watermark_ms, late_ms, clocks, used, cursor,
        time_ms, value, offset, partition, row, mark, partner, fresh, event_id, names, hashes,
    )  # fmt: skip


def encode_answers(answers: Sequence[NDArray[np.void]] | None, kinds: int, slot: int = 1) -> bytes:
    """Write the predictions of a batch, one column per kind, and the slot (1 to 255) of the model.

    None where there was no answer.
    """
    if answers is None:
        return _ANSWERS.pack(b"EdLa", LOG_VERSION, kinds, 0)
    head = _ANSWERS.pack(b"EdLa", LOG_VERSION, kinds, slot)
    sizes = np.array([len(a) for a in answers], np.int64)
    return write_columns(head, [sizes, *answers])


def decode_answers(data: bytes, absent: np.void) -> tuple[list[NDArray[np.void]] | None, int]:
    """Read the predictions of a batch, or None, and their model's slot.

    Before version 3 every answer was of one model, which has slot 1.

    Args:
        data: the record.
        absent: a prediction with what stands in fields that older versions had not.
    """
    magic, version, kinds, slot = _ANSWERS.unpack_from(data)
    _check("answer log", magic, b"EdLa", version, LOG_VERSION)
    if not slot:
        return None, 0
    read = ColumnReader(data, _ANSWERS.size)
    sizes = read.take(np.int64, kinds).tolist()
    if version > 3:
        return [read.records(absent.dtype, size) for size in sizes], slot
    former = np.dtype([(name, absent.dtype[name]) for name in FORMER_ANSWER])
    answers = []
    for size in sizes:
        answer = np.full(size, absent, absent.dtype)
        records = read.records(former, size)
        for name in FORMER_ANSWER:
            answer[name] = records[name]
        answers.append(answer)
    return answers, slot


def _check(what: str, magic: bytes, expected: bytes, version: int, current: int) -> None:
    if magic != expected or not 1 <= version <= current:
        raise ValueError(
            f"{what}: expected {expected!r} of version {current}, found {magic!r} of version "
            f"{version}; restore with the release that wrote it, or with one that migrates it"
        )


@dataclass(slots=True)
class Restored:
    """What `ShardLog.restore` found.

    Attributes:
        batches: (seq, batch record, answer record or None), in order.
        page_seq: by kind, int64[pages], the batch up to which each page's rows are current.
        changes: what the job's components have more or less than the stored state, in words.
        joined: by kind and name of each component that joined a state, at this restore or one
            before, the last batch that was decided without it.
    """

    batches: list[tuple[int, LoggedBatch, bytes | None]]
    page_seq: list[NDArray[np.int64]]
    changes: list[str]
    joined: dict[str, dict[str, int]]


class ShardLog:
    """Writes and reads one shard's records.

    Args:
        store: the shard's map.
        kinds: number of entity kinds.
        page_rows: rows to a page.
        ratio: bytes of log that may be kept per byte of table.
        min_bytes: bytes of log that may be kept however small the tables are.
    """

    def __init__(
        self, store: Store, kinds: int, page_rows: int, ratio: float, min_bytes: int
    ) -> None:
        self._store = store
        self._page_rows = page_rows
        self._ratio = ratio
        self._min_bytes = min_bytes
        self._sizes: deque[tuple[int, int]] = deque()  # (seq, bytes) of the records kept
        self._page_seq = [np.zeros(0, np.int64) for _ in range(kinds)]
        self._form: Mapping[str, object] = {}
        self._next = 0  # page to write next, counted over all kinds; -1: not known
        self.bytes = 0
        self.debt = 0.0  # bytes of pages owed for the bytes logged

    def append(self, seq: int, record: bytes, tables: Sequence[Table]) -> None:
        """Write the events of batch `seq`."""
        self._store.put(2 * seq, record)
        self._account(seq, len(record), tables)

    def append_answers(self, seq: int, record: bytes, tables: Sequence[Table]) -> None:
        """Write what was answered for batch `seq`."""
        self._store.put(2 * seq + 1, record)
        self._account(seq, len(record), tables)

    def _account(self, seq: int, size: int, tables: Sequence[Table]) -> None:
        self._sizes.append((seq, size))
        self.bytes += size
        rows = sum(table.stored_bytes * table.used for table in tables)
        self.debt = min(
            self.debt + size * rows / max(self._min_bytes, self._ratio * rows, 1.0), float(rows)
        )

    def write_pages(self, tables: Sequence[Table], seq: int) -> int:
        """Write the pages owed, as of batch `seq`, and remove what they make dead.

        Every batch up to `seq` must be decided, and none after it advanced.

        Returns:
            Bytes written.
        """
        self._grow(tables, seq)
        if self._next < 0:
            # After a restore the oldest page comes first: a job that often fails still ends rounds.
            self._next = int(np.concatenate([*self._page_seq, [seq]]).argmin())
        pages = sum(len(s) for s in self._page_seq)
        round_bytes = self._page_rows * sum(
            table.stored_bytes * len(s) for table, s in zip(tables, self._page_seq, strict=True)
        )
        written = 0
        while self.debt > 0 and pages and written <= round_bytes:
            kind, page = self._at(self._next % pages)
            record = _encode_page(tables[kind], kind, page, self._page_rows, seq)
            self._store.put(_page_key(kind, page, len(tables)), record)
            self._page_seq[kind][page] = seq
            self.debt -= len(record)
            written += len(record)
            self._next = (self._next + 1) % pages
        oldest = min((int(s.min()) for s in self._page_seq if len(s)), default=0)
        # The last record stays, for it holds the clocks.
        while self._sizes and self._sizes[0][0] <= oldest and self._sizes[0][0] < seq:
            gone, size = self._sizes.popleft()
            self.bytes -= size
            self._store.remove(2 * gone)
            if not self._sizes or self._sizes[0][0] != gone:
                self._store.remove(2 * gone + 1)
        return written

    def _at(self, number: int) -> tuple[int, int]:
        for kind, seqs in enumerate(self._page_seq):
            if number < len(seqs):
                return kind, number
            number -= len(seqs)
        raise IndexError(number)

    def _grow(self, tables: Sequence[Table], seq: int) -> None:
        """Take up the pages that have come into use: never written, so all their log is needed."""
        oldest = self._sizes[0][0] - 1 if self._sizes else seq
        for kind, table in enumerate(tables):
            missing = -(-table.used // self._page_rows) - len(self._page_seq[kind])
            if missing > 0:
                more = np.full(missing, oldest, np.int64)
                self._page_seq[kind] = np.concatenate([self._page_seq[kind], more])

    def restore(self, tables: Sequence[Table], form: Mapping[str, object]) -> Restored:
        """Read all records, and fill `tables` from their pages; the indexes are left stale.

        Args:
            tables: empty.
            form: by name, what the stored state and this job must have in common; JSON values.

        Raises:
            ValueError: the stored state is of another form or version.
        """
        events: dict[int, LoggedBatch] = {}
        answers: dict[int, bytes] = {}
        pages: dict[tuple[int, int], int] = {}
        sizes: dict[int, int] = {}
        found = None
        for key, value in self._store.items():
            if key == FORM_KEY:
                found = json.loads(value)
                continue
            if key < 0:
                kind, page, seq = _decode_page(value, tables, self._page_rows)
                pages[kind, page] = seq
                continue
            seq = key // 2
            sizes[seq] = sizes.get(seq, 0) + len(value)
            if key % 2:
                answers[seq] = value
            else:
                events[seq] = decode_batch(value)
        changes = _check_form(form, found, bool(events or pages))
        joined = _joined(form, found, max(answers, default=0))
        self._form = {**form, JOINED: joined} if joined else form
        if found is None or changes:
            self._store.put(FORM_KEY, json.dumps(dict(self._form)).encode())
        order = sorted(events)
        self._sizes = deque((seq, sizes[seq]) for seq in order)
        self.bytes = sum(sizes.values())
        for kind, table in enumerate(tables):
            count = -(-table.used // self._page_rows)
            oldest = order[0] - 1 if order else 0
            self._page_seq[kind] = np.array(
                [pages.get((kind, page), oldest) for page in range(count)], np.int64
            )
        self._next = -1
        return Restored(
            [(seq, events[seq], answers.get(seq)) for seq in order],
            [seqs.copy() for seqs in self._page_seq],
            changes,
            joined,
        )

    def reform(self, form: Mapping[str, object], seq: int) -> None:
        """Note that parts have joined or left the tables after batch `seq`."""
        joined = _joined(form, self._form, seq)
        self._form = {**form, JOINED: joined} if joined else form
        self._store.put(FORM_KEY, json.dumps(dict(self._form)).encode())


def _check_form(
    form: Mapping[str, object], found: Mapping[str, object] | None, stored: bool
) -> list[str]:
    """Refuse a stored state of another form; tell the components that joined or left since."""
    if found is None:
        if stored:
            raise ValueError("state: expected a record of its form, found none; it is damaged")
        return []
    for name, value in form.items():
        if name != COMPONENTS and found.get(name) != value:
            raise ValueError(
                f"state: it was written with {name} = {found.get(name)!r}, this job has {value!r}; "
                "start with the old value, or without the savepoint"
            )
    return _changed_components(_components(found), _components(form))


def components_form(tables: Mapping[str, Table]) -> dict[str, dict[str, str]]:
    """Name the components of each kind as the form keeps them."""
    return {
        kind: {part.name: f"{part.version}/{part.fingerprint:016x}" for part in table.layout}
        for kind, table in tables.items()
        if table.layout
    }


def _components(form: Mapping[str, object]) -> dict[tuple[str, str], str]:
    kinds = form.get(COMPONENTS) or {}
    assert isinstance(kinds, Mapping)
    return {(kind, name): mark for kind, parts in kinds.items() for name, mark in parts.items()}


def _changed_components(
    old: Mapping[tuple[str, str], str], new: Mapping[tuple[str, str], str]
) -> list[str]:
    changes = []
    for kind, name in sorted({*old, *new}):
        was, now = old.get((kind, name)), new.get((kind, name))
        if was is None:
            changes.append(f"component {name} joins kind {kind}: it begins from the prior")
        elif now is None:
            changes.append(f"component {name} leaves kind {kind}: what it knew is dropped")
        elif was != now:
            raise ValueError(
                f"state: component {name} of kind {kind} was written as {was} (version/form and "
                f"prior), this job has {now}; start with the old release and prior, or without the "
                "component once, from a savepoint of which it can join again from the prior"
            )
    return changes


def _joined(
    form: Mapping[str, object], found: Mapping[str, object] | None, decided: int
) -> dict[str, dict[str, int]]:
    """Return by kind and name the last batch decided without each component that joined.

    It stays in the form: the log may still hold such batches at the next restore.
    """
    if found is None:
        return {}
    before, former = _components(found), found.get(JOINED) or {}
    assert isinstance(former, Mapping)
    joined: dict[str, dict[str, int]] = {}
    for kind, name in _components(form):
        since = former.get(kind, {}).get(name) if (kind, name) in before else decided
        if since is not None:
            joined.setdefault(kind, {})[name] = since
    return joined


def _page_key(kind: int, page: int, kinds: int) -> int:
    return -1 - (page * kinds + kind)


def _encode_page(table: Table, kind: int, page: int, page_rows: int, seq: int) -> bytes:
    first = page * page_rows
    last = min(first + page_rows, table.used)
    layout = table.layout
    head = _PAGE.pack(b"EdPg", ROW_VERSION, kind, first, last - first, seq)
    head += _PARTS.pack(len(layout))
    head += b"".join(_PART.pack(part.fingerprint, part.dtype.itemsize) for part in layout)
    part = slice(first, last)
    columns = [table.rows[part], table.memory[part], table.deadline_ms[part]]
    for records, begun in zip(table.parts, table.begun, strict=True):
        columns += [records[part], begun[part]]
    return write_columns(head, columns)


def _decode_page(data: bytes, tables: Sequence[Table], page_rows: int) -> tuple[int, int, int]:
    magic, version, kind, first, count, seq = _PAGE.unpack_from(data)
    _check("page of a table", magic, b"EdPg", version, ROW_VERSION)
    if kind >= len(tables):
        return kind, 0, seq  # the form tells of it
    table = tables[kind]
    table.restore_room(first + count)
    table.used = max(table.used, first + count)
    at, stored = _PAGE.size, []
    if version > 1:
        (parts,) = _PARTS.unpack_from(data, at)
        at += _PARTS.size
        stored = [_PART.unpack_from(data, at + i * _PART.size) for i in range(parts)]
        at += parts * _PART.size
    read = ColumnReader(data, at)
    part = slice(first, first + count)
    table.rows[part] = read.records(ROW, count)
    table.memory[part] = read.take(np.float32, count * MEMORY).reshape(count, MEMORY)
    table.deadline_ms[part] = read.take(np.int64, count)
    mine = {one.fingerprint: j for j, one in enumerate(table.layout)}
    for fingerprint, record_bytes in stored:
        records, begun = read.take(np.uint8, count * record_bytes), read.take(np.uint8, count)
        if fingerprint in mine:
            j = mine[fingerprint]
            table.parts[j][part] = records.view(table.layout[j].dtype)
            table.begun[j][part] = begun
    return kind, first // page_rows, seq
