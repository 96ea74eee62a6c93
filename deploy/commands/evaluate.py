"""`eddy evaluate`: detectors against data with known answers; each sub-command has its module."""

from __future__ import annotations

import typer

from deploy.commands import evaluate_tpp

app = typer.Typer(help="Hold the detectors against data with known answers.", no_args_is_help=True)
app.command("tpp")(evaluate_tpp.tpp)
