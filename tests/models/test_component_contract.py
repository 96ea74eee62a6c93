"""What every baseline component must hold; `component_cases.CASES` names them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.baselines.component import Component
from tests.models.component_cases import (
    CASES,
    HOUR_MS,
    START_MS,
    Case,
    Events,
    events_of,
    merge,
    walk,
)
from tests.models.family_cases import FAMILY_CASES

EVENTS = 120
WITHIN = 1.5  # factor in which the rates of p-values must agree


@pytest.fixture(params=[*CASES, *FAMILY_CASES], ids=lambda case: case.name, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture(scope="module")
def component(case: Case) -> Component:
    return case.make()


def surprises(component: Component, out: NDArray[np.float32]) -> NDArray[np.float32]:
    return out[:, [component.tells.index(name) for name in component.surprises]]


def numbers(state: NDArray[np.void]) -> list[NDArray[np.float64]]:
    assert state.dtype.names is not None
    return [
        state[name].astype(np.float64)
        for name in state.dtype.names
        if state[name].dtype.kind != "V"
    ]


def assert_sound(component: Component, out: NDArray[np.float32], state: NDArray[np.void]) -> None:
    assert not np.isinf(out).any()
    told = surprises(component, out)
    assert np.isfinite(told).all()
    assert (told >= 0.0).all()
    assert all(np.isfinite(column).all() for column in numbers(state))


def assert_same(
    left: tuple[NDArray[np.float32], NDArray[np.void]],
    right: tuple[NDArray[np.float32], NDArray[np.void]],
) -> None:
    np.testing.assert_array_equal(left[0].view(np.uint32), right[0].view(np.uint32))
    for mine, theirs in zip(numbers(left[1]), numbers(right[1]), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_its_record_is_aligned_and_flat(component: Component) -> None:
    assert component.state.isalignedstruct
    assert component.state.fields
    assert not component.state.hasobject
    assert component.version >= 1
    assert component.tells


def test_a_surprise_that_is_not_told_is_refused(component: Component) -> None:
    with pytest.raises(ValueError, match="expected surprises among"):
        Component("odd", 1, component.state, ("a",), ("b",), None, component.walk)


def test_ordinary_events_are_scored(case: Case, component: Component) -> None:
    out, state = walk(component, case.events(1, 4 * EVENTS))
    assert_sound(component, out, state)
    if component.surprises:
        assert (surprises(component, out) > 0.0).any()
        assert surprises(component, out).max() < 1e6


def test_the_first_event(case: Case, component: Component) -> None:
    for seed in range(5):
        out, state = walk(component, case.events(seed, 1))
        assert_sound(component, out, state)


def test_no_events(component: Component) -> None:
    nothing = events_of(np.zeros(0, np.int64), np.zeros(0))
    out, state = walk(component, nothing)
    assert len(out) == 0
    assert state.tobytes() == bytes(state.nbytes)


def test_a_missing_value_is_not_scored(case: Case, component: Component) -> None:
    events = case.events(2, EVENTS)
    for missing in (np.nan, np.inf, -np.inf):
        events.value[EVENTS // 2 :: 3] = missing
        out, state = walk(component, events)
        assert_sound(component, out, state)
        if case.reads_value:
            assert (surprises(component, out)[EVENTS // 2 :: 3] == 0.0).all()
    events.value[:] = np.nan
    assert_sound(component, *walk(component, events))


def test_huge_and_tiny_values(case: Case, component: Component) -> None:
    events = case.events(3, EVENTS)
    events.value[::7] = [(1e300, -1e300, 1e15, -1e15, 1e-300, 0.0)[k % 6] for k in range(18)]
    assert_sound(component, *walk(component, events))


def test_a_duplicate_and_an_older_event(case: Case, component: Component) -> None:
    events = case.events(4, EVENTS).take(np.repeat(np.arange(EVENTS), 2))
    events.fresh[1] = False
    assert_sound(component, *walk(component, events))
    events.time_ms[EVENTS] -= 10 * HOUR_MS
    out, state = walk(component, events)
    assert_sound(component, out, state)


def test_long_gaps(case: Case, component: Component) -> None:
    events = case.events(5, EVENTS)
    events.time_ms[EVENTS // 2 :] += 3650 * 24 * HOUR_MS
    assert_sound(component, *walk(component, events))


@pytest.mark.parametrize("constant", [0.0, 5.0, -1e-3, 1e9])
def test_a_constant_series_is_quiet(case: Case, component: Component, constant: float) -> None:
    usual = case.events(6, 1)
    n = 600
    events = events_of(
        START_MS + np.arange(n) * HOUR_MS,
        np.full(n, constant),
        np.repeat(usual.mark, n),
        np.repeat(usual.partner, n),
    )
    out, state = walk(component, events)
    assert_sound(component, out, state)
    assert surprises(component, out)[n // 3 :].max(initial=0.0) <= case.quiet_nats


def test_one_by_one_equals_the_batch(case: Case, component: Component) -> None:
    events = case.events(7, EVENTS)
    assert_same(walk(component, events), walk(component, events, cuts=tuple(range(1, EVENTS))))


@settings(max_examples=30, derandomize=True, deadline=None)
@given(cuts=st.lists(st.integers(0, EVENTS), max_size=4), seed=st.integers(0, 50))
@pytest.mark.compiled
def test_a_split_anywhere_changes_nothing(
    case: Case, component: Component, cuts: list[int], seed: int
) -> None:
    events = case.events(seed, EVENTS)
    assert_same(walk(component, events), walk(component, events, cuts=tuple(cuts)))


def test_entities_do_not_influence_each_other(case: Case, component: Component) -> None:
    streams = [case.events(seed, EVENTS + 10 * seed) for seed in range(4)]
    merged = merge(streams, seed=9)
    out, state = walk(component, merged)
    for k, stream in enumerate(streams):
        alone_out, alone_state = walk(component, stream)
        assert_same((out[merged.row == k], state[k : k + 1]), (alone_out, alone_state))


def test_a_fresh_row_forgets_what_was_there(case: Case, component: Component) -> None:
    _, used = walk(component, case.events(10, EVENTS))
    events = case.events(11, EVENTS)
    assert_same(walk(component, events, state=used), walk(component, events))


def test_scores_are_the_same_every_time(case: Case, component: Component) -> None:
    events = case.events(12, EVENTS)
    assert_same(walk(component, events), walk(case.make(), events))


def test_the_future_changes_no_score(case: Case, component: Component) -> None:
    events = case.events(13, EVENTS)
    half = EVENTS // 2
    before, _ = walk(component, events)
    other: Events = case.events(14, EVENTS)
    changed = events.take(slice(0, EVENTS))
    changed.value[half:] = other.value[half:] * 3.0
    changed.time_ms[half:] += HOUR_MS
    after, _ = walk(component, changed)
    np.testing.assert_array_equal(before[:half].view(np.uint32), after[:half].view(np.uint32))


@pytest.mark.compiled
def test_p_values_are_uniform_on_data_from_the_model(case: Case, component: Component) -> None:
    """Rates at .1 and .01; `test_structural.py` has .001, on longer streams."""
    if case.model_events is None:
        pytest.skip(f"{case.name} has no generator of its own")
    streams = [case.model_events(seed, case.warm + 2_500) for seed in range(100, 104)]
    told = np.concatenate(
        [surprises(component, walk(component, s)[0])[case.warm :] for s in streams]
    )
    for nominal in (0.1, 0.01):
        rates = (told > -np.log(nominal)).mean(axis=0)
        assert (rates < nominal * WITHIN).all(), (nominal, rates)
        assert (rates > nominal / WITHIN).all(), (nominal, rates)
