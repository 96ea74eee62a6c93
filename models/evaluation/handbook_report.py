"""What is reported of the handbook's test weeks: figures, parts, ceilings, other weeks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.evaluation.handbook import Payments, Split, figures, split
from models.evaluation.handbook_detector import DWELLS_DAYS, Scores
from models.evaluation.metrics import average_precision

TERMINAL_SCENARIO = 2  # leaves no trace in amounts or times: only labels tell
Report = dict[str, Any]


def report(
    payments: Payments, scores: Scores, test_from_ms: int, others_ms: Mapping[str, int]
) -> Report:
    """Return everything that `eddy evaluate handbook --json` says of one run, but its speed.

    Args:
        payments: those that were scored.
        scores: of all of them.
        test_from_ms: begin of the test week.
        others_ms: further test weeks by name, for stability.

    Raises:
        ValueError: see `split`; or a test week without fraud.
    """
    chosen = split(payments, test_from_ms)
    return {
        "unlabelled": figures(payments, chosen.test, scores.unlabelled),
        "late_labels": figures(payments, chosen.test, scores.late),
        "rows": _rows(payments, chosen),
        "ceilings": ceilings(payments, chosen.test),
        "by_scenario": by_scenario(payments, chosen.test, scores),
        "parts": {n: figures(payments, chosen.test, s) for n, s in scores.parts.items()},
        "learned": {
            "fusion_weights": [round(float(w), 4) for w in scores.weights],
            "dwell_days": {
                f"{days:g}": round(float(w), 4)
                for days, w in zip(DWELLS_DAYS, scores.dwell_weights, strict=True)
            },
        },
        "weeks": {name: _week(payments, scores, ms) for name, ms in others_ms.items()},
    }


def ceilings(payments: Payments, test: NDArray[np.int64]) -> Mapping[str, Mapping[str, float]]:
    """Return what perfect detectors would get: of all frauds, and of those that leave a trace.

    The handbook's scenario 2 changes neither amounts nor times: without labels nothing tells its
    payments from normal ones. `traces` therefore bounds what any detector can expect unlabelled.
    """
    fraud = payments.fraud
    trace = fraud & (payments.scenario != TERMINAL_SCENARIO)
    return {
        "traces": figures(payments, test, trace.astype(np.float64)),
        "all": figures(payments, test, fraud.astype(np.float64)),
    }


def by_scenario(
    payments: Payments, test: NDArray[np.int64], scores: Scores
) -> Mapping[str, Mapping[str, float]]:
    """Return, for each scenario, average precision of its frauds among the normal payments."""
    scenario, fraud = payments.scenario[test], payments.fraud[test]
    found = {}
    for each in np.unique(scenario[fraud]):
        at = test[~fraud | (scenario == each)]
        found[str(each)] = {
            "payments": int((fraud & (scenario == each)).sum()),
            "unlabelled": average_precision(payments.fraud[at], scores.unlabelled[at]),
            "late_labels": average_precision(payments.fraud[at], scores.late[at]),
        }
    return found


def stability(weeks: Sequence[Mapping[str, Any]], key: str) -> tuple[float, float, float]:
    """Return (least, mean, most) average precision of `key` over several weeks' reports."""
    values = [week[key]["average_precision"] for week in weeks]
    return min(values), float(np.mean(values)), max(values)


def _rows(payments: Payments, chosen: Split) -> Mapping[str, int]:
    return {
        "train": len(chosen.train),
        "train_fraud": int(payments.fraud[chosen.train].sum()),
        "test": len(chosen.test),
        "test_fraud": int(payments.fraud[chosen.test].sum()),
    }


def _week(payments: Payments, scores: Scores, test_from_ms: int) -> Report:
    chosen = split(payments, test_from_ms)
    return {
        "unlabelled": figures(payments, chosen.test, scores.unlabelled),
        "late_labels": figures(payments, chosen.test, scores.late),
        "ceiling_unlabelled": ceilings(payments, chosen.test)["traces"]["average_precision"],
        "rows": _rows(payments, chosen),
    }
