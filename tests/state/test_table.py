"""The table of entities against a dict: newcomers, evictions, time to live, growth, collisions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from state.columns import Strings
from state.events import hash_strings
from state.table import MEMORY, NEVER_MS, ROW, ROW_BYTES, Table, id_of

FOREVER_MS = 1 << 60


def intern(
    table: Table,
    names: Sequence[str],
    time_ms: Sequence[int] | None = None,
    hashes: NDArray[np.uint64] | None = None,
) -> tuple[list[int], list[bool], list[tuple[int, int, str]]]:
    """Intern `names`; an empty one is no entity. Return rows, fresh and (event, row, former)."""
    column = Strings.of([name.encode() for name in names])
    times = np.array(time_ms if time_ms is not None else range(len(names)), np.int64)
    keys = hash_strings(column) if hashes is None else hashes
    there = np.array([bool(name) for name in names], np.bool_)
    rows, fresh, former = table.intern(column, keys, times, there)
    left = [(int(f["event"]), int(f["row"]), id_of(f)) for f in former]
    return rows.tolist(), fresh.tolist(), left


def names_of(table: Table) -> list[str]:
    return [id_of(table.rows[row]) for row in range(table.used)]


def assert_index_finds_all(table: Table) -> None:
    """Every row in use is found by its id, and the slots hold each row once."""
    held = table.slots[table.slots >= 0]
    assert sorted(held.tolist()) == list(range(table.used))
    mask = len(table.slots) - 1
    for row in range(table.used):
        at = int(table.hashes[row]) & mask
        while table.slots[at] != row:
            assert table.slots[at] >= 0, f"row {row} is cut off by a free slot"
            at = (at + 1) & mask


def test_first_event_makes_a_row_and_the_next_finds_it() -> None:
    table = Table.empty(4, 100, FOREVER_MS)
    rows, fresh, left = intern(table, ["a", "b", "", "a", "c", "b"])
    assert rows == [0, 1, -1, 0, 2, 1]
    assert fresh == [True, True, False, False, True, False]
    assert left == []
    assert names_of(table) == ["a", "b", "c"]
    assert table.seen_ms[:3].tolist() == [3, 5, 4]


def test_nothing_to_intern() -> None:
    table = Table.empty(4, 100, FOREVER_MS)
    assert intern(table, []) == ([], [], [])
    assert intern(table, ["", ""]) == ([-1, -1], [False, False], [])
    assert table.used == 0


def test_growth_keeps_everything() -> None:
    table = Table.empty(1, 10_000, FOREVER_MS)
    names = [f"e-{i}" for i in range(1000)]
    assert len(table.rows) == 64
    for at in range(0, 1000, 50):
        part = names[at : at + 50]
        assert intern(table, part)[0] == list(range(at, at + 50))
        table.memory[at : at + 50] = at
        table.deadline_ms[at : at + 50] = at
    assert names_of(table) == names
    assert intern(table, names[::-1])[0] == list(range(1000))[::-1]
    assert table.memory[:1000, 5].tolist() == [float(i // 50 * 50) for i in range(1000)]
    assert (table.deadline_ms[1000:] == NEVER_MS).all()
    assert_index_finds_all(table)
    assert 1000 <= len(table.rows) == len(table.seen_ms) == len(table.hashes) <= 10_000


def test_a_full_table_gives_away_the_row_seen_longest_ago() -> None:
    table = Table.empty(4, 4, FOREVER_MS)
    intern(table, ["a", "b", "c", "d"], [10, 3, 20, 30])
    rows, fresh, left = intern(table, ["e", "b", "a"], [40, 41, 42])
    assert rows == [1, 0, 2]  # e takes b's row, b comes back and takes a's, a takes c's
    assert fresh == [True, True, True]
    assert left == [(0, 1, "b"), (1, 0, "a"), (2, 2, "c")]
    assert names_of(table) == ["b", "e", "a", "d"]
    assert table.used == 4
    assert_index_finds_all(table)


def test_a_row_may_change_hands_twice_in_a_batch() -> None:
    table = Table.empty(1, 1, FOREVER_MS)
    rows, fresh, left = intern(table, ["a", "b", "c", "a"])
    assert rows == [0, 0, 0, 0]
    assert fresh == [True] * 4
    assert left == [(1, 0, "a"), (2, 0, "b"), (3, 0, "c")]


def test_an_entity_past_its_time_to_live_begins_anew_in_its_row() -> None:
    table = Table.empty(4, 4, 100)
    intern(table, ["a"], [0])
    assert intern(table, ["a"], [100])[1] == [False]
    table.rows["first_ms"][0] = 77
    column = Strings.of([b"a"])
    rows, fresh, former = table.intern(
        column, hash_strings(column), np.array([201]), np.array([True])
    )
    assert (rows.tolist(), fresh.tolist()) == ([0], [True])
    assert (id_of(former[0]), int(former[0]["first_ms"])) == ("a", 77)


def test_a_newcomer_takes_an_expired_row_before_the_table_grows() -> None:
    table = Table.empty(64, 64, 100)
    intern(table, ["a", "b"], [0, 0])
    rows, _, left = intern(table, ["c", "d"], [101, 101])
    assert rows == [0, 1]
    assert left == [(0, 0, "a"), (1, 1, "b")]
    assert table.used == 2


def test_entities_that_never_expire_do_not_hide_those_that_did() -> None:
    table = Table.empty(64, 100_000, 100)
    hot = [f"hot-{i}" for i in range(20)]
    for step in range(300):
        intern(table, [*hot, f"once-{step}"], [step * 10] * 21)
    assert table.used < 60  # ten newcomers live at a time
    assert_index_finds_all(table)


@pytest.mark.parametrize("hash_", [0, 7, 2**64 - 1])
def test_equal_hashes_are_told_apart_by_their_ids(hash_: int) -> None:
    table = Table.empty(64, 100, FOREVER_MS)
    names = ["a", "b", "ab", "a" * 64, "b" * 64]
    same = np.full(len(names), hash_, np.uint64)
    assert intern(table, names, hashes=same)[0] == [0, 1, 2, 3, 4]
    assert intern(table, names[::-1], hashes=same)[0] == [4, 3, 2, 1, 0]
    assert_index_finds_all(table)


MODEL_OPS = st.lists(
    st.lists(st.tuples(st.integers(0, 25), st.integers(-5, 40)), max_size=12), max_size=25
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    batches=MODEL_OPS,
    limit=st.integers(1, 12),
    ttl_ms=st.sampled_from([30, FOREVER_MS]),
    buckets=st.sampled_from([1, 3, 1 << 62]),
)
def test_against_a_dict(
    batches: list[list[tuple[int, int]]], limit: int, ttl_ms: int, buckets: int
) -> None:
    """Hashes fall into few buckets at the end of the index, so that probes run on and wrap."""
    table = Table.empty(1, limit, ttl_ms)
    row_of: dict[str, int] = {}
    seen: dict[int, int] = {}
    now = 0
    for batch in batches:
        names = [f"e-{number}" for number, _ in batch]
        times = []
        for _, step in batch:
            now += max(step, 0)
            times.append(now + min(step, 0))
        own = hash_strings(Strings.of([name.encode() for name in names]))
        hashes = np.uint64(2**64 - 1) - own % np.uint64(buckets)
        rows, fresh, left = intern(table, names, times, hashes)
        gone = {event: (row, name) for event, row, name in left}
        for i, (name, row, time) in enumerate(zip(names, rows, times, strict=True)):
            if name in row_of:
                assert row == row_of[name]
                expired = seen[row] + ttl_ms < time
                assert fresh[i] == expired
                assert gone.get(i) == ((row, name) if expired else None)
                seen[row] = max(seen[row], time)
            else:
                assert fresh[i]
                owner = {r: n for n, r in row_of.items()}.get(row)
                assert gone.get(i) == (None if owner is None else (row, owner))
                if owner is not None:
                    expired = seen[row] + ttl_ms < time
                    assert expired or len(row_of) == limit
                    assert expired or seen[row] == min(seen.values())
                    del row_of[owner]
                row_of[name] = row
                seen[row] = time
        assert table.used == len(seen) <= limit
        assert {id_of(table.rows[r]): r for r in range(table.used)} == row_of
        assert table.seen_ms[: table.used].tolist() == [seen[r] for r in range(table.used)]
        assert_index_finds_all(table)


def test_deleting_shifts_back_what_lies_behind_across_the_end() -> None:
    """Probes from the last slots wrap to the first; a deletion there must close the gap."""
    table = Table.empty(8, 8, FOREVER_MS)
    last = len(table.slots) - 1
    hashes = np.array([last - 1, last, last - 1, last, 0, 1, last - 1, 5], np.uint64)
    names = [f"e-{i}" for i in range(8)]
    intern(table, names, hashes=hashes)
    for i in range(8):
        new = np.array([last], np.uint64)
        (row,), _, ((_, _, gone),) = intern(table, [f"n-{i}"], [100 + i], new)
        assert gone == names[row]
        assert_index_finds_all(table)
        kept = [j for j in range(8) if id_of(table.rows[j]) == names[j]]
        found = intern(table, [names[j] for j in kept], [8] * len(kept), hashes[kept])
        assert found[0] == kept
        assert len(kept) == 7 - i


def test_a_restored_table_goes_on_like_the_first() -> None:
    table = Table.empty(1, 5, FOREVER_MS)
    names = ["a", "b", "c", "ü", "d" * 64]
    intern(table, names)
    table.rows["last_ms"][:5] = table.seen_ms[:5]
    other = Table.empty(1, 5, FOREVER_MS)
    column = Strings.of([n.encode() for n in names])
    left = other.place(np.arange(5, dtype=np.int32), np.arange(5, dtype=np.int32), column)
    assert len(left) == 0
    other.rows["last_ms"][:5] = table.seen_ms[:5]
    other.finish_restore(table.used, table.cursor)
    for batch in (["c", "x"], ["a", "y", "z"]):
        assert intern(other, batch, [50] * len(batch)) == intern(table, batch, [50] * len(batch))
    assert names_of(other) == names_of(table)
    assert other.hashes[:5].tolist() == table.hashes[:5].tolist()


def test_place_tells_whose_the_rows_were() -> None:
    table = Table.empty(1, 5, FOREVER_MS)
    intern(table, ["a"])
    table.rows["first_ms"][0] = 42
    left = table.place(
        np.array([3, 4, 9], np.int32), np.array([0, 1, 0], np.int32), Strings.of([b"b", b"c", b"d"])
    )
    assert [(int(f["event"]), int(f["row"]), id_of(f)) for f in left] == [(3, 0, "a"), (9, 0, "b")]
    assert int(left[0]["first_ms"]) == 42
    assert names_of(table) == ["d", "c"]
    assert len(table.place(np.zeros(0, np.int32), np.zeros(0, np.int32), Strings.of([]))) == 0


def test_a_row_takes_at_most_500_bytes() -> None:
    assert ROW_BYTES == ROW.itemsize + 4 * MEMORY + 8 <= 600
    assert ROW.itemsize % 8 == 0
