"""Models that come, go and change places in a running shard, and what a restore makes of it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jsonschema
import numpy as np
import orjson
import pytest
from numpy.typing import NDArray

from flink_jobs.alerts import Output
from flink_jobs.decide import slot_of
from flink_jobs.intensity_protocol import Ticket
from flink_jobs.memories import WARM_EVENTS, Memory, encoder_digest, share
from flink_jobs.model_events import ModelEvent
from flink_jobs.rollout import FEWEST_SEEN
from flink_jobs.scorer import ShardScorer
from flink_jobs.serving import NOBODY, ServedModel, Serving
from flink_jobs.trial import IN_CHARGE, SAME_MS, SHADOW, Finding, Trial
from models.prior import KindPrior, Prior, Tail
from models.tpp.encoder import Encoder
from state.events import EventBatch
from tests.flink_jobs.score_cases import (
    COMPILED,
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

CONTRACT = Path(__file__).parents[2] / "flink_jobs" / "contract"
EVENTS = 360 if COMPILED else 90
SIZES = (5, 1, 9, 14, 3, 7, 2, 11)


def other_encoder() -> Encoder:
    """Return weights unlike those of the base."""
    base = encoder()
    return Encoder(base.w1 * np.float32(0.5), base.b1, base.w2 * np.float32(2.0), base.b2)


OTHER = Memory(encoder_digest(other_encoder()), other_encoder())


def first(client: FakeClient | None = None) -> ServedModel:
    return ServedModel(1, client or FakeClient(), "tpp-one")


def second(client: FakeClient | None = None, prior: Prior | None = None) -> ServedModel:
    return ServedModel(2, client or FakeClient(), "tpp-two", prior=prior)


def third(client: FakeClient | None = None) -> ServedModel:
    return ServedModel(3, client or FakeClient(), "tpp-three", OTHER)


@dataclass
class Switch:
    """A step of a script: from here on these answer."""

    serving: Serving


Step = EventBatch | Switch


def script() -> list[Step]:
    """Return batches with switches: shadow, promotion, another encoder, its promotion, and back."""
    batches: list[Step] = list(split(stream(EVENTS, 5), SIZES * 100))
    one, two, three = first(), second(), third()
    switches = [
        Serving(one, two),
        Serving(two, one),
        Serving(two, three, (one,)),
        Serving(three, two, (one,)),
        Serving(two, None, (one, three)),
        Serving(two, None, (one,)),
        Serving(two, three, (one,)),
    ]
    each = len(batches) // (len(switches) + 1)
    for number, serving in enumerate(switches, 1):
        batches.insert(number * (each + 1) - 1, Switch(serving))
    return batches


def play(scorer: ShardScorer, steps: Sequence[Step]) -> list[Output]:
    found: list[Output] = []
    for step in steps:
        if isinstance(step, Switch):
            found += scorer.drain()  # whoever is asked again after a kill is then the same
            scorer.serve(step.serving)
        else:
            found += scorer.on_batch(step)
    return found


@pytest.mark.compiled
def test_a_shard_killed_anywhere_among_switches_goes_on_as_if_nothing_had_happened() -> None:
    options = settings_of("detection.silence_kinds=user,merchant")
    models, steps, store = models_of(options), script(), DictStore()
    serving = Serving(first())
    scorer = ShardScorer(options, models, store, serving)
    outputs, snapshots, servings = [], [], []
    for step in steps:
        outputs.append(play(scorer, [step]))
        serving = step.serving if isinstance(step, Switch) else serving
        snapshots.append(DictStore(store))
        servings.append(serving)
    outputs.append(list(scorer.drain()))
    everything = [o for some in outputs for o in some]
    assert {a["data"]["model"] for a in alerts(everything)} >= {  # type: ignore[index]
        "intensity/1", "intensity/2", "intensity/3"
    }  # fmt: skip
    for i in range(0, len(steps), 1 if COMPILED else 7):
        after = ShardScorer(options, models, DictStore(snapshots[i]), servings[i])
        rest = play(after, steps[i + 1 :]) + list(after.drain())
        found = [o for some in outputs[: i + 1] for o in some] + rest
        assert found == everything, f"killed after step {i}"
        assert_same_tables(after, scorer)


def test_the_memories_of_another_encoder_follow_it_from_where_they_joined() -> None:
    """A memory with the base's own weights equals the base's, where it saw the whole entity."""
    options = settings_of()
    twin = ServedModel(2, FakeClient(), "tpp-twin", Memory("twin", encoder()))
    models, batches = models_of(options), list(split(stream(EVENTS, 8), SIZES * 100))
    scorer = ShardScorer(options, models, DictStore(), Serving(first(), twin))
    run(scorer, batches)
    half = ShardScorer(options, models, DictStore(), Serving(first()))
    run(half, batches[: len(batches) // 2])
    half.serve(Serving(first(), twin))
    run(half, batches[len(batches) // 2 :])
    seen_late = 0
    for whole, late in zip(scorer.tables, half.tables, strict=True):
        record, base = whole.parts[0][: whole.used], whole.memory[: whole.used]
        np.testing.assert_allclose(record["h"], base, rtol=1e-4, atol=1e-4)
        assert record["whole"].all()
        assert (record["events"] == whole.rows["events"][: whole.used]).all()
        record = late.parts[0][: late.used]
        joined = late.begun[0][: late.used] > 0
        began = joined & (record["whole"] == 1)
        np.testing.assert_allclose(record["h"][began], base[began], rtol=1e-4, atol=1e-4)
        cut = joined & (record["whole"] == 0)
        seen_late += int(cut.sum())
        assert (record["events"][cut] < late.rows["events"][: late.used][cut]).all()
        # What fades by count at once forgets its beginning first.
        assert not np.allclose(record["h"][cut], base[cut], atol=1e-3)
    assert seen_late > 3
    assert 0.0 < share(half.warmth.seen("twin")) < 1.0
    assert share(scorer.warmth.seen("twin")) == 1.0


@pytest.mark.compiled
def test_memories_are_warm_from_the_first_event_or_after_enough() -> None:
    options = settings_of()
    events = stream(EVENTS, 9, entities=1, partitions=1, jitter_s=0.0)
    scorer = ShardScorer(options, models_of(options), DictStore(), Serving(first()))
    batches = list(split(events, (10,) * 1000))
    run(scorer, batches[:1])
    scorer.serve(Serving(first(), third()))
    run(scorer, batches[1:])
    for table in scorer.tables:
        record = table.parts[0][: table.used]
        assert ((record["events"] >= WARM_EVENTS) | (record["whole"] == 1)).any()
    assert share(scorer.warmth.seen(OTHER.digest)) > 0.5


def test_a_restored_state_tells_whose_memories_are_warm() -> None:
    options = settings_of()
    models, batches, store = (
        models_of(options),
        list(split(stream(EVENTS, 3), SIZES * 100)),
        DictStore(),
    )
    run(ShardScorer(options, models, store, Serving(third(), None, (first(),))), batches)
    again = ShardScorer(options, models, DictStore(store), Serving(third(), None, (first(),)))
    seen = again.warmth.seen(OTHER.digest)
    assert seen[1] > 0
    assert share(seen) == 1.0
    without = DictStore()
    run(ShardScorer(options, models, without, Serving(first())), batches)
    cold = ShardScorer(options, models, without, Serving(third(), None, (first(),)))
    seen = cold.warmth.seen(OTHER.digest)
    assert share(seen) == 0.0
    assert seen[1] >= FEWEST_SEEN, "that is known at once"
    fresh = ShardScorer(options, models, DictStore(), Serving(third(), None, (first(),)))
    assert math.isnan(share(fresh.warmth.seen(OTHER.digest)))


def test_without_a_model_the_alerts_say_that_they_are_degraded() -> None:
    options, batches = settings_of(), list(split(stream(EVENTS, 2), SIZES * 100))
    scorer = ShardScorer(options, models_of(options), DictStore(), Serving(NOBODY, first()))
    found = alerts(run(scorer, batches))
    assert found
    assert {a["data"]["model"] for a in found} == {None}  # type: ignore[index]
    assert any(a["data"]["degraded"] for a in found)  # type: ignore[index]
    assert scorer.degraded


def test_predictions_are_judged_by_the_calibration_of_whoever_made_them() -> None:
    options = settings_of("detection.detectors=burst,mark", "detection.silence_kinds=user")
    deaf = Prior({"default": KindPrior(tails={n: Tail(0.0, 1e-9) for n in ("burst", "mark")})})
    batches = list(split(stream(EVENTS, 2), SIZES * 100))
    half = len(batches) // 2
    scorer = ShardScorer(options, models_of(options), DictStore(), Serving(first()))
    before = alerts(run(scorer, batches[:half]))
    scorer.serve(Serving(second(prior=deaf), None, (first(),)))
    after = alerts(run(scorer, batches[half:]))
    plain = ShardScorer(options, models_of(options), DictStore(), Serving(first()))
    run(plain, batches[:half])
    usual = alerts(run(plain, batches[half:]))
    gaps = [a for a in usual if a["data"]["detector"] != "silence"]  # type: ignore[index]
    heard = [a for a in after if a["data"]["detector"] != "silence"]  # type: ignore[index]
    assert len(heard) < len(gaps)
    assert {a["data"]["model"] for a in heard} <= {"intensity/1", None}  # type: ignore[index]
    assert before == alerts(run(ShardScorer(
        options, models_of(options), DictStore(), Serving(first())), batches[:half]))  # fmt: skip


def test_a_trial_of_the_same_model_finds_no_difference() -> None:
    options = settings_of("detection.silence_kinds=user,merchant")
    scorer = ShardScorer(options, models_of(options), DictStore(), Serving(first(), second()))
    outputs = run(scorer, split(stream(EVENTS, 4), SIZES * 100))
    trial = scorer.trial
    assert trial is not None
    report = orjson.loads(orjson.dumps(trial.report(scorer.tables, 1.0)))
    event = ModelEvent("shadow_report", 1, "tpp-one", (2, "tpp-two"))
    message = orjson.loads(event.output("eddy/job", "intensity", 0, 1, report).value)
    schema = json.loads((CONTRACT / "model.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(message)
    assert report["compared"]["merchant"] > EVENTS // 2
    assert report["nats"]["in_charge"] == report["nats"]["shadow"]
    assert set(report["difference_squares"].values()) == {0.0}
    assert report["pit"]["in_charge"] == report["pit"]["shadow"]
    assert sum(report["pit"]["shadow"]["merchant"]) == report["compared"]["merchant"]
    assert (report["alerts"]["come"], report["alerts"]["go"]) == (0, 0)
    assert report["alerts"]["both"] == len(alerts(outputs))
    assert (report["missed_batches"], report["warm"]) == (0, 1.0)


@pytest.mark.parametrize("side", ["shadow", "in charge"])
def test_batches_that_one_side_does_not_answer_bias_no_likelihood(side: str) -> None:
    """Gap and mark were predicted before, the amount is not judged: they are not compared."""
    options = settings_of("detection.silence_kinds=user,merchant")
    half, whole = FakeClient(refuse_every=2), FakeClient()
    serving = (
        Serving(first(whole), second(half))
        if side == "shadow"
        else Serving(first(half), second(whole))
    )
    scorer = ShardScorer(options, models_of(options), DictStore(), serving)
    run(scorer, split(stream(EVENTS, 4), SIZES * 100))
    trial = scorer.trial
    assert trial is not None
    compared = sum(tally.compared for tally in trial.tallies)
    assert compared > (EVENTS // 5 if COMPILED else 0)
    for tally in trial.tallies:
        assert tally.nats[0] == tally.nats[1]
        assert tally.square == 0.0


def test_a_trial_changes_nothing_of_the_decisions() -> None:
    options = settings_of("detection.silence_kinds=user,merchant")
    batches = list(split(stream(EVENTS, 6), SIZES * 100))
    alone = scorer_of(options)
    wide = Prior({"default": KindPrior(tails={"amount": Tail(0.0, 0.1)})})
    with_trial = ShardScorer(
        options, models_of(options), DictStore(), Serving(first(), second(prior=wide))
    )
    plain, tried = run(alone, batches), run(with_trial, batches)
    assert [a["id"] for a in alerts(plain)] == [a["id"] for a in alerts(tried)]
    assert_same_tables(with_trial, alone)
    assert with_trial.trial is not None
    trial = with_trial.trial
    # So few events alert seldom.
    assert trial.alone[IN_CHARGE] > trial.alone[SHADOW] or not COMPILED
    assert {finding.side for finding in trial.examples()} <= {IN_CHARGE, SHADOW}


def test_findings_of_two_entities_in_one_row_are_two() -> None:
    trial = Trial(first(), second(), ["user"], [])
    trial._found(Finding(0, 3, 100, IN_CHARGE, 1_000))
    trial._found(Finding(0, 3, 2_000, SHADOW, 2_000))
    assert (trial.both, trial.alone) == (0, [1, 1])
    trial._found(Finding(0, 3, 100, SHADOW, 2_500))
    assert (trial.both, trial.alone) == (1, [0, 1])
    assert [one.first_ms for one in trial.examples()] == [2_000]


def test_rows_that_entities_take_over_mix_no_findings() -> None:
    """With room for two entities, and models alike: each alert is met, whoever has the row now."""
    options = settings_of(
        "detection.silence_kinds=user,merchant", "state.max_entities=2", "state.ttl_s=60"
    )
    scorer = ShardScorer(options, models_of(options), DictStore(), Serving(first(), second()))
    outputs = run(scorer, split(stream(EVENTS, 4), SIZES * 100))
    trial = scorer.trial
    assert trial is not None
    assert (trial.both, trial.alone) == (len(alerts(outputs)), [0, 0])


def test_only_findings_that_are_due_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Trial(first(), second(), ["user"], [])
    for row in range(1_000):
        trial._found(Finding(0, row, 0, SHADOW, 1_000 * row))
    trial._latest_ms = SAME_MS + 2_500
    looked: list[int] = []
    monkeypatch.setattr(Finding, "__getattribute__", lambda self, name: _looked(self, name, looked))
    trial._close()
    monkeypatch.undo()
    assert [one.row for one in trial.old] == [0, 1, 2]
    assert len(looked) <= 4
    assert trial.alone == [0, 1_000]
    assert [one.row for one in trial.examples()] == list(range(990, 1_000))


def _looked(self: Finding, name: str, looked: list[int]) -> object:
    if name == "time_ms":
        looked.append(1)
    return object.__getattribute__(self, name)


class _Never:
    """A ticket that no answer comes to."""

    def done(self) -> bool:
        return False

    def result(self, timeout_s: float) -> None:
        assert timeout_s == 0.0, "the shadow was waited for"


class SlowClient(FakeClient):
    """Takes everything and answers nothing."""

    def submit(self, x: NDArray[np.float32]) -> Ticket:
        self.submitted += len(x) > 0
        return _Never()


def test_a_shadow_that_does_not_answer_costs_nothing() -> None:
    options = settings_of()
    batches = list(split(stream(EVENTS, 6), SIZES * 100))
    silent = FakeClient()
    silent.down = True
    plain = alerts(run(scorer_of(options), batches))
    for client in (silent, SlowClient()):
        scorer = ShardScorer(
            options, models_of(options), DictStore(), Serving(first(), second(client))
        )
        found = [o for batch in batches for o in scorer.on_batch(batch)] + list(scorer.drain())
        assert [a["id"] for a in alerts(found)] == [a["id"] for a in plain]
        assert scorer.trial is not None
        assert scorer.trial.missed > (len(batches) // 3 if COMPILED else -1)
        assert sum(tally.compared for tally in scorer.trial.tallies) == 0


def test_every_version_has_a_slot_that_rows_can_hold() -> None:
    slots = [slot_of(version) for version in range(1, 600)]
    assert min(slots) == 1
    assert max(slots) == 255
    assert len(set(slots[:255])) == 255
    assert slot_of(256) == slot_of(1)


def test_a_label_names_model_and_weights() -> None:
    serving = Serving(second(), None, (first(),))
    assert serving.label(2) == ("intensity/2", "tpp-two")
    assert serving.label(1) == ("intensity/1", "tpp-one")
    assert serving.label(0) == (None, "tpp-two")
    assert serving.label(9) == (None, "tpp-two")
    unnamed = Serving(ServedModel(1, FakeClient()))
    assert unnamed.label(1) == ("intensity/1", FakeClient.model_version)
    with pytest.raises(AttributeError):
        serving.in_charge = first()  # type: ignore[misc]
