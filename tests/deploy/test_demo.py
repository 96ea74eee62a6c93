"""The demo: matching and figures by hand, the page, the picture, and real runs, interrupted too."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import psutil
import pytest
from rich.console import Console

from deploy.demo import draw, live, picture, run
from deploy.demo.picture import Caught, Replay
from deploy.demo.report import (
    Received,
    Run,
    Sample,
    build_report,
    count_by_kind,
    degraded_s,
    judge,
    latencies_ms,
    percentiles,
    read_alert,
)
from deploy.demo.watch import Board
from deploy.stack.options import REPOSITORY, ServiceStatus, StackOptions
from deploy.stack.processes import find_marked
from deploy.stack.triton import regions
from deploy.trimmed import Trimmed
from flink_jobs.errors import EddyError
from flink_jobs.intensity_protocol import NullClient
from flink_jobs.settings import Settings, load
from models.simulation.config import AnomalyCounts, SimulationConfig
from models.simulation.stream import Simulation
from models.simulation.truth import Anomaly

MINUTE = 60_000
HOUR = 60 * MINUTE


def alert(
    entity: str = "user/u-1",
    time_ms: int = 0,
    *,
    place: tuple[int, int] | None = None,
    arrived_ms: int = 0,
    text: str = "why",
    degraded: bool = False,
    version: str = "v1",
) -> Received:
    kind, name = entity.split("/")
    return Received(
        alert_id=f"{entity}@{time_ms}",
        kind=kind,
        entity=name,
        time_ms=time_ms,
        score=1.5,
        detector="amount",
        text=text,
        degraded=degraded,
        model_version=version,
        place=place,
        written_ms=arrived_ms - 1,
        arrived_ms=arrived_ms,
    )


def anomaly(
    number: int,
    kind: str = "takeover",
    entity: str = "user/u-1",
    span_ms: tuple[int, int] = (1_000, 2_000),
    involved: Sequence[tuple[str, str]] = (),
) -> Anomaly:
    entity_kind, name = entity.split("/")
    return Anomaly(f"a-{number}", kind, entity_kind, name, *span_ms, tuple(involved))


# --- alerts ------------------------------------------------------------------------------------


def cloud_event(**data: object) -> bytes:
    plain = {
        "entity": {"kind": "user", "id": "u-7"},
        "event_time": "1970-01-01T00:00:01.500Z",
        "score": 2.25,
        "detector": "burst",
        "reasons": [{"text": "first"}, {"text": "second"}],
        "degraded": False,
        "model_version": "m1",
        "partition": 3,
        "offset": 42,
    }
    return orjson.dumps({"id": "ab", "data": {**plain, **data}})


def test_an_alert_is_read() -> None:
    found = read_alert(cloud_event(), 10, 20)
    assert found == Received(
        "ab", "user", "u-7", 1_500, 2.25, "burst", "first", False, "m1", (3, 42), 10, 20
    )


def test_a_silence_has_no_place() -> None:
    assert read_alert(cloud_event(partition=None, offset=None), 0, 0).place is None


@pytest.mark.parametrize("value", [b"", b"[]", b"null", b"{}", cloud_event(event_time="soon")])
def test_what_is_no_alert_is_refused(value: bytes) -> None:
    with pytest.raises(EddyError, match="not as documented"):
        read_alert(value, 0, 0)


# --- matching ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("time_ms", "found"),
    [(999, False), (1_000, True), (2_000, True), (62_000, True), (62_001, False)],
)
def test_the_span_and_a_minute_after_it_count(time_ms: int, found: bool) -> None:
    judged = judge([anomaly(1)], [alert(time_ms=time_ms)])
    assert judged.found == ({"a-1"} if found else set())
    assert len(judged.false) == (0 if found else 1)


def test_an_alert_on_one_involved_is_correct_and_finds_nothing() -> None:
    truth = [anomaly(1, involved=[("merchant", "m-9")])]
    judged = judge(truth, [alert("merchant/m-9", 1_500)])
    assert judged.found == set()
    assert judged.false == ()


def test_the_same_id_of_another_kind_is_another_entity() -> None:
    judged = judge([anomaly(1, entity="user/x")], [alert("merchant/x", 1_500)])
    assert judged.found == set()
    assert len(judged.false) == 1


def test_one_alert_may_find_two_anomalies_of_its_entity() -> None:
    truth = [anomaly(1), anomaly(2, kind="drift", span_ms=(500, 9_000))]
    assert judge(truth, [alert(time_ms=1_500)]).found == {"a-1", "a-2"}


def test_many_alerts_find_an_anomaly_once_and_each_false_one_counts() -> None:
    alerts = [alert(time_ms=t) for t in (1_100, 1_200, 900_000, 900_001)]
    judged = judge([anomaly(1)], alerts)
    assert judged.found == {"a-1"}
    assert [one.time_ms for one in judged.false] == [900_000, 900_001]


def test_kinds_are_counted_in_the_simulators_order() -> None:
    truth = [anomaly(1, "drift"), anomaly(2), anomaly(3), anomaly(4)]
    counts = count_by_kind(truth, frozenset({"a-2", "a-3"}))
    assert list(counts) == ["takeover", "drift"]
    assert counts["takeover"] == {"total": 3, "found": 2, "recall": 0.6667}
    assert counts["drift"] == {"total": 1, "found": 0, "recall": 0.0}


# --- figures -----------------------------------------------------------------------------------


def test_latency_is_that_of_alerts_whose_payment_is_known() -> None:
    alerts = [
        alert(place=(0, 5), arrived_ms=1_300),
        alert(place=(0, 6), arrived_ms=1_900),
        alert(arrived_ms=5_000),
    ]
    assert latencies_ms(alerts, {(0, 5): 1_000, (1, 6): 1}) == [300]


def test_percentiles_interpolate_and_need_a_value() -> None:
    assert percentiles([]) == {"p50": None, "p99": None}
    assert percentiles([7]) == {"p50": 7.0, "p99": 7.0}
    # 0..100: the p-th percentile is p.
    assert percentiles(list(range(101))) == {"p50": 50.0, "p99": 99.0}
    assert percentiles([100, 200]) == {"p50": 150.0, "p99": 199.0}


def test_a_stretch_is_degraded_when_it_ends_so_or_a_batch_in_it_was() -> None:
    samples = [
        Sample(10.0, False, 0),
        Sample(11.0, False, 0),  # full service
        Sample(13.0, True, 4),  # 2 s
        Sample(14.0, True, 4),  # 1 s: still, though nothing was decided
        Sample(15.5, False, 5),  # 1.5 s: it ended within
        Sample(20.0, False, 5),
    ]
    assert degraded_s(samples) == 4.5
    assert degraded_s(samples[:1]) == 0.0
    assert degraded_s([]) == 0.0


def a_run(**more: object) -> Run:
    plain = Run(
        seed=7,
        payments=11_000,
        warm_up=1_000,
        undecided=0,
        produced_s=1.9,
        decided_s=2.0,
        duration_s=30.04,
        sent_ms={(0, 1): 100},
        samples=[],
        facts={"late": 3},
    )
    return replace(plain, **more)  # type: ignore[arg-type]


def test_the_report() -> None:
    truth = [anomaly(1), anomaly(2, "drift", "merchant/m-1", (0, 10))]
    alerts = [
        alert(time_ms=1_500, place=(0, 1), arrived_ms=350),
        alert(time_ms=1_600, degraded=True),
        alert("device/d-1", 1_700),
    ]
    report = build_report(a_run(), truth, alerts)
    first = ("seed", "payments", "recall", "precision", "alerts", "by_anomaly", "payments_per_s",
             "latency_ms", "degraded_s")  # fmt: skip
    assert tuple(report)[:9] == first
    assert report["recall"] == 0.5
    assert report["precision"] == 0.6667
    assert report["alerts"] == 3
    assert report["payments_per_s"] == 5_000.0
    assert report["latency_ms"] == {"p50": 250.0, "p99": 250.0}
    assert report["false_alerts"] == [
        {"entity": "device/d-1", "event_time_ms": 1_700, "detector": "amount"}
    ]
    assert report["missed"] == [{"id": "a-2", "kind": "drift", "entity": "merchant/m-1"}]
    assert report["degraded_alerts"] == 1
    assert report["late"] == 3
    assert json.loads(json.dumps(report)) == report


def test_a_report_of_nothing_has_no_shares() -> None:
    report = build_report(a_run(decided_s=0.0), [], [])
    assert (report["recall"], report["precision"], report["payments_per_s"]) == (None, None, None)
    assert report["by_anomaly"] == {}


# --- the page ----------------------------------------------------------------------------------


def busy_board() -> Board:
    board = Board(seed=7, expected=600_000)
    board.phase = "streaming payments"
    board.note_step("kafka: starting")
    board.note_step("kafka: ready after 3.1 s")
    for name in ("triton", "jobmanager", "taskmanager"):
        board.note_step(f"{name}: ready after 9.0 s")
    board.first_s = time.monotonic() - 10
    board.sent, board.event_ms = 300_000, 1_768_211_302_777
    board.metrics = {"decided": 897_000, "alerts": 40, "late": 500, "dead_letters": 100}
    board.history.extend((float(t), 5_000 * t, 4_900 * t) for t in range(10))
    board.samples = [Sample(0.0, False, 0)]
    long = "events come at 8 times the expected rate or more: the last after 14 s, usually 42.9 min"
    board.alerts = [
        alert("device/d-001122-1", HOUR * n, place=(0, n), arrived_ms=n + 800, text=long)
        for n in range(40)
    ]
    board.sent_ms = {(0, n): n for n in range(40)}
    return board


def lines_of(board: Board, width: int, height: int) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, force_terminal=True, color_system=None)
    console.print(live.page(board, width, height))
    return out.getvalue().splitlines()


def test_the_board_counts_what_is_left() -> None:
    board = busy_board()
    assert board.decided == 299_000
    assert board.left == 400  # 600 more are late or unreadable
    assert board.rates() == (5_000.0, 4_900.0)
    assert board.latency() == {"p50": 800.0, "p99": 800.0}
    assert board.health[0] == ServiceStatus("kafka", "up")
    assert len(board.health) == 4


def test_a_new_board_has_no_rates() -> None:
    board = Board(seed=1, expected=10)
    assert board.rates() == (0.0, 0.0)
    assert not board.degraded


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (60, 12)])
def test_the_page_fits_the_terminal(width: int, height: int) -> None:
    for board in (busy_board(), Board(seed=7, expected=1)):
        lines = lines_of(board, width, height)
        assert len(lines) < height
        assert max(map(len, lines)) <= width


def test_the_page_shows_what_matters() -> None:
    board = busy_board()
    text = "\n".join(lines_of(board, 80, 24))
    for part in ("seed 7", "streaming payments", "300,000", "5,000/s", "400", "p50 800 ms", "40",
                 "intensity model answers", "device/d-001122-1", "1.50"):  # fmt: skip
        assert part in text
    # The newest alert is the last, and whole.
    assert "usually" in text.splitlines()[-2] + text.splitlines()[-1]
    assert "01-02 15:00" in text


def test_the_page_says_degraded_and_what_is_down() -> None:
    board = busy_board()
    board.samples.append(Sample(1.0, True, 3))
    board.health = [ServiceStatus("triton", "down")]
    text = "\n".join(lines_of(board, 120, 40))
    assert "DEGRADED" in text
    assert "Triton down" in text


def test_while_no_anomaly_is_hidden_it_says_so() -> None:
    world = SimulationConfig(duration_s=30 * 86_400)
    board = Board(seed=7, expected=9, quiet_until_ms=world.quiet_until_ms, min_events=8)
    board.first_s, board.event_ms = 1.0, world.start_ms
    assert "alerts 0 (event time 01-05 00:00, anomalies begin 01-15 00:00)  latency" in (
        live.figures_line(board)
    )
    text = " ".join(lines_of(board, 80, 24)[-2:])
    assert "none yet: the payments hold no anomaly before 01-15 00:00" in text
    assert text.rstrip().endswith("an entity needs 8 events before it can alert")
    board.event_ms = world.quiet_until_ms
    assert "alerts 0  latency" in live.figures_line(board)
    assert lines_of(board, 80, 24)[-1].strip() == "none yet"


def test_lines_for_what_is_no_terminal() -> None:
    board = busy_board()
    out = io.StringIO()
    with live.screen(board, Console(file=out, width=200)):
        board.alerts.append(alert("user/u-5", 0, text="very odd", degraded=True))
        board.phase = "done"
    text = out.getvalue()
    assert "01-01 00:00  user/u-5  score 1.50  very odd  [without the intensity model]" in text
    assert "kafka: ready after 3.1 s" in text
    assert "done" in text
    assert "lag 400" in text
    assert "\x1b" not in text


def test_the_report_on_the_screen() -> None:
    out = io.StringIO()
    report = build_report(a_run(), [anomaly(1)], [alert(time_ms=1_500), alert("user/u-2", 0)])
    Console(file=out, width=80).print(Trimmed(live.report_page(report)))
    text = out.getvalue()
    assert all(line == line.rstrip() for line in text.splitlines())
    assert "takeover" in text
    assert "1.000   1 of 1 anomaly found" in text
    assert "0.500   1 of 2 alerts meet no anomaly" in text


# --- the picture -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world() -> SimulationConfig:
    return SimulationConfig(
        seed=3, users=60, merchants=12, payments=12_000, anomalies=AnomalyCounts.balanced(12)
    )


@pytest.fixture(scope="module")
def truth(world: SimulationConfig) -> list[Anomaly]:
    simulation = Simulation(world)
    for _ in simulation.chunks():
        pass
    return simulation.truth()


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load(None, {}, [])


def hits(truth: Sequence[Anomaly]) -> list[Received]:
    return [alert(f"{a.entity_kind}/{a.entity}", a.start_ms + 1) for a in truth]


def test_takeovers_are_shown_first_and_the_longest_history_wins(
    world: SimulationConfig, truth: list[Anomaly]
) -> None:
    caught = picture.choose(world, truth, hits(truth))
    assert caught is not None
    assert caught.anomaly.kind == "takeover"
    assert caught == picture.choose(world, truth, hits(truth))
    takeovers = [a for a in truth if a.kind == "takeover"]

    def before(one: Anomaly) -> int:
        alone = picture.choose(world, [one], hits([one]))
        assert alone is not None
        assert all(orjson.loads(p)["user_id"] == one.entity for p in alone.payments)
        times = [np.datetime64(orjson.loads(p)["event_time"][:-1], "ms") for p in alone.payments]
        return int(sum(t.astype(np.int64) < one.start_ms for t in times))

    assert before(caught.anomaly) == max(map(before, takeovers))


@pytest.mark.parametrize("kind", ["drift", "shared_device", "outage", "card_testing"])
def test_every_kind_of_entity_can_be_shown(
    world: SimulationConfig, truth: list[Anomaly], kind: str
) -> None:
    some = [a for a in truth if a.kind == kind]
    caught = picture.choose(world, some, hits(some))
    assert caught is not None
    key = f"{caught.anomaly.entity_kind}_id"
    assert caught.payments
    assert {orjson.loads(p)[key] for p in caught.payments} == {caught.anomaly.entity}
    assert [a.entity for a in caught.alerts] == [caught.anomaly.entity]


def test_where_nothing_was_found_there_is_no_picture(
    world: SimulationConfig, truth: list[Anomaly]
) -> None:
    assert picture.choose(world, truth, [alert("user/nobody", 0)]) is None


def test_a_replay_has_the_entitys_amounts_and_a_band(
    world: SimulationConfig, truth: list[Anomaly], settings: Settings, tmp_path: Path
) -> None:
    caught = picture.choose(world, truth, hits(truth))
    assert caught is not None
    played = picture.replay(caught, settings, NullClient())
    amounts = [orjson.loads(p)["amount"] for p in caught.payments]
    np.testing.assert_allclose(played.amount, amounts, rtol=1e-5)
    assert np.all(played.low < played.high)
    assert np.all(np.diff(played.time_ms) >= 0)
    assert np.all(played.compensator[1:] >= 0)
    path = tmp_path / "some" / "caught.png"
    draw.write_picture(caught, played, path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_expected_payments_are_spread_over_their_gap() -> None:
    played = Replay(
        time_ms=np.array([0, 100, 200]),
        amount=np.ones(3),
        low=np.ones(3),
        high=np.ones(3),
        compensator=np.array([9.0, 2.0, 4.0]),  # the first has no gap before it
    )
    seen, expected = picture.seen_and_expected(played, np.array([0, 50, 100, 150, 201]))
    np.testing.assert_array_equal(seen, [1, 0, 1, 1])
    np.testing.assert_allclose(expected, [1.0, 1.0, 2.0, 2.0])


def test_a_short_anomaly_gets_a_view_of_its_own() -> None:
    day = 24 * HOUR
    wide, near = draw.views_of((10 * day, 10 * day + HOUR), (0, 20 * day))
    assert wide == (3 * day - HOUR, 11 * day + 2 * HOUR)
    assert near == (10 * day - HOUR, 10 * day + 2 * HOUR)
    assert len(draw.views_of((10 * day, 14 * day), (0, 20 * day))) == 1


def test_bins_are_round_and_cover_the_view() -> None:
    edges = draw.bin_edges((90_000, 90_000 + 10 * HOUR))
    assert set(np.diff(edges)) == {15 * MINUTE}
    assert edges[0] <= 90_000
    assert edges[-1] >= 90_000 + 10 * HOUR


def test_an_entity_of_one_payment_can_be_drawn(tmp_path: Path) -> None:
    one = np.ones(1)
    played = Replay(np.array([1_500]), one, 0.5 * one, 2.0 * one, one)
    draw.write_picture(Caught(anomaly(1), (alert(time_ms=1_500),), ()), played, tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 1_000


# --- around the run ----------------------------------------------------------------------------


def test_the_demo_keeps_how_to_detect_and_takes_its_own_events(settings: Settings) -> None:
    given = settings.override(
        "event.value_pointer=/total",
        "source.bootstrap_servers=far:9092",
        "source.kafka.security.protocol=SSL",
        "detection.min_events=20",
        "sink.delivery=at_least_once",
        "triton.tls=true",
    )
    own = run.own_settings(given)
    assert own.event == settings.event
    assert own.source == settings.source
    assert own.detection.min_events == 20
    assert own.sink.delivery == "at_least_once"
    assert not own.triton.tls


def test_other_entities_bring_their_own_detection_which_is_not_the_demos(
    settings: Settings,
) -> None:
    event = replace(settings.event, entities=(("host", "/host"),))
    detection = replace(settings.detection, silence_kinds=("host",))
    assert run.own_settings(replace(settings, event=event, detection=detection)) == settings


def test_only_the_first_interrupt_is_raised() -> None:
    interrupted = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    with run._one_interrupt(interrupted):
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert interrupted.is_set()
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_disarmed_interrupt_is_ignored() -> None:
    with run._one_interrupt(threading.Event()) as disarm:
        disarm()
        signal.raise_signal(signal.SIGINT)


def test_one_demo_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / ".eddy" / "demo"
    with run._only_demo(folder):
        with pytest.raises(EddyError, match="another demo"), run._only_demo(folder):
            pass
        assert (folder / run.LOCK).exists()
    assert list(tmp_path.iterdir()) == []


def test_cleaning_keeps_what_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    (folder / "kafka" / "data").mkdir(parents=True)
    for name in ("report.json", "caught.png", "truth.jsonl"):
        (folder / name).write_text("x")
    run.clean(folder, run.KEPT)
    assert sorted(path.name for path in folder.iterdir()) == ["caught.png", "report.json"]
    run.clean(folder, ())
    assert list(folder.iterdir()) == []
    run.clean(tmp_path / "none", ())


@pytest.mark.parametrize(
    ("error", "left"), [(EddyError("no"), ["logs"]), (KeyboardInterrupt(), None)]
)
def test_a_run_that_ends_early_cleans_up(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: Settings,
    error: BaseException,
    left: list[str] | None,
) -> None:
    folder = tmp_path / ".eddy" / "demo"

    def fail(_settings: Settings, options: StackOptions, *_: object) -> dict[str, object]:
        assert options.root == folder
        for name in ("logs", "kafka"):
            (folder / name).mkdir(parents=True)
            (folder / name / "x").write_text("x")
        raise error

    monkeypatch.setattr(run, "_report_of", fail)

    def start() -> int:
        console = Console(file=io.StringIO())
        return run.run_demo(settings, seed=1, root=tmp_path / ".eddy", console=console)

    if left is None:
        assert start() == 130
        assert list(tmp_path.iterdir()) == []
    else:
        with pytest.raises(EddyError, match="no"):
            start()
        assert [path.name for path in folder.iterdir()] == left


# --- real runs ---------------------------------------------------------------------------------

SCRIPT = """
import sys
from pathlib import Path
from deploy.demo.run import run_demo
from deploy.stack.options import StackOptions
from flink_jobs.settings import load
from models.simulation.config import AnomalyCounts, SimulationConfig
world = SimulationConfig(seed=5, users=300, merchants=40, payments=60_000,
                         anomalies=AnomalyCounts.balanced(12))
options = StackOptions(root=Path("x"), triton_venv=Path(sys.argv[1]), start_timeout_s=240.0)
sys.exit(run_demo(load(None, {}, []), seed=5, root=Path(sys.argv[2]), world=world,
                  rate_per_s=3_000.0, options=options))
"""


@pytest.fixture
def start_demo(triton_venv: Path, tmp_path: Path) -> Callable[[], subprocess.Popen[str]]:
    command = [sys.executable, "-c", SCRIPT, str(triton_venv), str(tmp_path / ".eddy")]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return start


def nothing_runs(root: Path) -> bool:
    found: list[psutil.Process] = find_marked(root)
    return not found and not regions(root)


@pytest.mark.stack
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("line", "wait_s", "twice"),
    [
        ("triton: starting", 0.0, False),
        ("ready after", 1.0, True),
        ("submitting the job", 2.0, False),
        ("streaming payments", 3.0, True),
    ],
)
def test_ctrl_c_leaves_nothing_behind(
    start_demo: Callable[[], subprocess.Popen[str]],
    tmp_path: Path,
    line: str,
    wait_s: float,
    twice: bool,
) -> None:
    demo = start_demo()
    assert demo.stdout is not None
    shown = ""
    try:
        for text in demo.stdout:
            shown += text
            if line in text:
                break
        time.sleep(wait_s)
        # As a terminal does: to the whole group, the client of Flink included.
        os.killpg(demo.pid, signal.SIGINT)
        if twice:
            time.sleep(0.3)
            os.killpg(demo.pid, signal.SIGINT)
        shown += demo.stdout.read()
        assert demo.wait(120) == 130, shown
        assert "nothing is left running" in shown
        assert nothing_runs(tmp_path / ".eddy" / "demo")
        assert list(tmp_path.iterdir()) == []
    finally:
        demo.kill()
        run.clean(tmp_path / ".eddy" / "demo", ())


@pytest.mark.stack
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_small_demo_reports_and_cleans_up(
    start_demo: Callable[[], subprocess.Popen[str]], tmp_path: Path
) -> None:
    folder = tmp_path / ".eddy" / "demo"
    demo = start_demo()
    try:
        shown, _ = demo.communicate(timeout=800)
        assert demo.returncode == 0, shown
        report = json.loads((folder / "report.json").read_text())
        assert report["anomalies"] == 12
        assert report["undecided"] == 0
        assert report["dead_letters"] == 0
        assert report["alerts"] >= report["anomalies_found"] > 0
        assert report["latency_ms"]["p50"] > 0
        assert sorted(path.name for path in folder.iterdir()) == ["caught.png", "report.json"]
        assert nothing_runs(folder)
        assert "report.json" in shown
    finally:
        demo.kill()
        run.clean(folder, run.KEPT)
