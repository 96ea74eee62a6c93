"""The two Python operators of the job: thin edges of Flink around the pure steps."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import flink_jobs.worker  # noqa: F401  isort: skip

import numpy as np
from pyflink.common import Row, Types
from pyflink.datastream import (
    KeyedProcessFunction,
    OutputTag,
    ProcessFunction,
    RuntimeContext,
)
from pyflink.datastream.state import MapState, MapStateDescriptor

from flink_jobs.alerts import ALERT, LATE, Output
from flink_jobs.breaker import BreakerState
from flink_jobs.intensity_protocol import NullClient
from flink_jobs.memories import share
from flink_jobs.misfit import register_misfits
from flink_jobs.model_events import MODEL, ModelEvent
from flink_jobs.model_files import load_models
from flink_jobs.model_pool import ModelPool
from flink_jobs.parse import Records, dead_letter, parse
from flink_jobs.rollout import FEWEST_SEEN
from flink_jobs.scorer import ShardScorer
from flink_jobs.scores import SCORE
from flink_jobs.serving import ServedModel, Serving
from flink_jobs.settings import Settings
from flink_jobs.trial import Trial
from state.events import decode, encode

BYTES = Types.PRIMITIVE_ARRAY(Types.BYTE())
MESSAGE = Types.ROW([Types.STRING(), BYTES, BYTES])  # topic, key, value
SHARD_BATCH = Types.ROW([Types.INT(), BYTES])  # shard, encoded EventBatch
DEAD_LETTERS = OutputTag("dead-letters", MESSAGE)

PARTITION_SHIFT = 48  # a record's place is partition << 48 | offset: one number less to cross over
# How soon to look for an answer that is under way: each look crosses over to Python in a bundle of
# its own, so under load, when answers take their time, they must be few.
COLLECT_MS = (4, 64)
BREAKER_STATES: tuple[BreakerState, ...] = ("closed", "half_open", "open")  # as the gauge counts
MODELS_MS = 900  # how often the rollout file is looked at: at each idle timer
REPORT_MS = 5_000  # how often a trial is told of
IDLE_MS = 1_000  # how often an idle shard looks at the clock
LIVE_LAG_MS = 60_000  # a stream whose newest event is older than this is history, and has no clock


class ParseOperator(ProcessFunction):
    """Micro-batches of messages in; a batch of columns for each shard, and dead letters, out."""

    def __init__(self, settings_json: str) -> None:
        self._settings_json = settings_json

    def open(self, context: RuntimeContext) -> None:
        """Read the settings."""
        self._settings = Settings.from_json(self._settings_json)
        metrics = context.get_metrics_group().add_group("eddy")
        self._parsed = metrics.counter("parsed")
        self._dead = metrics.counter("dead_letters")

    def process_element(
        self,
        value: Any,
        ctx: ProcessFunction.Context,  # noqa: ARG002 (Flink's signature)
    ) -> Iterator[Any]:
        """Parse one micro-batch: (values, places, timestamps in ms)."""
        values, places, timestamps = value[0], value[1], value[2]
        place = np.fromiter(places, np.int64, len(places))
        records = Records(
            self._settings.source.topic,
            values,
            (place >> PARTITION_SHIFT).astype(np.int32),
            place & ((1 << PARTITION_SHIFT) - 1),
            np.fromiter(timestamps, np.int64, len(timestamps)),
        )
        parsed = parse(records, self._settings.event, self._settings.flink.shards)
        self._parsed.inc(len(values) - len(parsed.rejected))
        self._dead.inc(len(parsed.rejected))
        topic = self._settings.sink.dead_letters_topic
        for rejected in parsed.rejected:
            key = f"{rejected.topic}/{rejected.partition}".encode()
            yield DEAD_LETTERS, Row(topic, key, dead_letter(rejected))
        for shard, batch in parsed.batches:
            yield Row(shard, encode(batch))


class _MapStore:
    """The current key's MapState as the log wants it."""

    def __init__(self, state: MapState) -> None:
        self._state = state

    def put(self, key: int, value: bytes) -> None:
        self._state.put(key, value)

    def remove(self, key: int) -> None:
        self._state.remove(key)

    def items(self) -> Iterable[tuple[int, bytes]]:
        return self._state.items()


class ScoreOperator(KeyedProcessFunction):
    """Batches of one shard in, alerts and late events out; all that matters is in ShardScorer."""

    def __init__(self, settings_json: str) -> None:
        self._settings_json = settings_json

    def open(self, context: RuntimeContext) -> None:
        """Read settings and models, connect to Triton, declare state and metrics."""
        self._settings = Settings.from_json(self._settings_json)
        self._models = load_models(self._settings)
        self._serving = Serving(ServedModel(1, NullClient()))
        self._pool: ModelPool | None = None
        if self._settings.triton.enabled:
            self._pool = ModelPool(self._settings, self._models)
            self._serving = self._pool.serving
        self._models_at = self._report_at = 0
        self._news: list[ModelEvent] = []
        self._state = context.get_map_state(MapStateDescriptor("shard", Types.LONG(), BYTES))
        self._shards: dict[int, ShardScorer] = {}
        self._collect_at: dict[int, int] = {}
        self._collect_ms: dict[int, int] = {}
        self._idle_at: dict[int, int] = {}
        self._seen: dict[int, tuple[int, int]] = {}
        sink = self._settings.sink
        self._topics = {
            ALERT: sink.alerts_topic,
            LATE: sink.late_topic,
            SCORE: sink.scores_topic or "",
            MODEL: sink.models_topic or "",
        }
        self._register_metrics(context)

    def close(self) -> None:
        """Give up what is under way at Triton."""
        if self._pool is not None:
            self._pool.close()

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Iterator[Any]:
        """Score one batch of the current shard."""
        shard = value[0]
        scorer = self._scorer(shard)
        yield from self._messages(scorer.on_batch(decode(value[1])))
        now_ms = _now_ms()
        self._seen[shard] = (now_ms, scorer.watermark_ms)
        self._set_timers(shard, scorer, now_ms, ctx.timer_service())

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Iterator[Any]:
        """Collect the last answers; in a live stream that stands, let event time go on."""
        shard = ctx.get_current_key()
        scorer = self._scorer(shard)
        waiting = scorer.in_flight
        yield from self._messages(scorer.collect())
        now_ms = _now_ms()
        if shard in self._collect_at and timestamp >= self._collect_at[shard]:
            del self._collect_at[shard]
            if waiting:
                self._pace(shard, in_vain=scorer.in_flight == waiting)
        if timestamp >= self._idle_at.get(shard, 0):
            self._idle_at.pop(shard, None)
            yield from self._messages(self._idle(shard, scorer, now_ms))
            if self._pool is not None and now_ms >= self._models_at:
                self._models_at = now_ms + MODELS_MS
                yield from self._messages(self._follow_models(self._pool, shard, now_ms))
        self._set_timers(shard, scorer, now_ms, ctx.timer_service())

    def _scorer(self, shard: int) -> ShardScorer:
        if shard not in self._shards:
            store = _MapStore(self._state)
            scorer = ShardScorer(self._settings, self._models, store, self._serving)
            for change in scorer.changes:
                logging.getLogger(__name__).warning("shard %d: %s", shard, change)
            self._shards[shard] = scorer
            # After a fault the clock goes on from what was restored, also if no event comes.
            self._seen[shard] = (_now_ms(), scorer.watermark_ms)
            if self._pool is not None and scorer.seq:
                self._refresh(self._pool)  # a restored state tells whose memories it has
        scorer = self._shards[shard]
        if scorer.serving is not self._serving:
            scorer.serve(self._serving)  # here, for it may write to the current key's state
        return scorer

    def _follow_models(self, pool: ModelPool, shard: int, now_ms: int) -> Iterator[Output]:
        """Let the versions answer that the rollout wants, watch them, and tell of it."""
        trials = [s.trial for s in self._shards.values() if s.trial is not None]
        before = self._serving
        self._refresh(pool, trials)
        if self._serving is not before:
            self._report_at = now_ms + REPORT_MS
        events, self._news = self._news, []
        if self._settings.sink.models_topic is None:
            return
        for event in events:
            yield self._model_message(event, shard, pool.generation)
        if trials and now_ms >= self._report_at:
            self._report_at = now_ms + REPORT_MS
            yield from self._reports(pool, shard)

    def _refresh(self, pool: ModelPool, trials: Sequence[Trial] | None = None) -> None:
        """Look at the rollout, and with `trials` at the version in charge; keep what to tell."""
        # Whatever a folder or a file system does, the job goes on as it was; and a guard that fails
        # must not keep people from changing versions.
        log = logging.getLogger(__name__)
        try:
            if trials is not None:
                pool.guard(trials)
        except Exception:
            log.exception("the version in charge is not watched")
        try:
            self._news += pool.refresh(self._warm())
        except Exception:
            log.exception("the rollout is not followed")
        self._serving = pool.serving

    def _warm(self) -> dict[str, float]:
        """Return by encoder the share of the latest events whose memories were warm."""
        warm = {}
        for memory in self._serving.memories:
            seen = sum((s.warmth.seen(memory.digest) for s in self._shards.values()), np.zeros(2))
            if seen[1] >= FEWEST_SEEN:
                warm[memory.digest] = share(seen)
        return warm

    def _model_message(
        self,
        event: ModelEvent,
        shard: int,
        generation: int,
        report: dict[str, object] | None = None,
    ) -> Output:
        source, model = f"eddy/{self._settings.job.name}", self._settings.triton.model_name
        return event.output(source, model, shard, generation, report)

    def _reports(self, pool: ModelPool, shard: int) -> Iterator[Output]:
        """Tell of every shard's trial; what the clients counted stands in one of them."""
        for number, scorer in self._shards.items():
            trial = scorer.trial
            if trial is None:
                continue
            memory = trial.shadow.memory
            warm = 1.0 if memory is None else share(scorer.warmth.seen(memory.digest))
            report = trial.report(scorer.tables, 0.0 if math.isnan(warm) else warm)
            sides = {"in_charge": trial.in_charge.version, "shadow": trial.shadow.version}
            answers = {
                side: pool.watch.answers(v, idle=number != shard) for side, v in sides.items()
            }
            for part in ("latency_ms", "failures"):
                report[part] = {side: answer[part] for side, answer in answers.items()}
            mine, other = trial.in_charge, trial.shadow
            event = ModelEvent(
                "shadow_report", mine.version, mine.named, (other.version, other.named)
            )
            yield self._model_message(event, number, pool.generation, report)

    def _messages(self, outputs: Iterable[Any]) -> Iterator[Any]:
        for output in outputs:
            yield Row(self._topics[output.kind], output.key.encode(), output.value)

    def _idle(self, shard: int, scorer: ShardScorer, now_ms: int) -> Iterable[Any]:
        """Move event time on with the wall clock where the stream is live and has stopped."""
        since_ms, watermark_ms = self._seen.get(shard, (now_ms, 0))
        lag_ms = since_ms - watermark_ms - self._settings.event.allowed_lateness_ms
        if now_ms - since_ms < IDLE_MS or lag_ms > LIVE_LAG_MS:
            return ()
        return scorer.tick(watermark_ms + now_ms - since_ms - IDLE_MS)

    def _pace(self, shard: int, in_vain: bool) -> None:
        """Look later where the last look came too soon, and sooner where it did not."""
        soonest, latest = COLLECT_MS
        now = self._collect_ms.get(shard, soonest)
        self._collect_ms[shard] = min(2 * now, latest) if in_vain else max(now - now // 4, soonest)

    def _set_timers(self, shard: int, scorer: ShardScorer, now_ms: int, timers: Any) -> None:
        if scorer.in_flight and shard not in self._collect_at:
            self._collect_at[shard] = now_ms + self._collect_ms.get(shard, COLLECT_MS[0])
            timers.register_processing_time_timer(self._collect_at[shard])
        if shard not in self._idle_at:
            self._idle_at[shard] = now_ms + IDLE_MS
            timers.register_processing_time_timer(now_ms + IDLE_MS)

    def _register_metrics(self, context: RuntimeContext) -> None:
        metrics = context.get_metrics_group().add_group("eddy")

        def total(name: str) -> Any:
            return lambda: sum(scorer.counters[name] for scorer in self._shards.values())

        for name in ("events", "decided", "alerts", "late", "degraded_batches", "entities_new"):
            metrics.gauge(name, total(name))
        metrics.gauge("entities", self._entities)
        metrics.gauge("degraded", lambda: int(any(s.degraded for s in self._shards.values())))
        metrics.gauge("breaker", lambda: BREAKER_STATES.index(self._serving.in_charge.client.state))
        metrics.gauge("model_version", lambda: self._serving.in_charge.version)
        metrics.gauge("in_flight", lambda: sum(s.in_flight for s in self._shards.values()))
        metrics.gauge("event_lag_ms", self._lag_ms)
        register_misfits(metrics, [m.kind for m in self._models], self._shards.values)

    def _entities(self) -> int:
        return sum(table.used for scorer in self._shards.values() for table in scorer.tables)

    def _lag_ms(self) -> int:
        """Return how far the watermark lies behind the wall clock."""
        marks = [scorer.watermark_ms for scorer in self._shards.values()]
        return _now_ms() - min(marks) if marks else 0


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
