"""The score step of one shard: how batches are cut, lateness, silence, degradation, finiteness."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flink_jobs import scorer as scorer_module
from flink_jobs.alerts import Output
from flink_jobs.intensity_protocol import NullClient
from flink_jobs.scorer import ShardScorer
from state.events import EventBatch
from state.table import NEVER_MS, id_of
from tests.flink_jobs.score_cases import (
    COMPILED,
    NOT_MONEY,
    START_MS,
    DictStore,
    Event,
    FakeClient,
    alerts,
    assert_same_tables,
    batch_of,
    late,
    run,
    scorer_of,
    settings_of,
    split,
    stream,
)

CONTRACT = Path(scorer_module.__file__).parent / "contract"
SILENT = "detection.silence_kinds=user,merchant"
NO_SILENCE = "detection.silence_kinds="
FEW = ("detection.false_alerts_per_million=100", "detection.detectors=amount,silence")
SMALL = 240 if COMPILED else 60


def validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads((CONTRACT / name).read_text()))


def sorted_values(outputs: Sequence[Output], kind: str = "alert") -> list[bytes]:
    return sorted(o.value for o in outputs if o.kind == kind)


def places(outputs: Sequence[Output]) -> list[tuple[object, object]]:
    return sorted((str(one["partition"]), one["offset"]) for one in late(outputs))


# -- batches ---------------------------------------------------------------------------------------


@settings(max_examples=10 if COMPILED else 2, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    sizes=st.lists(st.integers(1, 40), max_size=12),
    options=st.sampled_from([(SILENT,), (NO_SILENCE, "state.max_entities=6", "state.ttl_s=900")]),
)
def test_any_cut_into_batches_gives_the_same(
    seed: int, sizes: list[int], options: tuple[str, ...]
) -> None:
    chosen = settings_of(*options)
    events = stream(SMALL // 2, seed)
    one = scorer_of(chosen)
    expected = run(one, split(events, [1]))
    other = scorer_of(chosen, client=FakeClient((0, 2, 1)))
    found = run(other, split(events, [*sizes, 25]))
    assert_same_tables(other, one)
    assert sorted_values(found) == sorted_values(expected)
    assert places(found) == places(expected)
    assert other.watermark_ms == one.watermark_ms


def test_a_large_batch_goes_in_parts() -> None:
    """Alerts and tables are the same, and no request has more rows than the settings allow."""
    events = stream(SMALL, 4)
    whole = scorer_of(settings_of(SILENT))
    expected = run(whole, [batch_of(events)])
    asked: list[int] = []

    class Counting(FakeClient):
        def submit(self, x: NDArray[np.float32]):  # type: ignore[no-untyped-def]
            asked.append(len(x))
            return super().submit(x)

    parts = scorer_of(
        settings_of(SILENT, "triton.max_rows=16", "triton.max_in_flight=4"), client=Counting((1,))
    )
    found = run(parts, [batch_of(events)])
    assert_same_tables(parts, whole)
    assert sorted_values(found) == sorted_values(expected)
    assert len(asked) == -(-len(events) // 10)
    assert max(asked) <= 32


def test_answers_that_wait_for_room_are_asked_in_order() -> None:
    events = stream(SMALL // 2, 5)
    free = scorer_of(settings_of(SILENT))
    expected = run(free, split(events, [7]))
    tight = scorer_of(settings_of(SILENT), client=FakeClient((3,), room=1))
    found = run(tight, split(events, [7]))
    assert_same_tables(tight, free)
    assert sorted_values(found) == sorted_values(expected)


def test_an_empty_batch_changes_nothing() -> None:
    scorer = scorer_of(settings_of())
    assert run(scorer, [batch_of([])]) == []
    assert scorer.seq == 0


def test_alerts_name_the_entity_of_their_event_though_its_row_was_given_away() -> None:
    """A table of three rows is overrun: rows change hands within a batch and before decisions."""
    events = stream(SMALL, 8, entities=30, jitter_s=0.1)
    by_id = {f"p-{e.partition}-{e.offset}": e for e in events}
    scorer = scorer_of(
        settings_of(
            NO_SILENCE, "state.max_entities=3", "detection.false_alerts_per_million=100000",
            "detection.min_events=1",
        ),
        client=FakeClient((3, 2)),
    )  # fmt: skip
    found = alerts(run(scorer, split(events, [20])))
    assert len(found) > (5 if COMPILED else -1)
    for alert in found:
        data = alert["data"]
        assert isinstance(data, dict)
        event = by_id[data["payment_id"]]
        assert data["entity"]["id"] == getattr(event, data["entity"]["kind"])
    assert [t.used for t in scorer.tables] == [3, 3, 3]


def test_a_silence_names_the_entity_whose_row_was_given_away() -> None:
    """The row's new entity is advanced before the batch that tells the silence is decided."""
    options = settings_of("detection.silence_kinds=merchant", "state.max_entities=1", *FEW)
    rhythm = [Event(60.0 * i, 1000.0, merchant="m-old", offset=i) for i in range(30)]
    moves = [Event(90_000.0, 1000.0, user="u-1", offset=30)]
    takes = [Event(90_001.0, 1000.0, merchant="m-new", offset=31)]
    scorer = scorer_of(options, client=FakeClient((9,) * 40, room=40))
    found = run(scorer, [batch_of(rhythm), batch_of(moves), batch_of(takes)])
    assert [o.key for o in found] == ["merchant/m-old"]
    (alert,) = alerts(found)
    assert alert["data"]["data_start_time"] == "2026-01-05T08:00:00.000Z"  # type: ignore[index]
    assert id_of(scorer.tables[1].rows[0]) == "m-new"


# -- independence and causality --------------------------------------------------------------------


def test_entities_do_not_influence_each_other() -> None:
    events = [e for e in stream(SMALL, 9, partitions=1, jitter_s=0.0) if e.user]
    patient = settings_of(NO_SILENCE, "event.allowed_lateness_ms=100000000")
    together = scorer_of(patient)
    outputs = run(together, split(events, [13]))
    table = together.tables[0]
    for row in range(0, table.used, 1 if COMPILED else 4):
        name = id_of(table.rows[row])
        alone = scorer_of(patient)
        mine = run(alone, split([e for e in events if e.user == name], [4]))
        assert alone.tables[0].rows[0].tobytes() == table.rows[row].tobytes()
        assert alone.tables[0].memory[0].tobytes() == table.memory[row].tobytes()
        key = f"user/{name}"
        assert [o for o in mine if o.key == key] == [o for o in outputs if o.key == key]


class Scores:
    """Collects all scores by (kind, offset)."""

    def __init__(self) -> None:
        self.found: dict[tuple[int, int, int], tuple[bytes, bytes]] = {}
        self.batch = -1

    def __call__(self, kind: int, advanced: NDArray[np.void], decided: NDArray[np.void]) -> None:
        for told, out in zip(advanced, decided, strict=True):
            key = (kind, int(told["row"]), int(told["events"]))
            self.found[key] = (told.tobytes(), out.tobytes())


@pytest.mark.parametrize("at", [0.3, 0.6, 0.9])
def test_the_future_changes_no_score(at: float) -> None:
    events = stream(SMALL, 12, jitter_s=2.0)
    cut = int(len(events) * at)
    rng = np.random.default_rng(1)
    changed = events[:cut] + [
        replace(e, value=float(rng.integers(1, 10**9)), user=f"u-x{i % 3}", at_s=e.at_s * 1.5)
        for i, e in enumerate(events[cut:])
    ]
    kept = []
    for some in (events, changed):
        seen = Scores()
        scorer = scorer_of(settings_of(SILENT), observer=seen)
        first = [o for batch in split(some[:cut], [10]) for o in scorer.on_batch(batch)]
        before = dict(seen.found)
        run(scorer, split(some[cut:], [10]))
        assert {k: seen.found[k] for k in before} == before  # no score is taken back
        kept.append((before, first))
    assert kept[0] == kept[1]
    assert len(kept[0][0]) > cut


# -- lateness --------------------------------------------------------------------------------------


def test_late_events_have_one_output_each_and_are_not_scored() -> None:
    events = stream(SMALL, 21, jitter_s=20.0)
    scorer = scorer_of(settings_of(SILENT))
    outputs = run(scorer, split(events, [16]))
    told = late(outputs)
    offsets = [one["offset"] for one in told]
    assert len(offsets) == len(set(offsets)) == scorer.counters["late"] >= (3 if COMPILED else 1)
    check = validator("late.schema.json")
    by_offset = {e.offset: e for e in events}
    for one in told:
        check.validate(one)
        event = by_offset[one["offset"]]  # type: ignore[index]
        assert one["partition"] == event.partition
        assert one["event_id"] == f"p-{event.partition}-{event.offset}"
        wanted = {k: getattr(event, k) for k in ("user", "merchant", "device")}
        assert one["entities"] == {k: v for k, v in wanted.items() if v}
        assert one["value"] == (None if np.isnan(event.value) else event.value)
    punctual = [e for e in events if e.offset not in set(offsets)]
    other = scorer_of(settings_of(SILENT))
    assert sorted_values(run(other, split(punctual, [16]))) == sorted_values(outputs)
    assert_same_tables(other, scorer)


def at(second: float, partition: int = 0) -> Event:
    return Event(second, 100.0, user="u-1", partition=partition)


def lates(scorer: ShardScorer, *events: Event) -> list[int]:
    """Score each event alone; return the index of those that came late."""
    return [i for i, e in enumerate(events) if late(scorer.on_batch(batch_of([e])))]


def test_one_partition_is_late_by_the_newest_event() -> None:
    scorer = scorer_of(settings_of("event.allowed_lateness_ms=10000"))
    assert lates(scorer, at(100), at(90), at(89.999), at(100), at(105), at(94)) == [2, 5]
    assert scorer.watermark_ms == START_MS + 95_000


def test_a_partition_that_is_read_ahead_makes_nothing_late() -> None:
    scorer = scorer_of(settings_of("event.allowed_lateness_ms=10000"))
    found = lates(scorer, at(0, 0), at(0, 1), at(500, 0), at(20, 1), at(5, 1), at(11, 1), at(12, 0))
    assert found == [4]
    assert scorer.watermark_ms == START_MS + 10_000


def test_a_partition_far_behind_holds_nobody_back() -> None:
    scorer = scorer_of(settings_of("event.allowed_lateness_ms=10000"))
    assert lates(scorer, at(0, 0), at(0, 1), at(600, 0)) == []
    assert scorer.watermark_ms == START_MS - 10_000
    assert lates(scorer, at(601, 0)) == []
    assert scorer.watermark_ms == START_MS + 591_000
    assert lates(scorer, at(300, 1), at(595, 1)) == [0]


def test_the_watermark_never_falls_when_a_partition_joins() -> None:
    scorer = scorer_of(settings_of("event.allowed_lateness_ms=10000"))
    assert lates(scorer, at(100, 0), at(95, 1), at(89, 0), at(90, 1)) == [2]
    assert scorer.watermark_ms == START_MS + 90_000


# -- silence ---------------------------------------------------------------------------------------

RHYTHM = [Event(60.0 * i, 1000.0, merchant="m-1", offset=i) for i in range(40)]
LAST_S = 60.0 * 39
MERCHANTS = "detection.silence_kinds=merchant"


def beside(second: float, offset: int) -> Event:
    return Event(second, 1000.0, user="u-1", offset=offset)


def silent_run(*later: Event, ticks: Sequence[float] = ()) -> tuple[ShardScorer, list[Output]]:
    scorer = scorer_of(settings_of(MERCHANTS, *FEW))
    found = run(scorer, split(RHYTHM, [8]))
    assert found == []
    for event in later:
        found += run(scorer, [batch_of([event])])
    for second in ticks:
        found += [*scorer.tick(START_MS + round(1000 * second)), *scorer.drain()]
    return scorer, found


def test_silence_is_told_once_and_the_same_by_whatever_finds_it() -> None:
    back = Event(90_000.0, 1000.0, merchant="m-1", offset=99)
    by_sweep = silent_run(beside(80_000.0, 41), beside(85_000.0, 42), back)[1]
    by_tick = silent_run(ticks=(40_000.0, 80_000.0, 85_000.0))[1]
    by_event = silent_run(back, beside(90_030.0, 43))[1]
    told = [
        [o for o in some if b'"detector":"silence"' in o.value]
        for some in (by_sweep, by_tick, by_event)
    ]
    assert [len(some) for some in told] == [1, 1, 1]
    assert told[0] == told[1] == told[2]
    (alert,) = alerts(told[0])
    data = alert["data"]
    assert isinstance(data, dict)
    validator("alert.schema.json").validate(alert)
    assert alert["subject"] == "merchant/m-1"
    assert alert["time"] == data["event_time"]
    assert data["actual"]["gap_s"] > 120.0
    assert START_MS + 1000 * LAST_S < _ms(data["event_time"]) < START_MS + 80_000_000
    assert data["warmth"] == {"events": 40}
    assert data["degraded"] is False


def _ms(text: str) -> float:
    return float(np.datetime64(text.rstrip("Z"), "ms").astype(np.int64))


def test_silence_is_not_told_before_it_is_due() -> None:
    due_s = (_ms(alerts(silent_run(ticks=(90_000.0,))[1])[0]["time"]) - START_MS) / 1000  # type: ignore[arg-type]
    scorer, found = silent_run(ticks=(due_s - 0.001, due_s))
    assert found == []
    assert scorer.tables[1].deadline_ms[0] == START_MS + round(1000 * due_s)
    assert len([*scorer.tick(START_MS + round(1000 * due_s) + 1), *scorer.drain()]) == 1
    assert scorer.tables[1].deadline_ms[0] == NEVER_MS


def test_after_a_silence_the_next_one_is_told_again() -> None:
    again = [Event(90_000.0 + 60 * i, 1000.0, merchant="m-1", offset=50 + i) for i in range(40)]
    _, found = silent_run(*again, ticks=(200_000.0,))
    told = [a for a in alerts(found) if a["data"]["detector"] == "silence"]  # type: ignore[index]
    assert len(told) == 2
    assert told[0]["id"] != told[1]["id"]


def test_silence_of_other_kinds_is_not_told() -> None:
    scorer = scorer_of(settings_of(NO_SILENCE, *FEW))
    assert run(scorer, split(RHYTHM, [8])) == []
    assert [*scorer.tick(START_MS + 10**9), *scorer.drain()] == []
    assert (scorer.tables[1].deadline_ms[:1] == NEVER_MS).all()


def test_a_tick_back_in_time_does_nothing() -> None:
    scorer, _ = silent_run()
    seq, watermark = scorer.seq, scorer.watermark_ms
    assert list(scorer.tick(watermark - 1)) == []
    assert (scorer.seq, scorer.watermark_ms) == (seq, watermark)


def test_ticks_make_no_event_late() -> None:
    """After a pause of the source, what waited in Kafka is older than the clock on the wall."""
    scorer, found = silent_run(ticks=(100_000.0,))
    assert len(found) == 1
    back = run(scorer, [batch_of([Event(50_000.0, 1000.0, merchant="m-1", offset=60)])])
    assert late(back) == []
    assert scorer.tables[1].rows[0]["events"] == 41


# -- the model is away -----------------------------------------------------------------------------


def test_without_an_answer_alerts_say_degraded_and_full_service_comes_back() -> None:
    client = FakeClient()
    scorer = scorer_of(settings_of(NO_SILENCE, "detection.incident_quiet_s=1"), client=client)
    modes = []
    for phase, down in enumerate([False, True, False]):
        client.down = down
        for i in range(20):
            step = 40 * phase + i
            value = 1e9 if i in (12, 16) else 1000.0 + i
            event = Event(120.0 * step, value, user="u-1", offset=step)
            for alert in alerts(run(scorer, [batch_of([event])])):
                data = alert["data"]
                assert isinstance(data, dict)
                if data["actual"]["value"] > 1e8:
                    modes.append((phase, data["degraded"], data["model_version"]))
        assert scorer.degraded is down
        assert bool(scorer.tables[0].rows[0]["predicted"]) is not down
    assert modes == [(0, False, "7")] * 2 + [(1, True, "7")] * 2 + [(2, False, "7")] * 2
    assert scorer.counters["degraded_batches"] == 20


def test_with_triton_switched_off_nothing_is_degraded() -> None:
    events = stream(SMALL, 30)
    chosen = settings_of(SILENT, "triton.enabled=false")
    found = alerts(run(scorer_of(chosen, client=NullClient()), split(events, [16])))
    assert found
    assert {a["data"]["degraded"] for a in found} == {False}  # type: ignore[index]
    assert {a["data"]["model_version"] for a in found} == {""}  # type: ignore[index]


# -- alerts ----------------------------------------------------------------------------------------


def test_alerts_follow_the_contract_and_their_ids_are_deterministic() -> None:
    chosen = settings_of(SILENT, "detection.false_alerts_per_million=100000")
    events = stream(2 * SMALL, 33)
    outputs = run(scorer_of(chosen, client=FakeClient((2,), refuse_every=4)), split(events, [16]))
    check = validator("alert.schema.json")
    found = alerts(outputs)
    assert len(found) > 20
    for output, alert in zip([o for o in outputs if o.kind == "alert"], found, strict=True):
        check.validate(alert)
        assert output.key == alert["subject"]
        data = alert["data"]
        assert isinstance(data, dict)
        assert data["score"] >= 1.0
        assert data["p_value"] <= data["threshold"]
        assert data["detector"] == data["reasons"][0]["detector"]
        weights = [r["weight"] for r in data["reasons"]]
        assert weights == sorted(weights, reverse=True)
        assert 0.5 < sum(weights) < 1.001
    ids = [a["id"] for a in found]
    assert len(set(ids)) == len(ids)
    again = run(scorer_of(chosen, client=FakeClient((0,), refuse_every=0)), split(events, [5]))
    shared = {a["id"]: a["subject"] for a in alerts(again)}
    same = [a for a in found if a["id"] in shared]
    assert len(same) > 10  # other answers, other batches: the id of one alert is still the same
    assert all(shared[a["id"]] == a["subject"] for a in same)


def test_an_incident_is_told_once() -> None:
    scorer = scorer_of(settings_of(NO_SILENCE, *FEW, "detection.incident_quiet_s=3600"))
    quiet = [Event(120.0 * i, 1000.0 + i % 7, user="u-1", offset=i) for i in range(30)]
    wild = [Event(3600.0 + 60.0 * i, 1e9, user="u-1", offset=30 + i) for i in range(10)]
    calm = [Event(9000.0 + 120.0 * i, 1000.0 + i % 7, user="u-1", offset=50 + i) for i in range(40)]
    later = [Event(20_000.0, 1e9, user="u-1", offset=99)]
    found = [
        a["data"]["payment_id"]  # type: ignore[index]
        for a in alerts(run(scorer, split([*quiet, *wild, *calm, *later], [9])))
    ]
    assert found == ["p-0-30", "p-0-99"]


# -- finiteness ------------------------------------------------------------------------------------

ADVERSARIAL = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.001, 1.0, 60.0, 3600.0, 86_400.0, 1e7, 1e9, -1.0, -3600.0]),
        st.sampled_from([float("nan"), 0.0, 1.0, 2.0, 1000.0, 1e15]),
        st.sampled_from(["u-1", "u-2", "ü" * 32]),
        st.sampled_from([0, 7, 8, 255]),
    ),
    min_size=1,
    max_size=60 if COMPILED else 12,
)


def assert_finite(scorer: ShardScorer, seen: list[NDArray[np.void]]) -> None:
    for table in scorer.tables:
        rows = table.rows[: table.used]
        for name in rows.dtype.names or ():
            if rows.dtype[name].kind == "f":
                assert np.isfinite(rows[name]).all(), name
        assert np.isfinite(table.memory[: table.used]).all()
        assert (rows["noise_var"] > 0).all()
        assert (rows["level_var"] >= 0).all()
        assert (rows["gap_var"] > 0).all()
    for decided in seen:
        for name in ("log_p", "compensator", "usual", "surprise"):
            assert np.isfinite(decided[name]).all(), name
        assert (decided["surprise"] >= 0).all()
        assert (decided["log_p"] <= 0).all()


def adversarial_run(steps: list[tuple[float, float, str, int]], *options: str) -> None:
    chosen = settings_of(
        SILENT, "event.allowed_lateness_ms=31000000000", "state.ttl_s=3000000000", *options
    )
    seen: list[NDArray[np.void]] = []
    scorer = scorer_of(
        chosen,
        client=FakeClient(refuse_every=3),
        observer=lambda _kind, _told, decided: seen.append(decided),
    )
    now, events = 0.0, []
    for i, (step, value, user, mark) in enumerate(steps):
        now += step
        events.append(Event(now, value, user=user, merchant="m-1", mark=mark, offset=i))
    outputs = run(scorer, split(events, [7]))
    assert late(outputs) == []
    check = validator("alert.schema.json")
    for alert in alerts(outputs):
        check.validate(alert)
    assert_finite(scorer, seen)
    assert scorer.tables[0].rows["events"].sum() == len(steps)


@settings(max_examples=25 if COMPILED else 4, deadline=None, derandomize=True)
@given(steps=ADVERSARIAL)
def test_scores_stay_finite(steps: list[tuple[float, float, str, int]]) -> None:
    adversarial_run(steps)


@pytest.mark.parametrize("value", [1e300, -1e300, 1e39, 1e-300])
def test_scores_stay_finite_far_outside_float32(value: float) -> None:
    steps = (
        [(60.0, 5.0, "u-1", 0)] * 20 + [(60.0, value, "u-1", 0)] * 30 + [(60.0, 5.0, "u-1", 0)] * 20
    )
    adversarial_run(steps, *NOT_MONEY, "event.value_min=-1e300", "event.value_max=1e300")


def test_a_value_missing_everywhere() -> None:
    adversarial_run([(60.0, float("nan"), "u-1", 255)] * 30)


def test_ids_of_all_lengths_find_their_rows() -> None:
    names = ["a", "ab", "a" * 63, "a" * 64, "é" * 32, "🦕" * 16]
    events = [Event(60.0 * i, 10.0, user=names[i % 6], offset=i) for i in range(60)]
    scorer = scorer_of(settings_of())
    run(scorer, split(events, [11]))
    table = scorer.tables[0]
    assert [id_of(table.rows[r]) for r in range(table.used)] == names
    assert table.rows["events"][:6].tolist() == [10] * 6


def test_events_without_an_entity_here_are_left_to_other_shards() -> None:
    batch = batch_of([Event(0, 10.0, user="u-1", merchant="m-1", offset=0)])
    owned = EventBatch(
        **{f: getattr(batch, f) for f in batch.__dataclass_fields__}
        | {"owned": np.array([2], np.uint8)}
    )
    scorer = scorer_of(settings_of())
    run(scorer, [owned])
    assert [t.used for t in scorer.tables] == [0, 1, 0]


def test_counters() -> None:
    events = stream(SMALL // 2, 40, jitter_s=0.1, partitions=1)
    scorer = scorer_of(settings_of(SILENT))
    outputs = run(scorer, split(events, [10]))
    entities = sum(bool(getattr(e, k)) for e in events for k in ("user", "merchant", "device"))
    scored = len(events) - len(late(outputs))
    assert scorer.counters["events"] == len(events)
    assert scorer.counters["decided"] <= entities
    assert scorer.counters["decided"] >= entities - 3 * len(late(outputs))
    assert scorer.counters["alerts"] == len(alerts(outputs))
    assert scorer.counters["entities_new"] == sum(t.used for t in scorer.tables)
    assert scored > 0


def test_the_store_holds_nothing_but_records_of_known_forms() -> None:
    store = DictStore()
    run(scorer_of(settings_of(), store), split(stream(SMALL, 41), [10]))
    assert {v[:4] for k, v in store.items() if k > 0 and k % 2 == 0} == {b"EdLb"}
    assert {v[:4] for k, v in store.items() if k > 0 and k % 2 == 1} == {b"EdLa"}
    assert {v[:4] for k, v in store.items() if k < 0} == {b"EdPg"}
