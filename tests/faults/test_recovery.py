"""Killed or stopped and resumed, the job tells exactly what an undisturbed one tells."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import pytest

from deploy.stack import jobs
from deploy.stack import stack as servers
from deploy.stack.record import StackState
from flink_jobs.settings import Settings
from tests.flink import running_job
from tests.flink.running_job import Feeder, Follower, RunningJob

pytestmark = [
    pytest.mark.stack,
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.timeout(600),
]

RATE_PER_S = 500.0
PAYMENTS = 24_000
OUTLIER_EVERY = 40
JOB_NAME = "recovery"  # alerts name their job, so all runs have one name


@dataclass(frozen=True)
class Told:
    """What an undisturbed run told: the alerts by id, and how many entities it knows."""

    alerts: dict[str, bytes]
    entities: float


def settings_for(stack: StackState, name: str) -> Settings:
    """Small pages and a short log, so that many rounds of pages go by."""
    return running_job.settings_for(
        stack,
        name,
        f"job.name={JOB_NAME}",
        "state.page_rows=8",
        "state.log_min_bytes=65536",
        "state.initial_entities=16",
        "detection.false_alerts_per_million=1000",
        "detection.silence_false_alerts_per_million=1000",
        "detection.incident_quiet_s=1",
        # A slow answer would change what is told.
        "triton.timeout_ms=30000",
    )


def messages() -> list[bytes]:
    """Make payments with many outliers; one merchant falls silent in the middle."""
    found = running_job.payments(PAYMENTS, entities=60, rate_per_s=RATE_PER_S)
    begin = found[0].index(b'"merchant_id"')
    merchant = found[0][begin : found[0].index(b",", begin)]
    half = PAYMENTS // 2
    kept = found[:half] + [one for one in found[half:] if merchant not in one]
    return running_job.with_outliers(kept, OUTLIER_EVERY)


def by_id(job: RunningJob) -> dict[str, bytes]:
    """Return the alerts by id, and fail where one came twice."""
    found = {}
    for message in job.alerts():
        alert_id = message.json()["id"]
        assert alert_id not in found, "an alert came twice"
        found[alert_id] = message.value
    return found


@pytest.fixture(scope="module")
def undisturbed(stack: StackState) -> Told:
    settings = settings_for(stack, "undisturbed")
    running_job.create_topics(stack, settings)
    running_job.send(stack, settings.source.topic, messages())
    with running_job.running(stack, settings) as job:
        job.wait_until_read()
        assert job.metric("late") == 0
        assert job.metric("degraded_batches") == 0
        told = Told(by_id(job), job.metric("entities"))
    assert any(b'"detector":"silence"' in value for value in told.alerts.values())
    assert len(told.alerts) > 300
    return told


def assert_same(told: Told, job: RunningJob) -> None:
    found = by_id(job)
    missing: AbstractSet[str] = told.alerts.keys() - found.keys()
    extra = found.keys() - told.alerts.keys()
    assert not missing
    assert not extra
    different = [(told.alerts[key], found[key]) for key in found if found[key] != told.alerts[key]]
    assert different == []
    assert job.metric("entities") == told.entities


def kill_task_manager(job: RunningJob) -> None:
    servers.kill(job.state.root, "taskmanager")
    servers.restart(job.state.root, "taskmanager")


def kill_worker(job: RunningJob) -> None:
    job.worker().kill()


@pytest.mark.parametrize("kill", [kill_task_manager, kill_worker])
def test_exactly_once_after_a_kill_9(
    stack: StackState, undisturbed: Told, kill: Callable[[RunningJob], None]
) -> None:
    settings = settings_for(stack, kill.__name__.replace("_", "-"))
    running_job.create_topics(stack, settings)
    with (
        running_job.running(stack, settings) as job,
        Feeder(stack, settings.source.topic, messages(), RATE_PER_S) as feeder,
        Follower(stack, settings.sink.alerts_topic) as follower,
    ):
        job.wait("alerts come", lambda: len(follower.seen) > 50)
        job.wait_for_checkpoints(2)
        killed_s, sent = time.monotonic(), len(feeder.sent_s)
        kill(job)
        job.wait("alerts come again", lambda: follower.first_of(sent) is not None)
        recovery_s = (follower.first_of(sent) or killed_s) - killed_s
        print(f"\n{kill.__name__}: alerts of new payments {recovery_s:.1f} s after the kill -9")
        feeder.finish()
        job.wait_until_read()
        assert job.restarts() >= 1
        assert_same(undisturbed, job)


def test_resumed_from_a_savepoint_it_tells_the_same(stack: StackState, undisturbed: Told) -> None:
    settings = settings_for(stack, "savepoint")
    running_job.create_topics(stack, settings)
    with Feeder(stack, settings.source.topic, messages(), RATE_PER_S) as feeder:
        with running_job.running(stack, settings) as job:
            job.wait("payments flow", lambda: job.metric("decided") > PAYMENTS / 2)
            path = jobs.savepoint(stack, job.job_id, stop=True)
        with running_job.running(stack, settings, savepoint_path=path) as job:
            job.wait("its state is back", lambda: job.metric("entities") > 0)
            feeder.finish()
            job.wait_until_read()
            assert job.metric("decided") < 3 * len(messages())
            assert_same(undisturbed, job)
