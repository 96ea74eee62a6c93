"""The running window of an entity's compensated events against sums over the whole history."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import config
from numpy.typing import NDArray

from models.baselines.component import NO_MARK
from models.tpp.sequence import (
    BLOCK,
    BLOCKS,
    CELL,
    FAST,
    LEVELS,
    LONGEST,
    PATIENCE,
    SEQUENCE,
    SHORTEST,
    SLOW,
    WINDOW,
    admit,
    begin,
    observe,
)
from models.tpp.sequence_component import (
    CLOSE,
    EVERY,
    PARAMETERS,
    SEQUENCE_COMPONENT,
    TELLS,
    score_at,
    take,
)
from models.tpp.sequence_families import CELLS_IN_ALL, gather

COMPILED = not config.DISABLE_JIT  # type: ignore[attr-defined]  # coverage runs the kernels as Python, far slower
Gaps = NDArray[np.float64]


def gaps_of(seed: int, count: int, scale: float = 1.0) -> Gaps:
    return np.random.default_rng(seed).exponential(scale, count)


def taken(gaps: Gaps) -> NDArray[np.void]:
    state = np.zeros(1, SEQUENCE)
    take(state, np.zeros(len(gaps), np.int32), gaps)
    return state


def walked(
    state: NDArray[np.void], row: NDArray[np.int32], gaps: Gaps, fresh: NDArray[np.bool_]
) -> NDArray[np.float32]:
    out = np.full((len(row), len(TELLS)), -1.0, np.float32)
    SEQUENCE_COMPONENT.walk(
        state, row, fresh, np.zeros(len(row), np.int64), gaps,
        np.full(len(row), NO_MARK, np.uint8), np.zeros(len(row), np.uint64), PARAMETERS, out,
    )  # fmt: skip
    return out


class Window(NamedTuple):
    """What `gather` tells of a window, in its order."""

    length: float
    events: NDArray[np.int64]
    level: NDArray[np.int64]
    sums: tuple[float, ...]


def window_of(gaps: Gaps, waited: float) -> Window:
    """Sum up the last window from all gaps, with no running state."""
    time = np.cumsum(gaps)
    now = float(time[-1]) + waited if len(time) else waited
    first = max(0, math.ceil(now / BLOCK) - BLOCKS) * BLOCK
    inside = time > first
    at, gap = time[inside], gaps[inside]
    centred = np.exp(-gaps) - 0.5
    pairs = [
        sum(math.exp(-(t - s) / reach) for t in at for s in time if s < t) for reach in (FAST, SLOW)
    ]
    return Window(
        now - first,
        np.histogram(at, first + CELL * np.arange(CELLS_IN_ALL + 1))[0],
        np.histogram(np.exp(-gap), np.linspace(0.0, 1.0, LEVELS + 1))[0],
        (
            gap.sum(),
            float(gap @ gap),
            np.log(np.maximum(gap, SHORTEST)).sum(),
            gap.max(initial=0.0),
            *pairs,
            (centred[1:] * centred[:-1])[inside[1:]].sum(),
        ),
    )


@pytest.mark.parametrize(
    ("count", "waited"), [(0, 3.0), (1, 0.0), (7, 2.5), (60, 0.0), (90, 31.0), (400, 0.4)]
)
def test_the_window_holds_the_sums_of_the_history(count: int, waited: float) -> None:
    gaps = gaps_of(count, count)
    state = taken(gaps).view(np.recarray)
    cells, level = np.zeros(CELLS_IN_ALL), np.zeros(LEVELS)
    length, slid, sums = gather(state[0], waited, cells, level)
    wanted = window_of(gaps, waited)
    assert length == pytest.approx(wanted.length, abs=1e-9)
    assert slid == (gaps.sum() + waited > WINDOW)
    np.testing.assert_array_equal(cells, wanted.events)
    np.testing.assert_array_equal(level, wanted.level)
    np.testing.assert_allclose(sums, wanted.sums, rtol=1e-5, atol=1e-5)


def test_a_sum_that_ends_on_a_blocks_edge_stays_in_the_block() -> None:
    # 0.1 is no binary fraction: a thousand of them are 100 less or more a rounding.
    for gaps in (np.full(1000, 0.1), np.full(300, 1.0 / 3.0), np.full(100, 1.0)):
        cells, level = np.zeros(CELLS_IN_ALL), np.zeros(LEVELS)
        length, slid, _ = gather(taken(gaps).view(np.recarray)[0], 0.0, cells, level)
        assert length == pytest.approx(WINDOW, abs=1e-9)
        assert not slid
        np.testing.assert_array_equal(cells, np.full(CELLS_IN_ALL, len(gaps) / CELLS_IN_ALL))


def test_a_long_silence_empties_the_window() -> None:
    state = taken(gaps_of(1, 120))
    cells, level = np.ones(CELLS_IN_ALL), np.ones(LEVELS)
    for waited in (WINDOW + 1.0, 1e6):
        length, slid, sums = gather(state.view(np.recarray)[0], waited, cells, level)
        assert cells.sum() == level.sum() == sum(sums) == 0.0
        assert slid
        assert WINDOW - BLOCK < length <= WINDOW
    take(state, np.zeros(1, np.int32), np.array([1e9]))
    _, _, sums = gather(state.view(np.recarray)[0], 0.0, cells, level)
    assert cells.sum() == 1.0
    assert sums[0] == sums[3] == LONGEST


def test_memory_is_bounded_and_small() -> None:
    assert SEQUENCE.itemsize == 248
    state = taken(np.zeros(300))
    state["events"][0, 0] = 65_500  # all but what uint16 counts
    take(state, np.zeros(100, np.int32), np.zeros(100))
    assert state["events"].max() == 65_535
    assert np.isfinite(score_at(state, np.zeros(1, np.int32), np.array([0.0]))).all()
    assert score_at(state, np.zeros(1, np.int32), np.array([1.0]))[0, 0] > 1e5


@given(
    st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.floats(0.0, 1e5)), max_size=60),
    st.integers(0, 60),
)
@settings(derandomize=True, deadline=None, max_examples=60 if COMPILED else 10)
def test_splitting_a_batch_anywhere_changes_nothing(
    events: list[tuple[int, bool, float]], cut: int
) -> None:
    row = np.array([e[0] for e in events], np.int32)
    fresh = np.array([e[1] for e in events], np.bool_)
    gaps = np.array([e[2] for e in events], np.float64)
    whole, parts, single = (np.zeros(3, SEQUENCE) for _ in range(3))
    at_once = walked(whole, row, gaps, fresh)
    before = walked(parts, row[:cut], gaps[:cut], fresh[:cut])
    after = walked(parts, row[cut:], gaps[cut:], fresh[cut:])
    np.testing.assert_array_equal(at_once, np.concatenate([before, after]))
    one_by_one = [
        walked(single, row[i : i + 1], gaps[i : i + 1], fresh[i : i + 1]) for i in range(len(row))
    ]
    if one_by_one:
        np.testing.assert_array_equal(at_once, np.concatenate(one_by_one))
    assert whole.tobytes() == parts.tobytes() == single.tobytes()
    assert np.isfinite(at_once[:, 0]).all()
    assert (at_once[:, 0] >= 0.0).all()
    # Either all is told of an event, or nothing.
    known = np.isfinite(at_once[:, 1:])
    assert (known.all(axis=1) | ~known.any(axis=1)).all()


def test_entities_do_not_influence_each_other() -> None:
    first, second = gaps_of(1, 80), gaps_of(2, 80, 0.3)
    mixed = np.zeros(2, SEQUENCE)
    row = np.tile(np.array([0, 1], np.int32), 80)
    none = np.zeros(160, np.bool_)
    out = walked(mixed, row, np.stack([first, second], 1).ravel(), none)
    for r, gaps in enumerate((first, second)):
        alone = np.zeros(1, SEQUENCE)
        np.testing.assert_array_equal(
            out[row == r], walked(alone, np.zeros(80, np.int32), gaps, none[:80])
        )
        assert alone[0].tobytes() == mixed[r].tobytes()


def test_taking_in_without_scores_leaves_the_same_state() -> None:
    gaps = gaps_of(3, 300)
    state = np.zeros(1, SEQUENCE)
    out = walked(state, np.zeros(300, np.int32), gaps, np.zeros(300, np.bool_))
    other = taken(gaps)
    for name in SEQUENCE.names or ():
        if name not in ("source", "unjudged"):
            np.testing.assert_array_equal(state[name], other[name], err_msg=name)
    now = score_at(state, np.zeros(1, np.int32), np.array([0.0]))
    np.testing.assert_array_equal(out[-1:], now.astype(np.float32))


def test_the_future_changes_no_score() -> None:
    gaps = gaps_of(4, 200)
    other = gaps.copy()
    other[120:] *= 7.0
    row, none = np.zeros(200, np.int32), np.zeros(200, np.bool_)
    first = walked(np.zeros(1, SEQUENCE), row, gaps, none)
    second = walked(np.zeros(1, SEQUENCE), row, other, none)
    np.testing.assert_array_equal(first[:120], second[:120])
    assert (first[120:, 0] != second[120:, 0]).any()


def test_a_fresh_entity_begins_a_window_and_forgets_the_one_before() -> None:
    state = taken(gaps_of(5, 150))
    walked(state, np.zeros(1, np.int32), np.array([math.nan]), np.ones(1, np.bool_))
    assert state.tobytes() == np.zeros(1, SEQUENCE).tobytes()
    used = taken(gaps_of(6, 30)).view(np.recarray)
    begin(used[0])
    assert used.tobytes() == np.zeros(1, SEQUENCE).tobytes()


def test_a_gap_that_is_not_known_is_neither_counted_nor_scored() -> None:
    state = taken(gaps_of(7, 20))
    before = state.copy()
    out = walked(state, np.zeros(2, np.int32), np.array([math.nan, -1.0]), np.zeros(2, np.bool_))
    assert state.tobytes() == before.tobytes()
    assert (out[:, 0] == 0.0).all()
    assert np.isnan(out[:, 1:]).all()


def test_every_fourth_event_is_judged_and_each_after_an_answer_that_is_close() -> None:
    gaps = np.concatenate([gaps_of(11, 100), np.full(30, 0.01)])
    row, none = np.zeros(len(gaps), np.int32), np.zeros(len(gaps), np.bool_)
    out = walked(np.zeros(1, SEQUENCE), row, gaps, none)
    judged = ~np.isnan(out[:, 1])
    assert np.flatnonzero(judged[:100]).tolist() == list(range(EVERY - 1, 100, EVERY))
    close = np.flatnonzero(out[:, 0] > CLOSE)
    assert len(close) > 10
    assert judged[close[close < len(gaps) - 1] + 1].all()
    state = np.zeros(1, SEQUENCE)
    for i in range(len(gaps)):
        take(state, row[:1], gaps[i : i + 1])
        if judged[i]:
            now = score_at(state, row[:1], np.zeros(1))
            np.testing.assert_array_equal(out[i], now[0].astype(np.float32))


def test_what_is_told_beside_the_surprise() -> None:
    for scale, way in ((1.0, 0.0), (0.25, 0.0)):
        told = dict(zip(TELLS, score_at(taken(gaps_of(12, 90, scale)), *now(0.0))[0], strict=True))
        assert told["sequence_seen"] == 90.0
        assert told["sequence_expected"] == pytest.approx(gaps_of(12, 90, scale).sum(), rel=1e-6)
        assert told["sequence_irregularity"] == pytest.approx(way, abs=0.3)
    clock = dict(zip(TELLS, score_at(taken(np.ones(90)), *now(0.0))[0], strict=True))
    assert clock["sequence_irregularity"] == pytest.approx(-0.5772, abs=1e-3)
    bursts = np.tile([0.01, 0.01, 0.01, 3.97], 20)
    told = dict(zip(TELLS, score_at(taken(bursts), *now(0.0))[0], strict=True))
    assert told["sequence_irregularity"] > 1.0


def now(waited: float) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    return np.zeros(1, np.int32), np.array([waited])


def test_a_few_spacings_of_another_model_are_left_out_and_many_begin_a_window() -> None:
    state = np.zeros(1, SEQUENCE).view(np.recarray)

    def admitted(source: int) -> bool:
        found: bool = admit(state[0], source)
        if found:
            observe(state[0], 1.0)
        return found

    assert [admitted(1) for _ in range(5)] == [True] * 5
    assert [admitted(0) for _ in range(PATIENCE - 1)] == [False] * (PATIENCE - 1)
    assert admitted(1)
    assert state["events"].sum() == 6
    assert [admitted(0) for _ in range(PATIENCE)] == [False] * (PATIENCE - 1) + [True]
    assert state["events"].sum() == 1
    assert state["source"][0] == 0


def test_a_moment_needs_a_time_that_has_passed() -> None:
    state = taken(gaps_of(8, 20))
    for waited in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="finite compensators >= 0"):
            score_at(state, np.zeros(1, np.int32), np.array([waited]))


def test_silence_is_seen_by_the_timer_and_grows() -> None:
    state = taken(gaps_of(9, 100))
    waited = np.array([0.0, 5.0, 10.0, 20.0, 40.0, 200.0, 1e4])
    surprise = score_at(state, np.zeros(len(waited), np.int32), waited)[:, 0]
    assert (np.diff(surprise) > 0.0).all()
    assert surprise[0] < 4.0
    # No more than the exact p-value of the wait, and no more below it than the weights cost.
    for w, s in zip(waited[2:], surprise[2:], strict=True):
        assert w - 12.0 - 2.0 * math.log(w) < s < w
