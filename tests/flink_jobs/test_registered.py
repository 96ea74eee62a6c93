"""Every component that settings can name, in the job: named, built, walked, restored, explained."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import orjson
import pytest

from deploy.evaluate.series import Series, read_nab
from flink_jobs import scores
from flink_jobs.alerts import ALERT, Output
from flink_jobs.components import EventTells, KindComponents
from flink_jobs.intensity_protocol import NullClient
from flink_jobs.model_files import kind_models
from flink_jobs.parse import Records, parse
from flink_jobs.scorer import ShardScorer
from flink_jobs.scores import SCORE
from flink_jobs.settings import Settings, SettingsError, load
from models.baselines.builders import BUILDERS
from models.baselines.metric import metric_component
from models.baselines.registry import REGISTRY, Context, label
from models.detectors import FUSED
from models.evaluation.detections import detect
from models.prior import KindPrior
from tests.flink_jobs.metric_cases import (
    SETTINGS,
    assert_scores_of_the_harness,
    in_order,
    messages_of,
)
from tests.flink_jobs.score_cases import (
    COMPILED,
    PRIOR,
    START_MS,
    DictStore,
    FakeClient,
    alerts,
    assert_same_tables,
    encoder,
    models_of,
    run,
    scorer_of,
    settings_of,
    split,
    stream,
)
from tests.nab_data import needs_nab

NAMES = sorted(REGISTRY)
CONTEXT = Context(KindPrior(), marks=3)
EVENTS = 200 if COMPILED else 40


def options(names: list[str]) -> list[str]:
    """Give the names to devices, which have partners, and users, half of them each."""
    half = (len(names) + 1) // 2
    return [
        f"detection.components.device={','.join(names[:half])}",
        f"detection.components.user={','.join(names[half:])}",
        "state.max_entities=9", "state.ttl_s=20000",
    ]  # fmt: skip


def test_each_name_has_a_builder_that_names_it() -> None:
    assert set(REGISTRY) == set(BUILDERS)
    for name in NAMES:
        assert REGISTRY[name].build(CONTEXT).name == name


@pytest.mark.parametrize("name", NAMES)
def test_each_is_built_from_a_population_of_unlike_metrics(name: str) -> None:
    """With values as they are, means of entities differ by far more than an entity varies."""
    prior = KindPrior(value_mean=3e6, value_between_var=4e13, value_within_var=2.0)
    component = REGISTRY[name].build(Context(prior, marks=3))
    n = 300 if COMPILED else 60
    rng = np.random.default_rng(3)
    state, out = np.zeros(1, component.state), np.zeros((n, len(component.tells)), np.float32)
    fresh = np.zeros(n, np.bool_)
    fresh[0] = True
    value = rng.normal(20.0, 1.4, n)
    value[-1] = 60.0
    component.walk(
        state, np.zeros(n, np.int32), fresh, START_MS + 8_000_000 * np.arange(n), value,
        np.zeros(n, np.uint8), np.ones(n, np.uint64), component.parameters, out,
    )  # fmt: skip
    surprises = out[:, [component.tells.index(s) for s in component.surprises]]
    assert np.isfinite(surprises).all()
    if name in ("level", "trend", "season"):
        assert surprises[0] == 0.0  # of the first value nothing is known
        assert (surprises[1:-1] < 13.0).all()
        assert surprises[-1] > 20.0


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


def test_all_components_together_do_not_see_where_a_batch_ends() -> None:
    chosen = settings_of(*options(NAMES))
    models = models_of(chosen)
    events = stream(EVENTS, 7)
    one, other = (scorer_of(chosen, models=models) for _ in range(2))
    alone, together = run(one, split(events, [1])), run(other, split(events, (40, 3, 17)))
    assert_same_tables(other, one)
    assert sorted(o.value for o in together if o.kind == ALERT) == sorted(
        o.value for o in alone if o.kind == ALERT
    )


def test_marks_are_asked_for() -> None:
    with pytest.raises(SettingsError, match="user: markov expects at least two event.marks, found"):
        settings_of("detection.components.user=markov", "event.marks=[]", "event.mark_pointer=")


# -- metric streams --------------------------------------------------------------------------------


def metric_settings(tmp_path: Path, *overrides: str) -> Settings:
    path = tmp_path / "metrics.toml"
    path.write_text(SETTINGS)
    return load(path, {}, overrides)


def hosts(n: int) -> list[Series]:
    """Return three metrics with a day; the first jumps once, and one value is missing."""
    rng = np.random.default_rng(8)
    time_ms = START_MS + 300_000 * np.arange(n, dtype=np.int64)
    day = 5.0 * np.sin(2 * np.pi * np.arange(n) / 288.0)
    series = []
    for host in range(3):
        value = 40.0 * host + day + rng.normal(0.0, 1.0, n)
        value[n - 20] += 60.0 * (host == 0)
        series.append(Series(f"host-{host}", time_ms, value))
    return series


def scores_of(outputs: list[Output]) -> list[dict[str, Any]]:
    return [orjson.loads(o.value) for o in outputs if o.kind == SCORE]


def play(settings: Settings, series: list[Series]) -> list[Output]:
    """Send the series through the job's own steps, parsing and all, in small batches."""
    events = in_order(series)
    messages = messages_of(events)
    scorer = ShardScorer(
        settings, kind_models(settings, encoder(), PRIOR), DictStore(), NullClient()
    )
    found: list[Output] = []
    at = 0
    for size in itertools.cycle((7, 50, 1, 300)):
        part = messages[at : at + size]
        if not part:
            return found + list(scorer.drain())
        records = Records(
            settings.source.topic, part, np.zeros(len(part), np.int32),
            np.arange(at, at + len(part)), np.full(len(part), events[-1][0]),
        )  # fmt: skip
        parsed = parse(records, settings.event, 1)
        assert parsed.rejected == []
        for _, batch in parsed.batches:
            found += scorer.on_batch(batch)
        at += size
    raise AssertionError


def test_scores_of_a_metric_stream_are_the_harness_s(tmp_path: Path) -> None:
    series = hosts(800 if COMPILED else 20)
    settings = metric_settings(tmp_path, "sink.scores_topic=eddy.scores")
    found = scores_of(play(settings, series))
    check = jsonschema.Draft202012Validator(
        json.loads((Path(scores.__file__).parent / "contract/score.schema.json").read_text())
    )
    for one in found[:50]:
        check.validate(one)
    assert_scores_of_the_harness(found, series)


@pytest.mark.slow
@pytest.mark.skipif(not COMPILED, reason="too many observations for Python")
def test_scores_of_nab_are_the_harness_s(tmp_path: Path) -> None:
    series = list(read_nab(needs_nab()).series)
    settings = metric_settings(tmp_path, "sink.scores_topic=eddy.scores")
    assert_scores_of_the_harness(scores_of(play(settings, series)), series)


@pytest.mark.skipif(not COMPILED, reason="the detector warms up for 200 events")
def test_an_alert_of_a_metric_reads_well(tmp_path: Path) -> None:
    found = alerts(play(metric_settings(tmp_path), hosts(800)))
    jump = [a for a in found if a["data"]["offset"] == 3 * 780]  # type: ignore[index]
    assert len(jump) == 1
    data = jump[0]["data"]
    assert isinstance(data, dict)
    assert data["detector"] == "metric.alarm"
    assert data["entity"] == {"kind": "metric", "id": "host-0"}
    low, high = (data["expected_values"][end] for end in ("low", "high"))
    assert low < data["typical"]["value"] < high < data["actual"]["value"]
    text = data["reasons"][0]["text"]
    assert text.startswith(f"value {data['actual']['value']:.6g} where {low:.6g} to {high:.6g} is")


@pytest.mark.skipif(not COMPILED, reason="the detector warms up for 200 events")
def test_alerts_of_a_metric_are_its_scores_above_one(tmp_path: Path) -> None:
    """With the settings of the guide: weights and incidents are the detector's."""
    series = hosts(1_500)
    series[1].value[1_200:1_260] += 30.0
    series[1].value[1_230] += 900.0
    found = alerts(play(metric_settings(tmp_path), series))
    told: set[tuple[object, object]] = set()
    for alert in found:
        data = alert["data"]
        assert isinstance(data, dict)
        told.add((data["entity"]["id"], data["offset"]))
    wanted: set[tuple[object, object]] = set()
    for host, one in enumerate(series):
        score = detect(metric_component(), one.time_ms, one.value).score
        wanted |= {(one.name, 3 * int(row) + host) for row in np.flatnonzero(score > 1.0)}
    assert told == wanted
    assert ("host-1", 3 * 1_230 + 1) in told
    assert len(told) == len(found)


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


def test_the_guide_names_every_component_with_its_bytes() -> None:
    guide = Path(scores.__file__).parents[1] / "docs/guides/detection.md"
    rows = [line.split("|") for line in guide.read_text("utf-8").splitlines() if "| `" in line]
    told = {
        name: size
        for _, names, *_, sizes, _ in (row for row in rows if len(row) == 5)
        for name, size in zip(
            re.findall(r"`(\w+)`", names), re.findall(r"\d+", sizes), strict=False
        )
    }
    for name in NAMES:
        part = KindComponents.of((name,), CONTEXT).layout[0]
        assert told[name] == str(part.dtype.itemsize + 1), name
