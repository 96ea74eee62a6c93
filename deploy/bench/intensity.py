"""What an answer of the intensity model costs on Triton, beside a GRU that reads a window anew.

All is measured on one Triton of its own, back to back: eddy's decoder at several sizes of request,
a GRU over the last 64 events with the same heads behind the same backend, and the decoder again.
What the stream adds for the decoder, the encoder's step for each event, is measured beside them.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

import grpc  # type: ignore[import-untyped]  # ships no types
import numpy as np
import psutil
from numba import njit
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc

from deploy.bench import gru_window, report
from deploy.bench.report import Number, Report
from deploy.models.folder import read_card
from deploy.stack import processes, triton
from deploy.stack.options import StackError, StackOptions
from deploy.stack.record import StackState
from flink_jobs import triton_wire as wire
from flink_jobs.model_files import load_encoder
from models.tpp import spec
from models.tpp.encoder import SCRATCH, Encoder, encoder_step

ROWS = (1, 32, 128, 512, 1024, 4096)
COMPARED_ROWS = (128, 512)
GOAL_ROWS_PER_S = 250_000.0
GOAL_RATIO = 20.0
IN_FLIGHT = 4
CLIENTS, CLIENT_ROWS = 16, 8
WARM_S = 0.5
START_S = 60.0
CALL_TIMEOUT_S = 30.0
LEARNT_VERSIONS = ("python", "numpy", "numba", "tritonclient", "triton")
PORTS = ("triton_http", "triton_grpc", "triton_metrics")
BATCHED, TWO = "intensity_batched", "intensity_two"


@dataclass(frozen=True, slots=True)
class _Question:
    """A request that is sent again and again.

    Attributes:
        request: as it goes over the wire.
        rows: events that it asks about.
    """

    request: service_pb2.ModelInferRequest
    rows: int


def run_intensity(
    model: Path,
    variants: Sequence[Path],
    seconds: float,
    options: StackOptions,
    progress: Callable[[str], None],
) -> Report:
    """Measure, and return the report.

    Args:
        model: folder of the version that is measured, its `configs` beside it.
        variants: folders of further versions, such as int8 ones, measured in the same run.
        seconds: for each figure.
        options: of Triton; its root is removed at the end.
        progress: told of each step.

    Raises:
        StackError: Triton does not start, or a model does not load or answer.
    """
    encoder = load_encoder(model)
    # The encoder first: Triton's processes would share the cores with it.
    encoder_us = encoder_us_per_event(encoder)
    progress(f"encoder: {encoder_us:.2f} us per event in the stream")
    repository = options.root / "models"
    shutil.rmtree(options.root, ignore_errors=True)
    try:
        names = _lay_repository(repository, model, variants)
        with _running(options, repository) as state:
            systems = _measure_all(state, model, names, seconds, progress)
            versions = _versions(state)
    finally:
        shutil.rmtree(options.root, ignore_errors=True)
    systems["encoder, in the stream"] = {"cpu_us_per_row": encoder_us}
    return {
        "benchmark": "intensity",
        "machine": report.machine(),
        "versions": versions,
        "input": {
            "seconds": seconds,
            "in_flight": IN_FLIGHT,
            "model": model.name,
            "gru": f"GRU-{gru_window.HIDDEN} over {gru_window.WINDOW} events, eddy's heads",
            "cpu": "of Triton's processes; the client's is beside it",
        },
        "systems": {name: _rounded(found) for name, found in systems.items()},
        "ratios": _ratios(systems, encoder_us),
    }


def _lay_repository(repository: Path, model: Path, variants: Sequence[Path]) -> dict[str, str]:
    """Copy the models side by side; return the name in Triton of each that is measured."""
    root = model.parent
    names = {"decoder": "intensity"}
    _lay(repository, "intensity", root, model)
    for number, folder in enumerate(variants, 1):
        name = f"variant_{number}"
        _lay(repository, name, root, folder)
        names[f"decoder {read_card(folder)['model_version']}"] = name
    config = _lay(repository, BATCHED, root, model)
    text = config.read_text("utf-8")
    for width in (spec.INPUT, spec.OUTPUT):
        # Where Triton batches, the batch is no dimension of the tensors.
        text = text.replace(f"dims: [ -1, {width} ]", f"dims: [ {width} ]")
    text = text.replace("max_batch_size: 0", f"max_batch_size: {max(ROWS)}\ndynamic_batching {{ }}")
    config.write_text(text, "utf-8")
    config = _lay(repository, TWO, root, model)
    text = config.read_text("utf-8")
    config.write_text(text.replace("kind: KIND_CPU count: 1", "kind: KIND_CPU count: 2"), "utf-8")
    gru_window.write_window_model(repository)
    return names


def _lay(repository: Path, name: str, root: Path, folder: Path) -> Path:
    target = repository / name
    shutil.copytree(folder, target / "1", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(root / "1" / "model.py", target / "1" / "model.py")
    config = target / "configs" / "python-cpu.pbtxt"
    config.parent.mkdir()
    text = (root / "configs" / "python-cpu.pbtxt").read_text("utf-8")
    config.write_text(text.replace('name: "intensity"', f'name: "{name}"'), "utf-8")
    return config


@contextlib.contextmanager
def _running(options: StackOptions, repository: Path) -> Iterator[StackState]:
    """Start a Triton alone on free ports, and leave nothing of it."""
    own = StackOptions(root=options.root, triton_repo=repository, triton_venv=options.triton_venv)
    state = StackState(own, dict(zip(PORTS, processes.pick_ports([0, 0, 0]), strict=True)))
    try:
        triton.start(state)
        deadline = time.monotonic() + START_S
        while (reason := triton.probe(state)) is not None:
            if time.monotonic() > deadline:
                raise StackError(f"triton is not ready after {START_S:.0f} s: {reason}")
            time.sleep(0.1)
        triton.note_folders(state)
        yield state
    finally:
        processes.stop_processes(processes.find_marked(state.root, "triton"), 5.0)
        triton.clean(state)


def _measure_all(
    state: StackState,
    model: Path,
    names: dict[str, str],
    seconds: float,
    progress: Callable[[str], None],
) -> dict[str, dict[str, float]]:
    with np.load(model / "check.npz") as check:
        known = check["x"]
    asked = _Asked(state, seconds, progress)
    found: dict[str, dict[str, float]] = {}

    def decoder(what: str, rows: int) -> dict[str, float]:
        x = np.resize(known, (rows, spec.INPUT)).astype(np.float32)
        return asked.measure(f"{what}, {_said(rows)}", names[what], x)

    asked.load("intensity")
    for rows in ROWS:
        found[f"decoder, {_said(rows)}"] = decoder("decoder", rows)
    for what in names:
        if what != "decoder":
            asked.load(names[what])
            for rows in COMPARED_ROWS:
                found[f"{what}, {_said(rows)}"] = decoder(what, rows)
            asked.unload(names[what])
    asked.load(gru_window.NAME)
    for rows in COMPARED_ROWS:
        name = f"GRU over a window, {_said(rows)}"
        found[name] = asked.measure(name, gru_window.NAME, gru_window.window_rows(rows))
    asked.unload(gru_window.NAME)
    for rows in COMPARED_ROWS:
        # Before and after what it is compared with: a machine that changed meanwhile shows.
        again = decoder("decoder", rows)
        before = found[f"decoder, {_said(rows)}"]
        found[f"decoder, {_said(rows)}"] = {k: (before[k] + again[k]) / 2 for k in before}
    x = np.resize(known, (CLIENT_ROWS, spec.INPUT)).astype(np.float32)
    clients = f"{CLIENTS} clients of {CLIENT_ROWS} rows"
    for what, name in (("as shipped", "intensity"), ("Triton's batcher", BATCHED)):
        asked.load(name)
        found[f"{clients}, {what}"] = asked.loaded(f"{clients}, {what}", name, x, CLIENTS)
    asked.unload(BATCHED)
    asked.load(TWO)
    name = f"two instances, {_said(512)}"
    x = np.resize(known, (512, spec.INPUT)).astype(np.float32)
    found[name] = asked.measure(name, TWO, x)
    return found


def _said(rows: int) -> str:
    return f"{rows:,} row{'s' if rows > 1 else ''}"


class _Asked:
    """A client that asks one question again and again, alone and several at once."""

    def __init__(self, state: StackState, seconds: float, progress: Callable[[str], None]) -> None:
        self._state = state
        self._seconds = seconds
        self._progress = progress
        channel = grpc.insecure_channel(state.triton_endpoint, wire.CHANNEL_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

    def load(self, name: str) -> None:
        request = service_pb2.RepositoryModelLoadRequest(model_name=name)
        try:
            self._stub.RepositoryModelLoad(request, timeout=START_S)
        except grpc.RpcError as error:
            raise StackError(f"Triton does not load {name}: {error.details()}") from None

    def unload(self, name: str) -> None:
        self._stub.RepositoryModelUnload(
            service_pb2.RepositoryModelUnloadRequest(model_name=name), timeout=START_S
        )

    def measure(self, shown: str, name: str, x: NDArray[np.float32]) -> dict[str, float]:
        """Return throughput with several requests in flight, and the latency of one alone."""
        found = self.loaded(shown, name, x, IN_FLIGHT)
        alone, _ = self._ask(_question(name, x), 1, self._seconds)
        return found | _percentiles(alone)

    def loaded(
        self, shown: str, name: str, x: NDArray[np.float32], clients: int
    ) -> dict[str, float]:
        """Return throughput and CPU with so many requests in flight, and their latency."""
        question = _question(name, x)
        self._check(question, name)
        self._ask(question, clients, WARM_S)
        before, client_s = self._cpu_s(), time.process_time()
        latencies_s, took_s = self._ask(question, clients, self._seconds)
        client_s = time.process_time() - client_s
        cpu_s = sum(now - before.get(pid, now) for pid, now in self._cpu_s().items())
        rows = question.rows * len(latencies_s)
        self._progress(f"{shown}: {rows / took_s:,.0f} rows/s, {1e6 * cpu_s / rows:.2f} us of CPU")
        return {
            "rows_per_s": rows / took_s,
            "wall_us_per_row": 1e6 * took_s / rows,
            "cpu_us_per_row": 1e6 * cpu_s / rows,
            "cpu_s_per_million_rows": 1e6 * cpu_s / rows,
            "client_cpu_us_per_row": 1e6 * client_s / rows,
            **_percentiles(latencies_s),
        }

    def _check(self, question: _Question, name: str) -> None:
        try:
            answer = self._stub.ModelInfer(question.request, timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            raise StackError(f"{name} does not answer: {error.details()}") from None
        fault = wire.read_answer(answer, question.rows)[1]
        if fault:
            raise StackError(f"{name} answers {question.rows} rows with a {fault}")

    def _ask(self, question: _Question, clients: int, seconds: float) -> tuple[list[float], float]:
        """Ask from some threads; return each answer's latency and the time that all took."""
        latencies_s: list[list[float]] = [[] for _ in range(clients)]
        failures: list[str] = []
        began = time.perf_counter()

        def client(mine: list[float]) -> None:
            while (start := time.perf_counter()) - began < seconds:
                try:
                    self._stub.ModelInfer(question.request, timeout=CALL_TIMEOUT_S)
                except grpc.RpcError as error:
                    failures.append(str(error.details()))
                    return
                mine.append(time.perf_counter() - start)

        threads = [threading.Thread(target=client, args=(one,)) for one in latencies_s]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise StackError(f"a request failed: {failures[0]}")
        return [one for part in latencies_s for one in part], time.perf_counter() - began

    def _cpu_s(self) -> dict[int, float]:
        """Return the CPU time of Triton's server and backend processes so far, by process."""
        found = processes.find_marked(self._state.root, "triton")
        # A process of a model that was unloaded may be gone by now.
        seen = {}
        for process in found:
            with contextlib.suppress(psutil.Error):
                seen[process.pid] = float(sum(process.cpu_times()[:2]))
        return seen


def _question(name: str, x: NDArray[np.float32]) -> _Question:
    request = service_pb2.ModelInferRequest(model_name=name)
    tensor = request.inputs.add()
    tensor.name, tensor.datatype = "x", "FP32"
    tensor.shape.extend(x.shape)
    request.outputs.add().name = "y"
    request.raw_input_contents.append(x.tobytes())
    return _Question(request, len(x))


def _percentiles(latencies_s: Sequence[float]) -> dict[str, float]:
    p50, p99 = np.quantile(latencies_s, (0.5, 0.99))
    return {"p50_ms": 1e3 * float(p50), "p99_ms": 1e3 * float(p99)}


@njit(cache=True)
def _walk(memory, row, features, mark, w1, b1, w2, b2, hidden):  # type: ignore[no-untyped-def]
    for i in range(len(row)):
        encoder_step(
            memory[row[i]], features[i, 0], features[i, 1], features[i, 2], 0.0, mark[i],
            w1, b1, w2, b2, hidden,
        )  # fmt: skip


def encoder_us_per_event(
    encoder: Encoder, entities: int = 10_000, events: int = 200_000, repeats: int = 5
) -> float:
    """Return microseconds for one event of the history encoder, the best of some repeats."""
    draw = np.random.default_rng(5)
    memory = np.zeros((entities, spec.MEMORY), np.float32)
    row = draw.integers(0, entities, events)
    elapsed = draw.exponential(size=events).clip(1e-3)
    features = np.column_stack((elapsed, draw.normal(size=events), np.minimum(elapsed, 20.0)))
    mark = draw.integers(0, spec.MARKS, events).astype(np.uint8)
    hidden = np.empty(SCRATCH, np.float32)
    weights = (encoder.w1, encoder.b1, encoder.w2, encoder.b2)
    best_s = np.inf
    for _ in range(repeats + 1):  # the first compiles
        began = time.perf_counter()
        _walk(memory, row, features, mark, *weights, hidden)
        best_s = min(best_s, time.perf_counter() - began)
    return 1e6 * float(best_s) / events


def _ratios(systems: dict[str, dict[str, float]], encoder_us: float) -> dict[str, Number]:
    ratios: dict[str, float] = {}
    for rows in COMPARED_ROWS:
        window = systems[f"GRU over a window, {_said(rows)}"]
        mine = systems[f"decoder, {_said(rows)}"]
        ratios[f"gru_cpu_over_decoder_cpu_{rows}_rows"] = (
            window["cpu_us_per_row"] / mine["cpu_us_per_row"]
        )
        ratios[f"gru_cpu_over_decoder_and_encoder_cpu_{rows}_rows"] = window["cpu_us_per_row"] / (
            mine["cpu_us_per_row"] + encoder_us
        )
        ratios[f"gru_p50_over_decoder_p50_{rows}_rows"] = window["p50_ms"] / mine["p50_ms"]
    best = max(found["rows_per_s"] for name, found in systems.items() if name.startswith("decoder"))
    ratios["best_decoder_rows_per_s_over_goal"] = best / GOAL_ROWS_PER_S
    clients = f"{CLIENTS} clients of {CLIENT_ROWS} rows"
    ratios["batcher_over_shipped_rows_per_s_small_clients"] = (
        systems[f"{clients}, Triton's batcher"]["rows_per_s"]
        / systems[f"{clients}, as shipped"]["rows_per_s"]
    )
    return _rounded(ratios)


def _rounded(figures: dict[str, float]) -> dict[str, Number]:
    return {name: float(f"{value:.4g}") for name, value in figures.items()}


def _versions(state: StackState) -> dict[str, str]:
    told = report.versions(state)
    found = {name: told[name] for name in LEARNT_VERSIONS}
    packages = sorted((state.options.triton_venv / "lib").glob("python3*/site-packages"))
    for one in distributions(path=[str(path) for path in packages]):
        if one.name in ("onnxruntime", "onnxruntime-gpu"):
            found[f"{one.name} (Triton)"] = one.version
    return found
