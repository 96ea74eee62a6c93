"""One stack for all runs of a benchmark: jobs start on it cold, one after the other."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from deploy.bench import jobs_under_test, workload
from deploy.bench.jobs_under_test import System
from deploy.bench.plan import Plan
from deploy.bench.watch import Gauge, Outputs, Watch
from deploy.simulate import produce_chunks
from deploy.stack import jobs, kafka, stack
from deploy.stack.options import StackError, StackOptions
from deploy.stack.record import StackState
from flink_jobs.settings import Settings
from models.simulation.payments import SimulatedChunk

Report = Callable[[str], None]

# How often Flink fetches metrics from the TaskManager: four times a second cost 1.7 us of CPU for
# each payment, two seconds would blur the samples.
FETCH_MS = 1_000
BACKLOG_MESSAGES = 1_000  # payments to one message of the pass-through when it drains a backlog
START_TIMEOUT_S = 180.0
DELETE_TIMEOUT_S = 10.0


@dataclass(slots=True)
class Session:
    """A running stack and what is measured on it.

    Attributes:
        state: the stack; its TaskManager changes from run to run.
        settings: of the job under test.
        plan: durations, sizes and rates.
        report: told of each step, one line each.
    """

    state: StackState
    settings: Settings
    plan: Plan
    report: Report

    def send_backlog(self, topic: str, entities: int, payments: int) -> None:
        """Make a topic and fill it."""
        self.report(f"{topic}: sending {payments:,} payments over {entities:,} entities a kind")
        kafka.create_topics(self.state, {topic: self.settings.flink.parallelism})
        began_s = time.monotonic()
        chunks = workload.backlog(entities, payments, self.plan.seed)
        produce_chunks(chunks, self.state.bootstrap_servers, topic)
        self.report(f"{topic}: sent in {time.monotonic() - began_s:.0f} s")

    def forget(self, *topics: str) -> None:
        """Delete topics; what cannot be deleted stays until the stack is purged."""
        for future in kafka.admin(self.state).delete_topics(list(topics)).values():
            with contextlib.suppress(Exception):
                future.result(DELETE_TIMEOUT_S)

    @contextlib.contextmanager
    def job(
        self, chosen: System, topic: str, delivery: str, payments_per_message: int
    ) -> Iterator[RunningJob]:
        """Run a system on a fresh TaskManager, and clear away all that it leaves."""
        self.state = stack.restart(self.state.root, "taskmanager")
        own = jobs_under_test.settings_of(chosen, self.settings, self.state, topic, delivery)
        self.report(f"{chosen.name}: starting ({delivery.replace('_', ' ')})")
        job_id = jobs_under_test.submit(chosen, own, self.state, payments_per_message)
        try:
            jobs.wait_until_running(self.state, job_id, START_TIMEOUT_S)
            yield RunningJob(self, chosen, own, job_id)
        finally:
            with contextlib.suppress(StackError):
                jobs.cancel_job(self.state, job_id)
            for found in (self.state.root / "flink" / "checkpoints").glob(f"{job_id}*"):
                shutil.rmtree(found, ignore_errors=True)
            sink = own.sink
            self.forget(sink.alerts_topic, sink.dead_letters_topic, sink.late_topic)


@dataclass(frozen=True, slots=True)
class RunningJob:
    """One run of one system."""

    session: Session
    system: System
    settings: Settings
    job_id: str

    def watch(self) -> Watch:
        """Watch its progress."""
        return Watch(self.session.state, self.job_id, self.system.counter, self.system.per_payment)

    def entities(self) -> float | None:
        """Return how many entities its state holds, of all kinds together; None if it has none."""
        return Gauge(self.session.state, self.job_id, "eddy.entities").read()

    def alerts(self) -> float | None:
        """Return how many alerts it has raised; None if it does not say."""
        return Gauge(self.session.state, self.job_id, "eddy.alerts").read()

    def outputs(self) -> Outputs:
        """Read its alerts."""
        return Outputs(self.session.state, self.settings.sink.alerts_topic)


@dataclass(slots=True)
class Live:
    """A job with its history behind it and payments that come at a steady rate.

    Attributes:
        job: the running job.
        outputs: its alerts.
        history: payments that were sent before the steady ones.
        topic: of the payments.
        began_s: when the first steady payment was sent, seconds since the epoch.
    """

    job: RunningJob
    outputs: Outputs
    history: int
    topic: str
    began_s: float

    def sent(self, at_s: float) -> int:
        """Return how many payments, history included, may have been sent by `at_s`."""
        return self.history + int((at_s - self.began_s) * self.job.session.plan.rate_per_s) + 1


@contextlib.contextmanager
def live(
    session: Session, chosen: System, entities: int, delivery: str, seconds: float
) -> Iterator[Live]:
    """Start a system, let it work off a history, then send payments at the plan's rate.

    Args:
        session: the stack.
        chosen: the system.
        entities: of each kind.
        delivery: exactly_once or at_least_once.
        seconds: how long payments are sent at most.
    """
    plan, state = session.plan, session.state
    topic = f"bench.live.{chosen.name}-{delivery}-{entities}".replace("_", "-")
    # The broker's clock says when a payment was in Kafka, not the sender's.
    stamped = {topic: {"message.timestamp.type": "LogAppendTime"}}
    kafka.create_topics(state, {topic: 1}, stamped)
    count = workload.live_payments(plan, seconds)
    history, steady = workload.live(plan, entities, count, datetime.now(UTC))
    before = len(history) * workload.LIVE_CHUNK
    produce_chunks(history, state.bootstrap_servers, topic)
    del history
    stop = threading.Event()
    sender = threading.Thread(
        target=_send, args=(steady, state.bootstrap_servers, topic, plan.rate_per_s, stop)
    )
    try:
        with session.job(chosen, topic, delivery, plan.marker_every) as job:
            outputs = job.outputs()
            try:
                timeout_s = START_TIMEOUT_S + before / 5_000
                job.watch().until(lambda samples: samples[-1].payments >= before, timeout_s)
                list(outputs.read())
                session.report(f"{chosen.name}: {plan.rate_per_s:,.0f} payments/s")
                began_s = time.time()
                sender.start()
                yield Live(job, outputs, before, topic, began_s)
            finally:
                stop.set()
                if sender.is_alive():
                    sender.join()
                outputs.close()
    finally:
        session.forget(topic)


def _send(
    chunks: Iterator[SimulatedChunk],
    bootstrap_servers: str,
    topic: str,
    rate_per_s: float,
    stop: threading.Event,
) -> None:
    produce_chunks(chunks, bootstrap_servers, topic, rate_per_s=rate_per_s, stop=stop)


@contextlib.contextmanager
def session(
    options: StackOptions, settings: Settings, plan: Plan, report: Report
) -> Iterator[Session]:
    """Start a stack in a folder of its own, and remove it with all of its data at the end."""
    # What a run that was killed left behind would be counted again.
    stack.down(options.root, purge=True)
    config = {**options.flink_config, "metrics.fetcher.update-interval": str(FETCH_MS)}
    state = stack.up(replace(options, flink_config=config), report)
    try:
        yield Session(state, settings, plan, report)
    finally:
        report("clearing away")
        stack.down(options.root, purge=True)
        remove_folder(options.root)


def remove_folder(root: Path) -> None:
    """Remove the stack's folder; what others put there stays."""
    shutil.rmtree(root / "jobs", ignore_errors=True)
    with contextlib.suppress(OSError):
        root.rmdir()
