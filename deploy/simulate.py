"""Send simulated payments to Kafka or write them to a file; the truth goes to a file apart."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from confluent_kafka import KafkaError, Message, Producer
from numpy.typing import NDArray

from models.simulation.config import SimulationConfig
from models.simulation.encode import encode_lines, encode_payments, user_key
from models.simulation.payments import SimulatedChunk
from models.simulation.stream import CHUNK_PAYMENTS, Simulation
from models.simulation.truth import Anomaly

Progress = Callable[[int, int], None]

# Payments that may wait in the producer; beyond it the simulation waits for the broker.
QUEUE_PAYMENTS = 100_000
# How often paced payments are handed over: the finer, the smoother and the dearer.
PACE_STEP_S = 0.01
FLUSH_TIMEOUT_S = 70.0  # longer than delivery.timeout.ms, so that failures name their reason
STOP_TIMEOUT_S = 10.0

_PRODUCER = {
    "enable.idempotence": True,
    # Java's default, so that other producers send a user's payments to the same partition.
    "partitioner": "murmur2_random",
    "compression.type": "lz4",
    "linger.ms": 5,
    "batch.size": 262_144,
    "queue.buffering.max.messages": 2 * QUEUE_PAYMENTS,
    "queue.buffering.max.kbytes": 262_144,
    "delivery.timeout.ms": 60_000,
    # Calls back for failures alone: one call per payment would cost as much as sending it.
    "delivery.report.only.error": True,
}


class DeliveryError(RuntimeError):
    """Payments that the broker did not take.

    Attributes:
        sent: payments handed to the producer.
        lost: how many of them were not acknowledged.
    """

    def __init__(self, sent: int, lost: int, first: str) -> None:
        super().__init__(
            f"{lost} of {sent} payments were not delivered; first reason: {first}. "
            "Is the broker reachable, and does the topic exist?"
        )
        self.sent, self.lost = sent, lost


@dataclass(slots=True)
class _Failures:
    """Counts the delivery errors and keeps the first reason."""

    count: int = 0
    first: str = ""

    def __call__(self, error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            self.count += 1
            self.first = self.first or error.str()


def write_truth(anomalies: Iterable[Anomaly], path: Path) -> None:
    """Write the truth as JSON lines, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text("".join(one.to_json() + "\n" for one in anomalies), encoding="utf-8")
    unfinished.replace(path)


def read_truth(path: Path) -> list[Anomaly]:
    """Read a truth file."""
    return [Anomaly.from_json(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_file(
    config: SimulationConfig,
    path: Path,
    truth_path: Path | None = None,
    progress: Progress | None = None,
) -> int:
    """Write all payments as JSON lines in event-time order, and the truth beside them.

    Returns:
        How many payments were written.
    """
    simulation, written = Simulation(config), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as out:
        for chunk in simulation.chunks():
            out.write(encode_lines(chunk)[0])
            written += len(chunk)
            if progress is not None:
                progress(written, int(chunk.time_ms[-1]))
    if truth_path is not None:
        write_truth(simulation.truth(), truth_path)
    return written


def produce(
    config: SimulationConfig,
    bootstrap_servers: str,
    topic: str,
    *,
    rate_per_s: float | None = None,
    speed_up: float | None = None,
    truth_path: Path | None = None,
    security: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> int:
    """Send a simulated run to Kafka, keyed by user, then write its truth.

    Args:
        config: the world to simulate.
        bootstrap_servers: HOST:PORT, or several with commas.
        topic: must exist, or the broker must create topics by itself.
        rate_per_s: payments per second of the wall clock; as fast as possible where both this
            and `speed_up` are None.
        speed_up: how many times faster than event time the payments are sent.
        truth_path: where the truth goes; it covers what was sent, also if the run is cut short.
        security: further librdkafka settings, such as `security.protocol`.
        progress: called with (payments handed over, event time of the last, ms), often.
        stop: ends the run early when set.

    Returns:
        How many payments the broker has acknowledged: all that were sent.

    Raises:
        DeliveryError: if some were not acknowledged.
        ValueError: if both paces are given, or one is not above 0.
    """
    simulation, sent, until_ms = Simulation(config), 0, config.start_ms - 1

    def note(payments: int, time_ms: int) -> None:
        nonlocal sent, until_ms
        sent, until_ms = payments, time_ms
        if progress is not None:
            progress(payments, time_ms)

    whole = False
    try:
        produce_chunks(
            simulation.chunks(_chunk_payments(rate_per_s)),
            bootstrap_servers,
            topic,
            rate_per_s=rate_per_s,
            speed_up=speed_up,
            security=security,
            progress=note,
            stop=stop,
        )
        whole = stop is None or not stop.is_set()
    finally:
        if truth_path is not None:
            cut = () if whole else (sent, until_ms)
            write_truth(simulation.truth(*cut), truth_path)
    return sent


def produce_chunks(
    chunks: Iterable[SimulatedChunk],
    bootstrap_servers: str,
    topic: str,
    *,
    rate_per_s: float | None = None,
    speed_up: float | None = None,
    security: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> int:
    """Send any chunks to Kafka, such as those of `throughput`; see `produce`."""
    pace = Pace(rate_per_s, speed_up)
    producer = Producer({**_PRODUCER, **(security or {}), "bootstrap.servers": bootstrap_servers})
    failures, sent, stop = _Failures(), 0, stop or threading.Event()
    try:
        for payments, time_ms in pace.paced(chunks, stop):
            _send(producer, topic, payments, failures)
            sent += len(payments)
            if progress is not None:
                progress(sent, time_ms)
            if failures.count:
                break
    except BaseException:
        # Ctrl-C and the like: what waits is given up, so that leaving takes no time.
        producer.purge()
        producer.flush(1.0)
        raise
    unsent = producer.flush(STOP_TIMEOUT_S if stop.is_set() else FLUSH_TIMEOUT_S)
    lost = failures.count + unsent
    if lost:
        raise DeliveryError(sent, lost, failures.first or "no answer in time")
    return sent


def _send(producer: Producer, topic: str, payments: list[bytes], failures: _Failures) -> None:
    """Hand payments over, at most QUEUE_PAYMENTS in one call; wait while too many are waiting."""
    while len(producer) > QUEUE_PAYMENTS and not failures.count:
        producer.poll(0.01)
    messages = [{"key": user_key(payment), "value": payment} for payment in payments]
    queued = producer.produce_batch(topic, messages, on_delivery=failures)
    if queued != len(messages):
        reasons = [str(message["_error"]) for message in messages if "_error" in message]
        failures.count += len(messages) - queued
        failures.first = failures.first or (reasons[0] if reasons else "unknown")
    producer.poll(0)


def _chunk_payments(rate_per_s: float | None) -> int:
    """Return a chunk of at most a second, so that a slow pace does not encode far ahead."""
    if rate_per_s is None:
        return CHUNK_PAYMENTS
    return int(min(CHUNK_PAYMENTS, max(1, rate_per_s)))


class Pace:
    """When each payment is due by the wall clock.

    A sender that falls behind sends at once until it has caught up: the rate is that of the
    whole run.

    Args:
        rate_per_s: payments per second of wall time, or None.
        speed_up: event time over wall time, or None. With neither, all are due at once.
        clock: seconds that only grow.
        wait: sleeps for some seconds, or until the event is set.

    Raises:
        ValueError: if both paces are given, or one is not above 0.
    """

    def __init__(
        self,
        rate_per_s: float | None,
        speed_up: float | None,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[threading.Event, float], bool] = threading.Event.wait,
    ) -> None:
        if rate_per_s is not None and speed_up is not None:
            raise ValueError("give a rate or a speed-up, not both")
        for name, given in (("rate_per_s", rate_per_s), ("speed_up", speed_up)):
            if given is not None and not given > 0:
                raise ValueError(f"{name}: expected more than 0, found {given}")
        self._rate_per_s, self._speed_up = rate_per_s, speed_up
        self._clock, self._wait = clock, wait

    def paced(
        self, chunks: Iterable[SimulatedChunk], stop: threading.Event
    ) -> Iterator[tuple[list[bytes], int]]:
        """Yield (payments, event time of the last, ms) when they are due, until `stop` is set."""
        begin_s, sent, begin_ms = self._clock(), 0, 0
        for chunk in chunks:
            begin_ms = begin_ms or int(chunk.time_ms[0])
            payments = encode_payments(chunk)
            due_s = self._due_s(chunk, sent, begin_ms)
            at = 0
            while at < len(payments):
                if stop.is_set():
                    return
                now_s = self._clock() - begin_s
                until = len(payments)
                if len(due_s):
                    until = int(np.searchsorted(due_s, now_s, side="right"))
                if until <= at:
                    self._wait(stop, max(PACE_STEP_S, min(float(due_s[at]) - now_s, 1.0)))
                    continue
                yield payments[at:until], int(chunk.time_ms[until - 1])
                at = until
            sent += len(payments)

    def _due_s(self, chunk: SimulatedChunk, sent: int, begin_ms: int) -> NDArray[np.float64]:
        """Return seconds after the begin, float64[n] ascending; empty where all are due."""
        if self._rate_per_s is not None:
            return np.arange(sent, sent + len(chunk)) / self._rate_per_s
        if self._speed_up is not None:
            return np.asarray((chunk.time_ms - begin_ms) / (1_000 * self._speed_up), np.float64)
        return np.zeros(0)
