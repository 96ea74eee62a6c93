"""Messages that the tests of parse share: good payments, other streams, and the poisons."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np

from flink_jobs.parse import Parsed, Records
from flink_jobs.settings import EventSettings, load

PAYMENTS: EventSettings = load(None, {}, []).event
INGEST_MS = 1_767_600_001_000  # 2026-01-05T08:00:01Z

LOGINS = replace(
    PAYMENTS,
    id_pointer="/meta/uuid",
    time_pointer="/meta/at",
    entities=(("account", "/who/account"), ("address", "/client/addresses/0"), ("app", "/a~1b~0c")),
    value_pointer=None,
    mark_pointer="/outcome/code",
    marks=("200", "401", "true", "gesperrt: zu häufig"),
    max_nesting=4,
)
METRICS = replace(
    PAYMENTS,
    id_pointer="/n",
    time_pointer="/t",
    entities=(("sensor", "/sensor"),),
    value_pointer="/fields/1/reading",
    mark_pointer=None,
    marks=(),
    value_min=-1e300,
    value_max=1e300,
    value_integer=False,
    value_transform="identity",
)

PAYMENT: dict[str, object] = {
    "payment_id": "p-000001",
    "event_time": "2026-01-05T08:00:00.123Z",
    "user_id": "u-000123",
    "merchant_id": "m-0042",
    "device_id": "d-000123-1",
    "amount": 1299,
    "currency": "EUR",
    "channel": "ecom",
}


def payment(**changes: object) -> bytes:
    """Write a payment, with fields replaced, added, or (None) left out."""
    fields = {k: v for k, v in {**PAYMENT, **changes}.items() if v is not None}
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()


def raw_payment(field: str, literal: str) -> bytes:
    """Write a payment in which `field` has the JSON text `literal`, whatever it is."""
    mark = "\x01"
    return payment(**{field: mark}).replace(b'"\\u0001"', literal.encode("utf-8", "surrogatepass"))


def records(values: list[bytes] | list[bytes | None], ingest_ms: int = INGEST_MS) -> Records:
    n = len(values)
    return Records(
        topic="eddy.payments",
        values=values,
        partition=(np.arange(n) % 3).astype(np.int32),
        offset=np.arange(1000, 1000 + n),
        timestamp_ms=np.full(n, ingest_ms),
    )


def reasons(parsed: Parsed) -> list[str]:
    return [rejected.reason for rejected in parsed.rejected]


@dataclass(frozen=True)
class Poison:
    name: str
    value: bytes | None
    reason: str


SECRET = "4111111111111111"  # a made-up card number: no detail may repeat it

POISONS = [
    Poison("tombstone", None, "empty_message"),
    Poison("no bytes", b"", "empty_message"),
    Poison("10 MB", payment(note="x" * 10_000_000), "message_too_large"),
    Poison("10 MB of nothing", b" " * 10_000_000, "message_too_large"),
    Poison("a wrong byte", payment().replace(b"u-000123", b"u-\xff"), "invalid_utf8"),
    Poison("a cut character", payment(user_id="é")[:-1].replace(b"\xa9", b""), "invalid_utf8"),
    Poison("a surrogate", raw_payment("user_id", '"\ud800"'), "invalid_utf8"),
    Poison("a surrogate in a note", raw_payment("note", '"\udfff"'), "invalid_utf8"),
    Poison("an overlong slash", payment().replace(b"u-000123", b"\xc0\xaf"), "invalid_utf8"),
    Poison("latin-1", '{"note": "é"}'.encode("latin-1"), "invalid_utf8"),
    Poison("UTF-16", payment().decode().encode("utf-16"), "invalid_utf8"),
    Poison("100,000 arrays", b"[" * 100_000, "nesting_too_deep"),
    Poison("100,000 objects", b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nesting_too_deep"),
    Poison("one level too deep", raw_payment("note", "[" * 32 + "]" * 32), "nesting_too_deep"),
    Poison("deep extras", raw_payment("note", "[" * 40 + "]" * 40), "nesting_too_deep"),
    Poison("a byte order mark", b"\xef\xbb\xbf" + payment(), "invalid_json"),
    Poison("half a message", payment()[:100], "invalid_json"),
    Poison("two messages", payment() + payment(), "invalid_json"),
    Poison("a NUL at the end", payment() + b"\0", "invalid_json"),
    Poison("a NUL within an id", payment().replace(b"u-000123", b"u\0"), "invalid_json"),
    Poison("half a pair", raw_payment("user_id", '"\\ud800"'), "invalid_json"),
    Poison("half a pair in a note", raw_payment("note", '["\\uDfffx"]'), "invalid_json"),
    Poison("two second halves", raw_payment("note", '"\\udc00\\udc00"'), "invalid_json"),
    Poison("two first halves", raw_payment("note", '"\\ud800\\ud800"'), "invalid_json"),
    Poison("half a pair as a key", b'{"\\udbff": 1}', "invalid_json"),
    Poison("a bad escape", raw_payment("note", '"\\x41"'), "invalid_json"),
    Poison("a bare word", raw_payment("amount", "abc"), "invalid_json"),
    Poison("a leading zero", raw_payment("amount", "012"), "invalid_json"),
    Poison("a plus sign", raw_payment("amount", "+12"), "invalid_json"),
    Poison("a trailing comma", payment()[:-1] + b",}", "invalid_json"),
    Poison("single quotes", payment().replace(b'"', b"'"), "invalid_json"),
    Poison("text", b"hello", "invalid_json"),
    Poison("unterminated, a million escaped quotes", b'{"a":"' + b'\\"' * 500_000, "invalid_json"),
    Poison("an array", b"[" + payment() + b"]", "not_an_object"),
    Poison("a string", b'"payment"', "not_an_object"),
    Poison("null", b"null", "not_an_object"),
    Poison("a number", b"1", "not_an_object"),
    Poison("a key twice", payment()[:-1] + b',"amount":5}', "duplicate_key"),
    Poison("a key twice, escaped", payment()[:-1] + b',"\\u0061mount":5}', "duplicate_key"),
    Poison("an extra key twice", payment()[:-1] + b',"x":{"y":1,"y":1}}', "duplicate_key"),
    Poison(
        "100,000 keys, two alike",
        (b"{" + b"".join(b'"%d":1,' % i for i in range(90_000)) + b'"89999":1}'),
        "duplicate_key",
    ),
    Poison("NaN", raw_payment("amount", "NaN"), "non_finite_value"),
    Poison("Infinity", raw_payment("amount", "Infinity"), "non_finite_value"),
    Poison("-Infinity", raw_payment("amount", "-Infinity"), "non_finite_value"),
    Poison("NaN elsewhere", raw_payment("note", "[NaN]"), "non_finite_value"),
    Poison("1e999", raw_payment("amount", "1e999"), "non_finite_value"),
    Poison("400 digits", raw_payment("amount", "9" * 400), "non_finite_value"),
    Poison("1e308", raw_payment("amount", "1e308"), "value_out_of_range"),
    Poison("2^63", raw_payment("amount", str(2**63)), "value_out_of_range"),
    Poison("2^64", raw_payment("amount", str(2**64)), "value_out_of_range"),
    Poison("a negative amount", payment(amount=-1), "value_out_of_range"),
    Poison("a fraction of a cent", raw_payment("amount", "12.5"), "wrong_type"),
    Poison("an amount in quotes", payment(amount="1299"), "wrong_type"),
    Poison("an amount that is true", payment(amount=True), "wrong_type"),
    Poison("an amount in an object", payment(amount={"minor": 1}), "wrong_type"),
    Poison("no amount", payment(amount=None), "missing_field"),
    Poison("an amount of null", raw_payment("amount", "null"), "missing_field"),
    Poison("no id", payment(payment_id=None), "missing_field"),
    Poison("no time", payment(event_time=None), "missing_field"),
    Poison("no entity", payment(user_id=None, merchant_id=None, device_id=None), "missing_field"),
    Poison("nothing at all", b"{}", "missing_field"),
    Poison("an id that is true", payment(payment_id=True), "wrong_type"),
    Poison("an entity that is an array", payment(user_id=["u"]), "wrong_type"),
    Poison("an entity that is an object", payment(user_id={"id": "u"}), "wrong_type"),
    Poison("an entity that is false", payment(device_id=False), "wrong_type"),
    Poison("an empty id", payment(payment_id=""), "empty_id"),
    Poison("an empty entity", payment(user_id=""), "empty_id"),
    Poison("10,000 characters", payment(user_id=SECRET * 625), "id_too_long"),
    Poison("65 bytes", payment(payment_id="x" * 65), "id_too_long"),
    Poison("65 bytes, 33 characters", payment(payment_id="é" * 32 + "x"), "id_too_long"),
    Poison("65 digits", raw_payment("user_id", "1" * 65), "id_too_long"),
    Poison("an empty time", payment(event_time=""), "invalid_time"),
    Poison("a day", payment(event_time="2026-01-05"), "invalid_time"),
    Poison("no offset", payment(event_time="2026-01-05T08:00:00"), "invalid_time"),
    Poison("February 30", payment(event_time="2026-02-30T08:00:00Z"), "invalid_time"),
    Poison("no leap year", payment(event_time="2100-02-29T08:00:00Z"), "invalid_time"),
    Poison("second 61", payment(event_time="2026-01-05T08:00:61Z"), "invalid_time"),
    Poison("minute 60", payment(event_time="2026-01-05T08:60:00Z"), "invalid_time"),
    Poison("hour 24", payment(event_time="2026-01-05T24:00:00Z"), "invalid_time"),
    Poison("offset +24:00", payment(event_time="2026-01-05T08:00:00+24:00"), "invalid_time"),
    Poison("a bare point", payment(event_time="2026-01-05T08:00:00.Z"), "invalid_time"),
    Poison("before 1970", payment(event_time="1969-12-31T23:59:59.999Z"), "invalid_time"),
    Poison("the year 0", payment(event_time="0000-01-01T00:00:00Z"), "invalid_time"),
    Poison("past 9999", payment(event_time="9999-12-31T23:59:59-00:01"), "invalid_time"),
    Poison("negative time", payment(event_time=-1), "invalid_time"),
    Poison("half a millisecond", payment(event_time=1767600000000.5), "invalid_time"),
    Poison("nanoseconds", payment(event_time=1767600000000000000), "invalid_time"),
    Poison("time 1e999", raw_payment("event_time", "1e999"), "invalid_time"),
    Poison("arabic digits", payment(event_time="٢026-01-05T08:00:00Z"), "invalid_time"),
    Poison("a card number as time", payment(event_time=SECRET), "invalid_time"),
    Poison("a time that is true", payment(event_time=True), "wrong_type"),
    Poison("a time in an array", payment(event_time=[1]), "wrong_type"),
    Poison("the far future", payment(event_time="9999-12-31T23:59:59Z"), "future_event_time"),
    Poison(
        "an hour and 1 ms ahead", payment(event_time=INGEST_MS + 3_600_001), "future_event_time"
    ),
]
