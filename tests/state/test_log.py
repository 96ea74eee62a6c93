"""The log of a shard: records in bytes, pages in turn, and what may be removed."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from state.columns import Strings
from state.log import (
    FORMER_ANSWER,
    LoggedBatch,
    ShardLog,
    decode_answers,
    decode_batch,
    encode_answers,
    encode_batch,
)
from state.table import NEVER_MS, ROW_BYTES, Table, id_of

FORM = {"kinds": ["user", "merchant"], "page_rows": 8}
ANSWER = np.dtype(
    [("mixture", np.int16, 12), ("mark_surprise", np.uint8, 8), ("amount_surprise", np.uint16)]
)
ABSENT = np.array([((0,) * 12, (0,) * 8, 65535)], ANSWER)[0]


class DictStore(dict[int, bytes]):
    def put(self, key: int, value: bytes) -> None:
        self[key] = value

    def remove(self, key: int) -> None:
        self.pop(key, None)


def new_store() -> DictStore:
    """Return a map as a new shard leaves it: with its form."""
    store = DictStore()
    shard_log(store).restore([Table.empty(1, 9, 9), Table.empty(1, 9, 9)], FORM)
    return store


def logged(n: int, seed: int = 0, kinds: int = 2, partitions: int = 3) -> LoggedBatch:
    rng = np.random.default_rng(seed)
    fresh = rng.random((kinds, n)) < 0.4
    names = [
        Strings.of([f"é-{k}-{i}".encode() for i in range(int(f.sum()))])
        for k, f in enumerate(fresh)
    ]
    return LoggedBatch(
        topic="eddy.payments",
        watermark_ms=int(rng.integers(-(2**62), 2**62)),
        late_ms=int(rng.integers(-(2**62), 2**62)),
        clocks=rng.integers(-(2**62), 2**62, partitions),
        used=rng.integers(0, 2**40, kinds),
        cursor=rng.integers(0, 2**40, kinds),
        time_ms=rng.integers(-(2**62), 2**62, n),
        value=np.where(rng.random(n) < 0.2, np.nan, rng.normal(size=n)),
        offset=rng.integers(0, 2**62, n),
        partition=rng.integers(0, 2**31 - 1, n).astype(np.int32),
        row=rng.integers(-1, 2**31 - 1, (kinds, n)).astype(np.int32),
        mark=rng.integers(0, 256, n).astype(np.uint8),
        partner=rng.integers(0, 256, (kinds, n)).astype(np.uint8),
        fresh=fresh,
        event_id=Strings.of([f"p-{i}".encode() for i in range(n)]),
        names=tuple(names),
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 30), st.integers(0, 10_000), st.integers(1, 8), st.integers(0, 70))
def test_a_batch_record_comes_back(n: int, seed: int, kinds: int, partitions: int) -> None:
    batch = logged(n, seed, kinds, partitions)
    back = decode_batch(encode_batch(batch))
    assert len(back) == n
    for name in LoggedBatch.__dataclass_fields__:
        mine, other = getattr(back, name), getattr(batch, name)
        if isinstance(other, np.ndarray):
            assert mine.dtype == other.dtype, name
            assert mine.shape == other.shape, name
            assert mine.tobytes() == other.tobytes(), name
        elif isinstance(other, str | int):
            assert mine == other, name
    for mine, other in zip(
        (back.event_id, *back.names), (batch.event_id, *batch.names), strict=True
    ):
        assert [mine[i] for i in range(len(mine))] == [other[i] for i in range(len(other))]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=5), st.integers(0, 1000))
def test_an_answer_record_comes_back(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    answers = [np.frombuffer(rng.bytes(size * ANSWER.itemsize), ANSWER, size) for size in sizes]
    back, slot = decode_answers(encode_answers(answers, len(sizes), 200), ABSENT)
    assert slot == 200
    assert back is not None
    assert [b.tobytes() for b in back] == [a.tobytes() for a in answers]


def test_answers_of_before_amounts_say_nothing_of_them() -> None:
    former = np.dtype([(name, ANSWER[name]) for name in FORMER_ANSWER])
    rng = np.random.default_rng(3)
    answers = [np.frombuffer(rng.bytes(n * former.itemsize), former, n) for n in (4, 0, 1)]
    data = bytearray(encode_answers(answers, 3, 7))
    struct.pack_into("<H", data, 4, 3)
    back, slot = decode_answers(bytes(data), ABSENT)
    assert slot == 7
    assert back is not None
    for mine, other in zip(back, answers, strict=True):
        assert mine.dtype == ANSWER
        for name in FORMER_ANSWER:
            np.testing.assert_array_equal(mine[name], other[name])
        assert (mine["amount_surprise"] == 65535).all()


def test_no_answer_comes_back_as_none() -> None:
    assert decode_answers(encode_answers(None, 3), ABSENT) == (None, 0)


ADVICE = "restore with the release that wrote it, or with one that migrates it"


def test_a_batch_record_of_another_version_is_refused() -> None:
    data = bytearray(encode_batch(logged(2)))
    struct.pack_into("<H", data, 4, 99)
    with pytest.raises(ValueError, match=f"event log: .* of version 4, found .* 99; {ADVICE}"):
        decode_batch(bytes(data))


def test_an_answer_record_of_another_version_is_refused() -> None:
    data = bytearray(encode_answers(None, 1))
    struct.pack_into("<H", data, 4, 99)
    with pytest.raises(ValueError, match=f"answer log: .* of version 4, found .* 99; {ADVICE}"):
        decode_answers(bytes(data), ABSENT)
    with pytest.raises(ValueError, match="answer log: expected b'EdLa'"):
        decode_answers(encode_batch(logged(2)), ABSENT)


def filled(count: int, seed: int = 0) -> Table:
    """Return a table with `count` entities whose every column holds something."""
    rng = np.random.default_rng(seed)
    table = Table.empty(1, 1 << 20, 1 << 60)
    table.place(
        np.arange(count, dtype=np.int32),
        np.arange(count, dtype=np.int32),
        Strings.of([f"e-{i}".encode() for i in range(count)]),
    )
    table.rows["level"][:count] = rng.normal(size=count)
    table.rows["last_ms"][:count] = rng.integers(0, 2**40, count)
    table.memory[:count] = rng.normal(size=(count, 64))
    table.deadline_ms[:count] = rng.integers(0, 2**40, count)
    table.finish_restore(count, 0)
    return table


def shard_log(store: DictStore, kinds: int = 2, min_bytes: int = 1024) -> ShardLog:
    return ShardLog(store, kinds, page_rows=8, ratio=1.0, min_bytes=min_bytes)


def test_a_page_of_another_version_is_refused() -> None:
    store = new_store()
    tables = [filled(5), filled(3)]
    log = shard_log(store)
    log.append(1, b"x" * 100_000, tables)
    log.write_pages(tables, 1)
    data = bytearray(store[-1])
    struct.pack_into("<H", data, 4, 99)
    with pytest.raises(ValueError, match=f"page of a table: .* found .* 99; {ADVICE}"):
        shard_log(DictStore({0: new_store()[0], -1: bytes(data)})).restore(
            [filled(0), filled(0)], FORM
        )


def test_pages_bring_the_tables_back() -> None:
    store = new_store()
    tables = [filled(100, 1), filled(17, 2)]
    log = shard_log(store)
    log.append(7, encode_batch(logged(3)), tables)
    log.debt = 1e9
    written = log.write_pages(tables, 7)
    pages = sum(len(v) for k, v in store.items() if k < 0)
    assert pages <= written <= 1.5 * pages
    assert sorted(k for k in store if k < 0) == sorted(
        -1 - (page * 2 + kind) for kind, pages in ((0, 13), (1, 3)) for page in range(pages)
    )
    empty = [Table.empty(1, 1 << 20, 1 << 60) for _ in tables]
    restored = shard_log(store).restore(empty, FORM)
    assert [(seq, answer) for seq, _, answer in restored.batches] == [(7, None)]
    assert [p.tolist() for p in restored.page_seq] == [[7] * 13, [7] * 3]
    for mine, other in zip(empty, tables, strict=True):
        mine.finish_restore(other.used, other.cursor)
        assert mine.rows[: mine.used].tobytes() == other.rows[: other.used].tobytes()
        assert mine.memory[: mine.used].tobytes() == other.memory[: other.used].tobytes()
        assert mine.deadline_ms[: mine.used].tolist() == other.deadline_ms[: other.used].tolist()
        assert mine.hashes[: mine.used].tolist() == other.hashes[: other.used].tolist()
        assert (mine.deadline_ms[mine.used :] == NEVER_MS).all()
        assert id_of(mine.rows[16]) == "e-16"


def test_a_record_lives_until_every_page_is_newer() -> None:
    store = new_store()
    tables = [filled(30, 1), filled(9, 2)]  # 4 pages and 2
    log = shard_log(store)
    for seq in range(1, 13):
        log.append(seq, encode_batch(logged(2, seq)), tables)
        log.append_answers(seq, encode_answers(None, 2), tables)
        log.debt = 1.0  # one page each time
        log.write_pages(tables, seq)
        kept = sorted(k for k in store if k > 0)
        first = 1 if seq < 6 else seq - 4  # of six pages the oldest is as of five batches ago
        assert kept == [k for s in range(first, seq + 1) for k in (2 * s, 2 * s + 1)], seq
        assert log.bytes == sum(len(v) for k, v in store.items() if k > 0)


def test_the_last_record_stays_for_its_clocks() -> None:
    store = new_store()
    tables = [filled(3), filled(3)]
    log = shard_log(store)
    for seq in (1, 2):
        log.append(seq, encode_batch(logged(1)), tables)
        log.append_answers(seq, encode_answers(None, 2), tables)
    log.debt = 1e9
    log.write_pages(tables, 2)
    assert sorted(k for k in store if k > 0) == [4, 5]


def test_records_are_removed_in_order_also_when_answers_came_later() -> None:
    store = new_store()
    tables = [filled(3), filled(3)]
    log = shard_log(store)
    for seq in (1, 2, 3):
        log.append(seq, encode_batch(logged(1)), tables)
    for seq in (1, 2, 3):
        log.append_answers(seq, encode_answers(None, 2), tables)
    log.debt = 1e9
    log.write_pages(tables, 3)
    assert sorted(k for k in store if k > 0) == [6, 7]


def test_debt_follows_the_bytes_logged_and_ends_at_one_round() -> None:
    tables = [filled(80), filled(0)]
    rows = 80 * ROW_BYTES
    log = shard_log(new_store(), min_bytes=4 * rows)
    log.append(1, b"x" * 1000, tables)
    assert log.debt == pytest.approx(1000 * rows / (4 * rows))
    log.append(2, b"x" * 10_000_000, tables)
    assert log.debt == rows


def test_nothing_is_written_for_empty_tables() -> None:
    store = new_store()
    log = shard_log(store)
    tables = [filled(0), filled(0)]
    log.append(1, b"x" * 1000, tables)
    assert log.debt == 0.0
    log.debt = 10.0
    assert log.write_pages(tables, 1) == 0
    assert list(store) == [0, 2]


def test_a_restored_log_goes_on_with_its_oldest_page() -> None:
    store = new_store()
    tables = [filled(30, 1), filled(9, 2)]
    log = shard_log(store)
    log.append(1, encode_batch(logged(1)), tables)
    for seq in range(1, 6):
        log.debt = 1.0
        log.write_pages(tables, seq)  # five of six pages
    again = shard_log(store)
    empty = [Table.empty(1, 1 << 20, 1 << 60) for _ in tables]
    again.restore(empty, FORM)
    again.debt = 1.0
    again.write_pages(tables, 9)
    assert -1 - (1 * 2 + 1) in store  # the second page of the second kind, which was missing
    assert len([k for k in store if k < 0]) == 6


def test_page_out_of_range() -> None:
    with pytest.raises(IndexError):
        shard_log(new_store())._at(3)


def test_a_state_of_another_form_is_refused() -> None:
    store = new_store()
    tables = [filled(30, 1), filled(9, 2)]
    log = shard_log(store)
    log.append(1, encode_batch(logged(1)), tables)
    log.debt = 1e9
    log.write_pages(tables, 1)
    with pytest.raises(
        ValueError, match="state: it was written with page_rows = 8, this job has 16; start with"
    ):
        shard_log(store).restore([filled(0), filled(0)], FORM | {"page_rows": 16})
    with pytest.raises(ValueError, match="written with kinds = .'user', 'merchant'., this job has"):
        shard_log(store, kinds=1).restore([filled(0)], FORM | {"kinds": ["user"]})
    del store[0]
    with pytest.raises(ValueError, match="expected a record of its form, found none"):
        shard_log(store).restore([filled(0), filled(0)], FORM)


def test_a_state_of_more_entities_than_allowed_is_refused() -> None:
    store = new_store()
    tables = [filled(30, 1), filled(9, 2)]
    log = shard_log(store)
    log.append(1, encode_batch(logged(1)), tables)
    log.debt = 1e9
    log.write_pages(tables, 1)
    small = [Table.empty(1, 10, 1), Table.empty(1, 10, 1)]
    with pytest.raises(ValueError, match="found state.max_entities = 10; start with at least"):
        shard_log(store).restore(small, FORM)
