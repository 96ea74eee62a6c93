"""Read one message exactly: an `Event`, or a `Fault` that says why there is none.

This is the meaning of the event contract. The compiled reader (`parse_columns`) takes what is
plain and leaves every other message to this one, so each fault is named here and nowhere else.
A detail says what was expected and found, and where; it never repeats a value of the message.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from datetime import date
from typing import Literal, NoReturn

from flink_jobs.parse_mapping import EventMapping, array_index

Reason = Literal[
    "empty_message",
    "message_too_large",
    "invalid_utf8",
    "nesting_too_deep",
    "invalid_json",
    "not_an_object",
    "duplicate_key",
    "non_finite_value",
    "missing_field",
    "wrong_type",
    "empty_id",
    "id_too_long",
    "invalid_time",
    "future_event_time",
    "value_out_of_range",
]

NO_MARK = 255
MAX_TIME_MS = 253_402_300_799_999  # 9999-12-31T23:59:59.999Z, the last moment RFC 3339 can write
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_RFC_3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:[Zz]|([+-])(\d\d):(\d\d))",
    re.ASCII,
)
# Possessive, so that a million escaped quotes in an unterminated string stay linear.
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[\[{]+|[\]}]+', re.DOTALL)
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True, slots=True)
class Event:
    """What a message says; `ids` has one entry per entity kind, empty where there is none."""

    time_ms: int
    value: float
    mark: int
    event_id: bytes
    ids: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a message is no event, in a word and in a sentence."""

    reason: Reason
    detail: str


class _RefusedError(Exception):
    """Carries a `Fault` up to `read_message`; never leaves this module."""


def _refuse(reason: Reason, detail: str) -> NoReturn:
    raise _RefusedError(Fault(reason, detail))


class _Number(str):
    """The text of a JSON number, as it stands in the message."""

    __slots__ = ()


class _NonFinite(str):
    """NaN, Infinity or -Infinity, which are not JSON but are sent all the same."""

    __slots__ = ()


def nesting(text: str, limit: int) -> int:
    """Return how deep objects and arrays nest in `text`, valid or not; stops above `limit`."""
    depth = deepest = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        token = match[0]
        if token[0] in "[{":
            depth += len(token)
            deepest = max(deepest, depth)
            if deepest > limit:
                break
        elif token[0] != '"':
            depth -= len(token)
    return deepest


def _has_lone_surrogate(tree: object) -> bool:
    pending = [tree]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            if any("\ud800" <= character <= "\udfff" for character in item):
                return True
        elif isinstance(item, dict):
            pending += [*item, *item.values()]
        elif isinstance(item, list):
            pending += item
    return False


def _repeated(pairs: list[tuple[str, object]]) -> str:
    """Return the first key of `pairs` that stands there for the second time."""
    seen = set()
    for key, _ in pairs:
        if key in seen:
            return key
        seen.add(key)
    raise AssertionError("expected a repeated key, found none")


def _load(text: str, mapping: EventMapping) -> dict[str, object]:
    """Parse strict JSON (RFC 8259, with the unique keys and scalar characters of RFC 7493)."""
    repeated: list[str] = []
    non_finite: list[str] = []

    def to_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            repeated.append(_repeated(pairs))
        return found

    def to_non_finite(literal: str) -> _NonFinite:
        non_finite.append(literal)
        return _NonFinite(literal)

    try:
        tree: object = json.loads(
            text,
            object_pairs_hook=to_object,
            parse_int=_Number,
            parse_float=_Number,
            parse_constant=to_non_finite,
        )
    except RecursionError:
        _refuse("nesting_too_deep", "expected less nesting, found more than Python can follow")
    except json.JSONDecodeError as error:
        if text.startswith("\ufeff"):
            _refuse("invalid_json", "expected JSON, found a byte order mark at character 0")
        what = error.msg.split(":")[0]  # what follows a colon would quote the message
        _refuse("invalid_json", f"expected JSON, found a fault at character {error.pos}: {what}")
    if _SURROGATE_ESCAPE.search(text) and _has_lone_surrogate(tree):
        _refuse(
            "invalid_json", "expected characters, found half a surrogate pair (\\ud800-\\udfff)"
        )
    if not isinstance(tree, dict):
        _refuse("not_an_object", f"expected a JSON object, found {_describe(tree)}")
    if repeated:
        key = repeated[0]
        name = repr(key) if key in mapping.tokens else "one that the settings do not map"
        _refuse("duplicate_key", f"expected each key once in an object, found twice: {name}")
    if non_finite:
        _refuse("non_finite_value", f"expected finite numbers, found {non_finite[0]}")
    return tree


def _describe(found: object) -> str:
    if found is None:
        return "null"
    if isinstance(found, bool):
        return "true or false"
    if isinstance(found, _Number | _NonFinite):
        return f"a number of {len(found)} characters"
    if isinstance(found, str):
        return f"a string of {len(found)} characters"
    return "an array" if isinstance(found, list) else "an object"


def _follow(tree: object, tokens: tuple[str, ...]) -> object:
    """Return what `tokens` point at; None where nothing is there, as where null is."""
    for token in tokens:
        if isinstance(tree, dict):
            tree = tree.get(token)
        elif isinstance(tree, list):
            index = array_index(token)
            tree = tree[index] if 0 <= index < len(tree) else None
        else:
            return None
    return tree


def _identifier(found: object, pointer: str, max_bytes: int) -> bytes:
    """Return a string's UTF-8, or a number's text as it stands in the message."""
    if not isinstance(found, str):
        _refuse("wrong_type", f"expected a string or number at {pointer}, found {_describe(found)}")
    data = found.encode()
    if not data:
        _refuse("empty_id", f"expected 1 to {max_bytes} bytes at {pointer}, found an empty string")
    if len(data) > max_bytes:
        _refuse(
            "id_too_long", f"expected 1 to {max_bytes} bytes at {pointer}, found {len(data)} bytes"
        )
    return data


def _rfc_3339_ms(text: str) -> int | None:
    match = _RFC_3339.fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second = (int(match[i]) for i in range(1, 7))
    offset_hour, offset_minute = int(match[9] or 0), int(match[10] or 0)
    # Second 60 is a leap second: as in POSIX time, the first moment of the next minute.
    if hour > 23 or minute > 59 or second > 60 or offset_hour > 23 or offset_minute > 59:
        return None
    try:
        days = date(year, month, day).toordinal() - _EPOCH_DAY
    except ValueError:
        return None
    offset_min = (offset_hour * 60 + offset_minute) * (-1 if match[8] == "-" else 1)
    seconds = ((days * 24 + hour) * 60 + minute - offset_min) * 60 + second
    return seconds * 1000 + int((match[7] or "0")[:3].ljust(3, "0"))


def _whole(text: str) -> int | None:
    """Return the number that `text` writes if it is whole; as in JSON Schema, 1e3 and 1.0 are."""
    number = float(text)
    return int(number) if math.isfinite(number) and number.is_integer() else None


def _time_ms(found: object, pointer: str) -> int:
    if found is None:
        _refuse("missing_field", f"expected the event's time at {pointer}, found nothing or null")
    expected = "RFC 3339 or whole milliseconds since 1970, within the years 1970 to 9999"
    if isinstance(found, _Number):
        time_ms = _whole(found)
    elif isinstance(found, str):
        time_ms = _rfc_3339_ms(found)
    else:
        _refuse("wrong_type", f"expected {expected} at {pointer}, found {_describe(found)}")
    if time_ms is None or not 0 <= time_ms <= MAX_TIME_MS:
        _refuse("invalid_time", f"expected {expected} at {pointer}, found {_describe(found)}")
    return time_ms


def check_value(text: str, mapping: EventMapping) -> float:
    """Return the float64 nearest to the JSON number `text`.

    Raises:
        _RefusedError: it overflows, is out of range, or no whole number where one is due.
    """
    settings = mapping.settings
    pointer = settings.value_pointer
    value = float(text)
    if not math.isfinite(value):
        _refuse("non_finite_value", f"expected a finite float64 at {pointer}, found an overflow")
    if settings.value_integer and not value.is_integer():
        _refuse("wrong_type", f"expected a whole number at {pointer}, found a fraction")
    if not settings.value_min <= value <= settings.value_max:
        limits = f"{settings.value_min!r} to {settings.value_max!r}"
        side = "less" if value < settings.value_min else "more"
        _refuse("value_out_of_range", f"expected {limits} at {pointer}, found {side}")
    return value


def _value(found: object, mapping: EventMapping) -> float:
    pointer = mapping.settings.value_pointer
    if pointer is None:
        return math.nan
    if found is None:
        _refuse("missing_field", f"expected a number at {pointer}, found nothing or null")
    if not isinstance(found, _Number):
        _refuse("wrong_type", f"expected a number at {pointer}, found {_describe(found)}")
    return check_value(found, mapping)


def _mark(found: object, marks: tuple[str, ...]) -> int:
    """Return the mark's index; what is unknown, missing or no scalar is no error but no mark."""
    text = {True: "true", False: "false"}[found] if isinstance(found, bool) else found
    return marks.index(text) if isinstance(text, str) and text in marks else NO_MARK


def _entities(tree: object, mapping: EventMapping) -> tuple[bytes, ...]:
    settings = mapping.settings
    ids = []
    for (_, pointer), target in zip(settings.entities, mapping.entities, strict=True):
        found = _follow(tree, mapping.targets[target])
        ids.append(b"" if found is None else _identifier(found, pointer, settings.max_id_bytes))
    if not any(ids):
        pointers = ", ".join(pointer for _, pointer in settings.entities)
        _refuse("missing_field", f"expected at least one entity at {pointers}, found none")
    return tuple(ids)


def _read(raw: bytes, ingest_ms: int, mapping: EventMapping) -> Event:
    settings, roles = mapping.settings, mapping.roles
    if not raw:
        _refuse("empty_message", "expected a JSON object, found a message without bytes")
    if len(raw) > settings.max_message_bytes:
        limit = settings.max_message_bytes
        _refuse("message_too_large", f"expected at most {limit} bytes, found {len(raw)}")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        _refuse("invalid_utf8", f"expected UTF-8, found a fault at byte {error.start}")
    if nesting(text, settings.max_nesting) > settings.max_nesting:
        limit = settings.max_nesting
        _refuse("nesting_too_deep", f"expected at most {limit} levels of nesting, found more")
    tree = _load(text, mapping)

    def at(target: int) -> object:
        return _follow(tree, mapping.targets[target]) if target >= 0 else None

    found_id = at(roles.event_id)
    if found_id is None:
        pointer = settings.id_pointer
        _refuse("missing_field", f"expected an identifier at {pointer}, found nothing or null")
    event_id = _identifier(found_id, settings.id_pointer, settings.max_id_bytes)
    time_ms = _time_ms(at(roles.time), settings.time_pointer)
    ids = _entities(tree, mapping)
    value = _value(at(roles.value), mapping)
    if ingest_ms < 0:
        _refuse("future_event_time", "expected a Kafka record timestamp to check against: none")
    ahead_ms = time_ms - ingest_ms
    if ahead_ms > settings.max_future_ms:
        _refuse(
            "future_event_time",
            f"expected at most {settings.max_future_ms} ms after the Kafka record timestamp "
            f"at {settings.time_pointer}, found {ahead_ms} ms",
        )
    return Event(time_ms, value, _mark(at(roles.mark), settings.marks), event_id, ids)


def read_message(raw: bytes, ingest_ms: int, mapping: EventMapping) -> Event | Fault:
    """Read the message `raw`, whose Kafka record is stamped `ingest_ms` (-1: not stamped).

    Whatever the bytes are, this returns; the time it takes is linear in their number.
    """
    try:
        return _read(raw, ingest_ms, mapping)
    except _RefusedError as refused:
        fault: Fault = refused.args[0]
        return fault
