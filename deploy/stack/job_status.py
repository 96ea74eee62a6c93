"""Ask the running jobs how they are: since when, how much they have done, and whether degraded."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from deploy.stack import jobs
from deploy.stack.options import StackError
from deploy.stack.record import StackState

# As `flink_jobs.operators` registers them; all begin at zero when a worker starts.
METRICS = ("parsed", "decided", "alerts", "dead_letters", "late", "degraded")
REASON_CHARACTERS = 300
FETCH_S = 0.6  # Flink needs to fetch metrics from its workers


@dataclass(frozen=True)
class JobStatus:
    """One job on the cluster.

    Attributes:
        job: name, id, and times as Flink tells them.
        condition: "running" when all its tasks run, "starting" when some do not yet, else Flink's
            word for its state ("restarting", "failed", ...).
        counts: by the names of METRICS; what the workers have not told yet is absent.
        detail: why it does not run, or "".
    """

    job: jobs.JobInfo
    condition: str
    counts: Mapping[str, int]
    detail: str = ""

    @property
    def degraded(self) -> bool | None:
        """Whether the last decided batch had no answer of the intensity model; None: not told."""
        told = self.counts.get("degraded")
        return None if told is None else told > 0

    @property
    def decided(self) -> bool:
        """Whether a worker has decided anything since it started."""
        return self.counts.get("decided", 0) > 0


def job_statuses(state: StackState) -> list[JobStatus]:
    """Ask for each job that has not ended or, where all have, for the one that ended last.

    Args:
        state: the stack.

    Returns:
        The newest first; none where the cluster knows no job.

    Raises:
        StackError: Flink does not answer.
    """
    known = jobs.jobs(state)
    alive = [job for job in known if job.state not in jobs.FINAL]
    return [_status(state, job) for job in alive or known[:1]]


def _status(state: StackState, job: jobs.JobInfo) -> JobStatus:
    if job.state != "RUNNING":
        return JobStatus(job, job.state.lower(), {}, _reason(state, job))
    whole = job.tasks > 0 and job.running_tasks == job.tasks
    return JobStatus(job, "running" if whole else "starting", _counts(state, job))


def _counts(state: StackState, job: jobs.JobInfo) -> dict[str, int]:
    wanted = [f"eddy.{name}" for name in METRICS]
    # Flink answers with what it fetched before this question, which may be hours ago, and fetches.
    jobs.job_metrics(state, job.job_id, wanted)
    time.sleep(FETCH_S)
    counts: dict[str, int] = {}
    for vertex in jobs.job_metrics(state, job.job_id, wanted).values():
        for name, value in vertex.items():
            last = name.rpartition(".")[2]
            counts[last] = counts.get(last, 0) + int(value)
    return counts


def _reason(state: StackState, job: jobs.JobInfo) -> str:
    """Return the line of the newest exception that names the cause, or ""."""
    try:
        lines = jobs.exceptions(state, job.job_id).strip().splitlines()
    except StackError:  # it was forgotten a moment ago
        return ""
    causes = [line.strip() for line in lines if line.strip().startswith("Caused by:")]
    reason = causes[-1].removeprefix("Caused by:").strip() if causes else "".join(lines[:1])
    return reason[:REASON_CHARACTERS]
