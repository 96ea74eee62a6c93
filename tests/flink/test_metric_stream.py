"""NAB's series replayed over Kafka: the job gives each observation the score of the harness."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.evaluate.series import read_nab
from deploy.stack.record import StackState
from tests.flink import running_job
from tests.flink_jobs.metric_cases import (
    SETTINGS,
    assert_scores_of_the_harness,
    in_order,
    messages_of,
)
from tests.nab_data import needs_nab

pytestmark = [pytest.mark.stack, pytest.mark.flink, pytest.mark.slow, pytest.mark.timeout(900)]

SENT_AT_ONCE = 20_000  # librdkafka's queue holds 100,000


def test_the_job_gives_the_scores_of_the_harness(stack: StackState, tmp_path: Path) -> None:
    series = read_nab(needs_nab()).series
    events = in_order(series)
    messages = messages_of(events)
    path = tmp_path / "metrics.toml"
    path.write_text(SETTINGS)
    settings = running_job.settings_for(stack, "nab", "sink.scores_topic=nab.scores", path=path)
    running_job.create_topics(stack, settings)
    with running_job.running(stack, settings) as job:
        for start in range(0, len(messages), SENT_AT_ONCE):
            part = messages[start : start + SENT_AT_ONCE]
            running_job.send(stack, job.source, part, timestamp_ms=events[-1][0])
        job.wait("all are decided", lambda: job.metric("decided") >= len(messages), 300.0)
        job.wait_until_read()
        assert job.metric("dead_letters") == 0
        assert job.metric("late") == 0
        scores = job.read("nab.scores")
        alerts = job.alerts()
    running_job.check_schema("score", scores[:500])
    running_job.check_schema("alert", alerts)
    assert_scores_of_the_harness([one.json() for one in scores], series)
    assert alerts
    for alert in (one.json()["data"] for one in alerts):
        assert alert["detector"] == "metric.alarm"
        assert alert["expected_values"]["low"] <= alert["typical"]["value"]
