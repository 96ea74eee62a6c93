"""Every component that settings can name, in the job: named, built, walked, restored, explained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import orjson
import pytest

from flink_jobs import scores
from flink_jobs.alerts import ALERT, Output
from flink_jobs.components import EventTells, KindComponents
from flink_jobs.intensity_protocol import NullClient
from flink_jobs.scores import SCORE
from flink_jobs.settings import SettingsError
from models.baselines.builders import BUILDERS
from models.baselines.metric import metric_component
from models.baselines.registry import REGISTRY, Context, label
from models.detectors import FUSED
from models.evaluation.detections import detect
from models.prior import KindPrior
from tests.flink_jobs.score_cases import (
    COMPILED,
    NOT_MONEY,
    START_MS,
    DictStore,
    Event,
    FakeClient,
    alerts,
    assert_same_tables,
    models_of,
    run,
    scorer_of,
    settings_of,
    split,
    stream,
)

NAMES = sorted(REGISTRY)
CONTEXT = Context(KindPrior(), marks=3)
EVENTS = 200 if COMPILED else 40


def options(names: list[str]) -> list[str]:
    """Give the names to users and devices, half of them each."""
    half = (len(names) + 1) // 2
    return [
        f"detection.components.user={','.join(names[:half])}",
        f"detection.components.device={','.join(names[half:])}",
        "state.max_entities=9", "state.ttl_s=20000",
    ]  # fmt: skip


def test_each_name_has_a_builder_that_names_it() -> None:
    assert set(REGISTRY) == set(BUILDERS)
    for name in NAMES:
        assert REGISTRY[name].build(CONTEXT).name == name


def test_no_two_surprises_have_one_name() -> None:
    labels = [
        label(name, surprise)
        for name in NAMES
        for surprise in REGISTRY[name].build(CONTEXT).surprises
    ]
    assert len(set(labels)) == len(labels)
    assert not set(labels) & {*FUSED, "silence"}


@pytest.mark.parametrize("name", NAMES)
def test_each_surprise_has_a_sentence_of_known_numbers(name: str) -> None:
    kind = KindComponents.of((name,), CONTEXT)
    component = kind.components[0]
    assert set(REGISTRY[name].texts) == set(component.surprises)
    assert set(REGISTRY[name].expected or ()) <= set(component.tells)
    out = np.full((1, len(component.tells)), 2.0, np.float32)
    for surprise in component.surprises:
        for told in (out, np.full_like(out, np.nan)):
            text = EventTells(kind, (told,), 0).reason(label(name, surprise), 2.0, float)
            assert "history suggests" not in text or name == "distinct_partners"
            assert "{" not in text
    known = EventTells(kind, (out,), 0).expected()
    assert (known is None) == (REGISTRY[name].expected is None)


def test_all_components_together_restore_to_the_bit() -> None:
    """Both halves of the registry, with rows that change hands, killed after every few batches."""
    chosen = settings_of(*options(NAMES))
    models = models_of(chosen)
    batches = list(split(stream(EVENTS, 6), (5, 1, 9, 14, 3, 7) * 8))
    whole = scorer_of(chosen, client=FakeClient((0, 2, 1), refuse_every=6), models=models)
    expected = run(whole, batches)
    store = DictStore()
    scorer = scorer_of(chosen, store, FakeClient((0, 2, 1), refuse_every=6), models=models)
    found: list[Output] = []
    for i, batch in enumerate(batches):
        found += scorer.on_batch(batch)
        if i % 5 == 2:
            store = DictStore(store)
            scorer = scorer_of(chosen, store, FakeClient((0, 2), refuse_every=6), models=models)
    found += scorer.drain()
    assert sorted(o.value for o in found) == sorted(o.value for o in expected)
    assert_same_tables(scorer, whole)
    one = scorer_of(chosen, client=FakeClient(refuse_every=6), models=models)
    alone = run(one, split(stream(EVENTS, 6), [1]))
    assert sorted(o.value for o in alone if o.kind == ALERT) == sorted(
        o.value for o in expected if o.kind == ALERT
    )


def test_marks_are_asked_for() -> None:
    with pytest.raises(SettingsError, match="user: markov expects at least two event.marks, found"):
        settings_of("detection.components.user=markov", "event.marks=[]", "event.mark_pointer=")


# -- metric streams --------------------------------------------------------------------------------

METRIC = (
    *NOT_MONEY,
    'event.entities={user = "/user"}',
    "event.value_pointer=/value",
    "event.mark_pointer=",
    "event.marks=[]",
    "detection.components.user=metric",
    'detection.detectors=["silence"]',
    "detection.silence_kinds=",
    "detection.partner_kinds={}",
    "detection.min_events=1",
    "detection.false_alerts_per_million=10000",
    "state.ttl_s=100000000",
    "triton.enabled=false",
)


def hosts(n: int) -> list[Event]:
    """Return three metrics with a day, read in turns; the first jumps once."""
    rng = np.random.default_rng(8)
    events = []
    for i in range(n):
        at = i // 3
        day = 5.0 * np.sin(2 * np.pi * at / 288.0)
        jump = 60.0 if i % 3 == 0 and at == n // 3 - 20 else 0.0
        value = 40.0 * (i % 3) + day + rng.normal(0.0, 1.0) + jump
        events.append(Event(300.0 * at, value, user=f"host-{i % 3}", offset=i))
    return events


def batches_of(events: list[Event]):  # type: ignore[no-untyped-def]
    """Cut into batches that hold users only, as the settings of a metric stream have it."""
    for batch in split(events, (7, 50, 1, 30)):
        yield replace(batch, ids=batch.ids[:1], hashes=batch.hashes[:1])


def scores_of(outputs: list[Output]) -> list[dict[str, Any]]:
    return [orjson.loads(o.value) for o in outputs if o.kind == SCORE]


def test_scores_of_a_metric_stream_are_the_detectors_own() -> None:
    n = 2_400 if COMPILED else 60
    events = hosts(n)
    chosen = settings_of(*METRIC, "sink.scores_topic=eddy.scores")
    outputs = run(scorer_of(chosen, client=NullClient()), batches_of(events))
    check = jsonschema.Draft202012Validator(
        json.loads((Path(scores.__file__).parent / "contract/score.schema.json").read_text())
    )
    found = scores_of(outputs)
    assert len(found) == n
    for one in found[:50]:
        check.validate(one)
    for host in range(3):
        mine = events[host::3]
        time_ms = np.array([START_MS + round(1000 * e.at_s) for e in mine], np.int64)
        expected = detect(metric_component(), time_ms, np.array([e.value for e in mine]))
        told = [one for one in found if one["entity"]["id"] == f"host-{host}"]
        for name in ("score", "surprise", "typical", "low", "high"):
            got = [one["components"]["metric"][name] for one in told]
            want = getattr(expected, name)
            assert np.array_equal([np.nan if x is None else x for x in got], want, equal_nan=True)
        assert [one["event_id"] for one in told] == [f"p-0-{e.offset}" for e in mine]


@pytest.mark.skipif(not COMPILED, reason="the detector warms up for 200 events")
def test_an_alert_of_a_metric_reads_well() -> None:
    events = hosts(2_400)
    chosen = settings_of(*METRIC, "detection.false_alerts_per_million=100")
    found = alerts(run(scorer_of(chosen, client=NullClient()), batches_of(events)))
    jump = [a for a in found if a["data"]["offset"] == 2_340]  # type: ignore[index]
    assert len(jump) == 1
    data = jump[0]["data"]
    assert isinstance(data, dict)
    assert data["detector"] == "metric.surprise"
    assert data["entity"] == {"kind": "user", "id": "host-0"}
    low, high = (data["expected_values"][end] for end in ("low", "high"))
    assert low < data["typical"]["value"] < high < data["actual"]["value"]
    text = data["reasons"][0]["text"]
    assert text.startswith(f"value {data['actual']['value']:.6g} where {low:.6g} to {high:.6g} is")


def test_scores_are_those_that_alerts_are_made_of() -> None:
    events = stream(EVENTS, 9)
    quiet = scorer_of(settings_of("detection.components.user=value"))
    loud = scorer_of(settings_of("detection.components.user=value", "sink.scores_topic=eddy.s"))
    told, scored = run(quiet, split(events, [11])), run(loud, split(events, [11]))
    assert [o for o in scored if o.kind != SCORE] == told
    by_place = {(one["entity"]["kind"], one["event_id"]): one["score"] for one in scores_of(scored)}
    entities = sum(bool(getattr(e, k)) for e in events for k in ("user", "merchant", "device"))
    assert loud.counters["decided"] == len(by_place) <= entities
    for alert in alerts(told):
        data = alert["data"]
        assert isinstance(data, dict)
        if data["payment_id"] is not None:
            score = by_place[data["entity"]["kind"], data["payment_id"]]
            assert data["score"] == pytest.approx(score, abs=1e-4)
