"""The score step of one shard: advance, intensity, decide, and the state that survives a fault.

Pure but for the two edges it is given: a store for its records and a client for the model. The
Flink operator, the tests and the fitting of priors all run this.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from flink_jobs.advance import NO_PARTNER, advance
from flink_jobs.alerts import Output
from flink_jobs.batches import empty_batch, kind_events, known_hashes, transformed
from flink_jobs.compensators import walk_decided
from flink_jobs.components import walk
from flink_jobs.decide import ALERT, DecideModel, decide, pack, sweep, unsaid
from flink_jobs.intensity_protocol import IntensityClient
from flink_jobs.kind_model import KindModel, Observer
from flink_jobs.lateness import PartitionClocks
from flink_jobs.memories import Warmth, remember
from flink_jobs.pending import Asked, Pending, Told
from flink_jobs.rollout import FEWEST_SEEN
from flink_jobs.serving import ServedModel, Serving
from flink_jobs.settings import Settings
from flink_jobs.tellings import Teller
from flink_jobs.trial import Decided, Trial
from models.prior_check import PriorCheck
from models.tpp.spec import INPUT
from state.events import EventBatch
from state.log import (
    COMPONENTS,
    LoggedBatch,
    Restored,
    ShardLog,
    Store,
    components_form,
    decode_answers,
    encode_answers,
    encode_batch,
)
from state.table import NEVER_MS, Table

PAGE_CHUNK_BYTES = 4 << 20  # pages owed before the batches in flight are waited for


class ShardScorer:
    """Scores the batches of one shard in order.

    Args:
        settings: of the job.
        models: by entity kind, in the order of `settings.event.entities`.
        store: holds the shard's records; what it holds already is restored.
        client: answers for the intensity model; or the versions of it that do.
        observer: sees decided events.
    """

    def __init__(
        self,
        settings: Settings,
        models: list[KindModel],
        store: Store,
        client: IntensityClient | Serving,
        observer: Observer | None = None,
    ) -> None:
        self._settings = settings
        self._models = models
        serving = client if isinstance(client, Serving) else Serving(ServedModel(1, client))
        self.serving, self._judges = serving, self._judges_of(serving)
        self.trial: Trial | None = None
        self.warmth = Warmth()
        memories = tuple(memory.part for memory in serving.memories)
        self._observer = observer
        state = settings.state
        self.tables = [
            Table.empty(
                state.initial_entities,
                state.max_entities,
                state.ttl_s * 1000,
                (*model.components.layout, *memories),
            )
            for model in models
        ]
        self._hashed = sorted({m.hashed_partner for m in models if m.hashed_partner is not None})
        self._log = ShardLog(
            store, len(models), state.page_rows, state.log_ratio, state.log_min_bytes
        )
        self._pending: deque[Pending] = deque()
        self._time = PartitionClocks(settings.event.allowed_lateness_ms)
        self._topic = settings.source.topic
        self._teller = Teller(settings, models, self.tables)
        triton = settings.triton
        self._part = max(1, triton.max_in_flight // 2 * triton.max_rows // len(models))
        self._patience_s = 2e-3 * triton.timeout_ms  # every answer has come, or failed, by then
        self.counters: Counter[str] = Counter()
        self.changes: list[str] = []  # components that joined or left at the restore, in words
        self.checks = [PriorCheck(model.check) for model in models]  # begins anew after a fault
        self.seq = 0
        self.degraded = False
        self._restore()
        self._begin_trial()

    @property
    def watermark_ms(self) -> int:
        """Event time up to which this shard is complete, but for late events."""
        return self._time.watermark_ms

    @property
    def in_flight(self) -> int:
        """Batches that wait for the intensity model."""
        return len(self._pending)

    # -- models ------------------------------------------------------------------------------

    def serve(self, serving: Serving) -> None:
        """Let other versions of the intensity model answer, from the next batch on.

        What is under way is decided by whoever was asked. Memories of an encoder that comes begin
        with each entity's next event; those of one that goes are dropped.
        """
        before, after = self.serving.memories, serving.memories
        for gone in (memory for memory in before if memory not in after):
            self.warmth.forget(gone.digest)
            for table in self.tables:
                table.leave(gone.part.name)
        for come in (memory for memory in after if memory not in before):
            for table in self.tables:
                table.join(come.part)
        former = self.serving
        self.serving, self._judges = serving, self._judges_of(serving)
        if before != after:
            self._log.reform(self._form(), self.seq)
        if (former.in_charge, former.shadow) != (serving.in_charge, serving.shadow):
            self._begin_trial()

    def _begin_trial(self) -> None:
        shadow, former = self.serving.shadow, self.trial
        self.trial = None
        if shadow is not None:
            kinds = [model.kind for model in self._models]
            self.trial = Trial(self.serving.in_charge, shadow, kinds, self._judges, former)

    def _judges_of(self, serving: Serving) -> list[DecideModel]:
        return [
            model.decide.serving(
                {slot: prior.of(model.kind) for slot, prior in serving.priors.items()}
            )
            for model in self._models
        ]

    # -- forward -----------------------------------------------------------------------------

    def on_batch(self, batch: EventBatch) -> Iterator[Output]:
        """Advance `batch`, ask the model, and decide what has been answered.

        A large batch goes in parts, so that one part is decided while the next is under way.

        Yields:
            Alerts of decided batches, and late events of this one.
        """
        for start in range(0, len(batch), self._part):
            yield from self._on_part(batch.part(start, start + self._part))

    def _on_part(self, batch: EventBatch) -> Iterator[Output]:
        late = self._time.judge(batch.time_ms, batch.partition)
        if late.any():
            self.counters["late"] += int(np.count_nonzero(late))
            yield from self._teller.late(batch, late, self._time.late_ms)
        self.counters["events"] += len(batch)
        placed, former = self._place(batch, ~late)
        rows = int(np.count_nonzero(placed.row >= 0))
        while self._pending and not self.serving.in_charge.client.has_room(rows):
            yield from self._decide_head(self._patience_s)
        self._append(placed, former)
        yield from self.collect()

    def tick(self, watermark_ms: int) -> Iterator[Output]:
        """Move event time on without events, so that silences are told in a stream that stands."""
        awaited = any(_awaited(table, watermark_ms) for table in self.tables)
        if awaited and watermark_ms > self.watermark_ms:
            # What is not in the log does not count: a restore would not know of it.
            self._time.watermark_ms = watermark_ms
            self._append(*self._place(empty_batch(self._topic, len(self._models)), _NONE))
        yield from self.collect()

    def collect(self, wait_s: float = 0.0) -> Iterator[Output]:
        """Decide the batches that were answered, in order, and write the pages that are due.

        Args:
            wait_s: how long the first answer may be waited for, seconds.
        """
        owed = self._log.debt > PAGE_CHUNK_BYTES
        while self._pending:
            ticket = self._pending[0].ticket
            if not owed and wait_s <= 0.0 and (ticket is None or not ticket.done()):
                break
            yield from self._decide_head(self._patience_s if owed else wait_s)
        if not self._pending and self._log.debt > 0:
            self.counters["page_bytes"] += self._log.write_pages(self.tables, self.seq)

    def drain(self) -> Iterator[Output]:
        """Decide all that is in flight, waiting for each answer until its deadline."""
        yield from self.collect(wait_s=self._patience_s)

    def _decide_head(self, wait_s: float) -> Iterator[Output]:
        self._ask()
        head = self._pending.popleft()
        ticket = head.ticket or head.submit()
        yield from self._decide(head, ticket.result(wait_s))
        self._ask()

    def _ask(self) -> None:
        """Send what waits, in order, as far as the client has room."""
        for pending in self._pending:
            if pending.ticket is None:
                if not pending.model.client.has_room(pending.rows):
                    break
                pending.ticket = pending.submit()

    # -- the steps ---------------------------------------------------------------------------

    def _place(
        self, batch: EventBatch, keep: NDArray[np.bool_]
    ) -> tuple[LoggedBatch, list[NDArray[np.void]]]:
        """Give each event's entities their rows; tell as well, by kind, whose rows they were."""
        kinds = range(len(self._models))
        n = len(batch)
        rows = np.full((len(self._models), n), -1, np.int32)
        fresh = np.zeros((len(self._models), n), np.bool_)
        partner = np.full((len(self._models), n), NO_PARTNER, np.uint8)
        former = []
        for k in kinds:
            mine = keep & ((batch.owned >> k & 1) == 1)
            rows[k], fresh[k], left = self.tables[k].intern(
                batch.ids[k], batch.hashes[k], batch.time_ms, mine
            )
            former.append(left)
            other = self._models[k].partner
            if other is not None:
                known = np.diff(batch.ids[other].offsets) > 0
                bits = (batch.hashes[other] & np.uint64(63)).astype(np.uint8)
                partner[k] = np.where(known, bits, NO_PARTNER)
        value = transformed(batch.value, self._settings.event)
        logged = LoggedBatch(
            topic=batch.topic,
            watermark_ms=self.watermark_ms,
            late_ms=self._time.late_ms,
            clocks=self._time.clocks.copy(),
            used=np.array([table.used for table in self.tables], np.int64),
            cursor=np.array([table.cursor for table in self.tables], np.int64),
            time_ms=batch.time_ms,
            value=value,
            offset=batch.offset,
            partition=batch.partition,
            row=rows,
            mark=batch.mark,
            partner=partner,
            fresh=fresh,
            event_id=batch.event_id,
            names=tuple(batch.ids[k].only(fresh[k]) for k in kinds),
            hashes={k: known_hashes(batch, k) for k in self._hashed},
        )
        self.counters["entities_new"] += int(np.count_nonzero(fresh))
        return logged, former

    def _append(self, batch: LoggedBatch, former: list[NDArray[np.void]]) -> None:
        self.seq += 1
        self._log.append(self.seq, encode_batch(batch), self.tables)
        told, asked = self._advance(batch, self.seq, None)
        model = self.serving.in_charge
        self._pending.append(Pending(self.seq, batch, told, former, asked, model, self.trial))
        self._ask()

    def _advance(
        self,
        batch: LoggedBatch,
        seq: int,
        newer: list[NDArray[np.bool_]] | None,
        joined: Mapping[str, Mapping[str, int]] | None = None,
    ) -> tuple[list[Told], Asked]:
        """Advance every kind; `newer` (bool[n] by kind) leaves out what pages hold already.

        In a replay, `joined` names by kind and part the last batch that knew nothing of the part.
        """
        events = [
            kind_events(batch, k, None if newer is None else newer[k], model.hashed_partner)
            for k, model in enumerate(self._models)
        ]
        x = np.empty((sum(map(len, events)), INPUT), np.float32)
        told, at = [], 0
        for table, mine, model in zip(self.tables, events, self._models, strict=True):
            core = advance(table, mine, model.advance, x[at : at + len(mine)])
            told.append(Told(core, walk(table, model.components, mine)))
            at += len(mine)
        asked = Asked({"": x}, {})
        for memory in self.serving.memories:
            name, parts = memory.part.name, []
            if joined and any(of.get(name, -1) >= seq for of in joined.values()):
                self.warmth.add(memory.digest, 0, len(x))
                continue
            ends = np.cumsum([len(mine) for mine in events])[:-1]
            for table, mine, one, asks in zip(
                self.tables, events, told, np.split(x, ends), strict=True
            ):
                parts.append(remember(table, memory, mine, one.core["elapsed"], asks))
            asked.x[memory.digest] = np.concatenate([of for of, _ in parts])
            warm = np.concatenate([warm for _, warm in parts])
            asked.warm[memory.digest] = warm
            self.warmth.add(memory.digest, int(np.count_nonzero(warm)), len(warm))
        return told, asked

    def _decide(self, pending: Pending, answer: NDArray[np.float32] | None) -> Iterator[Output]:
        answers = self._split(pending, answer)
        trial = pending.trial if pending.trial is self.trial else None
        # Without an answer nothing is said of the amount: such events are compared with none.
        measured = [
            np.full(len(told), np.nan, np.float32) if trial else None for told in pending.told
        ]
        predictions = None
        if answers is not None:
            each = zip(answers, pending.told, measured, strict=True)
            predictions = [pack(mine, told.core, nats) for mine, told, nats in each]
        record = encode_answers(predictions, len(self._models), pending.model.slot)
        self._log.append_answers(pending.seq, record, self.tables)
        if trial is not None:
            trial.begin(self.tables)
        judged: list[Decided] = []
        self.degraded = predictions is None and sum(map(len, pending.told)) > 0
        self.counters["degraded_batches"] += self.degraded
        self.counters["decided"] += sum(map(len, pending.told))
        found: list[tuple[int, Output]] = []
        teller, batches = self._teller, (pending, *self._pending)
        for k in range(len(self._models)):
            told = pending.told[k].core
            mine = None if predictions is None else predictions[k]
            decided, surprises = self._decide_kind(
                k, pending.told[k], mine, pending.model.slot, measured=measured[k]
            )
            if trial is not None:
                judged.append(Decided(told, surprises, decided))
            self.checks[k].add(told["value"], told["log_gap"], told["timed"])
            if self._observer is not None:
                self._observer(k, told, decided)
            if self._settings.sink.scores_topic is not None:
                yield from teller.scores(k, decided, batches)
            for i in np.flatnonzero(decided["verdict"] == ALERT).tolist():
                judge, degraded = self._judges[k], self.degraded
                alert = teller.alert(k, i, decided[i], batches, self.serving, judge, degraded)
                found.append((int(told[i]["event"]), alert))
            for i in np.flatnonzero(decided["silence_ms"] != NEVER_MS).tolist():
                alert = teller.ended_silence(k, i, decided[i], batches, self.serving)
                found.append((int(told[i]["event"]), alert))
        for _, alert in sorted(found, key=lambda one: one[0]):
            self.counters["alerts"] += 1
            yield alert
        silences = yield from self._sweep(batches)
        if trial is not None:
            warm = pending.asked.warm_for(pending.model, trial.shadow)
            trial.follow(judged, silences, pending.batch.watermark_ms, pending.trial_ticket, warm)

    def _decide_kind(
        self,
        k: int,
        told: Told,
        predictions: NDArray[np.void] | None,
        slot: int,
        without: Collection[str] = (),
        *,
        measured: NDArray[np.float32] | None = None,
    ) -> tuple[NDArray[np.void], NDArray[np.float32] | None]:
        """Decide one kind; return DECIDED and the surprises of its components."""
        judge, model = self._judges[k], self._models[k]
        walk_decided(self.tables[k], model.components, told.core, predictions, told.components)
        if without:
            judge = judge.without(model.components.labels_of(without))
        surprises = model.components.surprises(told.components) if told.components else None
        decided = decide(self.tables[k], told.core, predictions, judge, surprises, slot, measured)
        return decided, surprises

    def _split(
        self, pending: Pending, answer: NDArray[np.float32] | None
    ) -> list[NDArray[np.float32]] | None:
        if answer is None:
            return None
        ends = np.cumsum([len(told) for told in pending.told])[:-1]
        return np.split(answer, ends)

    def _sweep(self, batches: Sequence[Pending]) -> Generator[Output, None, list[tuple[int, int]]]:
        """Tell the silences that are due; return the (kind, row) of each."""
        watermark_ms = batches[0].batch.watermark_ms
        found = []
        for k, (table, judge) in enumerate(zip(self.tables, self._judges, strict=True)):
            for row, due_ms in sweep(table, watermark_ms, judge):
                found.append((k, row))
                self.counters["alerts"] += 1
                yield self._teller.silence(k, row, due_ms, batches, self.serving)
        return found

    def _form(self) -> dict[str, object]:
        """Name what a replay depends on; floats differ in no bit where the digests are equal."""
        event, detection = self._settings.event, self._settings.detection
        return {
            "kinds": [model.kind for model in self._models],
            "marks": list(event.marks),
            "value_transform": event.value_transform,
            "shards": self._settings.flink.shards,
            "page_rows": self._settings.state.page_rows,
            "partner_kinds": [list(pair) for pair in detection.partner_kinds],
            "partner_window_s": detection.partner_window_s,
            "model": [model.digest() for model in self._models],
            COMPONENTS: components_form(
                {m.kind: table for m, table in zip(self._models, self.tables, strict=True)}
            ),
        }

    # -- after a fault -----------------------------------------------------------------------

    def _restore(self) -> None:
        """Fill the tables from pages, replay what is newer, and ask again for what was open."""
        restored = self._log.restore(self.tables, self._form())
        self.changes = restored.changes
        page_rows = self._settings.state.page_rows
        self._drop_stale(restored, page_rows)
        for seq, batch, record in restored.batches:
            newer, former = [], []
            for k, table in enumerate(self.tables):
                pages = batch.row[k] // page_rows
                page_seq = np.append(restored.page_seq[k], -1)
                known = page_seq[np.where(pages < len(page_seq), pages, -1)]
                newer.append((batch.row[k] >= 0) & (known < seq))
                named = newer[k][batch.fresh[k]]
                begun = np.flatnonzero(batch.fresh[k] & newer[k]).astype(np.int32)
                left = table.place(begun, batch.row[k][begun], batch.names[k].only(named))
                former.append(left)
            told, asked = self._advance(batch, seq, newer, restored.joined)
            if record is None:
                model = self.serving.in_charge
                self._pending.append(Pending(seq, batch, told, former, asked, model))
            else:
                without = [
                    [name for name, last in restored.joined.get(m.kind, {}).items() if seq <= last]
                    for m in self._models
                ]
                predictions, slot = decode_answers(record, unsaid())
                self._decide_again(batch, told, newer, predictions, slot, without)
        if restored.batches:
            self._warm_restored(restored)
            self.seq, last, _ = restored.batches[-1]
            self._time.clocks = last.clocks.copy()
            self._time.late_ms, self._time.watermark_ms = last.late_ms, last.watermark_ms
            self._topic = last.topic
            for k, table in enumerate(self.tables):
                table.finish_restore(int(last.used[k]), int(last.cursor[k]))
            self.counters["replayed_batches"] = len(restored.batches)
            self._ask()

    def _warm_restored(self, restored: Restored) -> None:
        """Note the encoders whose memories the stored state has not: none of its entities' are."""
        decided = max((seq for seq, _, record in restored.batches if record is not None), default=0)
        for memory in self.serving.memories:
            if any(of.get(memory.part.name, -1) >= decided for of in restored.joined.values()):
                self.warmth.add(memory.digest, 0, FEWEST_SEEN)

    def _drop_stale(self, restored: Restored, page_rows: int) -> None:
        """Forget what parts knew before they last joined: a page may be older than that."""
        for k, (model, table) in enumerate(zip(self._models, self.tables, strict=True)):
            for part, begun in zip(table.layout, table.begun, strict=True):
                last = restored.joined.get(model.kind, {}).get(part.name, -1)
                for page in np.flatnonzero(restored.page_seq[k] < last).tolist():
                    begun[page * page_rows : (page + 1) * page_rows] = 0

    def _decide_again(
        self,
        batch: LoggedBatch,
        told: list[Told],
        newer: list[NDArray[np.bool_]],
        predictions: list[NDArray[np.void]] | None,
        slot: int,
        without: list[list[str]],
    ) -> None:
        """Decide a batch whose alerts are out already.

        `without` names by kind the components that had no vote then: an incident that no alert told
        of would keep the entity quiet.
        """
        for k, judge in enumerate(self._judges):
            mine = None
            if predictions is not None:
                mine = predictions[k][newer[k][batch.row[k] >= 0]]
            self._decide_kind(k, told[k], mine, slot, without[k])
            sweep(self.tables[k], batch.watermark_ms, judge)


_NONE = np.zeros(0, np.bool_)


def _awaited(table: Table, watermark_ms: int) -> bool:
    return bool((table.deadline_ms[: table.used] < watermark_ms).any())
