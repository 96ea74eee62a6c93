"""One picture per metric series: value, expected band, labelled windows, score and alerts."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deploy.evaluate.series import Series
from models.evaluation.detections import Detections

if TYPE_CHECKING:
    from matplotlib.axes import Axes

VALUE, BAND, WINDOW, PROBATION = "#33517a", "#d98a29", "#c8553d", "#8a8a8a"
ALERT = "#b3261e"
TOP = 4.0  # the score axis ends here; what is above is drawn at the edge
GAP = 20  # usual steps without a row, from which on no line is drawn
OUTLIER_SHARE = 20.0  # a value range beyond so many interquartile ranges is drawn on a bent scale


@dataclass(frozen=True, slots=True)
class Picture:
    """What is drawn of one series.

    Attributes:
        series: the metric.
        detections: what the detector said of each row.
        threshold: scores from here on alert.
        windows: (first, last) row of each labelled window.
        probation: rows at the beginning that are not judged.
    """

    series: Series
    detections: Detections
    threshold: float
    windows: Sequence[tuple[int, int]] = ()
    probation: int = 0

    @property
    def alerts(self) -> NDArray[np.intp]:
        """Rows that alert, those in probation too."""
        return np.flatnonzero(self.detections.score >= self.threshold)


def draw(picture: Picture, width: float = 11.0, height: float = 3.6, dpi: int = 80) -> bytes:
    """Draw one series as PNG: the value above, the score below.

    Args:
        picture: what to draw.
        width: inches.
        height: inches.
        dpi: dots per inch.
    """
    # Its fonts take a second to find: only who draws pays.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1]})
    time = picture.series.time_ms.astype("datetime64[ms]")
    _draw_value(upper, picture, time)
    _draw_score(lower, picture, time)
    for axes in (upper, lower):
        for first, last in picture.windows:
            axes.axvspan(time[first], time[last], color=WINDOW, alpha=0.18, lw=0)
        if picture.probation:
            axes.axvspan(time[0], time[picture.probation], color=PROBATION, alpha=0.15, lw=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.01)
    locator = AutoDateLocator(maxticks=9)  # type: ignore[no-untyped-call]
    lower.xaxis.set_major_locator(locator)
    formatter = ConciseDateFormatter(locator)  # type: ignore[no-untyped-call]
    lower.xaxis.set_major_formatter(formatter)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw_value(axes: Axes, picture: Picture, time: NDArray[np.datetime64]) -> None:
    value, said = picture.series.value, picture.detections
    whole, (low, high, line) = _broken_at_gaps(time, said.low, said.high, value)
    axes.fill_between(whole, low, high, color=BAND, alpha=0.3, lw=0)
    axes.plot(whole, line, color=VALUE, lw=0.7)
    alerts = picture.alerts
    axes.plot(time[alerts], value[alerts], "v", color=ALERT, ms=7, mew=0)
    finite = value[np.isfinite(value)]
    if len(finite):
        _set_scale(axes, finite)


def _set_scale(axes: Axes, finite: NDArray[np.float64]) -> None:
    """Bend the scale where one spike would press all the rest into a line; fit it to the values."""
    low, high = float(finite.min()), float(finite.max())
    middle = np.percentile(finite, [25, 50, 75])
    spread = float(middle[2] - middle[0])
    if spread > 0 and high - low > OUTLIER_SHARE * spread:
        centre, unit = float(middle[1]), spread
        axes.set_yscale(
            "function",
            functions=(
                lambda y: np.arcsinh((np.asarray(y) - centre) / unit),
                lambda u: centre + unit * np.sinh(np.clip(u, -50.0, 50.0)),
            ),
        )
        axes.set_ylabel("value (bent scale)")
        ticks = centre + unit * np.sinh(
            np.linspace(np.arcsinh((low - centre) / unit), np.arcsinh((high - centre) / unit), 5)
        )
        rounding = 1e-9 * (high - low)
        names = [f"{tick if abs(tick) > rounding else 0.0:.3g}" for tick in ticks]
        axes.set_yticks(ticks, names)
        axes.minorticks_off()
    else:
        axes.set_ylabel("value")
    # The band may be far wider than the values at the start: the values decide what is shown.
    if high > low:
        margin = 0.06
        to = axes.transScale.transform
        (_, bottom), (_, top) = to((0.0, low)), to((0.0, high))
        back = axes.transScale.inverted().transform
        reach = margin * (top - bottom)
        axes.set_ylim(back((0.0, bottom - reach))[1], back((0.0, top + reach))[1])


def _broken_at_gaps(
    time: NDArray[np.datetime64], *columns: NDArray[np.float64]
) -> tuple[NDArray[np.datetime64], list[NDArray[np.float64]]]:
    """Put a missing row into each gap, so that no line is drawn through it."""
    steps = np.diff(time)
    if len(steps) == 0:
        return time, list(columns)
    gaps = np.flatnonzero(steps > GAP * max(np.median(steps), np.timedelta64(1, "ms"))) + 1
    whole = np.insert(time, gaps, time[gaps - 1] + np.timedelta64(1, "ms"))
    return whole, [np.insert(column, gaps, np.nan) for column in columns]


def _draw_score(axes: Axes, picture: Picture, time: NDArray[np.datetime64]) -> None:
    ratio = np.minimum(picture.detections.score / picture.threshold, TOP)
    axes.vlines(time, 0.0, ratio, color=VALUE, lw=0.8)
    alerts = picture.alerts
    axes.plot(time[alerts], ratio[alerts], "o", color=ALERT, ms=4, mew=0)
    axes.axhline(1.0, color=ALERT, lw=0.7, ls="--")
    axes.set_ylim(0.0, TOP * 1.05)
    axes.set_yticks([0, 1, 2, 3, 4], ["0", "1", "2", "3", "4+"])
    axes.set_ylabel("score")
