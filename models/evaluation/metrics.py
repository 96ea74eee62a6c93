"""Figures of merit of a ranking: ROC AUC, average precision, and card precision.

Tied scores are taken together, so that no figure depends on the order of the input.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class PrecisionRecall:
    """Precision and recall at each distinct score, from the highest score down.

    Attributes:
        threshold: float64[k], the distinct scores, descending.
        precision: float64[k], of the events that score at least the threshold.
        recall: float64[k], ascending to 1.
    """

    threshold: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]


def precision_recall(label: NDArray[np.bool_], score: NDArray[np.float64]) -> PrecisionRecall:
    """Return the curve of precision and recall.

    Args:
        label: bool[m], True is positive.
        score: float64[m], higher is more suspicious; no NaN.

    Raises:
        ValueError: lengths differ, a score is NaN, or no label is positive.
    """
    positive, descending = _checked(label, score)
    if not positive.any():
        raise ValueError("expected at least one positive label, found none")
    order = np.argsort(-descending, kind="stable")
    sorted_score = descending[order]
    last = np.flatnonzero(np.append(np.diff(sorted_score) != 0.0, True))  # of each tie
    found = np.cumsum(positive[order])[last].astype(np.float64)
    return PrecisionRecall(sorted_score[last], found / (last + 1.0), found / positive.sum())


def average_precision(label: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    """Return the sum over thresholds of precision times the gain in recall (no interpolation).

    Raises:
        ValueError: see `precision_recall`.
    """
    curve = precision_recall(label, score)
    return float(np.sum(np.diff(curve.recall, prepend=0.0) * curve.precision))


def roc_auc(label: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    """Return P(positive scores above negative) + P(they tie) / 2 (Mann and Whitney 1947).

    Raises:
        ValueError: lengths differ, a score is NaN, or one of the classes is empty.
    """
    positive, values = _checked(label, score)
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if positives == 0 or negatives == 0:
        raise ValueError(
            f"expected positive and negative labels, found {positives} and {negatives}"
        )
    _, inverse, count = np.unique(values, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(count) - (count - 1) / 2.0
    rank_sum = float(mean_rank[inverse][positive].sum())
    return (rank_sum - positives * (positives + 1) / 2.0) / (positives * negatives)


@dataclass(frozen=True, slots=True)
class CardDay:
    """What a team that checks the top cards found on one day.

    Attributes:
        day: the day's number.
        checked: int64[<= k], the cards in the order of their scores.
        detected: bool[<= k], which of them are defrauded that day.
        defrauded: number of cards defrauded that day and not detected on an earlier one.
    """

    day: int
    checked: NDArray[np.int64]
    detected: NDArray[np.bool_]
    defrauded: int


def card_days(
    day: NDArray[np.int64],
    card: NDArray[np.int64],
    label: NDArray[np.bool_],
    score: NDArray[np.float64],
    top: int,
) -> list[CardDay]:
    """Check the `top` cards of each day by their highest score; detected ones leave later days.

    The handbook's card precision at top k (its chapter 4, "precision top-k metrics"). Cards with
    equal scores are taken by ascending number.

    Args:
        day: int64[m], of each payment.
        card: int64[m].
        label: bool[m].
        score: float64[m], no NaN.
        top: cards checked each day, > 0.

    Raises:
        ValueError: lengths differ, a score is NaN, or `top` is not positive.
    """
    positive, values = _checked(label, score)
    if top <= 0 or len(day) != len(card) or len(day) != len(values):
        raise ValueError(
            f"expected top > 0 and equal lengths, found {top}, {len(day)}, {len(card)}"
        )
    gone: NDArray[np.int64] = np.empty(0, np.int64)
    days = []
    for each in np.unique(day):
        at = np.flatnonzero((day == each) & ~np.isin(card, gone))
        cards, index = np.unique(card[at], return_inverse=True)
        highest = np.full(len(cards), -np.inf)
        np.maximum.at(highest, index, values[at])
        defrauded = np.zeros(len(cards), np.bool_)
        np.logical_or.at(defrauded, index, positive[at])
        best = np.argsort(-highest, kind="stable")[:top]
        days.append(CardDay(int(each), cards[best], defrauded[best], int(defrauded.sum())))
        gone = np.concatenate([gone, cards[best][defrauded[best]]])
    return days


def card_precision(days: list[CardDay], top: int) -> float:
    """Return the mean over days of the share of the `top` checked cards that are defrauded."""
    return float(np.mean([each.detected.sum() / top for each in days]))


def _checked(
    label: NDArray[np.bool_], score: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    positive = np.asarray(label, np.bool_)
    values = np.asarray(score, np.float64)
    if positive.shape != values.shape or positive.ndim != 1:
        raise ValueError(
            f"expected one label for each score, found {positive.shape} and {values.shape}"
        )
    if np.isnan(values).any():
        raise ValueError(f"expected no NaN among the scores, found {int(np.isnan(values).sum())}")
    return positive, values
