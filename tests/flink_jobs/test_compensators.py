"""The sequence component in the job: what it reads, when it is walked, what it says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flink_jobs.alerts import ALERT, Output
from flink_jobs.compensators import compensators
from flink_jobs.intensity_protocol import NullClient
from flink_jobs.memory_plan import memory_plan
from flink_jobs.scorer import ShardScorer
from flink_jobs.scores import SCORE
from models.prior import Prior, Tail
from models.tpp.sequence import PATIENCE, SEQUENCE
from models.tpp.sequence_component import TELLS, take
from state.table import id_of
from tests.flink_jobs.score_cases import (
    COMPILED,
    PRIOR,
    DictStore,
    Event,
    FakeClient,
    alerts,
    assert_same_tables,
    batch_of,
    models_of,
    run,
    scorer_of,
    settings_of,
    split,
    stream,
)

ALL = tuple(f"detection.components.{kind}=sequence" for kind in ("user", "merchant", "device"))
# Which silences of rows that change hands are told depends on where batches end, so none are.
FULL = ("state.max_entities=7", "state.ttl_s=600", "detection.silence_kinds=")
EVENTS = 360 if COMPILED else 60
SIZES = (5, 1, 9, 14, 3, 7, 2, 11)
# A tail by which short streams alert on their sequences.
EAGER = Prior(
    {
        "default": replace(
            PRIOR.of("user"),
            tails={"silence": Tail(0.0, 1.0), "sequence": Tail(0.0, 2.0)},
            degraded_tails={"sequence": Tail(0.0, 2.0)},
        )
    }
)


@pytest.mark.parametrize("options", [(), FULL], ids=["roomy", "full"])
def test_the_component_is_told_the_compensators_of_decide(
    options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[NDArray[np.float64]] = []
    sources: list[NDArray[np.uint8]] = []

    def kept(*args: object) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
        found = compensators(*args)  # type: ignore[arg-type]
        told.append(found[0])
        sources.append(found[1])
        return found

    monkeypatch.setattr("flink_jobs.compensators.compensators", kept)
    found: list[NDArray[np.void]] = []
    scorer = scorer_of(
        settings_of("detection.components.user=sequence", *options),
        client=FakeClient((0, 2, 1), refuse_every=4),
        observer=lambda kind, _, decided: found.append(decided.copy()) if kind == 0 else None,
    )
    run(scorer, split(stream(EVENTS, 1), SIZES * 9))
    decided, mine = np.concatenate(found), np.concatenate(told)
    timed = ~np.isnan(mine)
    assert timed.any()
    assert not timed.all()
    np.testing.assert_array_equal(
        mine.astype(np.float32)[timed], np.maximum(decided["compensator"][timed], 0.0)
    )
    aided = np.concatenate(sources)
    np.testing.assert_array_equal(aided[timed] == 0, decided["unaided"][timed])
    assert 0 < np.count_nonzero(aided) < np.count_nonzero(timed)


@settings(max_examples=12 if COMPILED else 2, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    sizes=st.lists(st.integers(1, 40), max_size=12),
    options=st.sampled_from([(), FULL]),
)
def test_any_cut_into_batches_gives_the_same(
    seed: int, sizes: list[int], options: tuple[str, ...]
) -> None:
    chosen = settings_of(*ALL, *options)
    models = models_of(chosen, EAGER)
    events = stream(EVENTS // 2, seed)
    one, other = scorer_of(chosen, models=models), scorer_of(chosen, None, FakeClient((0, 2, 1)),
                                                              models=models)  # fmt: skip
    expected, found = run(one, split(events, [1])), run(other, split(events, [*sizes, 25]))
    assert_same_tables(other, one)
    mine, theirs = (sorted(o.value for o in some if o.kind == ALERT) for some in (found, expected))
    assert mine == theirs


@settings(max_examples=15 if COMPILED else 2, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000), kills=st.sets(st.integers(0, 30), min_size=1, max_size=8))
@pytest.mark.parametrize("options", [(), FULL], ids=["roomy", "full"])
def test_many_kills_change_nothing(seed: int, kills: set[int], options: tuple[str, ...]) -> None:
    chosen = settings_of(*ALL, *options)
    models = models_of(chosen, EAGER)
    batches = list(split(stream(EVENTS // 2, seed), SIZES * 4))
    delays = (0, 0, 2, 1, 0, 3)
    whole = scorer_of(chosen, client=FakeClient(delays, refuse_every=6), models=models)
    expected = run(whole, batches)
    store = DictStore()
    scorer = scorer_of(chosen, store, FakeClient(delays, refuse_every=6), models=models)
    found: list[Output] = []
    for i, batch in enumerate(batches):
        found += scorer.on_batch(batch)
        if i in kills:
            store = DictStore(store)
            scorer = scorer_of(chosen, store, FakeClient(delays, refuse_every=6), models=models)
            assert scorer.changes == []
    found += scorer.drain()
    assert sorted(o.value for o in found) == sorted(o.value for o in expected)
    assert_same_tables(scorer, whole)


def test_entities_do_not_influence_each_other_and_the_core_is_as_without() -> None:
    events = stream(EVENTS, 7, jitter_s=0.0)
    mine = [e for e in events if e.user.endswith(("1", "4"))]
    alone, together = (scorer_of(settings_of(*ALL)) for _ in range(2))
    plain = scorer_of(settings_of())
    run(alone, split(mine, [9]))
    run(together, split(events, [9]))
    run(plain, split(events, [9]))
    found = records(together)
    assert records(alone)
    for name, record in records(alone).items():
        assert record.tobytes() == found[name].tobytes(), name
    for one, other in zip(together.tables, plain.tables, strict=True):
        for field in ("level", "gap_mean", "burst", "scale", "mixture", "predicted"):
            assert one.rows[field].tobytes() == other.rows[field].tobytes()


def records(scorer: ShardScorer, kind: int = 0) -> dict[str, NDArray[np.void]]:
    table = scorer.tables[kind]
    return {id_of(table.rows[row]): table.parts[0][row] for row in range(table.used)}


def steady(n: int, gap_s: float, first: int = 0, start_s: float = 0.0) -> list[Event]:
    return [Event(start_s + gap_s * i, 1000.0, user="u-1", offset=first + i) for i in range(n)]


def test_a_gap_without_an_answer_is_left_out_and_a_long_outage_begins_a_window() -> None:
    scorer = scorer_of(settings_of(*ALL), client=(client := FakeClient()))
    run(scorer, split(steady(20, 30.0), [5]))
    before = records(scorer)["u-1"].copy()
    assert before["source"] == 1
    assert before["events"].sum() == 19
    client.down = True
    run(scorer, split(steady(PATIENCE, 30.0, 20, 600.0), [1]))
    # The first of them was still predicted; the last PATIENCE - 1 were not.
    table = records(scorer)["u-1"]
    assert table["events"].sum() == 20
    assert table["strangers"] == PATIENCE - 1
    run(scorer, split(steady(1, 30.0, 20 + PATIENCE, 600.0 + 30.0 * PATIENCE), [1]))
    begun = records(scorer)["u-1"]
    assert begun["source"] == 0
    assert begun["events"].sum() == 1
    client.down = False
    run(scorer, split(steady(3, 30.0, 21 + PATIENCE, 630.0 + 30.0 * PATIENCE), [1]))
    again = records(scorer)["u-1"]
    assert again["events"].sum() == 2  # the first of these had no prediction
    assert again["strangers"] == 2


def test_without_triton_the_baseline_fills_the_window() -> None:
    scorer = scorer_of(settings_of(*ALL, "triton.enabled=false"), client=NullClient())
    run(scorer, split(steady(30, 30.0), [7]))
    found = records(scorer)["u-1"]
    assert found["source"] == 0
    assert found["events"].sum() == 29


def test_the_record_follows_the_compensators() -> None:
    told: list[float] = []

    def keep(kind: int, advanced: NDArray[np.void], decided: NDArray[np.void]) -> None:
        if kind == 0:
            told.extend(decided["compensator"][advanced["timed"]].tolist())

    rng = np.random.default_rng(4)
    at = np.cumsum(rng.exponential(40.0, 60))
    scorer = scorer_of(settings_of(*ALL), observer=keep)
    run(scorer, split([Event(float(t), 10.0, user="u-1", offset=i) for i, t in enumerate(at)], [8]))
    state = np.zeros(1, SEQUENCE)
    take(state, np.zeros(len(told), np.int32), np.array(told))
    found = records(scorer)["u-1"]
    np.testing.assert_array_equal(found["events"], state[0]["events"])
    np.testing.assert_allclose(found["total"], state[0]["total"], rtol=1e-5)


def test_an_alert_names_it_in_plain_words() -> None:
    chosen = settings_of(
        "detection.components.user=sequence", "detection.detectors=silence",
        "detection.silence_kinds=", "detection.false_alerts_per_million=100",
        "sink.scores_topic=eddy.scores",
    )  # fmt: skip
    rng = np.random.default_rng(3)
    at = np.cumsum(rng.lognormal(4.0, 1.0, 40))
    events = [Event(float(t), 10.0, user="u-1", offset=i) for i, t in enumerate(at)]
    events += steady(60, 2.0, 40, float(at[-1]) + 2.0)
    scorer = scorer_of(chosen, models=models_of(chosen, EAGER))
    found = run(scorer, split(events, [10]))
    (alert, *_) = alerts(found)
    data = alert["data"]
    assert isinstance(data, dict)
    assert data["detector"] == "sequence"
    assert data["offset"] >= 40
    text = data["reasons"][0]["text"]
    assert text.split(":")[0] in ("change of rate", "too irregular", "too regular", "burst")
    assert "nan" not in text
    scores = [orjson.loads(o.value)["components"]["sequence"] for o in found if o.kind == SCORE]
    assert len(scores) == len(events)
    assert set(scores[-1]) == set(TELLS)
    judged = [one for one in scores if one["sequence_rate"] is not None]
    assert 20 <= len(judged) < len(events)
    assert all(one["sequence"] >= 0.0 for one in scores)


def test_it_joins_an_old_state_and_begins_from_nothing() -> None:
    store = DictStore()
    run(scorer_of(settings_of(), store), split(steady(12, 30.0), [3]))
    scorer = scorer_of(settings_of("detection.components.user=sequence"), store)
    assert scorer.changes == ["component sequence joins kind user: it begins from the prior"]
    run(scorer, [batch_of(steady(6, 30.0, 12, 360.0))])
    assert records(scorer)["u-1"]["events"].sum() >= 6


def test_its_bytes_are_in_the_plan() -> None:
    plan = memory_plan(settings_of("detection.components.user=sequence"), 1000)
    assert plan["user"]["bytes_by_part"]["sequence"] == SEQUENCE.itemsize + 1 == 249
    assert "sequence" not in plan["merchant"]["bytes_by_part"]
