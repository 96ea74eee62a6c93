"""Child processes that outlive their parent: started, found again, stopped, never by name.

Each child and all that it starts inherit two environment variables (which stack, which service).
A process belongs to a stack when its environment says so, whoever its parent is by now: so the
Python workers of a killed TaskManager and the backend processes of a killed Triton are found.
"""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from deploy.stack.options import StackError

# The underscore in front keeps them apart from EDDY_*, which are settings of the job.
ROOT_MARK = "_EDDY_STACK_ROOT"
SERVICE_MARK = "_EDDY_STACK_SERVICE"
HOST = "127.0.0.1"
TAIL_LINES = 40
TAIL_BYTES = 64 * 1024
POLL_S = 0.05


def port_is_free(port: int) -> bool:
    """Say whether a server could listen on 127.0.0.1:port now."""
    # Every address as well: another program may have the port on all of them.
    for host in (HOST, ""):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            # As servers do: a connection in TIME_WAIT does not keep them from the port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                return False
    return True


def pick_ports(usual: Sequence[int]) -> list[int]:
    """Choose one free port for each usual one: itself, or any free one where it is taken.

    Args:
        usual: ports wanted; 0 asks for any.

    Returns:
        As many different ports, none of which is listened on at this moment.
    """
    chosen: list[int] = []
    with contextlib.ExitStack() as held:
        for port in usual:
            if port and port not in chosen and port_is_free(port):
                chosen.append(port)
                continue
            # Held open until all are chosen, so that no two of them are the same.
            probe = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            probe.bind((HOST, 0))
            chosen.append(int(probe.getsockname()[1]))
    return chosen


def port_answers(host: str, port: int, timeout_s: float = 0.5) -> bool:
    """Say whether something accepts a TCP connection there."""
    try:
        with socket.create_connection((host, port), timeout=timeout_s):
            return True
    except OSError:
        return False


def marks(root: Path, service: str) -> dict[str, str]:
    """Give the environment variables that make a process one of this stack."""
    return {ROOT_MARK: str(root), SERVICE_MARK: service}


def start_process(
    root: Path,
    service: str,
    command: Sequence[str],
    *,
    output: Path,
    environment: Mapping[str, str],
    folder: Path,
) -> psutil.Process:
    """Start a marked child in a session of its own, so that it outlives us and Ctrl-C.

    Args:
        root: the stack's folder.
        service: name of the service that it is.
        command: program and arguments.
        output: file to which its standard output and error are appended.
        environment: its whole environment, to which the marks are added.
        folder: its working folder.

    Raises:
        StackError: the program cannot be started.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with output.open("ab") as sink:
            child = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**environment, **marks(root, service)},
                start_new_session=True,
            )
    except OSError as error:
        raise StackError(f"{service} cannot be started: {command[0]}: {error}") from error
    # It outlives this object: `reap` collects it, or init does once we are gone. Without a return
    # code Popen would warn that it still runs.
    child.returncode = 0
    return psutil.Process(child.pid)


def reap(pid: int) -> None:
    """Collect a dead child of ours, so that it does not stay as a zombie."""
    with contextlib.suppress(ChildProcessError, OSError):
        os.waitpid(pid, os.WNOHANG)


def find_process(root: Path, service: str, pid: int, created: float) -> psutil.Process | None:
    """Find the process that was recorded, unless it died or its pid is another's by now.

    Args:
        root: the stack's folder.
        service: name of the service that it is.
        pid: its process id.
        created: when it started, epoch seconds.
    """
    reap(pid)
    try:
        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return None
        # The start time is derived from the boot time, which a change of the clock moves: the
        # marks decide where they can be read.
        try:
            environment = _environment(process)
        except psutil.AccessDenied:
            return process if abs(process.create_time() - created) < 1.0 else None
    except psutil.Error:
        return None
    mine = environment.get(ROOT_MARK) == str(root) and environment.get(SERVICE_MARK) == service
    return process if mine else None


def _environment(process: psutil.Process) -> dict[str, str]:
    """Read a process's environment; while it executes a program there is none for a moment."""
    deadline = time.monotonic() + 1.0
    while True:
        environment: dict[str, str] = process.environ()
        if environment or time.monotonic() > deadline:
            return environment
        time.sleep(0.01)


def find_marked(root: Path, service: str | None = None) -> list[psutil.Process]:
    """Find every living process of this stack, or of one of its services, orphans included."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            environment = process.environ()
        except (psutil.Error, OSError):
            continue
        if environment.get(ROOT_MARK) == str(root) and (
            service is None or environment.get(SERVICE_MARK) == service
        ):
            found.append(process)
    return found


def stop_processes(processes: Sequence[psutil.Process], grace_s: float) -> None:
    """Ask processes to end, wait, and kill those that did not.

    Args:
        processes: those to end; dead ones do no harm.
        grace_s: seconds between SIGTERM and SIGKILL; 0 kills at once.
    """
    alive = list(processes)
    for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
        if number == signal.SIGTERM and grace_s <= 0.0:
            continue
        for process in alive:
            with contextlib.suppress(psutil.Error):
                # psutil compares start times first: a pid in other hands is not signalled.
                process.send_signal(number)
        deadline = time.monotonic() + wait_s
        while alive and time.monotonic() < deadline:
            alive = [process for process in alive if _alive(process)]
            if alive:
                time.sleep(POLL_S)
        if not alive:
            return


def _alive(process: psutil.Process) -> bool:
    reap(process.pid)
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def tail(*logs: Path, lines: int = TAIL_LINES) -> str:
    """Read the last lines of logs, each under its name; missing and empty ones are left out."""
    parts = []
    for log in logs:
        try:
            with log.open("rb") as source:
                source.seek(0, os.SEEK_END)
                source.seek(max(0, source.tell() - TAIL_BYTES))
                text = source.read().decode("utf-8", "replace").strip()
        except OSError:
            continue
        if text:
            last = "\n".join(text.splitlines()[-lines:])
            parts.append(f"--- last lines of {log} ---\n{last}")
    return "\n".join(parts) or "(its logs are empty)"


@contextlib.contextmanager
def exclusive(root: Path, timeout_s: float) -> Iterator[None]:
    """Hold the stack's lock; the kernel gives it back when the holder dies, however it dies.

    Args:
        root: the stack's folder; made when missing.
        timeout_s: how long to wait for another holder.

    Raises:
        StackError: another process held it all that time.
    """
    root.mkdir(parents=True, exist_ok=True)
    path = root / "lock"
    deadline = time.monotonic() + timeout_s
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before us may have removed the file while we opened it.
            if path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino:
                break
        except BlockingIOError:
            if time.monotonic() >= deadline:
                holder = os.pread(descriptor, 64, 0).decode("ascii", "replace").strip()
                os.close(descriptor)
                raise StackError(
                    f"another eddy (pid {holder or 'unknown'}) has been changing the stack in "
                    f"{root} for {timeout_s:.0f} s; wait for it or end it"
                ) from None
        os.close(descriptor)
        time.sleep(POLL_S)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        # Removed while held: whoever waits sees that its file is not the one on disk any more.
        path.unlink(missing_ok=True)
        os.close(descriptor)
