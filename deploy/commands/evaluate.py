"""`eddy evaluate`: hold the baselines against benchmarks that others wrote."""

from __future__ import annotations

import typer

from deploy.commands import evaluate_handbook

app = typer.Typer(no_args_is_help=True, help="Score benchmarks that others wrote.")
app.command("handbook")(evaluate_handbook.handbook)
