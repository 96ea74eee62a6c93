"""`eddy evaluate nab`: the metric detector on the Numenta Anomaly Benchmark."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer

from deploy.commands.options import AsJson, write_json

DataFolder = Annotated[
    Path, typer.Option("--data", metavar="DIR", help="Folder in NAB's layout: data/, labels/.")
]
ThresholdFolder = Annotated[
    Path | None,
    typer.Option(
        "--threshold-from", metavar="DIR", help="Choose the thresholds on this folder instead."
    ),
]
HtmlFile = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Write one picture of each series into a page."),
]
CrossValidate = Annotated[
    bool,
    typer.Option(
        "--cross-validate", help="Also score parts at the threshold of the rest (half a minute)."
    ),
]


def nab(
    data: DataFolder,
    threshold_from: ThresholdFolder = None,
    html: HtmlFile = None,
    cross_validate: CrossValidate = False,
    as_json: AsJson = False,
) -> None:
    """Score metrics as NAB does.

    Event by event, with one threshold for all series.
    """
    from deploy.evaluate.nab_report import (
        KEYS,
        cross_validation,
        nab_report,
        run_corpus,
        write_nab_page,
    )
    from deploy.evaluate.progress import progress
    from deploy.evaluate.series import read_nab
    from models.baselines.metric import metric_component

    component = metric_component()
    corpus = read_nab(data)
    other = None if threshold_from is None else read_nab(threshold_from)
    for folder, read in ((data, corpus), (threshold_from, other)):
        if read is not None and read.unlabelled:
            left_out = ", ".join(read.unlabelled)
            typer.echo(f"{folder}: left out, as the labels lack them: {left_out}", err=True)
    with progress("detect", len(corpus.series) + len(other.series if other else ())) as step:
        run = run_corpus(corpus, component, step)
        thresholds = (run if other is None else run_corpus(other, component, step)).thresholds
    report = nab_report(run, thresholds)
    if html is not None:
        with progress("draw", len(corpus.series)) as step:
            write_nab_page(html, run, thresholds, f"NAB: {data}", step)
    if cross_validate:
        report["cross_validation"] = cross_validation(run)
    if as_json:
        write_json(report)
        return
    for line in _table(report, KEYS.values()):
        typer.echo(line)
    if html is not None:
        typer.echo(f"pictures: {html}")


def _table(report: Mapping[str, object], profiles: Iterable[str]) -> Iterator[str]:
    """Yield the figures as lines for a person."""
    names = list(profiles)
    yield f"{'':24s}" + "".join(f"{name:>16s}" for name in names) + f"{'found':>12s}{'false':>8s}"
    categories = report["by_category"]
    assert isinstance(categories, dict)
    for category, figures in categories.items():
        yield _line(category, figures, names)
    counts, thresholds = report["counts"], report["threshold"]
    assert isinstance(counts, dict)
    assert isinstance(thresholds, dict)
    yield _line("all", {**report, **counts["standard"]}, names)
    yield _line("threshold", thresholds, names)
    validation = report.get("cross_validation", {})
    assert isinstance(validation, dict)
    for name, figures in validation.items():
        if isinstance(figures, dict):
            yield _line(name, figures, names)


def _line(name: str, figures: Mapping[str, object], profiles: Iterable[str]) -> str:
    cells = [figures[key] for key in profiles]
    text = f"{name:24s}" + "".join(f"{'–' if cell is None else cell:>16}" for cell in cells)
    if "found" in figures:
        found = f"{figures['found']} of {figures['windows']}"
        text += f"{found:>12s}{figures['false_positives']:>8}"
    return text
