"""Training on a user's stream: resume, hardware, pruning, quantization, distillation."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="the training environment has it")
pytest.importorskip("onnx", reason="the training environment has it")

from models.prior import KindPrior, Prior, save_prior  # noqa: E402 (after the skip)
from models.tpp import plan as plans  # noqa: E402
from models.tpp import spec  # noqa: E402
from models.tpp.plan import KindSequences, Plan  # noqa: E402
from models.tpp.training import checkpoint, learn, prune, quantise, teacher  # noqa: E402
from models.tpp.training.compress import short  # noqa: E402
from models.tpp.training.data import KindData, Segment, build, cut  # noqa: E402
from models.tpp.training.errors import TrainingError  # noqa: E402
from models.tpp.training.export import model_version, write_model  # noqa: E402
from models.tpp.training.fit import (  # noqa: E402
    Setting,
    TrainingConfig,
    decoder_input,
    event_losses,
    mean_losses,
    predict,
    train,
)
from models.tpp.training.hardware import Hardware  # noqa: E402
from models.tpp.training.network import (  # noqa: E402
    Decoder,
    Encoder,
    fix_marks,
    mixture_log_density,
)
from models.tpp.training.recurrence import parallel_scan, scan, slowest_decay  # noqa: E402

ROOT = Path(__file__).parents[2]
START_MS = 1_767_225_600_000
PRIOR = KindPrior(gap_mean=4.0, gap_within_var=0.6)


def amounts(mark: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return values whose level depends on the mark."""
    return np.asarray(PRIOR.value_mean + 2.0 * mark - 2.0 + rng.normal(0.0, 0.5, len(mark)))


def stream(entities: int = 30, events: int = 120, seed: int = 4) -> KindData:
    rng = np.random.default_rng(seed)
    times = [
        START_MS + np.cumsum(np.maximum(1, np.rint(1e3 * rng.lognormal(4, 0.7, events))))
        for _ in range(entities)
    ]
    mark = rng.integers(0, 3, entities * events).astype(np.uint8)
    time_ms = np.concatenate(times).astype(np.int64)
    starts = np.arange(0, entities * events + 1, events)
    return KindData(
        "user", PRIOR, time_ms, mark, amounts(mark, rng), starts, np.arange(entities),
        int(time_ms.max()) + 1,
    )  # fmt: skip


CONFIG = TrainingConfig(
    seed=2, steps=24, batch_events=1_024, longest=(64, 128), check_steps=6, warm_steps=4
)


def parts(data: KindData) -> tuple[list[tuple[KindData, NDArray[np.int64]]], list[Segment]]:
    count = len(data.starts) - 1
    return [(data, np.arange(count - 5))], cut(data, np.arange(count - 5, count), 1 << 30)


# -- the recurrence on a GPU -----------------------------------------------------------------------


def test_the_parallel_scan_equals_the_walk_and_so_does_its_gradient() -> None:
    rng = np.random.default_rng(1)
    n = 700
    slowest = torch.from_numpy(slowest_decay(rng.lognormal(0, 2, n)))
    first = torch.from_numpy(rng.random(n) < 0.02)
    first[0] = True
    weight = torch.from_numpy(rng.normal(size=(n, spec.MEMORY)).astype(np.float32))
    found = []
    for one in (scan, parallel_scan):
        e = torch.from_numpy(rng.normal(size=(n, spec.MEMORY)).astype(np.float32) * 0 + 1.0)
        e = (e * torch.arange(1, n + 1).unsqueeze(1) % 7 - 3).requires_grad_(True)
        h = one(e, slowest, first)
        (h * weight).sum().backward()
        found.append((h.detach(), e.grad))
    for a, b in zip(*found, strict=True):
        size = a.abs().amax(0).clamp(min=1.0)
        assert float(((a - b).abs() / size).max()) < 1e-5


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_learns_and_keeps_weights_and_likelihoods_wide(precision: str) -> None:
    learning, held = parts(stream())
    wide = train(learning, held, CONFIG)
    narrow = train(learning, held, CONFIG, Setting(hardware=Hardware("cpu", precision)))
    assert all(p.dtype == torch.float32 for p in narrow.decoder.parameters())
    assert narrow.validation[-1] < narrow.validation[0]
    # fp16 leaves out the first steps, until its scale of the loss fits.
    assert narrow.validation[-1] == pytest.approx(wide.validation[-1], abs=0.05)
    assert narrow.validation != wide.validation


def test_the_hardware_is_chosen_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Hardware.choose() == Hardware("cpu", "fp32")
    assert Hardware.choose("cpu", "bf16") == Hardware("cpu", "bf16")
    with pytest.raises(TrainingError, match="--device cuda: expected an NVIDIA GPU"):
        Hardware.choose("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for there, expected in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda there=there: there)
        assert Hardware.choose() == Hardware("cuda", expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_cuda_learns_what_the_cpu_learns() -> None:
    learning, held = parts(stream())
    cpu = train(learning, held, CONFIG)
    for precision in ("fp32", "bf16", "fp16"):
        cuda = train(learning, held, CONFIG, Setting(hardware=Hardware("cuda", precision)))
        assert cuda.validation[-1] == pytest.approx(cpu.validation[-1], abs=0.02)
        assert next(cuda.encoder.parameters()).device.type == "cpu"


# -- checkpoints -----------------------------------------------------------------------------------


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("after", [6, 12, 18, 24])
def test_a_training_that_goes_on_is_the_undisturbed_one_bit_for_bit(
    tmp_path: Path, after: int
) -> None:
    learning, held = parts(stream())
    whole = train(learning, held, CONFIG)
    setting = Setting(checkpoint=tmp_path / "c.pt")

    def dies(look: object) -> None:
        if look.step == after:  # type: ignore[attr-defined]
            raise _KilledError

    with pytest.raises(_KilledError):
        train(learning, held, CONFIG, setting, dies)
    again = train(learning, held, CONFIG, setting)
    assert again.validation == whole.validation
    assert model_version(again.encoder, again.decoder) == model_version(
        whole.encoder, whole.decoder
    )
    assert again.steps == whole.steps == 24
    # A training that is done is not done again.
    assert train(learning, held, CONFIG, setting, dies).validation == whole.validation


def test_a_checkpoint_of_another_training_or_none_is_refused(tmp_path: Path) -> None:
    learning, held = parts(stream())
    path = tmp_path / "c.pt"
    train(learning, held, replace(CONFIG, steps=6), Setting(checkpoint=path))
    with pytest.raises(TrainingError, match="is the checkpoint of another training"):
        train(learning, held, CONFIG, Setting(checkpoint=path))
    with pytest.raises(TrainingError, match="is the checkpoint of another training"):
        train(learning, held, replace(CONFIG, steps=6), Setting(checkpoint=path, job="other"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(TrainingError, match="begin anew without --resume"):
        train(learning, held, CONFIG, Setting(checkpoint=path))
    torch.save({"form": 0}, path)
    with pytest.raises(TrainingError, match="expected a checkpoint of form 1"):
        checkpoint.load(path, "job", "cpu")
    assert not list(tmp_path.glob("*.unfinished"))


def plan_folder(folder: Path, **changes: object) -> Plan:
    data = stream(40, 150)
    order = np.sort(data.time_ms)
    n = len(order)
    plan = Plan(
        kinds=("user",), valid_ms=int(order[7 * n // 10]), test_ms=int(order[85 * n // 100]),
        end_ms=int(order[-1]), device="cpu", precision="fp32",
        config={"seed": 2, "steps": 60, "check_steps": 2, "batch_events": 1_024,
                "longest": [64, 128]},
    )  # fmt: skip
    plan = replace(plan, **changes)  # type: ignore[arg-type]
    folder.mkdir(exist_ok=True)
    save_prior(Prior({"user": PRIOR}), folder / plans.PRIOR)
    plans.write_plan(
        folder, plan, [KindSequences("user", data.time_ms, data.mark, data.value, data.starts)]
    )
    return plan


def run_in(folder: Path) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", "models.tpp.training.learn", str(folder)],
        env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kill_9_and_resume_give_the_weights_of_an_undisturbed_training(tmp_path: Path) -> None:
    plan_folder(tmp_path / "whole")
    plan_folder(tmp_path / "killed")
    whole = run_in(tmp_path / "whole")
    file = tmp_path / "killed" / plans.CHECKPOINT
    kills = 0
    while not (tmp_path / "killed" / plans.LEARNT).exists():
        process = run_in(tmp_path / "killed")
        known = file.stat().st_mtime_ns if file.exists() else 0
        while process.poll() is None and kills < 3:
            if file.exists() and file.stat().st_mtime_ns != known:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.005)
        process.wait(300)
    assert whole.wait(300) == 0
    assert kills == 3
    found = [json.loads((tmp_path / n / plans.LEARNT).read_text()) for n in ("whole", "killed")]
    assert found[0]["model_version"] == found[1]["model_version"]
    for name in ("decoder.onnx", "encoder.npz", "check.npz"):
        files = [(tmp_path / n / plans.MODEL / name).read_bytes() for n in ("whole", "killed")]
        assert files[0] == files[1], name
    totals = [[look["total"] for look in one["looks"]] for one in found]
    assert totals[0] == totals[1]


# -- a plan ----------------------------------------------------------------------------------------


def test_nothing_of_a_later_part_is_known_before_it() -> None:
    data = stream()
    until = int(np.median(data.time_ms))
    early = learn.before(data, until)
    assert early.time_ms.max() < until == early.end_ms
    assert len(early.time_ms) == int((data.time_ms < until).sum())
    for sequence, owner in enumerate(early.owner):
        mine = early.time_ms[early.starts[sequence] : early.starts[sequence + 1]]
        whole = data.time_ms[data.starts[owner] : data.starts[owner + 1]]
        np.testing.assert_array_equal(mine, whole[whole < until])


def test_what_is_watched_has_a_history_and_counts_from_its_time_on() -> None:
    data = stream(12, 700)
    until = int(np.quantile(data.time_ms, 0.9))
    segments = learn.watched(data, until, 10**9, 1)
    assert len(segments) == 12
    for segment in segments:
        block = build([segment])
        time_ms = data.time_ms[segment.begin : segment.end]
        np.testing.assert_array_equal(block.weight > 0, time_ms >= until)
        assert int((time_ms < until).sum()) == 512
        assert bool(block.censored[-1])
    few = learn.drawn(data, until, 100, 1)
    assert 0 < len(few) < 12
    assert few.tolist() == learn.drawn(data, until, 100, 1).tolist()


def test_a_training_in_a_folder_learns_judges_and_is_the_seeds(tmp_path: Path) -> None:
    told: list[str] = []
    plan_folder(tmp_path / "a", config={"seed": 2, "steps": 60, "check_steps": 20,
                                        "batch_events": 1_024, "longest": [64, 128]})  # fmt: skip
    found = learn.learn(tmp_path / "a", told.append)
    judged: dict[str, Any] = found["judged"][0]  # type: ignore[index]
    true = 0.5 * np.log(2 * np.pi * np.e * 0.49)
    assert judged["gap"] == pytest.approx(true, abs=0.1)
    assert judged["gap"] < judged["gap_poisson"]
    assert sum(judged["pit"]) == judged["events"] == 900
    assert judged["reliability"][0] == pytest.approx(900 * np.exp(-0.5), abs=60)
    assert [look["step"] for look in found["looks"]] == [20, 40, 60]  # type: ignore[attr-defined]
    assert "step    60/60" in told[-1]
    assert json.loads((tmp_path / "a" / plans.LEARNT).read_text())["steps"] == 60
    with np.load(tmp_path / "a" / plans.MODEL / "check.npz") as check:
        assert check["x"].shape == (128, spec.INPUT)


def test_a_kept_encoder_stays_and_a_constant_mark_head_is_constant(tmp_path: Path) -> None:
    torch.manual_seed(9)
    share = np.log(np.array([0.93, *[0.01] * 7]))
    config = {"seed": 2, "steps": 8, "check_steps": 4, "batch_events": 1_024, "longest": [64]}
    plan_folder(tmp_path / "a", config=config, mark_log_share=tuple(share.tolist()))
    x = np.zeros((3, spec.INPUT), np.float32)
    write_model(Encoder(), Decoder(), x, tmp_path / "other")
    (tmp_path / "a" / plans.KEEP).write_bytes((tmp_path / "other" / "encoder.npz").read_bytes())
    found = learn.learn(tmp_path / "a", lambda _: None)
    with (
        np.load(tmp_path / "a" / plans.MODEL / "encoder.npz") as own,
        np.load(tmp_path / "other" / "encoder.npz") as kept,
    ):
        for name in ("W1", "b1", "W2", "b2"):
            np.testing.assert_array_equal(own[name], kept[name])
    with np.load(tmp_path / "a" / plans.MODEL / "check.npz") as check:
        np.testing.assert_allclose(
            check["y"][:, spec.LOG_MARK], np.tile(share, (128, 1)), atol=1e-5
        )
    assert {look["mark"] for look in found["looks"]} == {0.0}  # type: ignore[attr-defined]


def test_a_loss_that_is_not_finite_ends_the_training_with_its_step(tmp_path: Path) -> None:
    learning, held = parts(stream())

    def broken(encoder: Encoder, decoder: Decoder, block: object) -> object:
        del block
        return decoder.scale.sum() * encoder.hidden.bias.sum() * float("nan")

    with pytest.raises(TrainingError, match="the loss of step 1 is nan: expected a finite number"):
        train(learning, held, CONFIG, Setting(loss=broken))
    plan_folder(tmp_path / "a", device="cuda")
    assert learn.main([str(tmp_path / "a")]) == (0 if torch.cuda.is_available() else 1)
    assert learn.main([]) == 2


# -- cheaper forms ---------------------------------------------------------------------------------


def test_pruning_to_the_same_width_changes_nothing_and_keeps_the_strongest() -> None:
    torch.manual_seed(1)
    decoder = Decoder().eval()
    x = torch.randn(50, spec.INPUT)
    same = prune.prune(decoder, 64, 64)
    torch.testing.assert_close(same(x), decoder(x))
    with torch.no_grad():
        dead = [3, 10, 40]
        decoder.up.weight[dead] = 0.0
        decoder.up.bias[dead] = 0.0
        decoder.down.weight[:, dead] = 0.0
    narrow = prune.prune(decoder, 64, 61)
    assert narrow.up.weight.shape == (61, 64)
    torch.testing.assert_close(narrow(x), decoder(x))
    assert prune.prune(decoder, 16, 8)(x).shape == (50, spec.OUTPUT)
    with pytest.raises(ValueError, match="expected at most"):
        prune.prune(narrow, 64, 62)


@pytest.mark.parametrize("how", ["dynamic", "static"])
def test_int8_answers_nearly_the_same_and_is_named_for_itself(tmp_path: Path, how: str) -> None:
    import onnxruntime

    torch.manual_seed(1)
    x = torch.randn(600, spec.INPUT).numpy()
    version = write_model(Encoder(), Decoder(), x[:100], tmp_path / "1")
    out = tmp_path / "int8.onnx"
    name = quantise.quantise(tmp_path / "1" / "decoder.onnx", out, how, x)
    exact = quantise.answers(tmp_path / "1" / "decoder.onnx", x)
    found = quantise.answers(out, x)
    assert 0.0 < float(np.abs(found - exact).mean()) < 0.02
    meta = onnxruntime.InferenceSession(str(out)).get_modelmeta().custom_metadata_map
    assert meta["model_version"] == name != version
    assert meta["feature_version"] == spec.FEATURE_VERSION
    again = tmp_path / "again.onnx"
    assert quantise.quantise(tmp_path / "1" / "decoder.onnx", again, how, x) == name


def test_the_teacher_does_not_see_the_future() -> None:
    torch.manual_seed(3)
    encoder = teacher.AttentionEncoder()
    data = stream(3, 40)
    block = build(cut(data, np.arange(3), 1 << 30))
    later = replace(block, u=block.u.copy(), slowest=block.slowest.copy())
    later.u[60:80] += 1.0
    later.slowest[60:80] *= 0.5
    with torch.no_grad():
        before, after = decoder_input(encoder, block), decoder_input(encoder, later)
    torch.testing.assert_close(before[:60], after[:60])
    torch.testing.assert_close(before[80:], after[80:])  # another sequence
    assert float((before[60:80] - after[60:80]).abs().max()) > 0.01


def test_what_the_teacher_says_is_integrated_right() -> None:
    torch.manual_seed(5)
    of, by = (Decoder()(torch.randn(40, spec.INPUT)).detach()[:, spec.GAP] for _ in range(2))
    grid = torch.linspace(-60.0, 60.0, 48_001)
    step = float(grid[1] - grid[0])
    for n in range(0, 40, 8):
        p = mixture_log_density(of[n].expand(len(grid), -1), grid).exp()
        q = mixture_log_density(by[n].expand(len(grid), -1), grid)
        expected = float(-(p * q).sum() * step)
        found = float(teacher.cross_entropy(of[n : n + 1], by[n : n + 1])[0])
        assert found == pytest.approx(expected, abs=0.02)
    # Nobody is followed better than by the teacher itself.
    own = teacher.cross_entropy(of, of)
    by[:, spec.MEAN] += 0.5
    assert bool((teacher.cross_entropy(of, by) > own).all())


def test_a_student_comes_nearer_to_its_teacher() -> None:
    learning, held = parts(stream(60, 200))
    torch.manual_seed(0)
    taught = (Encoder(), Decoder())
    with torch.no_grad():
        taught[1].output.bias[spec.MEAN] += 1.0  # it says what the data do not
    loss = teacher.distillation_loss(*taught, share=1.0, marks=True)
    config = replace(CONFIG, steps=80, longest=(100,), check_steps=20)
    block = build(held)

    def distance(encoder: Encoder, decoder: Decoder) -> float:
        with torch.no_grad():
            soft = predict(*taught, block)
            y = predict(encoder, decoder, block)
            own = teacher.cross_entropy(soft[:, spec.GAP], soft[:, spec.GAP])
            return float((teacher.cross_entropy(soft[:, spec.GAP], y[:, spec.GAP]) - own).mean())

    by_data = train(learning, held, config)
    by_teacher = train(learning, held, replace(config, patience=99), Setting(loss=loss))
    assert distance(by_teacher.encoder, by_teacher.decoder) < 0.5 * distance(
        by_data.encoder, by_data.decoder
    )


def test_short_segments_count_each_event_once() -> None:
    data = stream(4, 900)
    until = int(np.quantile(data.time_ms, 0.5))
    segments = learn.watched(data, until, 10**9, 1)
    pieces = short(segments)
    assert max(s.end - s.begin for s in pieces) <= teacher.CONTEXT + 1
    torch.manual_seed(0)
    encoder, decoder = Encoder(), Decoder()
    counts = []
    for some in (segments, pieces):
        blocks = [build([s]) for s in some]
        counts.append(sum(int(((b.weight > 0) & (b.known | b.censored)).sum()) for b in blocks))
        assert np.isfinite(mean_losses(encoder, decoder, blocks)).all()
    assert counts[0] == counts[1]
    fix_marks(decoder, np.log(np.full(8, 0.125)))
    _, mark, _ = event_losses(predict(encoder, decoder, build(pieces[:1])), build(pieces[:1]))
    assert float(mark.detach().max()) == pytest.approx(np.log(8.0), abs=1e-5)
