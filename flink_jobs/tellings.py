"""What a shard tells of its events: alerts, ended silences, scores, and events that came late."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import orjson
from numpy.typing import NDArray

from flink_jobs.alerts import (
    LATE,
    AlertContext,
    Entity,
    Output,
    Silence,
    event_alert,
    rfc3339,
    silence_alert,
)
from flink_jobs.batches import place_of
from flink_jobs.components import EventTells
from flink_jobs.decide import DecideModel
from flink_jobs.kind_model import KindModel
from flink_jobs.pending import Pending, holder
from flink_jobs.scores import score_output
from flink_jobs.serving import Serving
from flink_jobs.settings import Settings
from state.events import EventBatch
from state.table import Table, id_of


class Teller:
    """Writes the messages of one shard.

    Args:
        settings: of the job.
        models: by kind.
        tables: by kind; the rows name the entities.
    """

    def __init__(
        self, settings: Settings, models: Sequence[KindModel], tables: Sequence[Table]
    ) -> None:
        self._settings = settings
        self._models = models
        self._tables = tables
        self._context = AlertContext(
            source=f"eddy/{settings.job.name}",
            log_values=settings.event.value_transform == "log",
            alpha=settings.detection.false_alerts_per_million * 1e-6,
            silence_alpha=settings.detection.silence_false_alerts_per_million * 1e-6,
        )

    def late(self, batch: EventBatch, late: NDArray[np.bool_], late_ms: int) -> Iterator[Output]:
        """Tell the events of `batch` that are late: older than `late_ms`."""
        kinds = self._settings.event.entities
        for i in np.flatnonzero(late).tolist():
            entities = {
                kind: batch.ids[k][i]
                for k, (kind, _) in enumerate(kinds)
                if batch.owned[i] >> k & 1
            }
            body = {
                "topic": batch.topic,
                "partition": int(batch.partition[i]),
                "offset": int(batch.offset[i]),
                "event_id": batch.event_id[i],
                "event_time": rfc3339(int(batch.time_ms[i])),
                "watermark": rfc3339(late_ms),
                "late_by_ms": late_ms - int(batch.time_ms[i]),
                "entities": entities,
                "value": None if np.isnan(batch.value[i]) else float(batch.value[i]),
            }
            first = next(iter(entities.items()))
            yield Output(LATE, "/".join(first), orjson.dumps(body))

    def silence(
        self, k: int, row: int, due_ms: int, batches: Sequence[Pending], serving: Serving
    ) -> Output:
        """Tell a silence that has become surprising.

        Args:
            k: index of the kind.
            row: whose it is, after the first of `batches`.
            due_ms: event time at which it did.
            batches: that being decided, and those advanced since.
            serving: names the models.
        """
        entity = self._tables[k].rows[row]
        named = holder(self._tables[k], k, batches, row, len(batches[0].batch))
        silence = Silence(
            last_ms=int(entity["decided_ms"]),
            due_ms=due_ms,
            first_ms=int(named["first_ms"]),
            scale=float(entity["scale"]),
            events=int(entity["decided_events"]),
            degraded=self._unaided(entity["predicted"] == 0),
        )
        return self._silence(k, named, silence, int(entity["predicted"]), serving)

    def ended_silence(
        self, k: int, at: int, decided: np.void, batches: Sequence[Pending], serving: Serving
    ) -> Output:
        """Tell a silence that became surprising just before the event that ended it.

        Args:
            k: index of the kind.
            at: which of the kind's events in the first of `batches`.
            decided: its DECIDED record.
            batches: that being decided, and those advanced since.
            serving: names the models.
        """
        told = batches[0].told[k].core[at]
        silence = Silence(
            last_ms=int(told["last_ms"]),
            due_ms=int(decided["silence_ms"]),
            first_ms=int(told["first_ms"]),
            scale=float(decided["usual"]),
            events=int(told["events"]) - 1,
            degraded=self._unaided(bool(decided["unaided"])),
        )
        named = holder(self._tables[k], k, batches, int(told["row"]), int(told["event"]))
        return self._silence(k, named, silence, int(decided["slot"]), serving)

    def _silence(
        self, k: int, named: np.void, silence: Silence, slot: int, serving: Serving
    ) -> Output:
        entity = Entity(self._models[k].kind, id_of(named))
        return silence_alert(self._context, entity, silence, serving.label(slot))

    def alert(
        self,
        k: int,
        at: int,
        decided: np.void,
        batches: Sequence[Pending],
        serving: Serving,
        judge: DecideModel,
        degraded: bool,
    ) -> Output:
        """Tell an anomalous event.

        Args:
            k: index of the kind.
            at: which of the kind's events in the first of `batches`.
            decided: its DECIDED record.
            batches: that being decided, and those advanced since.
            serving: names the models.
            judge: has the calibration by which it was decided.
            degraded: the batch had no answer of the intensity model.
        """
        mine = batches[0].told[k]
        told = mine.core[at]
        slot, i = int(decided["slot"]), int(told["event"])
        named = holder(self._tables[k], k, batches, int(told["row"]), i)
        return event_alert(
            self._context,
            Entity(self._models[k].kind, id_of(named)),
            place_of(batches[0].batch, i),
            told,
            decided,
            judge.tails(slot, int(decided["amount_slot"])),
            serving.label(slot or int(decided["amount_slot"])),
            self._unaided(degraded or (slot == 0 and told["events"] > 1)),
            judge.names,
            EventTells(self._models[k].components, mine.components, at),
        )

    def scores(
        self, k: int, decided: NDArray[np.void], batches: Sequence[Pending]
    ) -> Iterator[Output]:
        """Tell the score of every event of one kind in the first of `batches`."""
        model, mine = self._models[k], batches[0].told[k]
        for at in range(len(mine)):
            told = mine.core[at]
            i = int(told["event"])
            named = holder(self._tables[k], k, batches, int(told["row"]), i)
            yield score_output(
                self._context,
                Entity(model.kind, id_of(named)),
                place_of(batches[0].batch, i),
                told,
                decided[at],
                EventTells(model.components, mine.components, at),
            )

    def _unaided(self, unaided: bool) -> bool:
        return bool(unaided) and self._settings.triton.enabled
