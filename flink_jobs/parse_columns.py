"""Read many messages at once: compiled kernels over the bytes of a whole batch.

`read_rows` accepts a message only if it is sure of every column; all others, the faulty and the
merely unusual (an escape inside an identifier, a key of equal hash), it leaves to the exact
reader in `parse_message`. So it may give up anywhere, and names no faults.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from flink_jobs.parse_json import (
    ABSENT,
    CONTAINER,
    DECIMAL,
    DOT,
    ESCAPED,
    INTEGER,
    MINUS,
    NINE,
    STRING,
    ZERO,
)
from flink_jobs.parse_mapping import Roles
from flink_jobs.parse_message import MAX_TIME_MS, NO_MARK

ACCEPTED, LEFT, VALUE_LEFT = 0, 1, 2  # VALUE_LEFT: all is well but the value needs exact rounding

_NO_TIME = -1
_NO_MINUTES = -(1 << 40)
_MAX_EXACT_DIGITS = 15  # a float64 holds each whole number of 15 digits ...
_POWERS_OF_TEN = np.array([float(10**k) for k in range(23)])  # ... and each of these: see _number


@njit(cache=True)
def _whole(data: NDArray[np.uint8], at: int, end: int) -> int:
    """Return the number written by the digits from `at` to `end`, -1 where one is no digit."""
    number = 0
    for k in range(at, end):
        digit = int(data[k] - 48)
        if not 0 <= digit <= 9:
            return -1
        number = number * 10 + digit
    return number


@njit(cache=True)
def _days(year: int, month: int, day: int) -> int:
    """Return the days from 1970-01-01 to a date of the Gregorian calendar."""
    if month <= 2:  # years that begin in March have their leap day last
        year -= 1
        month += 12
    return (
        365 * year + year // 4 - year // 100 + year // 400 + (153 * month - 457) // 5 + day - 719469
    )


@njit(cache=True)
def _days_in_month(year: int, month: int) -> int:
    if month == 2:
        leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
        return 29 if leap else 28
    return 30 if month == 4 or month == 6 or month == 9 or month == 11 else 31


@njit(cache=True)
def _minutes(data: NDArray[np.uint8], at: int) -> int:
    """Return the minutes from 1970 to the time `2026-01-05T08:30:` at `at`, or `_NO_MINUTES`."""
    separator = data[at + 10]
    if not (
        data[at + 4] == MINUS
        and data[at + 7] == MINUS
        and (separator == 84 or separator == 116 or separator == 32)  # T t space
        and data[at + 13] == 58
        and data[at + 16] == 58
    ):
        return _NO_MINUTES
    year, month = _whole(data, at, at + 4), _whole(data, at + 5, at + 7)
    day = _whole(data, at + 8, at + 10)
    if year < 1 or not 1 <= month <= 12 or not 1 <= day <= _days_in_month(year, month):
        return _NO_MINUTES
    hour, minute = _whole(data, at + 11, at + 13), _whole(data, at + 14, at + 16)
    if not (0 <= hour <= 23 and 0 <= minute <= 59):
        return _NO_MINUTES
    return (_days(year, month, day) * 24 + hour) * 60 + minute


@njit(cache=True)
def _offset_minutes(data: NDArray[np.uint8], at: int, end: int) -> int:
    """Return how far the local time is ahead of UTC, by the `Z` or `+01:00` that fills the rest."""
    if end - at == 1 and (data[at] == 90 or data[at] == 122):  # Z z
        return 0
    if end - at != 6 or data[at + 3] != 58 or not (data[at] == 43 or data[at] == MINUS):
        return _NO_MINUTES
    hour, minute = _whole(data, at + 1, at + 3), _whole(data, at + 4, at + 6)
    if not (0 <= hour <= 23 and 0 <= minute <= 59):
        return _NO_MINUTES
    offset = hour * 60 + minute
    return -offset if data[at] == MINUS else offset


@njit(cache=True)
def _rfc_3339_ms(data: NDArray[np.uint8], at: int, length: int) -> int:
    """Return the time that a string of RFC 3339 writes, in ms since the epoch, or -1."""
    if length < 20:
        return _NO_TIME
    end = at + length
    minutes = _minutes(data, at)
    second = _whole(data, at + 17, at + 19)
    at += 19
    ms = 0
    if data[at] == DOT:
        fraction = at + 1
        while ZERO <= data[at + 1] <= NINE:
            at += 1
        at += 1
        if at == fraction:
            return _NO_TIME
        for k in range(3):
            ms = ms * 10 + (int(data[fraction + k] - 48) if fraction + k < at else 0)
    offset = _offset_minutes(data, at, end)
    if minutes == _NO_MINUTES or offset == _NO_MINUTES or not 0 <= second <= 60:
        return _NO_TIME
    return ((minutes - offset) * 60 + second) * 1000 + ms


@njit(cache=True)
def _time_ms(data: NDArray[np.uint8], token: NDArray[np.int64]) -> int:
    if token[2] == STRING:
        time_ms = _rfc_3339_ms(data, token[0], token[1])
    elif token[2] == INTEGER and token[1] <= 18 and data[token[0]] != MINUS:
        time_ms = _whole(data, token[0], token[0] + token[1])
    else:
        return _NO_TIME
    return time_ms if 0 <= time_ms <= MAX_TIME_MS else _NO_TIME


@njit(cache=True)
def _number(data: NDArray[np.uint8], at: int, end: int) -> tuple[float, bool]:
    """Return the float64 nearest to a JSON number, and whether it surely is the nearest.

    With at most 15 digits and a power of ten up to 22, both are float64 without error, so one
    product or quotient rounds once (Clinger 1990). Others are left to a slower, exact reading.
    """
    negative = data[at] == MINUS
    if negative:
        at += 1
    number, digits, fraction = 0, 0, 0
    in_fraction = False
    while at < end and (data[at] == DOT or ZERO <= data[at] <= NINE):
        if data[at] == DOT:
            in_fraction = True
        else:
            number = number * 10 + (int(data[at] - 48))
            digits += 1 if number > 0 else 0
            fraction += 1 if in_fraction else 0
            if digits > _MAX_EXACT_DIGITS:
                return 0.0, False
        at += 1
    if at < end or fraction > 22:  # an exponent follows, or many zeros
        return 0.0, False
    value = float(number) / _POWERS_OF_TEN[fraction]
    return (-value if negative else value), True


@njit(cache=True)
def _equal(a: NDArray[np.uint8], a_at: int, b: NDArray[np.uint8], b_at: int, length: int) -> bool:
    for k in range(length):  # noqa: SIM110 - numba compiles the loop, not a generator
        if a[a_at + k] != b[b_at + k]:
            return False
    return True


@njit(cache=True)
def _mark(
    data: NDArray[np.uint8],
    token: NDArray[np.int64],
    starts: NDArray[np.int64],
    marks: NDArray[np.uint8],
) -> int:
    if token[2] == ABSENT or token[2] == CONTAINER:
        return NO_MARK
    for k in range(len(starts) - 1):
        start = starts[k]
        if starts[k + 1] - start == token[1] and _equal(data, token[0], marks, start, token[1]):
            return k
    return NO_MARK


@njit(cache=True)
def _is_identifier(token: NDArray[np.int64], max_bytes: int) -> bool:
    plain = token[2] == STRING or token[2] == INTEGER or token[2] == DECIMAL
    return bool(plain and 1 <= token[1] <= max_bytes)


@njit(cache=True)
def _identifiers(
    tokens: NDArray[np.int64],
    roles: Roles,
    entities: NDArray[np.int64],
    row: int,
    spans: NDArray[np.int64],
) -> bool:
    """Fill the row's spans; return whether the identifier and at least one entity are there."""
    if not _is_identifier(tokens[roles.event_id], roles.max_id_bytes):
        return False
    spans[0, row, 0], spans[0, row, 1] = tokens[roles.event_id, 0], tokens[roles.event_id, 1]
    found = False
    for kind in range(len(entities)):
        target = entities[kind]
        spans[kind + 1, row, 0], spans[kind + 1, row, 1] = tokens[target, 0], 0
        if tokens[target, 2] != ABSENT:
            if not _is_identifier(tokens[target], roles.max_id_bytes):
                return False
            spans[kind + 1, row, 1] = tokens[target, 1]
            found = True
    return found


@njit(cache=True)
def _row(
    data: NDArray[np.uint8],
    tokens: NDArray[np.int64],
    roles: Roles,
    entities: NDArray[np.int64],
    mark_starts: NDArray[np.int64],
    marks: NDArray[np.uint8],
    row: int,
    ingest_ms: int,
    time_ms: NDArray[np.int64],
    value: NDArray[np.float64],
    mark: NDArray[np.uint8],
    spans: NDArray[np.int64],
) -> int:
    """Fill one row of the columns from the tokens found; return what became of it."""
    time_ms[row] = _time_ms(data, tokens[roles.time])
    if time_ms[row] < 0 or ingest_ms < 0 or time_ms[row] - ingest_ms > roles.max_future_ms:
        return LEFT
    if not _identifiers(tokens, roles, entities, row, spans):
        return LEFT
    mark[row], value[row] = NO_MARK, np.nan
    if roles.mark >= 0:
        if tokens[roles.mark, 2] == ESCAPED:
            return LEFT
        mark[row] = _mark(data, tokens[roles.mark], mark_starts, marks)
    if roles.value < 0:
        return ACCEPTED
    start, length, form = tokens[roles.value]
    if form != INTEGER and form != DECIMAL:
        return LEFT
    value[row], exact = _number(data, start, start + length)
    if not exact:
        spans[-1, row, 0], spans[-1, row, 1] = start, length
        return VALUE_LEFT
    if roles.value_integer and value[row] != np.floor(value[row]):
        return LEFT
    return ACCEPTED if roles.value_min <= value[row] <= roles.value_max else LEFT


@njit(cache=True, nogil=True)
def read_rows(
    data: NDArray[np.uint8],
    ingest_ms: NDArray[np.int64],
    good: NDArray[np.uint8],
    tokens: NDArray[np.int64],
    roles: Roles,
    entities: NDArray[np.int64],
    mark_starts: NDArray[np.int64],
    marks: NDArray[np.uint8],
    status: NDArray[np.uint8],
    time_ms: NDArray[np.int64],
    value: NDArray[np.float64],
    mark: NDArray[np.uint8],
    spans: NDArray[np.int64],
) -> None:
    """Read n messages into columns.

    Args:
        data: uint8[*], the messages.
        ingest_ms: int64[n], Kafka record timestamps; -1 where there is none.
        good: uint8[n], 0 for a message to leave.
        tokens: int64[n, T, 3], where within `data` the targets are, as `walk` found them.
        roles: the mapping's, as `entities`, `mark_starts` and `marks` are.
        entities: int64[K].
        mark_starts: int64[M + 1].
        marks: uint8[*].
        status: uint8[n], receives `ACCEPTED`, `LEFT` or `VALUE_LEFT`.
        time_ms: int64[n], receives the times of accepted rows.
        value: float64[n], receives their values.
        mark: uint8[n], receives their marks.
        spans: int64[K + 2, n, 2], receives the start and length within `data` of the event's
            identifier, of each of the K entities, and of a value that is `VALUE_LEFT`.
    """
    for row in range(len(status)):
        status[row] = LEFT
        if good[row]:
            status[row] = _row(
                data,
                tokens[row],
                roles,
                entities,
                mark_starts,
                marks,
                row,
                ingest_ms[row],
                time_ms,
                value,
                mark,
                spans,
            )


@njit(cache=True, nogil=True)
def gather(
    data: NDArray[np.uint8], spans: NDArray[np.int64], rows: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Copy the spans (int64[n, 2]: start, length) of `rows` out of `data`: bytes and offsets."""
    offsets = np.zeros(len(rows) + 1, np.int32)
    for k in range(len(rows)):
        offsets[k + 1] = offsets[k] + spans[rows[k], 1]
    out = np.empty(offsets[-1], np.uint8)
    for k in range(len(rows)):
        start, at = spans[rows[k], 0], offsets[k]
        for j in range(spans[rows[k], 1]):
            out[at + j] = data[start + j]
    return out, offsets
