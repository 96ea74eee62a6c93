"""What decoders do on Triton: rows a second, side by side in a server of their own."""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.stack import stack, triton
from deploy.stack.options import REPOSITORY, StackError, StackOptions
from deploy.stack.processes import pick_ports
from deploy.stack.record import USUAL_PORTS, StackState

IN_FLIGHT = 4
ROUNDS = 9
ROUND_S = 0.4
READY_S = 90.0
_CONFIG = "python-cpu"
_PORTS = ("triton_http", "triton_grpc", "triton_metrics")


def rates(
    folders: Mapping[str, Path], model_py: Path, x: NDArray[np.float32], rows: int
) -> tuple[dict[str, float], str]:
    """Return rows a second of each decoder on Triton's CPU backend; none where it does not run.

    The decoders take turns and the best round of each counts, as in `cost.measure`.

    Args:
        folders: model folders by name, each with decoder.onnx and check.npz.
        model_py: the server's code.
        x: float32 [n, 69], valid inputs, repeated as needed.
        rows: of a request.

    Returns:
        The rates, and where there is none why.
    """
    options = StackOptions(root=Path(tempfile.mkdtemp(prefix="eddy-rates-")))
    if not (options.triton_venv / "bin" / "python").exists():
        shutil.rmtree(options.root, ignore_errors=True)
        return {}, "no Triton on this machine (`make setup`): onnxruntime in process alone"
    try:
        models = {name: f"variant{i}" for i, name in enumerate(folders)}
        repository = options.root / "repository"
        for name, model in models.items():
            _lay_model(repository / model, folders[name], model_py)
        with _server(options, repository, list(models.values())) as state:
            batch = np.ascontiguousarray(np.resize(x, (rows, x.shape[1])))
            return _measure(state, models, batch), ""
    except StackError as error:
        return {}, f"Triton did not run ({error}): onnxruntime in process alone"
    finally:
        shutil.rmtree(options.root, ignore_errors=True)


def _lay_model(model: Path, folder: Path, model_py: Path) -> None:
    version = model / "1"
    version.mkdir(parents=True)
    for name in ("decoder.onnx", "check.npz"):
        shutil.copyfile(folder / name, version / name)
    shutil.copyfile(model_py, version / "model.py")
    source = REPOSITORY / "triton_repo" / "intensity" / "configs" / f"{_CONFIG}.pbtxt"
    named = re.sub(
        r'^name: "[^"]*"', f'name: "{model.name}"', source.read_text(), flags=re.MULTILINE
    )
    (model / "configs").mkdir()
    (model / "configs" / source.name).write_text(named)


@contextmanager
def _server(options: StackOptions, repository: Path, models: list[str]) -> Iterator[StackState]:
    """Run Triton alone, with the models loaded, and leave nothing behind."""
    options = StackOptions(
        root=options.root, triton_repo=repository, model_name=models[0], model_config_name=_CONFIG
    )
    ports = dict(zip(_PORTS, pick_ports([USUAL_PORTS[name] for name in _PORTS]), strict=True))
    state = StackState(options, ports)
    state.logs.mkdir(parents=True, exist_ok=True)
    try:
        triton.start(state)
        deadline = time.monotonic() + READY_S
        while (reason := triton.probe(state)) is not None:
            if time.monotonic() > deadline:
                raise StackError(f"it is not ready after {READY_S:.0f} s: {reason}")
            time.sleep(0.2)
        triton.note_folders(state)
        yield state
    finally:
        stack.down(options.root, purge=True)


def _measure(
    state: StackState, models: Mapping[str, str], batch: NDArray[np.float32]
) -> dict[str, float]:
    import grpc  # type: ignore[import-untyped]  # ships no types
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    from flink_jobs import triton_wire as wire

    with grpc.insecure_channel(state.triton_endpoint, options=wire.CHANNEL_OPTIONS) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        requests = {}
        for name, model in models.items():
            try:
                stub.RepositoryModelLoad(
                    service_pb2.RepositoryModelLoadRequest(model_name=model), timeout=READY_S
                )
            except grpc.RpcError as error:
                raise StackError(f"{name} does not load: {error.details()}") from None
            requests[name] = wire.infer_request(wire.infer_template(model, ""), batch)
        best = dict.fromkeys(models, 0.0)
        for _ in range(ROUNDS):
            for name, request in requests.items():
                best[name] = max(best[name], _rate(stub, request, len(batch)))
    return {name: round(rate) for name, rate in best.items()}


def _rate(stub: Any, request: Any, rows: int) -> float:
    """Return rows a second with IN_FLIGHT requests under way."""
    waiting = deque(stub.ModelInfer.future(request, timeout=READY_S) for _ in range(IN_FLIGHT))
    begun, answered = time.perf_counter(), 0
    while (spent := time.perf_counter() - begun) < ROUND_S:
        waiting.popleft().result()
        answered += 1
        waiting.append(stub.ModelInfer.future(request, timeout=READY_S))
    for future in waiting:
        future.result()
    return answered * rows / spent
