"""The life of a model on a real Triton: what is published, refused, switched and taken away.

A steady stream of requests goes to the version in charge all the while: none may fail.
"""

from __future__ import annotations

import shutil
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from deploy.models import life
from deploy.models.folder import RefusedModelError
from deploy.models.server import READY, ServerRefusedError, TritonServer
from deploy.stack import processes, triton
from deploy.stack.options import StackError, StackOptions
from deploy.stack.record import StackState
from flink_jobs import rollout as rollouts
from flink_jobs.errors import EddyError
from flink_jobs.settings import Settings
from tests.deploy.model_cases import (
    copy_repository,
    linear_decoder,
    settings_of,
    write_version,
)

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]

START_S = 60.0
SWITCHES = 5


@dataclass
class _Served:
    state: StackState
    root: Path
    settings: Settings
    server: TritonServer


def _start(state: StackState) -> object:
    process = triton.start(state)
    deadline = time.monotonic() + START_S
    while True:
        try:
            reason = triton.probe(state)
        except StackError:
            if not triton.leave_out_broken(state):
                raise
            continue
        if reason is None:
            triton.note_folders(state)
            return process
        assert time.monotonic() < deadline, reason
        time.sleep(0.1)


def _stop(state: StackState) -> None:
    processes.stop_processes(processes.find_marked(state.root, "triton"), 5.0)
    triton.clean(state)


@pytest.fixture
def served(triton_venv: Path, tmp_path: Path) -> Iterator[_Served]:
    """A Triton alone, on a repository of its own."""
    root = copy_repository(tmp_path)
    options = StackOptions(
        root=tmp_path / "stack", triton_repo=root.parent, triton_venv=triton_venv
    )
    names = ("triton_http", "triton_grpc", "triton_metrics")
    state = StackState(options, dict(zip(names, processes.pick_ports([0, 0, 0]), strict=True)))
    try:
        _start(state)
        settings = settings_of(root.parent, f"triton.endpoint={state.triton_endpoint}")
        yield _Served(state, root, settings, TritonServer(settings.triton))
    finally:
        _stop(state)


@dataclass
class _Stream:
    """Requests of 128 rows to the version in charge, as the rollout says it at that moment."""

    served: _Served
    answered: int = 0
    failures: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        server = TritonServer(self.served.settings.triton)
        x = _questions()
        while not self._stop.is_set():
            version = rollouts.read_rollout(self.served.root).in_charge
            began = time.perf_counter()
            try:
                y = server.ask(version, x)
            except EddyError as error:
                self.failures.append(f"version {version}: {error}")
            else:
                self.answered += 1
                if y.shape != (len(x), 32) or not np.isfinite(y).all():
                    self.failures.append(f"version {version} answered {y.shape}")
            self.slowest_s = max(self.slowest_s, time.perf_counter() - began)
            time.sleep(0.004)


def _questions() -> NDArray[np.float32]:
    from tests.deploy.model_cases import SHIPPED

    with np.load(SHIPPED / "1" / "check.npz") as check:
        x: NDArray[np.float32] = check["x"]
    return x


@contextmanager
def _streaming(served: _Served) -> Iterator[_Stream]:
    stream = _Stream(served)
    thread = threading.Thread(target=stream.run)
    thread.start()
    try:
        yield stream
    finally:
        stream._stop.set()
        thread.join()
    print(f"{stream.answered} requests, the slowest {1e3 * stream.slowest_s:.1f} ms")
    assert stream.failures == []
    assert stream.answered > 0


def test_a_life_under_load(served: _Served, tmp_path: Path) -> None:
    good = write_version(tmp_path / "good", "tpp-good", linear_decoder("tpp-good"))
    with _streaming(served):
        done = life.publish(served.settings, good, served.server)
        assert done.version == 2
        assert served.server.served() == {1: READY, 2: READY}
        life.shadow(served.settings, 2, served.server)
        life.promote(served.settings, 2, served.server, None)
        assert triton.version_in_charge(served.state) == "2"
        assert triton.probe(served.state) is None
        life.roll_back(served.settings, "enough", served.server)
        done = life.retire(served.settings, 2, served.server, force=True)
        assert len(done.notes) == 1
        assert served.server.served().get(1) == READY
        assert served.server.served().get(2) != READY
        with pytest.raises(ServerRefusedError, match="not at ready state|not found"):
            served.server.ask(2, _questions())


def test_what_must_not_be_served_is_refused_under_load(served: _Served, tmp_path: Path) -> None:
    zeros = np.zeros((128, 32), np.float32)
    cases = {
        "nan": (linear_decoder("tpp-x", fill=np.nan), "not finite"),
        "shape": (linear_decoder("tpp-x", outputs=19), r"expected one output y FP32 \[rows, 32\]"),
        "torn": (linear_decoder("tpp-x")[:700], "onnxruntime cannot load it"),
    }
    slow = linear_decoder("tpp-slow", blocks=40)
    with _streaming(served):
        for name, (decoder, message) in cases.items():
            folder = write_version(tmp_path / name, "tpp-x", decoder, y=zeros)
            with pytest.raises(RefusedModelError, match=message):
                life.publish(served.settings, folder, served.server)
        folder = write_version(tmp_path / "slow", "tpp-slow", slow)
        hasty = settings_of(
            served.root.parent,
            f"triton.endpoint={served.settings.triton.endpoint}",
            "triton.timeout_ms=10",
        )
        with pytest.raises(ServerRefusedError, match="the job would never hear it"):
            life.publish(hasty, folder, served.server)
        assert rollouts.versions_in(served.root) == [1]
        done = life.publish(served.settings, folder, served.server)
        assert done.notes[0].startswith("it is slow")


def test_what_only_triton_refuses_is_told_in_its_words(served: _Served, tmp_path: Path) -> None:
    good = write_version(tmp_path / "good", "tpp-good", linear_decoder("tpp-good"))
    # The server's own code is the repository's: one that fails lets nothing new in.
    code = served.root / "1" / "model.py"
    sound = code.read_text("utf-8")
    code.write_text(sound.replace("def initialize(self, args):", "def initialize(self):"), "utf-8")
    with _streaming(served), pytest.raises(ServerRefusedError) as refused:
        life.publish(served.settings, good, served.server)
    assert "In Triton's words: load failed for model 'intensity'" in str(refused.value)
    assert "takes 1 positional argument but 2 were given" in str(refused.value)
    assert rollouts.versions_in(served.root) == [1]
    code.write_text(sound, "utf-8")
    assert life.publish(served.settings, good, served.server).version == 2


def _metrics(state: StackState) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(str(state.triton_metrics_url), timeout=5.0) as reply:
        return str(reply.read().decode())


def test_bad_rows_get_their_own_errors_where_a_client_asks_for_them(served: _Served) -> None:
    from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput

    x = _questions()[:4].copy()
    x[1, 3] = np.nan
    x[2, 65] = -1.0
    tensor = InferInput("x", list(x.shape), "FP32")
    tensor.set_data_from_numpy(x)
    outputs = [InferRequestedOutput("y"), InferRequestedOutput("fault")]
    with InferenceServerClient(served.state.triton_endpoint) as client:
        answer = client.infer("intensity", [tensor], outputs=outputs)
    assert answer.as_numpy("fault").tolist() == [
        b"",
        b"x must be finite",
        b"x[65] (ratio) must be in (0, 20]",
        b"",
    ]
    assert np.isfinite(answer.as_numpy("y")).all(axis=1).tolist() == [True, False, False, True]
    deadline = time.monotonic() + 20.0
    counted = 'eddy_intensity_faults_total{model="intensity",version="1"} 2'
    while counted not in _metrics(served.state):
        served.server.ask(1, _questions())  # counts wait for a second, and for a request
        assert time.monotonic() < deadline
        time.sleep(0.2)
    # The job asks for y alone: one bad row is an error of its request.
    with pytest.raises(ServerRefusedError, match=r"x must be finite, found nan at \[1, 3\]"):
        served.server.ask(1, x)


def test_many_switches_fail_no_request(served: _Served, tmp_path: Path) -> None:
    good = write_version(tmp_path / "good", "tpp-good", linear_decoder("tpp-good"))
    with _streaming(served) as stream:
        for _ in range(SWITCHES):
            version = life.publish(served.settings, good, served.server).version
            assert version is not None
            life.promote(served.settings, version, served.server, None)
            time.sleep(0.02)
            life.roll_back(served.settings, "", served.server)
            life.retire(served.settings, version, served.server, force=True)
    assert rollouts.versions_in(served.root) == [1]
    assert stream.answered > SWITCHES


def test_after_a_restart_all_versions_are_served_again(served: _Served, tmp_path: Path) -> None:
    good = write_version(tmp_path / "good", "tpp-good", linear_decoder("tpp-good"))
    for _ in range(2):
        life.publish(served.settings, good, served.server)
    life.promote(served.settings, 2, served.server, None)
    _stop(served.state)
    # Damaged on the disk, and nobody's: it must not keep the one in charge from coming back.
    (served.root / "3" / "decoder.onnx").write_bytes(b"damaged")
    _start(served.state)
    assert triton.versions_left_out(served.state) == [3]
    assert triton.probe(served.state) is None
    states = TritonServer(served.settings.triton).served()
    assert (states[1], states[2]) == (READY, READY)
    shutil.rmtree(served.root / "3")
    life.publish(served.settings, good, TritonServer(served.settings.triton))


def test_the_one_in_charge_damaged_is_an_error(served: _Served, tmp_path: Path) -> None:
    good = write_version(tmp_path / "good", "tpp-good", linear_decoder("tpp-good"))
    life.publish(served.settings, good, served.server)
    life.promote(served.settings, 2, served.server, None)
    _stop(served.state)
    (served.root / "2" / "decoder.onnx").write_bytes(b"damaged")
    with pytest.raises(StackError, match="Triton cannot load model intensity"):
        _start(served.state)


def test_a_dead_backend_is_mended_and_the_others_go_on(served: _Served, tmp_path: Path) -> None:
    good = write_version(tmp_path / "good", "tpp-good", linear_decoder("tpp-good"))
    life.publish(served.settings, good, served.server)

    def backends() -> dict[int, int]:
        found = {}
        for process in processes.find_marked(served.state.root, "triton"):
            for word in process.cmdline()[1:2]:
                if word.endswith("/model.py"):
                    found[int(Path(word).parent.name)] = process.pid
        return found

    before = backends()
    assert sorted(before) == [1, 2]
    with _streaming(served):  # version 1
        victim = next(
            p for p in processes.find_marked(served.state.root, "triton") if p.pid == before[2]
        )
        rollout = rollouts.read_rollout(served.root)
        assert rollout.in_charge == 1
        victim.kill()
        with pytest.raises(ServerRefusedError, match="is not healthy"):
            served.server.ask(2, _questions())
        assert triton.mend(served.state)
        assert served.server.ask(2, _questions()).shape == (128, 32)
    assert backends()[2] != before[2]
