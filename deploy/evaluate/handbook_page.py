"""One page by which a person judges the scores: distributions, curves, days, and two cases."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from deploy import page
from models.evaluation.handbook import DAY_MS, DELAY_DAYS, TOP_CARDS, Payments, split
from models.evaluation.handbook_detector import Scores
from models.evaluation.metrics import card_days, precision_recall

SCENARIOS = {
    0: ("normal", "#9aa5b1"),
    1: ("1: amount above 220", "#d1495b"),
    2: ("2: compromised terminal", "#00798c"),
    3: ("3: leaked card, amounts times 5", "#edae49"),
    -1: ("fraud, scenario unknown", "#d1495b"),
}


def write_page(
    path: Path, payments: Payments, scores: Scores, test_from_ms: int, found: Mapping[str, Any]
) -> None:
    """Write the page as one HTML file with its pictures inside.

    Args:
        path: of the file; its folder is created.
        payments: those that were scored.
        scores: of all of them.
        test_from_ms: begin of the test week.
        found: the report, as `--json` writes it.
    """
    test = split(payments, test_from_ms).test
    figures = [
        (
            "Scores of the test week by scenario. What stands right of the grey is found.",
            _distributions(payments, scores, test),
        ),
        (
            (
                "Precision and recall. The dashed line is the share of frauds with a trace in "
                "amounts: no unlabelled detector gets beyond it but by chance."
            ),
            _curves(payments, scores, test),
        ),
        (f"Cards detected among the {TOP_CARDS} checked each day.", _daily(payments, scores, test)),
    ]
    for caption, chosen in (
        ("A caught terminal: its first frauds' labels had come before the test week.", True),
        ("A missed one: compromised too recently for any label to have come.", False),
    ):
        terminal = _terminal(payments, scores, test, caught=chosen)
        if terminal is not None:
            figures.append((caption, _history(payments, scores, terminal, test_from_ms)))
    card = _leaked_card(payments, test)
    if card is not None:
        caption = "A leaked card: its amounts, the frauds among them, and the unlabelled score."
        figures.append((caption, _amounts(payments, scores, card, test_from_ms)))
    title = f"Handbook, test week from {found['test_from']}"
    pictures = [page.figure(_png(drawn), caption) for caption, drawn in figures]
    page.write_page(path, title, [_table(found), *pictures])


def _table(found: Mapping[str, Any]) -> str:
    named = {
        "unlabelled": found["unlabelled"],
        "at most, without labels": found["ceilings"]["traces"],
        "late labels": found["late_labels"],
        "at most": found["ceilings"]["all"],
        **{f"part: {name}": part for name, part in found["parts"].items()},
    }
    rows = [[name, *(f"{v:.3f}" for v in part.values())] for name, part in named.items()]
    head = ("", "ROC AUC", "average precision", f"card precision@{TOP_CARDS}")
    return page.table(rows, head)


def _distributions(payments: Payments, scores: Scores, test: NDArray[np.int64]) -> Figure:
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), sharey=True)
    for ax, score, name in (
        (axes[0], scores.unlabelled, "unlabelled: log odds of an attack + tail surprise (nats)"),
        (axes[1], scores.late, "late labels: log odds of fraud (nats)"),
    ):
        tested = np.clip(score[test], -20.0, 30.0)
        bins = np.linspace(tested.min(), tested.max(), 60).tolist()
        for each in np.unique(payments.scenario[test]):
            label, colour = SCENARIOS[int(each)]
            ax.hist(
                tested[payments.scenario[test] == each], bins=bins, label=label, color=colour,
                histtype="stepfilled" if each == 0 else "step", linewidth=1.8,
            )  # fmt: skip
        ax.set(yscale="log", xlabel=name)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("payments")
    axes[1].legend(frameon=False)
    return figure


def _curves(payments: Payments, scores: Scores, test: NDArray[np.int64]) -> Figure:
    figure, ax = plt.subplots(figsize=(8, 5))
    shown = {
        "late labels": scores.late,
        "late labels, beta-Bernoulli risk": scores.parts["late_beta_bernoulli"],
        "unlabelled": scores.unlabelled,
        "conjugate value alone": scores.parts["value_high"],
        "tail alone": scores.parts["tail"],
    }
    for name, score in shown.items():
        curve = precision_recall(payments.fraud[test], score[test])
        ax.plot(curve.recall, curve.precision, label=name)
    fraud = payments.fraud[test]
    traces = (fraud & (payments.scenario[test] != 2)).sum() / fraud.sum()
    ax.axvline(float(traces), color="#555", linestyle="--", linewidth=1)
    ax.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="center right", bbox_to_anchor=(0.99, 0.36))
    return figure


def _daily(payments: Payments, scores: Scores, test: NDArray[np.int64]) -> Figure:
    figure, ax = plt.subplots(figsize=(10, 4.5))
    day, card, fraud = payments.day[test], payments.customer[test], payments.fraud[test]
    for shift, (name, score) in enumerate(
        (("unlabelled", scores.unlabelled), ("late labels", scores.late))
    ):
        days = card_days(day, card, fraud, score[test], TOP_CARDS)
        x = np.arange(len(days)) + 0.4 * shift
        ax.bar(x, [d.detected.sum() for d in days], 0.36, label=f"{name}: detected")
        ax.plot(x, [d.defrauded for d in days], "_", color="black", markersize=16)
    ax.plot([], [], "_", color="black", label="defrauded and not detected before")
    labels = [str(np.datetime64(int(d.day), "D")) for d in days]
    ax.set_xticks(np.arange(len(days)) + 0.2, labels, rotation=30)
    ax.set_ylabel("cards")
    ax.set_ylim(0, 1.25 * ax.get_ylim()[1])
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, ncols=3, loc="upper center")
    return figure


def _terminal(
    payments: Payments, scores: Scores, test: NDArray[np.int64], *, caught: bool
) -> int | None:
    """Return the terminal with most frauds of scenario 2 above (or below) even odds."""
    at = test[payments.fraud[test] & (payments.scenario[test] == 2)]
    at = at[(scores.late[at] > 0.0) == caught]
    if len(at) == 0:
        return None
    terminals, count = np.unique(payments.terminal[at], return_counts=True)
    return int(terminals[np.argmax(count)])


def _leaked_card(payments: Payments, test: NDArray[np.int64]) -> int | None:
    at = test[payments.fraud[test] & (payments.scenario[test] == 3)]
    if len(at) == 0:
        return None
    cards, count = np.unique(payments.customer[at], return_counts=True)
    return int(cards[np.argmax(count)])


def _history(payments: Payments, scores: Scores, terminal: int, test_from_ms: int) -> Figure:
    at = np.flatnonzero(payments.terminal == terminal)
    at = at[payments.time_ms[at] >= test_from_ms - 50 * DAY_MS]
    when = payments.time_ms[at].astype("datetime64[ms]")
    fraud = payments.fraud[at]
    figure, ax = plt.subplots(figsize=(10, 3.5))
    ax.step(when, scores.parts["compromise"][at], where="post", color="#00798c",
            label="probability of fraud by the terminal, when the payment came")  # fmt: skip
    ax.plot(when[~fraud], np.zeros((~fraud).sum()), "|", color="#9aa5b1", markersize=12,
            label="normal payment")  # fmt: skip
    ax.plot(when[fraud], np.ones(fraud.sum()), "v", color="#d1495b", label="fraud")
    come = (payments.time_ms[at][fraud] + DELAY_DAYS * DAY_MS).astype("datetime64[ms]")
    ax.plot(come, np.full(fraud.sum(), 1.06), "|", color="#d1495b", markersize=8,
            label="its label comes")  # fmt: skip
    _mark_week(ax, test_from_ms)
    ax.set(ylim=(-0.1, 1.5), ylabel=f"terminal {terminal}", yticks=[0.0, 0.5, 1.0])
    ax.legend(frameon=False, ncols=2, loc="upper left", fontsize="small")
    return figure


def _amounts(payments: Payments, scores: Scores, card: int, test_from_ms: int) -> Figure:
    at = np.flatnonzero(payments.customer == card)
    at = at[payments.time_ms[at] >= test_from_ms - 50 * DAY_MS]
    when = payments.time_ms[at].astype("datetime64[ms]")
    fraud = payments.fraud[at]
    figure, axes = plt.subplots(2, 1, figsize=(10, 5), sharex=True)
    axes[0].plot(when[~fraud], payments.amount[at][~fraud], ".", color="#9aa5b1", label="normal")
    axes[0].plot(when[fraud], payments.amount[at][fraud], "v", color="#d1495b", label="fraud")
    axes[0].set_ylabel(f"amount, card {card}")
    axes[0].legend(frameon=False, loc="upper left")
    axes[1].vlines(when, -20.0, scores.unlabelled[at], color=np.where(fraud, "#d1495b", "#9aa5b1"))
    axes[1].set(ylabel="unlabelled score", ylim=(-20.0, None))
    for ax in axes:
        _mark_week(ax, test_from_ms)
    return figure


def _mark_week(ax: Any, test_from_ms: int) -> None:
    begin = np.datetime64(test_from_ms, "ms")
    ax.tick_params(axis="x", rotation=20)  # whole dates overlap each other otherwise
    ax.axvspan(begin, begin + np.timedelta64(7, "D"), color="#edae49", alpha=0.15, linewidth=0)
    ax.spines[["top", "right"]].set_visible(False)


def _png(drawn: Figure) -> bytes:
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    plt.close(drawn)
    return buffer.getvalue()
