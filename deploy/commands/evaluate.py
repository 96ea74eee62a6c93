"""`eddy evaluate`: detectors against data with known answers; each sub-command has its module."""

from __future__ import annotations

import typer

from deploy.commands import (
    evaluate_handbook,
    evaluate_intensity,
    evaluate_metrics,
    evaluate_nab,
    evaluate_sequences,
    evaluate_tpp,
)

app = typer.Typer(help="Hold the detectors against data with known answers.", no_args_is_help=True)
app.command("nab")(evaluate_nab.nab)
app.command("metrics")(evaluate_metrics.metrics)
app.command("handbook")(evaluate_handbook.handbook)
app.command("sequences")(evaluate_sequences.sequences)
app.command("tpp")(evaluate_tpp.tpp)
app.command("intensity")(evaluate_intensity.intensity)
