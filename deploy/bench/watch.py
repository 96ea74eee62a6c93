"""What is read while a job runs: its counters, the CPU of each part, its outputs."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from urllib.parse import quote

import numpy as np
import orjson
import psutil
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from numpy.typing import NDArray

from deploy.bench.statistics import Arrival, Sample
from deploy.stack import jobs, rest
from deploy.stack.options import StackError
from deploy.stack.processes import find_marked
from deploy.stack.record import StackState

SAMPLE_S = 0.5
LOOK_FOR_PROCESSES_S = 5.0
READ_MESSAGES = 10_000
READ_TIMEOUT_S = 30.0


class Gauge:
    """One metric of a job, summed over its subtasks; cheap to read again and again."""

    def __init__(self, state: StackState, job_id: str, name: str) -> None:
        self._state, self._job_id, self._name = state, job_id, name
        self._address: str | None = None

    def read(self) -> float | None:
        """Return the newest value; None as long as the job does not show the metric."""
        try:
            if self._address is None:
                self._address = self._find()
            if self._address is None:
                return None
            answer = rest.get_list(self._state, self._address)
        except rest.RestError:
            return None  # a job that restarts has no vertices for a moment
        return float(answer[0]["sum"]) if answer else None

    def _find(self) -> str | None:
        for vertex in rest.get(self._state, f"/jobs/{self._job_id}").get("vertices", []):
            base = f"/jobs/{self._job_id}/vertices/{vertex['id']}/subtasks/metrics"
            for entry in rest.get_list(self._state, base):
                if str(entry["id"]).endswith(f".{self._name}"):
                    return f"{base}?get={quote(str(entry['id']), safe='')}&agg=sum"
        return None


class Cpu:
    """CPU seconds by part of the system: JVM, Python, Triton, Kafka, JobManager."""

    def __init__(self, state: StackState) -> None:
        self._state = state
        self._found: dict[str, list[psutil.Process]] = {}
        self._looked_s = -LOOK_FOR_PROCESSES_S

    def read(self) -> dict[str, float]:
        """Return the CPU seconds used so far by the processes that live."""
        if time.monotonic() - self._looked_s >= LOOK_FOR_PROCESSES_S:
            self._found, self._looked_s = self._look(), time.monotonic()
        return {
            part: sum(_cpu_s(process) for process in processes)
            for part, processes in self._found.items()
        }

    def _look(self) -> dict[str, list[psutil.Process]]:
        root = self._state.root
        worker = find_marked(root, "taskmanager")
        recorded = self._state.processes.get("taskmanager")
        jvm = recorded.pid if recorded else -1
        return {
            "jvm": [one for one in worker if one.pid == jvm],
            "python": [one for one in worker if one.pid != jvm],
            "triton": find_marked(root, "triton"),
            "kafka": find_marked(root, "kafka"),
            "jobmanager": find_marked(root, "jobmanager"),
        }


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


class Watch:
    """Samples one job."""

    def __init__(self, state: StackState, job_id: str, counter: str, per_payment: int) -> None:
        self._state, self._job_id, self._per_payment = state, job_id, per_payment
        self._counter = Gauge(state, job_id, counter)
        self._cpu = Cpu(state)

    def sample(self) -> Sample:
        """Look once."""
        payments = (self._counter.read() or 0.0) / self._per_payment
        return Sample(time.monotonic(), payments, self._cpu.read())

    def until(self, done: Callable[[list[Sample]], bool], timeout_s: float) -> list[Sample]:
        """Sample twice a second until `done`.

        Raises:
            StackError: the job ended, or it takes longer than `timeout_s`; the message shows why.
        """
        samples: list[Sample] = []
        began_s = looked_s = time.monotonic()
        while not (samples and done(samples)):
            now_s = time.monotonic()
            if now_s - looked_s > LOOK_FOR_PROCESSES_S:
                looked_s = now_s
                self._check()
            if now_s - began_s > timeout_s:
                seen = samples[-1].payments if samples else 0
                raise StackError(
                    f"job {self._job_id}: only {seen:.0f} payments went through in {timeout_s:.0f}"
                    f" s; {jobs.exceptions(self._state, self._job_id) or 'no exception is known'}"
                )
            samples.append(self.sample())
            time.sleep(max(0.0, SAMPLE_S - (time.monotonic() - now_s)))
        return samples

    def _check(self) -> None:
        """Refuse a job that failed, even where Flink starts it again: its figures mean nothing."""
        failure = jobs.exceptions(self._state, self._job_id)
        state = jobs.job(self._state, self._job_id).state
        if failure or state in jobs.FINAL:
            raise StackError(f"job {self._job_id} is {state}; {failure or 'no exception is known'}")


class Outputs:
    """Reads a topic of alerts as a careful consumer does: committed ones only."""

    def __init__(self, state: StackState, topic: str) -> None:
        self._consumer = consumer_of(state, "read_committed")
        self._consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])

    def read(self, timeout_s: float = 0.05) -> Iterator[Arrival]:
        """Yield what has arrived, waiting up to `timeout_s` for the first."""
        messages = [self._consumer.poll(timeout_s)]
        while messages[-1] is not None:
            messages.append(self._consumer.poll(0))
        # Taken as soon as the messages are there; to read them takes longer than to get them.
        at_s = time.time()
        for message in messages:
            if message is not None and message.error() is None:
                offset = _payment_offset(message.value())
                if offset is not None:
                    yield Arrival(at_s, offset)

    def close(self) -> None:
        """Leave."""
        self._consumer.close()


def _payment_offset(value: bytes | None) -> int | None:
    data = orjson.loads(value or b"{}").get("data", {})
    offset = data.get("offset")
    return offset if isinstance(offset, int) else None


def timestamps_ms(state: StackState, topic: str, first: int, last: int) -> NDArray[np.int64]:
    """Read Kafka's timestamps of the payments from offset `first` up to, without, `last`.

    Raises:
        StackError: the topic does not give them in time.
    """
    consumer = consumer_of(state, "read_uncommitted")
    found = np.zeros(last - first, np.int64)
    seen, deadline_s = 0, time.monotonic() + READ_TIMEOUT_S
    try:
        consumer.assign([TopicPartition(topic, 0, first)])
        while seen < len(found):
            if time.monotonic() > deadline_s:
                raise StackError(f"{topic}: {seen} of {len(found)} timestamps were read in time")
            for message in consumer.consume(READ_MESSAGES, 0.5):
                offset = message.offset()
                if message.error() is None and offset is not None and offset < last:
                    found[offset - first] = message.timestamp()[1]
                    seen += 1
    finally:
        consumer.close()
    return found


def consumer_of(state: StackState, isolation: str) -> Consumer:
    """Return a consumer that belongs to no group in particular."""
    return Consumer(
        {
            **state.kafka_config,
            "group.id": f"bench-{uuid.uuid4()}",
            "enable.auto.commit": False,
            "isolation.level": isolation,
            "fetch.wait.max.ms": 10,
            "log_level": 0,
        }
    )


def checkpoint_figures(state: StackState, job_id: str) -> dict[str, float]:
    """Return duration and size of a job's checkpoints; nothing before the first is complete."""
    found = jobs.checkpoints(state, job_id)
    summary, latest = found.get("summary") or {}, (found.get("latest") or {}).get("completed")
    if not latest:
        return {}
    duration = summary.get("end_to_end_duration", {})
    return {
        "checkpoints": float(found["counts"]["completed"]),
        "checkpoint_p50_ms": _number(duration, "p50", "avg"),
        "checkpoint_max_ms": _number(duration, "max"),
        "checkpoint_bytes": float(latest["state_size"]),
        "checkpoint_written_bytes_mean": _number(summary.get("checkpointed_size", {}), "avg"),
    }


def checkpoints_failed(state: StackState, job_id: str) -> float:
    """Count the failed checkpoints; Flink counts those that came before all tasks had started."""
    return float(jobs.checkpoints(state, job_id)["counts"]["failed"])


def _number(summary: dict[str, object], *names: str) -> float:
    """Return the first of the statistics that is a number: Flink writes "NaN" as text."""
    for name in names:
        value = summary.get(name)
        if isinstance(value, int | float):
            return float(value)
    return float("nan")
