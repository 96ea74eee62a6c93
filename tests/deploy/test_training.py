"""`eddy train --from` without torch and servers: what is read, laid out, calibrated and told."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deploy.cli import main
from deploy.commands import train as command
from deploy.fit.source import read_stream
from deploy.training import compress, run
from deploy.training import folder as folders
from deploy.training.calibrate import calibrate
from deploy.training.cost import ROWS, measure
from deploy.training.report import write_report
from deploy.training.run import TrainOptions, run_train, work_folder
from deploy.training.sequences import learnable, sequences_of, split_of
from flink_jobs.advance import AdvanceModel
from flink_jobs.errors import EddyError
from flink_jobs.model_files import kind_models, load_encoder, load_version, same_moments
from flink_jobs.settings import Settings, load
from models.prior import KindPrior, load_prior, save_prior
from models.tpp import plan as plans
from state.events import EventBatch
from tests.deploy.test_fit import Broker, nothing, write_lines

REPOSITORY = Path(__file__).parents[2] / "triton_repo"
SHIPPED = REPOSITORY / "intensity" / "1"
START_S = 1_767_571_200
QUIET = ("event.value_integer=false",)


def settings_of(*overrides: str) -> Settings:
    return load(None, {}, [*QUIET, *overrides])


def payments(n: int = 3_000, seed: int = 1, **fixed: object) -> list[dict[str, object]]:
    """Make payments of 40 users and devices and 6 shops over two weeks."""
    rng = np.random.default_rng(seed)
    time_s = START_S + np.cumsum(rng.exponential(400.0, n))
    channels = ("ecom", "pos", "app")
    return [
        {
            "payment_id": f"p-{i}",
            "event_time": round(1000 * float(time_s[i])),
            "amount": round(float(np.exp(rng.normal(5.0, 0.4))), 2),
            "channel": channels[int(rng.integers(3))],
            "user_id": f"u-{int(rng.integers(40))}",
            "merchant_id": f"m-{int(rng.integers(6))}",
            "device_id": f"d-{int(rng.integers(40))}",
            **fixed,
        }
        for i in range(n)
    ]


def events_of(rows: list[dict[str, object]], path: Path, *overrides: str) -> EventBatch:
    return read_stream(str(write_lines(path, rows)), settings_of(*overrides), 10**6, nothing).events


SENSORS = (
    "event.id_pointer=/id", "event.time_pointer=/at", "event.value_pointer=",
    "event.mark_pointer=", "event.entities={sensor = '/sensor'}", "detection.silence_kinds=[]",
    "detection.partner_kinds={}",
)  # fmt: skip


def sensors(n: int, every_s: float, jitter: float, count: int = 4) -> list[dict[str, object]]:
    rng = np.random.default_rng(2)
    return [
        {
            "id": f"{s}-{i}",
            "sensor": f"s-{s}",
            "at": round(1000 * (START_S + i * every_s + s + float(jitter * rng.random()))),
        }
        for i in range(n)
        for s in range(count)
    ]


# -- what there is to learn from -------------------------------------------------------------------


def test_sequences_hold_every_event_of_every_entity_in_order(tmp_path: Path) -> None:
    rows = payments(600)
    events = events_of(rows, tmp_path / "e.jsonl")
    user, merchant, device = sequences_of(events, settings_of())
    assert (user.kind, merchant.kind, device.kind) == ("user", "merchant", "device")
    assert len(merchant.starts) - 1 == len({row["merchant_id"] for row in rows})
    times = [int(str(row["event_time"])) for row in rows]
    assert sorted(user.time_ms) == sorted(times)
    for one in (user, merchant, device):
        inside = np.ones(len(one.time_ms) - 1, np.bool_)
        inside[one.starts[1:-1] - 1] = False
        assert (np.diff(one.time_ms)[inside] >= 0).all()
    by_shop = {
        tuple(
            sorted(t for t, row in zip(times, rows, strict=True) if row["merchant_id"] == f"m-{m}")
        )
        for m in range(6)
    }
    found = {
        tuple(merchant.time_ms[a:b])
        for a, b in zip(merchant.starts[:-1], merchant.starts[1:], strict=True)
    }
    assert found == by_shop


def test_the_split_is_in_time_and_by_events(tmp_path: Path) -> None:
    events = events_of(payments(1_000), tmp_path / "e.jsonl")
    split = split_of(events)
    time_ms = events.time_ms
    assert int((time_ms < split.valid_ms).sum()) == 700
    assert int((time_ms < split.test_ms).sum()) == 850
    assert split.end_ms == time_ms.max()


@pytest.mark.parametrize(
    ("rows", "overrides", "expected"),
    [
        (payments(300), (), "user: expected at least 500 gaps to learn from, found 1"),
        (sensors(1, 60, 0, 900), SENSORS, "sensor: no gaps: each of its 900 entities has one"),
        (sensors(400, 60, 0), SENSORS, "sensor: all its 1,596 gaps are 60 s: any other gap"),
        (
            [*sensors(300, 60, 9), *({"id": f"x{i}", "sensor": f"x{i}", "at": 1000 * START_S + 10**8
              + i} for i in range(2_000))],
            SENSORS, "sensor: expected at least 50 gaps each to validate and to test by, found 0",
        ),
    ],
)  # fmt: skip
def test_too_little_is_said_by_kind(
    tmp_path: Path, rows: list[dict[str, object]], overrides: tuple[str, ...], expected: str
) -> None:
    settings = settings_of(*overrides)
    events = events_of(rows, tmp_path / "e.jsonl", *overrides)
    with pytest.raises(EddyError) as caught:
        learnable(sequences_of(events, settings), split_of(events), settings)
    assert str(caught.value).startswith("nothing to learn the timing of events from: ")
    assert expected in str(caught.value)
    assert "Give a longer stream" in str(caught.value)


def test_a_kind_without_enough_is_left_out_and_named(tmp_path: Path) -> None:
    rows = payments()
    for i, row in enumerate(rows):
        row["device_id"] = f"d-{i}"
    settings = settings_of()
    events = events_of(rows, tmp_path / "e.jsonl")
    found = learnable(sequences_of(events, settings), split_of(events), settings)
    assert [one.kind for one in found.kinds] == ["user", "merchant"]
    assert found.left_out == {"device": "no gaps: each of its 3,000 entities has one event"}
    assert found.notes == (f"device is not learnt from: {found.left_out['device']}",)
    assert found.mark_log_share == ()


@pytest.mark.parametrize(
    ("channel", "said"),
    [("pos", "one mark only, pos"), ("unheard of", "events have no known mark")],
)
def test_one_mark_makes_a_constant_head(tmp_path: Path, channel: str, said: str) -> None:
    settings = settings_of()
    events = events_of(payments(channel=channel), tmp_path / "e.jsonl")
    found = learnable(sequences_of(events, settings), split_of(events), settings)
    share = np.exp(found.mark_log_share)
    assert share.sum() == pytest.approx(1.0)
    assert share[1] == pytest.approx(0.125 if channel != "pos" else 6301 / 6308, rel=1e-3)
    assert found.notes == (f"{said}: the mark head is constant and not learnt",)


def test_a_kind_that_no_event_has_is_an_error(tmp_path: Path) -> None:
    rows = payments(50)
    for row in rows:
        del row["device_id"]
    settings = settings_of()
    with pytest.raises(EddyError, match="no event has an entity of the kind device at /device_id"):
        sequences_of(events_of(rows, tmp_path / "e.jsonl"), settings)


# -- the whole, with the shipped weights for those that torch would learn --------------------------


def learnt_of(folder: Path) -> dict[str, object]:
    """Return what a training of the shipped weights would tell."""
    plan = plans.read_plan(folder)
    looks = [
        {"step": s, "seconds": s / 10, "total": 3 + 1 / s, "gap": 2 + 1 / s, "mark": 1.0,
         "amount": 1.4, "learning": 3.1}
        for s in (50, 100)
    ]  # fmt: skip
    judged = [
        {
            "kind": kind, "events": 1_000, "entities": 9, "gap": 1.9, "gap_renewal": 2.0,
            "gap_poisson": 2.2, "mark": 1.1, "mark_frequency": 1.2, "amount": 1.3,
            "amount_level": 1.4, "tail_ratio": [1, 1, 0],
            "low_tail_ratio": [1, 1, 1], "pit": [50] * 20, "reliability": [600, 360] + [5] * 22,
        }
        for kind in plan.kinds
    ]  # fmt: skip
    return {
        "model_version": json.loads((SHIPPED / "card.json").read_text())["model_version"],
        "steps": 100, "best_step": 100, "seconds": 10.0,
        "hardware": {"device": "cpu", "precision": "fp32"},
        "parameters": {"encoder": 2_496, "decoder": 14_100}, "looks": looks, "judged": judged,
        "reliability_nats": [0.5 * (i + 1) for i in range(24)], "versions": {"torch": "none"},
    }  # fmt: skip


def shipped_weights(folder: Path, variant: str | None) -> None:
    """Stand in for the training environment."""
    if variant is not None:
        shutil.copytree(folder / plans.VARIANTS / variant, folder / plans.MODEL, dirs_exist_ok=True)
        return
    told = learnt_of(folder)
    (folder / plans.MODEL).mkdir(exist_ok=True)
    for name in folders.LEARNT_FILES:
        shutil.copyfile(SHIPPED / name, folder / plans.MODEL / name)
    if plans.read_plan(folder).compress:
        rows = []
        for name, nats, size in (("base", 3.0, 9), ("int8", 3.001, 5), ("pruned", 3.1, 2)):
            variant_folder = folder / plans.VARIANTS / name
            shutil.copytree(folder / plans.MODEL, variant_folder)
            rows.append(
                {"name": name, "folder": name, "model_version": f"tpp-{name}", "bytes": size,
                 "valid_nats": nats, "test_nats": nats + 0.1}
            )  # fmt: skip
        teacher = {"name": "teacher", "folder": None, "bytes": None, "model_version": None}
        rows.append({**teacher, "valid_nats": 2.9, "test_nats": 2.9})
        told["variants"] = rows
    (folder / plans.LEARNT).write_text(json.dumps(told))


@pytest.fixture
def stream(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "events.jsonl", payments())


def options(stream: Path, **changes: object) -> TrainOptions:
    made = TrainOptions(str(stream), stream.with_name("own") / "intensity" / "1", steps=100)
    return replace(made, **changes)  # type: ignore[arg-type]


def silent(what: str, done: int, total: int | None) -> None:
    del what, done, total


def test_a_training_leaves_a_folder_that_the_running_job_takes(stream: Path) -> None:
    told: dict[str, int] = {}

    def show(what: str, done: int, total: int | None) -> None:
        assert total is None or done <= total
        told[what] = done

    chosen, settings = options(stream), settings_of()
    result = run_train(settings, chosen, show, shipped_weights)
    assert told == {"read": 3_000, "calibrate with the model": 3_000}
    assert not work_folder(chosen.out).exists()
    names = {path.name for path in chosen.out.iterdir()}
    assert names == {*folders.DIGESTED, folders.CARD, folders.PAGE}
    card = json.loads((chosen.out / "card.json").read_text())
    assert card == json.loads(json.dumps(result.card))
    for name, digest in card["files"].items():
        assert hashlib.sha256((chosen.out / name).read_bytes()).hexdigest() == digest
    assert set(card["files"]) == set(folders.DIGESTED)
    assert card["data"]["kinds"]["merchant"] == {"events": 3_000, "entities": 6}
    assert (card["data"]["events"], card["seed"], card["mark_head"]) == (3_000, 7, "learnt")
    assert list(card["cost"]["decoder_us_per_row"]) == [str(n) for n in ROWS]
    assert all(us > 0 for us in card["cost"]["decoder_us_per_row"].values())
    assert "| merchant | 1,000 | 1.9000 | 2.0000 | 2.2000 |" in (chosen.out / "card.md").read_text()
    # The job with the shipped model takes this one: the moments are those of the prior in charge.
    prior = load_prior(SHIPPED / "prior.json")
    models = kind_models(settings, load_encoder(SHIPPED), prior)
    repository = settings_of(f"triton.model_repository={chosen.out.parent.parent}")
    version = load_version(repository, 1, models)
    assert version.weights == card["model_version"]
    for kind in ("user", "merchant", "device"):
        own, before = version.prior.of(kind), prior.of(kind)
        assert own.degraded_tails == before.degraded_tails
        assert replace(own, tails={}) == replace(before, tails={})
        assert own.tails != before.tails
        assert set(own.tails) >= {"amount", "burst", "mark", "silence"}
    assert version.prior.origin["model"] == card["model_version"]


def test_configurations_are_written_for_a_repository_of_its_own_alone(stream: Path) -> None:
    first = options(stream)
    result = run_train(settings_of(), first, silent, shipped_weights)
    configs = first.out.parent / "configs"
    assert sorted(p.name for p in result.configs) == [
        "gpu.pbtxt", "python-cpu.pbtxt", "tensorrt.pbtxt",
    ]  # fmt: skip
    texts = {path.name: path.read_text() for path in configs.iterdir()}
    assert all(f'"{result.card["model_version"]}"' in text for text in texts.values())
    # Beside it the next version: what all share is left as it is.
    for path in configs.iterdir():
        path.write_text("kept")
    second = replace(first, out=first.out.parent / "2")
    assert run_train(settings_of(), second, silent, shipped_weights).configs == []
    assert {path.read_text() for path in configs.iterdir()} == {"kept"}
    assert (second.out / "model.py").read_bytes() == (SHIPPED / "model.py").read_bytes()
    # A plain folder is no repository.
    plain = replace(first, out=stream.with_name("plain") / "model")
    assert run_train(settings_of(), plain, silent, shipped_weights).configs == []
    # A repository of another name is named in its configurations.
    named = replace(first, out=stream.with_name("other") / "sensors" / "3")
    for path in run_train(settings_of(), named, silent, shipped_weights).configs:
        assert path.read_text().count('\nname: "sensors"') == 1


def test_a_model_in_the_way_is_never_overwritten(stream: Path) -> None:
    chosen = options(stream)
    run_train(settings_of(), chosen, silent, shipped_weights)
    with pytest.raises(EddyError, match="--out: expected a new folder, found a model in"):
        run_train(settings_of(), chosen, silent, shipped_weights)


def test_another_prior_and_a_kept_encoder_reach_the_training(stream: Path, tmp_path: Path) -> None:
    own = load_prior(SHIPPED / "prior.json")
    other = replace(own, kinds={k: replace(p, gap_mean=5.5) for k, p in own.kinds.items()})
    save_prior(other, tmp_path / "prior.json")
    seen = []

    def learn(folder: Path, variant: str | None) -> None:
        seen.append(load_prior(folder / plans.PRIOR).of("user").gap_mean)
        kept = (folder / plans.KEEP).read_bytes()
        assert kept == (SHIPPED / "encoder.npz").read_bytes()
        plan = plans.read_plan(folder)
        assert (plan.kinds, plan.device) == (("user", "merchant", "device"), "cpu")
        assert plan.config == {"seed": 3, "steps": 100, "check_steps": 50}
        assert [len(s.time_ms) for s in plans.read_sequences(folder, plan)] == [3_000] * 3
        shipped_weights(folder, variant)

    chosen = options(
        stream, prior=tmp_path / "prior.json", keep_encoder=SHIPPED, seed=3, device="cpu"
    )
    result = run_train(settings_of(), chosen, silent, learn)
    assert seen == [5.5]
    assert load_prior(chosen.out / "prior.json").of("user").gap_mean == 5.5
    assert result.card["encoder"] == f"kept from {SHIPPED}"
    advance = AdvanceModel.of(own.of("user"), load_encoder(SHIPPED), None)
    assert same_moments(advance, other.of("user")) == "gap_mean"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"prior": Path("nowhere.json")}, "--prior: nowhere.json cannot be read"),
        ({"keep_encoder": Path("nowhere")}, "--keep-encoder: expected a model folder with encoder"),
        ({"source": "nowhere.jsonl"}, "--from: expected a file or the name of a topic"),
    ],
)
def test_what_is_not_there_is_said_and_leaves_nothing(
    stream: Path, changes: dict[str, object], expected: str
) -> None:
    chosen = options(stream, **changes)
    with pytest.raises(EddyError, match=expected):
        run_train(settings_of(), chosen, silent, shipped_weights)
    assert not work_folder(chosen.out).exists()
    assert not chosen.out.exists()


def test_a_file_that_is_no_prior_or_no_encoder_is_said(stream: Path, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text("[]")
    with pytest.raises(EddyError, match="--prior: .* is no prior: "):
        run_train(settings_of(), options(stream, prior=tmp_path / "p.json"), silent)
    np.savez(tmp_path / "encoder.npz", W1=np.zeros((2, 2), np.float32))
    chosen = options(stream, keep_encoder=tmp_path)
    with pytest.raises(EddyError, match="encoder weights W1: expected shape"):
        run_train(settings_of(), chosen, silent, shipped_weights)


def test_a_training_that_died_goes_on_without_reading_again(
    stream: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = options(stream)

    def dies(folder: Path, variant: str | None) -> None:
        del variant
        (folder / plans.CHECKPOINT).write_text("as far as it came")
        raise EddyError("killed")

    with pytest.raises(EddyError, match="killed"):
        run_train(settings_of(), chosen, silent, dies)

    def no_reading(*_: object) -> None:
        raise AssertionError("read again")

    def goes_on(folder: Path, variant: str | None) -> None:
        assert (folder / plans.CHECKPOINT).read_text() == "as far as it came"
        shipped_weights(folder, variant)

    monkeypatch.setattr(run, "read_stream", no_reading)
    result = run_train(settings_of(), replace(chosen, resume=True), silent, goes_on)
    assert result.card["data"]["events"] == 3_000
    assert not work_folder(chosen.out).exists()


def test_another_seed_or_stream_does_not_go_on(stream: Path) -> None:
    chosen = options(stream)

    def dies(folder: Path, variant: str | None) -> None:
        del variant
        (folder / plans.CHECKPOINT).touch()
        raise EddyError("killed")

    def anew(folder: Path, variant: str | None) -> None:
        del variant
        assert not (folder / plans.CHECKPOINT).exists()
        raise EddyError("looked")

    with pytest.raises(EddyError, match="killed"):
        run_train(settings_of(), chosen, silent, dies)
    with pytest.raises(EddyError, match="looked"):
        run_train(settings_of(), replace(chosen, resume=True, seed=8), silent, anew)
    other = write_lines(stream.with_name("more.jsonl"), payments(3_100))
    with pytest.raises(EddyError, match="holds the work of another training"):
        run_train(settings_of(), replace(chosen, resume=True, source=str(other)), silent, anew)


def test_a_topic_is_learnt_from_like_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import confluent_kafka

    rows = payments()
    monkeypatch.setattr(confluent_kafka, "Consumer", Broker)
    monkeypatch.setattr(Broker, "messages", tuple(json.dumps(row).encode() for row in rows))
    there = settings_of("source.bootstrap_servers=there:9092")
    chosen = TrainOptions("eddy.payments", tmp_path / "own" / "intensity" / "1")
    result = run_train(there, chosen, silent, shipped_weights)
    # The last message of each partition came after the reading began.
    assert result.card["data"]["messages"] == 2_998
    assert result.card["command"].startswith("eddy train --from eddy.payments --seed 7 --steps ")


def test_other_entities_without_values_and_marks(tmp_path: Path) -> None:
    """A kind that the prior in charge does not know has the built-in prior, and says so."""
    stream = write_lines(tmp_path / "s.jsonl", sensors(500, 300, 200))
    result = run_train(settings_of(*SENSORS), options(stream), silent, shipped_weights)
    assert result.card["mark_head"] == "constant"
    assert result.card["notes"] == [
        "events have no known mark: the mark head is constant and not learnt",
        "no event has an amount: the amount head stays as it began and is never asked",
        "the prior has no kind sensor: its moments are the built-in wide ones; `eddy fit` first",
    ]
    own = load_prior(result_folder := options(stream).out / "prior.json").of("sensor")
    assert result_folder.exists()
    assert replace(own, tails={}, degraded_tails={}) == KindPrior()
    calibration = result.card["calibration"]["sensor"]
    assert set(calibration["without_the_model_fitted"]) == set(own.degraded_tails)
    assert "burst" in own.degraded_tails


def test_calibration_reads_the_later_part_where_that_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deploy.training import calibrate as module

    settings = settings_of()
    events = events_of(payments(4_000), tmp_path / "e.jsonl")
    split = split_of(events)
    prior = load_prior(SHIPPED / "prior.json")
    late: Callable[[], list[object]] = lambda: list(  # noqa: E731
        calibrate(settings, SHIPPED, prior, events, split.valid_ms, 0, silent)[1]
    )
    short = late()
    assert all("amount" in one.whole for one in short)  # type: ignore[attr-defined]
    whole_events = short[0].tails["amount"].events  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "FEWEST_TAIL_EVENTS", 10)
    monkeypatch.setattr(module, "TAIL_CLUSTERS", 1)
    enough = late()
    assert enough[0].whole == ()  # type: ignore[attr-defined]
    found = enough[0].tails["amount"].events  # type: ignore[attr-defined]
    assert found == int((events.time_ms >= split.valid_ms).sum()) == 1_200
    assert whole_events > 3_000
    assert int(enough[0].pit.sum()) == 1_200  # type: ignore[attr-defined]


# -- what is told ----------------------------------------------------------------------------------


def test_the_report_stands_alone(stream: Path, tmp_path: Path) -> None:
    result = run_train(settings_of(), options(stream), silent, shipped_weights)
    pictures = write_report(result.card, result.learnt, result.calibrated, tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert page.count("data:image/png;base64,") >= 4
    assert "http" not in page.replace("https://json", "")
    assert result.card["model_version"] in page
    assert "Likelihood while learning" in page
    assert [p.name for p in pictures] == ["r-curves.png", "r-pit.png", "r-reliability.png"]
    assert all(p.read_bytes()[:4] == b"\x89PNG" for p in pictures)


def test_the_command_writes_card_and_report(
    stream: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(stream.parent)
    monkeypatch.setattr(run, "training_environment", lambda: shipped_weights)
    line = ["train", "--from", stream.name, "--set", QUIET[0]]
    assert main([*line, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["out"] == "trained/intensity/1"
    assert told["report"] == "trained/intensity/1/report.html"
    assert (stream.parent / told["report"]).exists()
    assert main(line) == 1
    assert "--out: expected a new folder, found a model in trained/intensity/1" in (
        capsys.readouterr().err
    )
    assert main([*line, "--out", "m", "--html", "r.html"]) == 0
    out = capsys.readouterr().out
    assert "user: gap 1.9000 nats an event (renewal 2.0000" in out
    assert "report   r.html" in out


def test_a_failure_of_the_training_is_told(
    stream: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python = tmp_path / ".venv-train" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexit 3\n")
    python.chmod(0o755)
    monkeypatch.setattr(run, "REPOSITORY", tmp_path)
    with pytest.raises(EddyError, match="ended with code 3, see above; its work is kept in"):
        run_train(settings_of(), options(stream), silent)
    assert command.SIMULATED_OUT.as_posix() == "triton_repo/intensity/1"


# -- compression -----------------------------------------------------------------------------------


def variant(name: str, nats: float, us: float | None) -> dict[str, object]:
    return {"name": name, "valid_nats": nats, "us_per_row": us}


def test_the_cheapest_that_loses_little_is_kept() -> None:
    base = variant("base", 3.0, 1.0)
    cheap, dear = variant("cheap", 3.005, 0.5), variant("dear", 2.9, 1.2)
    assert compress.choose([base, cheap, dear]) == "cheap"
    assert compress.choose([base, variant("lossy", 3.0051, 0.5), dear]) == "base"
    assert compress.choose([base, variant("teacher", 2.5, None)]) == "base"
    # Costs that are equal within the noise: the likelier.
    assert compress.choose([base, variant("same", 2.99, 1.02)]) == "same"
    assert compress.choose([base, variant("same", 3.001, 0.98)]) == "base"


def test_compression_puts_the_kept_form_in_place(
    stream: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost = {"base": 1.0, "int8": 0.8, "pruned": 0.2}
    monkeypatch.setattr(
        compress, "measure", lambda decoders, *_, **__: {n: {512: cost[n]} for n in decoders}
    )
    monkeypatch.setattr(compress, "rates", lambda *_: ({"base": 1e5, "int8": 2e5}, ""))
    placed: list[str | None] = []

    def learn(folder: Path, variant: str | None) -> None:
        placed.append(variant)
        shipped_weights(folder, variant)

    result = run_train(settings_of(), options(stream, compress=True), silent, learn)
    assert placed == [None, "int8"]
    table = result.card["compression"]
    rows = {row["name"]: row for row in table["variants"]}
    assert [name for name, row in rows.items() if row["kept"]] == ["int8"]
    assert rows["pruned"]["loss_nats"] == pytest.approx(0.1)
    assert rows["int8"]["rows_per_s"] == 2e5
    assert rows["teacher"]["us_per_row"] is None
    assert table["rows_per_s_on"] == "Triton on CPU, 512 rows a request, 4 under way"
    page = (options(stream).out / "card.md").read_text()
    assert "| int8 | 3.1010 | +0.0010 | 5 | 200,000 | **yes** |" in page


def test_costs_are_measured_side_by_side() -> None:
    x = np.load(SHIPPED / "check.npz")["x"]
    decoders = {"a": SHIPPED / "decoder.onnx", "b": SHIPPED / "decoder.onnx"}
    found = measure(decoders, x, rounds=1)
    assert set(found) == {"a", "b"}
    assert all(set(of) == set(ROWS) for of in found.values())
    assert found["a"][1] > found["a"][512] > 0.0
