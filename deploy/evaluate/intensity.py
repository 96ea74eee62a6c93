"""What the intensity model adds: simulated worlds played through the job's own steps, three ways.

The baselines alone, with the intensity model, and with the sequence component beside it. All see
the same payments as the job would; alerts are judged by the demo's rules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from deploy.demo.report import GRACE_MS, Received, count_by_kind, judge, read_alert
from flink_jobs.alerts import ALERT, Output
from flink_jobs.calibrate import DictStore
from flink_jobs.intensity_in_process import InProcessClient
from flink_jobs.intensity_protocol import IntensityClient, NullClient
from flink_jobs.model_files import load_models, model_folder
from flink_jobs.parse import Records, parse
from flink_jobs.scorer import ShardScorer
from flink_jobs.settings import Settings
from models.simulation.config import AnomalyCounts, SimulationConfig, demo
from models.simulation.encode import encode_payments
from models.simulation.stream import Simulation
from models.simulation.truth import Anomaly
from state.events import EventBatch

BASELINES, INTENSITY, SEQUENCE = "baselines", "intensity", "sequence"
WAYS = (BASELINES, INTENSITY, SEQUENCE)
# Whose timing is odd; the other kinds are odd in amounts, partners or merchants.
TIMING_KINDS = ("bot_timing", "card_testing", "outage")
# Detectors that look at times alone.
TIMING_DETECTORS = ("burst", "regularity", "silence", "sequence")
TIMING_COUNT = 20  # anomalies of each of TIMING_KINDS in a world that has no others
SECOND_MS = 1_000


@dataclass(frozen=True, slots=True)
class World:
    """One simulated world as all ways saw it.

    Attributes:
        name: what it is and its seed.
        payments: in it.
        truth: its anomalies.
        alerts: by way.
    """

    name: str
    payments: int
    truth: Sequence[Anomaly]
    alerts: Mapping[str, Sequence[Received]]


def worlds_of(seed: int, count: int) -> dict[str, SimulationConfig]:
    """Return `count` worlds of the demo and as many with timing anomalies alone, by name."""
    few = AnomalyCounts(**dict.fromkeys(TIMING_KINDS, TIMING_COUNT))
    each = {f"demo {s}": demo(s) for s in range(seed, seed + count)}
    return each | {
        f"timing {s}": replace(demo(s), anomalies=few)
        for s in range(seed + count, seed + 2 * count)
    }


def ways_of(settings: Settings, kinds: Sequence[str]) -> dict[str, Settings]:
    """Return the settings of each way.

    Args:
        settings: of the job.
        kinds: of entities that get the sequence component.
    """
    aided = replace(settings, triton=replace(settings.triton, enabled=True))
    named = dict(settings.detection.components)
    for kind in kinds:
        named[kind] = (*(name for name in named.get(kind, ()) if name != SEQUENCE), SEQUENCE)
    detection = replace(settings.detection, components=tuple(named.items()))
    return {
        BASELINES: replace(settings, triton=replace(settings.triton, enabled=False)),
        INTENSITY: aided,
        SEQUENCE: replace(aided, detection=detection),
    }


def play(name: str, config: SimulationConfig, ways: Mapping[str, Settings]) -> World:
    """Play a world; every way has a shard of its own, and they take turns batch by batch."""
    scorers = {way: _scorer(way, settings) for way, settings in ways.items()}
    found: dict[str, list[Output]] = {way: [] for way in ways}
    simulation, payments = Simulation(config), 0
    for batch in _batches(simulation, ways[INTENSITY]):
        payments += len(batch)
        for way, scorer in scorers.items():
            found[way] += scorer.on_batch(batch)
    for way, scorer in scorers.items():
        found[way] += scorer.drain()
    alerts = {
        way: [read_alert(one.value, 0, 0) for one in outputs if one.kind == ALERT]
        for way, outputs in found.items()
    }
    return World(name, payments, simulation.truth(), alerts)


def _scorer(way: str, settings: Settings) -> ShardScorer:
    client: IntensityClient = NullClient()
    if way != BASELINES:
        client = InProcessClient(model_folder(settings) / "decoder.onnx")
    return ShardScorer(settings, load_models(settings), DictStore(), client)


def _batches(simulation: Simulation, settings: Settings) -> Iterator[EventBatch]:
    offset = 0
    for chunk in simulation.chunks():
        values = encode_payments(chunk)
        n = len(values)
        records = Records(
            settings.source.topic, values, np.zeros(n, np.int32),
            np.arange(offset, offset + n), np.full(n, chunk.time_ms[-1]),
        )  # fmt: skip
        offset += n
        yield from (batch for _, batch in parse(records, settings.event, 1).batches)


def evaluate(
    seed: int,
    count: int,
    settings: Settings,
    kinds: Sequence[str],
    progress: Callable[[str], object] = str,
) -> dict[str, object]:
    """Play all worlds and put the report together.

    Args:
        seed: of the first world.
        count: worlds of the demo, and as many with timing anomalies alone.
        settings: of the job.
        kinds: of entities that get the sequence component.
        progress: is told each world when it is done.
    """
    ways = ways_of(settings, kinds)
    played = []
    for name, config in worlds_of(seed, count).items():
        played.append(play(name, config, ways))
        alerts = {way: len(played[-1].alerts[way]) for way in WAYS}
        progress(f"{name}: {played[-1].payments} payments, alerts {alerts}")
    return report(seed, played, settings, kinds)


def report(
    seed: int, played: Sequence[World], settings: Settings, kinds: Sequence[str]
) -> dict[str, object]:
    """Put the report together: the ways over all worlds, and over the demo's alone."""
    quiet_ms = settings.detection.incident_quiet_s * 1_000
    parts = {
        "all": played,
        "demo": [world for world in played if world.name.startswith("demo")],
    }
    return {
        "seed": seed,
        "worlds": {world.name: world.payments for world in played},
        "sequence_kinds": list(kinds),
        "timing_kinds": list(TIMING_KINDS),
        "timing_detectors": list(TIMING_DETECTORS),
        **{
            name: {
                way: _figures(some, way, before, quiet_ms)
                for way, before in zip(WAYS, (None, *WAYS), strict=False)
            }
            for name, some in parts.items()
        },
    }


def _figures(
    worlds: Sequence[World], way: str, before: str | None, quiet_ms: int
) -> dict[str, object]:
    """Count what one way found in all worlds, and what it adds to the way before."""
    totals: dict[str, Counter[str]] = {}
    delays: dict[str, list[float]] = {}
    alerts: Counter[str] = Counter()
    true: Counter[str] = Counter()
    missed: list[str] = []
    false: list[str] = []
    timing_found: set[tuple[str, str]] = set()
    timing = 0
    for world in worlds:
        mine = world.alerts[way]
        judged = judge(world.truth, mine)
        wrong = {one.alert_id for one in judged.false}
        for kind, counts in count_by_kind(world.truth, judged.found).items():
            totals.setdefault(kind, Counter()).update(
                total=int(counts["total"]), found=int(counts["found"])
            )
        for anomaly in world.truth:
            if anomaly.anomaly_id not in judged.found:
                missed.append(f"{world.name}: {anomaly.kind} {anomaly.entity}")
            else:
                delays.setdefault(anomaly.kind, []).append(_delay_s(anomaly, mine))
        for one in mine:
            alerts[one.detector] += 1
            true[one.detector] += one.alert_id not in wrong
        false += [f"{world.name}: {a.kind}/{a.entity} {a.detector}" for a in judged.false]
        own = [a for a in world.truth if a.kind in TIMING_KINDS]
        timing += len(own)
        seen = judge(own, [a for a in mine if a.detector in TIMING_DETECTORS]).found
        timing_found.update((world.name, one) for one in seen)
    own_found = sum(totals[kind]["found"] for kind in TIMING_KINDS if kind in totals)
    told = sum(alerts[name] for name in TIMING_DETECTORS)
    return {
        "recall": _share(sum(t["found"] for t in totals.values()),
                         sum(t["total"] for t in totals.values())),
        "precision": _share(true.total(), alerts.total()),
        "alerts": alerts.total(),
        "false": alerts.total() - true.total(),
        "timing": {
            "recall": _share(own_found, timing),
            "recall_by_timing_detectors": _share(len(timing_found), timing),
            "precision_of_timing_detectors": _share(
                sum(true[name] for name in TIMING_DETECTORS), told
            ),
        },
        "by_anomaly": {
            kind: {
                "total": t["total"], "found": t["found"],
                "recall": _share(t["found"], t["total"]),
                "median_delay_s": round(median(delays[kind]), 1) if kind in delays else None,
            }
            for kind, t in totals.items()
        },
        "by_detector": {
            name: {"alerts": n, "true": true[name], "precision": _share(true[name], n)}
            for name, n in sorted(alerts.items())
        },
        "added": None if before is None else _added(worlds, way, before, quiet_ms),
        "missed": missed,
        "false_alerts": false,
    }  # fmt: skip


def _added(worlds: Iterable[World], way: str, before: str, quiet_ms: int) -> dict[str, object]:
    """Compare two ways: anomalies that come and go, and alerts on entities that were quiet.

    An alert is added where the other way has none of its entity within an incident's quiet time.
    """
    come: Counter[str] = Counter()
    gone: Counter[str] = Counter()
    counts = {name: Counter[str]() for name in ("added", "added_true", "lost", "lost_true")}
    for world in worlds:
        mine, other = world.alerts[way], world.alerts[before]
        now, then = judge(world.truth, mine), judge(world.truth, other)
        kind_of = {a.anomaly_id: a.kind for a in world.truth}
        come.update(kind_of[one] for one in now.found - then.found)
        gone.update(kind_of[one] for one in then.found - now.found)
        for name, some, rest, false in (
            ("added", mine, other, now.false),
            ("lost", other, mine, then.false),
        ):
            wrong = {one.alert_id for one in false}
            for one in some:
                if not _near(one, rest, quiet_ms):
                    counts[name][one.detector] += 1
                    counts[f"{name}_true"][one.detector] += one.alert_id not in wrong
    return {
        "over": before,
        "anomalies_more": dict(come),
        "anomalies_fewer": dict(gone),
        "alerts": counts["added"].total(),
        "true": counts["added_true"].total(),
        "precision": _share(counts["added_true"].total(), counts["added"].total()),
        "by_detector": {
            name: {"alerts": n, "true": counts["added_true"][name]}
            for name, n in sorted(counts["added"].items())
        },
        "alerts_lost": counts["lost"].total(),
        "true_lost": counts["lost_true"].total(),
    }


def _near(one: Received, others: Iterable[Received], quiet_ms: int) -> bool:
    return any(
        (a.kind, a.entity) == (one.kind, one.entity) and abs(a.time_ms - one.time_ms) <= quiet_ms
        for a in others
    )


def _delay_s(anomaly: Anomaly, alerts: Iterable[Received]) -> float:
    """Return seconds of event time from an anomaly's begin to the first alert that found it."""
    times = [
        a.time_ms
        for a in alerts
        if (a.kind, a.entity) == (anomaly.entity_kind, anomaly.entity)
        and anomaly.start_ms <= a.time_ms <= anomaly.end_ms + GRACE_MS
    ]
    return (min(times) - anomaly.start_ms) / SECOND_MS


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None
