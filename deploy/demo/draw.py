"""Draw the picture of one caught entity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deploy.demo.picture import Caught, Replay, seen_and_expected
from deploy.demo.report import GRACE_MS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
BINS_S = (60, 300, 600, 900, 1_800, 3_600, 10_800, 21_600, 43_200, 86_400)
BINS = 40  # about so many bars in a view
SEEN, EXPECTED, SPAN, ALERT = "#33517a", "#d98a29", "#c8553d", "#b3261e"

View = tuple[int, int]


def views_of(anomaly_ms: View, history_ms: View) -> list[View]:
    """Choose the stretches of time to draw.

    Args:
        anomaly_ms: first and last moment of the anomaly.
        history_ms: first and last payment of the entity.

    Returns:
        A wide view of the days around the anomaly and, where it would be thin in that, a near one.
    """
    start, end = anomaly_ms
    span = max(end - start, 60_000)
    wide = (
        max(history_ms[0], start - max(7 * DAY_MS, 2 * span)) - HOUR_MS,
        min(history_ms[1], end + max(DAY_MS, span // 3)) + HOUR_MS,
    )
    near = (start - max(span, HOUR_MS), end + max(span, HOUR_MS))
    return [wide, near] if near[1] - near[0] < (wide[1] - wide[0]) / 4 else [wide]


def bin_edges(view: View) -> NDArray[np.int64]:
    """Return edges, ms, of about BINS bins of a round length that cover a view."""
    length_s = (view[1] - view[0]) / 1_000
    size = min(BINS_S, key=lambda s: abs(np.log(length_s / s / BINS))) * 1_000
    return np.arange(view[0] // size, view[1] // size + 2, dtype=np.int64) * size


def write_picture(caught: Caught, played: Replay, path: Path) -> None:
    """Draw amounts with their expected band above, and seen and expected payments below."""
    # Its fonts take a second to find: only who draws pays.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    anomaly = caught.anomaly
    history = (int(played.time_ms[0]), int(played.time_ms[-1]))
    views = views_of((anomaly.start_ms, anomaly.end_ms), history)
    figure = Figure(figsize=(12, 7), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(
        2, len(views), sharex="col", squeeze=False,
        gridspec_kw={"width_ratios": [1.6, 1][: len(views)], "height_ratios": [1.5, 1]},
    )  # fmt: skip
    for column, view in enumerate(views):
        _draw_amounts(grid[0][column], caught, played, view)
        _draw_intensity(grid[1][column], caught, played, view)
    _name_axes(grid, views)
    entries = dict(zip(*reversed(_entries(grid)), strict=True))
    figure.legend(
        list(entries.values()), list(entries), loc="outside lower center", ncols=len(entries),
        frameon=False,
    )  # fmt: skip
    figure.suptitle(_title(caught), fontsize=12, x=0.01, ha="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def _draw_amounts(axes: Axes, caught: Caught, played: Replay, view: View) -> None:
    # One payment beyond each end, so that the band reaches the edges.
    inside = np.flatnonzero((played.time_ms >= view[0]) & (played.time_ms <= view[1]))
    about = slice(max(0, inside[0] - 1), inside[-1] + 2) if len(inside) else slice(0, 0)
    at = _days(played.time_ms[about])
    axes.fill_between(
        at, played.low[about], played.high[about], step="post", color=EXPECTED,
        alpha=0.25, linewidth=0, label="expected amount (99%)",
    )  # fmt: skip
    axes.plot(
        at, played.amount[about], "o", color=SEEN, markersize=3.5, alpha=0.8,
        markeredgewidth=0, label="payment",
    )  # fmt: skip
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    for alert in caught.alerts:
        amount = played.amount[
            np.searchsorted(played.time_ms, alert.time_ms).clip(max=len(played.amount) - 1)
        ]
        axes.plot(
            _days([alert.time_ms]), [amount], "o", color="none",
            markeredgecolor=ALERT, markersize=11, markeredgewidth=1.8, zorder=5,
        )  # fmt: skip
    _mark(axes, caught, view)


def _draw_intensity(axes: Axes, caught: Caught, played: Replay, view: View) -> None:
    edges = bin_edges(view)
    seen, expected = seen_and_expected(played, edges)
    hours = np.diff(edges) / HOUR_MS
    at = _days(edges)
    axes.stairs(seen / hours, at, fill=True, color=SEEN, alpha=0.75, label="payments seen")
    axes.stairs(
        expected / hours, at, baseline=None, color=EXPECTED, linewidth=2.0,
        label="payments expected by the model",
    )  # fmt: skip
    axes.set_ylim(bottom=0)
    minutes = round(float(hours[0]) * 60)
    size = f"{minutes} min" if minutes < 60 else f"{minutes // 60} h"
    axes.set_title(f"bars of {size}", fontsize=9, color="0.4", loc="right", pad=3)
    _mark(axes, caught, view)


def _mark(axes: Axes, caught: Caught, view: View) -> None:
    """Shade the labelled span and mark the alerts."""
    anomaly = caught.anomaly
    start, end = _days([anomaly.start_ms, anomaly.end_ms]).tolist()
    axes.axvspan(start, end, color=SPAN, alpha=0.16, linewidth=0, label="labelled anomaly")
    for moment in _days([alert.time_ms for alert in caught.alerts]).tolist():
        axes.axvline(moment, color=ALERT, linewidth=1.4, linestyle="--", label="alert")
    left, right = _days(view).tolist()
    axes.set_xlim(left, right)
    axes.grid(visible=True, color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _name_axes(grid: NDArray[np.object_], views: Sequence[View]) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    grid[0][0].set_ylabel("amount per payment\n(minor units, log scale)")
    grid[1][0].set_ylabel("payments per hour")
    names = ("the days around it", "the anomaly close up")
    for column in range(len(views)):
        if len(views) > 1:
            grid[0][column].set_title(names[column], fontsize=10, loc="left")
        locator = AutoDateLocator(minticks=3, maxticks=8)  # type: ignore[no-untyped-call]
        grid[1][column].xaxis.set_major_locator(locator)
        formatter = ConciseDateFormatter(locator)  # type: ignore[no-untyped-call]
        grid[1][column].xaxis.set_major_formatter(formatter)
        grid[1][column].set_xlabel("event time (UTC)")
    if len(views) > 1:
        low = min(axes.get_ylim()[0] for axes in grid[0])
        high = max(axes.get_ylim()[1] for axes in grid[0])
        for axes in grid[0]:
            axes.set_ylim(low, high)


def _entries(grid: NDArray[np.object_]) -> tuple[list[object], list[str]]:
    handles: list[object] = []
    labels: list[str] = []
    for axes in grid[:, 0]:
        more_handles, more_labels = axes.get_legend_handles_labels()
        handles += more_handles
        labels += more_labels
    return handles, labels


def _title(caught: Caught) -> str:
    anomaly = caught.anomaly
    meeting = [
        a for a in caught.alerts
        if anomaly.start_ms <= a.time_ms <= anomaly.end_ms + GRACE_MS
    ]  # fmt: skip
    kind = anomaly.kind.replace("_", " ")
    text = f"{anomaly.entity_kind} {anomaly.entity}: {kind}"
    if meeting:
        first = min(meeting, key=lambda a: a.time_ms)
        after_min = (first.time_ms - anomaly.start_ms) / 60_000
        delay = f"{after_min:.0f} min" if after_min < 120 else f"{after_min / 60:.0f} h"
        text += f", caught {delay} after its begin (score {first.score:.1f})\n{first.text}"
    return text


def _days(time_ms: NDArray[np.int64] | Sequence[int]) -> NDArray[np.float64]:
    """Return days since the epoch, in which matplotlib counts dates."""
    return np.asarray(time_ms, np.float64) / DAY_MS
