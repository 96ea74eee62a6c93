"""What is remembered about the entities of one kind in one shard: one row each, found by id."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

from state.columns import Strings
from state.events import hash_strings
from state.prefetch import AHEAD, prefetch

T = TypeVar("T", bound=np.generic)

ROW_VERSION = 2  # of a page; since 2 the components' records stand beside the row
ID_BYTES = 64
MEMORY = 64
MIXTURE = 12
MARKS = 8
NEVER_MS = np.iinfo(np.int64).max

# Gaps and event times are those of `models`; every field is documented where it is updated.
ROW = np.dtype(
    [
        ("id", np.uint8, ID_BYTES),
        # written by advance
        ("last_ms", np.int64),
        ("first_ms", np.int64),
        ("partners_now", np.uint64),
        ("partners_before", np.uint64),
        ("events", np.uint32),
        ("partner_window", np.int32),
        ("level", np.float32),
        ("level_var", np.float32),
        ("noise_var", np.float32),
        ("shift_up", np.float32),
        ("shift_down", np.float32),
        ("steady_level", np.float32),
        ("flood", np.float32),
        ("gap_mean", np.float32),
        ("gap_var", np.float32),
        ("steady_gap_mean", np.float32),
        ("rhythm_mean", np.float32),
        ("rhythm_var", np.float32),
        ("partner_mean", np.float32),
        ("value_frozen", np.uint16),
        ("gap_frozen", np.uint16),
        # written by decide
        ("incident_ms", np.int64),
        ("decided_ms", np.int64),
        ("burst", np.float32),
        ("surge", np.float32),
        ("scale", np.float32),
        ("spread", np.float32),
        ("decided_events", np.uint32),
        ("mixture", np.int16, MIXTURE),
        ("mark_surprise", np.uint8, MARKS),
        ("predicted", np.uint8),
        ("id_bytes", np.uint8),
    ],
    align=True,
)
ROW_SIZE = ROW.itemsize
ROW_BYTES = ROW_SIZE + 4 * MEMORY + 8

# Whom an event took a row from: a batch that is decided later still has to name that entity.
FORMER = np.dtype(
    [
        ("event", np.int32),
        ("row", np.int32),
        ("first_ms", np.int64),
        ("id", np.uint8, ID_BYTES),
        ("id_bytes", np.uint8),
    ],
    align=True,
)


@dataclass(frozen=True, slots=True)
class Part:
    """A column of records that one component keeps beside the rows.

    Attributes:
        name: of the component, as the settings name it.
        version: of the meaning of its records.
        dtype: structured, of one record; zeros before the entity's first event.
        parameters: digest of the numbers that a replay of the log would use.
    """

    name: str
    version: int
    dtype: np.dtype[np.void]
    parameters: str = ""

    @property
    def fingerprint(self) -> int:
        """The part in 64 bits: pages are read only by the part that wrote them."""
        fields = [
            (name, str(kind), offset)
            for name, (kind, offset, *_) in sorted((self.dtype.fields or {}).items())
        ]
        text = repr((self.name, self.version, self.parameters, self.dtype.itemsize, fields))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


@dataclass(slots=True)
class Table:
    """The entities of one kind.

    Attributes:
        rows: ROW[capacity], of which the first `used` hold entities.
        memory: float32[capacity, 64], the history encoder's state of each row.
        deadline_ms: int64[capacity], event time before which the entity's silence is no surprise;
            NEVER_MS where none is awaited or it was told. A column of its own, for it is swept.
        layout: the components' parts, in the order of the settings.
        parts: by part, its dtype[capacity]: one record for each row.
        begun: by part, uint8[capacity], 0 where the record has seen no event: a component that
            joined an old state begins from the prior with the entity's next event.
        hashes: uint64[capacity], hash of each row's id.
        seen_ms: int64[capacity], latest event time interned; runs ahead of the row's `last_ms`
            within a batch, equal to it between batches.
        slots: int32[a power of two], open addressing from hash to row; -1 is free.
        used: rows handed out so far.
        cursor: where the next search for a row to reuse begins.
        limit: most rows there may be.
        ttl_ms: an entity unseen for longer begins anew; milliseconds of event time.
    """

    rows: NDArray[np.void]
    memory: NDArray[np.float32]
    deadline_ms: NDArray[np.int64]
    layout: tuple[Part, ...]
    parts: list[NDArray[np.void]]
    begun: list[NDArray[np.uint8]]
    hashes: NDArray[np.uint64]
    seen_ms: NDArray[np.int64]
    slots: NDArray[np.int32]
    used: int
    cursor: int
    limit: int
    ttl_ms: int

    @classmethod
    def empty(cls, capacity: int, limit: int, ttl_ms: int, layout: Sequence[Part] = ()) -> Table:
        """Make a table with room for `capacity` entities that grows up to `limit`."""
        capacity = min(max(capacity, 64), limit)
        table = cls(
            rows=np.zeros(capacity, ROW),
            memory=np.zeros((capacity, MEMORY), np.float32),
            deadline_ms=np.full(capacity, NEVER_MS),
            layout=tuple(layout),
            parts=[np.zeros(capacity, part.dtype) for part in layout],
            begun=[np.zeros(capacity, np.uint8) for _ in layout],
            hashes=np.zeros(capacity, np.uint64),
            seen_ms=np.zeros(capacity, np.int64),
            slots=np.empty(0, np.int32),
            used=0,
            cursor=0,
            limit=limit,
            ttl_ms=ttl_ms,
        )
        table.rebuild_index()
        return table

    @property
    def stored_bytes(self) -> int:
        """What an entity takes in a page."""
        return ROW_BYTES + sum(part.dtype.itemsize + 1 for part in self.layout)

    def hold(self, count: int) -> None:
        """Make room for `count` entities in all, within the limit; the index may become stale."""
        need = min(count, self.limit)
        if need > len(self.rows):
            capacity = min(max(need, 2 * len(self.rows)), self.limit)
            self.rows = _grown(self.rows, capacity)
            self.memory = _grown(self.memory, capacity)
            self.deadline_ms = _grown(self.deadline_ms, capacity)
            self.deadline_ms[self.used :] = NEVER_MS
            self.parts = [_grown(part, capacity) for part in self.parts]
            self.begun = [_grown(begun, capacity) for begun in self.begun]
            self.hashes = _grown(self.hashes, capacity)
            self.seen_ms = _grown(self.seen_ms, capacity)

    def join(self, part: Part) -> None:
        """Take up a column: every record begins with its entity's next event."""
        self.layout += (part,)
        self.parts.append(np.zeros(len(self.rows), part.dtype))
        self.begun.append(np.zeros(len(self.rows), np.uint8))

    def leave(self, name: str) -> None:
        """Drop the column of that name."""
        at = [part.name for part in self.layout].index(name)
        self.layout = self.layout[:at] + self.layout[at + 1 :]
        del self.parts[at], self.begun[at]

    def restore_room(self, count: int) -> None:
        """Make room for the `count` entities of a stored state.

        Raises:
            ValueError: there are more than the limit.
        """
        if count > self.limit:
            raise ValueError(
                f"state: it holds {count} entities of one kind in one shard, found "
                f"state.max_entities = {self.limit}; start with at least as many"
            )
        self.hold(count)

    def rebuild_index(self) -> None:
        """Index the rows in use afresh: after growth, or a restore."""
        self.seen_ms[: self.used] = np.maximum(
            self.seen_ms[: self.used], self.rows["last_ms"][: self.used]
        )
        self.slots = np.full(_slots(len(self.rows)), -1, np.int32)
        _index(self.slots, self.hashes, self.used)

    def intern(
        self,
        ids: Strings,
        hashes: NDArray[np.uint64],
        time_ms: NDArray[np.int64],
        bit_set: NDArray[np.bool_],
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_], NDArray[np.void]]:
        """Find or make the row of each event's entity, event by event.

        A full table gives away the row that was seen longest ago among 16 at the cursor, and any
        of them whose entity has outlived its time to live before it grows.

        Args:
            ids: n identifiers.
            hashes: uint64[n], of `ids`.
            time_ms: int64[n], event times.
            bit_set: bool[n], False where the event has no entity of this kind here.

        Returns:
            int32[n], the row of each event, -1 where there is none; bool[n], True where the row
            begins anew with this event; and FORMER[m], the entities that had such rows before.
        """
        most = min(self.used + int(np.count_nonzero(bit_set)), self.limit)
        self.hold(most)
        if 2 * most > len(self.slots):
            self.rebuild_index()
        rows = np.full(len(hashes), -1, np.int32)
        fresh = np.zeros(len(hashes), np.bool_)
        former = np.empty(int(np.count_nonzero(bit_set)), FORMER)
        self.used, self.cursor, taken = _intern(
            ids.data, ids.offsets, hashes, time_ms, bit_set,
            self.rows, self.hashes, self.seen_ms, self.slots, self.used, self.cursor, self.limit,
            self.ttl_ms, rows, fresh, former,
        )  # fmt: skip
        return rows, fresh, former[:taken].copy()

    def place(
        self, events: NDArray[np.int32], rows: NDArray[np.int32], ids: Strings
    ) -> NDArray[np.void]:
        """Write `ids` into `rows` as a replay found them in the log; the index is left stale.

        Args:
            events: int32[m], the events with which the rows begin anew, in order.
            rows: int32[m].
            ids: m identifiers.

        Returns:
            FORMER, as `intern` gave it.
        """
        former = np.empty(len(rows), FORMER)
        if not len(rows):
            return former
        need = int(rows.max()) + 1
        self.restore_room(need)
        self.used = max(self.used, need)
        return former[: _place(self.rows, events, rows, ids.data, ids.offsets, former)]

    def finish_restore(self, used: int, cursor: int) -> None:
        """Take the counters from the log and make the index from the rows."""
        self.restore_room(used)
        self.used, self.cursor = used, cursor
        names = self.rows["id"][:used]
        offsets = np.zeros(used + 1, np.int32)
        np.cumsum(self.rows["id_bytes"][:used], out=offsets[1:])
        kept = np.arange(ID_BYTES)[None, :] < self.rows["id_bytes"][:used, None]
        self.hashes[:used] = hash_strings(Strings(names[kept], offsets))
        self.seen_ms[:used] = self.rows["last_ms"][:used]
        self.rebuild_index()


def memory_bytes(
    entities: int, initial: int, limit: int, layout: Sequence[Part] = ()
) -> tuple[int, dict[str, int]]:
    """Return the rows that a table has room for, and what each takes.

    Args:
        entities: that the table has taken in, one after the other.
        initial: rows it began with; it doubles when they are used up.
        limit: most rows there may be.
        layout: the components' parts.

    Returns:
        Rows, and bytes of a row by "row", "memory", the name of each part, and "index" (hash, time
        of last sight, deadline, and its share of the open hash table, rounded up).
    """
    capacity = min(max(initial, 64), limit)
    while capacity < min(entities, limit):
        capacity = min(2 * capacity, limit)
    found = {"row": ROW.itemsize, "memory": 4 * MEMORY}
    found |= {part.name: part.dtype.itemsize + 1 for part in layout}
    return capacity, found | {"index": 3 * 8 + -(-4 * _slots(capacity) // capacity)}


def _slots(capacity: int) -> int:
    """Return the size of the index: a power of two, at most a quarter of it in use."""
    return 1 << int(max(4 * capacity - 1, 255)).bit_length()


def id_of(record: np.void) -> str:
    """Return the identifier of the entity in a record of ROW or FORMER."""
    return bytes(record["id"][: record["id_bytes"]]).decode()


def _grown(column: NDArray[T], capacity: int) -> NDArray[T]:
    larger = np.zeros((capacity, *column.shape[1:]), column.dtype)
    larger[: len(column)] = column
    return larger


@njit(cache=True, nogil=True)
def _index(slots, hashes, used):  # type: ignore[no-untyped-def]
    mask = np.uint64(len(slots) - 1)
    for row in range(used):
        at = hashes[row] & mask
        while slots[at] >= 0:
            at = (at + np.uint64(1)) & mask
        slots[at] = row


@njit(cache=True)
def _same(row, data, start, size):  # type: ignore[no-untyped-def]
    if row.id_bytes != size:
        return False
    name = row.id
    for j in range(size):  # noqa: SIM110 (numba has no generators)
        if name[j] != data[start + j]:
            return False
    return True


@njit(cache=True)
def _name(row, data, start, size):  # type: ignore[no-untyped-def]
    row.id_bytes = size
    name = row.id
    for j in range(len(name)):
        name[j] = data[start + j] if j < size else 0


@njit(cache=True)
def _leave(former, event, row, entity):  # type: ignore[no-untyped-def]
    former.event = event
    former.row = row
    former.first_ms = entity.first_ms
    former.id_bytes = entity.id_bytes
    for j in range(len(former.id)):
        former.id[j] = entity.id[j]


@njit(cache=True)
def _forget(slots, hashes, row):  # type: ignore[no-untyped-def]
    """Free the slot of `row`, and close the gap so that probes still find what lies behind it."""
    mask = np.uint64(len(slots) - 1)
    one = np.uint64(1)
    at = hashes[row] & mask
    while slots[at] != row:
        at = (at + one) & mask
    ahead = (at + one) & mask
    while slots[ahead] >= 0:
        home = hashes[slots[ahead]] & mask
        if ((ahead - home) & mask) >= ((ahead - at) & mask):
            slots[at] = slots[ahead]
            at = ahead
        ahead = (ahead + one) & mask
    slots[at] = -1


@njit(cache=True)
def _take_row(seen_ms, used, cursor, limit, time_ms, ttl_ms):  # type: ignore[no-untyped-def]
    """Choose the row of a newcomer: an expired one at the cursor, a new one, or the oldest seen."""
    oldest = -1
    for step in range(min(16, used)):
        row = (cursor + step) % used
        if seen_ms[row] + ttl_ms < time_ms:
            return row, used, (row + 1) % used
        if oldest < 0 or seen_ms[row] < seen_ms[oldest]:
            oldest = row
    if used < limit:
        # The cursor goes on, or entities that never expire would hide those that did.
        return used, used + 1, (cursor + 16) % (used + 1)
    return oldest, used, (cursor + 16) % used


@njit(cache=True, nogil=True)
def _intern(  # type: ignore[no-untyped-def]
    data,
    offsets,
    event_hashes,
    time_ms,
    bit_set,
    rows,
    hashes,
    seen_ms,
    slots,
    used,
    cursor,
    limit,
    ttl_ms,
    out,
    fresh,
    former,
):
    taken = 0
    mask = np.uint64(len(slots) - 1)
    one = np.uint64(1)
    n = len(event_hashes)
    for i in range(n):
        # What the index says of an event must be there before its row can be asked for.
        if i + 2 * AHEAD < n:
            prefetch(slots, np.int64(event_hashes[i + 2 * AHEAD] & mask), 4)
        if i + AHEAD < n:
            row = slots[event_hashes[i + AHEAD] & mask]
            if row >= 0:
                prefetch(hashes, row, 8)
                prefetch(seen_ms, row, 8)
                prefetch(rows, row, ROW_SIZE)
        if not bit_set[i]:
            continue
        start = offsets[i]
        size = offsets[i + 1] - start
        h = event_hashes[i]
        at = h & mask
        found = -1
        while slots[at] >= 0:
            row = slots[at]
            if hashes[row] == h and _same(rows[row], data, start, size):
                found = row
                break
            at = (at + one) & mask
        if found < 0:
            before = used
            found, used, cursor = _take_row(seen_ms, used, cursor, limit, time_ms[i], ttl_ms)
            if used == before:
                _leave(former[taken], i, found, rows[found])
                taken += 1
                _forget(slots, hashes, found)
                at = h & mask  # the free slot found above may have moved
                while slots[at] >= 0:
                    at = (at + one) & mask
            slots[at] = found
            hashes[found] = h
            _name(rows[found], data, start, size)
            seen_ms[found] = time_ms[i]
            fresh[i] = True
        elif seen_ms[found] + ttl_ms < time_ms[i]:
            _leave(former[taken], i, found, rows[found])
            taken += 1
            fresh[i] = True
        seen_ms[found] = max(seen_ms[found], time_ms[i])
        out[i] = found
    return used, cursor, taken


@njit(cache=True, nogil=True)
def _place(rows, events, at, data, offsets, former):  # type: ignore[no-untyped-def]
    taken = 0
    for i in range(len(at)):
        if rows[at[i]].id_bytes > 0:
            _leave(former[taken], events[i], at[i], rows[at[i]])
            taken += 1
        _name(rows[at[i]], data, offsets[i], offsets[i + 1] - offsets[i])
    return taken
