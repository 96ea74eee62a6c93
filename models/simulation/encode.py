"""Payments as the JSON bytes of the event contract, written by a compiled kernel."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.simulation.payments import CHANNELS, CURRENCIES, SimulatedChunk

# More bytes than any payment can take: the texts below, 16 digits of id, 24 of time, two numbers
# of 10 digits, a device of 14, an amount of 19, the currency and the channel are some 290.
_LONGEST = 320

_TEXTS = (
    b'{"payment_id":"p-',
    b'","event_time":"',
    b'","user_id":"u-',
    b'","merchant_id":"m-',
    b'","device_id":"d-',
    b'","amount":',
    b',"currency":"',
    b'","channel":"',
    b'"}\n',
)


def _joined(texts: tuple[bytes, ...]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the texts' bytes one after the other and where each begins."""
    begins = np.cumsum([0, *(len(text) for text in texts)])
    return np.frombuffer(b"".join(texts), np.uint8), begins.astype(np.int64)


_KEYS, _KEYS_AT = _joined(_TEXTS)
_CURRENCIES, _CURRENCIES_AT = _joined(tuple(c.encode() for c in CURRENCIES))
_CHANNELS, _CHANNELS_AT = _joined(tuple(c.encode() for c in CHANNELS))


@njit(cache=True)
def _put_text(
    out: NDArray[np.uint8],
    at: int,
    texts: NDArray[np.uint8],
    begins: NDArray[np.int64],
    which: int,
) -> int:
    for i in range(begins[which], begins[which + 1]):
        out[at] = texts[i]
        at += 1
    return at


@njit(cache=True)
def _put_number(out: NDArray[np.uint8], at: int, number: int, digits: int) -> int:
    """Write a number in at least `digits` decimal digits."""
    rest = number // 10
    length = 1
    while rest > 0:
        rest //= 10
        length += 1
    length = max(length, digits)
    for i in range(at + length - 1, at - 1, -1):
        out[i] = 48 + number % 10
        number //= 10
    return at + length


@njit(cache=True)
def _put_date(out: NDArray[np.uint8], at: int, day: int) -> int:
    """Write the date of a day since the epoch (civil-from-days by eras of 400 years)."""
    shifted = day + 719_468
    era = shifted // 146_097
    of_era = shifted - era * 146_097
    year = (of_era - of_era // 1_460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    month = (5 * of_year + 2) // 153
    of_month = of_year - (153 * month + 2) // 5 + 1
    month = month + 3 if month < 10 else month - 9
    at = _put_number(out, at, year + era * 400 + (1 if month <= 2 else 0), 4)
    out[at] = 45
    at = _put_number(out, at + 1, month, 2)
    out[at] = 45
    return _put_number(out, at + 1, of_month, 2)


@njit(cache=True)
def _put_time(out: NDArray[np.uint8], at: int, time_ms: int) -> int:
    day = time_ms // 86_400_000
    rest = time_ms - day * 86_400_000
    at = _put_date(out, at, day)
    out[at] = 84
    at = _put_number(out, at + 1, rest // 3_600_000, 2)
    out[at] = 58
    at = _put_number(out, at + 1, rest // 60_000 % 60, 2)
    out[at] = 58
    at = _put_number(out, at + 1, rest // 1_000 % 60, 2)
    out[at] = 46
    at = _put_number(out, at + 1, rest % 1_000, 3)
    out[at] = 90
    return at + 1


@njit(cache=True)
def _put_id(out: NDArray[np.uint8], at: int, index: int, key: np.uint64) -> int:
    """Write the 16 hexadecimal digits of `payments.payment_ids`."""
    x = np.uint64(index) ^ key
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    for i in range(16):
        digit = np.int64((x >> np.uint64(60 - 4 * i)) & np.uint64(15))
        out[at + i] = 48 + digit if digit < 10 else 87 + digit
    return at + 16


@njit(cache=True)
def _encode(
    time_ms: NDArray[np.int64],
    user: NDArray[np.int32],
    merchant: NDArray[np.int32],
    device: NDArray[np.int64],
    amount: NDArray[np.int64],
    currency: NDArray[np.uint8],
    channel: NDArray[np.uint8],
    first_index: int,
    key: np.uint64,
    out: NDArray[np.uint8],
    ends: NDArray[np.int64],
) -> None:
    at = 0
    for n in range(len(time_ms)):
        at = _put_text(out, at, _KEYS, _KEYS_AT, 0)
        at = _put_id(out, at, first_index + n, key)
        at = _put_text(out, at, _KEYS, _KEYS_AT, 1)
        at = _put_time(out, at, time_ms[n])
        at = _put_text(out, at, _KEYS, _KEYS_AT, 2)
        at = _put_number(out, at, user[n], 6)
        at = _put_text(out, at, _KEYS, _KEYS_AT, 3)
        at = _put_number(out, at, merchant[n], 4)
        at = _put_text(out, at, _KEYS, _KEYS_AT, 4)
        at = _put_number(out, at, device[n] >> 8, 6)
        out[at] = 45
        at = _put_number(out, at + 1, device[n] & 255, 1)
        at = _put_text(out, at, _KEYS, _KEYS_AT, 5)
        at = _put_number(out, at, amount[n], 1)
        at = _put_text(out, at, _KEYS, _KEYS_AT, 6)
        at = _put_text(out, at, _CURRENCIES, _CURRENCIES_AT, currency[n])
        at = _put_text(out, at, _KEYS, _KEYS_AT, 7)
        at = _put_text(out, at, _CHANNELS, _CHANNELS_AT, channel[n])
        at = _put_text(out, at, _KEYS, _KEYS_AT, 8)
        ends[n] = at


def encode_lines(chunk: SimulatedChunk) -> tuple[bytes, NDArray[np.int64]]:
    """Return the payments as JSON lines and where each ends (after its line end), int64[n]."""
    out = np.empty(len(chunk) * _LONGEST, np.uint8)
    ends = np.empty(len(chunk), np.int64)
    _encode(
        chunk.time_ms,
        chunk.user,
        chunk.merchant,
        chunk.device,
        chunk.amount,
        chunk.currency,
        chunk.channel,
        chunk.first_index,
        np.uint64(chunk.id_key),
        out,
        ends,
    )
    return out[: int(ends[-1]) if len(ends) else 0].tobytes(), ends


def encode_payments(chunk: SimulatedChunk) -> list[bytes]:
    """Return each payment as compact JSON; the labels of the chunk are not in it."""
    lines, ends = encode_lines(chunk)
    begins = [0, *ends.tolist()]
    return [lines[begin : end - 1] for begin, end in pairwise(begins)]


# Where the user's id begins in every payment: all before it has a fixed length.
_USER_AT = len(_TEXTS[0]) + 16 + len(_TEXTS[1]) + 24 + len(_TEXTS[2]) - len(b"u-")


def user_key(payment: bytes) -> bytes:
    """Return the user's id of an encoded payment: its key on Kafka.

    >>> user_key(b'{"payment_id":"p-dce423fc82c0d5b8","event_time":"2026-01-05T00:00:14.702Z",'
    ...          b'"user_id":"u-002179","merchant_id":"m-0188"}')
    b'u-002179'
    """
    return payment[_USER_AT : payment.index(b'"', _USER_AT)]
