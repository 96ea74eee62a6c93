"""A stream of another shape, read by settings alone: sensors in a nested JSON of their own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from deploy.stack.record import StackState
from tests.flink import running_job

pytestmark = [pytest.mark.stack, pytest.mark.flink, pytest.mark.slow, pytest.mark.timeout(400)]

SETTINGS = """
[event]
id_pointer = "/meta/seq"
time_pointer = "/meta/at"
value_pointer = "/samples/0/celsius"
mark_pointer = "/state"
marks = ["ok", "boot"]
value_min = -300.0
value_max = 1000.0
value_integer = false
value_transform = "identity"

[event.entities]
host = "/host/name"
rack = "/host/rack"

[detection]
false_alerts_per_million = 100
detectors = ["amount"]
silence_kinds = []

[detection.partner_kinds]
"""
BEGIN_MS = 1_767_600_000_000
READINGS = 6_000
HOSTS = 10
HOT = 5_555


def readings() -> list[bytes]:
    """Every host has a temperature of its own; reading HOT is 60 degrees above it."""
    rng = np.random.default_rng(4)
    usual = 20.0 + rng.normal(0.0, 2.0, HOSTS)
    found = []
    for number in range(READINGS):
        host = number % HOSTS
        celsius = usual[host] + rng.normal(0.0, 0.5) + (60.0 if number == HOT else 0.0)
        reading = {
            "meta": {"seq": number, "at": BEGIN_MS + 1_000 * number + int(rng.integers(900))},
            "host": {"name": f"host-{host}", "rack": f"rack-{host // 5}"},
            "state": "ok",
            "samples": [{"celsius": round(celsius, 3)}],
        }
        found.append(json.dumps(reading).encode())
    return found


def test_a_metric_stream_needs_settings_and_no_code(stack: StackState, tmp_path: Path) -> None:
    path = tmp_path / "metrics.toml"
    path.write_text(SETTINGS)
    settings = running_job.settings_for(stack, "metrics", "triton.timeout_ms=20000", path=path)
    running_job.create_topics(stack, settings)
    places = running_job.send(stack, settings.source.topic, readings())
    with running_job.running(stack, settings) as job:
        job.wait("all readings are decided", lambda: job.metric("decided") >= 2 * READINGS)
        job.wait_until_read()
        assert job.metric("dead_letters") == 0
        messages = job.alerts()
    running_job.check_schema("alert", messages)
    hot = [
        alert
        for alert in (one.json() for one in messages)
        if alert["data"]["offset"] == places[HOT].offset
    ]
    assert {one["subject"] for one in hot} == {
        f"host/host-{HOT % HOSTS}",
        f"rack/rack-{HOT % HOSTS // 5}",
    }
    for one in hot:
        data = one["data"]
        assert data["payment_id"] == str(HOT)
        assert data["detector"] == "amount"
        assert 70 < data["actual"]["value"] < 95
        assert (
            data["expected_values"]["low"]
            < data["typical"]["value"]
            < data["expected_values"]["high"]
        )
        assert data["expected_values"]["high"] < data["actual"]["value"]
    assert len(messages) < 10
