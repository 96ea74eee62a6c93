"""Processes of known likelihood: their densities against what was simulated and integrated."""

from __future__ import annotations

import math

import numpy as np
import pytest

from models.tpp.classical import draw, mean_nll, pit
from models.tpp.known import KNOWN, LogAutoregressive, Regimes, known_sequences
from models.tpp.sequences import Sequences, ks_p_value


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_simulations_pass_time_rescaling(name: str) -> None:
    found = known_sequences(name)
    assert sorted(found) == list(range(64))
    assert {len(sequence) for sequence in found.values()} == {1_024}
    data = Sequences.join([found[number].time for number in range(8)])
    assert ks_p_value(pit(KNOWN[name], data)) > 1e-3
    again = known_sequences(name)
    assert np.array_equal(again[5].time, found[5].time)
    assert not np.array_equal(known_sequences(name, 2)[5].time, found[5].time)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a process of .*, found 'hawkes3'"):
        known_sequences("hawkes3")


def test_autoregressive_gaps_have_the_entropy_of_their_noise() -> None:
    process = LogAutoregressive(-1.0, 0.8, 0.7)
    data = draw(process, 4_000, 2, 1)
    # The log gap is normal given the one before; the gap's density has its log beside.
    expected = 0.5 * math.log(2 * math.pi * math.e * 0.49) + np.log(data.scored).mean()
    assert mean_nll(process, data) == pytest.approx(expected, abs=0.02)
    y = np.log(data.scored)
    assert np.corrcoef(y[1:], y[:-1])[0, 1] == pytest.approx(0.8, abs=0.02)
    assert process.name == "log_autoregressive"


def test_regimes_equal_the_sum_over_all_hidden_paths() -> None:
    process = Regimes((0.5, 4.0), 0.9)
    data = Sequences.join([np.array([0.3, 2.0, 2.1, 5.0])])
    paths = np.indices((2,) * 4).reshape(4, -1)
    chance = np.full(paths.shape[1], 0.5)
    rate = np.array(process.rate)
    totals = []
    for n, gap in enumerate(data.gap):
        if n:
            chance = chance * np.where(paths[n] == paths[n - 1], 0.9, 0.1)
        chance = chance * rate[paths[n]] * np.exp(-rate[paths[n]] * gap)
        # Paths that differ only later are counted once for each of their ends.
        totals.append(chance.sum() / 2 ** (3 - n))
    expected = np.log(totals) - np.log([1.0, *totals[:-1]])
    assert process.score(data)[0] == pytest.approx(expected, abs=1e-9)
    assert process.name == "regimes"
