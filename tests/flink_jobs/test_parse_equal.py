"""The compiled reader and the exact one agree on every message, to the bit."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from datetime import datetime

import numpy as np
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flink_jobs.parse import Records, parse
from flink_jobs.parse_mapping import compile_mapping
from flink_jobs.parse_message import Event, Fault, read_message
from flink_jobs.settings import EventSettings
from tests.flink_jobs.parse_cases import (
    INGEST_MS,
    LOGINS,
    METRICS,
    PAYMENTS,
    POISONS,
    payment,
)

# Small limits, so that generated messages cross them.
NARROW = replace(
    PAYMENTS, max_nesting=4, max_id_bytes=9, max_message_bytes=400, value_max=1e6, marks=("5", "é")
)
# One pointer for two roles, one pointer within another, arrays, and fractions allowed.
TANGLED = replace(
    METRICS,
    id_pointer="/a/0",
    time_pointer="/a/1",
    entities=(("first", "/a/0"), ("deep", "/a/2/b/0"), ("empty", "/")),
    value_pointer="/a/1",
    mark_pointer="/a",
    marks=("x", "true", "1.5"),
)
ALL_SETTINGS = [PAYMENTS, NARROW, LOGINS, METRICS, TANGLED]

SPACES = st.sampled_from(["", "", "", " ", "\n", "\t\r\n ", "\x0b", "\xa0"])
NUMBERS = st.one_of(
    st.integers(-(2**65), 2**65).map(str),
    st.integers(0, 10**6).map(str),
    st.floats(allow_nan=True, allow_infinity=True).map(json.dumps),
    st.floats(0, 1000).map(repr),
    st.decimals(0, 10**6, places=2).map(str),
    st.from_regex(r"-?[0-9]{0,25}(\.[0-9]{0,30})?([eE][+-]?[0-9]{0,3})?", fullmatch=True),
    st.sampled_from(
        ["0", "-0", "-0.0", "1e22", "1e23", "1e400", "1e-400", "-", "1.", "01", "9" * 70]
    ),
    st.sampled_from([str(INGEST_MS), f"{INGEST_MS}.0", f"{INGEST_MS}e0", str(INGEST_MS * 1000)]),
)
TIMES = st.one_of(
    st.datetimes().map(lambda t: t.isoformat() + "Z"),
    st.from_regex(
        r"[0-9]{4}-[0-1][0-9]-[0-3][0-9][Tt ][0-2][0-9]:[0-6][0-9]:[0-6][0-9](\.[0-9]{0,12})?"
        r"([Zz]|[+-][0-2][0-9]:[0-6][0-9])?",
        fullmatch=True,
    ),
    st.from_regex(r"20[0-2][0-9]-0[1-9]-[0-2][0-9]T0[0-9]:[0-5][0-9]:[0-5][0-9]Z", fullmatch=True),
).map(json.dumps)
STRINGS = st.one_of(
    st.text(max_size=12).map(json.dumps),
    st.text(max_size=12).map(lambda text: json.dumps(text, ensure_ascii=False)),
    st.sampled_from(['""', '"ecom"', '"5"', '"\\u00e9"', '"é"', '"\\/"', '"\\ud83d\\ude00"']),
    st.sampled_from(['"\\ud800"', '"\\ud83d\\u0041"', '"\\u12g4"', '"\\x"', '"\x01"', '"', "'a'"]),
    st.sampled_from(['"\ud800"', '"\\udc00"', '"a\x7fb"', '"\\"', '"\\\\"']),
)
LITERALS = st.sampled_from(["true", "false", "null", "nul", "True", "NaN", "-Infinity", "Infinity"])
SCALARS = st.one_of(NUMBERS, TIMES, STRINGS, LITERALS)


@st.composite
def keys(draw: st.DrawFn, names: list[str]) -> str:
    name = draw(st.one_of(st.sampled_from(names), st.sampled_from(names), st.text(max_size=3)))
    return json.dumps(name, ensure_ascii=draw(st.booleans())).replace(
        "a", draw(st.sampled_from(["a", "a", "a", "a", "\\u0061"]))
    )


def containers(inner: st.SearchStrategy[str], names: list[str]) -> st.SearchStrategy[str]:
    member = st.tuples(SPACES, keys(names), SPACES, inner, SPACES).map(
        lambda p: f"{p[0]}{p[1]}{p[2]}:{p[3]}{p[4]}"
    )
    comma = st.sampled_from([",", ",", ",", ",", ",,", ", "])
    return st.one_of(
        st.tuples(comma, st.lists(member, max_size=8)).map(lambda p: "{" + p[0].join(p[1]) + "}"),
        st.tuples(comma, st.lists(inner, max_size=5)).map(lambda p: "[" + p[0].join(p[1]) + "]"),
    )


@st.composite
def damaged(draw: st.DrawFn, messages: st.SearchStrategy[bytes]) -> bytes:
    """Cut, insert or replace some bytes of a message."""
    raw = draw(messages)
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2]))):
        at = draw(st.integers(0, len(raw)))
        end = min(len(raw), at + draw(st.sampled_from([0, 0, 1, 1, 4, 1000])))
        raw = (
            raw[:at]
            + draw(st.binary(max_size=3) | st.sampled_from([b'"', b",", b"}", b"\\"]))
            + raw[end:]
        )
    return raw


def messages_of(event_settings: EventSettings) -> st.SearchStrategy[bytes]:
    mapping = compile_mapping(event_settings)
    names = [*sorted(mapping.tokens), "note"]
    trees = st.recursive(SCALARS, lambda inner: containers(inner, names), max_leaves=12)
    return trees.map(lambda text: text.encode("utf-8", "surrogatepass"))


GOOD_IDS = st.one_of(
    st.text("ab-é5", min_size=1, max_size=4).map(lambda text: json.dumps(text, ensure_ascii=False)),
    st.integers(0, 999).map(str),
)
GOOD_TIMES = st.one_of(
    st.integers(0, 2 * 10**12).map(str),
    st.datetimes(datetime(1971, 1, 1), datetime(2030, 1, 1)).map(lambda t: f'"{t.isoformat()}Z"'),
)


@st.composite
def mostly(draw: st.DrawFn, good: st.SearchStrategy[str], other: st.SearchStrategy[str]) -> str:
    return draw(other if draw(st.integers(0, 9)) == 0 else good)


IDS = mostly(GOOD_IDS, SCALARS)
WHEN = mostly(GOOD_TIMES, st.one_of(TIMES, SCALARS))
WHOLE = mostly(st.integers(0, 10**6).map(str), SCALARS)
FIELDS = {
    "payment_id": IDS,
    "event_time": WHEN,
    "user_id": mostly(st.one_of(GOOD_IDS, st.just("null")), SCALARS),
    "merchant_id": IDS,
    "amount": WHOLE,
    "channel": mostly(st.sampled_from(['"ecom"', "5", '"\\u00e9"']), SCALARS),
    "note": mostly(GOOD_IDS, st.one_of(SCALARS, containers(SCALARS, ["x", "amount"]))),
}
# Each #name is a hole; ~ is where there may be space.
SHAPES = {
    LOGINS: (
        '{~"meta":~{"uuid":#id,"at":~#when},~"a/b~c":#id~,"who":[#any]~,'
        '"client":{"addresses":[~#id~,#any],"x":#any},"outcome":{"code":#any}}'
    ),
    METRICS: '{"sensor":~#id,"n":#id~,"t":#when,"fields":~[#any~,{"reading":#number}]~}',
    TANGLED: '{"":#id,"a"~:~[#when,#when,{"b":[#id~],"x":#any}~]~}',
}
HOLES = {"id": IDS, "when": WHEN, "number": mostly(NUMBERS, SCALARS), "any": SCALARS}


@st.composite
def shaped(draw: st.DrawFn, shape: str) -> bytes:
    """Messages of a nested shape, with all sorts of scalars in it."""
    parts = re.split(r"(#[a-z]+|~(?!c))", shape)
    spaces = st.sampled_from(["", "", "", "", " ", "\n\t"])
    for i in range(1, len(parts), 2):
        parts[i] = draw(spaces if parts[i] == "~" else HOLES[parts[i][1:]])
    return "".join(parts).encode("utf-8", "surrogatepass")


@st.composite
def near_payments(draw: st.DrawFn) -> bytes:
    """Messages most of which are payments, as unlike each other as they may be."""
    fields = list(draw(st.permutations(sorted(FIELDS))))
    for _ in range(draw(st.sampled_from([0, 0, 0, 0, 1, 2]))):
        fields.pop()
    if draw(st.integers(0, 9)) == 0:
        fields.append(fields[0])
    parts = []
    for field in fields:
        space = draw(st.sampled_from(["", "", "", " ", "\n"]))
        parts.append(f'{space}"{field}"{space}:{space}{draw(FIELDS[field])}{space}')
    return ("{" + ",".join(parts) + "}").encode("utf-8", "surrogatepass")


def check(values: list[bytes], ingest_ms: list[int], event_settings: EventSettings) -> None:
    n = len(values)
    found = parse(
        Records("t", values, np.zeros(n, np.int32), np.arange(n), np.array(ingest_ms, np.int64)),
        event_settings,
        1,
    )
    mapping = compile_mapping(event_settings)
    exact = [read_message(raw, ms, mapping) for raw, ms in zip(values, ingest_ms, strict=True)]
    faults = [(i, e.reason, e.detail) for i, e in enumerate(exact) if isinstance(e, Fault)]
    assert [(r.offset, r.reason, r.detail) for r in found.rejected] == faults
    events = [(i, e) for i, e in enumerate(exact) if isinstance(e, Event)]
    if not events:
        assert found.batches == []
        return
    [(_, batch)] = found.batches
    assert batch.offset.tolist() == [i for i, _ in events]
    for row, (_, event) in enumerate(events):
        assert batch.time_ms[row] == event.time_ms
        assert batch.value[row].tobytes() == np.float64(event.value).tobytes()
        assert batch.mark[row] == event.mark
        assert batch.event_id[row].encode() == event.event_id
        assert tuple(ids[row].encode() for ids in batch.ids) == event.ids
        assert batch.owned[row] == sum(1 << k for k, found_id in enumerate(event.ids) if found_id)


@pytest.mark.parametrize("event_settings", ALL_SETTINGS)
@pytest.mark.compiled
def test_both_readers_agree_on_arbitrary_messages(event_settings: EventSettings) -> None:
    messages = damaged(messages_of(event_settings))
    if event_settings in SHAPES:
        shapes = shaped(SHAPES[event_settings])
        messages = st.one_of(shapes, shapes, damaged(shapes), messages)

    @settings(max_examples=80, deadline=None)
    @given(st.lists(messages, max_size=8), st.sampled_from([INGEST_MS, 0, -1, 2**62]))
    def agree(values: list[bytes], ingest_ms: int) -> None:
        check(values, [ingest_ms] * len(values), event_settings)

    agree()


@settings(max_examples=250, deadline=None)
@given(
    st.lists(st.one_of(near_payments(), near_payments(), damaged(near_payments())), max_size=12),
    st.sampled_from([PAYMENTS, NARROW, replace(PAYMENTS, value_integer=False, value_min=-1e300)]),
)
@example([poison.value or b"" for poison in POISONS], PAYMENTS)
@example([poison.value or b"" for poison in POISONS], NARROW)
@example(
    [payment(event_time=f"2024-{m:02d}-{d:02d}T00:00:00Z") for m in range(14) for d in range(33)],
    PAYMENTS,
)
@example([payment(event_time=f"{y:04d}-03-01T00:00:00Z") for y in range(1960, 2030)], PAYMENTS)
@example(
    [b'{"' + b'":1,"'.join(b"%d" % i for i in range(n)) + b'":1}' for n in (255, 256, 257)],
    PAYMENTS,
)
@pytest.mark.compiled
def test_both_readers_agree_on_payments(values: list[bytes], event_settings: EventSettings) -> None:
    check(values, [2**45] * len(values), event_settings)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False).map(repr) | NUMBERS, max_size=30))
def test_values_are_the_nearest_float64(literals: list[str]) -> None:
    values = [
        b'{"n":"a","t":1,"sensor":"s","fields":[0,{"reading":%s}]}' % literal.encode()
        for literal in literals
    ]
    check(values, [INGEST_MS] * len(values), METRICS)


@settings(max_examples=150, deadline=None)
@given(damaged(st.one_of(near_payments(), messages_of(PAYMENTS))))
def test_what_is_read_is_strict_json(raw: bytes) -> None:
    """A third reader, orjson, accepts what eddy accepts and finds the same there."""
    event = read_message(raw, 2**45, compile_mapping(PAYMENTS))
    if isinstance(event, Fault):
        return
    try:
        fields = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        if "infinity" not in str(error):  # 1e400 is JSON, and no concern of ours in a note
            raise
        return
    assert float(fields["amount"]) == event.value
    assert math.isfinite(event.value)
    if isinstance(fields["payment_id"], str):
        assert fields["payment_id"].encode() == event.event_id
