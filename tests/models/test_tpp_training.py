"""Training: gradients, the torch twin of the kernel, likelihoods on data of known law, export."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="the training environment has it")
pytest.importorskip("onnx", reason="the training environment has it")

from models.baselines.renewal import GAP_PRIOR_EVENTS, cumulative_profile  # noqa: E402
from models.prior import KindPrior  # noqa: E402 (after the skip)
from models.tpp import encoder as kernel  # noqa: E402
from models.tpp import spec  # noqa: E402
from models.tpp.mixture import log_pdfs, log_survivals  # noqa: E402
from models.tpp.training import export  # noqa: E402
from models.tpp.training.data import (  # noqa: E402
    KindData,
    Segment,
    build,
    cut,
    folds,
    pack,
    read_world,
    worlds,
)
from models.tpp.training.fit import (  # noqa: E402
    TrainingConfig,
    event_losses,
    predict,
    train,
)
from models.tpp.training.judge import judge  # noqa: E402
from models.tpp.training.network import (  # noqa: E402
    Decoder,
    Encoder,
    encoder_arrays,
    mixture_log_density,
    mixture_log_survival,
)
from models.tpp.training.recurrence import scan, slowest_decay  # noqa: E402

START_MS = 1_767_225_600_000


def _data(gaps_s: list[NDArray[np.float64]], seed: int = 1) -> KindData:
    rng = np.random.default_rng(seed)
    times = [START_MS + np.cumsum(np.maximum(1, np.rint(1e3 * g))).astype(np.int64) for g in gaps_s]
    starts = np.concatenate([[0], np.cumsum([len(t) for t in times])])
    time_ms = np.concatenate(times)
    logs = np.log(np.concatenate(gaps_s))
    prior = KindPrior(gap_mean=float(logs.mean()), gap_within_var=float(logs.var()))
    mark = rng.integers(0, 5, len(time_ms)).astype(np.uint8)
    owner = np.arange(len(gaps_s))
    value = rng.normal(prior.value_mean, 1.0, len(time_ms))
    return KindData("user", prior, time_ms, mark, value, starts, owner, int(time_ms.max()) + 1_000)


def test_torch_memory_equals_the_kernel_over_10000_events() -> None:
    torch.manual_seed(2)
    encoder = Encoder()
    rng = np.random.default_rng(2)
    data = _data([rng.lognormal(5, 2, 10_000)])
    block = build(cut(data, np.arange(1), 1 << 30))
    with torch.no_grad():
        found = encoder(*(torch.from_numpy(a) for a in (block.u, block.slowest, block.first)))
    weights = kernel.Encoder.of(encoder_arrays(encoder))
    memory, hidden = np.zeros(64, np.float32), np.empty(kernel.SCRATCH, np.float32)
    prior = data.prior
    walk = kernel.sequence_features(
        data.time_ms,
        cumulative_profile(np.array(prior.profile)),
        prior.gap_mean,
        prior.gap_within_var,
        GAP_PRIOR_EVENTS,
    )
    size = np.maximum(np.abs(found.numpy()).max(0), 1.0)
    for n in range(len(block)):
        elapsed, zgap, ratio, is_first, _ = walk[n]
        kernel.encoder_step(
            memory, elapsed, zgap, ratio, is_first, data.mark[n],
            weights.w1, weights.b1, weights.w2, weights.b2, hidden,
        )  # fmt: skip
        # The kernel adds the parts of e to the memory one by one, in float32: 1e-5 is what that
        # costs where a component sums a thousand events.
        assert (np.abs(found[n].numpy() - memory) / size).max() < 5e-5


def test_torch_memory_equals_a_plain_numpy_twin_over_10000_events() -> None:
    torch.manual_seed(2)
    encoder = Encoder()
    rng = np.random.default_rng(2)
    data = _data([rng.lognormal(5, 2, 10_000)])
    block = build(cut(data, np.arange(1), 1 << 30))
    with torch.no_grad():
        found = encoder(*(torch.from_numpy(a) for a in (block.u, block.slowest, block.first)))
    w = {name: value.astype(np.float64) for name, value in encoder_arrays(encoder).items()}
    e = np.maximum(block.u @ w["W1"].T + w["b1"], 0) @ w["W2"].T + w["b2"]
    by_count = np.exp(-1 / spec.COUNT_CONSTANTS).astype(np.float32)
    by_time = np.empty(2 * spec.TIME_DOUBLINGS, np.float32)
    h = np.zeros(spec.MEMORY)
    expected = np.empty((len(block), spec.MEMORY))
    for n in range(len(block)):
        decay = block.slowest[n]
        for k in reversed(range(spec.TIME_DOUBLINGS)):
            by_time[k] = by_time[k + spec.TIME_DOUBLINGS] = decay
            decay *= decay
        h = np.concatenate([by_time, by_count]) * h + e[n]
        expected[n] = h
    size = np.maximum(np.abs(expected).max(0), 1.0)
    assert (np.abs(found.numpy() - expected) / size).max() < 1e-5


def test_scan_gradient_equals_finite_differences() -> None:
    rng = np.random.default_rng(0)
    e = torch.tensor(rng.normal(size=(6, 64)).astype(np.float32), requires_grad=True)
    slowest = torch.from_numpy(slowest_decay(rng.lognormal(0, 2, 6)))
    first = torch.tensor([True, False, False, True, False, False])
    weight = torch.from_numpy(rng.normal(size=(6, 64)).astype(np.float32))
    (scan(e, slowest, first) * weight).sum().backward()
    assert e.grad is not None
    with torch.no_grad():
        for n, k in ((0, 0), (0, 40), (1, 15), (2, 63), (3, 31), (5, 2)):
            more = e.clone()
            more[n, k] += 1.0  # the scan is linear: any step is exact
            change = ((scan(more, slowest, first) - scan(e, slowest, first)) * weight).sum()
            assert float(change) == pytest.approx(float(e.grad[n, k]), abs=2e-5)


def test_sequences_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    encoder, decoder = Encoder(), Decoder()
    rng = np.random.default_rng(3)
    data = _data([rng.lognormal(3, 1, 40), rng.lognormal(6, 1, 30)])
    segments = cut(data, np.arange(2), 1 << 30)
    with torch.no_grad():
        both = predict(encoder, decoder, build(segments))
        alone = predict(encoder, decoder, build(segments[1:]))
    assert torch.equal(both[40:], alone)


@pytest.mark.parametrize("head", ["gap", "amount"])
def test_likelihoods_equal_the_mixture_kernels(head: str) -> None:
    torch.manual_seed(0)
    y = Decoder()(torch.randn(50, spec.INPUT)).detach()
    value = torch.linspace(-4, 4, 50)
    part = spec.AMOUNT if head == "amount" else spec.GAP
    params = y.numpy()[:, part]
    np.testing.assert_allclose(
        mixture_log_density(y[:, part], value).numpy(), log_pdfs(params, value.numpy()), atol=1e-4
    )
    np.testing.assert_allclose(
        mixture_log_survival(y[:, part], value).numpy(),
        log_survivals(params, value.numpy()),
        atol=1e-4,
    )


def test_the_end_of_watching_counts_as_survival() -> None:
    torch.manual_seed(0)
    encoder, decoder = Encoder(), Decoder()
    data = _data([np.full(10, 60.0)])
    closed = build([Segment(data, 0, 10, True, 1.0)])
    cut_off = build([Segment(data, 0, 5, False, 1.0)])
    with torch.no_grad():
        gap, _, _ = event_losses(predict(encoder, decoder, closed), closed)
        assert float(gap[-1]) > 0.0
        gap, mark, _ = event_losses(predict(encoder, decoder, cut_off), cut_off)
    assert float(gap[-1]) == float(mark[-1]) == 0.0


def test_segments_cover_every_event_once() -> None:
    data = _data([np.full(n, 30.0) for n in (1, 7, 100)])
    rng = np.random.default_rng(1)
    for longest in (3, 10, 1_000):
        segments = cut(data, np.arange(3), longest, rng)
        covered = np.concatenate([np.arange(s.begin, s.end) for s in segments])
        assert sorted(covered) == list(range(108))
        assert sum(s.closed for s in segments) == 3
        packed = pack(segments, 20, rng)
        assert sorted(s.begin for b in packed for s in b) == sorted(s.begin for s in segments)


def test_training_reaches_the_entropy_of_a_renewal_process() -> None:
    rng = np.random.default_rng(4)
    data = _data([rng.lognormal(4.0, 0.5, 400) for _ in range(40)])
    config = TrainingConfig(seed=1, steps=120, batch_events=2_048, longest=(512,), check_steps=50)
    held = cut(data, np.arange(30, 40), 1 << 30)
    fitted = train([(data, np.arange(30))], held, config)
    found = judge(fitted.encoder, fitted.decoder, data, np.arange(30, 40))
    true = 0.5 * np.log(2 * np.pi * np.e * 0.25)
    assert found.gap == pytest.approx(true, abs=0.06)
    assert found.gap < found.gap_poisson
    again = train([(data, np.arange(30))], held, config)
    assert again.validation == fitted.validation, "the same seed gives the same model"


def test_the_amount_is_learnt_given_the_mark() -> None:
    """Each mark has an amount of its own: who knows the mark is less surprised than the level."""
    rng = np.random.default_rng(6)
    data = _data([rng.lognormal(4.0, 0.5, 300) for _ in range(40)])
    prior = replace(data.prior, value_mean=5.0, value_between_var=0.01, value_within_var=1.0)
    far = np.where(data.mark == 4, 2.0, -0.5)  # variance 1 in all
    value = 5.0 + far + rng.normal(0.0, 0.1, len(far))
    value[::11] = np.nan
    data = replace(data, prior=prior, value=value)
    config = TrainingConfig(seed=1, steps=150, batch_events=2_048, longest=(512,), check_steps=50)
    held = cut(data, np.arange(30, 40), 1 << 30)
    fitted = train([(data, np.arange(30))], held, config)
    found = judge(fitted.encoder, fitted.decoder, data, np.arange(30, 40))
    # Given the mark what is left is the noise of .1, and how the level wanders meanwhile.
    assert found.amount < 0.0 < 1.2 < found.amount_level
    assert fitted.looks[-1].amount == pytest.approx(found.amount * 10 / 11, abs=0.1)
    # A likelihood of the amount that learns from the amount itself would be a fault.
    block = build(held[:1])
    with torch.no_grad():
        before = predict(fitted.encoder, fitted.decoder, block)
        other = build([replace(held[0], data=replace(data, value=value + 1.0))])
        after = predict(fitted.encoder, fitted.decoder, other)
    assert torch.equal(before, after)


def test_without_amounts_nothing_is_learnt_of_them() -> None:
    data = _data([np.full(20, 60.0)])
    data = replace(data, value=np.full(20, np.nan))
    torch.manual_seed(0)
    encoder, decoder = Encoder(), Decoder()
    block = build(cut(data, np.arange(1), 1 << 30))
    _, _, amount = event_losses(predict(encoder, decoder, block), block)
    amount.sum().backward()
    assert float(amount.detach().abs().max()) == 0.0
    assert all(bool(p.grad.isfinite().all()) for p in decoder.parameters() if p.grad is not None)
    found = judge(encoder, decoder, data, np.arange(1))
    assert math.isnan(found.amount)
    assert found.as_dict()["amount"] is None


def test_export_equals_torch_and_names_its_weights(tmp_path: Path) -> None:
    import onnxruntime

    torch.manual_seed(3)
    encoder, decoder = Encoder(), Decoder()
    configs = tmp_path / "configs"
    configs.mkdir()
    source = Path(__file__).parents[2] / "triton_repo" / "intensity" / "configs"
    for path in source.glob("*.pbtxt"):
        (configs / path.name).write_text(path.read_text())
    x = np.random.default_rng(0).normal(0, 30, (200, spec.INPUT)).astype(np.float32)
    version = export.write_model(encoder, decoder, x, tmp_path / "1")
    session = onnxruntime.InferenceSession(str(tmp_path / "1" / "decoder.onnx"))
    (y,) = session.run(["y"], {"x": x})
    np.testing.assert_allclose(y, decoder(torch.from_numpy(x)).detach().numpy(), atol=1e-5)
    assert session.get_modelmeta().custom_metadata_map["model_version"] == version
    export.name_in_configs(tmp_path / "1", version)
    for path in configs.glob("*.pbtxt"):
        assert f'"{version}"' in path.read_text()
    first = (tmp_path / "1" / "decoder.onnx").read_bytes()
    export.write_model(encoder, decoder, x, tmp_path / "1")
    assert (tmp_path / "1" / "decoder.onnx").read_bytes() == first
    (configs / "gpu.pbtxt").write_text("name: 'intensity'\n")
    with pytest.raises(ValueError, match="must have one parameter feature_version"):
        export.name_in_configs(tmp_path / "1", version)
    # A second version shares the configurations: they can name neither.
    (tmp_path / "2").mkdir()
    before = (configs / "python-cpu.pbtxt").read_text()
    export.name_in_configs(tmp_path / "2", "tpp-other")
    assert (configs / "python-cpu.pbtxt").read_text() == before


def test_held_out_entities_stay_held_out_whatever_is_watched() -> None:
    world = replace(worlds(7, 1)[0], users=200, merchants=20, payments=8_000)
    early = read_world(world, 0.75)
    later = read_world(world, priors={data.kind: data.prior for data in early})
    held = {}
    for before, after in zip(early, later, strict=True):
        assert before.prior is after.prior
        known = dict(zip(before.owner, folds(before, 10, 7), strict=True))
        fold = folds(after, 10, 7)
        assert len(after.owner) >= len(before.owner)
        assert all(known.get(o, f) == f for o, f in zip(after.owner, fold, strict=True))
        held[after.kind] = set(after.owner[fold == 1])
        assert 0 < len(held[after.kind]) < len(set(after.owner)) / 2
    assert held["device"] <= held["user"], "a user and its devices are held out together"


def test_worlds_differ_and_are_reproducible() -> None:
    plans = worlds(7, 4)
    assert [p.seed for p in plans] == [7000, 7001, 7002, 7003]
    assert plans[3] == replace(plans[0], seed=7003, users=1_500, merchants=100, branching=0.5)


def test_the_shipped_card_is_of_the_shipped_files() -> None:
    folder = Path(__file__).parents[2] / "triton_repo" / "intensity" / "1"
    card = json.loads((folder / "card.json").read_text())
    for name, digest in card["files"].items():
        assert export.sha256(folder / name) == digest
