"""`eddy evaluate sequences`: whole event sequences of known processes, normal and anomalous."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deploy.commands.options import AsJson, write_json
from flink_jobs.errors import EddyError

Seed = Annotated[int, typer.Option(min=0, help="Of all sequences.")]
Count = Annotated[
    int,
    typer.Option(
        "--sequences",
        min=10,
        help="Training, normal test and anomalous test sequences of each scenario, each so many.",
    ),
]
Html = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Write a report with its picture.")
]


def sequences(
    seed: Seed = 1, count: Count = 1000, as_json: AsJson = False, html: Html = None
) -> None:
    """Judge wrong timing in event sequences (1 min).

    Simulates the eight scenarios of Shchur et al. (2021): AUC by detectability.
    """
    from deploy.evaluate.sequences import page, table
    from models.evaluation.sequences import evaluate

    if html is not None and not html.parent.is_dir():
        raise EddyError(
            f"--html {html}: expected a folder {html.parent}, found none; make it first"
        )
    report = evaluate(seed, count, _tell)
    if html is not None:
        html.write_text(page(report), encoding="utf-8")
        _tell(f"written: {html}")
    if as_json:
        write_json(report)
        return
    Console(highlight=False).print(table(report))


def _tell(line: str) -> None:
    typer.echo(line, err=True)
