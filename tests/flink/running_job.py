"""The main job on a real stack as a test sees it: send, wait, read, ask for metrics."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import psutil
from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Producer,
    TopicPartition,
)

from deploy.stack import jobs, kafka, processes, rest
from deploy.stack import stack as servers
from deploy.stack.options import REPOSITORY
from deploy.stack.record import StackState
from deploy.submit import on_stack, submit
from flink_jobs.settings import Settings, load
from models.simulation.encode import encode_payments
from models.simulation.throughput import throughput

POLL_S = 0.25
MESSAGE_BYTES = 20_000_000
# Kafka would remove what tests send with old timestamps; and it must take the largest poison.
TOPIC = {"retention.ms": "-1", "max.message.bytes": str(MESSAGE_BYTES)}


@dataclass(frozen=True)
class Sent:
    """Where a message lies in Kafka."""

    partition: int
    offset: int


@dataclass(frozen=True)
class Message:
    """A message of one of the job's topics."""

    key: bytes
    value: bytes

    def json(self) -> dict[str, Any]:
        found = json.loads(self.value)
        assert isinstance(found, dict)
        return found


@dataclass
class RunningJob:
    """A job that runs; its topics begin with the name given to `start`."""

    state: StackState
    settings: Settings
    job_id: str

    @property
    def source(self) -> str:
        return self.settings.source.topic

    def metrics(self) -> dict[str, float]:
        """Return eddy's metrics by their last name; what no worker reported yet is absent."""
        names = ("decided", "parsed", "dead_letters", "late", "alerts", "degraded_batches",
                 "degraded", "in_flight", "entities", "events")  # fmt: skip
        found = jobs.job_metrics(self.state, self.job_id, [f"eddy.{name}" for name in names])
        return {
            name.rpartition(".")[2]: value
            for vertex in found.values()
            for name, value in vertex.items()
        }

    def metric(self, name: str) -> float:
        return self.metrics().get(name, 0.0)

    def restarts(self) -> int:
        [found] = rest.get_list(self.state, f"/jobs/{self.job_id}/metrics?get=numRestarts")
        return int(found["value"])

    def completed_checkpoints(self) -> int:
        return int(jobs.checkpoints(self.state, self.job_id)["counts"]["completed"])

    def status(self) -> str:
        return jobs.job(self.state, self.job_id).state

    def wait(self, what: str, holds: Callable[[], bool], timeout_s: float = 90.0) -> float:
        """Wait until `holds` and return how long that took, seconds."""
        began = time.monotonic()
        while not holds():
            if time.monotonic() > began + timeout_s:
                why = jobs.exceptions(self.state, self.job_id)[:2_000]
                raise AssertionError(
                    f"not within {timeout_s:.0f} s: {what}; {self.status()}, {self.metrics()} {why}"
                )
            time.sleep(POLL_S)
        return time.monotonic() - began

    def wait_until_read(self, timeout_s: float = 120.0) -> None:
        """Wait until all that was sent is read, decided and its outputs are committed."""
        self.wait("all events are read", lambda: self._lag() == 0, timeout_s)
        self.wait_for_checkpoints(2)
        self.wait("all batches are decided", lambda: self.metric("in_flight") == 0, timeout_s)
        self.wait_for_checkpoints(2)

    def wait_for_checkpoints(self, count: int) -> None:
        # One that began before now does not hold what is there now.
        wanted = self.completed_checkpoints() + count
        self.wait(f"{count} checkpoints", lambda: self.completed_checkpoints() >= wanted)

    def _lag(self) -> int:
        """Return how many messages of the source's topic lie behind the committed offsets."""
        # Not by an admin client: confluent-kafka 2.16.1 crashes while the coordinator loads.
        with _consumer(self.state, self.settings.source.group_id) as consumer:
            wanted = [
                TopicPartition(self.source, one) for one in _partitions(consumer, self.source)
            ]
            try:
                committed = consumer.committed(wanted, timeout=20.0)
            except KafkaException:  # a young broker has no coordinator yet, so nothing is committed
                committed = wanted
            return sum(
                consumer.get_watermark_offsets(where, timeout=20.0)[1] - max(where.offset, 0)
                for where in committed
            )

    def read(self, topic: str) -> list[Message]:
        """Return all committed messages of one of the job's topics."""
        return read(self.state, topic)

    def alerts(self) -> list[Message]:
        return self.read(self.settings.sink.alerts_topic)

    def worker(self) -> psutil.Process:
        """Return the Python worker of the TaskManager."""
        [found] = [
            process
            for process in processes.find_marked(self.state.root, "taskmanager")
            if any("beam_boot" in part for part in process.cmdline())
        ]
        return found

    def cancel(self) -> None:
        jobs.cancel_job(self.state, self.job_id)


def settings_for(
    state: StackState, name: str, *overrides: str, path: Path | None = None
) -> Settings:
    """Return settings with topics and a group of their own, on the addresses of `state`."""
    return on_stack(
        load(
            path,
            {},
            [
                f"job.name={name}",
                f"source.topic={name}.events",
                f"source.group_id={name}",
                f"sink.alerts_topic={name}.alerts",
                f"sink.dead_letters_topic={name}.dead-letters",
                f"sink.late_topic={name}.late",
                *overrides,
            ],
        ),
        state,
    )


def create_topics(state: StackState, settings: Settings, partitions: int = 1) -> None:
    """Create the job's topics anew."""
    topics = {settings.source.topic: partitions, **dict.fromkeys(settings.sink.topics, 1)}
    kafka.create_topics(state, topics, dict.fromkeys(topics, TOPIC))


@contextlib.contextmanager
def running(
    state: StackState, settings: Settings, *, savepoint_path: str | None = None
) -> Iterator[RunningJob]:
    """Run the job; cancel it in the end."""
    # A test before this one may have left a server dead.
    state = servers.up(state.options)
    job = RunningJob(state, settings, submit(settings, state, savepoint_path))
    try:
        jobs.wait_until_running(state, job.job_id)
        yield job
    finally:
        job.cancel()


def payments(
    count: int, entities: int = 50, rate_per_s: float = 5_000.0, seed: int = 1
) -> list[bytes]:
    """Make payments of `entities` users, merchants and devices, evenly spaced in event time."""
    chunks = throughput(entities, count, seed=seed, rate_per_s=rate_per_s)
    return [payment for chunk in chunks for payment in encode_payments(chunk)]


def with_outliers(messages: Sequence[bytes], every: int, amount: int = 900_000_000) -> list[bytes]:
    """Give each `every`th payment an amount that nobody pays."""
    return [
        changed(message, amount=amount) if number % every == every - 1 else message
        for number, message in enumerate(messages)
    ]


def changed(message: bytes, **fields: object) -> bytes:
    """Return a message with fields replaced."""
    return json.dumps({**json.loads(message), **fields}, separators=(",", ":")).encode()


def send(
    state: StackState,
    topic: str,
    messages: Sequence[bytes | None],
    *,
    partitions: int = 1,
    timestamp_ms: int = 0,
) -> list[Sent]:
    """Send messages to the partitions in turn and return where each lies."""
    places: dict[int, Sent] = {}

    def delivered(number: int) -> Callable[[Any, Any], None]:
        def note(error: Any, message: Any) -> None:
            assert error is None, error
            places[number] = Sent(message.partition(), message.offset())

        return note

    producer = _producer(state)
    for number, message in enumerate(messages):
        producer.produce(
            topic,
            message,
            partition=number % partitions,
            timestamp=timestamp_ms,
            on_delivery=delivered(number),
        )
        producer.poll(0)
    assert producer.flush(60.0) == 0
    return [places[number] for number in range(len(messages))]


@dataclass
class Feeder:
    """Sends messages at a pace in the background.

    Attributes:
        sent_s: wall clock, epoch seconds, at which each was handed over.
    """

    state: StackState
    topic: str
    messages: Sequence[bytes]
    rate_per_s: float
    sent_s: list[float] = field(default_factory=list)

    def __enter__(self) -> Feeder:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def finish(self) -> None:
        """Wait until all is sent."""
        self._thread.join()
        assert len(self.sent_s) == len(self.messages)

    def stop(self) -> int:
        """Send no more, and return how many were sent."""
        self._stop.set()
        self._thread.join()
        return len(self.sent_s)

    def _run(self) -> None:
        producer = _producer(self.state)
        began = time.monotonic()
        for number, message in enumerate(self.messages):
            ahead_s = began + number / self.rate_per_s - time.monotonic()
            if ahead_s > 0 and self._stop.wait(max(ahead_s, 0.02)):
                break
            producer.produce(self.topic, message, partition=0)
            producer.poll(0)
            self.sent_s.append(time.time())
        producer.flush(60.0)


@dataclass
class Follower:
    """Notes when each committed alert of an event becomes visible to a consumer.

    Attributes:
        seen: monotonic clock, seconds, and offset of the event, for each alert.
    """

    state: StackState
    topic: str
    seen: list[tuple[float, int]] = field(default_factory=list)

    def __enter__(self) -> Follower:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def first_of(self, offset: int) -> float | None:
        """Return when the first alert of the event at `offset`, or of a later one, was seen."""
        return next((seen_s for seen_s, at in self.seen if at >= offset), None)

    def _run(self) -> None:
        with _consumer(self.state) as consumer:
            consumer.assign([TopicPartition(self.topic, 0, 0)])
            while not self._stop.is_set():
                found = [one for one in consumer.consume(1_000, 0.1) if one.error() is None]
                offsets = (json.loads(one.value() or b"{}")["data"]["offset"] for one in found)
                self.seen += [(time.monotonic(), at) for at in offsets if at is not None]


def read(state: StackState, topic: str) -> list[Message]:
    """Return all messages of a topic that are committed now."""
    found = []
    with _consumer(state) as consumer:
        for number in _partitions(consumer, topic):
            consumer.assign([TopicPartition(topic, number, 0)])
            ended = False
            while not ended:
                for message in consumer.consume(1_000, 0.5):
                    error = message.error()
                    if error is None:
                        found.append(Message(message.key() or b"", message.value() or b""))
                    else:
                        assert error.code() == KafkaError._PARTITION_EOF, error.str()
                        ended = True
    return found


@contextlib.contextmanager
def _consumer(state: StackState, group: str | None = None) -> Iterator[Consumer]:
    consumer = Consumer(
        {
            **state.kafka_config,
            "group.id": group or f"tests-{uuid.uuid4()}",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "fetch.message.max.bytes": MESSAGE_BYTES,
        }
    )
    try:
        yield consumer
    finally:
        consumer.close()


def _partitions(consumer: Consumer, topic: str) -> list[int]:
    return sorted(consumer.list_topics(topic, timeout=20.0).topics[topic].partitions)


def _producer(state: StackState) -> Producer:
    return Producer(
        {
            **state.kafka_config,
            "enable.idempotence": True,
            "linger.ms": 5,
            "message.max.bytes": MESSAGE_BYTES,
            "queue.buffering.max.kbytes": 262_144,
        }
    )


def check_schema(name: str, messages: Sequence[Message]) -> None:
    """Fail where a message does not follow the contract's schema."""
    path = REPOSITORY / "flink_jobs" / "contract" / f"{name}.schema.json"
    validator = jsonschema.Draft202012Validator(json.loads(path.read_text()))
    wrong = [error.message for one in messages for error in validator.iter_errors(one.json())]
    assert wrong == []
