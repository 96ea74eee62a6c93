"""The scoring of the Numenta Anomaly Benchmark (NAB): windows, profiles, threshold, figures.

Lavin and Ahmad 2015, "Evaluating real-time anomaly detection algorithms - the Numenta anomaly
benchmark", ICMLA; written from the description in the data's README, version 1.1 of the benchmark.
NAB itself searches the threshold by hill climbing; here every threshold is tried.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PROBATION_SHARE = 0.15
PROBATION_ROWS = 750  # 15% of 5,000 rows, at most
STEEPNESS = 5.0
FAR = 3.0  # window lengths after a window, from which on a false alert counts in full


@dataclass(frozen=True, slots=True)
class Profile:
    """What a profile pays and charges.

    Attributes:
        name: as NAB's profiles.json names it.
        true_positive: of a window found at its very beginning.
        false_positive: charged for an alerted row far from every window.
        false_negative: charged for a window without an alert.
    """

    name: str
    true_positive: float
    false_positive: float
    false_negative: float


STANDARD = Profile("standard", 1.0, 0.11, 1.0)
REWARD_LOW_FP = Profile("reward_low_FP_rate", 1.0, 0.22, 1.0)
REWARD_LOW_FN = Profile("reward_low_FN_rate", 1.0, 0.11, 2.0)
PROFILES = (STANDARD, REWARD_LOW_FP, REWARD_LOW_FN)


@dataclass(frozen=True, slots=True)
class Labelled:
    """The labels of one series, by row.

    Attributes:
        name: "category/file.csv".
        rows: how many rows the series has.
        windows: (first, last) row of each labelled window, both inclusive, in order, disjoint.
    """

    name: str
    rows: int
    windows: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        before = -1
        for first, last in self.windows:
            if not before < first <= last < self.rows:
                raise ValueError(
                    f"{self.name}: expected windows in order and apart within {self.rows} rows,"
                    f" found {self.windows}"
                )
            before = last

    @property
    def category(self) -> str:
        """The folder of the series."""
        return self.name.partition("/")[0]

    @property
    def probation(self) -> int:
        """How many rows at the beginning are not judged: the detector may learn from them."""
        return min(math.floor(PROBATION_SHARE * self.rows), PROBATION_ROWS)


@dataclass(frozen=True, slots=True)
class RowValues:
    """What an alert at each row of one series is worth, in units of a profile's weights.

    Attributes:
        window: int32[n], index of the window that holds the row; -1 outside.
        gain: float64[n], inside a window its credit in (0, 1] of `true_positive`; outside its
            charge in [-1, 0] of `false_positive`.
        judged: bool[n], false in probation.
    """

    window: NDArray[np.int32]
    gain: NDArray[np.float64]
    judged: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Score:
    """The score of a set of series under one profile and threshold.

    Attributes:
        raw: the sum of earned and charges.
        windows: how many windows there are.
        found: how many of them hold an alert.
        false_positives: alerted rows outside windows.
        normalised: 100 for a perfect detector, 0 for one that never alerts; NaN without windows.
    """

    raw: float
    windows: int
    found: int
    false_positives: int
    normalised: float


def scaled_sigmoid(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 2 / (1 + exp(5 y)) - 1, and -1 from `FAR` on."""
    inside = np.minimum(y, FAR)
    return np.where(y > FAR, -1.0, 2.0 / (1.0 + np.exp(STEEPNESS * inside)) - 1.0)


def row_values(labelled: Labelled) -> RowValues:
    """Work out what an alert at each row is worth.

    Inside a window [l, r] row i has y = -(r - i + 1) / (r - l + 1), and its credit is s(y) / s(-1)
    with the scaled sigmoid s. After a window y = (i - r) / (r - l), and the charge is s(y); before
    the first window it is -1.
    """
    n = labelled.rows
    window = np.full(n, -1, np.int32)
    gain = np.full(n, -1.0)
    at_start = scaled_sigmoid(np.array(-1.0))
    for index, (first, last) in enumerate(labelled.windows):
        following = labelled.windows[index + 1 : index + 2]
        end = following[0][0] if following else n
        inside = np.arange(first, last + 1)
        window[inside] = index
        gain[inside] = scaled_sigmoid(-(last - inside + 1) / (last - first + 1)) / at_start
        after = np.arange(last + 1, end)
        # A window of one row has no length to count in: what follows it is far from it.
        distance = (after - last) / (last - first) if last > first else np.full(len(after), np.inf)
        gain[after] = scaled_sigmoid(distance)
    return RowValues(window, gain, np.arange(n) >= labelled.probation)


def score_at(
    series: Sequence[Labelled],
    scores: Mapping[str, NDArray[np.float64]],
    profile: Profile,
    threshold: float,
) -> Score:
    """Score detections at one threshold for all series: a row alerts at `score >= threshold`.

    Args:
        series: the labels.
        scores: by the series' name, float64[n], finite.
        profile: what is paid and charged.
        threshold: the least score of an alert; infinity for none.

    Raises:
        ValueError: A series has no scores, too many or too few, or some that are not finite.
    """
    raw = 0.0
    windows = found = false_positives = 0
    for labelled in series:
        values = row_values(labelled)
        alerted = (_checked(labelled, scores) >= threshold) & values.judged
        outside = alerted & (values.window < 0)
        raw += profile.false_positive * float(values.gain[outside].sum())
        false_positives += int(outside.sum())
        windows += len(labelled.windows)
        for index in range(len(labelled.windows)):
            earned = values.gain[alerted & (values.window == index)]
            found += len(earned) > 0
            raw += (
                profile.true_positive * float(earned.max())
                if len(earned)
                else -profile.false_negative
            )
    return Score(raw, windows, found, false_positives, normalised(raw, windows, profile))


def normalised(raw: float, windows: int, profile: Profile) -> float:
    """Return 100 (raw - null) / (perfect - null); NaN where there are no windows."""
    if windows == 0:
        return math.nan
    null = -profile.false_negative * windows
    return 100.0 * (raw - null) / (profile.true_positive * windows - null)


def best_threshold(
    series: Sequence[Labelled], scores: Mapping[str, NDArray[np.float64]], profile: Profile
) -> float:
    """Return the one threshold that gives all series together the highest raw score.

    Every distinct score is tried, and infinity (no alert at all). Of equally good ones the highest
    is taken: it alerts least. Args and errors are those of `score_at`.
    """
    levels: list[NDArray[np.float64]] = []
    changes: list[NDArray[np.float64]] = []
    for labelled in series:
        values = row_values(labelled)
        score = _checked(labelled, scores)
        outside = values.judged & (values.window < 0)
        levels.append(score[outside])
        changes.append(profile.false_positive * values.gain[outside])
        for index in range(len(labelled.windows)):
            rows = np.flatnonzero(values.judged & (values.window == index))
            rows = rows[np.argsort(-score[rows], kind="stable")]
            # Lowering the threshold past a row lifts the window to the best credit so far.
            best = np.maximum.accumulate(profile.true_positive * values.gain[rows])
            levels.append(score[rows])
            changes.append(np.diff(best, prepend=-profile.false_negative))
    level = np.concatenate([np.zeros(0), *levels])
    if len(level) == 0:
        return math.inf
    order = np.argsort(-level, kind="stable")
    level = level[order]
    total = np.cumsum(np.concatenate(changes)[order])
    last_of_level = np.flatnonzero(np.append(level[1:] != level[:-1], True))
    top = int(last_of_level[np.argmax(total[last_of_level])])
    return float(level[top]) if total[top] > 0.0 else math.inf


def _checked(labelled: Labelled, scores: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    if labelled.name not in scores:
        raise ValueError(f"expected scores of {labelled.name}, found those of {len(scores)} others")
    score = np.asarray(scores[labelled.name], np.float64)
    if score.shape != (labelled.rows,) or not np.isfinite(score).all():
        raise ValueError(
            f"{labelled.name}: expected {labelled.rows} finite scores, found shape {score.shape}"
            f" with {int((~np.isfinite(score)).sum())} that are not finite"
        )
    return score
