"""`eddy status`: servers, job and prior, from the first moment to a misfit."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from deploy.stack import job_status, jobs, misfits, stack
from deploy.stack.job_status import JobStatus
from deploy.stack.misfits import PriorMisfit
from deploy.stack.options import SERVICES, ServiceStatus, StackError
from deploy.stack.record import StackState
from tests.deploy.command_line import Run

START_MS = 1_767_600_000_000  # 2026-01-05T08:00:00Z
SERVERS = [
    ServiceStatus("kafka", "up", "127.0.0.1:9092", 41, 3_723.0),
    ServiceStatus("triton", "external", "t:8001", detail="serves intensity"),
    ServiceStatus("jobmanager", "up", "127.0.0.1:8081", 43, 75.0),
]
COUNTS = {
    "parsed": 172_224, "decided": 9, "alerts": 12, "dead_letters": 0, "late": 0, "degraded": 0
}  # fmt: skip


def info(state: str = "RUNNING", running_tasks: int = 3) -> jobs.JobInfo:
    return jobs.JobInfo("ab" * 16, "eddy-detect", state, START_MS, 64_000, running_tasks, 3)


def stand_in(
    monkeypatch: pytest.MonkeyPatch,
    found: Sequence[JobStatus],
    priors: Sequence[PriorMisfit] = (),
    servers: Sequence[ServiceStatus] = SERVERS,
) -> None:
    monkeypatch.setattr(stack, "status", lambda _root: list(servers))
    monkeypatch.setattr(job_status, "job_statuses", lambda _state: list(found))
    monkeypatch.setattr(misfits, "prior_misfits", lambda _state: list(priors))


def words(out: str) -> list[list[str]]:
    return [line.split() for line in out.splitlines()]


def test_without_a_stack_all_is_down_and_the_next_step_is_said(eddy: Run) -> None:
    result = eddy("status", "--json")
    assert result.code == 3
    assert [row["condition"] for row in json.loads(result.out)] == ["down"] * len(SERVICES)
    out = eddy("status").out
    assert "job          none runs; `eddy up` starts the servers, then `eddy run` the job\n" in out
    assert "all kinds  unknown    it is held against what a job scores\n" in out


def test_a_job_that_works_is_one_line(
    eddy: Run, running: StackState, monkeypatch: pytest.MonkeyPatch
) -> None:
    del running
    monkeypatch.setenv("COLUMNS", "80")
    stand_in(monkeypatch, [JobStatus(info(), "running", COUNTS)], [PriorMisfit("eddy", "user")])
    result = eddy("status")
    assert result.code == 0
    assert result.out == (
        "server      condition  up for  address         pid  detail\n"
        "kafka       up         1h 02m  127.0.0.1:9092  41\n"
        "triton      external           t:8001               serves intensity\n"
        "jobmanager  up         1m 15s  127.0.0.1:8081  43\n"
        "\n"
        "job          condition  since (UTC)          events read  alerts  degraded\n"
        "eddy-detect  running    2026-01-05 08:00:00      172,224      12  no\n"
        "\n"
        "prior  condition  detail\n"
        "user   unknown    too few events yet: some 16,000 of a kind are needed\n"
    )


def test_a_job_that_has_told_nothing_yet_has_its_line_and_so_has_the_prior(
    eddy: Run, running: StackState, monkeypatch: pytest.MonkeyPatch
) -> None:
    del running
    stand_in(monkeypatch, [JobStatus(info(), "running", {})])
    lines = eddy("status").out.splitlines()
    assert lines[6].split() == ["eddy-detect", "running", "2026-01-05", "08:00:00", "–", "–", "–"]
    assert lines[7] == "  it has told nothing yet: its workers start with the first event"
    assert lines[-1] == "all kinds  unknown    the job has scored nothing yet"


def test_what_is_wrong_stands_below_in_words(
    eddy: Run, running: StackState, monkeypatch: pytest.MonkeyPatch
) -> None:
    del running
    counts = {**COUNTS, "degraded": 1, "dead_letters": 1, "late": 2_000}
    dead = ServiceStatus("taskmanager", "down", detail="it died; `eddy up` mends it")
    stand_in(monkeypatch, [JobStatus(info(), "running", counts)], (), [*SERVERS, dead])
    result = eddy("status")
    assert result.code == 3
    lines = result.out.splitlines()
    assert lines[5] == "  taskmanager: it died; `eddy up` mends it"
    assert lines[8].endswith("  yes")
    assert lines[9:12] == [
        "  degraded: the intensity model does not answer, the baselines score alone",
        "  1 message could not be read: dead letters",
        "  2,000 events came too late",
    ]


def test_flink_that_does_not_answer_is_no_error_of_the_job(
    eddy: Run, running: StackState, monkeypatch: pytest.MonkeyPatch
) -> None:
    del running
    stand_in(monkeypatch, [])
    assert "job          none; `eddy run` submits one\n" in eddy("status").out

    def gone(_state: StackState) -> list[JobStatus]:
        raise StackError("no answer")

    monkeypatch.setattr(job_status, "job_statuses", gone)
    result = eddy("status")
    assert result.code == 0
    assert "job          unknown; Flink does not answer\n" in result.out


def test_whether_the_prior_fits(
    eddy: Run, running: StackState, monkeypatch: pytest.MonkeyPatch
) -> None:
    del running
    priors = [PriorMisfit("a", "user", 0.29, 0.03), PriorMisfit("b", "user", 0.05, 0.03)]
    stand_in(monkeypatch, [JobStatus(info(), "running", COUNTS)], priors)
    result = eddy("status")
    assert result.code == 0  # a server that is down is another matter
    assert words(result.out)[-2][:6] == ["user", "(a)", "misfit", "values", "0.29,", "gaps"]
    assert words(result.out)[-1][:4] == ["user", "(b)", "fits", "values"]


def test_as_json_each_is_a_row(
    eddy: Run, running: StackState, monkeypatch: pytest.MonkeyPatch
) -> None:
    del running
    priors = [PriorMisfit("eddy-detect", "user", 0.29, 0.03)]
    stand_in(monkeypatch, [JobStatus(info(), "running", COUNTS)], priors)
    *servers, job, prior = json.loads(eddy("status", "--json").out)
    assert [row["service"] for row in servers] == ["kafka", "triton", "jobmanager"]
    assert (job["service"], job["address"], job["uptime_s"], job["start_ms"]) == (
        "job eddy-detect", "ab" * 16, 64.0, START_MS
    )  # fmt: skip
    assert job["degraded"] is False
    assert job["counts"] == {name: n for name, n in COUNTS.items() if name != "degraded"}
    assert (prior["service"], prior["condition"], prior["misfit_value"]) == (
        "prior of user", "misfit", 0.29
    )  # fmt: skip


# ---- what Flink is asked ----


@pytest.fixture
def flink(monkeypatch: pytest.MonkeyPatch) -> list[jobs.JobInfo]:
    """Give the list of jobs that Flink tells of; metrics and exceptions are made up."""
    known: list[jobs.JobInfo] = []
    told = {
        "parse": {"0.parse.eddy.parsed": 70.0, "0.parse.eddy.dead_letters": 1.0},
        "score": {"0.score.eddy.decided": 200.0, "0.score.eddy.degraded": 0.0},
    }
    monkeypatch.setattr(jobs, "jobs", lambda _state: known)
    monkeypatch.setattr(jobs, "job_metrics", lambda _state, _job, _names: told)
    trace = "java.lang.X: restart\n\tat y\nCaused by: a\n  Caused by: ValueError: no such model"
    monkeypatch.setattr(jobs, "exceptions", lambda _state, _job: trace)
    return known


def test_a_running_job_is_asked_for_its_counts(
    running: StackState, flink: list[jobs.JobInfo]
) -> None:
    flink += [info(), info("CANCELED")]
    (found,) = job_status.job_statuses(running)
    assert (found.condition, found.degraded, found.decided) == ("running", False, True)
    assert found.counts == {"parsed": 70, "dead_letters": 1, "decided": 200, "degraded": 0}
    flink[0] = info(running_tasks=1)
    assert job_status.job_statuses(running)[0].condition == "starting"


def test_the_last_of_the_ended_jobs_says_why(
    running: StackState, flink: list[jobs.JobInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert job_status.job_statuses(running) == []
    flink += [info("FAILED"), info("CANCELED")]
    failed = JobStatus(info("FAILED"), "failed", {}, "ValueError: no such model")
    assert job_status.job_statuses(running) == [failed]
    assert failed.degraded is None
    monkeypatch.setattr(jobs, "exceptions", lambda *_: "x" * 999)
    assert job_status.job_statuses(running)[0].detail == "x" * job_status.REASON_CHARACTERS

    def forgotten(*_: object) -> str:
        raise StackError("404")

    monkeypatch.setattr(jobs, "exceptions", forgotten)
    assert job_status.job_statuses(running)[0].detail == ""
