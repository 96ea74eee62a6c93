"""The metric detector: its views against plain numpy, the contract, causality on real series."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from deploy.evaluate.series import read_nab
from models.baselines.component import NO_MARK, NO_PARTNER, Component
from models.baselines.metric import (
    ALARM,
    ALARM_NATS,
    BELIEVED,
    FORGETTING,
    SCORE,
    STATE,
    SURPRISE,
    TELLS,
    VIEW,
    WARM_EVENTS,
    WEIGHTS,
    default_parameters,
    metric_component,
    record_strength,
    record_surprise,
)
from models.baselines.metric_views import (
    DAY_SMOOTHED,
    DAY_STANDARDISED,
    LEVEL_8,
    LEVEL_30,
    SHIFT_FAST,
    SHIFT_SLOW,
    SIZE,
    SPANS,
    TURNS,
    VALUE,
    VIEWS,
    WEEK,
    WEEK_SMOOTHED,
    observe,
)
from models.baselines.tails import MAX_SURPRISE
from models.evaluation.detections import detect
from tests.nab_data import needs_nab

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
START_MS = 1_767_571_200_000  # 2026-01-05T00:00:00Z, a Monday
FIVE = 5 * MINUTE_MS

Told = tuple[NDArray[np.float32], NDArray[np.void]]


@pytest.fixture(scope="module")
def component() -> Component:
    return metric_component()


def times(n: int, step_ms: int = FIVE) -> NDArray[np.int64]:
    return START_MS + step_ms * np.arange(n, dtype=np.int64)


def daily(n: int, seed: int = 0, step_ms: int = FIVE) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    phase = 2.0 * np.pi * (times(n, step_ms) % (24 * HOUR_MS)) / (24 * HOUR_MS)
    return np.asarray(50.0 + 10.0 * np.sin(phase) + rng.normal(0.0, 1.0, n))


def walk(
    component: Component,
    time_ms: NDArray[np.int64],
    value: NDArray[np.float64],
    row: NDArray[np.int32] | None = None,
    state: NDArray[np.void] | None = None,
    fresh: NDArray[np.bool_] | None = None,
) -> Told:
    n = len(value)
    rows = np.zeros(n, np.int32) if row is None else row
    if state is None:
        state = np.zeros(int(rows.max(initial=0)) + 1, component.state)
    out = np.full((n, len(component.tells)), 7.0, np.float32)
    component.walk(
        state,
        rows,
        np.zeros(n, np.bool_) if fresh is None else fresh,
        time_ms,
        value,
        np.full(n, NO_MARK, np.uint8),
        np.full(n, NO_PARTNER, np.uint64),
        component.parameters,
        out,
    )
    return out, state


def same(left: NDArray[np.float32], right: NDArray[np.float32]) -> None:
    np.testing.assert_array_equal(left.view(np.uint32), right.view(np.uint32))


def views_of(time_ms: NDArray[np.int64], value: NDArray[np.float64]) -> NDArray[np.float64]:
    record = np.zeros(1, STATE)[0]
    told = np.empty((len(value), len(VIEWS)))
    for i in range(len(value)):
        observe(record, time_ms[i], value[i], told[i])
    return told


def exponential_mean(values: NDArray[np.float64], span: float) -> NDArray[np.float64]:
    means, mean = np.empty(len(values)), 0.0
    for i, value in enumerate(values):
        mean += max(1.0 / span, 1.0 / (i + 1)) * (value - mean)
        means[i] = mean
    return means


def test_levels_and_shifts_are_exponential_means() -> None:
    value = daily(400)
    told = views_of(times(400), value)
    y = value - value[0]
    mean = {span: exponential_mean(y, span) for span in SPANS}
    np.testing.assert_allclose(told[:, VALUE], y)
    np.testing.assert_allclose(told[:, LEVEL_8], mean[8.0], atol=1e-12)
    np.testing.assert_allclose(told[:, LEVEL_30], mean[30.0], atol=1e-12)
    np.testing.assert_allclose(told[:, SHIFT_FAST], mean[8.0] - mean[100.0], atol=1e-12)
    np.testing.assert_allclose(told[:, SHIFT_SLOW], mean[100.0] - mean[1500.0], atol=1e-12)


def test_profiles_are_means_of_their_hour() -> None:
    n = 24 * 7 * 3
    value = daily(n, step_ms=HOUR_MS)
    told = views_of(times(n, HOUR_MS), value)
    day_before = value[5 : n - 24 : 24]
    at = np.arange(5 + 24, n, 24)
    for k, i in enumerate(at[:10]):
        usual = day_before[: k + 1].mean()
        departures = abs(day_before[1 : k + 1] - np.cumsum(day_before)[:k] / np.arange(1, k + 1))
        if k >= 1:
            # The hour's unit: mean size of its departures and a tenth of the overall deviation.
            ratio = (value[i] - usual) / told[i, DAY_STANDARDISED]
            assert ratio > departures.mean()
            assert ratio < departures.mean() + 0.1 * 12.0
    assert np.isnan(told[:24, DAY_SMOOTHED]).all()
    assert np.isnan(told[:48, DAY_STANDARDISED]).all()
    assert np.isnan(told[: 24 * 7, WEEK]).all()
    week = 24 * 7
    np.testing.assert_allclose(
        told[week : 2 * week, WEEK], value[week : 2 * week] - value[:week], rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(
        told[week:, WEEK_SMOOTHED], exponential_mean(told[week:, WEEK], 8.0), atol=1e-9
    )


def test_turns_tell_alternation_from_trend() -> None:
    zigzag = np.tile([0.0, 1.0], 200)
    assert views_of(times(400), zigzag)[-1, TURNS] == pytest.approx(-1.0, abs=1e-4)
    climb = np.arange(400.0)
    assert views_of(times(400), climb)[-1, TURNS] == pytest.approx(1.0, abs=1e-4)


def test_sizes_tell_many_outliers_from_one() -> None:
    one, many = daily(600) * 0.0 + np.random.default_rng(0).normal(size=(2, 600))
    one[500] = 1_000.0
    many[500:520] = 20.0
    assert views_of(times(600), many)[519, SIZE] > 1.5 * views_of(times(600), one)[500, SIZE]


def test_a_range_and_its_records() -> None:
    record = np.zeros(1, STATE)[0]
    value = np.concatenate([np.tile([0.0, 10.0], WARM_EVENTS), [11.0, -3.0, 100.0, 100.0]])
    time_ms = times(len(value), HOUR_MS)
    strengths = [
        record_strength(record, VALUE, time_ms[i], value[i], 1e-9) for i in range(len(value))
    ]
    assert max(strengths[: 2 * WARM_EVENTS]) < 1e-3  # what little is forgotten between
    # A share of FORGETTING is lost with each value; it is far below the tolerances here.
    assert 600 * FORGETTING < 0.01
    assert strengths[-4] == pytest.approx(1.0 / 10.0, abs=2e-3)
    assert strengths[-3] == pytest.approx(3.0 / 11.0, abs=2e-3)
    assert strengths[-2] == pytest.approx(89.0 / 14.0, abs=2e-2)
    # The glitch was half believed.
    assert strengths[-1] == pytest.approx(44.5 / 58.5, abs=2e-2)
    assert BELIEVED == 0.5


def test_a_cold_range_has_no_records() -> None:
    fast, slow = np.zeros(2, STATE)
    for i in range(3 * WARM_EVENTS):
        # As many as it likes, but all within an hour; and a day, but of a few values.
        assert record_strength(fast, VALUE, START_MS + i, float(i), 1e-9) == 0.0
    for i in range(WARM_EVENTS):
        assert record_strength(slow, VALUE, START_MS + i * 24 * HOUR_MS, float(i), 1e-9) == 0.0


def test_the_surprise_of_a_record() -> None:
    assert record_surprise(0.0, 1_000, 12) == 0.0
    assert record_surprise(1e-9, 1_199, 12) == pytest.approx(math.log(50.0), rel=1e-6)
    assert record_surprise(1e-9, 10, 12) == 0.0
    assert record_surprise(0.5, 1_000, 1) > record_surprise(0.1, 1_000, 1)


def test_records_of_exchangeable_values_are_as_rare_as_said() -> None:
    """The bound holds for any distribution: here normal, heavy-tailed and counts."""
    rng = np.random.default_rng(3)
    draws = (rng.normal(size=(400, 1_000)), rng.pareto(1.5, (400, 1_000)))
    for values in (*draws, rng.poisson(4.0, (400, 1_000)).astype(float)):
        newest = values[:, -1]
        record = (newest > values[:, :-1].max(1)) | (newest < values[:, :-1].min(1))
        assert record.mean() <= 2.0 / 1_000 + 3.0 * math.sqrt(0.002 / 400)


def test_it_names_what_it_tells(component: Component) -> None:
    assert component.tells == TELLS
    assert component.surprises == ("alarm",)
    assert set(WEIGHTS) == set(VIEWS)
    assert component.state.isalignedstruct
    assert component.state.itemsize == 1_536


def test_odd_parameters_are_refused() -> None:
    usual = default_parameters()
    with pytest.raises(ValueError, match="expected 12 weights of at least 0"):
        metric_component(usual._replace(weights=np.ones(3)))
    with pytest.raises(ValueError, match="expected threshold > 0"):
        metric_component(usual._replace(threshold=0.0))


def test_the_first_event(component: Component) -> None:
    out, state = walk(component, times(1), np.array([42.0]))
    assert out[0, SURPRISE] == 0.0
    assert out[0, SCORE] == 0.0
    assert np.isnan(out[0, SCORE + 1 : ALARM]).all()
    assert out[0, ALARM] == 0.0
    assert state["events"][0] == 1
    second, _ = walk(component, times(2)[1:], np.array([43.0]), state=state)
    assert second[0].tolist()[2:5] == [42.0, 42.0, 42.0]


@pytest.mark.compiled
def test_the_alarm_is_the_score_in_nats(component: Component) -> None:
    """Weighted and silenced as the score is; 0 where nothing is scored, and limited."""
    value = daily(3_000)
    value[2_000:2_030] += 15.0
    value[2_500] = np.nan
    value[2_600] = 1e12
    out, _ = walk(component, times(3_000), value)
    score, alarm = out[:, SCORE].astype(np.float64), out[:, ALARM]
    assert pytest.approx(13.8155, abs=1e-4) == ALARM_NATS
    wanted = np.minimum(ALARM_NATS * np.nan_to_num(score), MAX_SURPRISE)
    np.testing.assert_allclose(alarm, wanted, rtol=1e-6)
    assert ((alarm == 0.0) & (out[:, SURPRISE] > 0.0)).any()
    assert alarm.max() > ALARM_NATS
    assert alarm[2_500] == 0.0


@pytest.mark.parametrize("missing", [np.nan, np.inf, -np.inf, 1e16])
def test_a_missing_value_changes_nothing(component: Component, missing: float) -> None:
    value = daily(800)
    holes = np.sort(np.random.default_rng(1).choice(800, 100, replace=False))
    whole, kept = walk(component, np.delete(times(800), holes), np.delete(value, holes))
    value[holes] = missing
    out, state = walk(component, times(800), value)
    same(np.delete(out, holes, axis=0), whole)
    assert state.tobytes() == kept.tobytes()
    assert (out[holes, SURPRISE] == 0.0).all()
    assert np.isnan(out[holes][:, [SCORE, VIEW]]).all()
    assert np.isfinite(out[holes[holes > 0], SCORE + 1 : VIEW]).all()


def test_duplicate_and_older_times_are_taken_as_they_come(component: Component) -> None:
    time_ms = times(900)
    time_ms[450] = time_ms[449]
    time_ms[500:510] -= 3 * 24 * HOUR_MS
    time_ms[600:] += 4_000 * 24 * HOUR_MS
    out, _ = walk(component, time_ms, daily(900))
    assert np.isfinite(out[1:, : SCORE + 1]).all()


@pytest.mark.parametrize("constant", [0.0, 5.0, -1e-3, 1e9, 0.1])
@pytest.mark.compiled
def test_a_constant_series_is_quiet_until_it_changes(component: Component, constant: float) -> None:
    value = np.full(5_000, constant)
    value[4_000:] += max(1.0, abs(constant)) * 0.1
    out, _ = walk(component, times(5_000), value)
    assert (out[:4_000, : SCORE + 1] == 0.0).all()
    assert out[4_000, SCORE] >= 1.0
    assert np.flatnonzero(out[:, SCORE] >= 1.0)[-1] < 4_400


@pytest.mark.compiled
def test_a_metric_that_repeats_itself_is_quiet(component: Component) -> None:
    square = np.where((times(6_000) // (6 * HOUR_MS)) % 2 == 0, 20.0, 80.0)
    out, _ = walk(component, times(6_000), square)
    assert out[1_000:, SCORE].max() < 1.0


def test_huge_and_tiny_values_stay_finite(component: Component) -> None:
    value = daily(2_000)
    value[500::7] = np.resize([1e300, -1e300, 1e15, -1e15, 1e-300, 0.0], len(value[500::7]))
    out, state = walk(component, times(2_000), value)
    scored = np.abs(value) <= 1e15
    assert np.isfinite(out[scored][1:, : SCORE + 1]).all()
    assert (out[:, SURPRISE] >= 0.0).all()
    for name in STATE.names or ():
        assert np.isfinite(state[name].astype(np.float64)).all(), name


@given(st.lists(st.integers(0, 700), max_size=6))
@settings(derandomize=True, deadline=None, max_examples=20)
@pytest.mark.compiled
def test_a_split_anywhere_changes_nothing(cuts: list[int]) -> None:
    component = metric_component()
    value, time_ms = daily(700, seed=2), times(700)
    value[650] = 300.0
    whole, state = walk(component, time_ms, value)
    kept = np.zeros(1, component.state)
    parts = []
    edges = [0, *sorted(cuts), 700]
    for start, end in pairwise(edges):
        out, kept = walk(component, time_ms[start:end], value[start:end], state=kept)
        parts.append(out)
    same(np.concatenate(parts), whole)
    assert kept.tobytes() == state.tobytes()


def test_one_by_one_equals_the_batch(component: Component) -> None:
    value, time_ms = daily(700, seed=2), times(700)
    whole, state = walk(component, time_ms, value)
    kept = np.zeros(1, component.state)
    each = [
        walk(component, time_ms[i : i + 1], value[i : i + 1], state=kept)[0] for i in range(700)
    ]
    same(np.concatenate(each), whole)
    assert kept.tobytes() == state.tobytes()


@pytest.mark.compiled
def test_entities_do_not_influence_each_other(component: Component) -> None:
    order = np.random.default_rng(4).permutation(np.repeat(np.arange(3, dtype=np.int32), 500))
    place = np.argsort(np.argsort(order, kind="stable"), kind="stable") % 500
    series = np.stack([daily(500, seed=s) * 10.0**s for s in range(3)])
    out, _ = walk(component, times(500)[place], series[order, place], row=order)
    for s in range(3):
        alone, _ = walk(component, times(500), series[s])
        same(out[order == s], alone)


def test_a_fresh_entity_begins_anew(component: Component) -> None:
    value = daily(900)
    _, state = walk(component, times(900), value)
    fresh = np.zeros(400, np.bool_)
    fresh[0] = True
    again, _ = walk(component, times(400), daily(400, seed=9), state=state, fresh=fresh)
    alone, _ = walk(component, times(400), daily(400, seed=9))
    same(again, alone)


@pytest.mark.compiled
def test_an_incident_alerts_once_unless_it_escalates(component: Component) -> None:
    value = daily(3_000)
    value[2_000:2_030] += 15.0
    value[2_020] += 900.0
    out, _ = walk(component, times(3_000), value)
    alerts = np.flatnonzero(out[1_900:2_060, SCORE] >= 1.0) + 1_900
    assert alerts[0] == 2_000
    assert 2_020 in alerts
    assert len(alerts) <= 4


@pytest.mark.compiled
def test_the_scale_of_a_metric_does_not_matter(component: Component) -> None:
    value = daily(3_000)
    value[2_500] = 90.0
    plain, _ = walk(component, times(3_000), value)
    scaled, _ = walk(component, times(3_000), value * 1024.0 - 4096.0)
    np.testing.assert_allclose(scaled[:, SCORE], plain[:, SCORE], rtol=1e-3, atol=1e-3)
    assert plain[2_500, SCORE] > 1.0


@pytest.mark.compiled
def test_nothing_learns_from_the_future() -> None:
    """Replacing everything after a row changes no score up to it, on NAB's series."""
    component = metric_component()
    rng = np.random.default_rng(7)
    for series in read_nab(needs_nab()).series[::10]:
        whole = detect(component, series.time_ms, series.value)
        for cut in rng.integers(1, len(series.value), 2):
            changed = series.value.copy()
            changed[cut:] = rng.normal(0.0, 1e6, len(changed) - cut)
            said = detect(component, series.time_ms, changed)
            for name in ("score", "surprise", "view"):
                np.testing.assert_array_equal(getattr(said, name)[:cut], getattr(whole, name)[:cut])
            np.testing.assert_array_equal(said.low[: cut + 1], whole.low[: cut + 1])
