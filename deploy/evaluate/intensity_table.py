"""The report of `eddy evaluate intensity` for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

# Report of `deploy.evaluate.intensity.report`: what JSON has no closer type for.
Report = Mapping[str, Any]


def tables(report: Report) -> Iterator[Table]:
    """Yield the tables of anomalies, detectors and added alerts, over all worlds."""
    ways = report["all"]
    kinds = next(iter(ways.values()))["by_anomaly"]
    found = Table(title=f"anomalies found of all, seed {report['seed']}")
    found.add_column("kind")
    for way in ways:
        found.add_column(way, justify="right")
    for kind in kinds:
        each = (figures["by_anomaly"][kind] for figures in ways.values())
        found.add_row(kind, *(f"{one['found']} of {one['total']}" for one in each))
    found.add_section()
    for name in ("recall", "precision", "false"):
        found.add_row(name, *(_text(figures[name]) for figures in ways.values()))
    for name in ("recall", "recall_by_timing_detectors", "precision_of_timing_detectors"):
        values = (_text(figures["timing"][name]) for figures in ways.values())
        found.add_row(f"timing: {name.replace('_', ' ')}", *values)
    yield found
    alerts = Table(title="true of all alerts, by detector")
    alerts.add_column("detector")
    for way in ways:
        alerts.add_column(way, justify="right")
    for name in sorted({name for figures in ways.values() for name in figures["by_detector"]}):
        each = (figures["by_detector"].get(name) for figures in ways.values())
        alerts.add_row(name, *(f"{one['true']} of {one['alerts']}" if one else "" for one in each))
    yield alerts
    added = Table(title="what each way adds")
    for column in ("way", "over", "alerts", "true", "anomalies more", "fewer"):
        added.add_column(column)
    for way, figures in ways.items():
        if (more := figures["added"]) is not None:
            counts = [sum(more[name].values()) for name in ("anomalies_more", "anomalies_fewer")]
            row = (way, more["over"], more["alerts"], more["true"], *counts)
            added.add_row(*map(str, row))
    yield added


def _text(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.3f}"
