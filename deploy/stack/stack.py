"""The local stack as one thing: up, down, status, and single services for fault tests.

state = up(StackOptions(root=Path(".eddy")))
job_id = submit_job(state, "flink_jobs.detect", args, [state.connector_jar])
down(state.root)
"""

import contextlib
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

import psutil

from deploy.counted import counted
from deploy.stack import flink, kafka, record, rest, triton
from deploy.stack.jobs import JobInfo as JobInfo
from deploy.stack.jobs import cancel_job as cancel_job
from deploy.stack.jobs import checkpoints as checkpoints
from deploy.stack.jobs import job as job
from deploy.stack.jobs import job_metrics as job_metrics
from deploy.stack.jobs import jobs as jobs
from deploy.stack.jobs import latest_checkpoint as latest_checkpoint
from deploy.stack.jobs import savepoint as savepoint
from deploy.stack.jobs import submit_job as submit_job
from deploy.stack.jobs import wait_until_running as wait_until_running
from deploy.stack.kafka import create_topics as create_topics
from deploy.stack.options import (
    SERVICES,
    Condition,
    Service,
    ServiceStatus,
    StackError,
    StackOptions,
    differences,
)
from deploy.stack.processes import (
    exclusive,
    find_marked,
    find_process,
    pick_ports,
    port_is_free,
    stop_processes,
    tail,
)
from deploy.stack.record import USUAL_PORTS, Recorded, StackState

PORTS_OF: dict[Service, tuple[str, ...]] = {
    "kafka": ("kafka", "kafka_controller"),
    "triton": ("triton_http", "triton_grpc", "triton_metrics"),
    "jobmanager": ("flink_rest", "flink_rpc"),
    "taskmanager": (),
}
START: dict[Service, Callable[[StackState], psutil.Process]] = {
    "kafka": kafka.start,
    "triton": triton.start,
    "jobmanager": lambda state: flink.start(state, "jobmanager"),
    "taskmanager": lambda state: flink.start(state, "taskmanager"),
}
PROBE: dict[Service, Callable[[StackState], str | None]] = {
    "kafka": kafka.probe,
    "triton": triton.probe,
    "jobmanager": flink.probe_jobmanager,
    "taskmanager": flink.probe_taskmanager,
}
PROBE_EVERY_S = 0.1
STOP_GRACE_S = 10.0
LOCK_TIMEOUT_S = 180.0
REPLY_TIMEOUT_S = 5.0


def up(options: StackOptions, report: Callable[[str], None] | None = None) -> StackState:
    """Start what does not run and wait until everything answers; what runs is left alone.

    Args:
        options: what to run, and where.
        report: told of each step, one line each; called from several threads.

    Returns:
        The state of the running stack.

    Raises:
        StackError: a server died or was not ready in time (its log's tail is in the message), or
            a stack with other options runs in the same folder. What this call started is stopped.
    """
    with exclusive(options.root, LOCK_TIMEOUT_S):
        state = _plan(options)
        missing = [name for name in options.owned() if _process(state, name) is None]
        record.save(state)
        runner = _Runner(state, options.start_timeout_s, report or (lambda _line: None))
        try:
            runner.run(missing)
        except BaseException:
            # Ctrl-C too: nothing of a stack that did not come up stays behind.
            runner.cancelled.set()
            _stop(runner.state, missing, grace_s=3.0)
            if not any(_process(runner.state, name) for name in options.owned()):
                _forget(runner.state)
            raise
        return runner.state


def down(root: Path, *, purge: bool = False) -> None:
    """Stop everything of the stack in a folder and remove what it holds outside and in it.

    Works whatever happened before: a kill -9 of eddy or of a server, a broken state file.

    Args:
        root: the stack's folder.
        purge: remove data and logs too; by default Kafka's data, checkpoints and logs stay.

    Raises:
        StackError: another eddy holds the stack, or a process does not die.
    """
    root = root.absolute()
    if not root.is_dir():
        return
    with exclusive(root, LOCK_TIMEOUT_S):
        state = None
        # A state that cannot be read must not keep processes alive: their marks find them.
        with contextlib.suppress(StackError):
            state = record.load(root)
        _stop(state or StackState(StackOptions(root=root), {}), SERVICES, STOP_GRACE_S)
        # Clients, and whatever else carries the mark.
        stop_processes(find_marked(root), grace_s=2.0)
        left = find_marked(root)
        if left:
            raise StackError(f"these processes do not die: {[process.pid for process in left]}")
        _forget(state or StackState(StackOptions(root=root), {}))
        if purge:
            for part in ("kafka", "triton", "flink", "logs"):
                shutil.rmtree(root / part, ignore_errors=True)


def status(root: Path) -> list[ServiceStatus]:
    """Look at each service of the stack in a folder; changes nothing, needs no lock."""
    state = record.load(root)
    if state is None:
        return [ServiceStatus(name, "down") for name in SERVICES]
    with ThreadPoolExecutor(len(SERVICES)) as pool:
        return list(pool.map(lambda name: _status(state, name), SERVICES))


def load_state(root: Path) -> StackState:
    """Read the state of the stack in a folder.

    Raises:
        StackError: there is none.
    """
    state = record.load(root)
    if state is None:
        raise StackError(f"no stack in {root}; start one with `eddy up`")
    return state


def kill(root: Path, service: Service, *, number: int = signal.SIGKILL) -> int:
    """Send a signal to one server and only to it; for fault tests.

    What it leaves behind (Python workers, backend processes, regions) stays until `restart`, `up`
    or `down`, as it would in a real fault.

    Returns:
        The pid that was signalled.

    Raises:
        StackError: it does not run, or is not ours.
    """
    process = _process(load_state(root), service)
    if process is None:
        raise StackError(f"{service} does not run in {root}")
    process.send_signal(number)
    if number == signal.SIGKILL:
        with contextlib.suppress(psutil.Error, psutil.TimeoutExpired):
            process.wait(REPLY_TIMEOUT_S)
    return int(process.pid)


def restart(root: Path, service: Service) -> StackState:
    """Stop one server, if it runs, and start it anew on its ports; wait until it is ready.

    A new JobManager knows nothing of the jobs of the old one: submit them again, from
    `latest_checkpoint`.

    Raises:
        StackError: it is the user's own, died, or was not ready in time.
    """
    with exclusive(root.absolute(), LOCK_TIMEOUT_S):
        state = load_state(root)
        if state.options.external(service):
            raise StackError(f"{service} is not ours to restart")
        _stop(state, [service], STOP_GRACE_S)
        runner = _Runner(
            state.with_process(service, None), state.options.start_timeout_s, lambda _line: None
        )
        runner.run([service], others=False)
        return runner.state


class _Runner:
    """Starts services side by side and records each as soon as it has a pid."""

    def __init__(self, state: StackState, timeout_s: float, report: Callable[[str], None]) -> None:
        self.state = state
        self.cancelled = threading.Event()
        self._timeout_s = timeout_s
        self._report = report
        self._guard = threading.Lock()

    def run(self, missing: Iterable[Service], *, others: bool = True) -> None:
        """Start the missing services, wait for them and, with `others`, for all the rest."""
        missing = list(missing)
        waited = SERVICES if others else missing
        with ThreadPoolExecutor(len(SERVICES)) as pool:
            try:
                futures = [pool.submit(self._bring_up, name, name in missing) for name in waited]
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in done:
                    if future.exception() is not None:
                        raise future.exception() or StackError("unknown")
            finally:
                # A failure of one, or Ctrl-C, ends the wait of the others.
                self.cancelled.set()

    def _bring_up(self, service: Service, start: bool) -> None:
        began = time.monotonic()
        process: psutil.Process | None = None
        if start:
            self._report(f"{service}: starting")
            process = START[service](self.state)
            with self._guard:
                recorded = Recorded(process.pid, process.create_time())
                self.state = self.state.with_process(service, recorded)
                record.save(self.state)
        elif service == "triton" and not self.state.options.external(service):
            # A dead backend process answers errors while the server says that it is ready.
            with contextlib.suppress(StackError):
                if triton.probe(self.state) is not None:
                    triton.mend(self.state)
        self._wait_ready(service, began + self._timeout_s)
        if start and service == "triton":
            triton.note_folders(self.state)
        self._report(f"{service}: ready after {time.monotonic() - began:.1f} s")

    def _wait_ready(self, service: Service, deadline: float) -> None:
        state = self.state
        while not self.cancelled.is_set():
            with self._guard:
                state = self.state
            try:
                reason = PROBE[service](state)
            except StackError as error:
                left_out = triton.leave_out_broken(state) if service == "triton" else []
                if left_out:
                    self._report(f"triton: goes without version {left_out}, which does not load")
                    continue
                raise StackError(f"{service}: {error}\n{_tail(state, service)}") from error
            if reason is None:
                return
            if state.options.external(service):
                # The user's own server was there before us: it answers soon or is not there.
                if time.monotonic() > deadline - self._timeout_s + REPLY_TIMEOUT_S:
                    raise StackError(f"{service} at {_address(state, service)}: {reason}")
            elif service in state.processes and _process(state, service) is None:
                raise StackError(f"{service} died while starting\n{_tail(state, service)}")
            elif time.monotonic() > deadline:
                raise StackError(
                    f"{service} is not ready after {self._timeout_s:.0f} s: {reason}\n"
                    f"{_tail(state, service)}"
                )
            time.sleep(PROBE_EVERY_S)


def _plan(options: StackOptions) -> StackState:
    """Take over the recorded stack, or choose ports for a new one."""
    recorded: StackState | None = None
    with contextlib.suppress(StackError):
        recorded = record.load(options.root)
    running = [
        name for name in SERVICES if recorded is not None and _process(recorded, name) is not None
    ]
    if recorded is not None and running:
        changed = differences(recorded.options, options)
        if changed:
            raise StackError(
                f"a stack with other options ({', '.join(changed)}) runs in {options.root}; "
                "run `eddy down` first"
            )
    keys = [key for name in options.owned() for key in PORTS_OF[name]]
    if recorded is None or not running:
        # What is left of a stack that was never taken down would hold ports and folders.
        stop_processes(find_marked(options.root), grace_s=0.0)
        # Clients that knew the former stack find it again where its ports are free.
        known = recorded.ports if recorded is not None else {}
        chosen = pick_ports([known.get(key, USUAL_PORTS[key]) for key in keys])
        return StackState(options, dict(zip(keys, chosen, strict=True)))
    state = replace(recorded, options=options)
    for name in options.owned():
        if name not in running:
            state = state.with_process(name, None)
            # Clients know the old port, so a new one is no mend.
            taken = [state.ports[key] for key in PORTS_OF[name] if not _wait_free(state.ports[key])]
            if taken:
                raise StackError(
                    f"{name} must come back on port {taken[0]}, which another program has taken; "
                    "end that, or run `eddy down` and `eddy up`"
                )
    return state


def _wait_free(port: int) -> bool:
    deadline = time.monotonic() + 2.0
    while not port_is_free(port):
        if time.monotonic() > deadline:
            return False
        time.sleep(PROBE_EVERY_S)
    return True


def _process(state: StackState, service: Service) -> psutil.Process | None:
    recorded = state.processes.get(service)
    if recorded is None:
        return None
    return find_process(state.root, service, recorded.pid, recorded.created)


def _stop(state: StackState, services: Iterable[Service], grace_s: float) -> None:
    """Stop servers side by side, then all that they left behind."""
    services = [name for name in services if not state.options.external(name)]
    servers = [found for name in services if (found := _process(state, name)) is not None]
    stop_processes(servers, grace_s)
    for name in services:
        stop_processes(find_marked(state.root, name), grace_s=1.0)
    if "triton" in services:
        triton.clean(state)
    if "kafka" in services:
        kafka.clean(state)


def _forget(state: StackState) -> None:
    flink.remove_temporary(state)
    (state.root / "state.json").unlink(missing_ok=True)
    (state.root / "state.json.partial").unlink(missing_ok=True)


def _tail(state: StackState, service: Service) -> str:
    return tail(state.output(service), state.log(service))


def _address(state: StackState, service: Service) -> str:
    addresses: Mapping[Service, str] = {
        "kafka": state.bootstrap_servers,
        "triton": state.triton_endpoint,
        "jobmanager": state.flink_url,
    }
    return addresses.get(service, "")


def _status(state: StackState, service: Service) -> ServiceStatus:
    external = state.options.external(service)
    line = ServiceStatus(service, "external" if external else "down", _address(state, service))
    process = None if external else _process(state, service)
    if not external:
        line = replace(line, log=state.log(service))
        if process is None:
            was = service in state.processes
            return replace(line, detail="it died; `eddy up` mends it" if was else "")
    try:
        reason = PROBE[service](state)
    except StackError as error:
        reason = str(error)
    detail = reason or _detail(state, service)
    if process is None:
        return replace(line, detail=detail, condition="external" if reason is None else "failing")
    try:
        uptime_s = max(0.0, time.time() - process.create_time())
    except psutil.Error:
        return replace(line, detail="it died a moment ago")
    young = uptime_s < state.options.start_timeout_s
    condition: Condition = "up" if reason is None else ("starting" if young else "failing")
    return replace(line, condition=condition, pid=process.pid, uptime_s=uptime_s, detail=detail)


def _detail(state: StackState, service: Service) -> str:
    if service == "triton":
        left_out = triton.versions_left_out(state)
        without = f", {left_out} does not load" if left_out else ""
        return f"serves {state.options.model_name}/{triton.version_in_charge(state)}{without}"
    if service == "taskmanager":
        with contextlib.suppress(rest.RestError):
            overview = rest.get(state, "/overview", REPLY_TIMEOUT_S)
            total = overview["slots-total"]
            return f"{counted(total, 'slot')}, {overview['slots-available']} free"
    return ""
