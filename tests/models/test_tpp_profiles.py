"""What training sequences tell of a mark, and what they must not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from models.tpp.architecture import Scales
from models.tpp.profiles import Profiles, rows_of
from models.tpp.sequences import Sequences

SCALES = Scales(1.0, 0.0, 1.0, 100.0)


def two() -> Sequences:
    # Mark 0 is followed after 2 by itself, after 3 by 1; then, in the other sequence, after 4 by 2.
    return Sequences.join(
        [np.array([1.0, 3.0, 6.0]), np.array([5.0, 9.0])], [np.array([0, 0, 1]), np.array([0, 2])]
    )


def test_a_profile_is_the_means_drawn_to_those_of_all() -> None:
    table = Profiles.of(two(), SCALES, 3).table
    log = np.log([2.0, 3.0, 4.0])
    mean, power = log.mean(), (log**2).mean()
    assert table.shape == (4, 8)
    assert table[0] == pytest.approx(
        [
            (log.sum() + 5 * mean) / 8 - mean,
            math.log(4),
            ((log**2).sum() + 5 * power) / 8 - power,
            (1 + 5 / 3) / 8 - 1 / 3,
            (log[0] + 5 * mean) / 6 - mean,
            0.0,  # it alone comes again at once: it is the mean
            0.0,
            math.log(3),
        ],
        abs=1e-6,
    )
    assert table[2, 4] == pytest.approx((log[2] + 5 * mean) / 6 - mean)
    assert table[2, [1, 7]] == pytest.approx([0.0, math.log(2)])
    assert table[3].tolist() == [0.0] * 8, "an unknown mark is as all"
    assert np.array_equal(rows_of(table, np.array([0, 3, 900, -1])), table[[0, 3, 3, 3]])


def test_a_sequence_does_not_tell_of_itself() -> None:
    data = two()
    found = Profiles.of(data, SCALES, 3)
    own = found.without_own(data)
    mean = math.log(24.0) / 3
    assert own[0] == pytest.approx(own[1])
    assert own[0, 0] == pytest.approx((math.log(4) + 5 * mean) / 6 - mean)
    assert own[0, [1, 7]] == pytest.approx([math.log(2), math.log(2)])
    assert own[3, 0] == pytest.approx((math.log(6) + 5 * mean) / 7 - mean)
    for row in (own[2], own[4]):
        assert row == pytest.approx(np.zeros(8), abs=1e-6), "marks of one sequence are unknown"
    assert np.array_equal(found.without_own(data.take(np.array([1]))), own[3:])
    # Whatever a sequence's own events are, its profiles stay.
    changed = Sequences.join(
        [np.array([1.0, 9.0, 90.0]), data.time[3:]], [np.array([0, 0, 1]), np.array([0, 2])]
    )
    again = Profiles.of(changed, SCALES, 3).without_own(changed)
    assert again[0, [1, 7]] == pytest.approx(own[0, [1, 7]])


def test_marks_past_the_last_are_unknown() -> None:
    data = two()
    found = Profiles.of(data, SCALES, 1)
    assert found.table.shape == (2, 8)
    assert found.table[1].tolist() == [0.0] * 8
    assert found.without_own(data)[[2, 4]].tolist() == [[0.0] * 8] * 2
    with pytest.raises(ValueError, match="expected sequences with marks, found none"):
        Profiles.of(Sequences.join([np.array([1.0])]), SCALES, 1)
