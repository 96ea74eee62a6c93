"""How well the sequence statistic tells anomalous event sequences from normal ones.

The statistic is that of `models/tpp/sequence.py`, as the component `sequence` of the job has it.

The protocol of Shchur et al. (NeurIPS 2021): a statistic s of a test sequence becomes the p-value 2
min(F(s), 1 - F(s)) with F its empirical distribution on normal training sequences; the figure is
the area under the ROC curve of that p-value between normal and anomalous test sequences. The
statistic here is a p-value already, by a null that it brings along, so its area is taken as it
stands (by 1 - F(s) it would differ only by ties at 0, .0005 on average). Beside it stand the
paper's 3S, the sum of squared spacings, and the ceiling: the likelihood ratio of the anomalous
process against the normal one, both known, which no test of these sequences can beat (Neyman and
Pearson).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.evaluation.metrics import roc_auc
from models.evaluation.scenarios import END, SCENARIOS, Scenario, Sequences, normal_sample
from models.tpp.sequence import SEQUENCE
from models.tpp.sequence_component import score_at, take

JUDGED = 0.5  # the detectability of the goals


def sequence_surprise(sequences: Sequences) -> NDArray[np.float64]:
    """Return float64[n], -log p of the sequence statistic at END; the model is Poisson with rate 1.

    Each sequence is an entity of its own that begins at 0; event by event it is taken in, and at
    END a timer asks. Under that model a gap's compensator is the gap.
    """
    lengths = np.diff(sequences.offset)
    entity = np.arange(len(sequences), dtype=np.int32)
    gap = np.diff(sequences.time, prepend=0.0)
    begins = sequences.offset[:-1][lengths > 0]
    gap[begins] = sequences.time[begins]
    state = np.zeros(len(sequences), SEQUENCE)
    take(state, np.repeat(entity, lengths), gap)
    return score_at(state, entity, END - _last(sequences))[:, 0]


def _last(sequences: Sequences) -> NDArray[np.float64]:
    """Return float64[n], the last event time of each sequence, 0 where it has none."""
    some = np.diff(sequences.offset) > 0
    last = np.zeros(len(sequences))
    last[some] = sequences.time[sequences.offset[1:][some] - 1]
    return last


def squared_spacings(sequences: Sequences) -> NDArray[np.float64]:
    """Return float64[n], 3S: squared spacings, the censored last one too, over END."""
    gaps = (np.diff(time, prepend=0.0, append=END) for time in sequences)
    return np.array([float(gap @ gap) / END for gap in gaps])


def two_sided_p(train: NDArray[np.float64], statistic: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 2 min(F, 1 - F) of each value, with F the empirical distribution of `train`."""
    below = np.searchsorted(np.sort(train), statistic, side="right") / len(train)
    return 2.0 * np.minimum(below, 1.0 - below)


def area_under_roc(normal: NDArray[np.float64], anomalous: NDArray[np.float64]) -> float:
    """Return P(anomalous > normal) + P(they are equal) / 2 of scores, higher for anomalous.

    Raises:
        ValueError: one side is empty or holds NaN.
    """
    if not len(normal) or not len(anomalous):
        raise ValueError(
            f"expected scores of both kinds, found {len(normal)} normal, {len(anomalous)} anomalous"
        )
    if np.isnan(normal).any() or np.isnan(anomalous).any():
        raise ValueError("expected scores that can be ordered, found NaN")
    label = np.repeat([False, True], [len(normal), len(anomalous)])
    return roc_auc(label, np.concatenate([normal, anomalous]))


@dataclass(frozen=True, slots=True)
class Figures:
    """Areas under the ROC curve of one scenario, by detectability.

    Attributes:
        sequence: the sequence statistic.
        squared_spacings: 3S.
        ceiling: the likelihood ratio of both true processes.
    """

    sequence: dict[float, float]
    squared_spacings: dict[float, float]
    ceiling: dict[float, float]


def evaluate_scenario(
    scenario: Scenario,
    seed: np.random.SeedSequence,
    count: int,
    detectabilities: Sequence[float] | None = None,
) -> Figures:
    """Judge one scenario.

    Args:
        scenario: which.
        seed: of all of its sequences.
        count: of training, normal test and anomalous test sequences, each.
        detectabilities: those of the scenario where None.
    """
    grid = scenario.detectabilities if detectabilities is None else tuple(detectabilities)
    train_seed, test_seed, *seeds = seed.spawn(2 + len(grid))
    train, test = normal_sample(train_seed, count), normal_sample(test_seed, count)
    own_test = sequence_surprise(test)
    spacing_train, spacing_test = squared_spacings(train), squared_spacings(test)
    figures = Figures({}, {}, {})
    for d, own in zip(grid, seeds, strict=True):
        anomalous = scenario.sample(own, count, d)
        figures.sequence[d] = area_under_roc(own_test, sequence_surprise(anomalous))
        figures.squared_spacings[d] = area_under_roc(
            -two_sided_p(spacing_train, spacing_test),
            -two_sided_p(spacing_train, squared_spacings(anomalous)),
        )
        figures.ceiling[d] = area_under_roc(
            scenario.log_ratios(test, d), scenario.log_ratios(anomalous, d)
        )
    return figures


def evaluate(
    seed: int,
    count: int = 1000,
    progress: Callable[[str], object] = str,
) -> dict[str, object]:
    """Judge all scenarios.

    Args:
        seed: of everything.
        count: of training, normal test and anomalous test sequences of each scenario.
        progress: is told each scenario when it is done.

    Returns:
        The report: `scenarios` {name: {detectability: AUC}} of the statistic, `mean_at_0.5`,
        and the same for `3S` and `likelihood_ratio_ceiling`.
    """
    seeds = np.random.SeedSequence(seed).spawn(len(SCENARIOS))
    every: dict[str, Figures] = {}
    for scenario, own in zip(SCENARIOS, seeds, strict=True):
        every[scenario.name] = figures = evaluate_scenario(scenario, own, count)
        progress(
            f"{scenario.name}: {figures.sequence[JUDGED]:.4f} at {JUDGED}"
            f" (3S {figures.squared_spacings[JUDGED]:.4f}, ceiling {figures.ceiling[JUDGED]:.4f})"
        )
    report: dict[str, object] = {"seed": seed, "sequences": count}
    report |= _block({name: f.sequence for name, f in every.items()})
    report["3S"] = _block({name: f.squared_spacings for name, f in every.items()})
    report["likelihood_ratio_ceiling"] = _block({name: f.ceiling for name, f in every.items()})
    return report


def _block(areas: dict[str, dict[float, float]]) -> dict[str, object]:
    return {
        "scenarios": {
            name: {str(d): round(area, 4) for d, area in by_d.items()}
            for name, by_d in areas.items()
        },
        f"mean_at_{JUDGED}": round(float(np.mean([a[JUDGED] for a in areas.values()])), 4),
    }
