"""The stack as one thing: up twice, mended, down, cut short; `sleep` in place of the servers.

The last test (marker `stack`) starts the real ones.
"""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from deploy.stack import kafka, processes, stack, triton
from deploy.stack.options import SERVICES, Service, StackError, StackOptions
from deploy.stack.record import StackState

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def options(tmp_path: Path) -> StackOptions:
    return StackOptions(root=tmp_path / "stack", start_timeout_s=20.0)


def start_marked(root: Path, service: str, script: str) -> psutil.Process:
    return processes.start_process(
        root,
        service,
        ["/bin/sh", "-c", script],
        output=root / "logs" / f"{service}.out",
        environment={"PATH": os.environ["PATH"]},
        folder=root,
    )


@pytest.fixture
def sleepers(monkeypatch: pytest.MonkeyPatch, options: StackOptions) -> Iterator[StackOptions]:
    """A stack whose servers sleep and are ready at once."""

    def starter(service: Service) -> Callable[[StackState], psutil.Process]:
        return lambda state: start_marked(state.root, service, "exec sleep 300")

    for name in SERVICES:
        monkeypatch.setitem(stack.START, name, starter(name))
        monkeypatch.setitem(stack.PROBE, name, lambda _state: None)
    yield options
    processes.stop_processes(processes.find_marked(options.root), 0.0)


# --- up, down, status with servers that sleep --------------------------------------------------


def pids(state: StackState) -> dict[Service, int]:
    return {name: one.pid for name, one in state.processes.items()}


def test_up_twice_changes_nothing_and_mends_what_died(sleepers: StackOptions) -> None:
    first = stack.up(sleepers)
    assert set(first.processes) == set(SERVICES)
    assert stack.up(sleepers) == first
    killed = stack.kill(sleepers.root, "kafka")
    assert {one.name: one.condition for one in stack.status(sleepers.root)} == {
        "kafka": "down",
        "triton": "up",
        "jobmanager": "up",
        "taskmanager": "up",
    }
    mended = stack.up(sleepers)
    assert pids(mended)["kafka"] != killed
    assert {**pids(mended), "kafka": killed} == pids(first)
    assert mended.ports == first.ports
    assert stack.load_state(sleepers.root) == mended
    restarted = stack.restart(sleepers.root, "taskmanager")
    assert {
        name for name in SERVICES if pids(restarted)[name] != pids(mended)[name]
    } == {"taskmanager"}  # fmt: skip
    with pytest.raises(StackError, match=r"other options \(task_slots\)"):
        stack.up(replace(sleepers, task_slots=2))
    stack.down(sleepers.root)
    assert processes.find_marked(sleepers.root) == []
    assert sorted(path.name for path in sleepers.root.iterdir()) == ["logs"]
    assert {one.condition for one in stack.status(sleepers.root)} == {"down"}
    with pytest.raises(StackError, match="no stack in"):
        stack.load_state(sleepers.root)
    stack.down(sleepers.root)


@pytest.mark.parametrize("broken", [None, "{"])
def test_down_needs_no_state_file(sleepers: StackOptions, broken: str | None) -> None:
    stack.up(sleepers)
    path = sleepers.root / "state.json"
    path.unlink()
    if broken is not None:
        path.write_text(broken)
    assert len(processes.find_marked(sleepers.root)) == 4
    stack.down(sleepers.root, purge=True)
    assert processes.find_marked(sleepers.root) == []
    assert list(sleepers.root.iterdir()) == []


def test_a_server_that_dies_while_starting_shows_its_log(
    sleepers: StackOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        stack.START, "triton", lambda state: start_marked(state.root, "triton", "echo no memory")
    )
    monkeypatch.setitem(stack.PROBE, "triton", lambda _state: "nothing listens")
    with pytest.raises(StackError, match=r"(?s)triton died while starting.*no memory"):
        stack.up(sleepers)
    assert processes.find_marked(sleepers.root) == []
    assert not (sleepers.root / "state.json").exists()
    assert not (sleepers.root / "lock").exists()


def test_a_failed_mend_leaves_what_ran(
    sleepers: StackOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = stack.up(sleepers)
    stack.kill(sleepers.root, "kafka")
    monkeypatch.setitem(stack.PROBE, "kafka", lambda _state: "no broker")
    with pytest.raises(StackError, match=r"kafka is not ready after 0 s: no broker"):
        stack.up(replace(sleepers, start_timeout_s=0.3))
    left = {process.pid for process in processes.find_marked(sleepers.root)}
    assert left == set(pids(first).values()) - {pids(first)["kafka"]}


def test_ctrl_c_while_starting_leaves_nothing(
    sleepers: StackOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_state: StackState) -> str | None:
        os.kill(os.getpid(), signal.SIGINT)
        return "not yet"

    monkeypatch.setitem(stack.PROBE, "kafka", interrupt)
    # A shell's background job begins with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            stack.up(sleepers)
    finally:
        signal.signal(signal.SIGINT, before)
    assert processes.find_marked(sleepers.root) == []
    assert not (sleepers.root / "lock").exists()


def test_a_server_of_the_user_is_checked_and_never_started(
    sleepers: StackOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack, "REPLY_TIMEOUT_S", 0.2)
    monkeypatch.setitem(stack.PROBE, "kafka", kafka.probe)
    port = processes.pick_ports([0])[0]
    with pytest.raises(StackError, match=rf"kafka at 127\.0\.0\.1:{port}: nothing listens"):
        stack.up(replace(sleepers, kafka=f"127.0.0.1:{port}"))
    monkeypatch.setitem(stack.PROBE, "kafka", lambda _state: None)
    state = stack.up(replace(sleepers, kafka=f"127.0.0.1:{port}"))
    assert "kafka" not in state.processes
    assert "kafka" not in state.ports
    assert stack.status(sleepers.root)[0].condition == "external"
    with pytest.raises(StackError, match="not ours to restart"):
        stack.restart(sleepers.root, "kafka")
    stack.down(sleepers.root)


def test_a_port_that_another_program_took_is_named(sleepers: StackOptions) -> None:
    state = stack.up(sleepers)
    stack.kill(sleepers.root, "kafka")
    with (
        socket.create_server(("127.0.0.1", state.ports["kafka"])),
        pytest.raises(StackError, match=rf"kafka must come back on port {state.ports['kafka']}"),
    ):
        stack.up(sleepers)


# --- the real servers --------------------------------------------------------------------------


@pytest.mark.stack
@pytest.mark.timeout(900)
def test_the_real_stack_comes_up_mends_itself_and_leaves_nothing(tmp_path: Path) -> None:
    venv = Path(os.environ.get("EDDY_TEST_TRITON_VENV", REPOSITORY / ".venv-triton"))
    options = StackOptions(root=tmp_path / "stack", triton_venv=venv, start_timeout_s=240.0)
    root = options.root
    try:
        first = stack.up(options)
        assert stack.up(options) == first
        assert [one.condition for one in stack.status(root)] == ["up"] * 4
        listening = [
            one.laddr.ip
            for service in SERVICES
            for process in processes.find_marked(root, service)
            for one in process.net_connections("tcp")
            if one.status == psutil.CONN_LISTEN
        ]
        assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
        stack.create_topics(first, {"payments": 2})
        stack.create_topics(first, {"payments": 2})
        assert len(kafka.admin(first).list_topics(timeout=10).topics["payments"].partitions) == 2
        for service in SERVICES:
            stack.kill(root, service)
        mended = stack.up(options)
        assert mended.ports == first.ports
        assert not set(pids(mended).values()) & set(pids(first).values())
        assert [one.condition for one in stack.status(root)] == ["up"] * 4
        assert "payments" in kafka.admin(mended).list_topics(timeout=10).topics
        # A dead backend process: the server says that it is ready, the canary does not.
        stubs = [one for one in processes.find_marked(root, "triton") if "stub" in one.name()]
        for one in stubs:
            one.kill()
        assert stack.up(options) == mended
        assert stack.status(root)[1].condition == "up"
        assert triton.regions(root)
        # As after a kill -9 of everything: servers dead, their children and regions alive.
        stack.kill(root, "triton")
    finally:
        stack.down(root)
    assert processes.find_marked(root) == []
    assert triton.regions(root) == []
    assert not {"state.json", "lock"} & {path.name for path in root.iterdir()}
    assert list(root.rglob(".lock")) == []
