"""Batches between advance and decide: what they were told, what they ask, and of whom."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flink_jobs.intensity_protocol import ReadyTicket, Ticket
from flink_jobs.serving import ServedModel
from flink_jobs.trial import Trial
from state.log import LoggedBatch
from state.table import Table


@dataclass(frozen=True, slots=True)
class Told:
    """What advancing told of one kind: ADVANCED[m], and float32[m, tells] by component."""

    core: NDArray[np.void]
    components: tuple[NDArray[np.float32], ...] = ()

    def __len__(self) -> int:
        return len(self.core)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a batch asks of the models: x float32[rows, 69] by encoder, "" the base's.

    `warm` says by encoder, bool[rows], whose memories are warm; the base's are.
    """

    x: dict[str, NDArray[np.float32]]
    warm: dict[str, NDArray[np.bool_]]

    def of(self, model: ServedModel) -> NDArray[np.float32] | None:
        """Return what `model` is asked; None where its memories had not begun."""
        return self.x.get(model.memory.digest if model.memory else "")

    def warm_for(self, *models: ServedModel) -> NDArray[np.bool_] | None:
        """Return bool[rows], where the memories of all `models` are warm; None for everywhere."""
        digests = {model.memory.digest for model in models if model.memory is not None}
        known = [self.warm[digest] for digest in sorted(digests) if digest in self.warm]
        return np.logical_and.reduce(known) if known else None


@dataclass(slots=True)
class Pending:
    """A batch that is advanced and not yet decided.

    Attributes:
        seq: its number.
        batch: as the log has it.
        told: by kind, what advancing told.
        former: by kind, whom this batch took rows from.
        asked: what it asks.
        model: whose answer decides it.
        trial: that follows it.
        ticket: of the answer, once it is asked.
        trial_ticket: of the shadow's.
    """

    seq: int
    batch: LoggedBatch
    told: list[Told]
    former: list[NDArray[np.void]]
    asked: Asked
    model: ServedModel
    trial: Trial | None = None
    ticket: Ticket | None = None
    trial_ticket: Ticket | None = None

    @property
    def rows(self) -> int:
        """Rows that its model is asked."""
        return len(self.asked.x[""])

    def submit(self) -> Ticket:
        """Ask the model, and the one in its shadow where there is one."""
        if self.trial is not None:
            self.trial_ticket = self.trial.submit(self.asked.of(self.trial.shadow))
        x = self.asked.of(self.model)
        return ReadyTicket(None) if x is None else self.model.client.submit(x)


def holder(table: Table, kind: int, batches: Iterable[Pending], row: int, event: int) -> np.void:
    """Return the record that names whose `row` was at `event` of the first of `batches`.

    Events after it, and batches advanced since, may have given the row to another entity.
    """
    for later in batches:
        former = later.former[kind]
        taken = former[(former["row"] == row) & (former["event"] > event)]
        if len(taken):
            return taken[0]  # type: ignore[no-any-return]
        event = -1
    return table.rows[row]  # type: ignore[no-any-return]
