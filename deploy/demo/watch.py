"""What the demo watches while payments flow; each watcher is a thread that writes to one board."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

from deploy import simulate
from deploy.demo.report import Place, Received, Sample, latencies_ms, percentiles, read_alert
from deploy.stack import stack
from deploy.stack.jobs import FINAL, exceptions, job, job_metrics
from deploy.stack.options import SERVICES, ServiceStatus, StackError
from deploy.stack.record import StackState
from flink_jobs.errors import EddyError
from flink_jobs.settings import Settings
from models.simulation.config import SimulationConfig
from models.simulation.stream import CHUNK_PAYMENTS, Simulation

METRICS = ("events", "decided", "alerts", "late", "dead_letters", "degraded", "degraded_batches",
           "entities", "in_flight")  # fmt: skip
METRICS_EVERY_S = 1.0
HEALTH_EVERY_S = 3.0
POLL_S = 0.2
RATE_OVER_S = 5.0
SHOWN_LATENCIES = 500
LOOK_UP_TIMEOUT_S = 10.0
# Flink may be asked while it is busy; only a job that is gone for good ends the demo.
PATIENCE_S = 30.0
JOIN_S = 15.0


@dataclass(slots=True)
class Board:
    """What is known now. Each field has one writer; readers take what they find.

    Attributes:
        seed: of the payments.
        expected: payments that will be sent, about.
        kinds: entity kinds, so scores of each payment.
        quiet_until_ms: event time before which the payments hold no anomaly.
        min_events: events of an entity before it can be alerted on.
        began_s: when the demo began, monotonic seconds.
        phase: what is being done.
        steps: what was done to get there.
        sent: payments handed to Kafka.
        warm_up: those of them that were sent while the job was starting.
        event_ms: event time of the last of them.
        first_s: when the first after those was sent, monotonic seconds; 0 before.
        last_s: when the last was acknowledged; 0 before.
        decided_s: when `decided` grew last.
        metrics: of the job, by name.
        history: (monotonic seconds, payments sent, payments decided), the last few seconds.
        samples: of the job's degradation.
        health: of the servers.
        alerts: all alerts, as they came.
        sent_ms: Kafka timestamps of the payments that raised alerts.
        failed: why the demo cannot go on.
    """

    seed: int
    expected: int
    kinds: int = 3
    quiet_until_ms: int = 0
    min_events: int = 0
    began_s: float = field(default_factory=time.monotonic)
    phase: str = "starting"
    steps: list[str] = field(default_factory=list)
    sent: int = 0
    warm_up: int = 0
    event_ms: int = 0
    first_s: float = 0.0
    last_s: float = 0.0
    decided_s: float = 0.0
    metrics: dict[str, int] = field(default_factory=dict)
    history: deque[tuple[float, int, int]] = field(default_factory=lambda: deque(maxlen=64))
    samples: list[Sample] = field(default_factory=list)
    health: list[ServiceStatus] = field(default_factory=list)
    alerts: list[Received] = field(default_factory=list)
    sent_ms: dict[Place, int] = field(default_factory=dict)
    failed: Exception | None = None

    def note_step(self, line: str) -> None:
        """Take a line of `stack.up`, which names servers that are ready."""
        self.steps.append(line)
        name, _, what = line.partition(": ")
        ready = [service for service in SERVICES if service == name and what.startswith("ready")]
        self.health = [*self.health, *(ServiceStatus(service, "up") for service in ready)]

    @property
    def decided(self) -> int:
        """Payments whose every entity was decided."""
        return self.metrics.get("decided", 0) // self.kinds

    @property
    def left(self) -> int:
        """Payments sent that were neither decided nor set aside as late or unreadable."""
        aside = self.metrics.get("late", 0) + self.metrics.get("dead_letters", 0)
        return max(0, self.sent - self.decided - aside)

    @property
    def degraded(self) -> bool:
        """Whether the job scored without the intensity model when it was last asked."""
        return bool(self.samples) and self.samples[-1].degraded

    @property
    def quiet(self) -> bool:
        """Whether the payments so far hold no anomaly, and none was alerted on."""
        return not self.alerts and self.event_ms < self.quiet_until_ms

    def rates(self) -> tuple[float, float]:
        """Return payments sent and decided per second over the last RATE_OVER_S."""
        rows = list(self.history)
        if len(rows) < 2:
            return 0.0, 0.0
        recent = [row for row in rows if row[0] >= rows[-1][0] - RATE_OVER_S]
        first, last = recent[0] if len(recent) > 1 else rows[-2], rows[-1]
        span = last[0] - first[0]
        return (
            ((last[1] - first[1]) / span, (last[2] - first[2]) / span) if span > 0 else (0.0, 0.0)
        )

    def latency(self) -> dict[str, float | None]:
        """Return percentiles over the latest alerts, ms."""
        return percentiles(latencies_ms(self.alerts[-SHOWN_LATENCIES:], dict(self.sent_ms)))


@dataclass(frozen=True, slots=True)
class Stream:
    """What is streamed, and where to.

    Attributes:
        state: the stack.
        settings: of the job.
        job_id: of the running job.
        world: the payments.
        rate_per_s: how fast they are sent.
        truth_path: where the truth goes, which the job never sees.
    """

    state: StackState
    settings: Settings
    job_id: str
    world: SimulationConfig
    rate_per_s: float
    truth_path: Path


@contextlib.contextmanager
def watching(stream: Stream, board: Board) -> Iterator[threading.Event]:
    """Send the payments and watch everything while the block runs.

    Args:
        stream: what is streamed.
        board: written to.

    Yields:
        An event that is set when every payment is sent.
    """
    sent, stop = threading.Event(), threading.Event()
    arrived: queue.SimpleQueue[Place] = queue.SimpleQueue()
    tasks: dict[str, Callable[[], None]] = {
        "alerts": lambda: _receive(stream, board, arrived, stop),
        "timestamps": lambda: _look_up(stream, board, arrived, stop),
        "metrics": lambda: _measure(stream, board, stop),
        "health": lambda: _examine(stream, board, stop),
        "payments": lambda: _produce(stream, board, sent, stop),
    }
    threads = [
        threading.Thread(target=_guarded, args=(task, board), name=f"demo-{name}", daemon=True)
        for name, task in tasks.items()
    ]
    try:
        for thread in threads:
            thread.start()
        yield sent
    finally:
        stop.set()
        deadline = time.monotonic() + JOIN_S
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))


def _guarded(task: Callable[[], None], board: Board) -> None:
    """Run a thread's task; its failure is the demo's."""
    try:
        task()
    except (EddyError, StackError, simulate.DeliveryError) as error:
        board.failed = board.failed or error
    except KafkaException as error:
        board.failed = board.failed or EddyError(f"Kafka: {error.args[0].str()}")
    except Exception as error:  # noqa: BLE001 a thread's failure must not go unseen
        board.failed = board.failed or error


def _produce(stream: Stream, board: Board, sent: threading.Event, stop: threading.Event) -> None:
    """Send the first payments, wait until the job answers, then send the rest at a steady pace.

    The job's Python workers start with the first payment; what piles up meanwhile would be measured
    as latency that no running job has.
    """
    simulation = Simulation(stream.world)
    chunks = simulation.chunks(min(CHUNK_PAYMENTS, max(1, int(stream.rate_per_s))))
    first = next(chunks)
    send = partial(
        simulate.produce_chunks,
        bootstrap_servers=stream.state.bootstrap_servers,
        topic=stream.settings.source.topic,
        stop=stop,
    )
    board.sent = board.warm_up = send([first])
    board.event_ms = int(first.time_ms[-1])
    while board.left and not stop.wait(POLL_S):
        pass
    board.first_s = time.monotonic()

    def note(payments: int, time_ms: int) -> None:
        board.sent, board.event_ms = len(first) + payments, time_ms

    send(chunks, rate_per_s=stream.rate_per_s, progress=note)
    board.last_s = time.monotonic()
    if not stop.is_set():
        simulate.write_truth(simulation.truth(), stream.truth_path)
        sent.set()


def _consumer(stream: Stream, name: str, **more: object) -> Consumer:
    return Consumer(
        {
            "bootstrap.servers": stream.state.bootstrap_servers,
            "group.id": f"eddy-demo-{name}",  # never joined: partitions are assigned by hand
            "enable.auto.commit": False,
            "log_level": 0,
            **more,
        }
    )


def _receive(
    stream: Stream, board: Board, arrived: queue.SimpleQueue[Place], stop: threading.Event
) -> None:
    """Take alerts as any reader of committed messages does; one that comes again counts once."""
    consumer = _consumer(stream, "alerts", **{"isolation.level": "read_committed"})
    topic, seen = stream.settings.sink.alerts_topic, set()
    try:
        partitions = range(stream.settings.flink.parallelism)
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
        while not stop.is_set():
            message = consumer.poll(POLL_S)
            if message is None or message.error() is not None:
                continue
            now_ms = time.time_ns() // 1_000_000
            alert = read_alert(message.value() or b"", message.timestamp()[1], now_ms)
            if alert.alert_id in seen:
                continue
            seen.add(alert.alert_id)
            board.alerts.append(alert)
            if alert.place is not None:
                arrived.put(alert.place)
    finally:
        consumer.close()


def _look_up(
    stream: Stream, board: Board, arrived: queue.SimpleQueue[Place], stop: threading.Event
) -> None:
    """Read the payments that raised alerts back from Kafka, for their timestamps."""
    small = {"queued.min.messages": 1, "fetch.message.max.bytes": 16_384}
    consumer = _consumer(stream, "timestamps", **small)
    try:
        while not stop.is_set():
            with contextlib.suppress(queue.Empty):
                partition, offset = arrived.get(timeout=POLL_S)
                if (partition, offset) not in board.sent_ms:
                    consumer.assign(
                        [TopicPartition(stream.settings.source.topic, partition, offset)]
                    )
                    _keep_timestamp(consumer, (partition, offset), board, stop)
    finally:
        consumer.close()


def _keep_timestamp(consumer: Consumer, place: Place, board: Board, stop: threading.Event) -> None:
    deadline = time.monotonic() + LOOK_UP_TIMEOUT_S
    while not stop.is_set() and time.monotonic() < deadline:
        message = consumer.poll(POLL_S)
        if message is None or message.error() is not None:
            continue
        if (message.partition(), message.offset()) == place:
            board.sent_ms[place] = message.timestamp()[1]
            return


def _measure(stream: Stream, board: Board, stop: threading.Event) -> None:
    """Read the job's metrics and its state."""
    heard_s = time.monotonic()
    while not stop.wait(METRICS_EVERY_S):
        try:
            found = read_metrics(stream.state, stream.job_id)
            _ensure_job_lives(stream)
        except StackError:
            if time.monotonic() > heard_s + PATIENCE_S:
                raise
            continue
        now_s = heard_s = time.monotonic()
        if found.get("decided", 0) > board.metrics.get("decided", 0):
            board.decided_s = now_s
        board.metrics = {**board.metrics, **found}
        board.history.append((now_s, board.sent, board.decided))
        degraded = found.get("degraded", 0) > 0
        board.samples.append(Sample(now_s, degraded, board.metrics.get("degraded_batches", 0)))


def read_metrics(state: StackState, job_id: str) -> dict[str, int]:
    """Read eddy's metrics of a job by their last part; what Flink does not know yet is absent.

    Raises:
        StackError: the cluster does not answer.
    """
    wanted = [f"eddy.{name}" for name in METRICS]
    return {
        name.rpartition(".")[2]: int(value)
        for vertex in job_metrics(state, job_id, wanted).values()
        for name, value in vertex.items()
    }


def _ensure_job_lives(stream: Stream) -> None:
    found = job(stream.state, stream.job_id)
    if found.state in FINAL:
        why = exceptions(stream.state, stream.job_id) or "no exception is known"
        raise EddyError(f"the job is {found.state}: {why[:2000]}")


def _examine(stream: Stream, board: Board, stop: threading.Event) -> None:
    """Look at the servers, with a canary inference of Triton."""
    while not stop.is_set():
        board.health = stack.status(stream.state.root)
        stop.wait(HEALTH_EVERY_S)
