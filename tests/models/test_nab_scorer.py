"""NAB's scoring: by hand, by brute force, and with a detector whose figures are published."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from deploy.evaluate.series import NabCorpus, read_nab
from models.evaluation.nab import (
    PROFILES,
    REWARD_LOW_FN,
    REWARD_LOW_FP,
    STANDARD,
    Labelled,
    best_threshold,
    normalised,
    row_values,
    score_at,
)
from tests.nab_data import needs_nab

ONE = Labelled("a/one.csv", 100, ((40, 49),))


def sigmoid(y: float) -> float:
    return 2.0 / (1.0 + math.exp(5.0 * y)) - 1.0


def test_credit_within_a_window_falls_from_one() -> None:
    values = row_values(ONE)
    assert values.gain[40] == 1.0
    assert values.gain[45] == pytest.approx(sigmoid(-0.5) / sigmoid(-1.0))
    assert values.gain[49] == pytest.approx(sigmoid(-0.1) / sigmoid(-1.0))
    assert (np.diff(values.gain[40:50]) < 0.0).all()
    assert values.window[39:51].tolist() == [-1] + [0] * 10 + [-1]


def test_charges_before_and_after_a_window() -> None:
    values = row_values(ONE)
    assert (values.gain[:40] == -1.0).all()
    assert values.gain[50] == pytest.approx(sigmoid(1.0 / 9.0))
    assert values.gain[49 + 27] == pytest.approx(sigmoid(3.0))
    assert values.gain[49 + 28] == -1.0


def test_the_nearest_window_before_a_row_counts() -> None:
    values = row_values(Labelled("a/two.csv", 200, ((20, 29), (100, 119))))
    assert values.gain[31] == pytest.approx(sigmoid(2.0 / 9.0))
    assert values.gain[99] == -1.0
    assert values.gain[121] == pytest.approx(sigmoid(2.0 / 19.0))


def test_a_window_of_one_row() -> None:
    values = row_values(Labelled("a/b.csv", 10, ((5, 5),)))
    assert values.gain[5] == 1.0
    assert (values.gain[6:] == -1.0).all()


@pytest.mark.parametrize(("rows", "probation"), [(100, 15), (4032, 604), (5000, 750), (99999, 750)])
def test_probation(rows: int, probation: int) -> None:
    labelled = Labelled("a/b.csv", rows, ())
    assert labelled.probation == probation
    assert row_values(labelled).judged.sum() == rows - probation


@pytest.mark.parametrize("windows", [((5, 4),), ((0, 10),), ((2, 4), (4, 6)), ((-1, 3),)])
def test_odd_windows_are_refused(windows: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ValueError, match="expected windows in order and apart"):
        Labelled("a/b.csv", 10, windows)


def test_the_best_alert_of_a_window_counts_once() -> None:
    scores = np.zeros(100)
    scores[[5, 44, 46, 60]] = 1.0  # row 5 is in probation
    result = score_at([ONE], {ONE.name: scores}, STANDARD, 1.0)
    expected = sigmoid(-0.6) / sigmoid(-1.0) + 0.11 * sigmoid(11.0 / 9.0)
    assert result.raw == pytest.approx(expected)
    assert (result.windows, result.found, result.false_positives) == (1, 1, 1)
    assert result.normalised == pytest.approx(100.0 * (expected + 1.0) / 2.0)


def test_the_scale_of_the_score() -> None:
    for profile in PROFILES:
        nothing = score_at([ONE], {ONE.name: np.zeros(100)}, profile, math.inf)
        assert nothing.normalised == 0.0
        perfect = np.zeros(100)
        perfect[40] = 1.0
        assert score_at([ONE], {ONE.name: perfect}, profile, 1.0).normalised == 100.0
    assert math.isnan(normalised(0.0, 0, STANDARD))


def test_scores_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="expected scores of a/one.csv"):
        score_at([ONE], {}, STANDARD, 1.0)
    for odd in (np.zeros(99), np.full(100, np.nan)):
        with pytest.raises(ValueError, match="expected 100 finite scores"):
            best_threshold([ONE], {ONE.name: odd}, STANDARD)


@given(st.integers(0, 10_000))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_no_threshold_is_better_than_the_best(seed: int) -> None:
    rng = np.random.default_rng(seed)
    series = [
        Labelled("a/1.csv", 120, ((30, 41), (70, 90))),
        Labelled("a/2.csv", 60, ((20, 25),)),
        Labelled("b/3.csv", 40, ()),
    ]
    scores = {one.name: rng.integers(0, 12, one.rows) / 4.0 for one in series}
    for profile in PROFILES:
        tried = {
            threshold: score_at(series, scores, profile, threshold).raw
            for threshold in [math.inf, *np.unique(np.concatenate(list(scores.values()))).tolist()]
        }
        best = best_threshold(series, scores, profile)
        assert tried[best] == pytest.approx(max(tried.values()))


def test_without_series_nothing_alerts() -> None:
    assert best_threshold([], {}, STANDARD) == math.inf
    quiet = Labelled("a/b.csv", 100, ())
    assert best_threshold([quiet], {quiet.name: np.ones(100)}, STANDARD) == math.inf
    tiny = Labelled("a/c.csv", 0, ())
    assert best_threshold([tiny], {tiny.name: np.zeros(0)}, STANDARD) == math.inf


def relative_entropy(value: NDArray[np.float64]) -> NDArray[np.float64]:
    """Score 1 where the last 52 values are spread unlike any spread before (Wang et al. 2011).

    NAB's published figures of "relativeEntropy" come from this method: five bins of the series'
    whole range, and a chi-squared test at 1% of 2 * 52 times the relative entropy.
    """
    bins, length = 5, 52
    scores = np.zeros(len(value))
    width = (value.max() - value.min()) / bins
    if width == 0.0:
        return scores
    binned = np.ceil((value - value.min()) / width)
    limit = stats.chi2.isf(0.01, bins - 1)
    known = np.zeros((0, bins))
    for end in range(length, len(value) + 1):
        spread = np.histogram(binned[end - length : end], bins=bins, range=(0, bins), density=True)
        share = spread[0]
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(share > 0.0, share * np.log(share / known), 0.0)
        if len(known) == 0 or (2 * length * terms.sum(axis=1)).min() >= limit:
            scores[end - 1] = float(len(known) > 0)
            known = np.vstack([known, share])
    return scores


@pytest.fixture(scope="module")
def corpus() -> NabCorpus:
    return read_nab(needs_nab())


@pytest.mark.slow
def test_the_published_figures_of_a_published_detector(corpus: NabCorpus) -> None:
    folder = needs_nab()
    scores = {one.name: relative_entropy(one.value) for one in corpus.series}
    compared = 0
    for row in _rows(folder / "published_scores_by_category.csv"):
        profile = next(p for p in PROFILES if p.name == row["profile"])
        labels = [one for one in corpus.labels if one.category == row["category"]]
        if row["detector"] != "relativeEntropy" or not labels:
            continue
        score = score_at(labels, scores, profile, float(row["threshold"]))
        assert score.raw == pytest.approx(float(row["raw_score"]), abs=6e-5), row
        assert score.windows == int(row["windows"])
        compared += 1
    assert compared == 15
    for row in _rows(folder / "published_scores_dev_holdout.csv"):
        if row["detector"] == "relativeEntropy":
            profile = next(p for p in PROFILES if p.name == row["profile"])
            threshold = best_threshold(corpus.labels, scores, profile)
            best = score_at(corpus.labels, scores, profile, threshold)
            assert best.normalised == pytest.approx(float(row["dev_opt"]), abs=6e-3)


def test_the_corpus_is_as_described(corpus: NabCorpus) -> None:
    assert len(corpus.series) == 41
    assert sum(len(one.windows) for one in corpus.labels) == 64
    null = {one.name: np.zeros(one.rows) for one in corpus.labels}
    for profile, raw in ((STANDARD, -64.0), (REWARD_LOW_FP, -64.0), (REWARD_LOW_FN, -128.0)):
        assert score_at(corpus.labels, null, profile, 1.0).raw == raw


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
