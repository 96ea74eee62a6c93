"""Components that the settings name: the table, the walk, the vote, the log, and the reasons."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flink_jobs.alerts import ALERT, Output
from flink_jobs.components import NO_COMPONENTS, EventTells, KindComponents
from flink_jobs.scorer import ShardScorer
from flink_jobs.settings import SettingsError
from models.baselines.registry import Context, label
from models.detectors import FUSED
from models.prior import KindPrior, Prior, Tail
from state.columns import Strings
from state.events import hash_strings
from state.log import FORM_KEY, decode_batch
from state.table import id_of
from tests.flink_jobs.component_cases import STEP, registered
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

USER = "detection.components.user=step"
BOTH = (USER, 'detection.components.device=["pace", "step"]')
FULL = ("state.max_entities=7", "state.ttl_s=600", "detection.silence_kinds=user")
EVENTS = 240 if COMPILED else 60
SIZES = (5, 1, 9, 14, 3, 7, 2, 11)


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with registered():
        yield


def part_of(scorer: ShardScorer, kind: int, part: int = 0) -> dict[str, NDArray[np.void]]:
    """Return the records of a component by entity."""
    table = scorer.tables[kind]
    return {id_of(table.rows[row]): table.parts[part][row] for row in range(table.used)}


def test_without_components_the_table_has_no_parts() -> None:
    scorer = scorer_of(settings_of())
    assert [table.parts for table in scorer.tables] == [[], [], []]
    assert all(model.components is not None for model in models_of(settings_of()))
    assert KindComponents.of((), Context(KindPrior())) == NO_COMPONENTS


def test_each_kind_has_the_components_that_it_names_in_their_order() -> None:
    scorer = scorer_of(settings_of(*BOTH))
    assert [[part.name for part in t.layout] for t in scorer.tables] == [
        ["step"],
        [],
        ["pace", "step"],
    ]
    assert [[p.dtype for p in t.parts] for t in scorer.tables] == [[STEP], [], [STEP, STEP]]
    device = models_of(settings_of(*BOTH))[2]
    assert device.decide.names == (*FUSED, "pace.size", "step.size")
    assert device.decide.modes.offset.shape == (2, 10)


def test_what_a_component_remembers_follows_the_events_by_hand() -> None:
    events = [
        Event(0.0, 100.0, user="u-1", device="d-1", offset=0),
        Event(60.0, 200.0, user="u-2", device="d-1", offset=1),
        Event(120.0, float("nan"), user="u-1", device="d-2", offset=2),
        Event(180.0, 300.0, user="u-1", device="d-1", offset=3),
    ]
    scorer = scorer_of(settings_of("detection.components.device=pace"))
    run(scorer, split(events, [3]))
    found = part_of(scorer, 2)
    assert found["d-1"]["events"] == 3
    assert found["d-1"]["last"] == pytest.approx(np.log(300.0))
    u1, u2 = (int(h) for h in hash_strings(Strings.of([b"u-1", b"u-2"])))
    assert int(found["d-1"]["partners"]) == ((u1 * 31 + u2) * 31 + u1) % 2**64
    assert int(found["d-2"]["partners"]) == u1
    assert np.isnan(found["d-2"]["last"])


def test_a_component_that_reads_no_partner_is_given_none() -> None:
    scorer = scorer_of(settings_of(USER, "detection.partner_kinds={user = 'device'}"))
    run(scorer, [batch_of(stream(30, 1))])
    assert all(record["partners"] == 0 for record in part_of(scorer, 0).values())


def test_a_component_that_reads_partners_is_refused_where_a_kind_has_none() -> None:
    message = (
        r"components.user: pace expects the kind of its partners in \[detection.partner_kinds\], "
        r'found none for user; add user = "KIND"'
    )
    with pytest.raises(SettingsError, match=message):
        settings_of("detection.components.user=pace")
    settings_of("detection.components.user=pace", "detection.partner_kinds={user = 'device'}")


@settings(max_examples=10 if COMPILED else 2, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    sizes=st.lists(st.integers(1, 40), max_size=12),
    options=st.sampled_from([(), FULL]),
)
def test_any_cut_into_batches_gives_the_same(
    seed: int, sizes: list[int], options: tuple[str, ...]
) -> None:
    chosen = settings_of(*BOTH, *options)
    events = stream(EVENTS // 2, seed)
    one = scorer_of(chosen)
    expected = run(one, split(events, [1]))
    other = scorer_of(chosen, client=FakeClient((0, 2, 1)))
    found = run(other, split(events, [*sizes, 25]))
    assert_same_tables(other, one)
    mine, theirs = (sorted(o.value for o in some if o.kind == ALERT) for some in (found, expected))
    assert mine == theirs


@settings(max_examples=12 if COMPILED else 2, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000), kills=st.sets(st.integers(0, 30), min_size=1, max_size=8))
@pytest.mark.parametrize("options", [(), FULL], ids=["roomy", "full"])
def test_many_kills_change_nothing(seed: int, kills: set[int], options: tuple[str, ...]) -> None:
    chosen = settings_of(*BOTH, *options)
    models = models_of(chosen)
    batches = list(split(stream(160 if COMPILED else 50, seed), SIZES * 4))
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


def test_entities_do_not_influence_each_other() -> None:
    events = stream(EVENTS, 7, jitter_s=0.0)
    mine = [e for e in events if e.user.endswith(("1", "4"))]
    alone, together = (scorer_of(settings_of(*BOTH)) for _ in range(2))
    run(alone, split(mine, [9]))
    run(together, split(events, [9]))
    for name, record in part_of(alone, 0).items():
        assert record.tobytes() == part_of(together, 0)[name].tobytes(), name


def test_a_row_that_is_given_away_begins_anew() -> None:
    chosen = settings_of(USER, "state.max_entities=2")
    events = [Event(60.0 * i, 10.0, user=f"u-{i % 5}", offset=i) for i in range(25)]
    scorer = scorer_of(chosen)
    run(scorer, split(events, [4]))
    table = scorer.tables[0]
    assert table.parts[0]["events"][: table.used].tolist() == table.rows["events"][:2].tolist()


def test_an_entity_past_its_time_to_live_begins_anew() -> None:
    scorer = scorer_of(settings_of(USER, "state.ttl_s=600"))
    run(scorer, [batch_of([Event(0.0, 10.0, user="u-1"), Event(60.0, 10.0, user="u-1")])])
    assert part_of(scorer, 0)["u-1"]["events"] == 2
    run(scorer, [batch_of([Event(900.0, 10.0, user="u-1")], first_offset=2)])
    assert part_of(scorer, 0)["u-1"]["events"] == 1


def test_growth_keeps_the_parts() -> None:
    scorer = scorer_of(settings_of(USER))
    events = [Event(i, 10.0 + i, user=f"u-{i}", offset=i) for i in range(300)]
    assert len(scorer.tables[0].parts[0]) == 64
    run(scorer, split(events, [50]))
    assert len(scorer.tables[0].parts[0]) == len(scorer.tables[0].rows) >= 300
    last = scorer.tables[0].parts[0]["last"][:300]
    np.testing.assert_allclose(last, np.log([10.0 + i for i in range(300)]))


# -- votes and reasons -----------------------------------------------------------------------------

QUIET = [Event(60.0 * i, 1000.0 + i % 3, user="u-1", offset=i) for i in range(30)]
WILD = [Event(1800.0, 9e6, user="u-1", offset=30)]
TAILED = Prior(
    {
        "default": replace(
            PRIOR.of("user"),
            tails={"step.size": Tail(0.0, 3.0)},
            degraded_tails={"step.size": Tail(0.0, 3.0)},
        )
    }
)


def test_a_component_votes_and_its_reason_reads_well() -> None:
    chosen = settings_of(
        USER, "detection.detectors=silence", "detection.silence_kinds=",
        "detection.false_alerts_per_million=10",
    )  # fmt: skip
    scorer = scorer_of(chosen, models=models_of(chosen, TAILED))
    (alert,) = alerts(run(scorer, [batch_of([*QUIET, *WILD])]))
    data = alert["data"]
    assert isinstance(data, dict)
    assert data["detector"] == "step.size"
    (reason,) = data["reasons"]
    assert reason["text"] == "a step of 9.1 sd to 9e+06 after 9e+06, event 31"
    assert data["typical"]["value"] == pytest.approx(9e6)
    assert data["expected_values"]["high"] == pytest.approx(9e6 * np.exp(2.5758 * 0.5), rel=1e-3)
    without = settings_of("detection.detectors=silence", "detection.silence_kinds=")
    assert alerts(run(scorer_of(without), [batch_of([*QUIET, *WILD])])) == []


def test_what_it_votes_is_in_the_fused_score() -> None:
    seen: list[NDArray[np.void]] = []
    chosen = settings_of(USER, "detection.detectors=silence", "detection.min_events=1")
    scorer = scorer_of(
        chosen, models=models_of(chosen, TAILED),
        observer=lambda kind, _told, decided: seen.append(decided.copy()) if kind == 0 else None,
    )  # fmt: skip
    run(scorer, [batch_of([*QUIET, *WILD])])
    decided = np.concatenate(seen)
    assert decided["surprise"].shape == (31, 9)
    step = abs(np.log(9e6) - np.log(1002.0))
    assert decided["surprise"][30, 8] == pytest.approx(step, rel=1e-5)
    assert decided["log_p"][30] == pytest.approx(-3.0 * step, rel=1e-5)


def test_a_surprise_without_a_sentence_has_one_that_names_it() -> None:
    kind = KindComponents.of(("pace",), Context(KindPrior()))
    told = EventTells(kind, (np.array([[3.0, 1.0, 2.0, 4.0, 5.0]], np.float32),), 0)
    text = told.reason(label("pace", "size"), 1.0, float)
    assert text == "pace.size is not as this entity's history suggests"
    assert told.expected() is None


def test_a_number_that_is_not_known_is_said_so() -> None:
    kind = KindComponents.of(("step",), Context(KindPrior()))
    told = EventTells(kind, (np.array([[3.0, np.nan, 2.0, 4.0, 5.0]], np.float32),), 0)
    assert told.reason("step.size", 7.0, float) == "a step of 3.0 sd to 7 after unknown, event 4"
    assert told.expected() is None


# -- settings --------------------------------------------------------------------------------------


def test_an_unknown_component_is_refused_with_the_nearest() -> None:
    with pytest.raises(SettingsError, match="components.user: unknown component stepp; did you"):
        settings_of("detection.components.user=stepp")
    with pytest.raises(SettingsError, match="unknown component zzz; known are .*pace.*step"):
        settings_of("detection.components.user=zzz")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("detection.components.card=step", r'expected kinds of \[event.entities\].*found "card"'),
        ("detection.components.user=step,step", "expected up to 8 names, each once"),
        ("detection.components={user = 3}", "a table of lists of text"),
        ("detection.components=step", "a table of lists of text"),
    ],
)
def test_wrong_settings_of_components(override: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        settings_of(override)


def test_settings_keep_components_on_their_way_to_the_job() -> None:
    chosen = settings_of(*BOTH)
    assert chosen.detection.components == (("user", ("step",)), ("device", ("pace", "step")))
    assert type(chosen).from_json(chosen.to_json()) == chosen
    assert chosen.settings_hash() != settings_of().settings_hash()


# -- stored ----------------------------------------------------------------------------------------


def test_the_log_keeps_partners_only_where_a_component_reads_them() -> None:
    sizes = {}
    for options in ((), (USER,), ("detection.components.device=pace",)):
        store = DictStore()
        run(scorer_of(settings_of(*options), store), [batch_of(stream(50, 1))])
        logged = decode_batch(store[2])
        sizes[options] = len(store[2])
        assert sorted(logged.hashes) == ([0] if "device" in str(options) else [])
    events = 50
    plain, user, device = sizes.values()
    assert plain == user == device - 8 * events


def kept(options: tuple[str, ...], events: list[Event]) -> DictStore:
    store = DictStore()
    run(scorer_of(settings_of(*options), store), split(events, [11]))
    return store


def test_a_component_joins_an_old_state_and_begins_from_the_prior() -> None:
    events = stream(240, 3)  # enough that the log no longer holds the first ones
    before, after = events[:120], events[120:]
    store = kept((), before)
    chosen = settings_of(*BOTH)
    scorer = scorer_of(chosen, store)
    assert scorer.changes == [
        "component pace joins kind device: it begins from the prior",
        "component step joins kind device: it begins from the prior",
        "component step joins kind user: it begins from the prior",
    ]
    plain = scorer_of(settings_of(), DictStore(kept((), before)))
    run(scorer, split(after, [11]))
    run(plain, split(after, [11]))
    table = scorer.tables[0]
    begun = table.begun[0][: table.used] == 1
    assert begun.any()
    assert not begun.all()
    # It has seen what was replayed and what came after, and nothing before.
    seen = table.parts[0]["events"][: table.used]
    assert (seen[begun] >= 1).all()
    assert (seen[begun] <= table.rows["events"][: table.used][begun]).all()
    assert (seen[~begun] == 0).all()
    for mine, other in zip(scorer.tables, plain.tables, strict=True):
        assert mine.memory.tobytes() == other.memory.tobytes()
        for name in ("level", "gap_mean", "shift_up", "events", "partners_now"):
            assert mine.rows[name].tobytes() == other.rows[name].tobytes(), name
    again = scorer_of(chosen, DictStore(store))
    assert again.changes == []
    assert_same_tables(again, scorer)


def test_what_was_decided_before_a_component_joined_stays_decided() -> None:
    chosen = (
        *("detection.detectors=silence", "detection.silence_kinds=", "state.page_rows=64"),
        "state.log_min_bytes=1000000",
    )
    later = [Event(1830.0 + 0.1 * i, 10.0 * (1 + i % 2), user="u-1", offset=31 + i) for i in (0, 1)]
    store = DictStore()
    plain = scorer_of(settings_of(*chosen), store)
    assert alerts(run(plain, split([*QUIET, *WILD], [7]))) == []
    mine = settings_of(USER, *chosen)
    models = models_of(mine, TAILED)
    first = scorer_of(mine, store, models=models)
    assert first.changes == ["component step joins kind user: it begins from the prior"]
    assert_same_rows(first, plain)  # the wild value opened no incident: nobody was told of one
    # Killed after the join, with the log of before it: the component still had no vote then.
    second = scorer_of(mine, DictStore(store), models=models)
    assert second.changes == []
    assert_same_tables(second, first)
    for scorer in (first, second):
        (alert,) = alerts(run(scorer, [batch_of(later, first_offset=31)]))
        assert alert["data"]["detector"] == "step.size"  # type: ignore[index]
    # What was decided with it is decided with it again.
    store = DictStore(store)
    third = scorer_of(mine, store, models=models)
    assert_same_tables(third, first)
    assert alerts(run(third, [batch_of([Event(1832.0, 9e6, user="u-1")], first_offset=33)])) == []
    assert json.loads(store[FORM_KEY])["joined"] == {"user": {"step": plain.seq}}
    without = settings_of(*chosen)
    scorer_of(without, store, models=models_of(without, TAILED))
    assert "joined" not in json.loads(store[FORM_KEY])
    again = scorer_of(mine, store, models=models)
    assert json.loads(store[FORM_KEY])["joined"] == {"user": {"step": again.seq}}


def assert_same_rows(one: ShardScorer, other: ShardScorer) -> None:
    for mine, theirs in zip(one.tables, other.tables, strict=True):
        assert mine.rows[: mine.used].tobytes() == theirs.rows[: theirs.used].tobytes()


def test_a_component_leaves_and_what_it_knew_is_dropped() -> None:
    events = stream(EVENTS, 4)
    store = kept(BOTH, events[: EVENTS // 2])
    scorer = scorer_of(settings_of("detection.components.device=pace"), store)
    assert scorer.changes == [
        "component step leaves kind device: what it knew is dropped",
        "component step leaves kind user: what it knew is dropped",
    ]
    whole = scorer_of(settings_of(*BOTH))
    run(whole, split(events, [11]))
    run(scorer, split(events[EVENTS // 2 :], [11]))
    for name, record in part_of(scorer, 2).items():
        assert record.tobytes() == part_of(whole, 2, 0)[name].tobytes()


def test_a_component_of_another_version_or_prior_is_refused() -> None:
    store = kept((USER,), stream(60, 5))
    with registered(version=2), pytest.raises(ValueError, match="component step of kind user was"):
        scorer_of(settings_of(USER), DictStore(store))
    other = Prior({"default": replace(PRIOR.of("user"), value_within_var=4.0)})
    chosen = settings_of(USER)
    with pytest.raises(ValueError, match="written with model"):
        scorer_of(chosen, DictStore(store), models=models_of(chosen, other))
