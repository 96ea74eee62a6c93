"""The payments of the benchmarks: a backlog, and a live stream in which alerts are certain."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np

from deploy.bench.plan import Plan
from models.simulation.payments import SimulatedChunk
from models.simulation.throughput import throughput

# In the past, so that no payment is from the future; a Monday.
BACKLOG_START = datetime(2025, 1, 6, tzinfo=UTC)
LIVE_CHUNK = 1_000
# Far beyond any amount of the stream, for the detector is calibrated to heavy tails: it must alert.
MARKER_FACTOR = 3_000_000


def backlog(entities: int, payments: int, seed: int) -> Iterator[SimulatedChunk]:
    """Yield a backlog; the same arguments give the same bytes."""
    return throughput(entities, payments, seed=seed, start=BACKLOG_START)


def history_payments(plan: Plan, entities: int) -> int:
    """Return how many payments a live run begins with, a whole number of chunks."""
    return -(-entities * plan.history_events // LIVE_CHUNK) * LIVE_CHUNK


def live_payments(plan: Plan, seconds: float) -> int:
    """Return how many payments `seconds` of a live run have."""
    return int(seconds * plan.rate_per_s)


def live(
    plan: Plan, entities: int, payments: int, now: datetime
) -> tuple[list[SimulatedChunk], Iterator[SimulatedChunk]]:
    """Return the history that is sent at once, and the payments that follow at their pace.

    Event time is that of the wall clock when the history is done, and flows as fast.

    Args:
        plan: rates and seed.
        entities: of each kind.
        payments: how many follow the history.
        now: the wall clock.
    """
    history = history_payments(plan, entities)
    chunks = throughput(
        entities,
        history + payments,
        seed=plan.seed,
        rate_per_s=plan.rate_per_s,
        start=now - timedelta(seconds=history / plan.rate_per_s),
        chunk_payments=LIVE_CHUNK,
    )
    before = [next(chunks) for _ in range(history // LIVE_CHUNK)]
    return before, marked(chunks, plan.marker_every)


def marked(chunks: Iterable[SimulatedChunk], every: int) -> Iterator[SimulatedChunk]:
    """Raise the amount of every so-manieth payment, counted from the beginning of the run."""
    for chunk in chunks:
        index = chunk.first_index + np.arange(len(chunk))
        amount = np.where(index % every == 0, chunk.amount * MARKER_FACTOR, chunk.amount)
        yield replace(chunk, amount=amount)
