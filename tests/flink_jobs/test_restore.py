"""A shard killed anywhere and restored from its map goes on as if nothing had happened.

The most important promise of the product: the tables are the same to the byte, and every alert
comes once, with the same content.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flink_jobs.alerts import Output
from flink_jobs.scorer import ShardScorer
from flink_jobs.settings import Settings
from state.events import EventBatch
from tests.flink_jobs.score_cases import (
    COMPILED,
    START_MS,
    DictStore,
    FakeClient,
    assert_same_tables,
    models_of,
    scorer_of,
    settings_of,
    split,
    stream,
)

Step = EventBatch | int  # a batch, or a tick of the clock to this watermark
SIZES = (5, 1, 9, 14, 3, 7, 2, 11)
DELAYS = (0, 0, 2, 1, 0, 3, 0, 0, 1)
EVENTS = 420 if COMPILED else 120
FULL = ("state.max_entities=7", "state.ttl_s=600", "detection.silence_kinds=user,merchant,device")
ROOMY = ("detection.silence_kinds=user,merchant",)


def steps_of(seed: int, events: int = EVENTS) -> list[Step]:
    """Return batches with ticks between them."""
    sizes = SIZES * (events // sum(SIZES) + 1)
    steps: list[Step] = []
    for i, batch in enumerate(split(stream(events, seed), sizes)):
        steps.append(batch)
        if i % 7 == 6:
            steps.append(int(batch.time_ms.max()) + 30_000)
    return steps


def client(first: int = 0) -> FakeClient:
    return FakeClient(DELAYS[first % len(DELAYS) :] + DELAYS, refuse_every=6)


def play(scorer: ShardScorer, steps: Sequence[Step]) -> list[Output]:
    found: list[Output] = []
    for step in steps:
        if isinstance(step, int):
            # Whether a tick does anything depends on what was decided by then.
            found += [*scorer.drain(), *scorer.tick(step)]
        else:
            found += scorer.on_batch(step)
    return found


def end(scorer: ShardScorer) -> list[Output]:
    return list(scorer.drain())


def by_kind(outputs: Sequence[Output]) -> dict[str, list[Output]]:
    return {kind: [o for o in outputs if o.kind == kind] for kind in ("alert", "late")}


class Undisturbed:
    """A run without a fault, and the map as each step left it."""

    def __init__(self, options: Settings, steps: list[Step]) -> None:
        self.options, self.steps = options, steps
        self.models = models_of(options)
        store = DictStore()
        self.scorer = scorer_of(options, store, client(), models=self.models)
        self.outputs: list[list[Output]] = []
        self.snapshots: list[DictStore] = []
        self.in_flight: list[int] = []
        for step in steps:
            self.outputs.append(play(self.scorer, [step]))
            self.snapshots.append(DictStore(store))
            self.in_flight.append(self.scorer.in_flight)
        self.store = store
        self.outputs.append(end(self.scorer))

    def all_outputs(self) -> list[Output]:
        return [o for some in self.outputs for o in some]


@pytest.fixture(scope="module", params=[FULL, ROOMY], ids=["full", "roomy"])
def undisturbed(request: pytest.FixtureRequest) -> Undisturbed:
    return Undisturbed(settings_of(*request.param), steps_of(seed=3))


def test_the_run_has_what_a_restore_must_cope_with(undisturbed: Undisturbed) -> None:
    outputs = undisturbed.all_outputs()
    alerts = by_kind(outputs)["alert"]
    assert len({o.value for o in alerts}) == len(alerts) > (15 if COMPILED else 4)
    assert any(b'"detector":"silence"' in o.value for o in alerts)
    assert any(b'"degraded":true' in o.value for o in alerts) or not COMPILED
    assert any(b'"degraded":false' in o.value for o in alerts)
    assert by_kind(outputs)["late"] or not COMPILED
    assert max(undisturbed.in_flight) >= (3 if COMPILED else 2)
    assert undisturbed.scorer.counters["page_bytes"] > 0
    # Pages were written and the log behind them removed, so a restore needs both.
    assert any(key < 0 for key in undisturbed.store)
    assert min(key for key in undisturbed.store if key > 0) > 2


def test_restore_after_every_step(undisturbed: Undisturbed) -> None:
    stride = 1 if COMPILED else 6
    for i in range(0, len(undisturbed.steps), stride):
        store = DictStore(undisturbed.snapshots[i])
        after = scorer_of(undisturbed.options, store, client(i), models=undisturbed.models)
        assert after.in_flight == undisturbed.in_flight[i]
        before = [o for some in undisturbed.outputs[: i + 1] for o in some]
        outputs = before + play(after, undisturbed.steps[i + 1 :]) + end(after)
        assert by_kind(outputs) == by_kind(undisturbed.all_outputs()), f"killed after step {i}"
        assert_same_tables(after, undisturbed.scorer)
        assert after.watermark_ms == undisturbed.scorer.watermark_ms
        assert after.seq == undisturbed.scorer.seq


def test_a_restore_alone_writes_nothing(undisturbed: Undisturbed) -> None:
    for i in range(0, len(undisturbed.steps), 9):
        store = DictStore(undisturbed.snapshots[i])
        scorer_of(undisturbed.options, store, client(), models=undisturbed.models)
        assert store == undisturbed.snapshots[i]


@settings(max_examples=25 if COMPILED else 3, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    kills=st.sets(st.integers(0, 30), min_size=1, max_size=8),
    full=st.booleans(),
)
def test_many_kills_change_nothing(seed: int, kills: set[int], full: bool) -> None:
    options = settings_of(*(FULL if full else ROOMY))
    steps = steps_of(seed, 160 if COMPILED else 60)
    whole = Undisturbed(options, steps)
    store = DictStore()
    scorer = scorer_of(options, store, client(), models=whole.models)
    outputs: list[Output] = []
    for i, step in enumerate(steps):
        outputs += play(scorer, [step])
        if i in kills:
            store = DictStore(store)
            scorer = scorer_of(options, store, client(i), models=whole.models)
    outputs += end(scorer)
    assert by_kind(outputs) == by_kind(whole.all_outputs())
    assert_same_tables(scorer, whole.scorer)


def test_the_log_stays_within_its_limit(undisturbed: Undisturbed) -> None:
    options = undisturbed.options.state
    scorer = undisturbed.scorer
    table_bytes = sum(t.used for t in scorer.tables) * 600
    log = sum(len(v) for k, v in undisturbed.store.items() if k > 0)
    limit = max(options.log_min_bytes, options.log_ratio * table_bytes)
    assert log <= 2 * limit + 20_000
    # One page per 4 rows, and no more.
    pages = [k for k in undisturbed.store if k < 0]
    assert len(pages) <= sum(-(-t.used // options.page_rows) for t in scorer.tables)


def test_crash_loops_do_not_let_the_log_grow() -> None:
    """Each life is too short to write all pages; together they must still finish the rounds."""
    options = settings_of(*ROOMY, "state.log_ratio=2.0")
    models = models_of(options)
    store = DictStore()
    kept = []
    for step in steps_of(5, 600 if COMPILED else 150):
        scorer = scorer_of(options, store, FakeClient(), models=models)
        play(scorer, [step])
        kept.append(sum(k > 0 and k % 2 == 0 for k in store))
    batches = len(kept)
    assert kept[-1] < 0.6 * batches


def test_restore_of_an_empty_map_is_a_new_scorer() -> None:
    scorer = scorer_of(settings_of())
    assert scorer.seq == 0
    assert scorer.in_flight == 0
    assert [t.used for t in scorer.tables] == [0, 0, 0]


def test_restore_needs_no_answer_for_what_was_decided(undisturbed: Undisturbed) -> None:
    """Only the batches in flight are asked for again; the log holds the other answers."""
    for i in range(0, len(undisturbed.steps), 11):
        asked = client()
        store = DictStore(undisturbed.snapshots[i])
        scorer_of(undisturbed.options, store, asked, models=undisturbed.models)
        assert asked.submitted == undisturbed.in_flight[i]


def test_a_fixed_nondeterministic_client_is_noticed() -> None:
    """The comparison has teeth: other answers give other tables."""
    options = settings_of(*ROOMY)
    steps = steps_of(3, 60)
    one = scorer_of(options, client=FakeClient(refuse_every=0))
    other = scorer_of(options, client=FakeClient(refuse_every=2))
    play(one, steps), end(one)
    play(other, steps), end(other)
    with pytest.raises(AssertionError, match="field"):
        assert_same_tables(other, one)


def test_time_before_the_epoch_survives_a_restore() -> None:
    options = settings_of("state.ttl_s=60")
    shift = START_MS + 10_000_000
    steps = []
    for batch in split(stream(60, 2), [10]):
        batch.time_ms[:] -= shift
        steps.append(batch)
    whole = Undisturbed(options, list(steps))
    store = DictStore(whole.snapshots[2])
    after = scorer_of(options, store, client(), models=whole.models)
    play(after, steps[3:]), end(after)
    assert_same_tables(after, whole.scorer)
    assert np.all(whole.scorer.tables[0].seen_ms[: whole.scorer.tables[0].used] < 0)
