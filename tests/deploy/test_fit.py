"""`eddy fit` without servers: files and a topic in, a prior and its report out."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from deploy.cli import main
from deploy.fit import run as fit_run
from deploy.fit import source
from deploy.fit.run import FitOptions, FitResult, run_fit, summary, work_folder
from deploy.fit.source import gather_events, is_file, pointer_columns, read_stream
from deploy.fit.words import stream_warnings
from flink_jobs.errors import EddyError
from flink_jobs.model_files import load_models
from flink_jobs.settings import Settings, load
from models import level_fit
from models.baselines import registry
from models.baselines.component import Component
from models.baselines.registry import Context
from models.level_fit import LevelFit
from models.prior import Prior, load_prior

START_S = 1_767_571_200
QUIET = ("triton.enabled=false", "event.value_integer=false")


def settings_of(*overrides: str) -> Settings:
    return load(None, {}, [*QUIET, *overrides])


def rows(n: int = 1_200, seed: int = 1) -> list[dict[str, object]]:
    """Make payments of 25 users, 6 merchants and 25 devices over some days."""
    rng = np.random.default_rng(seed)
    time_s = START_S + np.cumsum(rng.exponential(300.0, n))
    found: list[dict[str, object]] = []
    for i in range(n):
        user, shop = int(rng.integers(25)), int(rng.integers(6))
        found.append(
            {
                "payment_id": f"p-{i}",
                "event_time": round(1000 * float(time_s[i])),
                "amount": round(float(np.exp(rng.normal(5.0 + 0.1 * user, 0.4))), 2),
                "channel": "ecom",
                "user_id": f"u-{user}",
                "merchant_id": f"m-{shop}",
                "device_id": f"d-{user}",
            }
        )
    return found


def write_lines(path: Path, messages: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(message) + "\n" for message in messages))
    return path


@pytest.fixture
def stream(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "events.jsonl", rows())


@pytest.fixture(autouse=True)
def short_em(monkeypatch: pytest.MonkeyPatch) -> None:
    """EM is tested with the fits of single entities; here it only has to be asked."""
    monkeypatch.setattr(fit_run, "EM_ENTITIES", 1)
    monkeypatch.setattr(level_fit, "EM_ITERATIONS", 1)


def options(stream: Path, **changes: object) -> FitOptions:
    made = FitOptions(str(stream), stream.with_name("prior.json"), sample=6)
    return replace(made, **changes)  # type: ignore[arg-type]


def silent(what: str, done: int, total: int | None) -> None:
    del what, done, total


def numbers(result: FitResult) -> str:
    return json.dumps(summary(result), sort_keys=True)


def test_what_cannot_be_built_is_said_before_the_work(
    stream: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(context: Context) -> Component:
        raise ValueError(f"found {context.prior.value_mean}")

    monkeypatch.setitem(registry.REGISTRY, "step", registry.Entry(build))
    chosen = options(stream)
    expected = "components.user: the prior of user does not serve step: found 8.0; leave the"
    with pytest.raises(EddyError, match=expected):
        run_fit(settings_of("detection.components.user=step"), chosen, silent)
    assert not work_folder(chosen.out).exists()


# -- the whole -------------------------------------------------------------------------------------


def test_a_fit_finds_the_population_and_the_job_loads_it(stream: Path) -> None:
    told: Counter[str] = Counter()

    def show(what: str, done: int, total: int | None) -> None:
        assert total is None or done <= total
        told[what] = done

    chosen = options(stream, sample=25)
    result = run_fit(settings_of(), chosen, show)
    assert told == {"read": 1_200, "fit entities": 56, "calibrate without the model": 1_200}
    assert not work_folder(chosen.out).exists()
    user = result.prior.of("user")
    assert user.value_mean == pytest.approx(5.0 + 0.1 * 12, abs=0.2)
    assert user.value_between_var == pytest.approx(0.01 * (25**2 - 1) / 12, rel=0.35)
    assert user.value_within_var == pytest.approx(0.16, rel=0.12)
    # Each user's gaps are exponential: the log of one has this mean and variance.
    assert user.gap_mean == pytest.approx(np.log(25 * 300.0) - 0.5772, abs=0.15)
    assert user.gap_within_var == pytest.approx(np.pi**2 / 6, rel=0.25)
    assert result.prior.of("device").partner_mean == pytest.approx(1.0)
    assert load_prior(chosen.out) == result.prior
    assert result.prior.origin["events"] == "1200"
    models = load_models(settings_of(f"detection.prior={chosen.out}"))
    assert models[0].advance.parameters.value_mean == user.value_mean
    assert models[0].advance.parameters.level_noise == user.level_noise


def test_a_killed_fit_goes_on_to_the_same_result(
    stream: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_fit(settings_of(), options(stream), silent)
    expected = (stream.with_name("prior.json")).read_bytes()
    real_fit = level_fit.fit_level
    fitted: list[int] = []

    def killed(values: np.ndarray) -> LevelFit:  # type: ignore[type-arg]
        if len(fitted) == 8:
            raise KeyboardInterrupt
        fitted.append(len(values))
        return real_fit(values)

    monkeypatch.setattr(fit_run, "fit_level", killed)
    with pytest.raises(KeyboardInterrupt):
        run_fit(settings_of(), options(stream), silent)
    work = work_folder(options(stream).out)
    lines = (work / "fits.jsonl").read_bytes()
    assert lines.count(b"\n") == 8
    # A kill may cut a line short, and what was read stands: the file is not read again.
    (work / "fits.jsonl").write_bytes(lines + lines[:40])
    monkeypatch.setattr(fit_run, "read_stream", None)
    again: list[int] = []

    def counted(values: np.ndarray) -> LevelFit:  # type: ignore[type-arg]
        again.append(len(values))
        return real_fit(values)

    monkeypatch.setattr(fit_run, "fit_level", counted)
    result = run_fit(settings_of(), options(stream, resume=True), silent)
    assert len(again) == 18 - 8
    assert numbers(result) == numbers(whole)
    assert (stream.with_name("prior.json")).read_bytes() == expected
    assert not work.exists()


def test_the_work_of_another_fit_is_not_gone_on_with(
    stream: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_run, "fit_level", None)
    with pytest.raises(TypeError):
        run_fit(settings_of(), options(stream), silent)
    with pytest.raises(EddyError, match=r"holds the work of another fit \(seed differ\)"):
        run_fit(settings_of(), options(stream, resume=True, seed=2), silent)
    with pytest.raises(EddyError, match=r"another fit \(events differ\)"):
        run_fit(settings_of("event.marks=pos"), options(stream, resume=True), silent)
    monkeypatch.undo()
    run_fit(settings_of(), options(stream, seed=2), silent)  # without --resume it begins anew


def test_the_seed_draws_other_entities(stream: Path) -> None:
    one = run_fit(settings_of(), options(stream), silent)
    same = run_fit(settings_of(), options(stream), silent)
    other = run_fit(settings_of(), options(stream, seed=5), silent)
    assert numbers(one) == numbers(same)
    assert numbers(one) != numbers(other)


@pytest.mark.parametrize(
    ("change", "override", "said"),
    [
        ({"amount": 5.0}, "event.max_nesting=9", "entities always have the same value"),
        ({}, "event.value_pointer=", "no values: the value's prior is plain"),
        ({"user_id": "u-1"}, "event.max_nesting=9", "1 entities have 10 values"),
        ({"channel": None}, "event.max_nesting=9", "less than a week"),
    ],
)
def test_odd_streams_get_a_prior_and_a_word(
    tmp_path: Path, change: dict[str, object], override: str, said: str
) -> None:
    path = write_lines(tmp_path / "odd.jsonl", [row | change for row in rows(300)])
    result = run_fit(settings_of(override), options(path), silent)
    kinds = summary(result)["kinds"]
    assert isinstance(kinds, dict)
    assert any(said in text for text in kinds["user"]["warnings"])
    load_models(settings_of(f"detection.prior={path.with_name('prior.json')}"))


def test_equal_gaps_and_three_events(tmp_path: Path) -> None:
    clock = [row | {"event_time": 1000 * (START_S + 60 * i)} for i, row in enumerate(rows(300))]
    for i, row in enumerate(clock):
        row["user_id"] = f"u-{i % 5}"
    path = write_lines(tmp_path / "clock.jsonl", clock)
    result = run_fit(settings_of(), options(path), silent)
    assert result.prior.of("user").gap_mean == pytest.approx(np.log(300.0))
    few = write_lines(tmp_path / "few.jsonl", rows(3))
    result = run_fit(settings_of(), options(few), silent)
    assert "no entity has 4 gaps" in numbers(result)


def test_a_kind_that_no_event_has(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "events.jsonl", [row | {"device_id": None} for row in rows(50)])
    with pytest.raises(EddyError, match="no event has an entity of the kind device at /device_id"):
        run_fit(settings_of(), options(path), silent)


# -- the command -----------------------------------------------------------------------------------


def test_the_command_writes_prior_and_report(
    stream: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the intensity model in charge as well, on the model that comes with eddy."""
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(stream.parent)
    with stream.open("a") as lines:
        lines.write("{}\nno json\n")
    change = ["--set", "event.value_integer=false", "--sample", "5"]
    assert main(["fit", "--from", "events.jsonl", *change]) == 0
    out = capsys.readouterr().out
    assert "1,200 events of 1,202 messages" in out
    assert "2 of 1,202 messages are no events (1 invalid_json, 1 missing_field)" in out
    assert "use it   eddy run --set detection.prior=prior.json" in out
    page = Path("prior.html").read_text()
    assert page.count("data:image/png;base64,") >= 3 * 5
    assert "src='http" not in page
    for text in ("<h2>user</h2>", "Calibration: tails with the model", "not calibrated"):
        assert text in page
    assert load_prior(Path("prior.json")).of("user").tails.keys() >= {"mark", "silence"}

    line = ["fit", "--from", "events.jsonl", *change, "--set", "triton.enabled=false", "--json"]
    assert main([*line, "--out", "new/p.json", "--html", "new/page.html"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["prior"] == "new/p.json"
    assert told["rejected"] == {"invalid_json": 1, "missing_field": 1}
    assert told["kinds"]["merchant"]["entities"] == 6
    assert Path("new/page.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "no/such.jsonl"], "expected a file or the name of a topic, found no no/such"),
        (["--from", "empty.jsonl"], "found none in 0 messages"),
        (["--from", "bad.jsonl"], "found none in 1 messages; the first: message 1: "),
        (
            ["--from", "bad.csv"],
            "lacks columns for /event_time, /user_id, /merchant_id, /device_id",
        ),
        (["--from", "bad.parquet"], "bad.parquet cannot be read"),
        (["--from", "bad.jsonl.gz"], "bad.jsonl.gz cannot be read"),
        (["--from", "cut.jsonl.gz"], "cut.jsonl.gz cannot be read"),
        (["--from", "damaged.jsonl.gz"], "damaged.jsonl.gz cannot be read"),
    ],
)
def test_what_cannot_be_read_is_said(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.jsonl").write_text("\n\n")
    Path("bad.jsonl").write_text("no json\n")
    Path("bad.csv").write_text("payment_id,when\n1,2\n")
    Path("bad.parquet").write_text("no parquet")
    Path("bad.jsonl.gz").write_text("no gzip")
    whole = gzip.compress(b"no json\n" * 1_000)
    Path("cut.jsonl.gz").write_bytes(whole[:-12])
    Path("damaged.jsonl.gz").write_bytes(whole[:10] + b"\xff" * 8 + whole[18:])
    assert main(["fit", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not list(Path().glob("prior.json*"))


# -- reading ---------------------------------------------------------------------------------------


def nothing(messages: int) -> None:
    del messages


def test_all_forms_of_a_file_hold_the_same_events(tmp_path: Path) -> None:
    found = rows(200)
    lines = write_lines(tmp_path / "e.jsonl", found)
    (tmp_path / "e.jsonl.gz").write_bytes(gzip.compress(lines.read_bytes()))
    table = pa.Table.from_pylist(found)
    parquet.write_table(table, tmp_path / "e.parquet")
    times = pa.array([row["event_time"] for row in found], pa.timestamp("ms"))
    parquet.write_table(table.set_column(1, "event_time", times), tmp_path / "t.parquet")
    names = list(found[0])
    text = [",".join(names), *(",".join(str(row[n]) for n in names) for row in found)]
    (tmp_path / "e.csv").write_text("\n".join(text) + "\n")
    files = ("e.jsonl", "e.jsonl.gz", "e.parquet", "t.parquet", "e.csv")
    read = [read_stream(str(tmp_path / f), settings_of(), 10_000, nothing).events for f in files]
    for other in read[1:]:
        assert np.array_equal(other.time_ms, read[0].time_ms)
        assert np.array_equal(other.value, read[0].value)
        assert np.array_equal(other.hashes, read[0].hashes)
        assert [other.ids[0][i] for i in range(200)] == [read[0].ids[0][i] for i in range(200)]


def test_a_table_with_nested_columns_missing_values_and_leading_zeros(tmp_path: Path) -> None:
    mapped = settings_of(
        "event.id_pointer=/id", "event.time_pointer=/meta/ts", "event.value_pointer=/v",
        "event.mark_pointer=", "event.entities={sensor = '/sensor'}",
        "detection.silence_kinds=[]", "detection.partner_kinds={}",
    )  # fmt: skip
    path = tmp_path / "t.csv"
    path.write_text(
        "id,meta.ts,v,sensor\n007,2026-01-05 00:00:00,1.5,01\n008,2026-01-05 00:01:00,2,02\n"
        "009,2026-01-05 00:02:00,,03\n"
    )
    read = read_stream(str(path), mapped, 10, nothing)
    events = read.events
    # As in a message: a value that the settings name must be there.
    assert read.rejected == {"missing_field": 1}
    assert [events.event_id[i] for i in range(2)] == ["007", "008"]
    assert [events.ids[0][i] for i in range(2)] == ["01", "02"]
    assert np.diff(events.time_ms).tolist() == [60_000]
    assert events.value.tolist() == [1.5, 2.0]
    assert pointer_columns(mapped.event)["/meta/ts"] == "meta.ts"


def test_events_are_put_in_order_and_the_oldest_arrivals_dropped() -> None:
    found = rows(30)
    order = np.random.default_rng(3).permutation(30)
    messages = [(json.dumps(found[i]).encode(), source.NO_LIMIT_MS) for i in order.tolist()]
    chunks = [messages[start : start + 10] for start in (0, 10, 20)]
    event = settings_of().event
    read = gather_events(chunks, "s", event, 1_000, nothing)
    assert (np.diff(read.events.time_ms) >= 0).all()
    assert [read.events.event_id[i] for i in range(30)] == [f"p-{i}" for i in range(30)]
    assert [read.events.ids[0][i] for i in range(30)] == [row["user_id"] for row in found]
    limited = gather_events(chunks, "s", event, 15, nothing)
    assert (limited.dropped, len(limited.events), limited.messages) == (10, 20, 30)
    (text,) = stream_warnings(FitResult(Prior({}), 30, 20, {}, 10, "", ()))
    assert text.startswith("10 older events are beyond --max-events")


def test_files_and_topics_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    assert is_file(str(tmp_path / "plain"))
    assert is_file("a.CSV")
    assert is_file("folder/topic")
    assert not is_file("eddy.payments")


# -- a topic ---------------------------------------------------------------------------------------


@dataclass
class Message:
    place: int
    at: int
    body: bytes

    def error(self) -> None:
        return None

    def partition(self) -> int:
        return self.place

    def offset(self) -> int:
        return self.at

    def value(self) -> bytes:
        return self.body

    def timestamp(self) -> tuple[int, int]:
        return 1, 1000 * START_S + 10**9


class Broker:
    """Two partitions of one topic, to which a message comes while they are read."""

    def __init__(self, config: dict[str, object]) -> None:
        assert config["bootstrap.servers"] == "there:9092"
        assert config["enable.auto.commit"] is False
        self.closed = False
        self.partitions = {0: self.messages[0::2], 1: self.messages[1::2]}

    messages: tuple[bytes, ...] = ()

    def list_topics(self, topic: str, timeout: float) -> object:
        assert timeout > 0
        known = type("T", (), {"error": None, "partitions": {0: None, 1: None}})()
        return type("M", (), {"topics": {topic: known}})()

    def get_watermark_offsets(self, partition: object, timeout: float) -> tuple[int, int]:
        assert timeout > 0
        return 2, 2 + len(self.partitions[partition.partition]) - 1  # type: ignore[attr-defined]

    def assign(self, partitions: list[object]) -> None:
        self.queue = self._play({p.partition: p.offset for p in partitions})  # type: ignore[attr-defined]

    def _play(self, offsets: dict[int, int]) -> Iterator[Message | None]:
        for partition, first in offsets.items():
            yield None
            for i, body in enumerate(self.partitions[partition]):
                if i + 2 >= first:
                    yield Message(partition, i + 2, body)

    def poll(self, timeout: float) -> Message | None:
        assert timeout > 0
        return next(self.queue)

    def close(self) -> None:
        self.closed = True


def test_a_topic_is_read_to_the_end_that_it_had(monkeypatch: pytest.MonkeyPatch) -> None:
    import confluent_kafka

    monkeypatch.setattr(confluent_kafka, "Consumer", Broker)
    monkeypatch.setattr(Broker, "messages", tuple(json.dumps(row).encode() for row in rows(42)))
    there = settings_of("source.bootstrap_servers=there:9092")
    read = read_stream("eddy.payments", there, 1_000, nothing)
    assert (read.messages, len(read.events)) == (40, 40)  # the last of each came later
    assert (np.diff(read.events.time_ms) >= 0).all()
    newest = read_stream("eddy.payments", there, 10, nothing)
    assert newest.messages == 10
    assert newest.events.event_id[0] == "p-30"


def test_a_broker_that_is_away_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(source, "METADATA_TIMEOUT_S", 0.5)
    assert main(["fit", "--from", "topic", "--set", "source.bootstrap_servers=127.0.0.1:1"]) == 1
    assert "no Kafka broker answers at 127.0.0.1:1" in capsys.readouterr().err
