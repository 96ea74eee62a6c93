"""Choose one caught entity and score its payments again, for its picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from deploy.demo.report import Received, judge
from flink_jobs.components import BAND_Z
from flink_jobs.intensity import TritonClient
from flink_jobs.intensity_protocol import IntensityClient, NullClient
from flink_jobs.kind_model import Observer
from flink_jobs.model_files import load_models
from flink_jobs.parse import Records, parse
from flink_jobs.scorer import ShardScorer
from flink_jobs.settings import Settings
from models.simulation.config import SimulationConfig
from models.simulation.encode import encode_payments
from models.simulation.payments import device_name, merchant_name, user_name
from models.simulation.stream import Simulation
from models.simulation.truth import Anomaly

PREFERRED = ("takeover", "drift", "card_testing", "bot_timing", "shared_device", "outage")
NAMES = {"user": user_name, "merchant": merchant_name, "device": device_name}
PATIENCE_MS = 10_000  # for Triton's answer: the picture is drawn once, and need not be fast
FAR_FUTURE_MS = 1 << 42


@dataclass(frozen=True, slots=True)
class Replay:
    """One entity's payments as the job scored them, in order.

    Attributes:
        time_ms: int64[n], event time.
        amount: float64[n], minor units.
        low: float64[n], lower end of the expected band before each payment, minor units.
        high: float64[n], upper end.
        compensator: float64[n], payments expected between the one before and this one.
    """

    time_ms: NDArray[np.int64]
    amount: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    compensator: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Caught:
    """An anomaly that was found, and the payments of its entity.

    Attributes:
        anomaly: of the truth.
        alerts: all alerts on its entity.
        payments: JSON of each payment of the entity in event-time order.
    """

    anomaly: Anomaly
    alerts: tuple[Received, ...]
    payments: tuple[bytes, ...]


class _Store(dict[int, bytes]):
    """A shard's records in memory."""

    def put(self, key: int, value: bytes) -> None:
        self[key] = value

    def remove(self, key: int) -> None:
        self.pop(key, None)


def choose(
    world: SimulationConfig, truth: Sequence[Anomaly], alerts: Sequence[Received]
) -> Caught | None:
    """Choose whom to show; the same alerts give the same choice.

    Of the kinds with a found anomaly the first in PREFERRED counts, and of its found anomalies the
    one whose entity has the longest history before it. The world is played again to collect the
    payments.

    Returns:
        None where nothing was found.
    """
    found = judge(truth, alerts).found
    kinds = [
        kind for kind in PREFERRED if any(a.kind == kind and a.anomaly_id in found for a in truth)
    ]
    if not kinds:
        return None
    candidates = [a for a in truth if a.kind == kinds[0] and a.anomaly_id in found]
    payments = _collect(world, {(a.entity_kind, a.entity) for a in candidates})

    def history(anomaly: Anomaly) -> int:
        times = payments[anomaly.entity_kind, anomaly.entity]
        return sum(time_ms < anomaly.start_ms for time_ms, _ in times)

    anomaly = max(candidates, key=lambda a: (history(a), a.anomaly_id))
    entity = (anomaly.entity_kind, anomaly.entity)
    own = tuple(a for a in alerts if (a.kind, a.entity) == entity)
    return Caught(anomaly, own, tuple(payment for _, payment in payments[entity]))


def _collect(
    world: SimulationConfig, entities: set[tuple[str, str]]
) -> dict[tuple[str, str], list[tuple[int, bytes]]]:
    """Play the world and keep the payments of `entities`: (event time, JSON) for each."""
    kept: dict[tuple[str, str], list[tuple[int, bytes]]] = {entity: [] for entity in entities}
    numbers: dict[str, dict[int, tuple[str, str]]] = {kind: {} for kind, _ in entities}
    for kind, name in entities:
        numbers[kind][_number(name)] = (kind, name)
    for chunk in Simulation(world).chunks():
        hits = [
            (i, owner[int(column[i])])
            for kind, owner in numbers.items()
            for column in (getattr(chunk, kind),)
            for i in np.flatnonzero(np.isin(column, list(owner))).tolist()
        ]
        if hits:
            texts = encode_payments(chunk)
            for i, entity in hits:
                kept[entity].append((int(chunk.time_ms[i]), texts[i]))
    return kept


def _number(name: str) -> int:
    """Return the number behind an entity's name.

    >>> _number("u-000123"), _number("d-000123-1")
    (123, 31489)
    """
    head, *rest = name.split("-")[1:]
    return int(head) * 256 + int(rest[0]) if rest else int(head)


def replay(caught: Caught, settings: Settings, client: IntensityClient) -> Replay:
    """Score the entity's payments again with the job's own steps.

    Entities do not influence each other, so the entity's own scores are those of the job. Where
    `client` does not answer, the expected rate is the baseline's.
    """
    kinds = [kind for kind, _ in settings.event.entities]
    mine = kinds.index(caught.anomaly.entity_kind)
    told: list[NDArray[np.void]] = []
    scored: list[NDArray[np.void]] = []

    def observe(kind: int, advanced: NDArray[np.void], decided: NDArray[np.void]) -> None:
        if kind == mine:
            told.append(advanced.copy())
            scored.append(decided.copy())

    score(caught.payments, settings, client, observe)
    seen, judged = np.concatenate(told), np.concatenate(scored)
    typical, spread = seen["typical"].astype(np.float64), seen["spread"].astype(np.float64)
    return Replay(
        time_ms=seen["time_ms"].copy(),
        amount=np.exp(seen["value"].astype(np.float64)),
        low=np.exp(typical - BAND_Z * spread),
        high=np.exp(typical + BAND_Z * spread),
        compensator=judged["compensator"].astype(np.float64),
    )


def score(
    payments: Sequence[bytes],
    settings: Settings,
    client: IntensityClient,
    observer: Observer | None,
) -> None:
    """Run the job's steps on payments, JSON in event-time order; only the observer sees it."""
    n = len(payments)
    records = Records(
        settings.source.topic,
        list(payments),
        np.zeros(n, np.int32),
        np.arange(n),
        np.full(n, FAR_FUTURE_MS),
    )
    scorer = ShardScorer(settings, load_models(settings), _Store(), client, observer)
    for _, batch in parse(records, settings.event, 1).batches:
        list(scorer.on_batch(batch))
    list(scorer.drain())


def patient_client(settings: Settings) -> IntensityClient:
    """Return a client of the running Triton that waits long for its answers."""
    if not settings.triton.enabled:
        return NullClient()
    return TritonClient(replace(settings.triton, timeout_ms=PATIENCE_MS))


def seen_and_expected(
    played: Replay, edges_ms: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Count payments in bins of time, and those the model expected there.

    What was expected in a gap is spread evenly over it.

    Args:
        played: n payments.
        edges_ms: int64[b + 1], ascending.

    Returns:
        (float64[b] seen, float64[b] expected).
    """
    seen = np.histogram(played.time_ms, edges_ms)[0].astype(np.float64)
    total = np.concatenate([[0.0], np.cumsum(played.compensator[1:])])
    return seen, np.diff(np.interp(edges_ms, played.time_ms, total))
