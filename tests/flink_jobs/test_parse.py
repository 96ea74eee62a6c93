"""The parse step on batches: columns, shards, rejected messages, dead letters."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace

import numpy as np
import orjson
import pytest

from flink_jobs import parse as parse_module
from flink_jobs.parse import (
    DEAD_LETTER_MAX_BYTES,
    Parsed,
    Records,
    Rejected,
    dead_letter,
    parse,
)
from flink_jobs.parse_message import Event, Fault
from state.events import EventBatch, Strings, decode, encode, hash_strings
from tests.flink_jobs.parse_cases import (
    INGEST_MS,
    LOGINS,
    METRICS,
    PAYMENTS,
    POISONS,
    SECRET,
    Poison,
    payment,
    raw_payment,
    reasons,
    records,
)


def only_batch(parsed: Parsed) -> EventBatch:
    [(shard, batch)] = parsed.batches
    assert shard == 0
    return batch


def texts(strings: Strings) -> list[str]:
    return [strings[i] for i in range(len(strings))]


@pytest.fixture
def no_exact_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a message is left to the exact reader."""

    def refuse(raw: bytes, *_: object) -> Event | Fault:
        raise AssertionError(f"left to the exact reader: {raw!r}")

    monkeypatch.setattr(parse_module, "read_message", refuse)


def test_columns_of_payments() -> None:
    values = [payment(), payment(payment_id="p-2", user_id=None, amount=5, channel="x")]
    parsed = parse(records(values), PAYMENTS, 1)
    batch = only_batch(parsed)
    assert parsed.rejected == []
    assert batch.topic == "eddy.payments"
    assert batch.time_ms.tolist() == [INGEST_MS - 877] * 2
    assert batch.value.tolist() == [1299.0, 5.0]
    assert batch.mark.tolist() == [0, 255]
    assert batch.owned.tolist() == [0b111, 0b110]
    assert batch.partition.tolist() == [0, 1]
    assert batch.offset.tolist() == [1000, 1001]
    assert batch.ingest_ms.tolist() == [INGEST_MS] * 2
    assert texts(batch.event_id) == ["p-000001", "p-2"]
    assert [texts(ids) for ids in batch.ids] == [
        ["u-000123", ""],
        ["m-0042", "m-0042"],
        ["d-000123-1", "d-000123-1"],
    ]
    assert batch.hashes.tolist() == [hash_strings(ids).tolist() for ids in batch.ids]


def test_columns_have_the_types_of_the_wire() -> None:
    batch = only_batch(parse(records([payment()]), PAYMENTS, 1))
    types = {name: getattr(batch, name).dtype for name in ("time_ms", "value", "mark", "owned")}
    assert types == {"time_ms": "i8", "value": "f8", "mark": "u1", "owned": "u1"}
    types = {name: getattr(batch, name).dtype for name in ("partition", "offset", "ingest_ms")}
    assert types == {"partition": "i4", "offset": "i8", "ingest_ms": "i8"}
    assert encode(decode(encode(batch))) == encode(batch)


def test_no_records_and_no_events() -> None:
    assert parse(records([]), PAYMENTS, 1) == Parsed([], [])
    parsed = parse(records([b"{", None]), PAYMENTS, 4)
    assert parsed.batches == []
    assert reasons(parsed) == ["invalid_json", "empty_message"]


@pytest.mark.parametrize("poison", POISONS, ids=lambda poison: poison.name)
@pytest.mark.compiled
def test_poison_is_rejected_and_its_neighbours_are_not(poison: Poison) -> None:
    values = [payment(), poison.value, payment(payment_id="p-3")]
    parsed = parse(records(values), PAYMENTS, 1)
    batch = only_batch(parsed)
    assert texts(batch.event_id) == ["p-000001", "p-3"]
    assert batch.offset.tolist() == [1000, 1002]
    [rejected] = parsed.rejected
    assert rejected.reason == poison.reason
    assert (rejected.topic, rejected.partition, rejected.offset) == ("eddy.payments", 1, 1001)
    assert rejected.timestamp_ms == INGEST_MS
    assert rejected.value == (poison.value or b"")


@pytest.mark.compiled
def test_all_poisons_in_one_batch() -> None:
    values = [value for poison in POISONS for value in (poison.value, payment())]
    parsed = parse(records(values), PAYMENTS, 1)
    assert len(only_batch(parsed)) == len(POISONS)
    assert reasons(parsed) == [poison.reason for poison in POISONS]


PLAIN = [
    payment(),
    payment(user_id=None, device_id=None),
    payment(note={"a": [1, 2.5, {"b": None}], "c": '"quoted" \\ \n 😀 é'}),
    payment(user_id="zoë"),
    b'{"first":{"amount":1,"channel":[{"amount":2},{"amount":3}]},' + payment()[1:],
    raw_payment("note", "[" * 31 + "]" * 31),
    payment(event_time="2016-12-31T23:59:60Z"),
    payment(event_time=INGEST_MS),
    payment(event_time="2026-01-05T09:00:00.123456+01:00"),
    raw_payment("note", '"\\u00e9\\ud83d\\ude00\\/"'),
    raw_payment("channel", "null"),
    raw_payment("user_id", "123"),
    raw_payment("amount", "999999999999999"),
    raw_payment("amount", "1e3"),
    raw_payment("amount", "1299.0000000000000000000000000"),
    b" \r\n\t" + json.dumps(json.loads(payment()), indent=2).encode() + b"\n",
    b"{" + b",".join(reversed(payment()[1:-1].split(b","))) + b"}",
]


@pytest.mark.usefixtures("no_exact_reader")
@pytest.mark.parametrize("raw", PLAIN)
def test_plain_payments_are_read_by_the_compiled_reader(raw: bytes) -> None:
    assert len(only_batch(parse(records([raw]), PAYMENTS, 1))) == 1


@pytest.mark.usefixtures("no_exact_reader")
def test_nested_streams_are_read_by_the_compiled_reader() -> None:
    login = (
        b'{"meta":{"uuid":7,"at":1767600001000},"who":{"account":"ann"},"outcome":{"code":401},'
        b'"client":{"addresses":["192.0.2.1","192.0.2.2"]},"a/b~c":"shop"}'
    )
    batch = only_batch(parse(records([login]), LOGINS, 1))
    assert [texts(ids) for ids in batch.ids] == [["ann"], ["192.0.2.1"], ["shop"]]
    assert (texts(batch.event_id), batch.mark.tolist()) == (["7"], [1])
    assert np.isnan(batch.value).all()
    metric = b'{"n": "a", "t": 1, "sensor": 5.0, "fields": [0, {"reading": -0.12345678901234567}]}'
    batch = only_batch(parse(records([metric]), METRICS, 1))
    assert (texts(batch.ids[0]), batch.value.tolist()) == (["5.0"], [-0.12345678901234567])


def test_strings_of_the_exact_reader_stand_in_their_rows() -> None:
    values = [
        payment(payment_id="a"),
        raw_payment("user_id", '"\\u0075-7"'),
        payment(payment_id="c", user_id="u-9"),
        raw_payment("payment_id", '"\\/"'),
    ]
    batch = only_batch(parse(records(values), PAYMENTS, 1))
    assert texts(batch.event_id) == ["a", "p-000001", "c", "/"]
    assert texts(batch.ids[0]) == ["u-000123", "u-7", "u-9", "u-000123"]


def many() -> Records:
    values = [
        payment(
            payment_id=f"p-{i}",
            user_id=f"u-{i % 17}" if i % 3 else None,
            merchant_id=f"m-{i % 5}",
            device_id=None if i % 4 else f"d-{i}",
        )
        for i in range(200)
    ]
    return records(values)


def test_every_shard_gets_the_events_of_its_entities_in_order() -> None:
    whole = only_batch(parse(many(), PAYMENTS, 1))
    shards = 7
    batches = dict(parse(many(), PAYMENTS, shards).batches)
    for shard in range(shards):
        owned = np.zeros(len(whole), np.uint8)
        for k in range(3):
            there = np.diff(whole.ids[k].offsets) > 0
            mine = whole.hashes[k] % np.uint64(shards) == shard
            owned |= np.where(there & mine, 1 << k, 0).astype(np.uint8)
        rows = np.flatnonzero(owned)
        batch = batches[shard]
        assert batch.owned.tolist() == owned[rows].tolist()
        assert batch.offset.tolist() == whole.offset[rows].tolist()
        assert batch.time_ms.tolist() == whole.time_ms[rows].tolist()
        assert batch.hashes.tolist() == whole.hashes[:, rows].tolist()
        assert texts(batch.event_id) == [whole.event_id[i] for i in rows]
        for ids, of_whole in zip(batch.ids, whole.ids, strict=True):
            assert texts(ids) == [of_whole[i] for i in rows]


def test_each_entity_of_an_event_is_owned_once() -> None:
    whole = only_batch(parse(many(), PAYMENTS, 1))
    owned = np.zeros(len(whole), int)
    for _, batch in parse(many(), PAYMENTS, 7).batches:
        owned[batch.offset - 1000] += batch.owned
    assert owned.tolist() == whole.owned.tolist()


def test_where_batches_end_changes_nothing() -> None:
    together = many()
    together.values[50] = b"{"
    halves = [
        Records(
            together.topic,
            together.values[part],
            together.partition[part],
            together.offset[part],
            together.timestamp_ms[part],
        )
        for part in (slice(0, 51), slice(51, 200))
    ]
    whole = parse(together, PAYMENTS, 1)
    parts = [parse(half, PAYMENTS, 1) for half in halves]
    assert [r for part in parts for r in part.rejected] == whole.rejected
    ids = [text for part in parts for text in texts(only_batch(part).event_id)]
    assert ids == texts(only_batch(whole).event_id)


@pytest.mark.parametrize("shards", [0, -1])
def test_no_shards_is_a_fault_of_the_caller(shards: int) -> None:
    with pytest.raises(ValueError, match="at least one shard"):
        parse(records([]), PAYMENTS, shards)


def test_columns_of_different_lengths_are_a_fault_of_the_caller() -> None:
    with pytest.raises(ValueError, match="expected 1 of each column"):
        Records("t", [b""], np.zeros(2, np.int32), np.zeros(1, np.int64), np.zeros(1, np.int64))


def test_dead_letter_carries_the_message_and_its_place() -> None:
    [rejected] = parse(records([b"\xff" + SECRET.encode()]), PAYMENTS, 1).rejected
    letter = orjson.loads(dead_letter(rejected))
    assert letter == {
        "reason": "invalid_utf8",
        "detail": "expected UTF-8, found a fault at byte 0",
        "topic": "eddy.payments",
        "partition": 0,
        "offset": 1000,
        "timestamp_ms": INGEST_MS,
        "value_base64": base64.b64encode(b"\xff" + SECRET.encode()).decode(),
        "value_bytes": 17,
        "value_sha256": hashlib.sha256(b"\xff" + SECRET.encode()).hexdigest(),
        "value_truncated": False,
    }


def test_dead_letter_of_a_large_message_passes_kafkas_default_limit() -> None:
    value = bytes(range(256)) * 40_000
    rejected = Rejected("message_too_large", "d", "t" * 249, 1, 2, 3, value)
    letter = dead_letter(rejected)
    assert len(letter) < 1_048_576 - 4096  # room for the record's key and headers
    read = orjson.loads(letter)
    assert base64.b64decode(read["value_base64"]) == value[:DEAD_LETTER_MAX_BYTES]
    assert (read["value_bytes"], read["value_truncated"]) == (len(value), True)
    assert read["value_sha256"] == hashlib.sha256(value).hexdigest()


@pytest.mark.parametrize("limit", [1, 2, 64])
def test_limit_of_identifiers_is_the_settings(limit: int) -> None:
    settings = replace(PAYMENTS, max_id_bytes=limit, entities=(("user", "/user_id"),))
    values = [payment(payment_id="p", user_id="x" * n) for n in (limit, limit + 1)]
    parsed = parse(records(values), settings, 1)
    assert texts(only_batch(parsed).ids[0]) == ["x" * limit]
    assert reasons(parsed) == ["id_too_long"]
