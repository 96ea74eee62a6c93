"""Latency of alerts while the model in charge changes a hundred times, beside that without."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from confluent_kafka import TopicPartition

from deploy.bench import statistics, workload
from deploy.bench.jobs_under_test import system
from deploy.bench.measure import SETTLE_S, Figures, Result, read_arrivals
from deploy.bench.session import Live, Session, live
from deploy.bench.statistics import Arrival
from deploy.bench.watch import Gauge, consumer_of, timestamps_ms
from deploy.stack.options import REPOSITORY, StackError, StackOptions
from flink_jobs.rollout import promote
from flink_jobs.settings import Settings

SWITCHES = 100
SWITCH_TIMEOUT_S = 20.0
SETTLED_S = 5.0  # between the calm and the switches, which is counted to neither
DELIVERY = "at_least_once"  # with exactly once the commits would hide what a switch costs


def prepare(options: StackOptions, settings: Settings) -> tuple[StackOptions, Settings]:
    """Lay a model repository of the benchmark's own, with the model twice in it."""
    repository = options.root / "models"
    root = repository / settings.triton.model_name
    shutil.rmtree(repository, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__", "rollout.json*", "[2-9]")
    shutil.copytree(REPOSITORY / "triton_repo", repository, ignore=ignored)
    shutil.copytree(root / "1", root / "2")
    card = json.loads((root / "2" / "card.json").read_text())
    named = card | {"model_version": f"{card['model_version']}-again"}
    (root / "2" / "card.json").write_text(json.dumps(named))
    own = settings.override(
        f"triton.model_repository={repository}", "sink.models_topic=eddy.models"
    )
    return replace(options, triton_repo=repository), own


def switches(session: Session) -> Result:
    """Promote one version over the other again and again while payments come at a steady rate."""
    plan = session.plan
    eddy = system("eddy", session.settings)
    root = Path(session.settings.triton.model_repository) / session.settings.triton.model_name
    sent_s = plan.live_warm_s + plan.live_s + SETTLED_S + SWITCHES * SWITCH_TIMEOUT_S
    with live(session, eddy, plan.entities, DELIVERY, sent_s) as run:
        arrivals = read_arrivals(run, plan.live_warm_s + plan.live_s + SETTLED_S)
        degraded = Gauge(session.state, run.job.job_id, "eddy.degraded_batches")
        before = degraded.read() or 0.0
        began_s = time.time()
        taken = _switch(session, run, root, arrivals)
        took_s = time.time() - began_s
        arrivals += read_arrivals(run, SETTLE_S)
        after = degraded.read() or 0.0
        calm = _latencies(run, arrivals, plan.live_warm_s, plan.live_s)
        switching = _latencies(run, arrivals, began_s - run.began_s, took_s - 1.0)
    figures: Figures = {
        "switches": float(taken),
        "switching_s": took_s,
        "failed_batches": after - before,
        **{f"{name}_calm": value for name, value in calm.items()},
        **{f"{name}_switching": value for name, value in switching.items()},
    }
    ratios = {
        f"{name}_switching_over_calm": statistics.ratio(switching[name], calm[name])
        for name in ("p50_ms", "p99_ms")
    }
    return Result({"eddy": figures}, ratios)


def _switch(session: Session, run: Live, root: Path, arrivals: list[Arrival]) -> int:
    """Promote by turns, each time the one before is in charge; return how many were."""
    consumer = consumer_of(session.state, "read_uncommitted")
    consumer.assign([TopicPartition(str(session.settings.sink.models_topic), 0, 0)])
    try:
        for number in range(SWITCHES):
            wanted = 1 + number % 2  # the newer one is in charge at first
            generation = promote(root, wanted).generation
            until_s = time.time() + SWITCH_TIMEOUT_S
            while generation not in _taken(consumer.consume(100, 0.0)):
                arrivals += run.outputs.read()
                if time.time() > until_s:
                    raise StackError(
                        f"version {wanted} was not in charge within {SWITCH_TIMEOUT_S:.0f} s of "
                        "its promotion"
                    )
            if number % 20 == 19:
                session.report(f"{number + 1} switches")
    finally:
        consumer.close()
    return SWITCHES


def _taken(messages: Iterable[object]) -> set[int]:
    """Return the generations of which a worker says that their version is in charge."""
    found = set()
    for message in messages:
        body = json.loads(message.value() or b"{}")  # type: ignore[attr-defined]  # no types
        if body.get("type") == "in_charge":
            found.add(int(body["generation"]))
    return found


def _latencies(run: Live, arrivals: list[Arrival], from_s: float, seconds: float) -> Figures:
    """Return percentiles of the payments that were sent in a part of the run."""
    plan = run.job.session.plan
    first = run.history + workload.live_payments(plan, from_s)
    last = run.history + workload.live_payments(plan, from_s + seconds)
    sent_ms = timestamps_ms(run.job.session.state, run.topic, first, last)
    marked = [a for a in arrivals if a.offset % plan.marker_every == 0]
    found = statistics.latencies_ms(marked, first, sent_ms)
    share = len(found) / ((last - first) / plan.marker_every)
    return {**statistics.percentiles(found), "timed_share": share}
