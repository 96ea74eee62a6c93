"""`eddy status`: the servers, the job, and whether its prior fits."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deploy.commands.options import DEFAULT_ROOT, AsJson, Root, write_json
from deploy.counted import counted
from deploy.stack.options import ServiceStatus, StackError
from deploy.trimmed import Trimmed

if TYPE_CHECKING:
    from deploy.stack.job_status import JobStatus
    from deploy.stack.misfits import PriorMisfit

NOT_UP = 3
UP = ("up", "external")
COLOURS = {
    "up": "green",
    "external": "green",
    "running": "green",
    "fits": "green",
    "starting": "yellow",
    "restarting": "yellow",
    "failing": "red",
    "failed": "red",
    "misfit": "red",
}


def status(as_json: AsJson = False, root: Root = DEFAULT_ROOT) -> None:
    """Show how the servers, the job and its prior are.

    Asks each server, the job what it has done, and whether its prior fits today's stream. Counts
    are those since the job's workers started, and some seconds old. Exit code 3 unless all servers
    are up.
    """
    from deploy.stack import job_status, misfits, record, stack

    services = stack.status(root)
    state = record.load(root)
    jobs: list[JobStatus] = []
    no_job = "none runs; `eddy up` starts the servers, then `eddy run` the job"
    if state is not None:
        try:
            jobs = job_status.job_statuses(state)
            no_job = "none; `eddy run` submits one"
        except StackError:
            no_job = "unknown; Flink does not answer"
    priors = misfits.prior_misfits(state) if state is not None and jobs else []
    if as_json:
        write_json([*map(_row, services), *map(_job_row, jobs), *map(_prior_row, priors)])
    else:
        console = Console(highlight=False)
        _print_servers(console, services)
        console.print()
        _print_jobs(console, jobs, no_job)
        console.print()
        console.print(Trimmed(_priors(jobs, priors)))
    if any(service.condition not in UP for service in services):
        raise typer.Exit(NOT_UP)


def _row(service: ServiceStatus) -> dict[str, object]:
    return {
        "service": service.name,
        "condition": service.condition,
        "address": service.address,
        "pid": service.pid,
        "uptime_s": None if service.uptime_s is None else round(service.uptime_s, 1),
        "detail": service.detail,
        "log": None if service.log is None else str(service.log),
    }


def _job_row(found: JobStatus) -> dict[str, object]:
    return {
        "service": f"job {found.job.name}",
        "condition": found.condition,
        "address": found.job.job_id,
        "pid": None,
        "uptime_s": round(found.job.duration_ms / 1000, 1),
        "detail": found.detail,
        "log": None,
        "start_ms": found.job.start_ms,
        "degraded": found.degraded,
        "counts": {name: n for name, n in found.counts.items() if name != "degraded"},
    }


def _prior_row(prior: PriorMisfit) -> dict[str, object]:
    return {
        "service": f"prior of {prior.kind}",
        "condition": prior.condition,
        "address": prior.job,
        "pid": None,
        "uptime_s": None,
        "detail": prior.detail,
        "log": None,
        "misfit_value": prior.value,
        "misfit_gap": prior.gap,
    }


def _table(*heads: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for head in heads:
        table.add_column(head, no_wrap=head != "detail")
    return table


def _word(condition: str) -> Text:
    return Text(condition, style=COLOURS.get(condition, "dim"))


def _print_servers(console: Console, services: Sequence[ServiceStatus]) -> None:
    table = _table("server", "condition", "up for", "address", "pid", "detail")
    wrong = [service for service in services if service.condition not in UP and service.detail]
    for service in services:
        table.add_row(
            service.name,
            _word(service.condition),
            "" if service.uptime_s is None else _duration(service.uptime_s),
            service.address,
            "" if service.pid is None else str(service.pid),
            # Reasons are long: below, where there is room.
            "" if service in wrong else Text(service.detail),
        )
    console.print(Trimmed(table))
    _print_remarks(console, [f"{service.name}: {service.detail}" for service in wrong])


def _print_remarks(console: Console, remarks: Sequence[str]) -> None:
    for remark in remarks:
        console.print(Text(f"  {remark}"), soft_wrap=True)


def _print_jobs(console: Console, jobs: Sequence[JobStatus], no_job: str) -> None:
    if not jobs:
        console.print(Text.assemble(("job          ", "dim"), no_job))
        return
    table = _table("job", "condition", "since (UTC)", "events read", "alerts", "degraded")
    for column in table.columns[3:5]:
        column.justify = "right"
    for found in jobs:
        since = datetime.fromtimestamp(found.job.start_ms / 1000, UTC)
        table.add_row(
            Text(found.job.name),
            _word(found.condition),
            f"{since:%F %T}",
            _count(found, "parsed"),
            _count(found, "alerts"),
            _degraded(found),
        )
    console.print(Trimmed(table))
    for found in jobs:
        _print_remarks(console, _remarks(found))


def _count(found: JobStatus, name: str) -> str:
    return f"{found.counts[name]:,}" if name in found.counts else "–"


def _degraded(found: JobStatus) -> Text:
    if found.degraded:
        return Text("yes", style="bold yellow")
    return Text("no", style="green") if found.decided else Text("–")


def _remarks(found: JobStatus) -> list[str]:
    remarks = [found.detail] if found.detail else []
    if found.condition == "running" and not found.counts:
        remarks.append("it has told nothing yet: its workers start with the first event")
    if found.degraded:
        remarks.append("degraded: the intensity model does not answer, the baselines score alone")
    for name, noun, what in (
        ("dead_letters", "message", "could not be read: dead letters"),
        ("late", "event", "came too late"),
    ):
        if found.counts.get(name):
            remarks.append(f"{counted(found.counts[name], noun)} {what}")
    return remarks


def _priors(jobs: Sequence[JobStatus], priors: Sequence[PriorMisfit]) -> Table:
    table = _table("prior", "condition", "detail")
    several = len({prior.job for prior in priors}) > 1
    for prior in priors:
        name = f"{prior.kind} ({prior.job})" if several else prior.kind
        table.add_row(Text(name), _word(prior.condition), Text(prior.detail))
    if not priors:
        lives = any(found.condition in ("running", "starting") for found in jobs)
        why = "the job has scored nothing yet" if lives else "it is held against what a job scores"
        table.add_row("all kinds", _word("unknown"), why)
    return table


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02}m" if hours else f"{minutes}m {rest:02}s"
