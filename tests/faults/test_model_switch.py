"""Models are published, tried, promoted and broken while payments flow."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import InferenceServerClient

from deploy.stack import stack as servers
from deploy.stack.options import REPOSITORY, StackOptions
from deploy.stack.record import StackState
from flink_jobs.rollout import begin_rollout, note_published, promote, put_in_shadow, read_rollout
from tests.flink import running_job
from tests.flink.running_job import RunningJob

# The short versions in `make test` are tests/flink_jobs/test_model_pool.py and
# tests/deploy/test_models_triton.py.
pytestmark = [pytest.mark.stack, pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(600)]

RATE_PER_S = 400.0
PAYMENTS = 120_000  # at most; it ends when all was seen
OUTLIER_EVERY = 40
GOOD_CALLS = 80  # that a broken version answers well, so that it takes charge

BROKEN = """

_Good = TritonPythonModel


class TritonPythonModel(_Good):
    calls = 0

    def execute(self, requests):
        import time
        self.calls += 1
        responses = super().execute(requests)
        if self.calls <= {good}:
            return responses
        {fault}
"""
FAULTS = {
    "not_finite": "y = np.full((len(inputs_of(requests[0])), OUTPUT), np.nan, np.float32)",
    "wrong_shape": "y = np.zeros((len(inputs_of(requests[0])), OUTPUT - 1), np.float32)",
    "slow": "time.sleep(0.2); return responses",
}
ANSWER = """
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", y)]) for _ in requests]


def inputs_of(request):
    return pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackState]:
    """Run a stack whose model repository the test may change."""
    root = tmp_path_factory.mktemp("switch")
    repository = root / "models"
    ignored = shutil.ignore_patterns("__pycache__", "rollout.json*", "[2-9]")
    shutil.copytree(REPOSITORY / "triton_repo", repository, ignore=ignored)
    state = servers.up(StackOptions(root / "stack", triton_repo=repository))
    yield state
    servers.down(root / "stack")


def publish(state: StackState, version: int, fault: str = "") -> Path:
    """Put a copy of version 1 beside it under another name, broken in one way."""
    root = state.options.triton_repo / "intensity"
    begin_rollout(root)
    folder = root / str(version)
    shutil.copytree(root / "1", folder, ignore=shutil.ignore_patterns("__pycache__"))
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | {"model_version": f"tpp-{version}"}))
    if fault:
        code = (folder / "model.py").read_text()
        code += BROKEN.format(good=GOOD_CALLS, fault=FAULTS[fault]) + ANSWER
        (folder / "model.py").write_text(code)
    with InferenceServerClient(state.triton_endpoint) as client:
        client.load_model("intensity")
        assert client.is_model_ready("intensity", str(version))
    note_published(root, version)
    return root


def model_events(job: RunningJob) -> list[dict[str, Any]]:
    topic = job.settings.sink.models_topic
    assert topic is not None
    return [one.json() for one in job.read(topic)]


def rollbacks(job: RunningJob) -> list[dict[str, Any]]:
    return [event for event in model_events(job) if event["type"] == "rolled_back"]


def compared(event: dict[str, Any]) -> int:
    return sum(event["report"]["compared"].values()) if event["report"] else 0


def test_a_model_is_tried_promoted_broken_and_gone_back_from(own: StackState) -> None:
    settings = running_job.settings_for(
        own,
        "switch",
        "detection.false_alerts_per_million=1000",
        "detection.incident_quiet_s=1",
        f"triton.model_repository={own.options.triton_repo}",
    )
    running_job.create_topics(own, settings)
    messages = running_job.with_outliers(
        running_job.payments(PAYMENTS, entities=20, rate_per_s=RATE_PER_S), OUTLIER_EVERY
    )
    with (
        running_job.running(own, settings) as job,
        running_job.Feeder(own, settings.source.topic, messages, RATE_PER_S) as feeder,
    ):
        job.wait("payments flow", lambda: job.metric("decided") > 3_000)
        job.wait("Triton answers", lambda: job.metric("degraded") == 0)
        degraded = job.metric("degraded_batches")
        root = publish(own, 2)
        put_in_shadow(root, 2)
        job.wait(
            "the shadow is compared",
            lambda: any(compared(e) > 1_000 for e in model_events(job)),
        )
        promote(root, 2)
        job.wait(
            "version 2 is in charge",
            lambda: any(e["type"] == "in_charge" and e["version"] == 2 for e in model_events(job)),
        )
        time.sleep(5.0)
        assert job.metric("degraded_batches") == degraded, "a switch costs no request"
        for version, fault in enumerate(FAULTS, 3):
            publish(own, version, fault)
            promote(root, version)
            backs = version - 2
            job.wait(f"{fault}: gone back", lambda: len(rollbacks(job)) == backs, 60.0)  # noqa: B023 (called at once)
            job.wait("full service is back", lambda: job.metric("degraded") == 0)
            if fault != "slow":
                assert fault in read_rollout(root).history[-1].reason
            assert read_rollout(root).history[-1].by == "guard"
            # A rollback leaves none to go back to: a promotion arms the guard again.
            promote(root, 1)
            promote(root, 2)
            time.sleep(3.0)
        sent = feeder.stop()
        job.wait_until_read()
        assert job.status() == "RUNNING"
        assert job.restarts() == 0
        assert job.metric("decided") == 3 * sent
        events = model_events(job)
        alerts = [one.json() for one in job.alerts()]
    running_job.check_schema("model", job.read(str(settings.sink.models_topic)))
    assert [e["version"] for e in events if e["type"] == "rolled_back"] == [2] * len(FAULTS)
    named = {a["data"]["model"] for a in alerts}
    assert {"intensity/1", "intensity/2"} <= named
    assert {a["data"]["model_version"] for a in alerts} >= {"tpp-2"}
    reports = [e for e in events if e["report"] and (e["version"], e["other"]["version"]) == (1, 2)]
    found = max(reports, key=compared)["report"]
    assert found["nats"]["in_charge"] == found["nats"]["shadow"], "the same weights"
    # One side may be ahead of the other by a batch.
    assert found["alerts"]["come"] + found["alerts"]["go"] <= 1
