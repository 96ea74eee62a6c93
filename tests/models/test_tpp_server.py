"""What Triton runs (`triton_repo/intensity/1/model.py`), without Triton."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.tpp import spec

FOLDER = Path(__file__).parents[2] / "triton_repo" / "intensity"


@dataclass
class _Tensor:
    name: str
    array: NDArray[Any]

    def as_numpy(self) -> NDArray[Any]:
        return self.array


@dataclass
class _Error:
    message: str
    code: int = 0
    INVALID_ARG = 3


@dataclass
class _Response:
    output_tensors: list[_Tensor] | None = None
    error: _Error | None = None


@pytest.fixture(scope="module")
def module() -> Iterator[types.ModuleType]:
    backend = types.ModuleType("triton_python_backend_utils")
    vars(backend).update(
        Tensor=_Tensor,
        TritonError=_Error,
        InferenceResponse=_Response,
        get_input_tensor_by_name=lambda request, name: request.get(name),
    )
    sys.modules[backend.__name__] = backend
    described = importlib.util.spec_from_file_location("served_model", FOLDER / "1" / "model.py")
    assert described is not None
    assert described.loader is not None
    served = importlib.util.module_from_spec(described)
    described.loader.exec_module(served)
    yield served
    del sys.modules[backend.__name__]


def _arguments(repository: Path, feature_version: str = spec.FEATURE_VERSION) -> dict[str, str]:
    config = {"parameters": {"feature_version": {"string_value": feature_version}}}
    return {
        "model_config": json.dumps(config),
        "model_repository": str(repository),
        "model_version": "1",
        "model_instance_kind": "CPU",
        "model_instance_device_id": "0",
    }


@pytest.fixture(scope="module")
def model(module: types.ModuleType) -> Any:
    model = module.TritonPythonModel()
    model.initialize(_arguments(FOLDER))
    return model


def _rows(count: int, seed: int = 0) -> NDArray[np.float32]:
    with np.load(FOLDER / "1" / "check.npz") as check:
        x: NDArray[np.float32] = check["x"]
    chosen: NDArray[np.float32] = x[np.random.default_rng(seed).integers(0, len(x), count)]
    return chosen


def _request(x: NDArray[Any]) -> dict[str, _Tensor]:
    return {"x": _Tensor("x", x)}


def _broken(column: int, value: float) -> NDArray[np.float32]:
    x = _rows(3)
    x[1, column] = value
    return x


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (_broken(5, np.nan), r"must be finite, found nan at \[1, 5\]"),
        (_broken(0, np.inf), "must be finite"),
        (_broken(spec.RATIO, 0.0), "ratio"),
        (_broken(spec.RATIO, -1.0), "ratio"),
        (_broken(spec.RATIO, 20.1), "ratio"),
        (_broken(spec.IS_FIRST, 0.5), "is_first"),
        (_broken(spec.ZGAP, -6.1), "zgap"),
        (_broken(spec.LOG_COUNT, -0.1), "must not be negative"),
        (np.zeros((0, 68), np.float32), r"shape \[rows >= 1, 68\], found \[0, 68\]"),
        (np.zeros((2, 67), np.float32), r"found \[2, 67\]"),
        (np.zeros(68, np.float32), r"found \[68\]"),
        (_rows(2).astype(np.float64), "must be FP32, found float64"),
    ],
)
def test_a_bad_request_alone_is_refused(
    model: Any,
    x: NDArray[Any],
    message: str,
) -> None:
    before, after = _rows(4, 1), _rows(5, 2)
    responses = model.execute([_request(before), _request(x), _request(after)])
    assert re.search(message, responses[1].error.message)
    assert responses[1].error.code == _Error.INVALID_ARG
    for request, response in ((before, responses[0]), (after, responses[2])):
        assert response.error is None
        alone = model.execute([_request(request)])[0]
        np.testing.assert_allclose(
            response.output_tensors[0].array, alone.output_tensors[0].array, atol=1e-6
        )


def test_a_request_without_input_is_refused(model: Any) -> None:
    (response,) = model.execute([{}])
    assert response.error.message == "no input named x"


def test_answers_are_those_of_the_export(model: Any) -> None:
    with np.load(FOLDER / "1" / "check.npz") as check:
        x, y = check["x"], check["y"]
    (response,) = model.execute([_request(x)])
    np.testing.assert_allclose(response.output_tensors[0].array, y, atol=1e-5)


def test_another_feature_version_does_not_load(module: types.ModuleType) -> None:
    with pytest.raises(RuntimeError, match="has feature version 1, the configuration says 2"):
        module.TritonPythonModel().initialize(_arguments(FOLDER, "2"))


def test_a_decoder_that_answers_otherwise_does_not_load(
    module: types.ModuleType, tmp_path: Path
) -> None:
    shutil.copytree(FOLDER / "1", tmp_path / "1")
    with np.load(FOLDER / "1" / "check.npz") as check:
        x, y = check["x"], check["y"]
    np.savez(tmp_path / "1" / "check.npz", x=x, y=y + 0.01)
    with pytest.raises(RuntimeError, match="answers otherwise than when it was exported"):
        module.TritonPythonModel().initialize(_arguments(tmp_path))
    np.savez(tmp_path / "1" / "check.npz", x=x, y=y[:, :5])
    with pytest.raises(RuntimeError, match=r"expected \(128, 5\)"):
        module.TritonPythonModel().initialize(_arguments(tmp_path))


def test_a_gpu_configuration_without_a_gpu_runtime_does_not_load(
    module: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        module.onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"]
    )
    with pytest.raises(RuntimeError, match="has no CUDA provider"):
        module.TritonPythonModel().initialize({**_arguments(FOLDER), "model_instance_kind": "GPU"})


def test_server_and_spec_say_the_same(module: types.ModuleType) -> None:
    assert (module.INPUT, module.OUTPUT) == (spec.INPUT, spec.OUTPUT)
    assert (module.ZGAP, module.RATIO, module.IS_FIRST, module.LOG_COUNT) == (
        spec.ZGAP,
        spec.RATIO,
        spec.IS_FIRST,
        spec.LOG_COUNT,
    )


@pytest.mark.parametrize("name", ["python-cpu", "gpu"])
def test_configurations_name_the_shipped_weights(name: str) -> None:
    text = (FOLDER / "configs" / f"{name}.pbtxt").read_text()
    card = json.loads((FOLDER / "1" / "card.json").read_text())
    for key in ("model_version", "feature_version"):
        assert f'key: "{key}" value: {{ string_value: "{card[key]}" }}' in text
    assert "dims: [ -1, 68 ]" in text
    assert "dims: [ -1, 20 ]" in text
