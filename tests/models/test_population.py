"""A prior from a population: known parameters come back, and odd streams get named fallbacks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from models.baselines.renewal import HOURS
from models.level_fit import fit_level
from models.population import (
    GAP_ENTITIES,
    KindFit,
    KindStream,
    fit_gaps,
    fit_kind_prior,
    profile_of,
    sample_entities,
)
from models.prior import LEVEL_NOISE, KindPrior

MONDAY_MS = 1_767_571_200_000
FLAT = (1.0,) * HOURS


def population(
    entities: int = 120,
    events: int = 80,
    *,
    value: tuple[float, float, float] = (7.0, 1.2, 0.6),
    level_noise: float = 0.0,
    gap: tuple[float, float, float] = (5.0, 0.8, 0.9),
    seed: int = 1,
) -> KindStream:
    """Make a stream; `value` and `gap` are mean, sd between entities, sd within."""
    rng = np.random.default_rng(seed)
    who, when, what = [], [], []
    for entity in range(entities):
        gaps = np.exp(rng.normal(rng.normal(gap[0], gap[1]), gap[2], events))
        when.append(MONDAY_MS + np.cumsum(1000.0 * gaps).astype(np.int64))
        steps = rng.normal(0.0, value[2] * math.sqrt(level_noise), events)
        level = rng.normal(value[0], value[1]) + np.cumsum(steps)
        what.append(level + rng.normal(0.0, value[2], events))
        who.append(np.full(events, entity + 10, np.uint64))
    time_ms = np.concatenate(when)
    order = np.argsort(time_ms, kind="stable")
    return KindStream.of(np.concatenate(who)[order], time_ms[order], np.concatenate(what)[order])


def of(
    who: list[int], when: NDArray[np.int64], what: NDArray[np.float64] | None = None
) -> KindStream:
    value = np.full(len(who), np.nan) if what is None else what
    return KindStream.of(np.array(who, np.uint64), when, value)


def fitted(stream: KindStream, size: int = 80, seed: int = 1) -> KindFit:
    chosen = sample_entities(stream, size, seed)
    levels = [fit_level(stream.values(index)) for index in chosen.tolist()]
    profile, _ = profile_of(stream)
    return fit_kind_prior(stream, levels, profile, 1.0, seed)


def test_known_parameters_come_back() -> None:
    prior = fitted(population()).prior
    assert prior.value_mean == pytest.approx(7.0, abs=0.35)
    assert prior.value_between_var == pytest.approx(1.44, rel=0.35)
    assert prior.value_within_var == pytest.approx(0.36, rel=0.06)
    assert prior.gap_mean == pytest.approx(5.0, abs=0.2)
    assert prior.gap_between_var == pytest.approx(0.64, rel=0.3)
    assert prior.gap_within_var == pytest.approx(0.81, rel=0.06)


@pytest.mark.compiled
def test_the_level_noise_comes_back() -> None:
    moving = fitted(population(entities=60, events=150, level_noise=0.02)).prior
    assert moving.level_noise == pytest.approx(0.02, rel=0.4)
    assert moving.value_within_var == pytest.approx(0.36, rel=0.08)
    assert fitted(population(entities=60)).prior.level_noise < 2e-3


@pytest.mark.compiled
def test_a_few_anomalous_entities_and_values_change_little() -> None:
    clean = population()
    rng = np.random.default_rng(3)
    value = clean.value.copy()
    value[rng.random(len(value)) < 0.005] += 12.0  # outliers of every entity
    for index in (3, 60):  # level shifts
        start, stop = clean.starts[index], clean.starts[index + 1]
        value[(start + stop) // 2 : stop] += 5.0
    dirty = KindStream(clean.entity, clean.starts, clean.time_ms, value)
    before, after = fitted(clean, 120).prior, fitted(dirty, 120).prior
    assert after.value_mean == pytest.approx(before.value_mean, abs=0.1)
    assert after.value_within_var == pytest.approx(before.value_within_var, rel=0.15)
    assert after.level_noise < 5e-3


def test_the_sample_depends_on_the_seed_alone() -> None:
    stream = population(40, 20)
    chosen = sample_entities(stream, 10, 7)
    assert len(chosen) == 10
    assert np.array_equal(chosen, np.sort(chosen))
    assert np.array_equal(chosen, sample_entities(stream, 10, 7))
    assert not np.array_equal(chosen, sample_entities(stream, 10, 8))
    assert len(sample_entities(stream, 100, 7)) == 40


def test_entities_with_few_values_are_not_drawn() -> None:
    who = [1] * 30 + [2] * 30 + [3] * 9
    value = np.arange(69.0)
    value[30:55] = np.nan
    stream = of(who, MONDAY_MS + 1000 * np.arange(69), value)
    assert stream.entity[sample_entities(stream, 10, 1)].tolist() == [1]
    assert stream.values(1).tolist() == [55.0, 56.0, 57.0, 58.0, 59.0]


@pytest.mark.compiled
def test_gaps_of_too_many_entities_are_drawn() -> None:
    n = GAP_ENTITIES + 500
    who = np.tile(np.arange(n), 5)
    time_ms = MONDAY_MS + 1_000 * np.arange(5 * n)
    stream = KindStream.of(who.astype(np.uint64), time_ms, np.zeros(5 * n))
    assert len(fit_gaps(stream, FLAT, 1).count) <= GAP_ENTITIES
    assert fit_gaps(stream, FLAT, 1).mean[0] == pytest.approx(math.log(n))


def test_the_profile_says_where_it_is_short() -> None:
    week_ms = 7 * 86_400_000
    times = MONDAY_MS + np.linspace(0, 1, 2_000)
    for weeks, expected in ((0.5, "less than a week"), (1.5, "less than two weeks"), (3.0, None)):
        stream = of([1] * 2_000, (times + np.arange(2_000) * weeks * week_ms / 2_000).astype("i8"))
        profile, notes = profile_of(stream)
        assert len(profile) == HOURS
        assert [n for n in notes if expected and n.startswith(expected)] == notes
        assert bool(notes) == (expected is not None)
    assert profile_of(of([1], np.array([MONDAY_MS])))[0] == FLAT


def test_a_stream_without_values() -> None:
    stream = of([1] * 40 + [2] * 40, MONDAY_MS + 1000 * np.arange(80) ** 2)
    fit = fitted(stream)
    prior = fit.prior
    assert (prior.value_mean, prior.value_between_var, prior.value_within_var) == (0.0, 1.0, 1.0)
    assert prior.level_noise == LEVEL_NOISE
    assert fit.values is None
    assert any(note.startswith("no values") for note in fit.notes)


def test_one_entity() -> None:
    rng = np.random.default_rng(4)
    times = MONDAY_MS + np.cumsum(rng.integers(1_000, 9_000, 200))
    fit = fitted(of([5] * 200, times, rng.normal(3.0, 0.5, 200)))
    assert fit.prior.value_mean == pytest.approx(3.0, abs=0.15)
    assert fit.prior.value_within_var == pytest.approx(0.25, rel=0.25)
    assert fit.prior.value_between_var == fit.prior.value_within_var
    assert fit.prior.gap_between_var == fit.prior.gap_within_var
    assert any("1 entities have 10 values" in note for note in fit.notes)
    assert any("1 entity has 4 gaps" in note for note in fit.notes)


def test_a_handful_of_events() -> None:
    fit = fitted(of([1, 2, 3], MONDAY_MS + np.arange(3), np.array([2.0, 2.0, 2.0])))
    plain = KindPrior()
    assert fit.prior.value_mean == 2.0
    assert (fit.prior.gap_mean, fit.prior.gap_within_var) == (plain.gap_mean, plain.gap_within_var)
    assert fit.prior.value_within_var > 0.0
    assert fit.gaps is None
    assert any(note.startswith("no entity has 4 gaps") for note in fit.notes)


def test_constant_values_and_equal_gaps() -> None:
    who = [entity for entity in (1, 2, 3) for _ in range(30)]
    times = np.tile(MONDAY_MS + 60_000 * np.arange(30), 3)
    value = np.repeat([1.0, 2.0, 3.0], 30)
    order = np.argsort(times, kind="stable")
    stream = KindStream.of(np.array(who, np.uint64)[order], times[order], value[order])
    fit = fitted(stream)
    assert fit.prior.value_mean == pytest.approx(2.0)
    assert fit.prior.value_between_var == pytest.approx(1.0, rel=1e-3)
    assert 0.0 < fit.prior.value_within_var <= 1e-4
    assert fit.prior.gap_mean == pytest.approx(math.log(60.0))
    assert 0.0 < fit.prior.gap_within_var < 1.01e-4
    assert fit.prior.level_noise == LEVEL_NOISE
    assert any("3 of 3 entities always have the same value" in note for note in fit.notes)
    assert any(note.startswith("all gaps of an entity are equal") for note in fit.notes)


def test_one_entity_among_constants_moves() -> None:
    rng = np.random.default_rng(6)
    who = [1] * 40 + [2] * 40
    value = np.concatenate([np.full(40, 1.0), rng.normal(2.0, 0.5, 40)])
    fit = fitted(of(who, MONDAY_MS + np.tile(1_000 * np.arange(40) ** 2, 2), value))
    assert fit.noise is None
    assert fit.prior.value_within_var == pytest.approx(0.25, rel=0.6)


def test_levels_that_run_away_are_limited() -> None:
    rng = np.random.default_rng(7)
    who = [entity for entity in range(8) for _ in range(60)]
    value = np.concatenate([np.cumsum(rng.normal(0, 1, 60)) for _ in range(8)])
    fit = fitted(of(who, MONDAY_MS + np.tile(1_000 * np.arange(60) ** 2, 8), value))
    assert fit.prior.level_noise == 0.1
    assert any(note.startswith("levels move so fast") for note in fit.notes)
