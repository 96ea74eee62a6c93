"""`eddy evaluate metrics`: scores and alerts of the metric detector on any file of metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.commands.evaluate_nab import HtmlFile
from deploy.commands.options import AsJson

if TYPE_CHECKING:
    from deploy.evaluate.series import Series
    from models.evaluation.detections import Detections

SourceFile = Annotated[
    Path,
    typer.Option(
        "--from", metavar="FILE", help="CSV or Parquet with the columns [entity,] time, value."
    ),
]
AlertsOnly = Annotated[bool, typer.Option("--alerts", help="Only rows that alert.")]


def metrics(
    source: SourceFile,
    html: HtmlFile = None,
    alerts: AlertsOnly = False,
    as_json: AsJson = False,  # noqa: ARG001 (JSON is what it writes anyway)
) -> None:
    """Score a file of metrics of yours.

    Writes one JSON line for each row; a score from 1.0 on is an alert.
    """
    from deploy.evaluate.metric_report import write_metrics_page
    from deploy.evaluate.progress import progress
    from deploy.evaluate.series import read_metrics
    from models.baselines.metric import metric_component
    from models.evaluation.detections import detect

    component = metric_component()
    scored = []
    series = read_metrics(source)
    with progress("detect", len(series)) as step:
        for one in series:
            scored.append((one, detect(component, one.time_ms, one.value)))
            step()
    if html is not None:
        with progress("draw", len(series)) as step:
            write_metrics_page(html, scored, f"Metrics: {source}", step)
    for one, said in scored:
        for line in _lines(one, said, alerts):
            typer.echo(line)


def _lines(series: Series, said: Detections, alerts_only: bool) -> Iterator[str]:
    from models.baselines.metric_views import VIEWS

    for i in range(len(series.value)):
        alert = bool(said.score[i] >= 1.0)
        if alerts_only and not alert:
            continue
        moment = datetime.fromtimestamp(series.time_ms[i] / 1_000, UTC)
        line = {
            "entity": series.name,
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "value": _number(series.value[i]),
            "score": _number(said.score[i]),
            "alert": alert,
            "surprise": _number(said.surprise[i]),
            "typical": _number(said.typical[i]),
            "low": _number(said.low[i]),
            "high": _number(said.high[i]),
            "view": VIEWS[said.view[i]] if said.view[i] >= 0 else None,
        }
        yield json.dumps(line, ensure_ascii=False)


def _number(value: float) -> float | None:
    """Return a number as JSON can hold it: null for one that is missing or not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
