"""Columns and event batches in bytes, and the hash that every release must compute alike."""

from __future__ import annotations

import struct
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from state.columns import ColumnReader, Strings, write_columns
from state.events import EventBatch, decode, encode, hash_strings

INT64 = st.integers(-(2**63), 2**63 - 1)
TEXTS = st.text(max_size=12)


def _reference_hash(data: bytes) -> int:
    """FNV-1a and murmur3's finaliser in arbitrary precision."""
    mask = 2**64 - 1
    h = 0xCBF29CE484222325
    for byte in data:
        h = (h ^ byte) * 0x100000001B3 & mask
    h = (h ^ h >> 33) * 0xFF51AFD7ED558CCD & mask
    h = (h ^ h >> 33) * 0xC4CEB9FE1A85EC53 & mask
    return h ^ h >> 33


# Shards and stored rows depend on these: a change loses every savepoint.
GOLDEN = {
    b"": 0xEFD01F60BA992926,
    b"u-000123": 0x73AB2FED5C9AFEEB,
    b"m-0042": 0x4E0BF54AB6AC56E6,
    "ü".encode(): 0x9A8FA3AAAA09FD21,
    b"a" * 64: 0xA5EB12DAE6B009E4,
}


@pytest.mark.parametrize("text", list(GOLDEN))
def test_hashes_are_pinned(text: bytes) -> None:
    assert hash_strings(Strings.of([text])).tolist() == [GOLDEN[text]]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.binary(max_size=80), max_size=20))
def test_hashes_equal_the_reference(strings: list[bytes]) -> None:
    assert hash_strings(Strings.of(strings)).tolist() == [_reference_hash(s) for s in strings]


def test_hashes_spread_short_ids_over_low_and_high_bits() -> None:
    hashes = hash_strings(Strings.of([f"u-{i}".encode() for i in range(4096)]))
    for bits in (hashes & np.uint64(63), hashes >> np.uint64(58)):
        counts = np.bincount(bits.astype(np.int64), minlength=64)
        assert counts.min() > 30  # 64 expected, standard deviation 8
        assert counts.max() < 105


@settings(deadline=None, derandomize=True)
@given(st.lists(st.binary(max_size=9), max_size=12), st.data())
def test_strings_are_a_list(strings: list[bytes], data: st.DataObject) -> None:
    column = Strings.of(strings)
    assert len(column) == len(strings)
    start = data.draw(st.integers(0, len(strings)))
    stop = data.draw(st.integers(start, len(strings)))
    keep = np.array(
        data.draw(st.lists(st.booleans(), min_size=len(strings), max_size=len(strings))), np.bool_
    )

    def plain(some: Strings) -> list[bytes]:
        ends = some.offsets.tolist()
        return [bytes(some.data[a:b]) for a, b in pairwise(ends)]

    assert plain(column) == strings
    assert plain(column.part(start, stop)) == strings[start:stop]
    assert plain(column.only(keep)) == [s for s, k in zip(strings, keep, strict=True) if k]
    assert plain(column.part(start, stop).only(keep[start:stop])) == [
        s for s, k in zip(strings[start:stop], keep[start:stop], strict=True) if k
    ]


@settings(deadline=None, derandomize=True)
@given(
    st.binary(max_size=20),
    st.lists(INT64, max_size=5),
    st.binary(max_size=11),
    st.lists(TEXTS, max_size=4),
)
def test_columns_come_back_aligned(
    head: bytes, numbers: list[int], raw: bytes, texts: list[str]
) -> None:
    strings = Strings.of([t.encode() for t in texts])
    data = write_columns(head, [np.frombuffer(raw, np.uint8), np.array(numbers, np.int64), strings])
    assert len(data) % 8 == 0
    assert data.startswith(head)
    read = ColumnReader(data, len(head))
    assert read.take(np.uint8, len(raw)).tobytes() == raw
    assert read.take(np.int64, len(numbers)).tolist() == numbers
    back = read.strings(len(texts))
    assert [back[i] for i in range(len(back))] == texts


@st.composite
def batches(draw: st.DrawFn) -> EventBatch:
    n = draw(st.integers(0, 6))
    kinds = draw(st.integers(0, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    texts = [Strings.of([draw(TEXTS).encode() for _ in range(n)]) for _ in range(kinds + 1)]
    values = [draw(st.floats(allow_nan=True)) for _ in range(n)]
    return EventBatch(
        topic=draw(TEXTS),
        time_ms=rng.integers(-(2**63), 2**63 - 1, n),
        value=np.array(values, np.float64),
        mark=rng.integers(0, 256, n).astype(np.uint8),
        owned=rng.integers(0, 256, n).astype(np.uint8),
        partition=rng.integers(0, 2**31 - 1, n).astype(np.int32),
        offset=rng.integers(0, 2**63 - 1, n),
        ingest_ms=rng.integers(0, 2**63 - 1, n),
        event_id=texts[-1],
        ids=tuple(texts[:kinds]),
        hashes=rng.integers(0, 2**63 - 1, (kinds, n)).astype(np.uint64),
    )


COLUMNS = ("time_ms", "value", "mark", "owned", "partition", "offset", "ingest_ms", "hashes")


@settings(deadline=None, derandomize=True)
@given(batches())
def test_a_batch_comes_back(batch: EventBatch) -> None:
    data = encode(batch)
    back = decode(data)
    assert back.topic == batch.topic
    assert len(back) == len(batch)
    for name in COLUMNS:
        assert getattr(back, name).dtype == getattr(batch, name).dtype
        assert getattr(back, name).tobytes() == getattr(batch, name).tobytes(), name
    for mine, other in zip((back.event_id, *back.ids), (batch.event_id, *batch.ids), strict=True):
        assert mine.data.tobytes() == other.data.tobytes()
        assert mine.offsets.tolist() == other.offsets.tolist()
    assert encode(back) == data


@settings(deadline=None, derandomize=True)
@given(batches(), st.data())
def test_parts_of_a_batch(batch: EventBatch, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(batch)))
    stop = data.draw(st.integers(start, len(batch)))
    part = decode(encode(batch.part(start, stop)))
    assert len(part) == stop - start
    assert part.topic == batch.topic
    for name in COLUMNS:
        assert getattr(part, name).tobytes() == getattr(batch, name)[..., start:stop].tobytes(), (
            name
        )
    assert [part.event_id[i] for i in range(len(part))] == [
        batch.event_id[i] for i in range(start, stop)
    ]


def _empty() -> bytes:
    return encode(
        EventBatch(
            "t", np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.uint8), np.zeros(0, np.uint8),
            np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.int64), Strings.of([]), (),
            np.zeros((0, 0), np.uint64),
        )
    )  # fmt: skip


def test_another_version_is_refused() -> None:
    data = bytearray(_empty())
    struct.pack_into("<H", data, 4, 9)
    with pytest.raises(ValueError, match="expected event batch form 1, found 9: parse and score"):
        decode(bytes(data))


@pytest.mark.parametrize("data", [b"", b"EdEB", b"junk" * 10])
def test_what_is_no_batch_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="expected an event batch, found"):
        decode(data)


def test_decoding_copies_nothing() -> None:
    assert not decode(_empty()).time_ms.flags.writeable
