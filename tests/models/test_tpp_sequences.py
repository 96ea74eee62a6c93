"""The published split, and the Kolmogorov-Smirnov p-value."""

from __future__ import annotations

import numpy as np
import pytest

from models.tpp.sequences import Sequences, ks_p_value, split


def test_seed_1_gives_the_published_split() -> None:
    train, valid, test = split(64)
    assert test.tolist() == [2, 3, 10, 19, 21, 26, 34, 35, 38, 39, 40, 54, 56]
    assert (len(train), len(valid)) == (38, 13)
    assert sorted([*train, *valid, *test]) == list(range(64))
    assert split(64, 2)[2].tolist() != test.tolist()
    with pytest.raises(ValueError, match="at least 5 sequences to split 60/20/20, found 4"):
        split(4)


def test_gaps_begin_anew_with_each_sequence() -> None:
    data = Sequences.join([np.array([1.0, 4.0]), np.array([2.0, 2.5, 6.0])])
    assert data.gap.tolist() == [1.0, 3.0, 2.0, 0.5, 3.5]
    assert data.scored.tolist() == [3.0, 0.5, 3.5]
    assert data.first.tolist() == [True, False, True, False, False]
    second = data.take(np.array([1]))
    assert (second.count, second.time.tolist()) == (1, [2.0, 2.5, 6.0])


def test_what_is_no_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one event each, found \\[1, 0\\]"):
        Sequences.join([np.array([1.0]), np.array([])])
    for time in ([1.0, 1.0], [2.0, 1.0], [1.0, np.nan]):
        with pytest.raises(ValueError, match="finite times that increase within a sequence"):
            Sequences.join([np.array(time)])
    with pytest.raises(ValueError, match="amounts above 0"):
        Sequences.join([np.array([1.0])], amounts=[np.array([0.0])])


def test_ks_p_values_equal_scipys_and_are_uniform() -> None:
    stats = pytest.importorskip("scipy.stats", reason="a tool of the tests")
    rng = np.random.default_rng(3)
    found = []
    for _ in range(200):
        uniform = rng.random(500)
        found.append(ks_p_value(uniform))
        assert found[-1] == pytest.approx(stats.kstest(uniform, "uniform").pvalue, abs=1e-2)
    assert ks_p_value(np.array(found)) > 1e-3
    assert ks_p_value(rng.random(500) ** 1.5) < 1e-6
    assert ks_p_value((np.arange(100) + 0.5) / 100) == 1.0
    with pytest.raises(ValueError, match=r"values in \[0, 1\], found 2"):
        ks_p_value(np.array([0.5, 1.5]))
