"""Payments in columns, and the labelled truth about them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

CHANNELS = ("ecom", "pos", "app", "recurring", "transfer")
ECOM, POS, APP, RECURRING, TRANSFER = range(5)
CURRENCIES = ("EUR", "USD", "GBP", "CHF")

# A device is known by its owner and its number among the owner's: owner * 256 + number.
DEVICES_PER_OWNER = 256

NORMAL = -1


@dataclass(frozen=True, slots=True)
class Payments:
    """n payments; entities are numbers here and get their names when they are encoded.

    Attributes:
        time_ms: int64[n], event time, milliseconds since the epoch.
        user: int32[n].
        merchant: int32[n].
        device: int64[n], owner * 256 + number.
        amount: int64[n], minor units of the currency.
        currency: uint8[n], index into CURRENCIES.
        channel: uint8[n], index into CHANNELS.
        anomaly: int32[n], index of the anomaly that injected the payment; NORMAL for none.
            It is never encoded.
    """

    time_ms: NDArray[np.int64]
    user: NDArray[np.int32]
    merchant: NDArray[np.int32]
    device: NDArray[np.int64]
    amount: NDArray[np.int64]
    currency: NDArray[np.uint8]
    channel: NDArray[np.uint8]
    anomaly: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.time_ms)

    def take(self, which: NDArray[np.int64] | NDArray[np.bool_] | slice) -> Payments:
        """Return the chosen payments."""
        return Payments(*(getattr(self, f.name)[which] for f in fields(Payments)))

    @staticmethod
    def join(parts: list[Payments]) -> Payments:
        """Return the payments of `parts`, at least one, one after the other."""
        return Payments(
            *(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Payments))
        )

    @staticmethod
    def of(
        time_ms: NDArray[np.int64],
        user: NDArray[np.int64],
        merchant: NDArray[np.int64],
        device: NDArray[np.int64],
        amount: NDArray[np.float64],
        currency: NDArray[np.uint8],
        channel: NDArray[np.int64],
        anomaly: int = NORMAL,
    ) -> Payments:
        """Bring columns to their types; amounts are rounded, and are at least 50."""
        return Payments(
            time_ms.astype(np.int64),
            user.astype(np.int32),
            merchant.astype(np.int32),
            device.astype(np.int64),
            np.maximum(np.rint(amount), 50).astype(np.int64),
            currency.astype(np.uint8),
            channel.astype(np.uint8),
            np.full(len(time_ms), anomaly, np.int32),
        )

    @staticmethod
    def none() -> Payments:
        """Return no payments."""
        empty = np.zeros(0, np.int64)
        return Payments.of(
            empty, empty, empty, empty, empty.astype(np.float64), empty.astype(np.uint8), empty
        )

    def by_time(self) -> Payments:
        """Return the payments in event-time order; equal times keep their order."""
        return self.take(np.argsort(self.time_ms, kind="stable"))


@dataclass(frozen=True, slots=True)
class SimulatedChunk(Payments):
    """Payments in event-time order with their place in the run.

    Attributes:
        first_index: number of payments of the run before this chunk.
        id_key: what makes the payment ids of one seed differ from those of another.
    """

    first_index: int
    id_key: int

    def payment_ids(self, which: NDArray[np.int64] | slice = slice(None)) -> list[str]:
        """Return the ids of the chosen payments."""
        index = np.arange(self.first_index, self.first_index + len(self), dtype=np.uint64)
        return payment_ids(index[which], self.id_key)


def chunked(windows: Iterable[Payments], key: int, chunk_payments: int) -> Iterator[SimulatedChunk]:
    """Cut a stream of any pieces into chunks of `chunk_payments`, at least 1; the last is shorter.

    Args:
        windows: pieces in event-time order.
        key: of the payment ids.
        chunk_payments: payments in a chunk.
    """
    first, rest = 0, Payments.none()
    for window in windows:
        rest = Payments.join([rest, window]) if len(rest) else window
        whole = len(rest) // chunk_payments * chunk_payments
        for begin in range(0, whole, chunk_payments):
            yield _chunk(rest.take(slice(begin, begin + chunk_payments)), first, key)
            first += chunk_payments
        rest = rest.take(slice(whole, None))
    if len(rest):
        yield _chunk(rest, first, key)


def _chunk(payments: Payments, first_index: int, key: int) -> SimulatedChunk:
    columns = {f.name: getattr(payments, f.name) for f in fields(Payments)}
    return SimulatedChunk(**columns, first_index=first_index, id_key=key)


def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit numbers one to one (the finaliser of splitmix64)."""
    x = values.copy()
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def id_key(seed: int) -> int:
    """Return the key from which the payment ids of a seed are made."""
    return int(mixed(np.array([seed + 0x9E3779B97F4A7C15], np.uint64))[0])


def payment_ids(index: NDArray[np.uint64], key: int) -> list[str]:
    """Return "p-" and 16 hexadecimal digits for each index: unique within a key.

    The number is scrambled, so that nothing about a payment can be read off its id.
    """
    return [f"p-{x:016x}" for x in mixed(index ^ np.uint64(key)).tolist()]


def user_name(user: int) -> str:
    """Return the user's id in the payload."""
    return f"u-{user:06d}"


def merchant_name(merchant: int) -> str:
    """Return the merchant's id in the payload."""
    return f"m-{merchant:04d}"


def device_name(device: int) -> str:
    """Return the device's id in the payload.

    >>> device_name(123 * 256 + 1)
    'd-000123-1'
    """
    owner, number = divmod(device, DEVICES_PER_OWNER)
    return f"d-{owner:06d}-{number}"
