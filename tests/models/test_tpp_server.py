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
from typing import Any, ClassVar

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


class _Metrics:
    """Triton's registry: what each counter of each family has come to."""

    COUNTER = 1
    found: ClassVar[dict[tuple[str, str], float]] = {}

    def __init__(self, name: str, description: str, kind: int) -> None:
        assert description
        assert kind == self.COUNTER
        self.name = name

    def Metric(self, labels: dict[str, str]) -> Any:  # noqa: N802 (Triton's name)
        key = (self.name, labels["version"])
        found = self.found

        class Metric:
            def increment(self, value: float) -> None:
                found[key] = found.get(key, 0.0) + value

        return Metric()


@pytest.fixture(scope="module")
def module() -> Iterator[types.ModuleType]:
    backend = types.ModuleType("triton_python_backend_utils")
    vars(backend).update(
        Tensor=_Tensor,
        TritonError=_Error,
        InferenceResponse=_Response,
        MetricFamily=_Metrics,
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
        "model_name": "intensity",
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


class _Request(dict[str, _Tensor]):
    """What Triton hands over: tensors by name, and the outputs that the client asked for."""

    def __init__(self, tensors: dict[str, _Tensor], outputs: tuple[str, ...] = ("y",)) -> None:
        super().__init__(tensors)
        self.outputs = list(outputs)

    def requested_output_names(self) -> list[str]:
        return self.outputs


def _request(x: NDArray[Any], *outputs: str) -> _Request:
    return _Request({"x": _Tensor("x", x)}, outputs or ("y",))


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
        (_broken(spec.MARK, 9.0), "mark"),
        (_broken(spec.MARK, -1.0), "mark"),
        (_broken(spec.MARK, 1.5), "mark"),
        (_broken(spec.IS_FIRST, 0.5), "is_first"),
        (_broken(spec.ZGAP, -6.1), "zgap"),
        (_broken(spec.LOG_COUNT, -0.1), "must not be negative"),
        (np.zeros((0, 69), np.float32), r"shape \[rows >= 1, 69\], found \[0, 69\]"),
        (np.zeros((2, 67), np.float32), r"found \[2, 67\]"),
        (np.zeros(69, np.float32), r"found \[69\]"),
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
    (response,) = model.execute([_Request({})])
    assert response.error.message == "no input named x"


def test_a_client_that_asks_for_faults_gets_an_answer_for_each_row(model: Any) -> None:
    x = _rows(9)
    for row, column, value in (
        (1, 5, np.nan), (2, spec.RATIO, 0.0), (3, spec.IS_FIRST, 0.5), (4, spec.ZGAP, -6.1),
        (6, spec.LOG_COUNT, -0.1), (7, spec.RATIO, np.inf),
    ):  # fmt: skip
        x[row, column] = value
    kept = x.copy()
    plain = _rows(4, 1)
    mixed, whole = model.execute([_request(x, "y", "fault"), _request(plain)])
    y, faults = mixed.output_tensors
    assert (y.name, faults.name) == ("y", "fault")
    assert faults.array.tolist() == [
        b"",
        b"x must be finite",
        b"x[65] (ratio) must be in (0, 20]",
        b"x[66] (is_first) must be 0 or 1",
        b"x[64] (zgap) must be in [-6, 6]",
        b"",
        b"x[67] (log1p(events) / 5) must not be negative",
        b"x must be finite",
        b"",
    ]
    good = faults.array == b""
    assert np.isnan(y.array[~good]).all()
    (alone,) = model.execute([_request(kept[good])])
    np.testing.assert_allclose(y.array[good], alone.output_tensors[0].array, atol=1e-6)
    np.testing.assert_array_equal(x, kept)  # it is Triton's memory
    assert [tensor.name for tensor in whole.output_tensors] == ["y"]
    (sound,) = model.execute([_request(plain, "y", "fault")])
    assert sound.output_tensors[1].array.tolist() == [b""] * 4
    assert np.isfinite(sound.output_tensors[0].array).all()
    (odd,) = model.execute([_request(np.zeros((2, 67), np.float32), "y", "fault")])
    assert "found [2, 67]" in odd.error.message


def test_each_bad_row_is_named_as_the_request_would_be(module: types.ModuleType) -> None:
    """Both say the same of one row, for all that can be wrong."""
    for column, value in (
        (0, np.inf), (spec.RATIO, -1.0), (spec.RATIO, 20.1), (spec.IS_FIRST, 2.0), (spec.MARK, 8.5),
        (spec.ZGAP, 6.1), (spec.LOG_COUNT, -1.0), (spec.LOG_COUNT, 0.0),
    ):  # fmt: skip
        x = _rows(1)
        x[0, column] = value
        fault = module.find_fault(x)
        assert (fault is None) == (module.row_faults(x)[0] == b"")


def test_rows_and_faults_are_counted_once_a_second(
    module: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now_s)
    model = module.TritonPythonModel()
    model.initialize(_arguments(FOLDER))
    _Metrics.found.clear()
    model.execute([_request(_rows(5)), _request(_broken(0, np.nan))])
    assert _Metrics.found == {}
    now_s += 1.5
    model.execute([_request(_broken(0, np.nan), "y", "fault")])
    rows, faults = ("eddy_intensity_rows_total", "1"), ("eddy_intensity_faults_total", "1")
    assert _Metrics.found == {rows: 8.0, faults: 2.0}
    model.execute([_request(_rows(2))])
    model.finalize()
    assert _Metrics.found == {rows: 10.0, faults: 2.0}


def test_the_card_may_allow_more(model: Any, module: types.ModuleType, tmp_path: Path) -> None:
    shutil.copytree(FOLDER / "1", tmp_path / "1")
    with np.load(FOLDER / "1" / "check.npz") as check:
        x, y = check["x"], check["y"]
    np.savez(tmp_path / "1" / "check.npz", x=x, y=y + 0.01)
    card = json.loads((FOLDER / "1" / "card.json").read_text())
    (tmp_path / "1" / "card.json").write_text(json.dumps(card | {"tolerance": 0.02}))
    allowed = module.TritonPythonModel()
    allowed.initialize(_arguments(tmp_path))
    answers = [m.execute([_request(x)])[0].output_tensors[0].array for m in (allowed, model)]
    np.testing.assert_array_equal(*answers)
    (tmp_path / "1" / "card.json").unlink()
    with pytest.raises(RuntimeError, match="answers otherwise"):
        module.TritonPythonModel().initialize(_arguments(tmp_path))


def test_answers_are_those_of_the_export(model: Any) -> None:
    with np.load(FOLDER / "1" / "check.npz") as check:
        x, y = check["x"], check["y"]
    (response,) = model.execute([_request(x)])
    np.testing.assert_allclose(response.output_tensors[0].array, y, atol=1e-5)


def test_another_feature_version_does_not_load(module: types.ModuleType) -> None:
    with pytest.raises(RuntimeError, match="has feature version 3, the configuration says 2"):
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
    assert "dims: [ -1, 69 ]" in text
    assert "dims: [ -1, 32 ]" in text
