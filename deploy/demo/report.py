"""Judge alerts by the truth and put the demo's report together: pure functions on what was seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

import numpy as np
import orjson

from flink_jobs.errors import EddyError
from models.simulation.config import ANOMALY_KINDS
from models.simulation.truth import Anomaly

GRACE_MS = 60_000  # of event time after an anomaly's end, in which an alert still counts
LATENCY = "Kafka timestamp of the payment to the alert's arrival at a read_committed consumer"

Place = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Received:
    """An alert as a consumer received it.

    Attributes:
        alert_id: the same for the same alert, however often it is delivered.
        kind: of the entity.
        entity: its id.
        time_ms: event time, epoch ms.
        score: above 1 is anomalous.
        detector: the one that was surprised most.
        text: its reason in words.
        degraded: the intensity model took no part.
        model_version: of the intensity model; empty where none answered.
        place: partition and offset of the payment that raised it; None for a silence.
        written_ms: Kafka timestamp of the alert.
        arrived_ms: wall time at which the consumer had it, after the transaction's commit.
    """

    alert_id: str
    kind: str
    entity: str
    time_ms: int
    score: float
    detector: str
    text: str
    degraded: bool
    model_version: str
    place: Place | None
    written_ms: int
    arrived_ms: int


@dataclass(frozen=True, slots=True)
class Sample:
    """The job's degradation at one moment.

    Attributes:
        at_s: when it was read, seconds of a clock that only grows.
        degraded: whether the last decided batch was degraded.
        batches: degraded batches since the start.
    """

    at_s: float
    degraded: bool
    batches: int


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the alerts are worth.

    Attributes:
        found: ids of the anomalies that were found.
        false: alerts that meet no anomaly.
    """

    found: frozenset[str]
    false: tuple[Received, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """What a run of the demo saw.

    Attributes:
        seed: of the payments.
        payments: sent and acknowledged.
        warm_up: those of them that were sent before the clock of the rate began.
        undecided: payments that the job had not decided at the end.
        produced_s: from the first payment after the warm-up to the last one sent.
        decided_s: from the first payment after the warm-up to the last one decided, seconds.
        duration_s: from the start of the demo to the report, seconds.
        sent_ms: Kafka timestamp of the payments that raised alerts, by place.
        samples: degradation, in the order of time.
        facts: further entries of the report, as they are.
    """

    seed: int
    payments: int
    warm_up: int
    undecided: int
    produced_s: float
    decided_s: float
    duration_s: float
    sent_ms: Mapping[Place, int]
    samples: Sequence[Sample]
    facts: Mapping[str, object]


def read_alert(value: bytes, written_ms: int, arrived_ms: int) -> Received:
    """Read an alert of the job.

    Raises:
        EddyError: it is none; the demo's topic holds nothing else.
    """
    try:
        alert = orjson.loads(value)
        data = alert["data"]
        placed = data["partition"] is not None
        return Received(
            alert_id=str(alert["id"]),
            kind=str(data["entity"]["kind"]),
            entity=str(data["entity"]["id"]),
            time_ms=round(datetime.fromisoformat(data["event_time"]).timestamp() * 1_000),
            score=float(data["score"]),
            detector=str(data["detector"]),
            text=str(data["reasons"][0]["text"]) if data["reasons"] else "",
            degraded=bool(data["degraded"]),
            model_version=str(data["model_version"]),
            place=(int(data["partition"]), int(data["offset"])) if placed else None,
            written_ms=written_ms,
            arrived_ms=arrived_ms,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise EddyError(f"an alert of the job is not as documented: {error!r}") from error


def judge(truth: Sequence[Anomaly], alerts: Sequence[Received]) -> Judgement:
    """Hold alerts against the truth.

    An anomaly is found when an alert on its entity falls within its span plus GRACE_MS of event
    time. An alert is false when, in that time, it is neither on an anomaly's entity nor on one of
    those involved in it.
    """
    found: set[str] = set()
    false = []
    for alert in alerts:
        entity = (alert.kind, alert.entity)
        in_time = [a for a in truth if a.start_ms <= alert.time_ms <= a.end_ms + GRACE_MS]
        own = [a for a in in_time if (a.entity_kind, a.entity) == entity]
        found.update(a.anomaly_id for a in own)
        if not own and not any(entity in a.involved for a in in_time):
            false.append(alert)
    return Judgement(frozenset(found), tuple(false))


def count_by_kind(
    truth: Sequence[Anomaly], found: frozenset[str]
) -> dict[str, dict[str, float | int]]:
    """Count anomalies and found ones for each kind that occurs, in the simulator's order."""
    counts: dict[str, dict[str, float | int]] = {}
    for kind in ANOMALY_KINDS:
        ids = [a.anomaly_id for a in truth if a.kind == kind]
        if ids:
            hits = sum(one in found for one in ids)
            counts[kind] = {
                "total": len(ids),
                "found": hits,
                "recall": round(hits / len(ids), 4),
            }
    return counts


def latencies_ms(alerts: Sequence[Received], sent_ms: Mapping[Place, int]) -> list[int]:
    """Return the latency of each alert whose payment's timestamp is known, ms.

    Silences have none: no payment raised them.
    """
    return [
        a.arrived_ms - sent_ms[a.place]
        for a in alerts
        if a.place is not None and a.place in sent_ms
    ]


def percentiles(values_ms: Sequence[int]) -> dict[str, float | None]:
    """Return p50 and p99 in ms, interpolated between neighbours; None where there is no value."""
    if not values_ms:
        return {"p50": None, "p99": None}
    p50, p99 = np.percentile(np.asarray(values_ms, np.float64), [50, 99])
    return {"p50": round(float(p50), 1), "p99": round(float(p99), 1)}


def degraded_s(samples: Sequence[Sample]) -> float:
    """Sum the stretches between samples in which a batch was degraded or the later one says so."""
    total = 0.0
    for before, after in pairwise(samples):
        if after.degraded or after.batches > before.batches:
            total += after.at_s - before.at_s
    return round(total, 1)


def build_report(
    run: Run, truth: Sequence[Anomaly], alerts: Sequence[Received]
) -> dict[str, object]:
    """Put the report together, as `report.json` holds it.

    Precision is None where there was no alert, recall where there was no anomaly.
    """
    judged = judge(truth, alerts)
    correct = len(alerts) - len(judged.false)
    latencies = latencies_ms(alerts, run.sent_ms)
    timed = run.payments - run.warm_up
    report: dict[str, object] = {
        "seed": run.seed,
        "payments": run.payments,
        "recall": round(len(judged.found) / len(truth), 4) if truth else None,
        "precision": round(correct / len(alerts), 4) if alerts else None,
        "alerts": len(alerts),
        "by_anomaly": count_by_kind(truth, judged.found),
        "payments_per_s": round(timed / run.decided_s, 1) if run.decided_s > 0 else None,
        "latency_ms": percentiles(latencies),
        "degraded_s": degraded_s(run.samples),
        "latency_of": LATENCY,
        "latency_alerts": len(latencies),
        "anomalies": len(truth),
        "anomalies_found": len(judged.found),
        "false_alerts": [
            {"entity": f"{a.kind}/{a.entity}", "event_time_ms": a.time_ms, "detector": a.detector}
            for a in judged.false
        ],
        "missed": [
            {"id": a.anomaly_id, "kind": a.kind, "entity": f"{a.entity_kind}/{a.entity}"}
            for a in truth
            if a.anomaly_id not in judged.found
        ],
        "degraded_alerts": sum(a.degraded for a in alerts),
        "undecided": run.undecided,
        "produced_s": round(run.produced_s, 1),
        "duration_s": round(run.duration_s, 1),
    }
    return {**report, **run.facts}
