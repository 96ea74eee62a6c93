"""One run of the main job on the real stack: poison, late events, alerts, and nothing lost."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from deploy.stack.record import StackState
from flink_jobs.parse import DEAD_LETTER_MAX_BYTES
from tests.flink import running_job
from tests.flink.running_job import RunningJob, Sent
from tests.flink_jobs.parse_cases import INGEST_MS, POISONS

pytestmark = [pytest.mark.stack, pytest.mark.flink, pytest.mark.timeout(400)]

PARTITIONS = 2
GOOD = 4_000
LATE = 7
OUTLIER_EVERY = 100
TIMESTAMP_MS = INGEST_MS  # so that the poisons that come from the future do


@dataclass(frozen=True)
class Run:
    """What was sent, and the job that has read it all."""

    job: RunningJob
    poisons: list[Sent]
    late: list[Sent]


@pytest.fixture(scope="module")
def run(stack: StackState) -> Iterator[Run]:
    settings = running_job.settings_for(
        stack,
        "poison",
        "detection.false_alerts_per_million=1000",
        "triton.timeout_ms=20000",  # other work on the machine is no reason to degrade
    )
    running_job.create_topics(stack, settings, PARTITIONS)
    good = running_job.with_outliers(running_job.payments(GOOD), OUTLIER_EVERY)
    late = [running_job.changed(one, event_time="2026-01-04T23:59:00Z") for one in good[:LATE]]
    topic = settings.source.topic
    with running_job.running(stack, settings) as job:

        def send(messages: list[bytes] | list[bytes | None]) -> list[Sent]:
            return running_job.send(
                stack, topic, messages, partitions=PARTITIONS, timestamp_ms=TIMESTAMP_MS
            )

        send(good[: GOOD // 2])
        poisons = send([poison.value for poison in POISONS])
        send(good[GOOD // 2 :])
        job.wait("all good payments are decided", lambda: job.metric("decided") >= 3 * GOOD)
        late_at = send(late)
        job.wait_until_read()
        yield Run(job, poisons, late_at)


def test_poison_neither_stops_nor_restarts_the_job(run: Run) -> None:
    assert run.job.status() == "RUNNING"
    assert run.job.restarts() == 0


def test_every_good_payment_is_scored_for_its_three_entities(run: Run) -> None:
    metrics = run.job.metrics()
    assert metrics["decided"] == 3 * GOOD
    assert metrics["parsed"] == GOOD + LATE
    assert metrics["entities"] > 0


def test_each_poison_lies_on_the_dead_letter_topic(run: Run) -> None:
    letters = run.job.read(run.job.settings.sink.dead_letters_topic)
    running_job.check_schema("dead-letter", letters)
    found = {(one.json()["partition"], one.json()["offset"]): one for one in letters}
    assert len(found) == len(letters) == len(POISONS)
    for poison, place in zip(POISONS, run.poisons, strict=True):
        message = found[place.partition, place.offset]
        letter, value = message.json(), poison.value or b""
        assert message.key == f"{run.job.source}/{place.partition}".encode(), poison.name
        assert letter["reason"] == poison.reason, poison.name
        assert letter["detail"], poison.name
        assert letter["topic"] == run.job.source, poison.name
        assert letter["timestamp_ms"] == TIMESTAMP_MS, poison.name
        kept = value[:DEAD_LETTER_MAX_BYTES]
        assert base64.b64decode(letter["value_base64"]) == kept, poison.name
        assert letter["value_truncated"] == (len(value) > len(kept)), poison.name
        assert letter["value_bytes"] == len(value), poison.name
        assert letter["value_sha256"] == hashlib.sha256(value).hexdigest(), poison.name
    assert run.job.metric("dead_letters") == len(POISONS)


def test_late_events_lie_on_the_late_topic(run: Run) -> None:
    messages = run.job.read(run.job.settings.sink.late_topic)
    running_job.check_schema("late", messages)
    found = [one.json() for one in messages]
    places = {(one["partition"], one["offset"]) for one in found}
    assert places == {(place.partition, place.offset) for place in run.late}
    assert len(found) == LATE
    assert {one["event_time"] for one in found} == {"2026-01-04T23:59:00.000Z"}
    assert run.job.metric("late") == LATE


def test_alerts_follow_the_contract(run: Run) -> None:
    messages = run.job.alerts()
    assert len(messages) == run.job.metric("alerts")
    running_job.check_schema("alert", messages)
    found = [one.json() for one in messages]
    assert len({one["id"] for one in found}) == len(found)
    assert {one["source"] for one in found} == {"eddy/poison"}
    assert [one.key.decode() for one in messages] == [one["subject"] for one in found]
    outliers = [one for one in found if (one["data"]["actual"]["value"] or 0) > 8e8]
    assert {one["data"]["entity"]["kind"] for one in outliers} == {"user", "merchant", "device"}
    assert {one["data"]["degraded"] for one in outliers} == {False}
    assert all(one["data"]["score"] > 1 for one in outliers)
    assert all(one["data"]["model_version"] for one in outliers)
