"""The choice of a model's form from classical fits and regressions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.tpp.classical import Clock, Hawkes, Renewal, SelfCorrecting, draw
from models.tpp.features import features
from models.tpp.gap_laws import LogNormalMixture, Weibull
from models.tpp.screening import (
    Marks,
    clock_columns,
    clock_gain,
    common_marks,
    recode_marks,
    renumber_marks,
    scales_of,
    stands,
    suggest,
    teacher_of,
)
from models.tpp.sequences import Sequences

POISSON = Renewal(Weibull(1.0, 1.0))
HAWKES = Hawkes(0.2, (0.8,), (1.0,))
CORRECTING = SelfCorrecting(0.0, 1.0, 1.0)
PERIODIC = Renewal(Weibull(1.0, 1.0), Clock(300.0, 0.9, 0.3))


def test_a_true_process_stands_and_false_ones_do_not() -> None:
    data = draw(HAWKES, 1_000, 10, 3)
    assert stands(HAWKES, data)
    assert not stands(POISSON, data)
    rng = np.random.default_rng(1)
    lone = Sequences(np.array([1.0, 2.0]), np.array([0, 2]))
    assert not stands(POISSON, lone), "one gap says nothing"
    assert not stands(Hawkes(np.nan, (0.5,), (1.0,)), data)
    # Of the right law, each gap but repeated: only the order refutes it.
    repeated = Sequences.join([np.cumsum(np.repeat(rng.exponential(size=500), 2))])
    assert not stands(POISSON, repeated)


def test_only_a_process_that_stands_and_does_not_explode_teaches() -> None:
    train, valid = draw(HAWKES, 1_000, 8, 4), draw(HAWKES, 1_000, 4, 5)
    assert teacher_of([POISSON, HAWKES], train, valid) is HAWKES
    assert teacher_of([POISSON], train, valid) is None
    whole = draw(PERIODIC, 4_000, 1, 3).time
    pieces = Sequences.join(np.split(whole, 8))
    taught = teacher_of([PERIODIC], pieces, pieces)
    assert isinstance(taught, Renewal)
    assert taught.begins == (pieces.time[0], pieces.time[3_500])
    simulated = draw(taught, 500, 40, 4)
    begins = simulated.time[simulated.starts[:-1]]
    assert begins.min() < 0.2 * whole[-1] < 0.6 * whole[-1] < begins.max()
    assert stands(PERIODIC, simulated)
    at_start = draw(PERIODIC, 500, 8, 3)
    assert teacher_of([PERIODIC], at_start, at_start) is PERIODIC
    assert teacher_of([Hawkes(0.2, (1.2,), (1.0,))], train, valid) is None


def test_the_clock_is_read_where_it_tells() -> None:
    for process, told in ((CORRECTING, True), (POISSON, False)):
        train, valid = draw(process, 1_000, 8, 6), draw(process, 1_000, 4, 7)
        gain = clock_gain(train, valid, scales_of(train))
        assert (gain > 0.02) is told
        assert suggest(train, valid, None).clock is told
    train, valid = draw(PERIODIC, 1_000, 8, 8), draw(PERIODIC, 1_000, 4, 9)
    found = suggest(train, valid, None).clock_periods
    assert found == pytest.approx((300.0,), rel=0.05)
    assert suggest(train, valid, PERIODIC).clock_periods == (300.0,)
    assert suggest(train, valid, PERIODIC).clock
    assert suggest(train, valid, Renewal(LogNormalMixture((1.0,), (0.0,), (1.0,)))).clock is False


def test_a_hawkes_teacher_lends_its_poles() -> None:
    train, valid = draw(HAWKES, 500, 8, 4), draw(HAWKES, 500, 4, 5)
    form = suggest(train, valid, HAWKES, layers=2)
    assert form.layers[0].time_constants[-1] == pytest.approx(1.0 / form.scales.gap_mean)
    assert len(form.layers) == 2


def test_clock_columns_are_the_clock_features() -> None:
    train, valid = draw(CORRECTING, 300, 5, 1), draw(CORRECTING, 300, 2, 2)
    form = suggest(train, valid, CORRECTING)
    found, _ = features(train, form)
    np.testing.assert_allclose(
        found[:, 3:], clock_columns(train, form.scales), rtol=1e-5, atol=1e-4
    )


def test_rare_marks_are_one() -> None:
    data = Sequences.join(
        [np.arange(1.0, 21.0)], [np.array([7] * 6 + [900] * 8 + [3] * 4 + [5, 6])]
    )
    known = common_marks(data)
    assert known.tolist() == [900, 7]
    assert recode_marks(data, known).tolist() == [1] * 6 + [0] * 8 + [2] * 6
    later = Sequences.join([np.array([1.0, 2.0])], [np.array([900, 11])])
    marks, (first, second) = renumber_marks(data, later)
    assert marks == Marks(3)
    assert first.mark is not None
    assert second.mark is not None
    assert first.mark.tolist() == [1] * 6 + [0] * 8 + [2] * 6
    assert second.mark.tolist() == [0, 2]
    many = Sequences.join([np.arange(1.0, 101.0)], [np.arange(100)])
    unseen = Sequences.join([np.arange(1.0, 5.0)], [np.array([700, 3, 600, 700])])
    marks, (first, second) = renumber_marks(replace(many, mark=99 - np.arange(100)), unseen)
    assert marks == Marks(1, 100)
    assert first.mark is not None
    assert second.mark is not None
    assert sorted(first.mark) == list(range(100))
    assert second.mark.tolist() == [102, first.mark[96], 101, 102], "unknown ones are told apart"
    assert suggest(many, many, None, marks).profiles == 100
    assert renumber_marks(draw(POISSON, 20, 1, 1))[0] == Marks()
    few = Sequences.join([np.array([1.0, 2.0])], [np.array([4, 5])])
    assert common_marks(few).tolist() == []
    assert recode_marks(few, common_marks(few)).tolist() == [0, 0]
    assert common_marks(draw(POISSON, 20, 1, 1)).tolist() == []
