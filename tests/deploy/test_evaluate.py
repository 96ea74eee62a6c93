"""`eddy evaluate nab` and `eddy evaluate metrics` on small folders and files made here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from deploy.cli import main
from deploy.evaluate.picture import Picture, draw
from deploy.evaluate.series import Series, read_metrics, read_nab
from flink_jobs.errors import EddyError
from models.baselines.metric import metric_component
from models.evaluation.detections import detect

START = datetime(2026, 1, 5, tzinfo=UTC)
ROWS = 1_500
Moment = Callable[[int], datetime]


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def eddy(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "200")

    def run_line(*arguments: str | Path) -> Result:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run_line


def moment(row: int) -> datetime:
    return START + timedelta(minutes=5 * row)


def values(seed: int, anomaly: int | None) -> list[float]:
    value = np.random.default_rng(seed).normal(100.0, 5.0, ROWS)
    if anomaly is not None:
        value[anomaly : anomaly + 5] += 200.0
    return [round(float(one), 3) for one in value]


def write_corpus(folder: Path, anomalies: dict[str, int | None]) -> Path:
    """Write NAB's layout: each series with one window around its anomaly, if it has one."""
    labels: dict[str, list[list[str]]] = {"elsewhere/other.csv": []}
    for seed, (name, anomaly) in enumerate(anomalies.items()):
        path = folder / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = (
            f"{moment(row):%Y-%m-%d %H:%M:%S},{value}\n"
            for row, value in enumerate(values(seed, anomaly))
        )
        path.write_text("timestamp,value\n" + "".join(rows), "utf-8")
        around = [] if anomaly is None else [[anomaly - 50, anomaly + 49]]
        labels[name] = [[f"{moment(row):%Y-%m-%d %H:%M:%S.%f}" for row in w] for w in around]
    (folder / "labels").mkdir(parents=True, exist_ok=True)
    (folder / "labels" / "combined_windows.json").write_text(json.dumps(labels), "utf-8")
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "nab", {"a/one.csv": 1_000, "a/two.csv": None, "b/3.csv": 800})


def test_a_corpus_is_read(corpus: Path) -> None:
    read = read_nab(corpus)
    assert [one.name for one in read.series] == ["a/one.csv", "a/two.csv", "b/3.csv"]
    assert [one.windows for one in read.labels] == [((950, 1_049),), (), ((750, 849),)]
    assert read.series[0].time_ms[1] - read.series[0].time_ms[0] == 300_000
    assert read.series[2].value.tolist() == values(2, 800)


def test_nab_as_json(eddy: Run, corpus: Path) -> None:
    result = eddy("evaluate", "nab", "--data", corpus, "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert set(report) >= {
        "standard", "reward_low_fp", "reward_low_fn", "threshold", "by_category", "series",
    }  # fmt: skip
    # Both are found in the middle of their windows, with nothing else.
    assert report["standard"] == pytest.approx(93.0, abs=0.5)
    assert report["counts"]["standard"]["found"] == 2
    assert report["counts"]["standard"]["false_positives"] == 0
    assert report["by_category"]["a"]["windows"] == 1
    assert report["series"]["a/two.csv"]["standard"] is None
    assert report["series"]["b/3.csv"]["found"] == 1
    assert "detect" in result.err


def test_nab_as_a_table(eddy: Run, corpus: Path) -> None:
    result = eddy("evaluate", "nab", "--data", corpus)
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert re.fullmatch(r"all( +9\d\.\d+){3} +2 of 2 +0", lines[3])
    assert lines[4].startswith("threshold")


def test_cross_validation(eddy: Run, corpus: Path) -> None:
    result = eddy("evaluate", "nab", "--data", corpus, "--cross-validate", "--json")
    report = json.loads(result.out)
    validation = report["cross_validation"]
    # The best threshold for one anomaly is its own score: of two, the weaker is missed.
    left_out = validation["one_category_left_out"]["standard"]
    assert left_out == pytest.approx(report["standard"] / 2.0, abs=0.5)
    # A half without a window says nothing: its threshold misses what the other half has.
    assert 0.0 <= validation["random_halves_mean"]["standard"] <= left_out
    lines = eddy("evaluate", "nab", "--data", corpus, "--cross-validate").out.splitlines()
    assert [line.split()[0] for line in lines[-3:]] == [
        "one_category_left_out", "random_halves_mean", "random_halves_sd",
    ]  # fmt: skip


def test_thresholds_of_another_folder(eddy: Run, corpus: Path, tmp_path: Path) -> None:
    quiet = write_corpus(tmp_path / "quiet", {"c/4.csv": None})
    frozen = json.loads(
        eddy("evaluate", "nab", "--data", corpus, "--threshold-from", quiet, "--json").out
    )
    # Where there is nothing to find, no alert is best.
    assert frozen["threshold"]["standard"] is None
    assert frozen["standard"] == 0.0
    own = json.loads(eddy("evaluate", "nab", "--data", corpus, "--json").out)
    back = eddy("evaluate", "nab", "--data", quiet, "--threshold-from", corpus, "--json")
    assert json.loads(back.out)["threshold"] == own["threshold"]
    assert json.loads(back.out)["standard"] is None


def test_the_page(eddy: Run, corpus: Path, tmp_path: Path) -> None:
    page = tmp_path / "pages" / "nab.html"
    result = eddy("evaluate", "nab", "--data", corpus, "--html", page)
    assert result.code == 0, result.err
    text = page.read_text("utf-8")
    assert text.count('src="data:image/png;base64,') == 3
    assert "http" not in re.sub(r"base64,[^\"]*", "", text)
    assert "window 1 found after" in text
    assert text.index("one.csv") < text.index("two.csv")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "labels/combined_windows.json").unlink(), "expected NAB's layout"),
        (lambda f: (f / "labels/combined_windows.json").write_text("{"), "expected JSON"),
        (lambda f: (f / "labels/combined_windows.json").write_text("{}"), "no entry a/one.csv"),
        (lambda f: (f / "data/b/3.csv").write_text("time,value\n"), "expected the columns"),
        (lambda f: (f / "data/b/3.csv").write_text("timestamp,value\n1,2,3\n"), "row 1: expected"),
        (lambda f: (f / "data/b/3.csv").write_text("timestamp,value\n"), "below the header"),
        (lambda f: (f / "data/b/3.csv").write_bytes(b"\xff\xfe"), "expected a CSV file in UTF-8"),
        (lambda f: (f / "labels/combined_windows.json").write_text("[]"), "expected an object"),
        (
            lambda f: (f / "labels/combined_windows.json").write_text('{"a/one.csv": ["x"]}'),
            "expected windows as a list of",
        ),
        (
            lambda f: (f / "data/b/3.csv").write_text("timestamp,value\n2026-01-01 00:00:00,x\n"),
            "row 1: expected a number or nothing, found 'x'",
        ),
        (
            lambda f: (f / "data/b/3.csv").write_text("timestamp,value\n2026-01-01 00:00:00,1\n"),
            "b/3.csv has no row between",
        ),
    ],
)
def test_a_damaged_corpus(
    eddy: Run, corpus: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(corpus)
    result = eddy("evaluate", "nab", "--data", corpus)
    assert result.code == 1
    assert message in result.err
    assert "Traceback" not in result.err


def write_series(folder: Path, name: str, times: list[datetime], windows: list[list[int]]) -> None:
    """Write one series in NAB's layout with windows from row to row."""
    path = folder / "data" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    value = np.random.default_rng(3).normal(100.0, 5.0, len(times))
    value[-100:-95] += 200.0
    rows = (f"{t:%Y-%m-%d %H:%M:%S},{v:.3f}\n" for t, v in zip(times, value, strict=True))
    path.write_text("timestamp,value\n" + "".join(rows) + "\n", "utf-8-sig")
    labels = folder / "labels" / "combined_windows.json"
    labels.parent.mkdir(exist_ok=True)
    known = json.loads(labels.read_text("utf-8")) if labels.is_file() else {}
    known[name] = [[f"{times[row]:%Y-%m-%d %H:%M:%S.%f}" for row in w] for w in windows]
    labels.write_text(json.dumps(known), "utf-8")


def test_series_as_the_other_parts_of_nab_have_them(
    eddy: Run, corpus: Path, tmp_path: Path
) -> None:
    """An hour told twice, times told twice, half hours, holes: none is refused."""
    other = tmp_path / "other"
    repeated = [moment(row if row < 700 else row - 12) for row in range(ROWS)]
    write_series(other, "real/repeated.csv", repeated, [[690, 720], [1_350, 1_450]])
    twice = [moment(row - row % 2) for row in range(ROWS)]
    write_series(other, "real/twice.csv", twice, [[1_350, 1_450]])
    half_hours = [START + timedelta(minutes=30 * row) for row in range(ROWS)]
    write_series(other, "real/half_hours.csv", half_hours, [[1_350, 1_450]])
    holes = [moment(row + 3_000 * (row // 400)) for row in range(ROWS)]
    write_series(other, "real/holes.csv", holes, [[390, 410], [1_350, 1_450]])
    read = read_nab(other)
    windows = {one.name: one.windows for one in read.labels}
    # Row 690 has the time of row 702 as well: a window begins with the first of them.
    assert windows["real/repeated.csv"] == ((690, 720), (1_350, 1_450))
    assert windows["real/twice.csv"] == ((1_350, 1_450),)
    assert windows["real/holes.csv"] == ((390, 410), (1_350, 1_450))
    named = {one.name: one for one in read.series}
    steps = np.diff(named["real/repeated.csv"].time_ms)
    assert (steps < 0).sum() == 1
    page = tmp_path / "page.html"
    line = ("evaluate", "nab", "--data", other, "--threshold-from", corpus, "--html", page)
    result = eddy(*line, "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert report["counts"]["standard"]["windows"] == 6
    component = metric_component()
    for one in read.series:
        said = detect(component, one.time_ms, one.value)
        assert np.isfinite(said.score).all()
        assert said.score[1_400] >= 1.0
        cut = detect(component, one.time_ms[:720], one.value[:720])
        np.testing.assert_array_equal(cut.score, said.score[:720])


def test_a_window_between_the_rows(corpus: Path) -> None:
    labels = corpus / "labels" / "combined_windows.json"
    between = [f"{moment(row) + timedelta(minutes=1)}" for row in (9, 19)]
    labels.write_text(json.dumps({"a/one.csv": [between]}), "utf-8")
    assert read_nab(corpus).labels[0].windows == ((10, 19),)


def test_a_series_without_labels_is_left_out(eddy: Run, corpus: Path) -> None:
    labels = corpus / "labels" / "combined_windows.json"
    known = json.loads(labels.read_text("utf-8"))
    del known["a/two.csv"]
    labels.write_text(json.dumps(known), "utf-8")
    result = eddy("evaluate", "nab", "--data", corpus, "--json")
    assert result.code == 0, result.err
    assert "left out, as the labels lack them: a/two.csv" in result.err
    assert set(json.loads(result.out)["series"]) == {"a/one.csv", "b/3.csv"}


def test_metrics_of_several_entities(eddy: Run, tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    rows = [
        f"{entity},{moment(row).isoformat()},{value}"
        for entity, anomaly in (("web-1", 900), ("web-2", None))
        for row, value in enumerate(values(7, anomaly))
    ]
    rows[3] = f"web-1,{moment(3).isoformat()},"
    path.write_text("entity,time,value\n" + "\n".join(rows) + "\n", "utf-8")
    page = tmp_path / "page.html"
    result = eddy("evaluate", "metrics", "--from", path, "--html", page)
    assert result.code == 0, result.err
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert len(lines) == 2 * ROWS
    assert lines[3]["value"] is None
    assert lines[3]["score"] == 0.0
    alerts = [line for line in lines if line["alert"]]
    assert [line["entity"] for line in alerts if line["score"] > 5.0] == ["web-1"]
    assert lines[900] in alerts
    assert lines[900]["time"] == "2026-01-08T03:00:00.000Z"
    assert lines[900]["low"] < 100.0 < lines[900]["high"] < lines[900]["value"]
    only = eddy("evaluate", "metrics", "--from", path, "--alerts", "--json")
    assert [json.loads(line) for line in only.out.splitlines()] == alerts
    text = page.read_text("utf-8")
    assert text.index("web-1") < text.index("web-2")


def test_parquet_and_whole_milliseconds_read_the_same(tmp_path: Path) -> None:
    value = values(1, None)[:50]
    times = [int(moment(row).timestamp() * 1_000) for row in range(50)]
    text = tmp_path / "m.csv"
    text.write_text(
        "value,time\n" + "".join(f"{v},{t}\n" for t, v in zip(times, value, strict=True)), "utf-8"
    )
    table = tmp_path / "m.parquet"
    moments = pa.array([moment(row) for row in range(50)], pa.timestamp("ms", "UTC"))
    parquet.write_table(pa.table({"time": moments, "value": value}), table)
    for path in (text, table):
        (series,) = read_metrics(path)
        assert series.name == ""
        assert series.time_ms.tolist() == times
        assert series.value.tolist() == value


def test_rows_are_put_in_order_of_time(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("time,value\n3000,3\n1000,1\n2000,2\n1000,1.5\n", "utf-8")
    (series,) = read_metrics(path)
    assert series.time_ms.tolist() == [1000, 1000, 2000, 3000]
    assert series.value.tolist() == [1.0, 1.5, 2.0, 3.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("time,number\n1,2\n", "expected the columns time and value"),
        ("", "found none"),
        ("time,value\n", "expected rows below the header"),
        ("time,value\nyesterday,2\n", "row 1: expected a time in ISO 8601"),
    ],
)
def test_a_file_that_is_no_metric(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "m.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(EddyError, match=message):
        read_metrics(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(EddyError, match="no such file"):
        read_metrics(tmp_path / "none.csv")
    path = tmp_path / "m.parquet"
    path.write_bytes(b"no parquet")
    with pytest.raises(EddyError, match="expected Parquet"):
        read_metrics(path)


def test_pictures_of_odd_series() -> None:
    component = metric_component()
    time_ms = np.arange(300, dtype=np.int64) * 60_000
    spiky = np.where(np.arange(300) % 97 == 0, 1e6, np.arange(300) % 5).astype(float)
    for value in (np.full(300, 5.0), np.full(300, np.nan), spiky):
        series = Series("odd", time_ms, value)
        image = draw(Picture(series, detect(component, time_ms, value), 1.0, ((10, 20),), 5))
        assert image.startswith(b"\x89PNG")
