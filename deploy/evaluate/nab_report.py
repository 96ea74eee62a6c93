"""Score the metric detector on a folder in NAB's layout: the figures of `eddy evaluate nab`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploy.evaluate.page import Section, write_page
from deploy.evaluate.picture import Picture
from deploy.evaluate.series import NabCorpus
from models.baselines.component import Component
from models.evaluation.detections import Detections, detect
from models.evaluation.nab import (
    PROFILES,
    STANDARD,
    Labelled,
    Profile,
    Score,
    best_threshold,
    normalised,
    row_values,
    score_at,
)

KEYS = {
    "standard": "standard",
    "reward_low_FP_rate": "reward_low_fp",
    "reward_low_FN_rate": "reward_low_fn",
}
Scores = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class NabRun:
    """The detector's run over a corpus.

    Attributes:
        corpus: what was scored.
        detections: by the series' name.
    """

    corpus: NabCorpus
    detections: Mapping[str, Detections]

    @property
    def scores(self) -> dict[str, NDArray[np.float64]]:
        """The detector's scores by the series' name."""
        return {name: said.score for name, said in self.detections.items()}

    @property
    def thresholds(self) -> dict[str, float]:
        """By the profile's name, the one threshold that is best for this corpus."""
        return {p.name: best_threshold(self.corpus.labels, self.scores, p) for p in PROFILES}


def run_corpus(
    corpus: NabCorpus, component: Component, done: Callable[[], None] = lambda: None
) -> NabRun:
    """Score all series, each as an entity of its own from its first event on.

    Args:
        corpus: the series.
        component: the metric detector.
        done: called after each series.
    """
    detections = {}
    for series in corpus.series:
        detections[series.name] = detect(component, series.time_ms, series.value)
        done()
    return NabRun(corpus, detections)


def nab_report(run: NabRun, thresholds: Mapping[str, float]) -> dict[str, object]:
    """Return the figures as JSON holds them.

    Args:
        run: the detector's run.
        thresholds: by the profile's name.
    """
    labels, scores = run.corpus.labels, run.scores
    report: dict[str, object] = {}
    for profile in PROFILES:
        total = score_at(labels, scores, profile, thresholds[profile.name])
        report[KEYS[profile.name]] = _round(total.normalised, 2)
    report["threshold"] = {KEYS[p.name]: _round(thresholds[p.name], 6) for p in PROFILES}
    report["counts"] = {
        KEYS[p.name]: _counts(score_at(labels, scores, p, thresholds[p.name])) for p in PROFILES
    }
    report["at_shipped_threshold"] = {
        KEYS[p.name]: _round(score_at(labels, scores, p, 1.0).normalised, 2) for p in PROFILES
    }
    categories = sorted({one.category for one in labels})
    report["by_category"] = {
        category: _figures([one for one in labels if one.category == category], scores, thresholds)
        for category in categories
    }
    report["series"] = {one.name: _figures([one], scores, thresholds) for one in labels}
    report["band_coverage"] = _round(_coverage(run), 4)
    return report


def cross_validation(run: NabRun, repetitions: int = 20) -> dict[str, object]:
    """Score each part of the corpus at the threshold that is best for the rest.

    The detector's settings stay as they are shipped: this tells what the choice of the threshold
    gains on data that it is then judged on, not what the choice of the settings does.

    Args:
        run: the detector's run.
        repetitions: how many times the series are divided into random halves, by seeds 0, 1, ...
    """
    labels = run.corpus.labels
    categories = sorted({one.category for one in labels})
    by_category = [
        [k for k, one in enumerate(labels) if one.category == category] for category in categories
    ]
    halves = []
    for seed in range(repetitions):
        order = np.random.default_rng(seed).permutation(len(labels)).tolist()
        halves.append(_folded(run, [order[::2], order[1::2]]))
    return {
        "one_category_left_out": _by_profile(_folded(run, by_category)),
        "random_halves_mean": _by_profile(np.mean(halves, axis=0)),
        "random_halves_sd": _by_profile(np.std(halves, axis=0)),
        "repetitions": repetitions,
    }


def _folded(run: NabRun, folds: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """Return the figure of each profile when each fold has the best threshold of all others."""
    labels, scores = run.corpus.labels, run.scores
    windows = sum(len(one.windows) for one in labels)
    figures = np.zeros(len(PROFILES))
    for k, profile in enumerate(PROFILES):
        raw = 0.0
        for fold in folds:
            rest = [one for i, one in enumerate(labels) if i not in set(fold)]
            threshold = best_threshold(rest, scores, profile)
            raw += score_at([labels[i] for i in fold], scores, profile, threshold).raw
        figures[k] = normalised(raw, windows, profile)
    return figures


def _by_profile(figures: NDArray[np.float64]) -> dict[str, float | None]:
    return {
        KEYS[profile.name]: _round(float(figure), 2)
        for profile, figure in zip(PROFILES, figures, strict=True)
    }


def _figures(
    labels: Sequence[Labelled], scores: Scores, thresholds: Mapping[str, float]
) -> dict[str, object]:
    figures: dict[str, object] = {}
    for profile in PROFILES:
        score = score_at(labels, scores, profile, thresholds[profile.name])
        figures[KEYS[profile.name]] = _round(score.normalised, 2)
        if profile is STANDARD:
            figures |= _counts(score)
    return figures


def _counts(score: Score) -> dict[str, object]:
    return {
        "raw": _round(score.raw, 4),
        "windows": score.windows,
        "found": score.found,
        "false_positives": score.false_positives,
    }


def _coverage(run: NabRun) -> float:
    """Return the share of judged values within the band."""
    inside = judged = 0
    for series, labelled in zip(run.corpus.series, run.corpus.labels, strict=True):
        said, late = run.detections[series.name], slice(labelled.probation, None)
        value = series.value[late]
        inside += int(((value >= said.low[late]) & (value <= said.high[late])).sum())
        judged += int(np.isfinite(value).sum())
    return inside / judged if judged else math.nan


def _round(value: float, digits: int) -> float | None:
    """Return a figure as JSON can hold it; null where there are no windows or no alerts."""
    return round(value, digits) if math.isfinite(value) else None


def write_nab_page(
    path: Path,
    run: NabRun,
    thresholds: Mapping[str, float],
    title: str,
    drawn: Callable[[], None] = lambda: None,
) -> None:
    """Write the page of pictures, the series that lost most first.

    Args:
        path: of the HTML file.
        run: the detector's run.
        thresholds: by the profile's name; the standard profile's is drawn.
        title: of the page.
        drawn: called after each picture.
    """
    threshold = thresholds[STANDARD.name]
    if not math.isfinite(threshold):
        threshold = 1.0  # nothing pays: the shipped one shows what would alert
    judged = [
        (_lost(labelled, run.scores, threshold), labelled, series)
        for labelled, series in zip(run.corpus.labels, run.corpus.series, strict=True)
    ]
    sections = []
    for lost, labelled, series in sorted(judged, key=lambda one: (-one[0], one[1].name)):
        picture = Picture(
            series, run.detections[series.name], threshold, labelled.windows, labelled.probation
        )
        score = score_at([labelled], run.scores, STANDARD, threshold)
        cells = (
            f"{lost:.2f}",
            f"{score.found} of {score.windows}",
            str(score.false_positives),
            "–" if math.isnan(score.normalised) else f"{score.normalised:.1f}",
        )
        sections.append(Section(picture, cells, _note(labelled, run.scores, threshold)))
    totals = [_line(p, run, thresholds[p.name]) for p in PROFILES]
    write_page(
        path,
        title,
        [*totals, f"Pictures at threshold {threshold:.3f}; the series that lost most stand first."],
        ("series", "points lost", "windows found", "false alerts", "standard score"),
        sections,
        drawn,
    )


def _lost(labelled: Labelled, scores: Scores, threshold: float) -> float:
    """Return how much raw score a series lacks of a perfect one, standard profile."""
    score = score_at([labelled], scores, STANDARD, threshold)
    return STANDARD.true_positive * score.windows - score.raw


def _line(profile: Profile, run: NabRun, threshold: float) -> str:
    score = score_at(run.corpus.labels, run.scores, profile, threshold)
    return (
        f"{KEYS[profile.name]}: {score.normalised:.2f} at threshold {threshold:.3f},"
        f" {score.found} of {score.windows} windows found, {score.false_positives} false alerts"
    )


def _note(labelled: Labelled, scores: Scores, threshold: float) -> str:
    """Say which windows were found, and how early."""
    values = row_values(labelled)
    alerted = (scores[labelled.name] >= threshold) & values.judged
    parts = []
    for index, (first, last) in enumerate(labelled.windows):
        rows = np.flatnonzero(alerted & (values.window == index))
        if len(rows):
            share = (rows[0] - first) / (last - first + 1)
            parts.append(f"window {index + 1} found after {share:.0%} of it")
        else:
            parts.append(f"window {index + 1} missed")
    return "; ".join(parts) or "no labelled window"
