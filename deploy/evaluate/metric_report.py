"""The page of pictures of `eddy evaluate metrics`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from deploy.counted import counted
from deploy.evaluate.page import Section, write_page
from deploy.evaluate.picture import Picture
from deploy.evaluate.series import Series
from models.evaluation.detections import Detections


def write_metrics_page(
    path: Path,
    scored: Sequence[tuple[Series, Detections]],
    title: str,
    drawn: Callable[[], None] = lambda: None,
) -> None:
    """Write one picture of each entity, that with the highest score first.

    Args:
        path: of the HTML file.
        scored: each entity's series and what the detector said of it.
        title: of the page.
        drawn: called after each picture.
    """
    sections = []
    for series, said in sorted(scored, key=lambda one: (-one[1].score.max(), one[0].name)):
        picture = Picture(series, said, threshold=1.0)
        alerts = picture.alerts
        cells = (str(len(series.value)), str(len(alerts)), f"{said.score.max():.2f}")
        times = series.time_ms[alerts].astype("datetime64[ms]").astype("datetime64[s]")
        moments = ", ".join(str(moment) for moment in times[:8])
        more = f" and {len(alerts) - 8} more" if len(alerts) > 8 else ""
        note = f"alerts at {moments}{more}" if len(alerts) else "no alert"
        sections.append(Section(picture, cells, note))
    rows = int(np.sum([len(series.value) for series, _ in scored]))
    total = f"{counted(len(scored), 'entity', 'entities')}, {counted(rows, 'row')}"
    write_page(
        path,
        title,
        [f"{total}. A score from 1 on alerts."],
        ("entity", "rows", "alerts", "highest score"),
        sections,
        drawn,
    )
