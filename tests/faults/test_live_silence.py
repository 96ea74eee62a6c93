"""In a live stream that stops as a whole, silences are told by the clock, also after a kill -9."""

from __future__ import annotations

import time

import pytest

from deploy.stack.record import StackState
from tests.flink import running_job

pytestmark = [pytest.mark.stack, pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(400)]

PAYMENTS = 600
EVERY_MS = 20
MERCHANTS = 3


def test_a_silence_is_told_though_the_worker_was_killed_and_no_event_came(
    stack: StackState,
) -> None:
    settings = running_job.settings_for(
        stack,
        "live-silence",
        "event.allowed_lateness_ms=12000",
        'detection.detectors=["silence"]',
        "detection.silence_false_alerts_per_million=1000",
        "triton.timeout_ms=20000",
    )
    running_job.create_topics(stack, settings)
    with running_job.running(stack, settings) as job:
        begin_ms = time.time_ns() // 1_000_000 - PAYMENTS * EVERY_MS
        messages = [
            running_job.changed(
                message,
                event_time=begin_ms + EVERY_MS * number,
                merchant_id=f"m-{number % MERCHANTS}",
            )
            for number, message in enumerate(running_job.payments(PAYMENTS))
        ]
        running_job.send(stack, settings.source.topic, messages)
        job.wait("all payments are decided", lambda: job.metric("decided") >= 3 * PAYMENTS)
        job.wait_for_checkpoints(2)
        assert job.alerts() == [], "told too early for this test"
        job.worker().kill()
        job.wait("the job fails and begins again", lambda: job.restarts() > 0)
        job.wait("the silences are told", lambda: len(job.alerts()) >= MERCHANTS, 60.0)
        job.wait_for_checkpoints(2)
        alerts = [one.json() for one in job.alerts()]
    assert {one["data"]["detector"] for one in alerts} == {"silence"}
    assert sorted(one["subject"] for one in alerts) == [f"merchant/m-{n}" for n in range(MERCHANTS)]
