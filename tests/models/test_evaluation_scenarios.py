"""The scenarios' sequences and likelihoods: closed forms and integration."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import integrate, stats

from models.evaluation.scenarios import END, SCENARIOS, Scenario, Sequences, normal_sample

BY_NAME = {s.name: s for s in SCENARIOS}


def seed_of(*words: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(list(words))


def test_sequences_keep_empty_ones_apart() -> None:
    every = Sequences.of([np.array([1.0, 2.0]), np.empty(0), np.array([3.0])])
    assert len(every) == 3
    assert [list(s) for s in every] == [[1.0, 2.0], [], [3.0]]
    assert len(Sequences.of([])) == 0


@pytest.mark.parametrize("name", BY_NAME)
def test_sequences_are_ascending_inside_the_window_and_follow_the_seed(name: str) -> None:
    scenario = BY_NAME[name]
    for d in scenario.detectabilities:
        every = scenario.sample(seed_of(1, int(10 * d)), 30, d)
        assert all((np.diff(s) >= 0.0).all() for s in every)
        assert every.time.min() >= 0.0
        assert every.time.max() <= END
        again = scenario.sample(seed_of(1, int(10 * d)), 30, d)
        np.testing.assert_array_equal(every.time, again.time)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("IncreasingRate", 125.0),
        ("DecreasingRate", 75.0),
        ("InhomogeneousPoisson", 100.0),
        ("Hawkes", 99.0),  # (1 - d) / (1 - d) less what the beginning lacks: END - d / (1 - d)
        ("SelfCorrecting", 100.0),
        ("Stopping", 85.0),
    ],
)
def test_mean_counts_at_half_detectability(name: str, wanted: float) -> None:
    every = BY_NAME[name].sample(seed_of(2), 2_000, 0.5)
    counts = np.diff(every.offset)
    assert counts.mean() == pytest.approx(wanted, abs=5.0 * counts.std() / math.sqrt(2_000) + 0.6)


@pytest.mark.parametrize(("name", "shape"), [("RenewalUp", 3.0), ("RenewalDown", 0.5)])
def test_renewal_gaps_are_gamma(name: str, shape: float) -> None:
    first = np.array([s[0] for s in BY_NAME[name].sample(seed_of(3), 2_000, 0.5)])
    assert stats.kstest(first, stats.gamma(shape, scale=1.0 / shape).cdf).pvalue > 0.001


def intensity(name: str, time: NDArray[np.float64], d: float, t: float) -> float:
    """Return the anomalous intensity at t given the events before it, by its definition."""
    past = time[time < t]
    if name == "InhomogeneousPoisson":
        return min(max(1.0 + 2.0 * d * math.sin(2.0 * math.pi * t / 50.0), 0.0), 2.0)
    if name == "Hawkes":
        return 1.0 - d + d * float(np.exp(past - t).sum())
    if name == "SelfCorrecting":
        return math.exp((d + 1e-5) * (t - len(past)))
    if name == "Stopping":
        return float(t <= END * (1.0 - 0.3 * d))
    return 1.0 + 0.5 * d if name == "IncreasingRate" else 1.0 - 0.5 * d


@pytest.mark.parametrize("name", [n for n in BY_NAME if not n.startswith("Renewal")])
def test_log_ratio_is_log_intensities_less_their_integral(name: str) -> None:
    time = BY_NAME[name].sample(seed_of(4), 1, 0.3)[0]
    kinks = np.sort(np.concatenate([time, [0.0, 91.0, END]]))
    integral = sum(
        integrate.quad(lambda t: intensity(name, time, 0.3, t), a, b, limit=200)[0]
        for a, b in pairwise(kinks)
    )
    wanted = sum(math.log(intensity(name, time, 0.3, t)) for t in time) - integral + END
    assert BY_NAME[name].log_ratio(time, 0.3) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "d", "shape"), [("RenewalUp", 0.3, 2.2), ("RenewalDown", 0.4, 0.6)]
)
def test_log_ratio_of_renewal_sequences(name: str, d: float, shape: float) -> None:
    time = BY_NAME[name].sample(seed_of(5), 1, d)[0]
    law = stats.gamma(shape, scale=1.0 / shape)
    gaps = np.diff(time, prepend=0.0)
    wanted = law.logpdf(gaps).sum() + law.logsf(END - time[-1]) + END
    assert BY_NAME[name].log_ratio(time, d) == pytest.approx(wanted, abs=1e-8)
    assert BY_NAME[name].log_ratio(np.empty(0), d) == pytest.approx(law.logsf(END) + END)


def test_what_a_process_cannot_make_has_no_likelihood() -> None:
    assert BY_NAME["Stopping"].log_ratio(np.array([1.0, 99.0]), 0.5) == -math.inf
    assert BY_NAME["Stopping"].log_ratio(np.empty(0), 0.5) == pytest.approx(15.0)
    assert BY_NAME["InhomogeneousPoisson"].log_ratio(np.array([37.5]), 0.9) == -math.inf
    assert BY_NAME["Hawkes"].log_ratio(np.array([1.0, 2.0]), 1.0) == -math.inf


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
def test_likelihood_ratios_average_to_one_on_normal_sequences(scenario: Scenario) -> None:
    # E[p1 / p0] = 1 under p0, where p1 gives nothing that p0 does not; d is small so that it shows.
    normal = normal_sample(seed_of(6), 4_000)
    ratio = np.exp(scenario.log_ratios(normal, 0.1))
    noise = ratio.std() / math.sqrt(len(ratio))
    assert ratio.mean() == pytest.approx(1.0, abs=5.0 * noise + 0.02)


def test_the_normal_process_is_poisson() -> None:
    counts = np.diff(normal_sample(seed_of(7), 4_000).offset)
    assert counts.mean() == pytest.approx(END, abs=0.7)
    assert counts.var() == pytest.approx(END, rel=0.1)
