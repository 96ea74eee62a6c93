"""The model's configurations as Triton reads them: text forms of its own message."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format  # type: ignore[import-untyped]  # ships no types
from tritonclient.grpc import model_config_pb2, service_pb2

from flink_jobs.triton_wire import check_config

CONFIGS = Path(__file__).parents[2] / "triton_repo" / "intensity" / "configs"


@pytest.mark.parametrize("name", ["python-cpu", "gpu", "tensorrt"])
def test_each_is_a_configuration_that_the_job_accepts(name: str) -> None:
    config = text_format.Parse(
        (CONFIGS / f"{name}.pbtxt").read_text(), model_config_pb2.ModelConfig()
    )
    found = check_config(service_pb2.ModelConfigResponse(config=config), "1")
    assert (found.name, found.feature_version) == ("intensity", "3")
    assert config.version_policy.WhichOneof("policy_choice") == "all"
    kind = config.instance_group[0].kind
    assert kind == (2 if name == "python-cpu" else 1)  # KIND_CPU, KIND_GPU
    if name == "tensorrt":
        (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
        assert accelerator.name == "tensorrt"
        assert accelerator.parameters["trt_profile_max_shapes"] == "x:8192x69"
        assert accelerator.parameters["trt_engine_cache_enable"] == "0"
        assert (config.backend, config.default_model_filename) == ("onnxruntime", "decoder.onnx")
