"""The streamable model in torch: its twin in the stream, gradients, causality, heads, samples."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training environment has it")

from models.tpp.architecture import Architecture, Layer, Scales, poles  # noqa: E402 (after the skip)
from models.tpp.classical import Hawkes, Renewal, draw, mean_nll  # noqa: E402
from models.tpp.gap_laws import LogNormalMixture, Weibull  # noqa: E402
from models.tpp.screening import Marks, suggest  # noqa: E402
from models.tpp.sequences import Sequences, ks_p_value  # noqa: E402
from models.tpp.training import references  # noqa: E402
from models.tpp.training.likelihood import (  # noqa: E402
    Training,
    batches,
    fit,
    judge,
    prepare,
    prepare_for,
)
from models.tpp.training.sampling import sample  # noqa: E402
from models.tpp.training.scan import pole_scan  # noqa: E402
from models.tpp.training.streamable import (  # noqa: E402
    Model,
    mixture_cdf,
    mixture_log_density,
    stream_weights,
)

SCALES = Scales(1.5, 0.0, 1.2, 1e5, 3.0, 0.5)
MARKED = Architecture(
    SCALES,
    (poles(0.02, 500.0, 8, 6, 4, extra=(0.7,)), Layer((1.0, 50.0), (9.0, 300.0), ((3.0, 2.0),))),
    marks=5, mark_head=True, profiles=4, levels=(2.0, 30.0), amount=True, clock=True,
    clock_periods=(700.0,), components=6, width=16, blocks=1,
)  # fmt: skip
PLAIN = Architecture(SCALES, (poles(0.05, 200.0, 6, 4, 2),), components=6, width=16, blocks=1)


def events(n: int, sequences: int = 1, seed: int = 1) -> Sequences:
    rng = np.random.default_rng(seed)
    each = [np.cumsum(rng.lognormal(0.0, 1.2, n)) for _ in range(sequences)]
    marks = [rng.integers(0, 6, n) for _ in range(sequences)]
    amounts = [rng.lognormal(3.0 + 0.2 * mark, 0.5) for mark in marks]
    return Sequences.join(each, marks, amounts)


def model(form: Architecture, seed: int = 3) -> Model:
    torch.manual_seed(seed)
    found = Model.streamable(form)
    for layer in found.encoder.layers:
        torch.nn.init.normal_(layer.by_mark, 0.0, 0.3)
    torch.nn.init.normal_(found.profiles, 0.0, 0.3)
    evaluated: Model = found.eval()
    return evaluated


def test_the_streams_encoder_equals_torch_over_10000_events() -> None:
    twin, data = model(MARKED), events(10_000)
    with torch.no_grad():
        expected = twin.encoder(prepare_for(twin, data)).numpy()
    encoder = stream_weights(twin)
    memory = encoder.new_memory()
    assert data.mark is not None
    assert data.amount is not None
    worst = 0.0
    for n in range(len(data)):
        x = encoder.advance(memory, data.time[n], int(data.mark[n]), data.amount[n])
        size = np.maximum(np.abs(expected[n]), 1.0)
        worst = max(worst, float((np.abs(x - expected[n]) / size).max()))
    assert worst < 1e-5


def test_gradients_of_the_scan_equal_finite_differences() -> None:
    torch.manual_seed(0)
    n, plain, pairs = 7, 2, 2
    first = torch.tensor([True, False, False, True, False, False, False])
    e = torch.randn(n, plain + 2 * pairs, dtype=torch.float64, requires_grad=True)
    real = torch.rand(n, plain + pairs, dtype=torch.float64, requires_grad=True)
    imaginary = torch.rand(n, pairs, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda a, b, c: pole_scan(a, b, c, first), (e, real, imaginary), atol=1e-7
    )


def test_gradients_of_the_likelihood_equal_finite_differences() -> None:
    twin, prepared = model(PLAIN), prepare(events(60, 2), PLAIN)
    twin.losses(prepared)["gap"].sum().backward()
    layer = twin.encoder.layers[0]
    for value in (layer.log_time, layer.log_period, layer.log_constant, layer.hidden.bias):
        for k in (0, len(value) - 1):
            slope = float(value.grad[k])
            found = []
            for step in (1e-2, -1e-2):
                with torch.no_grad():
                    value[k] += step
                    found.append(float(twin.losses(prepared)["gap"].double().sum()))
                    value[k] -= step
            assert slope == pytest.approx((found[0] - found[1]) / 2e-2, rel=0.05, abs=6e-3)


@pytest.mark.parametrize("kind", ["streamable", "gru", "attention"])
def test_the_future_and_other_sequences_do_not_reach_a_prediction(kind: str) -> None:
    torch.manual_seed(1)
    make = {"streamable": Model.streamable, "gru": references.gru}.get(kind, references.attention)
    twin, data = make(MARKED).eval(), events(30, 3)
    with torch.no_grad():
        before = twin(prepare_for(twin, data))
        time = data.time.copy()
        time[45:60] += 3.0
        after = twin(prepare_for(twin, replace(data, time=time)))
        alone = twin(prepare_for(twin, data.take(np.array([2]))))
    same = torch.ones(90, dtype=torch.bool)
    same[45:60] = False
    torch.testing.assert_close(before[same], after[same], atol=1e-5, rtol=1e-5)
    assert float((before[45:60] - after[45:60]).abs().max()) > 1e-4
    torch.testing.assert_close(before[60:], alone, atol=1e-5, rtol=1e-5)


def test_densities_integrate_to_one_and_to_their_distribution() -> None:
    twin = model(MARKED)
    prepared = prepare_for(twin, events(4))
    z = twin(prepared)[:1]
    grid = torch.linspace(-60.0, 60.0, 240_001, dtype=torch.float64)
    mark = torch.tensor([2])
    amount = twin.decoder.amount_parameters(z, torch.tensor([0.3]), mark)
    with torch.no_grad():
        for params in (twin.decoder.gap_parameters(z), amount):
            params = params.double()
            density = torch.exp(mixture_log_density(params.expand(len(grid), -1), grid))
            assert float(torch.trapezoid(density, grid)) == pytest.approx(1.0, abs=1e-6)
            below = grid <= 0.7
            area = float(torch.trapezoid(density[below], grid[below]))
            assert float(mixture_cdf(params, torch.tensor([0.7]).double())) == pytest.approx(
                area, abs=1e-3
            )
        marks = twin.decoder.mark_log_probability(z)
    assert float(torch.exp(marks).sum()) == pytest.approx(1.0, abs=1e-6)


def test_heads_that_are_not_there_are_refused() -> None:
    twin = model(PLAIN)
    z = torch.zeros(1, 16)
    with pytest.raises(ValueError, match="with a mark head"):
        twin.decoder.mark_log_probability(z)
    with pytest.raises(ValueError, match="with amounts"):
        twin.decoder.amount_parameters(z, z[:, 0], torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="expected 6 components, found 1"):
        twin.decoder.begin_at(LogNormalMixture((1.0,), (0.0,), (1.0,)))
    with pytest.raises(TypeError, match="only a linear recurrence runs in the stream"):
        stream_weights(references.gru(PLAIN))
    data = events(50, 2)
    with pytest.raises(ValueError, match="that reads times only beside a teacher"):
        fit(model(MARKED), data, data, _short(1), Hawkes(0.2, (0.5,), (1.0,)))


def test_the_mixture_begins_at_the_best_one_without_history() -> None:
    data = draw(Renewal(LogNormalMixture((1.0,), (-1.0,), (0.6,))), 200, 6, 1)
    form = replace(suggest(data, data, None), width=16, blocks=1)
    torch.manual_seed(0)
    begun, _ = fit(Model.streamable(form), data, data, Training(steps=1, learning_rate=0.0))
    z = begun(prepare(data, form))
    with torch.no_grad():
        begun.decoder.gap.weight.zero_()
    assert z.shape == (1_200, 16)
    truth = mean_nll(Renewal(LogNormalMixture((1.0,), (-1.0,), (0.6,))), data)
    assert judge(begun, data).gap_nll == pytest.approx(truth, abs=0.02)


def _short(
    steps: int, learning_rate: float = 4e-3, passes: int = 25, limit_s: float = 1e9
) -> Training:
    return Training(
        steps=steps, batch_events=1_024, looks=4, learning_rate=learning_rate, passes=passes,
        limit_s=limit_s,
    )  # fmt: skip


def test_training_learns_a_hawkes_process_and_is_the_seeds() -> None:
    truth = Hawkes(0.2, (0.8,), (2.0,))
    train, valid, test = (draw(truth, 400, n, s) for n, s in ((10, 1), (4, 2), (8, 3)))
    form = replace(suggest(train, valid, truth), width=16, blocks=1, components=6)
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        fitted, looks = fit(Model.streamable(form), train, valid, _short(60), truth)
        found.append(looks[-1].validation)
    assert found[0] == found[1], "the same seed gives the same model"
    judged, poisson = judge(fitted, test), mean_nll(Renewal(Weibull(1.0, 1.0)), test)
    assert judged.gap_nll < mean_nll(truth, test) + 0.03
    assert judged.gap_nll < poisson - 0.2
    assert judged.mark_nll is None
    assert judged.amount_nll is None
    assert ks_p_value(judged.pit) > 1e-4


def test_marks_and_amounts_are_learnt_given_what_came() -> None:
    rng = np.random.default_rng(2)
    times, marks, amounts = [], [], []
    for _ in range(8):
        mark = np.cumsum(rng.random(300) < 0.1) % 2
        times.append(np.cumsum(rng.exponential(1.0, 300)))
        marks.append(mark)
        amounts.append(np.exp(3.0 + 2.0 * mark + 0.3 * rng.normal(size=300)))
    data = Sequences.join(times, marks, amounts)
    train, test = data.take(np.arange(6)), data.take(np.array([6, 7]))
    form = replace(suggest(train, test, None, marks=Marks(2)), width=16, blocks=1, components=6)
    torch.manual_seed(1)
    fitted, _ = fit(Model.streamable(form), train, test, _short(120, learning_rate=1e-2, passes=80))
    judged = judge(fitted, test)
    assert judged.mark_nll is not None
    assert judged.amount_nll is not None
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert judged.mark_nll == pytest.approx(entropy, abs=0.1)
    # Given the mark the log amount is normal with sd .3; without it, sd 1.04.
    assert judged.amount_nll == pytest.approx(0.5 * math.log(2 * math.pi * math.e * 0.09), abs=0.12)
    drawn = sample(fitted, test.take(np.array([0])), 400, seed=4)
    assert drawn.mark is not None
    assert drawn.amount is not None
    assert 0.02 < float((np.diff(drawn.mark) != 0).mean()) < 0.25
    high = np.log(drawn.amount)[drawn.mark == 1].mean()
    assert high == pytest.approx(5.0, abs=0.3)


def test_samples_look_like_the_data() -> None:
    truth = Hawkes(0.2, (0.8,), (2.0,))
    train, valid = draw(truth, 400, 10, 1), draw(truth, 400, 4, 2)
    form = replace(suggest(train, valid, truth), width=24, blocks=1, components=8)
    torch.manual_seed(5)
    fitted, _ = fit(Model.streamable(form), train, valid, _short(150), truth)
    begin = Sequences.join([time[:50] for time in np.split(train.time, 10)])
    drawn = sample(fitted, begin, 300, seed=9)
    assert (drawn.count, len(drawn)) == (10, 3_000)
    assert np.array_equal(sample(fitted, begin, 300, seed=9).time, drawn.time)
    real = draw(truth, 350, 10, 11)
    ours, theirs = np.log(drawn.scored), np.log(real.scored)
    assert ours.mean() == pytest.approx(theirs.mean(), abs=0.25)
    assert ours.std() == pytest.approx(theirs.std(), rel=0.15)
    # The true process finds its own simulations likely, and the model's as well.
    assert mean_nll(truth, drawn) < mean_nll(truth, real) + 0.35

    def clustering(gap: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
        y = np.log(gap)
        return float(np.corrcoef(y[1:], y[:-1])[0, 1])

    assert clustering(drawn.scored) == pytest.approx(clustering(real.scored), abs=0.1)
    assert clustering(real.scored) > 0.1


@pytest.mark.parametrize("make", [references.gru, references.attention])
def test_references_learn_too(make) -> None:  # type: ignore[no-untyped-def]
    truth = Hawkes(0.2, (0.8,), (2.0,))
    train, valid = draw(truth, 128, 12, 1), draw(truth, 128, 6, 2)
    form = replace(suggest(train, valid, truth), width=16, blocks=1, components=6)
    torch.manual_seed(5)
    fitted, _ = fit(make(form, 16), train, valid, _short(60), truth)
    assert judge(fitted, valid).gap_nll < mean_nll(truth, valid) + 0.06


def test_batches_hold_each_sequence_once() -> None:
    data = events(10, 7)
    found = batches(data, 25, np.random.default_rng(0))
    assert [len(batch) for batch in found] == [3, 3, 1]
    assert sorted(np.concatenate(found)) == list(range(7))


def test_a_time_limit_ends_training() -> None:
    data = events(100, 6)
    form = replace(MARKED, mark_head=False)
    torch.manual_seed(0)
    _, looks = fit(Model.streamable(form), data, data, _short(500, limit_s=1e-9))
    assert [look.step for look in looks] == [1]
