"""`eddy evaluate intensity`: three ways side by side, judged by the demo's rules."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import pytest
from numba import config
from rich.console import Console

from deploy.demo.report import Received
from deploy.evaluate.intensity import (
    BASELINES,
    INTENSITY,
    SEQUENCE,
    TIMING_KINDS,
    WAYS,
    World,
    play,
    report,
    ways_of,
    worlds_of,
)
from deploy.evaluate.intensity_table import tables
from flink_jobs.settings import load
from models.simulation.config import AnomalyCounts, SimulationConfig
from models.simulation.truth import Anomaly

COMPILED = not config.DISABLE_JIT  # type: ignore[attr-defined]
KINDS = ("user", "merchant", "device")
DAY_MS = 86_400_000
NUMBER = count()


def alert(entity: str, time_ms: int, detector: str, kind: str = "user") -> Received:
    return Received(
        f"alert-{next(NUMBER)}", kind, entity, time_ms, 1.5, detector, "", False, "7", None, 0, 0
    )


TRUTH = (
    Anomaly("a-1", "bot_timing", "user", "u-1", 10 * DAY_MS, 10 * DAY_MS + 60_000),
    Anomaly("a-2", "bot_timing", "user", "u-2", 12 * DAY_MS, 12 * DAY_MS + 60_000),
    Anomaly("a-3", "drift", "user", "u-3", 14 * DAY_MS, 15 * DAY_MS),
)


def world() -> World:
    at = TRUTH[0].start_ms
    first = alert("u-1", at + 20_000, "burst")
    return World(
        "demo 1",
        1000,
        TRUTH,
        {
            BASELINES: [first, alert("u-9", 3 * DAY_MS, "amount")],
            INTENSITY: [alert("u-1", at + 10_000, "regularity"), alert("u-8", DAY_MS, "burst")],
            SEQUENCE: [
                alert("u-1", at + 10_000, "regularity"),
                alert("u-8", DAY_MS, "burst"),
                alert("u-2", TRUTH[1].end_ms + 59_000, "sequence"),
                alert("u-3", TRUTH[2].start_ms, "amount_up"),
            ],
        },
    )


def test_the_figures_by_hand() -> None:
    found = report(1, [world()], load(None, {}, []), KINDS)
    ways = found["all"]
    assert isinstance(ways, dict)
    assert found["worlds"] == {"demo 1": 1000}
    assert found["all"] == found["demo"]
    plain, aided, sequence = (ways[way] for way in WAYS)
    assert plain["recall"] == pytest.approx(1 / 3, abs=1e-4)
    assert plain["precision"] == 0.5
    assert plain["added"] is None
    assert plain["timing"] == {
        "recall": 0.5,
        "recall_by_timing_detectors": 0.5,
        "precision_of_timing_detectors": 1.0,
    }
    assert plain["by_anomaly"]["bot_timing"]["median_delay_s"] == 20.0
    assert aided["by_anomaly"]["bot_timing"]["median_delay_s"] == 10.0
    assert aided["false_alerts"] == ["demo 1: user/u-8 burst"]
    # The alert on u-1 is the baselines' too, though another event raised it.
    assert aided["added"]["alerts"] == 1
    assert aided["added"]["true"] == 0
    assert aided["added"]["alerts_lost"] == 1
    assert aided["added"]["true_lost"] == 0
    assert sequence["recall"] == 1.0
    assert sequence["missed"] == []
    assert sequence["added"]["over"] == INTENSITY
    assert sequence["added"]["anomalies_more"] == {"bot_timing": 1, "drift": 1}
    assert sequence["added"]["by_detector"] == {
        "amount_up": {"alerts": 1, "true": 1},
        "sequence": {"alerts": 1, "true": 1},
    }
    assert sequence["by_detector"]["sequence"]["precision"] == 1.0
    assert sequence["timing"]["precision_of_timing_detectors"] == pytest.approx(2 / 3, abs=1e-4)


def test_the_tables_show_every_way() -> None:
    console = Console(record=True, width=120)
    for table in tables(report(1, [world()], load(None, {}, []), KINDS)):
        console.print(table)
    text = console.export_text()
    for word in (*WAYS, "bot_timing", "1 of 2", "2 of 2", "sequence"):
        assert word in text


def test_the_ways_differ_in_the_model_and_the_component_alone() -> None:
    base = load(None, {}, ["detection.components.device=distinct_partners"])
    ways = ways_of(base, ("user", "device"))
    assert [way.triton.enabled for way in ways.values()] == [False, True, True]
    assert ways[INTENSITY] == base
    assert dict(ways[SEQUENCE].detection.components) == {
        "device": ("distinct_partners", "sequence"),
        "user": ("sequence",),
    }
    assert replace(ways[SEQUENCE], detection=base.detection) == base


def test_no_two_worlds_share_a_seed() -> None:
    worlds = worlds_of(40, 2)
    assert sorted(config.seed for config in worlds.values()) == [40, 41, 42, 43]
    assert {k for k, n in worlds["timing 42"].anomalies.by_kind().items() if n} == set(TIMING_KINDS)


@pytest.mark.skipif(not COMPILED, reason="too many events for Python")
def test_a_small_world_is_played_all_ways() -> None:
    pytest.importorskip("onnxruntime")
    small = SimulationConfig(
        seed=3, users=150, merchants=12, payments=6_000, duration_s=4 * 86_400,
        anomalies=AnomalyCounts(card_testing=2, bot_timing=2),
    )  # fmt: skip
    ways = ways_of(load(None, {}, []), KINDS)
    one, again = (play("demo 3", small, ways) for _ in range(2))
    assert one == again
    assert 5_000 < one.payments < 8_000
    assert len(one.truth) == 4
    found = report(3, [one], ways[INTENSITY], KINDS)
    assert isinstance(found["all"], dict)
    for way in WAYS:
        assert one.alerts[way]
        assert not any(a.degraded for a in one.alerts[way])
        assert found["all"][way]["by_anomaly"]["card_testing"]["found"] >= 1
    assert any(a.model_version for a in one.alerts[INTENSITY])
