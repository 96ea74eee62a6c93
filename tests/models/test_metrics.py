"""Figures of merit against closed cases and plain counting."""

from __future__ import annotations

import numpy as np
import pytest

from models.evaluation.metrics import (
    average_precision,
    card_days,
    card_precision,
    precision_recall,
    roc_auc,
)

LABEL = np.array([True, False, True, False, False])
SCORE = np.array([0.9, 0.8, 0.7, 0.2, 0.1])


def test_closed_cases() -> None:
    assert average_precision(LABEL, SCORE) == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert roc_auc(LABEL, SCORE) == pytest.approx(5 / 6)
    assert average_precision(LABEL, LABEL.astype(np.float64)) == 1.0
    assert roc_auc(LABEL, LABEL.astype(np.float64)) == 1.0
    assert roc_auc(LABEL, -LABEL.astype(np.float64)) == 0.0


def test_a_constant_score_has_the_base_rate() -> None:
    constant = np.full(5, 0.5)
    assert average_precision(LABEL, constant) == pytest.approx(0.4)
    assert roc_auc(LABEL, constant) == 0.5


@pytest.mark.parametrize("seed", range(4))
def test_ties_and_all_against_counting(seed: int) -> None:
    rng = np.random.default_rng(seed)
    label = rng.uniform(size=60) < 0.3
    score = rng.integers(0, 8, 60).astype(np.float64)
    pairs = score[label][:, None] - score[~label][None, :]
    assert roc_auc(label, score) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())
    area, before = 0.0, 0.0
    for threshold in sorted(set(score), reverse=True):
        chosen = score >= threshold
        recall = label[chosen].sum() / label.sum()
        area += (recall - before) * label[chosen].mean()
        before = recall
    assert average_precision(label, score) == pytest.approx(area)
    order = rng.permutation(60)
    assert average_precision(label[order], score[order]) == pytest.approx(area)


def test_the_curve() -> None:
    curve = precision_recall(LABEL, SCORE)
    assert curve.threshold.tolist() == SCORE.tolist()
    assert curve.recall.tolist() == [0.5, 0.5, 1.0, 1.0, 1.0]
    assert curve.precision == pytest.approx([1.0, 0.5, 2 / 3, 0.5, 0.4])


def test_odd_input_is_refused() -> None:
    with pytest.raises(ValueError, match="one label for each score"):
        roc_auc(LABEL, SCORE[:3])
    with pytest.raises(ValueError, match="no NaN"):
        average_precision(LABEL, np.full(5, np.nan))
    with pytest.raises(ValueError, match="at least one positive"):
        average_precision(np.zeros(5, np.bool_), SCORE)
    with pytest.raises(ValueError, match="found 0 and 5"):
        roc_auc(np.zeros(5, np.bool_), SCORE)
    with pytest.raises(ValueError, match="expected top > 0"):
        card_days(np.zeros(5, np.int64), np.zeros(5, np.int64), LABEL, SCORE, 0)


def test_detected_cards_leave_later_days() -> None:
    day = np.array([1, 1, 1, 2, 2, 2])
    card = np.array([7, 7, 8, 7, 8, 9])
    label = np.array([True, False, False, True, True, True])
    score = np.array([0.1, 0.9, 0.5, 1.0, 0.6, 0.2])
    first, second = card_days(day, card, label, score, 1)
    assert (first.day, first.checked.tolist(), first.detected.tolist()) == (1, [7], [True])
    assert first.defrauded == 1
    # Card 7 was detected on day 1; card 8 is the best of those that are left.
    assert (second.checked.tolist(), second.detected.tolist()) == ([8], [True])
    assert second.defrauded == 2
    assert card_precision([first, second], 1) == 1.0
    assert card_precision(card_days(day, card, label, score, 2), 2) == pytest.approx(0.75)
