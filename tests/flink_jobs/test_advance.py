"""Advance: what events make of their entity's row, and how a baseline refuses to learn attacks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from flink_jobs.advance import (
    ADVANCED,
    NO_PARTNER,
    AdvanceModel,
    KindEvents,
    advance,
)
from models.baselines.entity_level import CALM, FREEZE, PATIENCE, LevelPrior, standardised_values
from models.prior import KindPrior
from models.tpp.encoder import sequence_features
from models.tpp.spec import INPUT, LOG_COUNT, MARK, MEMORY
from state.table import Table
from tests.flink_jobs.score_cases import START_MS, encoder

PRIOR = KindPrior(
    value_mean=7.0, value_between_var=1.0, value_within_var=0.5, gap_mean=5.0, gap_between_var=2.0,
    gap_within_var=1.0, partner_mean=2.0,
)  # fmt: skip
WINDOW_MS = 86_400_000


@dataclass
class Run:
    """A table of one kind and what was asked of it."""

    table: Table
    model: AdvanceModel
    x: NDArray[np.float32]
    told: NDArray[np.void]

    @property
    def row(self) -> np.void:
        return self.table.rows[0]  # type: ignore[no-any-return]


def start(prior: KindPrior = PRIOR, partners: bool = False) -> Run:
    table = Table.empty(1, 100, 1 << 60)
    model = AdvanceModel.of(prior, encoder(), WINDOW_MS if partners else None)
    return Run(table, model, np.zeros((0, INPUT), np.float32), np.zeros(0, ADVANCED))


def feed(
    run: Run,
    at_s: NDArray[np.float64] | list[float],
    value: NDArray[np.float64] | list[float],
    partner: list[int] | None = None,
    mark: int = 1,
) -> NDArray[np.void]:
    """Advance one entity's events; the first ever makes its row anew."""
    n = len(at_s)
    fresh = np.zeros(n, np.bool_)
    fresh[0] = len(run.told) == 0
    events = KindEvents(
        event=np.arange(n, dtype=np.int32),
        row=np.zeros(n, np.int32),
        fresh=fresh,
        time_ms=START_MS + np.round(1000 * np.asarray(at_s)).astype(np.int64),
        value=np.asarray(value, np.float64),
        mark=np.full(n, mark, np.uint8),
        partner=np.array(partner if partner is not None else [NO_PARTNER] * n, np.uint8),
    )
    run.x = np.full((n, INPUT), np.nan, np.float32)
    run.told = advance(run.table, events, run.model, run.x)
    run.table.used = 1
    return run.told


def regular(
    n: int, gap_s: float = 150.0, seed: int = 1
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    return np.cumsum(gap_s * np.exp(rng.normal(0, 0.6, n))), rng.normal(7.0, 0.5, n)


def test_a_first_event_is_scored_against_the_population() -> None:
    run = start()
    told = feed(run, [0.0], [9.0])[0]
    assert told["fresh"]
    assert not told["timed"]
    assert told["events"] == 1
    assert told["typical"] == 7.0
    assert told["spread"] == pytest.approx(1.5**0.5, rel=1e-4)
    assert told["amount"] == pytest.approx(0.5 * 4.0 / 1.5, rel=1e-4)
    assert told["gap_mean"] == 5.0
    assert told["first_ms"] == told["last_ms"] == told["time_ms"] == START_MS
    assert run.x[0, MEMORY:].tolist() == pytest.approx([0.0, 1.0, 1.0, np.log1p(1) / 5, 1.0])


def test_a_missing_value_changes_no_level() -> None:
    run = start()
    feed(run, [0.0], [9.0])
    before = run.table.rows[:1].copy()
    told = feed(run, [100.0], [float("nan")])[0]
    assert np.isnan(told["value"])
    assert told["amount"] == told["amount_up"] == told["amount_down"] == 0.0
    for name in ("level", "level_var", "noise_var", "shift_up", "steady_level"):
        assert run.row[name] == before[name][0]
    assert run.row["events"] == 2
    assert told["timed"]


def test_the_encoder_is_asked_as_in_training() -> None:
    """`sequence_features` is what training walks; the stream must walk the same."""
    at_s, value = regular(30)
    run = start()
    told = feed(run, at_s, value)
    time_ms = START_MS + np.round(1000 * at_s).astype(np.int64)
    trained = sequence_features(
        time_ms, run.model.cumulative, PRIOR.gap_mean, PRIOR.gap_within_var, 3.0
    )
    # The entity's mean is kept in float32.
    np.testing.assert_allclose(run.x[:, MEMORY : MEMORY + 3], trained[:, 1:4], rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(told["gap_mean"], trained[:, 4], rtol=2e-5)
    np.testing.assert_allclose(run.x[:, LOG_COUNT], np.log1p(np.arange(1, 31)) / 5, rtol=1e-6)
    assert run.x[-1, :MEMORY].tobytes() == run.table.memory[0].tobytes()


def test_out_of_order_events_are_scored_by_value_alone() -> None:
    run = start()
    feed(run, [0.0, 100.0, 200.0], [7.0, 7.0, 7.0])
    gap_mean = run.row["gap_mean"]
    told = feed(run, [150.0], [20.0])[0]
    assert not told["timed"]
    assert told["amount"] > 10.0
    assert run.row["last_ms"] == START_MS + 200_000
    assert run.row["gap_mean"] == gap_mean
    assert run.row["events"] == 4


def test_equal_times_are_a_gap_of_a_millisecond() -> None:
    run = start()
    told = feed(run, [0.0, 0.0], [7.0, 7.0])[1]
    assert told["timed"]
    assert told["log_gap"] == pytest.approx(np.log(1e-3))


def test_one_call_equals_many() -> None:
    at_s, value = regular(40)
    whole, parts = start(), start()
    told = feed(whole, at_s, value)
    x = whole.x
    found, asked = [], []
    for i in range(40):
        one = feed(parts, at_s[i : i + 1], value[i : i + 1]).copy()
        one["event"] = i
        found.append(one)
        asked.append(parts.x)
    one_by_one = np.concatenate(found)
    for name in ADVANCED.names or ():
        assert one_by_one[name].tobytes() == told[name].tobytes(), name
    assert np.concatenate(asked).tobytes() == x.tobytes()
    assert whole.table.rows[0].tobytes() == parts.table.rows[0].tobytes()


def test_an_outlier_is_scored_in_full_and_hardly_learned() -> None:
    at_s, value = regular(100)
    run = start()
    feed(run, at_s, value)
    level = float(run.row["level"])
    told = feed(run, [at_s[-1] + 100.0], [level + 40.0])[0]
    assert told["amount"] > 100.0
    assert abs(run.row["level"] - level) < 0.05


def test_amounts_are_standardised_as_in_training() -> None:
    """`standardised_values` is what training walks: freeze, patience and missing values as here."""
    rng = np.random.default_rng(8)
    at_s, value = regular(700)
    value[50::9] = np.nan
    value[200] += 6.0
    value[300:600] += 3.0  # long enough that the level freezes, and later gives in
    run = start()
    told = feed(run, at_s, value)
    assert run.told["amount_up"].max() > FREEZE
    level = LevelPrior(*(getattr(PRIOR, name) for name in LevelPrior._fields))
    trained = standardised_values(value, level)
    asked = (told["value"] - told["typical"]) / told["spread"]
    np.testing.assert_array_equal(np.isnan(trained), np.isnan(value))
    np.testing.assert_allclose(trained, asked, rtol=1e-6)
    changed = value.copy()
    changed[400:] = rng.normal(7.0, 0.5, 300)
    np.testing.assert_array_equal(standardised_values(changed, level)[:400], trained[:400])


@pytest.mark.parametrize(("mark", "asked"), [(0, 0.0), (7, 7.0), (8, 8.0), (255, 8.0)])
def test_the_model_is_told_the_mark(mark: int, asked: float) -> None:
    run = start()
    feed(run, [0.0], [7.0], mark=mark)
    assert run.x[0, MARK] == asked


def shifted(run: Run, at_s: float, n: int, by: float) -> NDArray[np.void]:
    rng = np.random.default_rng(3)
    return feed(run, at_s + 100.0 * np.arange(1, n + 1), rng.normal(7.0 + by, 0.5, n))


def test_a_shift_is_told_and_not_learned_until_patience_ends() -> None:
    at_s, value = regular(120)
    run = start()
    feed(run, at_s, value)
    before = float(run.row["level"])
    told = shifted(run, at_s[-1], 60, 3.0)
    assert told["amount_up"].max() > FREEZE
    assert told["amount_down"].max() < FREEZE
    assert run.row["value_frozen"] > 0
    assert abs(run.row["level"] - before) < 0.3
    shifted(run, at_s[-1] + 10_000, PATIENCE + 200, 3.0)
    assert run.row["level"] == pytest.approx(10.0, abs=0.4)
    quiet = shifted(run, at_s[-1] + 100_000, 100, 3.0)
    assert run.row["value_frozen"] == 0
    assert quiet["amount_up"][-1] < FREEZE


def test_after_a_shift_that_ends_the_baseline_learns_again() -> None:
    at_s, value = regular(120)
    run = start()
    feed(run, at_s, value)
    shifted(run, at_s[-1], 30, -3.0)
    assert run.row["value_frozen"] > 0
    told = shifted(run, at_s[-1] + 10_000, 120, 0.0)
    assert told["amount_down"][-1] <= CALM + 3.0
    assert run.row["value_frozen"] == 0


def test_a_flood_is_told_and_not_learned_until_patience_ends() -> None:
    at_s, value = regular(120)
    run = start()
    feed(run, at_s, value)
    before = float(run.row["gap_mean"])
    burst = at_s[-1] + 0.5 * np.arange(1, 41)
    feed(run, burst, np.full(40, 7.0))
    assert run.row["flood"] > FREEZE
    assert run.row["gap_frozen"] > 0
    assert run.row["gap_mean"] == pytest.approx(before, abs=0.5)
    late = burst[-1] + 0.5 * np.arange(1, 10 * PATIENCE + 100)
    feed(run, late, np.full(len(late), 7.0))
    assert run.row["gap_mean"] == pytest.approx(np.log(0.5), abs=0.1)


def test_after_a_flood_that_ends_the_gaps_are_learned_again() -> None:
    at_s, value = regular(120)
    run = start()
    feed(run, at_s, value)
    burst = at_s[-1] + 0.5 * np.arange(1, 41)
    feed(run, burst, np.full(40, 7.0))
    more, values = regular(20, seed=2)
    feed(run, burst[-1] + 2000.0 + more, values)
    assert run.row["flood"] <= CALM + 2.5
    assert run.row["gap_frozen"] == 0


def test_a_machine_is_too_regular() -> None:
    at_s, value = regular(120)
    run = start()
    assert feed(run, at_s, value)["rhythm"].max() < 8.0
    told = feed(run, at_s[-1] + 150.0 * np.arange(1, 31), np.full(30, 7.0))
    assert told["rhythm"][-1] > 9.0


def test_partners_are_counted_over_two_windows() -> None:
    run = start(partners=True)
    day = WINDOW_MS / 1000
    told = feed(run, [0.0, 60.0, 120.0], [7.0] * 3, partner=[5, 5, 5])
    assert told["partner_count"].tolist() == [1.0, 1.0, 1.0]
    assert told["partners"].tolist() == [0.0, 0.0, 0.0]
    told = feed(run, 200.0 + np.arange(30.0), [7.0] * 30, partner=list(range(30)))
    assert told["partner_count"][-1] == pytest.approx(64 * np.log(64 / 34), rel=1e-5)
    assert told["partners"][-1] > 40.0
    assert (np.diff(told["partner_count"]) >= 0).all()
    told = feed(run, [day + 10.0, 2 * day + 10.0, 9 * day], [7.0] * 3, partner=[40, 41, 42])
    assert told["partner_count"].tolist() == pytest.approx(
        [64 * np.log(64 / 33), 64 * np.log(64 / 62), 1.0], rel=1e-5
    )
    assert run.row["partner_mean"] > 2.0


def test_without_partners_nothing_is_counted() -> None:
    told = feed(start(), 60.0 * np.arange(10), [7.0] * 10, partner=list(range(10)))
    assert not told["partner_count"].any()
    assert not told["partners"].any()
    told = feed(start(partners=True), 60.0 * np.arange(5), [7.0] * 5)
    assert not told["partner_count"].any()


def test_a_row_that_begins_anew_forgets_all() -> None:
    at_s, value = regular(50)
    run, new = start(partners=True), start(partners=True)
    feed(run, at_s, value, partner=list(range(50)))
    run.told = np.zeros(0, ADVANCED)
    for one in (run, new):
        feed(one, [1e6, 1e6 + 5], [8.0, 8.1], partner=[3, 4])
    assert run.row.tobytes() == new.row.tobytes()
    assert run.table.memory[0].tobytes() == new.table.memory[0].tobytes()
    assert run.told.tobytes() == new.told.tobytes()


def test_events_can_be_picked() -> None:
    at = np.arange(4, dtype=np.int32)
    events = KindEvents(
        at,
        at,
        at > 1,
        at.astype(np.int64),
        at.astype(float),
        at.astype(np.uint8),
        at.astype(np.uint8),
    )
    assert len(events) == 4
    some = events.only(np.array([True, False, False, True]))
    assert [c.tolist() for c in (some.event, some.row, some.time_ms, some.mark)] == [[0, 3]] * 4
    assert some.fresh.tolist() == [False, True]
    assert some.value.tolist() == [0.0, 3.0]
    assert some.partner.tolist() == [0, 3]


def test_the_weekly_profile_shortens_nights() -> None:
    """Twelve hours of night at a tenth of the rate are a short gap."""
    night = tuple(0.1 if hour % 24 >= 20 or hour % 24 < 8 else 1.0 for hour in range(168))
    run = start(replace(PRIOR, profile=night))
    evening = 12 * 3600.0  # the start is Monday 08:00
    told = feed(run, [evening, evening + 12 * 3600.0], [7.0, 7.0])[1]
    assert told["log_gap"] == pytest.approx(np.log(12 * 3600 * 0.1 / 0.55), rel=1e-4)
