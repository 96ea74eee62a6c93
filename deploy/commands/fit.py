"""`eddy fit`: priors and calibration from the user's own stream."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from deploy.commands.options import (
    DEFAULT_ROOT,
    AsJson,
    ConfigFile,
    Overrides,
    Root,
    module,
    read_settings,
    write_json,
)
from deploy.counted import counted

if TYPE_CHECKING:
    from deploy.fit.run import FitResult


def fit(
    source: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="FILE|TOPIC",
            help="JSON lines (.gz too), CSV or Parquet, or a Kafka topic, read to its end.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="The prior, for `detection.prior`.")
    ] = Path("prior.json"),
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The report; else beside the prior.")
    ] = None,
    sample: Annotated[
        int, typer.Option(min=2, max=100_000, help="Entities of each kind that are fitted.")
    ] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of every draw.")] = 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a fit that was killed.")
    ] = False,
    max_events: Annotated[
        int, typer.Option(min=1, help="The newest so many events are taken; some 250 bytes each.")
    ] = 3_000_000,
    trim: Annotated[
        int,
        typer.Option(
            min=0,
            max=99,  # less than half of TAIL_CLUSTERS, whose module is slow to import
            help="Entity-weeks, of the 200 that each detector is calibrated on, that may be"
            " anomalies.",
        ),
    ] = 40,
    as_json: AsJson = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Fit priors and calibration to your traffic.

    Takes ordinary traffic from a file or topic and writes a prior and a report. Weeks of
    traffic serve best. The job takes the result by `--set detection.prior=FILE`.
    """
    settings = read_settings(config, overrides, root)
    in_process = ("onnxruntime",) if settings.triton.enabled else ()
    for name in ("scipy", "statsmodels", "pykalman", *in_process):
        module(name)
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from deploy.fit.report import write_report
    from deploy.fit.run import FitOptions, run_fit, summary

    options = FitOptions(source, out, sample, seed, resume, max_events, trim)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks = {}

        def show(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        result = run_fit(settings, options, show)
        page = html or out.with_suffix(".html")
        write_report(result, page)
    if as_json:
        write_json({"prior": str(out), "report": str(page), **summary(result)})
        return
    _tell(result)
    typer.echo(f"prior    {out}")
    typer.echo(f"report   {page}")
    typer.echo(f"use it   eddy run --set detection.prior={out}")


def _tell(result: FitResult) -> None:
    from deploy.fit.words import stream_warnings, warnings_of

    typer.echo(f"{counted(result.events, 'event')} of {counted(result.messages, 'message')}")
    for text in stream_warnings(result):
        typer.echo(f"  {text}")
    for kind in result.kinds:
        prior = kind.prior
        typer.echo(
            f"{kind.kind}: {counted(kind.events, 'event')} of "
            f"{counted(kind.entities, 'entity', 'entities')};"
            f" value {prior.value_mean:.2f} ± {prior.value_between_var**0.5:.2f} between,"
            f" ± {prior.value_within_var**0.5:.2f} within;"
            f" log gap {prior.gap_mean:.2f} ± {prior.gap_between_var**0.5:.2f} between,"
            f" ± {prior.gap_within_var**0.5:.2f} within"
        )
        for text in warnings_of(kind):
            typer.echo(f"  {text}")
