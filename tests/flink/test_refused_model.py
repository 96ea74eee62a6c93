"""A model that does not fit is refused when the job is submitted, with the reason."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tritonclient.grpc import InferenceServerClient

from deploy.stack import jobs
from deploy.stack.options import REPOSITORY
from deploy.stack.record import StackState
from deploy.submit import submit
from flink_jobs.errors import EddyError
from tests.flink import running_job

# Stands in for a model of another release; nobody asks it anything.
MODEL = b"""
class TritonPythonModel:
    def execute(self, requests):
        raise RuntimeError("not to be asked")
"""

pytestmark = [pytest.mark.stack, pytest.mark.flink, pytest.mark.timeout(400)]


@contextlib.contextmanager
def served(stack: StackState, old: str, new: str) -> Iterator[None]:
    """Serve a model with another configuration for a while."""
    path = REPOSITORY / "triton_repo" / "intensity" / "configs" / "python-cpu.pbtxt"
    config = path.read_text()
    assert old in config
    with contextlib.closing(InferenceServerClient(stack.triton_endpoint)) as client:
        other = _as_json(config.replace(old, new))
        client.load_model("intensity", config=other, files={"file:1/model.py": MODEL})
        try:
            yield
        finally:
            # An override sticks until the model is unloaded.
            client.unload_model("intensity")
            client.load_model("intensity")


def _as_json(config: str) -> str:
    """Turn the text form of a model's configuration into the JSON that Triton wants."""
    from google.protobuf import json_format, text_format  # type: ignore[import-untyped]
    from tritonclient.grpc import model_config_pb2

    message = text_format.Parse(config, model_config_pb2.ModelConfig())
    return str(json_format.MessageToJson(message, preserving_proto_field_name=True))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("dims: [ -1, 69 ]", "dims: [ -1, 67 ]", r"(?s)intensity.*69.*67"),
        (
            'key: "feature_version" value: { string_value: "3" }',
            'key: "feature_version" value: { string_value: "99" }',
            "feature.version.*99",
        ),
    ],
)
def test_a_served_model_that_does_not_fit_is_refused(
    stack: StackState, old: str, new: str, message: str
) -> None:
    settings = running_job.settings_for(stack, "refused")
    known = [job.job_id for job in jobs.jobs(stack)]
    with served(stack, old, new), pytest.raises(EddyError, match=message):
        submit(settings, stack)
    assert [job.job_id for job in jobs.jobs(stack)] == known


def test_files_of_a_model_that_do_not_fit_are_refused(stack: StackState, tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "triton_repo" / "intensity" / "1", tmp_path / "intensity" / "1")
    settings = running_job.settings_for(stack, "refused", f"triton.model_repository={tmp_path}")
    (tmp_path / "intensity" / "1" / "prior.json").write_text('{"version": 99}')
    with pytest.raises(EddyError, match="99"):
        submit(settings, stack)
    missing = settings.override("triton.model_version=7")
    with pytest.raises(EddyError, match=r"expected intensity/7.*found versions \['1'\]"):
        submit(missing, stack)
