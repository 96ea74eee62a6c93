"""`eddy evaluate intensity`: what the intensity model adds to the baselines, in simulation."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from deploy.commands.options import (
    DEFAULT_ROOT,
    AsJson,
    ConfigFile,
    Overrides,
    read_settings,
    write_json,
)

Seed = Annotated[int, typer.Option(min=0, help="Of the first world.")]
Count = Annotated[
    int,
    typer.Option(
        "--worlds", min=1, help="Worlds of the demo, and as many with timing anomalies alone."
    ),
]
Kinds = Annotated[
    str, typer.Option(metavar="KINDS", help="Entities that get the sequence component; by commas.")
]


def intensity(
    seed: Seed = 9001,
    count: Count = 2,
    kinds: Kinds = "user,merchant,device",
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Alerts with the intensity model and without (1.5 min)."""
    from deploy.evaluate.intensity import evaluate
    from deploy.evaluate.intensity_table import tables

    settings = read_settings(config, overrides, DEFAULT_ROOT)
    report = evaluate(seed, count, settings, [k for k in kinds.split(",") if k], _tell)
    if as_json:
        write_json(report)
        return
    console = Console(highlight=False)
    for table in tables(report):
        console.print(table)


def _tell(line: str) -> None:
    typer.echo(line, err=True)
