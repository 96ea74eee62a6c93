"""`eddy run`, `demo`, `bench` and `train`: the job, and what is done with it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from deploy.commands.options import (
    DEFAULT_ROOT,
    AsJson,
    ConfigFile,
    Overrides,
    Root,
    configured_settings,
    module,
    read_settings,
    write_json,
)
from deploy.stack.options import REPOSITORY
from flink_jobs.errors import EddyError

bench = typer.Typer(help="Measure throughput, latency and state.", no_args_is_help=True)

Seconds = Annotated[
    float | None, typer.Option(min=1.0, help="How long each system is measured; else as documented")
]


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
    """Submit the detection job to Flink; it runs on when this command has ended.

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


def demo(
    seed: Annotated[int, typer.Option(min=0, help="Of the simulated payments.")] = 1,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the servers and the data for a closer look.")
    ] = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Start everything, stream payments with known anomalies, and report what was found.

    The report stays in .eddy/demo: report.json, and a picture of one caught entity. Ctrl-C at any
    moment leaves nothing behind.
    """
    settings = configured_settings(config, overrides)
    code = module("deploy.demo.run").run_demo(settings, seed=seed, keep=keep, root=root)
    raise typer.Exit(int(code or 0))


@bench.command()
def throughput(
    seconds: Seconds = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Drain a backlog from Kafka: eddy, a pass-through, the naive job, eddy without Triton."""
    _bench("throughput", seconds, as_json, config, overrides, root)


@bench.command()
def latency(
    seconds: Seconds = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Time from Kafka in to Kafka out at 5,000 payments/s, beside a pass-through."""
    _bench("latency", seconds, as_json, config, overrides, root)


@bench.command()
def state(
    seconds: Seconds = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Size of the state, checkpoints and throughput from 10,000 to 1,000,000 entities a kind."""
    _bench("state", seconds, as_json, config, overrides, root)


def _bench(
    name: str,
    seconds: float | None,
    as_json: bool,
    config: Path | None,
    overrides: list[str] | None,
    root: Path,
) -> None:
    settings = configured_settings(config, overrides)
    report = module("deploy.bench").run_bench(name, settings, root=root, seconds=seconds)
    if as_json:
        write_json(report)
        return
    console = Console(highlight=False)
    console.print(_systems(report["systems"]))
    for ratio, value in report.get("ratios", {}).items():
        console.print(f"{ratio}: {value:,.2f}")


def _systems(systems: Mapping[str, Mapping[str, object]]) -> Table:
    names = list(systems)
    table = Table("", *names, box=None)
    for figure in dict.fromkeys(key for system in systems.values() for key in system):
        table.add_row(figure, *(_figure(systems[name].get(figure)) for name in names))
    return table


def _figure(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.1f}"
    if isinstance(value, int):
        return f"{value:,}"
    return "" if value is None else str(value)


def train(context: typer.Context) -> None:
    """Train the intensity model; needs torch, which `make train` installs into .venv-train.

    Takes the options of `python -m deploy.train`, such as --seed and --out.
    """
    python = REPOSITORY / ".venv-train" / "bin" / "python"
    if not python.exists():
        raise EddyError(f"training needs torch in {python.parents[1]}; run `make train`")
    command = [str(python), "-m", "deploy.train", *context.args]
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    # In place of this process: Ctrl-C and the exit code are those of the training.
    os.execve(python, command, {**os.environ, "PYTHONPATH": path})  # noqa: S606 no shell is meant
