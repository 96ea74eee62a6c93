"""`eddy bench`: the job beside others on one stack, and the baselines beside other tools."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    write_json,
)
from deploy.commands.stack import stack_options
from flink_jobs.errors import EddyError

if TYPE_CHECKING:
    from deploy.bench.plan import Plan

HELP = """Measure the job and its baselines beside others.

All but `baselines` start servers of their own. Progress goes to standard error, the figures to
standard output, as a table or with --json. Leave the machine alone meanwhile.
"""
app = typer.Typer(help=HELP, no_args_is_help=True)

Seconds = Annotated[
    float | None, typer.Option(min=5.0, help="How long each system is measured once it is warm.")
]
Short = Annotated[
    bool, typer.Option("--short", help="Half a minute each: shows that it works, no more.")
]
Systems = Annotated[
    str | None,
    typer.Option(metavar="A,B", help="Only these: eddy, no_triton, pass_through, naive."),
]


@app.command()
def throughput(
    seconds: Seconds = None,
    short: Short = False,
    systems: Systems = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Drain a backlog beside simpler jobs (15 min).

    eddy, the same without Triton, a pass-through, and the straightforward PyFlink job.
    """
    plan = _plan(seconds, short, systems)
    _bench("throughput", plan, as_json, config, overrides, root)


@app.command()
def latency(
    seconds: Seconds = None,
    short: Short = False,
    systems: Systems = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Time from Kafka to Kafka at a steady rate (18 min).

    At 5,000 payments/s, beside a pass-through of the same source and sink.
    """
    plan = _plan(seconds, short, systems)
    _bench("latency", plan, as_json, config, overrides, root)


@app.command()
def state(
    seconds: Seconds = None,
    short: Short = False,
    large: Annotated[
        bool, typer.Option("--large", help="Recovery with 3 x 1,000,000 entities as well.")
    ] = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Size of the state, pauses and recovery (20 min).

    Bytes of an entity, throughput by their number, gaps in the output, and kills of the worker.
    """
    plan = replace(_plan(seconds, short, None), recover_large=large)
    _bench("state", plan, as_json, config, overrides, root)


@app.command()
def switches(
    seconds: Seconds = None,
    short: Short = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Latency while models change 100 times (6 min).

    5,000 payments/s, at least once: first with one version in charge, then with two by turns.
    """
    _bench("switches", _plan(seconds, short, None), as_json, config, overrides, root)


@app.command()
def baselines(
    peers_python: Annotated[
        list[Path] | None,
        typer.Option(
            "--peers-python",
            metavar="PATH",
            help="An interpreter that has river, simdkalman or pykalman; may be repeated.",
        ),
    ] = None,
    short: Short = False,
    as_json: AsJson = False,
) -> None:
    """Time of one event in each baseline (3 min).

    Microseconds for one event of one entity, beside pykalman, river and simdkalman. Needs no
    server.
    """
    from deploy.bench.baselines import run_baselines
    from deploy.bench.report import table, text

    progress = Console(stderr=True, highlight=False)
    report = run_baselines(peers_python or [], short, progress.print)
    if as_json:
        write_json(report)
        return
    console = Console(highlight=False)
    console.print(table(report["systems"]))
    for ratio, value in report["ratios"].items():
        console.print(f"{ratio}: {text(value)}")
    for package, reason in report["left_out"].items():
        console.print(f"left out: {package}: {reason}")


@app.command()
def intensity(
    seconds: Annotated[
        float, typer.Option(min=0.5, max=60.0, help="For each of some 25 figures.")
    ] = 2.0,
    variants: Annotated[
        list[Path] | None,
        typer.Option(
            "--variant", metavar="FOLDER", help="Another version's folder; may be repeated."
        ),
    ] = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Decoder on Triton beside a GRU over a window (1 min)."""
    from deploy.bench.intensity import run_intensity
    from deploy.bench.report import text
    from flink_jobs.model_files import model_folder

    settings = configured_settings(config, overrides)
    progress = Console(stderr=True, highlight=False)
    options = stack_options(settings, root / "bench-intensity")
    found = run_intensity(model_folder(settings), variants or [], seconds, options, progress.print)
    if as_json:
        write_json(found)
        return
    console = Console(highlight=False)
    # A system a line, for there are many.
    shown = Table("", box=None, pad_edge=False)
    names = list(next(iter(found["systems"].values())))
    for name in names:
        shown.add_column(name, justify="right")
    for system, figures in found["systems"].items():
        shown.add_row(system, *(text(figures.get(name)) for name in names))
    console.print(shown)
    for ratio, value in found["ratios"].items():
        console.print(f"{ratio}: {text(value)}")


def _plan(seconds: float | None, short: bool, systems: str | None) -> Plan:
    from deploy.bench.plan import FULL, SHORT

    plan = SHORT if short else FULL
    if seconds is not None:
        plan = plan.measured_for(seconds)
    if systems is not None:
        try:
            plan = replace(plan, systems=tuple(systems.split(",")))
        except ValueError as error:
            raise EddyError(f"--systems: {error}") from None
    return plan


def _bench(
    name: str,
    plan: Plan,
    as_json: bool,
    config: Path | None,
    overrides: list[str] | None,
    root: Path,
) -> None:
    """Run one benchmark; its progress goes to standard error."""
    from deploy.bench.report import table, text
    from deploy.bench.run import run_bench

    settings = configured_settings(config, overrides)
    progress = Console(stderr=True, highlight=False)
    options = stack_options(settings, root / "bench")
    try:
        report = run_bench(name, settings, plan, options, progress.print)
    except ValueError as error:
        raise EddyError(f"nothing to report: {error}") from error
    if as_json:
        write_json(report)
        return
    console = Console(highlight=False)
    console.print(table(report["systems"]))
    for ratio, value in report["ratios"].items():
        console.print(f"{ratio}: {text(value)}")
