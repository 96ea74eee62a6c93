"""Triton is killed and comes back while payments flow."""

from __future__ import annotations

import time

import pytest

from deploy.stack import stack as servers
from deploy.stack.record import StackState
from tests.flink import running_job

pytestmark = [pytest.mark.stack, pytest.mark.faults, pytest.mark.timeout(500)]

RATE_PER_S = 400.0
PAYMENTS = 60_000  # at most; it ends when all was seen
OUTLIER_EVERY = 40
SETTLING_S = 1.0  # time of a batch on its way, of deadlines and of the breaker
BACK_WITHIN_S = 10.0


def test_payments_flow_on_without_triton_and_full_service_comes_back(stack: StackState) -> None:
    settings = running_job.settings_for(
        stack,
        "triton-away",
        "detection.false_alerts_per_million=1000",
        "detection.incident_quiet_s=1",
    )
    running_job.create_topics(stack, settings)
    messages = running_job.with_outliers(
        running_job.payments(PAYMENTS, entities=20, rate_per_s=RATE_PER_S), OUTLIER_EVERY
    )
    topic = settings.source.topic
    with (
        running_job.running(stack, settings) as job,
        running_job.Feeder(stack, topic, messages, RATE_PER_S) as feeder,
    ):
        job.wait("payments flow", lambda: job.metric("decided") > 3_000)
        job.wait("Triton answers", lambda: job.metric("degraded") == 0)
        killed_s = time.time()
        servers.kill(stack.root, "triton")
        job.wait("the metric says so", lambda: job.metric("degraded") == 1)
        away_s = time.time()
        time.sleep(5.0)
        assert job.metric("degraded") == 1
        restarting_s = time.time()
        servers.restart(stack.root, "triton")
        back_s = job.wait("full service is back", lambda: job.metric("degraded") == 0)
        before = job.metric("degraded_batches")
        back_at_s = time.time()
        time.sleep(5.0)
        assert job.metric("degraded_batches") == before
        sent = feeder.stop()
        assert sent < PAYMENTS
        job.wait_until_read()
        assert job.status() == "RUNNING"
        assert job.restarts() == 0
        assert job.metric("decided") == 3 * sent
        alerts = [one.json() for one in job.alerts()]
        assert len(alerts) == job.metric("alerts")
    print(f"\ndegraded after {away_s - killed_s:.1f} s, back {back_s:.1f} s after Triton was ready")
    assert back_s < BACK_WITHIN_S
    sent_s = {alert["id"]: feeder.sent_s[alert["data"]["offset"]] for alert in alerts
              if alert["data"]["offset"] is not None}  # fmt: skip

    def degraded(begin_s: float, end_s: float) -> list[bool]:
        return [
            alert["data"]["degraded"]
            for alert in alerts
            if begin_s < sent_s.get(alert["id"], 0.0) < end_s
        ]

    before_kill = degraded(0.0, killed_s - SETTLING_S)
    while_away = degraded(killed_s + SETTLING_S, restarting_s)
    after = degraded(back_at_s, back_at_s + 3600.0)
    print(f"alerts: {len(before_kill)} before, {len(while_away)} while away, {len(after)} after")
    assert while_away
    assert all(while_away)
    assert after
    assert not any(after)
    assert before_kill.count(False) > 0
