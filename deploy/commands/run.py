"""`eddy run`, `stop` and `demo`: the job, and what is done with it."""

from __future__ import annotations

from typing import Annotated

import typer

from deploy.commands.options import (
    DEFAULT_ROOT,
    AsJson,
    ConfigFile,
    Overrides,
    Root,
    configured_settings,
    read_settings,
    write_json,
)
from flink_jobs.errors import EddyError


def run(
    savepoint: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Begin from this savepoint or checkpoint."),
    ] = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Submit the detection job to Flink.

    The job runs on when this command has ended.

    The settings say where Kafka and Triton are; without them the local stack of `eddy up` serves.
    """
    from deploy.stack import stack

    state = stack.load_state(root)
    settings = read_settings(config, overrides, root)
    from deploy.submit import submit  # slow to import: after what can fail at once

    job_id = submit(settings, state, savepoint)
    page = f"{state.flink_url}/#/job/running/{job_id}"
    if as_json:
        write_json({"job_id": job_id, "page": page, "settings_hash": settings.settings_hash()})
        return
    typer.echo(f"job      {job_id}")
    typer.echo(f"page     {page}")
    typer.echo(f"payments {settings.source.topic}  ->  alerts {settings.sink.alerts_topic}")


def stop(
    job_id: Annotated[
        str | None, typer.Argument(help="Flink's id of the job; not needed where one runs.")
    ] = None,
    to: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Where the savepoint is written.")
    ] = None,
    as_json: AsJson = False,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Stop the job with a savepoint to go on from.

    `eddy run --savepoint` begins where it ended.
    """
    from deploy.stack import jobs, stack

    state = stack.load_state(root)
    running = [job.job_id for job in jobs.jobs(state) if job.state == "RUNNING"]
    if job_id is None:
        if len(running) != 1:
            raise EddyError(f"expected one running job, found {len(running)}: name one {running}")
        job_id = running[0]
    path = jobs.savepoint(state, job_id, to, stop=True)
    if as_json:
        write_json({"job_id": job_id, "savepoint": path})
        return
    typer.echo(f"stopped  {job_id}")
    typer.echo(f"go on    eddy run --savepoint {path}")


def demo(
    seed: Annotated[int, typer.Option(min=0, help="Of the simulated payments.")] = 1,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the servers and the data for a closer look.")
    ] = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Show it all: servers, payments, alerts, report.

    Starts everything, streams payments with known anomalies, and reports what was found of them.

    The report stays in .eddy/demo: report.json, and a picture of one caught entity. Ctrl-C at any
    moment leaves nothing behind.
    """
    settings = configured_settings(config, overrides)
    from deploy.demo.run import run_demo

    raise typer.Exit(run_demo(settings, seed=seed, keep=keep, root=root))
