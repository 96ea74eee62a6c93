"""Payments of very many entities, made as fast as can be: the load of the benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import numpy as np

from models.simulation.payments import (
    CHANNELS,
    DEVICES_PER_OWNER,
    RECURRING,
    Payments,
    SimulatedChunk,
    chunked,
    id_key,
)

BLOCK_PAYMENTS = 65_536
# Activity is spread mildly: the busiest tenth of the entities has some 16% of the payments.
SPREAD = 1.25
# Keeps the payment ids apart from those that `stream.simulate` gives under the same seed.
OWN_IDS = 0x5A5A5A5A5A5A5A5A

_ORDINARY_CHANNELS = np.array([c for c in range(len(CHANNELS)) if c != RECURRING])
_LEVELS_STREAM, _BLOCK_STREAM = 6, 7


def throughput(
    entities: int = 100_000,
    payments: int = 10_000_000,
    seed: int = 1,
    rate_per_s: float = 5_000.0,
    start: datetime | None = None,
    chunk_payments: int = 8_192,
) -> Iterator[SimulatedChunk]:
    """Yield exactly `payments` payments over `entities` users, as many merchants and devices.

    There are no cycles, bursts or anomalies. Each user has one device and a level of amounts.

    Args:
        entities: of each kind, 1 to 1e8.
        payments: how many in all, at least 0.
        seed: everything random follows from it.
        rate_per_s: payments per second of event time, evenly spaced but for a jitter.
        start: event time of the first; 2026-01-05 00:00 UTC where not given.
        chunk_payments: payments in a chunk; the stream does not depend on it.

    Raises:
        ValueError: if an argument is out of its range.
    """
    if not 1 <= entities <= 10**8:
        raise ValueError(f"entities: expected 1 to 1e8, found {entities}")
    if payments < 0 or rate_per_s <= 0 or chunk_payments < 1:
        raise ValueError(
            "expected payments >= 0, rate_per_s > 0 and chunk_payments >= 1, found "
            f"{payments}, {rate_per_s}, {chunk_payments}"
        )
    start_ms = round((start or datetime(2026, 1, 5, tzinfo=UTC)).timestamp() * 1_000)
    blocks = _blocks(entities, payments, seed, rate_per_s, start_ms)
    return chunked(blocks, id_key(seed) ^ OWN_IDS, chunk_payments)


def _blocks(
    entities: int, payments: int, seed: int, rate_per_s: float, start_ms: int
) -> Iterator[Payments]:
    """Yield the payments in blocks of fixed size, each with random numbers of its own."""
    levels = np.random.Generator(
        np.random.SFC64(np.random.SeedSequence([seed, _LEVELS_STREAM]))
    ).normal(8.0, 0.7, entities)
    for number, first in enumerate(range(0, payments, BLOCK_PAYMENTS)):
        rng = np.random.Generator(
            np.random.SFC64(np.random.SeedSequence([seed, _BLOCK_STREAM, number]))
        )
        # A whole block is drawn even where fewer are wanted, so that a longer run begins alike.
        user = (entities * rng.random(BLOCK_PAYMENTS) ** SPREAD).astype(np.int64)
        merchant = (entities * rng.random(BLOCK_PAYMENTS) ** SPREAD).astype(np.int64)
        at = first + np.arange(BLOCK_PAYMENTS) + rng.random(BLOCK_PAYMENTS)
        amount = np.exp(levels[user] + 0.5 * rng.standard_normal(BLOCK_PAYMENTS))
        block = Payments.of(
            start_ms + (at * (1_000 / rate_per_s)).astype(np.int64),
            user,
            merchant,
            user * DEVICES_PER_OWNER + 1,
            amount,
            np.zeros(BLOCK_PAYMENTS, np.uint8),
            _ORDINARY_CHANNELS[rng.integers(0, len(_ORDINARY_CHANNELS), BLOCK_PAYMENTS)],
        )
        yield block.take(slice(payments - first))
