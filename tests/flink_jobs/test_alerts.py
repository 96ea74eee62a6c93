"""Alerts as a consumer reads them: times, numbers, texts, ids."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flink_jobs.advance import ADVANCED
from flink_jobs.alerts import (
    AlertContext,
    Entity,
    EventPlace,
    Silence,
    event_alert,
    rfc3339,
    silence_alert,
)
from flink_jobs.decide import DECIDED
from models.fusion import FUSED

TIME_MS = 1_767_600_000_123
CONTEXT = AlertContext("eddy/test", log_values=True, alpha=1e-6, silence_alpha=1e-5)
USER = Entity("user", "u-1")
PLACE = EventPlace("p-1", 3, 44)
TAIL = (np.zeros(len(FUSED)), np.ones(len(FUSED)))


@given(st.integers(-62_000_000_000_000, 253_000_000_000_000))
@settings(derandomize=True, max_examples=300, deadline=None)
def test_times_keep_every_millisecond(time_ms: int) -> None:
    text = rfc3339(time_ms)
    assert len(text) == 24
    assert text.endswith("Z")
    moment = np.datetime64(text[:-1], "ms")
    assert int(moment.astype(np.int64)) == time_ms


def test_a_known_time() -> None:
    assert rfc3339(TIME_MS) == "2026-01-05T08:00:00.123Z"
    assert datetime.fromisoformat(rfc3339(TIME_MS)).timestamp() == pytest.approx(TIME_MS / 1000)


def alert(
    surprises: dict[str, float],
    context: AlertContext = CONTEXT,
    entity: Entity = USER,
    place: EventPlace = PLACE,
    tail: tuple[NDArray[np.float64], NDArray[np.float64]] = TAIL,
    **told: object,
) -> dict[str, Any]:
    record = np.zeros(1, ADVANCED)[0]
    usual: dict[str, object] = {
        "time_ms": TIME_MS, "first_ms": TIME_MS - 86_400_000, "last_ms": TIME_MS - 7500,
        "events": 12, "timed": True,
        "value": math.log(5000.0), "typical": math.log(1000.0), "spread": 0.5,
        "log_gap": math.log(7.5), "gap_mean": math.log(9000.0), "partner_count": 17.4,
    }  # fmt: skip
    for name, value in (usual | told).items():
        record[name] = value
    decided = np.zeros(1, DECIDED)[0]
    for name, value in surprises.items():
        decided["surprise"][FUSED.index(name)] = value
    decided["log_p"] = -max(surprises.values())
    output = event_alert(
        context, entity, place, record, decided, tail, ("intensity/7", "tpp-7"), False
    )
    assert output.kind == "alert"
    body: dict[str, Any] = orjson.loads(output.value)
    assert output.key == body["subject"] == entity.key
    return body


def test_the_body_of_an_alert() -> None:
    body = alert({"amount": 30.0})
    data = body.pop("data")
    assert body == {
        "specversion": "1.0",
        "id": body["id"],
        "source": "eddy/test",
        "type": "io.eddy.alert.opened",
        "subject": "user/u-1",
        "time": "2026-01-05T08:00:00.123Z",
        "datacontenttype": "application/json",
    }
    reason = data.pop("reasons")[0]
    assert reason == {
        "detector": "amount",
        "p_value": pytest.approx(math.exp(-30.0)),
        "weight": 1.0,
        "text": "value 5000 where 1000 is typical",
    }
    low, high = (1000.0 * math.exp(sign * 2.5758 * 0.5) for sign in (-1, 1))
    assert data == {
        "entity": {"kind": "user", "id": "u-1"},
        "event_time": "2026-01-05T08:00:00.123Z",
        "data_start_time": "2026-01-04T08:00:00.123Z",
        "score": pytest.approx(30.0 / -math.log(1e-6), abs=1e-4),
        "p_value": pytest.approx(math.exp(-30.0)),
        "threshold": 1e-6,
        "detector": "amount",
        "actual": {"value": pytest.approx(5000, rel=1e-5), "gap_s": pytest.approx(7.5, rel=1e-5)},
        "typical": {"value": pytest.approx(1000, rel=1e-5), "gap_s": pytest.approx(9000, rel=1e-5)},
        "expected_values": {
            "low": pytest.approx(low, rel=1e-4),
            "high": pytest.approx(high, rel=1e-4),
        },
        "degraded": False,
        "model": "intensity/7",
        "model_version": "tpp-7",
        "warmth": {"events": 12},
        "payment_id": "p-1",
        "partition": 3,
        "offset": 44,
    }


@pytest.mark.parametrize(
    ("detector", "text"),
    [
        ("amount_up", "values have stayed above the typical 1000"),
        ("amount_down", "values have stayed below the typical 1000"),
        (
            "burst",
            "events come at 8 times the expected rate or more: the last after 7.5 s, "
            "where 2.5 h is usual",
        ),
        ("surge", "events come faster and values are higher than the typical 1000"),
        ("regularity", "the gaps are too regular for this entity"),
        ("partners", "about 17 distinct partners, more than expected"),
        ("mark", "a mark that this entity's history does not suggest"),
    ],
)  # fmt: skip
def test_reasons_in_words(detector: str, text: str) -> None:
    data = alert({detector: 25.0})["data"]
    assert data["detector"] == detector
    assert data["reasons"][0]["text"] == text


def test_reasons_come_by_falling_weight_and_the_weak_ones_stay_out() -> None:
    data = alert({"amount": 20.0, "mark": 21.0, "burst": 1.0})["data"]
    assert [r["detector"] for r in data["reasons"]] == ["mark", "amount"]
    assert data["reasons"][0]["weight"] == pytest.approx(1 / (1 + math.exp(-1)), abs=1e-4)
    assert sum(r["weight"] for r in data["reasons"]) == pytest.approx(1.0, abs=1e-3)


def test_a_detector_that_is_off_gives_no_reason() -> None:
    offset, slope = TAIL[0].copy(), TAIL[1].copy()
    offset[0], slope[0] = math.inf, 0.0
    data = alert({"amount": 99.0, "burst": 20.0}, tail=(offset, slope))["data"]
    assert [r["detector"] for r in data["reasons"]] == ["burst"]


def test_values_that_are_no_logarithms_stay_as_they_are() -> None:
    context = AlertContext("eddy/test", log_values=False, alpha=1e-6, silence_alpha=1e-5)
    data = alert({"amount": 30.0}, context, value=-3.5, typical=2.0, spread=1.0)["data"]
    assert data["actual"]["value"] == -3.5
    assert data["expected_values"] == {"low": pytest.approx(-0.5758), "high": pytest.approx(4.5758)}


def test_what_is_missing_or_beyond_numbers_is_null() -> None:
    data = alert({"burst": 30.0}, value=float("nan"), timed=False)["data"]
    assert data["actual"] == {"value": None, "gap_s": None}
    huge = alert({"amount": 9e3}, value=2000.0)["data"]
    assert huge["actual"]["value"] == pytest.approx(math.exp(700.0), rel=1e-4)
    assert huge["p_value"] == 0.0
    assert huge["score"] > 600


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0012, "0.0012 s"),
        (90.0, "90 s"),
        (600.0, "10.0 min"),
        (9000.0, "2.5 h"),
        (864_000.0, "10.0 d"),
    ],
)
def test_spans_have_their_own_units(seconds: float, text: str) -> None:
    data = alert({"burst": 25.0}, log_gap=math.log(seconds))["data"]
    assert f"the last after {text}, " in data["reasons"][0]["text"]


def test_ids_are_those_of_the_event_and_its_entity_alone() -> None:
    first = alert({"amount": 30.0})["id"]
    # Pinned: consumers tell a repeated alert by it, also across a new release.
    assert first == "427686734d062aa0d17cb7d49db8faa7"
    assert alert({"burst": 50.0}, value=9.0, events=99)["id"] == first
    others = [
        alert({"amount": 30.0}, entity=Entity("device", "u-1"))["id"],
        alert({"amount": 30.0}, entity=Entity("user", "u-2"))["id"],
        alert({"amount": 30.0}, place=EventPlace("p-2", 3, 44))["id"],
        alert({"amount": 30.0}, time_ms=TIME_MS + 1)["id"],
        alert({"amount": 30.0}, AlertContext("eddy/b", True, 1e-6, 1e-5))["id"],
    ]
    assert len({first, *others}) == 6


def test_a_silence() -> None:
    silence = Silence(TIME_MS, TIME_MS + 7_200_000, TIME_MS - 1000, math.log(60.0), 77, True)
    output = silence_alert(CONTEXT, Entity("merchant", "m-1"), silence, (None, ""))
    body = orjson.loads(output.value)
    data = body["data"]
    assert output.key == body["subject"] == "merchant/m-1"
    assert body["time"] == data["event_time"] == "2026-01-05T10:00:00.123Z"
    assert data["data_start_time"] == "2026-01-05T07:59:59.123Z"
    assert (data["score"], data["p_value"], data["threshold"]) == (1.0, 1e-5, 1e-5)
    assert data["reasons"][0]["text"] == "nothing for 2.0 h, where an event every 60 s is usual"
    assert data["actual"] == {"value": None, "gap_s": 7200.0}
    assert data["typical"] == {"value": None, "gap_s": pytest.approx(60.0)}
    assert data["warmth"] == {"events": 77}
    assert data["degraded"] is True
    assert (data["payment_id"], data["partition"], data["offset"]) == (None, None, None)
    assert body["id"] == "7f24e6004fd99b043adea97929b28d8d"
    later = Silence(TIME_MS, TIME_MS + 9_000_000, 0, 1.0, 78, False)
    again = orjson.loads(
        silence_alert(CONTEXT, Entity("merchant", "m-1"), later, ("intensity/7", "tpp-7")).value
    )
    assert again["id"] == body["id"]  # one silence: since the same event
