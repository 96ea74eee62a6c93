"""Figures of a training, as PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from deploy.training.calibrate import KindCalibration

COLOURS = ("#33517a", "#b3261e", "#2f6f4f", "#a8761f", "#6b4c9a", "#3a8fa3", "#8a5a44", "#555555")
BAR, GREY = "#8fb4d9", "#777777"
DPI = 110
FEWEST_BEYOND = 10  # gaps beyond a threshold, below which their share says nothing


def figures(learnt: Mapping[str, Any], calibrated: Sequence[KindCalibration]) -> dict[str, bytes]:
    """Draw all figures: title and PNG."""
    drawn = {
        "Likelihood while learning": curves(learnt),
        "PIT: where gaps fell in what was predicted": pits(learnt["judged"]),
        "Reliability of the tails": reliability(learnt),
    }
    for one in calibrated:
        figure = tails(one)
        if figure is not None:
            drawn[f"Calibration of {one.kind}"] = figure
    return {title: png(figure) for title, figure in drawn.items()}


def png(figure: Figure) -> bytes:
    """Return a figure as PNG that depends on its content alone."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()


def _panels(columns: int, height: float, rows: int = 1) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(10.0, height), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel().tolist()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    return figure, axes


def curves(learnt: Mapping[str, Any]) -> Figure:
    """Draw the likelihood of each head at each look, and the step that was kept."""
    looks, best = learnt["looks"], learnt["best_step"]
    step = [look["step"] for look in looks]
    figure, axes = _panels(4, 2.9)
    titles = {"gap": "next gap", "mark": "next mark", "amount": "amount", "total": "together"}
    for axis, (head, title) in zip(axes, titles.items(), strict=True):
        value = [look[head] for look in looks]
        axis.plot(step, value, ".-", color=COLOURS[0], linewidth=1.4, label="validation")
        if head == "total":
            axis.plot(
                step, [look["learning"] for look in looks], color=BAR, linewidth=1.2,
                label="training, weighted",
            )  # fmt: skip
            axis.legend(fontsize=7, frameon=False)
        axis.axvline(best, color=GREY, linestyle="--", linewidth=1)
        at = step.index(best) if best in step else len(step) - 1
        axis.set_title(f"{title}: {value[at]:.4f} at step {best:,}", fontsize=9)
        axis.set_xlabel("gradient steps", fontsize=8)
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        _ignore_start(axis, value)
    axes[0].set_ylabel("nats per event, lower is better", fontsize=8)
    return figure


def _ignore_start(axis: Any, value: Sequence[float]) -> None:
    """Let the first look leave the picture where it would press the rest into a line."""
    if len(value) < 4:
        return
    low, late, first = min(value), max(value[2:]), value[0]
    if first - low > 3.0 * max(late - low, 1e-4):
        room = max(late - low, 1e-3)
        axis.set_ylim(low - 0.15 * room, late + 0.6 * room)


def pits(judged: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the PIT histogram of each kind."""
    columns = min(max(len(judged), 2), 4)
    figure, axes = _panels(columns, 2.6 * math.ceil(len(judged) / columns),
                           math.ceil(len(judged) / columns))  # fmt: skip
    for axis, one in zip(axes, judged, strict=False):
        counts = np.array(one["pit"], np.float64)
        shares = counts / counts.sum() * len(counts)
        at = (np.arange(len(counts)) + 0.5) / len(counts)
        axis.bar(at, shares, 1.0 / len(counts), color=BAR, edgecolor="white", linewidth=0.3)
        axis.axhline(1.0, color=GREY, linestyle="--", linewidth=1)
        # What chance leaves of 1, two standard deviations.
        spread = 2.0 * math.sqrt(len(counts) / counts.sum())
        axis.axhspan(1.0 - spread, 1.0 + spread, color=GREY, alpha=0.15, linewidth=0)
        axis.set_ylim(0.0, max(1.5, 1.15 * float(shares.max())))
        axis.set_title(f"{one['kind']}: {int(counts.sum()):,} gaps", fontsize=9)
        axis.set_xlabel("predicted probability of a shorter gap", fontsize=8)
    for axis in axes[len(judged) :]:
        axis.set_visible(False)
    axes[0].set_ylabel("share over the uniform one", fontsize=8)
    return figure


def reliability(learnt: Mapping[str, Any]) -> Figure:
    """Draw how often gaps were longer than predicted at each probability, over that probability."""
    nats = np.array(learnt["reliability_nats"], np.float64)
    figure, (axis,) = _panels(1, 3.2)
    for colour, one in zip(COLOURS, learnt["judged"], strict=False):
        beyond = np.array(one["reliability"], np.float64)
        enough = beyond >= FEWEST_BEYOND
        if not enough.any():
            continue
        ratio = beyond[enough] / one["events"] * np.exp(nats[enough])
        error = 1.0 / np.sqrt(beyond[enough])
        axis.plot(nats[enough], ratio, ".-", color=colour, linewidth=1.3, label=one["kind"])
        axis.fill_between(
            nats[enough], ratio * (1.0 - error), ratio * (1.0 + error), color=colour, alpha=0.15,
            linewidth=0,
        )  # fmt: skip
    axis.axhline(1.0, color=GREY, linestyle="--", linewidth=1)
    axis.set_yscale("log")
    axis.set_ylim(0.1, 10.0)
    axis.set_yticks([0.1, 0.3, 1.0, 3.0, 10.0], ["0.1", "0.3", "1", "3", "10"])
    axis.set_xlabel("predicted: survival of exp(-t) or less, t in nats", fontsize=8)
    axis.set_ylabel("found over predicted", fontsize=8)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8, frameon=False, ncols=4, loc="upper left")
    return figure


def tails(one: KindCalibration) -> Figure | None:
    """Draw how often each detector's maxima exceed a surprise, against the fitted line."""
    shown = {n: t for n, t in one.tails.items() if len(t.maxima) and t.maxima[0] > 0.0}
    if not shown:
        return None
    columns = 4
    rows = math.ceil(len(shown) / columns)
    figure, axes = _panels(columns, 2.0 * rows, rows)
    for axis, (name, fitted) in zip(axes, shown.items(), strict=False):
        positive = fitted.maxima[fitted.maxima > 0.0].astype(float)
        rank = np.arange(1, len(positive) + 1)
        axis.plot(positive, rank / fitted.events, ".", color=BAR, markersize=3)
        axis.set_yscale("log")
        grid = np.linspace(0.0, float(positive[0]) * 1.05, 50)
        line = np.exp(np.minimum(fitted.tail.offset - fitted.tail.slope * grid, 0.0))
        axis.plot(grid, line, color=COLOURS[1], linewidth=1.2)
        axis.set_ylim(0.3 / fitted.events, 1.5)
        axis.set_title(f"{name}: slope {fitted.tail.slope:.2f}", fontsize=9)
    for axis in axes[len(shown) :]:
        axis.set_visible(False)
    figure.supxlabel("surprise, nats", fontsize=8)
    figure.supylabel("per scored event", fontsize=8)
    return figure
