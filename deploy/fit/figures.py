"""Figures of a fit, as PNG."""

from __future__ import annotations

import io
import math
from statistics import NormalDist
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from deploy.fit.run import KindResult
from flink_jobs.calibrate import FittedTail
from flink_jobs.pit import kolmogorov
from models.empirical_bayes import VariancePopulation
from models.level_fit import noise_var_at
from models.prior import PIT_BINS, Tail
from models.prior_diagnosis import pooled_acf
from models.prior_fit import FEWEST_TAIL_EVENTS, TAIL_CLUSTERS

DATA, FIT, SECOND, GREY = "#8fb4d9", "#b3261e", "#2f6f4f", "#777777"
DPI = 110
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def figures(kind: KindResult) -> dict[str, bytes]:
    """Draw all figures of one kind: title and PNG."""
    drawn = {
        "Entities and the prior over them": _entities(kind),
        "Residuals of the level": _residuals(kind),
        "PIT: where events fell in what was predicted": _pits(kind),
        "Weekly profile": _profile(kind),
        "Calibration: tails without the model": _tails(kind.unaided),
    }
    if kind.aided is not None:
        drawn["Calibration: tails with the model"] = _tails(kind.aided)
    return {title: _png(figure) for title, figure in drawn.items() if figure is not None}


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()


def _panels(rows: int, columns: int, height: float) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(10.0, height), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel().tolist()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    return figure, axes


def _entities(kind: KindResult) -> Figure:
    figure, (level, noise, gap, gap_noise) = _panels(1, 4, 2.8)
    prior, fit = kind.prior, kind.fit
    _normal_over(
        level, np.array([one.level for one in kind.levels]), prior.value_mean,
        prior.value_between_var, "level of the (transformed) value",
    )  # fmt: skip
    moving = [one for one in kind.levels if one.how != "constant"]
    variances = np.array([noise_var_at(one, prior.level_noise) for one in moving])
    _variances_over(noise, variances, fit.noise, prior.value_within_var, "variance of the value")
    _normal_over(gap, kind.gaps.mean, prior.gap_mean, prior.gap_between_var, "mean log gap (log s)")
    _variances_over(
        gap_noise, kind.gaps.var[kind.gaps.var > 0.0], fit.gap_noise, prior.gap_within_var,
        "variance of the log gap",
    )  # fmt: skip
    level.set_ylabel("density over entities", fontsize=8)
    return figure


def _normal_over(axis: Any, x: NDArray[np.float64], mean: float, var: float, title: str) -> None:
    axis.set_title(f"{title}\n{len(x):,} entities, line N({mean:.2f}, {var:.2f})", fontsize=8)
    sd = math.sqrt(var)
    grid = np.linspace(mean - 4.0 * sd, mean + 4.0 * sd, 200)
    if len(x):
        axis.hist(np.clip(x, grid[0], grid[-1]), bins=24, density=True, color=DATA)
    axis.plot(grid, np.exp(-0.5 * ((grid - mean) / sd) ** 2) / (sd * math.sqrt(2 * math.pi)), FIT)


def _variances_over(
    axis: Any,
    x: NDArray[np.float64],
    population: VariancePopulation | None,
    used: float,
    title: str,
) -> None:
    """Draw variances on a log axis, the fitted population over them, and the mean that is used."""
    low, high = math.log10(used) - 0.7, math.log10(used) + 0.7
    if len(x):
        # A few entities with next to no variance would squeeze the rest into one bar.
        logs = np.log10(x)
        low = min(low, float(np.quantile(logs, 0.01)) - 0.1)
        high = max(high, float(np.quantile(logs, 0.99)) + 0.1)
        edges = np.linspace(low, high, 25)
        counts, _ = np.histogram(np.clip(logs, low, high), edges)
        axis.bar(
            0.5 * (edges[1:] + edges[:-1]), counts / (len(x) * (edges[1] - edges[0])),
            edges[1] - edges[0], color=DATA,
        )  # fmt: skip
    about = f"{len(x):,} entities, used {used:.3g}"
    if population is not None and population.dof < 1e4:
        grid = np.linspace(low, high, 200)
        axis.plot(grid, _inverse_chi2_per_decade(10**grid, population), FIT)
        about += f", line dof {population.dof:.1f}"
    axis.axvline(math.log10(used), color=FIT, linestyle="--", linewidth=1)
    axis.xaxis.set_major_formatter(lambda at, _: f"{10**at:.2g}")
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.set_title(f"{title}\n{about}", fontsize=8)


def _inverse_chi2_per_decade(
    x: NDArray[np.float64], population: VariancePopulation
) -> NDArray[np.float64]:
    """Return the density of log10 of a scaled inverse chi-squared variable at x."""
    half = 0.5 * population.dof
    log_density = (
        half * math.log(half * population.scale) - math.lgamma(half) - (half + 1.0) * np.log(x)
        - half * population.scale / x
    )  # fmt: skip
    return np.exp(log_density) * x * math.log(10.0)


def _residuals(kind: KindResult) -> Figure | None:
    z = np.concatenate([*kind.innovations, np.empty(0)])
    if len(z) < 20:
        return None
    figure, (acf_axis, qq) = _panels(1, 2, 3.0)
    acf = pooled_acf(kind.innovations)
    acf_axis.bar(np.arange(1, len(acf) + 1), acf, color=DATA)
    for sign in (-1, 1):
        acf_axis.axhline(sign * 2.0 / math.sqrt(len(z)), color=GREY, linestyle="--", linewidth=1)
    acf_axis.axhline(0.0, color=GREY, linewidth=0.8)
    limit = max(0.2, 1.1 * float(np.max(np.abs(acf))))
    acf_axis.set_ylim(-limit, limit)
    acf_axis.set_title("autocorrelation of standardised innovations", fontsize=9)
    acf_axis.set_xlabel("lag (values of one entity)", fontsize=8)
    p = (np.arange(1, 400) - 0.5) / 399.0
    p = np.concatenate([[1e-4, 5e-4], p, [1 - 5e-4, 1 - 1e-4]]) if len(z) > 20_000 else p
    normal = np.array([NormalDist().inv_cdf(float(q)) for q in p])
    qq.plot(normal, normal, color=GREY, linewidth=1)
    qq.plot(normal, np.quantile(z, p), ".", color=FIT, markersize=3)
    qq.set_title(f"quantiles of {len(z):,} innovations", fontsize=9)
    qq.set_xlabel("normal", fontsize=8)
    qq.set_ylabel("found", fontsize=8)
    return figure


def _pits(kind: KindResult) -> Figure:
    figure, axes = _panels(1, 4, 2.6)
    names = {
        "value": "value, by its entity's level",
        "gap": "gap, by its entity's log-normal",
        "gap, model": "gap, by the intensity model",
    }
    for axis, (name, title) in zip(axes, names.items(), strict=False):
        counts = kind.pits.get(name)
        axis.set_title(title, fontsize=9)
        if counts is None or not counts.sum():
            axis.text(0.5, 0.5, "none", transform=axis.transAxes, ha="center", fontsize=8)
            continue
        shares = counts.reshape(PIT_BINS, -1).sum(axis=1) / counts.sum() * PIT_BINS
        _bars(axis, shares, f"KS {kolmogorov(counts):.3f}")
    axis = axes[3]
    axis.set_title("all entities, by the prior", fontsize=9)
    for name, shares, colour in (
        ("value", kind.prior.value_pit, FIT),
        ("gap", kind.prior.gap_pit, SECOND),
    ):
        if shares:
            at = np.arange(PIT_BINS + 1) / PIT_BINS
            axis.stairs(np.array(shares) * PIT_BINS, at, color=colour, label=name)
    axis.axhline(1.0, color=GREY, linestyle="--", linewidth=1)
    axis.set_ylim(0.0, None)
    if kind.prior.value_pit or kind.prior.gap_pit:
        axis.legend(fontsize=7, frameon=False)
    return figure


def _bars(axis: Any, shares: NDArray[np.float64], text: str) -> None:
    at = (np.arange(len(shares)) + 0.5) / len(shares)
    axis.bar(at, shares, 1.0 / len(shares), color=DATA, edgecolor="white", linewidth=0.3)
    axis.axhline(1.0, color=GREY, linestyle="--", linewidth=1)
    axis.set_ylim(0.0, max(1.6, 1.15 * float(shares.max())))
    axis.text(0.98, 0.97, text, transform=axis.transAxes, ha="right", va="top", fontsize=8)


def _profile(kind: KindResult) -> Figure:
    figure, (axis,) = _panels(1, 1, 2.2)
    axis.step(np.arange(168) / 24.0, kind.prior.profile, where="post", color=FIT, linewidth=1.2)
    axis.axhline(1.0, color=GREY, linestyle="--", linewidth=1)
    axis.set_xticks(np.arange(7), DAYS)
    axis.set_xlim(0.0, 7.0)
    axis.set_ylim(0.0, None)
    axis.set_ylabel("activity over the mean", fontsize=8)
    axis.set_title("by hour of the week, UTC", fontsize=9)
    return figure


def _tails(tails: dict[str, FittedTail]) -> Figure | None:
    shown = {name: one for name, one in tails.items() if len(one.maxima) and one.maxima[0] > 0.0}
    if not shown:
        return None
    columns = 3
    rows = -(-len(shown) // columns)
    figure, axes = _panels(rows, columns, 2.3 * rows)
    for axis, (name, one) in zip(axes, shown.items(), strict=False):
        _tail(axis, name, one)
    for axis in axes[len(shown) :]:
        axis.set_visible(False)
    return figure


def _tail(axis: Any, name: str, one: FittedTail) -> None:
    """Draw how often a maximum exceeds a surprise, per scored event, against the fitted line."""
    positive = one.maxima[one.maxima > 0.0].astype(float)
    rank = np.arange(1, len(positive) + 1)
    axis.plot(positive, rank / one.events, ".", color=DATA, markersize=3)
    axis.set_yscale("log")
    tail: Tail = one.tail
    start = positive[min(TAIL_CLUSTERS, len(positive) - 1)]
    grid = np.linspace(start, max(positive[0], start + 5.0), 50)
    line = np.exp(np.minimum(tail.offset - tail.slope * grid, 0.0))
    axis.plot(grid, line, color=FIT, linewidth=1.3)
    axis.set_ylim(0.2 / one.events, None)
    fitted = one.events >= FEWEST_TAIL_EVENTS and one.clusters > TAIL_CLUSTERS
    axis.set_title(
        f"{name}: slope {tail.slope:.2f}{'' if fitted else ' (not calibrated)'}", fontsize=9
    )
    axis.set_xlabel("surprise, nats", fontsize=7)
