"""The general encoder in the stream: poles, causality, bounded history, refusals."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from models.tpp.architecture import (
    GAP_FEATURES,
    LEVEL_FEATURES,
    MARK_FEATURES,
    PROFILE_FEATURES,
    RECENT_MARKS,
    Architecture,
    Layer,
    Scales,
    poles,
)
from models.tpp.features import features, mark_age, new_history
from models.tpp.profiles import rows_of
from models.tpp.recurrence import LayerWeights, Recurrence, fade, squash
from models.tpp.sequences import Sequences

SCALES = Scales(2.0, 0.1, 1.3, 500.0, 3.0, 0.5)


def form(layers: int = 2) -> Architecture:
    first = poles(0.05, 100.0, 4, 3, 2, extra=(0.7,))
    return Architecture(
        SCALES, (first, Layer((1.0, 30.0), (8.0,), ((3.0, 2.0),), 5))[:layers],
        marks=4, profiles=3, levels=(2.0, 20.0), amount=True, clock=True, clock_periods=(50.0,),
    )  # fmt: skip


def weights(architecture: Architecture, seed: int = 0) -> Recurrence:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> NDArray[np.float32]:
        return rng.normal(0.0, 0.4, shape).astype(np.float32)

    found, below = [], 0
    for layer in architecture.layers:
        found.append(
            LayerWeights(
                normal(architecture.features + below, layer.hidden),
                normal(layer.hidden),
                normal(architecture.marks, layer.hidden),
                normal(layer.hidden, layer.size),
                normal(layer.size),
                np.array(layer.time_constants),
                np.exp(-1.0 / np.array(layer.count_constants)).astype(np.float32),
                np.array([constant for constant, _ in layer.periods]),
                np.array([period for _, period in layer.periods]),
                (1.0 / np.sqrt(layer.reach)).astype(np.float32),
            )
        )
        below = layer.size
    return Recurrence(architecture, tuple(found), profiles(architecture))


def profiles(architecture: Architecture) -> NDArray[np.float32]:
    shape = architecture.profiles + 1, PROFILE_FEATURES if architecture.profiles else 0
    return np.random.default_rng(7).normal(0.0, 0.4, shape).astype(np.float32)


def told(data: Sequences, architecture: Architecture) -> NDArray[np.float32]:
    assert data.mark is not None
    return rows_of(profiles(architecture), data.mark)


def events(n: int, seed: int = 1) -> Sequences:
    rng = np.random.default_rng(seed)
    time = np.cumsum(rng.lognormal(0.0, 1.3, n))
    return Sequences.join([time], [rng.integers(0, 6, n)], [rng.lognormal(3.0, 0.5, n)])


def walk(encoder: Recurrence, data: Sequences) -> NDArray[np.float32]:
    memory = encoder.new_memory()
    assert data.mark is not None
    assert data.amount is not None
    rows = zip(data.time, data.mark, data.amount, strict=True)
    return np.stack([encoder.advance(memory, t, int(m), a) for t, m, a in rows])


def test_memory_equals_the_sum_over_all_past_events() -> None:
    architecture = form(1)
    encoder, data = weights(architecture), events(40)
    layer, w = architecture.layers[0], encoder.layers[0]
    assert data.mark is not None
    x = features(data, architecture, told(data, architecture))[0].astype(np.float64)
    hidden = x @ w.w1 + w.b1 + w.by_mark[np.minimum(data.mark, 3)]
    e = hidden / (1 + np.exp(-hidden)) @ w.w2 + w.b2
    real, counts, pairs = 5, 3, 2
    last = len(data) - 1
    elapsed = (data.time[last] - data.time) / SCALES.gap_mean
    expected = np.zeros(layer.size)
    expected[:real] = (np.exp(-elapsed[:, None] / w.time_constant) * e[:, :real]).sum(0)
    by_count = np.exp(-(last - np.arange(len(data)))[:, None] / np.array(layer.count_constants))
    expected[real : real + counts] = (by_count * e[:, real : real + counts]).sum(0)
    rate = -1.0 / w.complex_constant + 2j * math.pi / w.complex_period
    at = real + counts
    value = e[:, at : at + pairs] + 1j * e[:, at + pairs :]
    turned = (np.exp(elapsed[:, None] * rate) * value).sum(0)
    expected[at : at + pairs], expected[at + pairs :] = turned.real, turned.imag
    found = walk(encoder, data)[last]
    np.testing.assert_allclose(found[: layer.size], squash(expected * w.scale), atol=2e-5)
    np.testing.assert_allclose(found[layer.size :], x[last], atol=1e-6)


def test_a_complex_pole_turns_and_fades() -> None:
    memory = np.array([2.0, 4.0, 1.0, 0.0], np.float32)
    fade(
        memory, 0.5, np.array([0.5]), np.array([0.25], np.float32), np.array([1.0]), np.array([2.0])
    )
    size = math.exp(-0.5)
    assert memory == pytest.approx([2.0 * math.exp(-1.0), 1.0, 0.0, size], abs=1e-7)


def test_the_future_does_not_reach_the_past() -> None:
    encoder, data = weights(form()), events(60)
    before = walk(encoder, data)
    time = data.time.copy()
    time[40:] += 7.0
    assert data.mark is not None
    mark = np.where(np.arange(60) < 40, data.mark, 5 - data.mark)
    after = walk(encoder, replace(data, time=time, mark=mark))
    assert np.array_equal(before[:40], after[:40])
    assert np.abs(before[40:] - after[40:]).max() > 1e-2


def test_features_say_when_how_old_and_how_much() -> None:
    architecture = form()
    data = Sequences.join(
        [np.array([1.0, 3.0, 4.0, 9.0])], [np.array([2, 1, 2, 2])], [np.array([10.0, 20, 30, 40])]
    )
    x, elapsed = features(data, architecture, told(data, architecture))
    assert elapsed.tolist() == [0.0, 1.0, 0.5, 2.5]
    assert x.shape == (4, architecture.features)
    assert x[0, :GAP_FEATURES].tolist() == [0.0, 1.0, 1.0]
    z = (np.log([2.0, 1.0, 5.0]) - 0.1) / 1.3
    assert x[1:, 0] == pytest.approx(z)
    at = GAP_FEATURES
    keep = math.exp(-1.0 / 20.0)
    weight = 1.0 + keep * (1.0 + keep)
    assert x[0, at : at + 4].tolist() == [0.0] * 4
    mean = (z[2] + keep * z[1] + keep * keep * z[0]) / (weight + 1.0)
    power = (1.0 + z[2] ** 2 + keep * z[1] ** 2 + keep * keep * z[0] ** 2) / (weight + 1.0)
    assert x[3, at + 2] == pytest.approx(mean)
    assert x[3, at + 3] == pytest.approx(0.5 * math.log(power - mean**2))
    at += 2 * LEVEL_FEATURES + MARK_FEATURES
    expected = profiles(architecture)
    assert np.array_equal(x[:, at : at + PROFILE_FEATURES], expected[[2, 1, 2, 2]])
    at += PROFILE_FEATURES
    assert x[3, at] == pytest.approx((math.log(40.0) - 3.0) / 0.5)
    assert x[3, at + 1] == pytest.approx(9.0 / 2.0 - 4.0)
    assert x[3, at + 2] == pytest.approx(math.log(5.0))
    assert x[3, at + 3 : at + 5] == pytest.approx([9 / 500, (9 / 500) ** 2])
    assert x[3, at + 5] == pytest.approx(math.log1p(491 / 2))
    turn = 2 * math.pi * 0.18
    assert x[3, at + 6 :] == pytest.approx([math.sin(turn), math.cos(turn)])


def test_features_say_what_the_sequence_has_shown_of_a_mark() -> None:
    scales = replace(SCALES, log_gap_mean=0.0, log_gap_sd=1.0)
    architecture = Architecture(scales, (Layer((1.0,)),), marks=1)
    time = np.array([0.0, 1.0, 3.0, 6.0, 10.0, 15.0, 21.0])
    data = Sequences.join([time], [np.array([4, 4, 4, 8, 4, 4, 8])])
    x = features(data, architecture)[0][:, GAP_FEATURES:].T
    age, new, again, row, since, level, came, after, returns, kinds = x
    log = math.log
    assert age == pytest.approx([0, log(2), log(3), 0, log(8), log(6), log(16)])
    assert new.tolist() == [1, 0, 0, 1, 0, 0, 0]
    assert again.tolist() == [0, 1, 1, 0, 0, 1, 0]
    assert row == pytest.approx([0, log(2), log(3), 0, 0, log(2), 0])
    assert since == pytest.approx([0, log(2), log(4), 0, 0, log(6), 0])
    assert level == pytest.approx([0, 0, log(2) / 3, 0, 0, log(5) / 2, 0])
    assert came == pytest.approx([0, log(2), log(3), 0, log(4), log(5), log(2)])
    # Drawn to 0 as by two events more.
    after_4 = [0.0, 0.0, log(2) / 4, 0.0, log(6) / 5, log(30) / 6]
    assert after == pytest.approx([*after_4, log(4) / 3])
    assert returns == pytest.approx([0, 1 / 3, 2 / 4, 0, 2 / 5, 3 / 6, 0])
    assert kinds == pytest.approx([0, 0, 0, log(2), log(2), log(2), log(2)])


def test_the_oldest_mark_makes_place() -> None:
    history = new_history()
    for n in range(RECENT_MARKS):
        assert mark_age(history, float(n), float(n)) == -1.0
    assert mark_age(history, 0.0, 100.0) == 100.0
    assert mark_age(history, 500.0, 101.0) == -1.0, "takes the place of mark 1"
    assert mark_age(history, 2.0, 102.0) == 100.0
    assert mark_age(history, 1.0, 103.0) == -1.0
    assert mark_age(history, 0.0, 104.0) == 4.0


def test_an_architecture_survives_json_and_has_a_digest() -> None:
    architecture = form()
    again = Architecture.from_json(architecture.to_json())
    assert again == architecture
    assert again.digest == architecture.digest
    assert replace(architecture, clock=False).digest != architecture.digest
    assert architecture.memory == 5 + 3 + 4 + 2 + 1 + 2
    old = architecture.to_json().replace('"feature_version": "4"', '"feature_version": "2"')
    with pytest.raises(ValueError, match="feature version 4, found 2; train the model again"):
        Architecture.from_json(old)
    for bad in ((0.0,), (-1.0,), ()):
        with pytest.raises(ValueError, match="constants and periods above 0"):
            Layer(bad)


def test_what_does_not_fit_is_refused() -> None:
    encoder, other = weights(form()), weights(replace(form(), clock=False))
    with pytest.raises(ValueError, match="expected a memory of architecture"):
        encoder.advance(other.new_memory(), 1.0)
    memory = encoder.new_memory()
    encoder.advance(memory, 5.0)
    for time, amount in ((4.0, 1.0), (math.nan, 1.0), (6.0, 0.0), (math.inf, 1.0)):
        with pytest.raises(ValueError, match="expected a finite time from 5.0 on"):
            encoder.advance(memory, time, 0, amount)
    with pytest.raises(ValueError, match="expected events with profiles, found none"):
        features(events(3), form())
    with pytest.raises(ValueError, match=r"expected profiles \[3, 8\], found \(3, 2\)"):
        features(events(3), form(), np.zeros((3, 2), np.float32))
    with pytest.raises(ValueError, match=r"expected profiles of shape \(4, 8\), found \(1, 0\)"):
        Recurrence(form(), encoder.layers)
    with pytest.raises(ValueError, match="expected events with marks, found none"):
        features(Sequences.join([np.array([1.0])]), form())
    with pytest.raises(ValueError, match="expected events with amounts, found none"):
        features(Sequences.join([np.array([1.0])], [np.array([1])]), form())


def test_memory_stays_finite_over_wild_gaps() -> None:
    encoder = weights(form())
    gap = np.array([1e-9, 1e9, 1e-9, 1e12, 1.0, 1e-12] * 20)
    time = np.cumsum(gap)
    keep = np.diff(time, prepend=-1.0) > 0
    data = Sequences.join(
        [time[keep]], [np.zeros(keep.sum(), np.int64)], [np.full(keep.sum(), 1e30)]
    )
    assert np.isfinite(walk(encoder, data)).all()
