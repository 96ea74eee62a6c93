"""Jobs on the cluster: submitted by Flink's own client, followed through its REST API."""

import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from deploy.stack import flink, rest
from deploy.stack.options import StackError
from deploy.stack.processes import marks, tail
from deploy.stack.record import StackState

FINAL = ("FAILED", "CANCELED", "FINISHED", "SUSPENDED")
# The REST API takes names of metrics in the address, whose length is limited.
METRICS_PER_REQUEST = 40
POLL_S = 0.2
METRICS_TIMEOUT_S = 5.0
OUTPUT_LINES = 30


@dataclass(frozen=True)
class JobInfo:
    """One job of the cluster.

    Attributes:
        job_id: 32 hexadecimal digits.
        name: as the job named itself.
        state: RUNNING, RESTARTING, FAILED, CANCELED, ...
        start_ms: when it was submitted, epoch ms.
        duration_ms: how long it has been there.
        running_tasks: tasks that run.
        tasks: all tasks; the job works when both are equal.
    """

    job_id: str
    name: str
    state: str
    start_ms: int
    duration_ms: int
    running_tasks: int
    tasks: int


def submit_job(
    state: StackState,
    script: Path | str,
    args: Sequence[str] = (),
    jars: Sequence[Path] = (),
    *,
    savepoint_path: str | None = None,
    timeout_s: float = 180.0,
) -> str:
    """Submit a Python job, detached, and return its id.

    Args:
        state: the stack.
        script: file of the job, or the dotted name of a module (`flink_jobs.detect`).
        args: its arguments.
        jars: jars that the job needs, such as `state.connector_jar`; the first travels with the
            job, the others must be readable by the cluster under the same path.
        savepoint_path: savepoint or checkpoint to begin from.
        timeout_s: limit for the whole.

    Raises:
        StackError: the job was not submitted; the message shows why.
    """
    flink.write_config(state)
    settings = flink.configuration(state)
    (state.root / "flink" / "tmp").mkdir(parents=True, exist_ok=True)
    state.logs.mkdir(parents=True, exist_ok=True)
    text = str(script)
    is_file = text.endswith(".py") or Path(text).is_file()
    command = [
        *flink.java_command(state, "client", settings),
        "org.apache.flink.client.cli.CliFrontend",
        "run",
        "--detached",
        *(("--fromSavepoint", savepoint_path) if savepoint_path else ()),
        *(("--jarfile", str(jars[0])) if jars else ()),
        *(part for jar in jars[1:] for part in ("--classpath", Path(jar).absolute().as_uri())),
        *("-pyexec", settings["python.executable"]),
        *("-pyclientexec", settings["python.client.executable"]),
        *(("--python", str(Path(text).absolute())) if is_file else ("--pyModule", text)),
        *args,
    ]
    try:
        done = subprocess.run(
            command,
            env={**flink.environment(state), **marks(state.root, "client")},
            cwd=state.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise StackError(
            f"{text} was not submitted within {timeout_s:.0f} s\n{tail(state.log('client'))}"
        ) from error
    except OSError as error:
        raise StackError(f"Flink's client cannot be started: {error}") from error
    (state.logs / "client.out").write_text(done.stdout, "utf-8")
    found = re.findall(r"has been submitted with JobID ([0-9a-f]{32})", done.stdout)
    if done.returncode != 0 or not found:
        raise StackError(f"{text} was not submitted (exit {done.returncode}):\n{_why(done.stdout)}")
    return str(found[-1])


def _why(output: str) -> str:
    """Keep what tells a reader the cause: a Python traceback, else Java's causes, else the end."""
    lines = output.strip().splitlines()
    trace = [place for place, line in enumerate(lines) if line.startswith("Traceback (")]
    causes = [line.strip() for line in lines if line.strip().startswith("Caused by:")]
    shown = lines[trace[-1] :][:OUTPUT_LINES] if trace else lines[-OUTPUT_LINES:]
    return "\n".join([*shown, *causes[-3:]])


def jobs(state: StackState) -> list[JobInfo]:
    """List the jobs that the cluster knows, the newest first.

    Raises:
        StackError: the cluster does not answer.
    """
    found = []
    for one in rest.get(state, "/jobs/overview").get("jobs", []):
        tasks = one.get("tasks", {})
        found.append(
            JobInfo(
                job_id=one["jid"],
                name=one["name"],
                state=one["state"],
                start_ms=int(one["start-time"]),
                duration_ms=int(one["duration"]),
                running_tasks=int(tasks.get("running", 0)),
                tasks=int(tasks.get("total", 0)),
            )
        )
    return sorted(found, key=lambda job: -job.start_ms)


def job(state: StackState, job_id: str) -> JobInfo:
    """Look a job up.

    Raises:
        StackError: the cluster does not answer or knows no such job.
    """
    for found in jobs(state):
        if found.job_id == job_id:
            return found
    raise StackError(f"Flink knows no job {job_id}")


def wait_until_running(state: StackState, job_id: str, timeout_s: float = 120.0) -> JobInfo:
    """Wait until every task of a job runs.

    Raises:
        StackError: the job ended, or not all of it runs in time; the message shows its exception.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        found = job(state, job_id)
        if found.state == "RUNNING" and found.tasks and found.running_tasks == found.tasks:
            return found
        if found.state in FINAL or time.monotonic() > deadline:
            raise StackError(
                f"job {job_id} is {found.state}, {found.running_tasks} of {found.tasks} tasks run; "
                f"{exceptions(state, job_id) or 'no exception is known'}"
            )
        time.sleep(POLL_S)


def exceptions(state: StackState, job_id: str) -> str:
    """Give the newest exception of a job, or ""."""
    history = rest.get(state, f"/jobs/{job_id}/exceptions").get("exceptionHistory", {})
    entries = history.get("entries", []) if isinstance(history, dict) else []
    return str(entries[0].get("stacktrace", "")) if entries else ""


def cancel_job(state: StackState, job_id: str, timeout_s: float = 60.0) -> None:
    """Cancel a job and wait until it is gone; one that ended already does no harm.

    Raises:
        StackError: it does not end in time.
    """
    if job(state, job_id).state in FINAL:
        return
    try:
        rest.patch(state, f"/jobs/{job_id}?mode=cancel")
    except rest.RestError as error:
        # It ended between the question and the order.
        if error.status != 409:
            raise
    deadline = time.monotonic() + timeout_s
    while (found := job(state, job_id)).state not in FINAL:
        if time.monotonic() > deadline:
            raise StackError(f"job {job_id} is still {found.state} after {timeout_s:.0f} s")
        time.sleep(POLL_S)


def savepoint(
    state: StackState,
    job_id: str,
    folder: Path | str | None = None,
    *,
    stop: bool = False,
    timeout_s: float = 120.0,
) -> str:
    """Write a savepoint and return where it lies.

    Args:
        state: the stack.
        job_id: the job.
        folder: where to write it; None is the cluster's own folder.
        stop: end the job with it, so that nothing is processed after it.
        timeout_s: limit for the whole.

    Raises:
        StackError: Flink refuses, fails or takes too long.
    """
    target: str | None = None
    if folder is not None:
        text = str(folder)
        target = text if "://" in text else Path(text).absolute().as_uri()
    body: dict[str, Any] = {} if target is None else {
        ("targetDirectory" if stop else "target-directory"): target
    }  # fmt: skip
    action = "stop" if stop else "savepoints"
    request = rest.post(state, f"/jobs/{job_id}/{action}", body)["request-id"]
    deadline = time.monotonic() + timeout_s
    while True:
        answer = rest.get(state, f"/jobs/{job_id}/savepoints/{request}")
        if answer["status"]["id"] == "COMPLETED":
            operation = answer["operation"]
            if "location" in operation:
                return str(operation["location"])
            cause = operation.get("failure-cause", {})
            raise StackError(
                f"the savepoint of {job_id} failed: {cause.get('class')}\n"
                f"{str(cause.get('stack-trace', ''))[: rest.MESSAGE_CHARACTERS]}"
            )
        if time.monotonic() > deadline:
            raise StackError(f"no savepoint of {job_id} after {timeout_s:.0f} s")
        time.sleep(POLL_S)


def checkpoints(state: StackState, job_id: str) -> dict[str, Any]:
    """Give Flink's checkpoint statistics: counts, summary, latest, history."""
    return rest.get(state, f"/jobs/{job_id}/checkpoints")


def latest_checkpoint(state: StackState, job_id: str) -> str | None:
    """Give the path of a job's newest complete checkpoint, from which it can be submitted again."""
    latest = (checkpoints(state, job_id).get("latest") or {}).get("completed") or {}
    path = latest.get("external_path")
    return None if path in (None, "", "<checkpoint-not-externally-addressable>") else str(path)


def metric_names(state: StackState, base: str) -> list[str]:
    """List a vertex's metrics; the first question only makes Flink fetch them."""
    deadline = time.monotonic() + METRICS_TIMEOUT_S
    while True:
        names = [str(entry["id"]) for entry in rest.get_list(state, base)]
        # Its own counters come with the first fetch, those of its operators a moment later.
        if "numRecordsIn" in names or time.monotonic() > deadline:
            return names
        time.sleep(POLL_S)


def job_metrics(
    state: StackState, job_id: str, names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Read metrics of each vertex of a job, summed over its subtasks.

    Args:
        state: the stack.
        job_id: the job.
        names: metrics by their last part: `numRecordsOut` finds the task's own and, as
            `0.Source__payments.numRecordsOut`, those of its operators.

    Returns:
        By the vertex's name, by the metric's full name, the sum. What Flink does not know is
        absent.

    Raises:
        StackError: the cluster does not answer or knows no such job.
    """
    found: dict[str, dict[str, float]] = {}
    for vertex in rest.get(state, f"/jobs/{job_id}").get("vertices", []):
        base = f"/jobs/{job_id}/vertices/{vertex['id']}/subtasks/metrics"
        known = metric_names(state, base)
        wanted = [
            entry
            for entry in known
            if any(entry == name or entry.endswith(f".{name}") for name in names)
        ]
        values: dict[str, float] = {}
        for first in range(0, len(wanted), METRICS_PER_REQUEST):
            part = ",".join(quote(entry, safe="") for entry in wanted[first:][:METRICS_PER_REQUEST])
            for entry in rest.get_list(state, f"{base}?get={part}&agg=sum"):
                values[entry["id"]] = float(entry["sum"])
        found[vertex["name"]] = values
    return found
