"""The three benchmarks: throughput, latency, state. Each returns figures by system, and ratios."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from deploy.bench import statistics, workload
from deploy.bench.jobs_under_test import System, system
from deploy.bench.session import BACKLOG_MESSAGES, Live, Session, live
from deploy.bench.statistics import Arrival
from deploy.bench.watch import checkpoint_figures, checkpoints_failed, timestamps_ms
from deploy.stack import stack
from deploy.stack.options import StackError
from state.table import ROW_BYTES

Figures = dict[str, float | None]
DELIVERIES = ("at_least_once", "exactly_once")
SETTLE_S = 3.0  # after the last payment, for the outputs that are under way
RECOVERY_TIMEOUT_S = 180.0
FIRST_TIMEOUT_S = 120.0  # for a job that runs to let its first payment through


@dataclass(frozen=True, slots=True)
class Result:
    """What one benchmark found.

    Attributes:
        systems: by system, by figure with its unit at the end; None where it does not apply.
        ratios: figures of one system over those of another.
    """

    systems: Mapping[str, Figures]
    ratios: Mapping[str, float | None]


def throughput(session: Session) -> Result:
    """Drain a backlog by each system in turn, exactly once."""
    plan = session.plan
    systems: dict[str, Figures] = {}
    topic = "bench.backlog"
    session.send_backlog(topic, plan.entities, plan.backlog)
    for name in plan.systems:
        chosen = system(name, session.settings)
        if name == "naive":
            session.send_backlog("bench.naive", plan.entities, plan.naive_backlog)
            systems[name] = drain(session, chosen, "bench.naive", plan.naive_backlog)
        else:
            systems[name] = drain(session, chosen, topic, plan.backlog)
        session.report(f"{name}: {systems[name]['payments_per_s']:,.0f} payments/s")
    return Result(systems, _over("payments_per_s", systems))


def drain(session: Session, chosen: System, topic: str, backlog: int) -> Figures:
    """Measure one system on a backlog of that many payments."""
    plan = session.plan

    with session.job(chosen, topic, "exactly_once", BACKLOG_MESSAGES) as job:
        watch = job.watch()
        samples = watch.until(lambda seen: seen[-1].payments > 0, FIRST_TIMEOUT_S)
        end_s = statistics.begin_s(samples) + plan.until_s
        failed = checkpoints_failed(session.state, job.job_id)
        samples += watch.until(
            lambda seen: seen[-1].payments >= backlog or seen[-1].at_s > end_s,
            plan.until_s + FIRST_TIMEOUT_S,
        )
        found = statistics.throughput(samples, plan.warm_s, plan.until_s, backlog)
        figures: Figures = {
            "payments_per_s": found.payments_per_s,
            "entity_scores_per_s": chosen.scores * found.payments_per_s or None,
            "cold_payments_per_s": found.cold_payments_per_s,
            "window_begin_s": found.window_s[0],
            "window_end_s": found.window_s[1],
            "entities": job.entities(),
            # Alerts cost far more than scores: a run with many is another run.
            "alerts_per_million": statistics.ratio(job.alerts(), 1e-6 * samples[-1].payments),
            "checkpoints_failed": checkpoints_failed(session.state, job.job_id) - failed,
            "cpu_us_per_payment": sum(found.cpu_us_per_payment.values()),
        }
        for part, used_us in found.cpu_us_per_payment.items():
            figures[f"cpu_us_per_payment_{part}"] = used_us
        return figures | checkpoint_figures(session.state, job.job_id)


def latency(session: Session) -> Result:
    """Time payments from Kafka in to Kafka out at a steady rate, with both kinds of delivery."""
    systems: dict[str, Figures] = {}
    for name in session.plan.systems:
        if name == "naive":
            continue  # it never reaches the rate, so its latency would be the length of the run
        systems[name] = {}
        for delivery in DELIVERIES:
            found = _latency(session, system(name, session.settings), delivery)
            systems[name] |= {f"{figure}_{delivery}": value for figure, value in found.items()}
            session.report(f"{name}, {delivery}: {found['p50_ms']:.0f} / {found['p99_ms']:.0f} ms")
    ratios: dict[str, float | None] = {}
    for delivery in DELIVERIES:
        for part in ("p50_ms", "p99_ms"):
            figure = f"{part}_{delivery}"
            for name, value in _over(figure, systems).items():
                ratios[f"{figure}_{name}"] = value
    return Result(systems, ratios)


def _latency(session: Session, chosen: System, delivery: str) -> Figures:
    plan = session.plan
    sent_s = plan.live_warm_s + plan.live_s
    with live(session, chosen, plan.entities, delivery, sent_s) as run:
        arrivals = read_arrivals(run, sent_s + SETTLE_S)
        first = run.history + workload.live_payments(plan, plan.live_warm_s)
        # The sender may have been late: the last payments are not waited for.
        last = run.history + workload.live_payments(plan, sent_s - 1.0)
        sent_ms = timestamps_ms(session.state, run.topic, first, last)
    chosen_only = [a for a in arrivals if a.offset % plan.marker_every == 0]
    found = statistics.latencies_ms(chosen_only, first, sent_ms)
    expected = (last - first) / plan.marker_every
    return {
        **statistics.percentiles(found),
        "timed_payments": float(len(found)),
        "timed_share": len(found) / expected,
    }


def read_arrivals(run: Live, seconds: float) -> list[Arrival]:
    """Read what comes out in so many seconds."""
    until_s = time.time() + seconds
    arrivals: list[Arrival] = []
    while time.time() < until_s:
        arrivals.extend(run.outputs.read())
    return arrivals


def state(session: Session) -> Result:
    """Size of rows and checkpoints, throughput by size, gaps in the output, and recovery."""
    plan = session.plan
    eddy = system("eddy", session.settings)
    figures: Figures = {"row_bytes": float(ROW_BYTES)}
    for entities in (plan.small, plan.large):
        topic = f"bench.backlog-{entities}"
        session.send_backlog(topic, entities, plan.backlog)
        found = drain(session, eddy, topic, plan.backlog)
        session.forget(topic)
        session.report(f"{entities:,} entities a kind: {found['payments_per_s']:,.0f} payments/s")
        for figure in ("payments_per_s", "checkpoint_p50_ms", "checkpoint_max_ms"):
            figures[f"{figure}_{entities}"] = found.get(figure)
        figures |= _sizes(found, entities)
    figures["longest_output_gap_s"] = _longest_gap(session, eddy)
    sizes = (plan.entities, plan.large) if plan.recover_large else (plan.entities,)
    for entities in sizes:
        figures |= _recovery(session, eddy, entities)
    small, large = (figures[f"payments_per_s_{n}"] for n in (plan.small, plan.large))
    ratios = {
        "payments_per_s_large_over_small": statistics.ratio(large, small),
        "checkpoint_over_rows": figures[f"checkpoint_over_rows_{plan.entities}"],
        "checkpoint_over_rows_large": figures[f"checkpoint_over_rows_{plan.large}"],
    }
    return Result({"eddy": figures}, ratios)


def _sizes(found: Figures, entities: int) -> Figures:
    """Compare the newest checkpoint with the bare rows of the entities that are in it."""
    rows_bytes = (found.get("entities") or 0.0) * ROW_BYTES
    checkpoint_bytes = found.get("checkpoint_bytes")
    return {
        f"entities_{entities}": found.get("entities"),
        f"rows_bytes_{entities}": rows_bytes,
        f"checkpoint_bytes_{entities}": checkpoint_bytes,
        f"checkpoint_over_rows_{entities}": statistics.ratio(checkpoint_bytes, rows_bytes),
    }


def _longest_gap(session: Session, eddy: System) -> float:
    """Return the longest time without an alert while checkpoints run each second.

    At least once, since with exactly once nothing is visible between two commits.
    """
    plan = session.plan
    sent_s = plan.live_warm_s + plan.live_s
    with live(session, eddy, plan.entities, "at_least_once", sent_s) as run:
        began_s = time.time()
        arrivals = read_arrivals(run, sent_s)
    at_s = (arrival.at_s for arrival in arrivals)
    # The sender may end a moment before we do.
    gap_s = statistics.longest_gap_s(at_s, began_s + plan.live_warm_s, began_s + sent_s - 1.0)
    session.report(f"longest gap in the output: {gap_s:.2f} s")
    return gap_s


def _recovery(session: Session, eddy: System, entities: int) -> Figures:
    """Kill the TaskManager, start another, and wait for the next alerts, exactly once."""
    plan = session.plan
    sent_s = plan.live_warm_s + RECOVERY_TIMEOUT_S
    with live(session, eddy, entities, "exactly_once", sent_s) as run:
        before = read_arrivals(run, plan.live_warm_s)
        if not before:
            raise StackError("no alert came before the fault; nothing can be said of recovery")
        sizes = checkpoint_figures(session.state, run.job.job_id)
        found: Figures = {"entities": run.job.entities(), **sizes}
        root = session.state.root
        session.report(f"kill -9 of the TaskManager with {entities:,} entities a kind")
        stack.kill(root, "taskmanager")
        killed_s = time.time()
        # What was in the consumer's hands before the fault is no sign of life.
        last = max(arrival.offset for arrival in [*before, *run.outputs.read(0.5)])
        starter = threading.Thread(target=stack.restart, args=(root, "taskmanager"))
        starter.start()
        try:
            next_s, new_s = _await_recovery(run, last, killed_s)
        finally:
            starter.join()
            session.state = stack.load_state(root)
    session.report(f"recovered: next alert after {next_s:.1f} s, of a new payment {new_s:.1f} s")
    return {
        f"recovery_s_{entities}": next_s,
        f"recovery_new_payment_s_{entities}": new_s,
        **_sizes(found, entities),
    }


def _await_recovery(run: Live, last: int, killed_s: float) -> tuple[float, float]:
    """Return seconds to the next alert, and to that of a payment sent after the fault."""
    next_s: float | None = None
    sent = run.sent(killed_s)
    while time.time() < killed_s + RECOVERY_TIMEOUT_S:
        for arrival in run.outputs.read():
            if arrival.offset > last and next_s is None:
                next_s = arrival.at_s - killed_s
            if arrival.offset > sent and next_s is not None:
                return next_s, arrival.at_s - killed_s
    raise StackError(f"no alert in {RECOVERY_TIMEOUT_S:.0f} s after the fault")


def _over(figure: str, systems: Mapping[str, Figures]) -> dict[str, float | None]:
    """Divide eddy's figure by that of each other system."""
    own = systems.get("eddy", {}).get(figure)
    return {
        f"eddy_over_{name}": statistics.ratio(own, found.get(figure))
        for name, found in systems.items()
        if name != "eddy" and "eddy" in systems
    }
