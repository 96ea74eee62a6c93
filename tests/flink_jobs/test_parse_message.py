"""The exact reader: each fault by name, each good message by value."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flink_jobs.parse_mapping import compile_mapping, pointer_tokens
from flink_jobs.parse_message import NO_MARK, Event, Fault, nesting, read_message
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
)

PAYMENT_MAPPING = compile_mapping(PAYMENTS)


def read(raw: bytes, ingest_ms: int = INGEST_MS) -> Event | Fault:
    return read_message(raw, ingest_ms, PAYMENT_MAPPING)


def event(raw: bytes) -> Event:
    found = read(raw)
    assert isinstance(found, Event), found
    return found


@pytest.mark.parametrize("poison", POISONS, ids=lambda poison: poison.name)
def test_poison_has_its_reason_and_a_short_detail_without_values(poison: Poison) -> None:
    found = read(poison.value or b"")
    assert isinstance(found, Fault)
    assert found.reason == poison.reason
    assert found.detail.startswith("expected ")
    assert "found" in found.detail or found.detail.endswith("none")
    assert len(found.detail) < 200
    for value in ("u-000123", "m-0042", "1299", SECRET, "hello"):
        assert value not in found.detail


def test_payment() -> None:
    expected_ms = int(datetime(2026, 1, 5, 8, 0, 0, 123_000, UTC).timestamp() * 1000)
    assert event(payment()) == Event(
        expected_ms, 1299.0, 0, b"p-000001", (b"u-000123", b"m-0042", b"d-000123-1")
    )


@pytest.mark.parametrize(
    ("literal", "value"),
    [("0", 0.0), ("1299.0", 1299.0), ("1.299e3", 1299.0), ("1e15", 1e15), ("-0", 0.0)],
)
def test_whole_amounts_however_written(literal: str, value: float) -> None:
    assert event(raw_payment("amount", literal)).value == value


@pytest.mark.parametrize(
    ("literal", "identifier"),
    [
        ('"\\u0000"', b"\0"),
        ('"\\ud83d\\ude00"', "😀".encode()),
        ('"a\\/b\\n"', b"a/b\n"),
        ('"\u00e9"', "é".encode()),
        ("17", b"17"),
        ("1.50", b"1.50"),
        ("-0", b"-0"),
        ("1e400", b"1e400"),
        ("null", b""),
    ],
)
def test_identifiers_are_the_string_or_the_text_of_the_number(
    literal: str, identifier: bytes
) -> None:
    assert event(raw_payment("user_id", literal)).ids == (identifier, b"m-0042", b"d-000123-1")


def test_one_entity_is_enough() -> None:
    assert event(payment(user_id=None, device_id=None)).ids == (b"", b"m-0042", b"")


@pytest.mark.parametrize(
    "literal", ['"unknown"', '""', "null", "5", "true", '["ecom"]', '{"a":1}', "1e999"]
)
def test_unknown_mark_is_no_error(literal: str) -> None:
    assert event(raw_payment("channel", literal)).mark == NO_MARK


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-05t08:00:00z", "2026-01-05T08:00:00+00:00"),
        ("2026-01-05 08:00:00-00:00", "2026-01-05T08:00:00+00:00"),
        ("2026-01-05T08:00:00.1234567890123Z", "2026-01-05T08:00:00.123+00:00"),
        ("2026-01-05T08:00:00.9Z", "2026-01-05T08:00:00.900+00:00"),
        ("2026-01-05T01:30:00-05:30", "2026-01-05T07:00:00+00:00"),
        ("2026-01-05T22:00:00+23:59", "2026-01-04T22:01:00+00:00"),
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00+00:00"),
        ("2024-02-29T00:00:00Z", "2024-02-29T00:00:00+00:00"),
        ("1969-12-31T23:30:00-01:00", "1970-01-01T00:30:00+00:00"),
    ],
)
def test_times_of_rfc_3339(text: str, moment: str) -> None:
    expected_ms = round(datetime.fromisoformat(moment).timestamp() * 1000)
    assert event(payment(event_time=text)).time_ms == expected_ms
    assert event(payment(event_time=expected_ms)).time_ms == expected_ms
    assert event(raw_payment("event_time", f"{expected_ms}.0")).time_ms == expected_ms


@given(
    st.datetimes(datetime(1970, 1, 3), datetime(2026, 1, 3)),
    st.integers(-1439, 1439),
)
def test_times_are_those_of_datetime(local: datetime, offset_min: int) -> None:
    moment = local.replace(tzinfo=timezone(timedelta(minutes=offset_min)))
    expected_ms = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    assert event(payment(event_time=moment.isoformat())).time_ms == expected_ms


def test_future_limit_is_inclusive_and_needs_a_timestamp() -> None:
    at_the_limit = payment(event_time=INGEST_MS + PAYMENTS.max_future_ms)
    assert isinstance(read(at_the_limit), Event)
    unstamped = read(payment(), -1)
    assert isinstance(unstamped, Fault)
    assert unstamped.reason == "future_event_time"


def test_size_limit_is_inclusive() -> None:
    mapping = compile_mapping(replace(PAYMENTS, max_message_bytes=len(payment())))
    assert isinstance(read_message(payment(), INGEST_MS, mapping), Event)
    larger = read_message(payment() + b" ", INGEST_MS, mapping)
    assert isinstance(larger, Fault)
    assert larger.reason == "message_too_large"


def test_nesting_limit_is_inclusive() -> None:
    depth = PAYMENTS.max_nesting - 1
    assert isinstance(read(raw_payment("note", "[" * depth + "]" * depth)), Event)


def test_deepest_nesting_that_settings_allow_is_read() -> None:
    mapping = compile_mapping(replace(PAYMENTS, max_nesting=512))
    raw = raw_payment("note", "[" * 511 + "]" * 511)
    assert isinstance(read_message(raw, INGEST_MS, mapping), Event)


@pytest.mark.parametrize(
    ("text", "depth"),
    [
        ("{}", 1),
        ('{"[[[[": "]\\"[[["}', 1),
        ("[[],[[]],{}]", 3),
        ("1", 0),
        ('["\\\\", [1]]', 2),
        ('["unterminated [[[[', 1),
        ('["\\', 1),
    ],
)
def test_nesting_counts_brackets_outside_of_strings(text: str, depth: int) -> None:
    assert nesting(text, 100) == depth


@given(st.recursive(st.none() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_nesting_is_that_of_the_tree(tree: object) -> None:
    def depth(item: object) -> int:
        if not isinstance(item, dict | list):
            return 0
        below = item.values() if isinstance(item, dict) else item
        return 1 + max((depth(one) for one in below), default=0)

    assert nesting(json.dumps(tree), 1000) == depth(tree)


def test_another_stream_of_nested_fields_needs_no_code() -> None:
    login = {
        "meta": {"uuid": 7, "at": INGEST_MS},
        "who": {"account": "ann"},
        "client": {"addresses": ["192.0.2.1", "192.0.2.2"]},
        "a/b~c": "shop",
        "outcome": {"code": 401},
    }
    found = read_message(orjson.dumps(login), INGEST_MS, compile_mapping(LOGINS))
    assert isinstance(found, Event)
    assert math.isnan(found.value)
    assert replace(found, value=0.0) == Event(
        INGEST_MS, 0.0, 1, b"7", (b"ann", b"192.0.2.1", b"shop")
    )


def test_a_metric_keeps_every_bit_of_its_value() -> None:
    raw = b'{"n": "a", "t": 1, "sensor": 5.0, "fields": [0, {"reading": -0.1234567890123456789}]}'
    found = read_message(raw, INGEST_MS, compile_mapping(METRICS))
    assert found == Event(1, -0.1234567890123456789, NO_MARK, b"a", (b"5.0",))


@pytest.mark.parametrize(
    "raw",
    [
        b'{"n":"a","t":1,"sensor":"s","fields":{"1":{"reading":2}}}',  # an object has keys
        b'{"n":"a","t":1,"sensor":"s","fields":[0,{"reading":2}]}',  # an array has indices
    ],
)
def test_a_digit_points_into_arrays_and_objects(raw: bytes) -> None:
    found = read_message(raw, INGEST_MS, compile_mapping(METRICS))
    assert isinstance(found, Event)
    assert found.value == 2.0


@pytest.mark.parametrize("fields", ["[]", "[1]", "5", '"1"', "[0,5]", "null"])
def test_a_pointer_that_leads_nowhere_finds_nothing(fields: str) -> None:
    raw = f'{{"n":"a","t":1,"sensor":"s","fields":{fields}}}'.encode()
    found = read_message(raw, INGEST_MS, compile_mapping(METRICS))
    assert isinstance(found, Fault)
    assert found.reason == "missing_field"


def test_details_name_the_place() -> None:
    found = read(payment(user_id="x" * 70))
    assert found == Fault("id_too_long", "expected 1 to 64 bytes at /user_id, found 70 bytes")
    found = read(payment()[:-1] + b',"amount":5}')
    assert found == Fault(
        "duplicate_key", "expected each key once in an object, found twice: 'amount'"
    )


@pytest.mark.parametrize(
    ("pointer", "tokens"),
    [("/", ("",)), ("/a//b", ("a", "", "b")), ("/~01", ("~1",)), ("/m~0n/~1", ("m~n", "/"))],
)
def test_pointers(pointer: str, tokens: tuple[str, ...]) -> None:
    assert pointer_tokens(pointer) == tokens


@pytest.mark.parametrize("pointer", ["", "a", "/a~", "/a~2"])
def test_bad_pointers_are_refused(pointer: str) -> None:
    with pytest.raises(ValueError, match="JSON Pointer"):
        pointer_tokens(pointer)


@pytest.mark.parametrize(
    "changes",
    [
        {"entities": ()},
        {"entities": (("user", "/a"), ("user", "/b"))},
        {"entities": tuple((f"k{i}", f"/{i}") for i in range(9))},
        {"marks": ("a", "a")},
        {"marks": tuple(map(str, range(256)))},
        {"max_nesting": 0},
        {"max_nesting": 1000},
        {"max_message_bytes": 0},
        {"max_id_bytes": 0},
        {"max_future_ms": -1},
        {"value_min": 2.0, "value_max": 1.0},
        {"value_min": math.nan},
    ],
)
def test_unusable_settings_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        compile_mapping(replace(PAYMENTS, **changes))  # type: ignore[arg-type]
