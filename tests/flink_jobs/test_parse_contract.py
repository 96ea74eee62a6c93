"""The JSON Schemas, against the reader, the writers, and the examples in the documentation."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import jsonschema
import orjson
import pytest

from flink_jobs.alerts import AlertContext, Entity, Silence, silence_alert
from flink_jobs.parse import dead_letter, parse
from flink_jobs.parse_mapping import compile_mapping
from flink_jobs.parse_message import Event, Reason, read_message
from flink_jobs.settings import load
from tests.flink_jobs.parse_cases import (
    INGEST_MS,
    PAYMENTS,
    POISONS,
    Poison,
    payment,
    raw_payment,
    records,
)

ROOT = Path(__file__).parents[2]
NAMES = ["payment", "alert", "dead-letter", "late", "model"]
DOCUMENT = (ROOT / "docs" / "event-contract.md").read_text()


def schema(name: str) -> dict[str, object]:
    text = (ROOT / "flink_jobs" / "contract" / f"{name}.schema.json").read_text()
    found: dict[str, object] = json.loads(text)
    return found


def validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(schema(name))


def faults(name: str, message: object) -> list[str]:
    return [error.message for error in validator(name).iter_errors(message)]


@pytest.mark.parametrize("name", NAMES)
def test_schema_is_one_of_draft_2020_12(name: str) -> None:
    assert schema(name)["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(schema(name))


@pytest.mark.parametrize("name", NAMES)
def test_documented_example_follows_its_schema(name: str) -> None:
    [example] = re.findall(rf"<!-- schema: {name} -->\n```json\n(.*?)```", DOCUMENT, re.DOTALL)
    assert faults(name, json.loads(example)) == []


def test_documented_payment_is_read() -> None:
    [example] = re.findall(r"<!-- schema: payment -->\n```json\n(.*?)```", DOCUMENT, re.DOTALL)
    assert isinstance(read_message(example.encode(), INGEST_MS, compile_mapping(PAYMENTS)), Event)


def test_documented_stream_of_log_ins_is_read_by_its_documented_settings(tmp_path: Path) -> None:
    section = DOCUMENT.split("### Any other stream")[1]
    [login] = re.findall(r"```json\n(.*?)```", section.split("### Rules")[0], re.DOTALL)
    [toml] = re.findall(r"```toml\n(.*?)```", section, re.DOTALL)
    (tmp_path / "logins.toml").write_text(toml)
    settings = load(tmp_path / "logins.toml", {}, []).event
    event = read_message(login.encode(), INGEST_MS, compile_mapping(settings))
    assert isinstance(event, Event)
    assert (event.event_id, event.ids, event.mark) == (b"7", (b"ann", b"192.0.2.1"), 1)


def test_every_reason_is_documented_in_order() -> None:
    documented = re.findall(
        r"^\| `([a-z0-9_]+)` \| .* \|$", DOCUMENT.split("## Dead letters")[1], re.M
    )
    examples = validator("dead-letter").schema["properties"]["reason"]["examples"]
    assert sorted(documented) == sorted(get_args(Reason)) == sorted(examples)


GOOD = [
    payment(),
    payment(user_id=None, device_id=None),
    payment(payment_id=5, merchant_id=7.5),
    payment(event_time=INGEST_MS, currency=None, channel=None),
    payment(event_time="2026-01-05 09:00:00.5+01:00", note={"any": ["thing"]}, channel="x"),
    raw_payment("user_id", "null"),
    raw_payment("amount", "1e3"),
    raw_payment("amount", "0.0"),
    raw_payment("event_time", f"{INGEST_MS}.0"),
]


@pytest.mark.parametrize("raw", GOOD)
def test_what_is_read_follows_the_schema(raw: bytes) -> None:
    assert faults("payment", json.loads(raw)) == []
    assert isinstance(read_message(raw, INGEST_MS, compile_mapping(PAYMENTS)), Event)


# What a schema of the parsed JSON cannot say: bytes, the calendar, the record's timestamp.
BEYOND_SCHEMA = {
    "10 MB",
    "one level too deep",
    "deep extras",
    "65 bytes, 33 characters",
    "65 digits",
    "February 30",
    "no leap year",
    "second 61",
    "minute 60",
    "hour 24",
    "offset +24:00",
    "before 1970",
    "the year 0",
    "past 9999",
    "the far future",
    "an hour and 1 ms ahead",
}


@pytest.mark.parametrize("poison", POISONS, ids=lambda poison: poison.name)
def test_what_is_rejected_breaks_the_schema(poison: Poison) -> None:
    try:
        message = orjson.loads(poison.value or b"")
    except orjson.JSONDecodeError:
        return
    if poison.reason != "duplicate_key" and poison.name not in BEYOND_SCHEMA:
        assert faults("payment", message) != []


def test_dead_letters_follow_the_schema() -> None:
    rejected = parse(records([poison.value for poison in POISONS]), PAYMENTS, 1).rejected
    assert len(rejected) == len(POISONS)
    assert [
        fault for one in rejected for fault in faults("dead-letter", orjson.loads(dead_letter(one)))
    ] == []


def test_alert_of_a_silence_follows_the_schema() -> None:
    alert = silence_alert(
        AlertContext(source="eddy/payments", log_values=True, alpha=1e-6, silence_alpha=1e-7),
        Entity("merchant", "m-0042"),
        Silence(INGEST_MS, INGEST_MS + 5000, INGEST_MS - 86_400_000, 1.5, 40, degraded=False),
        ("intensity/1", "tpp-1"),
    )
    assert faults("alert", orjson.loads(alert.value)) == []


@pytest.mark.parametrize(
    "change",
    [
        {"subject": "u-1"},
        {"time": "2026-01-05"},
        {"specversion": "0.3"},
        {"id": ""},
        {"data": {}},
    ],
)
def test_schema_of_alerts_refuses(change: dict[str, object]) -> None:
    [example] = re.findall(r"<!-- schema: alert -->\n```json\n(.*?)```", DOCUMENT, re.DOTALL)
    assert faults("alert", {**json.loads(example), **change}) != []
