"""A model on trial: it decides the live stream's events in the shadow of the one in charge.

The same kernel decides again, on rows of its own, with the predictions of the model on trial. What
it would have alerted goes nowhere; what differs is counted. Nothing here is stored: after a fault
the trial begins anew.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from flink_jobs.alerts import rfc3339
from flink_jobs.decide import ALERT, DecideModel, decide, pack, sweep
from flink_jobs.intensity_protocol import Ticket
from flink_jobs.serving import ServedModel
from state.table import NEVER_MS, Table, id_of

PIT_PARTS = 20
LONGEST_QUEUE = 16  # batches that wait for the shadow's answer; an older one is given up
SAME_MS = 3_600_000  # alerts of one entity within it are the same finding
EXAMPLES = 10
IN_CHARGE, SHADOW = 0, 1


@dataclass(frozen=True, slots=True)
class Decided:
    """One kind of one batch, as the model in charge decided it.

    Attributes:
        told: ADVANCED[m].
        surprises: float32[m, S] of the components, or None.
        record: DECIDED[m], measured.
    """

    told: NDArray[np.void]
    surprises: NDArray[np.float32] | None
    record: NDArray[np.void]


@dataclass(slots=True)
class _Rows:
    """What `decide` and `sweep` need of a table."""

    rows: NDArray[np.void]
    deadline_ms: NDArray[np.int64]
    used: int

    @classmethod
    def of(cls, table: Table, slot: int, former: _Rows | None) -> _Rows:
        """Copy what a table decided, with the predictions of the model in `slot` alone.

        What lies behind the rows in use begins anew before it is read. The memory of `former` is
        taken over where it fits: to get as much anew takes longer than to fill it.
        """
        fits = former is not None and len(former.rows) == len(table.rows)
        rows = former.rows if fits and former else np.empty(len(table.rows), table.rows.dtype)
        used = slice(0, table.used)
        rows[used] = table.rows[used]
        rows["predicted"][used][rows["predicted"][used] != slot] = 0
        return cls(rows, table.deadline_ms.copy(), table.used)

    def hold(self, table: Table) -> None:
        """Grow with the table; its new rows are unseen."""
        missing = len(table.rows) - len(self.rows)
        if missing > 0:
            self.rows = np.concatenate([self.rows, np.empty(missing, self.rows.dtype)])
            never = np.full(missing, NEVER_MS)
            self.deadline_ms = np.concatenate([self.deadline_ms, never])
        self.used = table.used


@dataclass(frozen=True, slots=True)
class _Waiting:
    judged: list[Decided]
    silences: list[tuple[int, int]]
    watermark_ms: int
    ticket: Ticket | None
    warm: NDArray[np.bool_] | None


@dataclass(slots=True)
class KindTally:
    """What a trial found of one kind.

    Attributes:
        events: decided.
        compared: of them, those with a gap that both models had predicted from warm memories.
        nats: float64[2], by side, sums over these of the negative log likelihood.
        square: sum of the squares of its differences, shadow less in charge.
        pit: float64[2, 20], by side, counts of the survival probabilities of their gaps.
    """

    events: int = 0
    compared: int = 0
    nats: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))
    square: float = 0.0
    pit: NDArray[np.float64] = field(default_factory=lambda: np.zeros((2, PIT_PARTS)))

    def add(self, mine: NDArray[np.void], other: NDArray[np.void], warm: NDArray[np.bool_]) -> None:
        """Take in events, DECIDED[m] of the model in charge and of its shadow."""
        self.events += len(mine)
        known = warm & np.isfinite(mine["nats"]) & np.isfinite(other["nats"])
        self.compared += int(np.count_nonzero(known))
        for side, record in enumerate((mine[known], other[known])):
            self.nats[side] += record["nats"].sum(dtype=np.float64)
            part = np.exp(-record["compensator"].astype(np.float64)) * PIT_PARTS
            at = np.minimum(part.astype(np.int64), PIT_PARTS - 1)
            self.pit[side] += np.bincount(at, minlength=PIT_PARTS)
        difference = other["nats"][known].astype(np.float64) - mine["nats"][known]
        self.square += float(np.dot(difference, difference))


@dataclass(frozen=True, slots=True)
class Finding:
    """An alert that only one side gave.

    Attributes:
        kind: of the entity.
        row: of the entity, which another may have by now.
        first_ms: when the entity was first seen; with its row it names the entity.
        side: who gave it.
        time_ms: event time.
    """

    kind: int
    row: int
    first_ms: int
    side: int
    time_ms: int

    @property
    def entity(self) -> tuple[int, int, int]:
        """Kind, row, and when it was first seen there."""
        return self.kind, self.row, self.first_ms

    def holds(self, tables: Sequence[Table]) -> bool:
        """Return True if the row is still that of the entity."""
        return int(tables[self.kind].rows["first_ms"][self.row]) == self.first_ms


class Trial:
    """Compares a model with the one in charge, batch by batch.

    Args:
        in_charge: whose decisions count.
        shadow: whose are tried.
        kinds: names of the entity kinds.
        judges: by kind, with the calibration of both.
        former: a trial that is over, whose memory may be used.

    Attributes:
        tallies: by kind.
        both: alerts that both gave.
        alone: int[2], by side, alerts that it alone gave so far.
        missed: batches without an answer of the shadow.
    """

    def __init__(
        self,
        in_charge: ServedModel,
        shadow: ServedModel,
        kinds: Sequence[str],
        judges: Sequence[DecideModel],
        former: Trial | None = None,
    ) -> None:
        self._former: Sequence[_Rows | None] | None = (
            (former._tables or former._former) if former else None
        )
        self.in_charge, self.shadow = in_charge, shadow
        self.kinds = list(kinds)
        self._judges = judges
        self._tables: list[_Rows] = []
        self._waiting: deque[_Waiting] = deque()
        self._open: OrderedDict[tuple[int, int, int], Finding] = OrderedDict()
        self._latest_ms = 0
        self.tallies = [KindTally() for _ in kinds]
        self.both = 0
        self.alone = [0, 0]
        self.old: deque[Finding] = deque(maxlen=EXAMPLES)
        self.missed = 0

    def submit(self, x: NDArray[np.float32] | None) -> Ticket | None:
        """Ask the shadow; None where it has no room or its memories had not begun."""
        if x is None or not self.shadow.client.has_room(len(x)):
            return None
        return self.shadow.client.submit(x)

    def begin(self, tables: Sequence[Table]) -> None:
        """Begin from the decisions so far, of which only the shadow's own predictions are kept."""
        if not self._tables:
            former = self._former or [None] * len(tables)
            self._former = None
            for table, rows in zip(tables, former, strict=True):
                self._tables.append(_Rows.of(table, self.shadow.slot, rows))
        for mine, table in zip(self._tables, tables, strict=True):
            mine.hold(table)

    def follow(
        self,
        judged: list[Decided],
        silences: list[tuple[int, int]],
        watermark_ms: int,
        ticket: Ticket | None,
        warm: NDArray[np.bool_] | None,
    ) -> None:
        """Take a batch that the model in charge has decided, and decide those that are answered.

        Args:
            judged: by kind.
            silences: (kind, row) of those that were told with it.
            watermark_ms: up to which silences are told.
            ticket: what the shadow was asked; None where it was not.
            warm: bool[rows], whose memories are warm; None where all are.
        """
        self._waiting.append(_Waiting(judged, silences, watermark_ms, ticket, warm))
        self.collect()

    def collect(self) -> None:
        """Decide the batches that the shadow has answered, in order."""
        while self._waiting:
            ticket = self._waiting[0].ticket
            late = len(self._waiting) > LONGEST_QUEUE
            if ticket is not None and not ticket.done() and not late:
                break
            head = self._waiting.popleft()
            self._decide(head, None if ticket is None else ticket.result(0.0))

    def _decide(self, batch: _Waiting, answer: NDArray[np.float32] | None) -> None:
        rows = sum(len(one.told) for one in batch.judged)
        self.missed += answer is None and rows > 0
        warm = np.ones(rows, np.bool_) if batch.warm is None else batch.warm
        at = 0
        for k, one in enumerate(batch.judged):
            mine = slice(at, at + len(one.told))
            at = mine.stop
            own = None if answer is None else answer[mine]
            measured = np.full(len(one.told), np.nan, np.float32)
            given = None if own is None else pack(own, one.told, measured)
            # An entity that takes over a row after this batch is not yet there in this table.
            self._tables[k].rows["first_ms"][one.told["row"]] = one.told["first_ms"]
            record = decide(
                self._tables[k], one.told, given, self._judges[k], one.surprises,
                self.shadow.slot, measured,
            )  # fmt: skip
            # Rows may still hold what an earlier version predicted.
            both = (one.record["slot"] == self.in_charge.slot) & (
                record["slot"] == self.shadow.slot
            )
            self.tallies[k].add(one.record, record, warm[mine] & both)
            self._alerts(k, one.told, one.record, IN_CHARGE)
            self._alerts(k, one.told, record, SHADOW)
        silences = [(k, row, IN_CHARGE) for k, row in batch.silences]
        for k, (table, judge) in enumerate(zip(self._tables, self._judges, strict=True)):
            silences += [(k, row, SHADOW) for row, _ in sweep(table, batch.watermark_ms, judge)]
        for k, row, side in silences:
            first_ms = int(self._tables[k].rows["first_ms"][row])
            self._found(Finding(k, row, first_ms, side, batch.watermark_ms))
        self._latest_ms = max(self._latest_ms, batch.watermark_ms)
        self._close()

    def _alerts(self, k: int, told: NDArray[np.void], record: NDArray[np.void], side: int) -> None:
        found = (record["verdict"] == ALERT) | (record["silence_ms"] != NEVER_MS)
        for i in np.flatnonzero(found).tolist():
            one = told[i]
            self._found(
                Finding(k, int(one["row"]), int(one["first_ms"]), side, int(one["time_ms"]))
            )

    def _found(self, finding: Finding) -> None:
        other = self._open.setdefault(finding.entity, finding)
        if other is finding:
            self.alone[finding.side] += 1
        elif other.side != finding.side:
            self.both += 1
            self.alone[other.side] -= 1
            del self._open[finding.entity]

    def _close(self) -> None:
        """Give up the findings that the other side had its time to meet, the first found first."""
        while self._open:
            key, finding = self._open.popitem(last=False)
            if finding.time_ms + SAME_MS >= self._latest_ms:
                self._open[key] = finding
                self._open.move_to_end(key, last=False)
                break
            self.old.append(finding)

    def examples(self) -> list[Finding]:
        """Return alerts of one side alone, the newest last."""
        newest = list(islice(reversed(self._open.values()), EXAMPLES))
        return [*self.old, *reversed(newest)][-EXAMPLES:]

    def report(self, tables: Sequence[Table], warm: float) -> dict[str, object]:
        """Return what was found so far, as the models' topic tells it.

        Args:
            tables: name the rows.
            warm: share of the latest events whose memories of the shadow's encoder were warm.
        """
        examples = [one for one in self.examples() if one.holds(tables)]

        def by_side(column: int) -> dict[str, float]:
            return {
                kind: round(float(tally.nats[column]), 6)
                for kind, tally in zip(self.kinds, self.tallies, strict=True)
            }

        def pit(side: int) -> dict[str, list[int]]:
            return {
                kind: tally.pit[side].astype(int).tolist()
                for kind, tally in zip(self.kinds, self.tallies, strict=True)
            }

        each = dict(zip(self.kinds, self.tallies, strict=True))
        return {
            "events": {kind: tally.events for kind, tally in each.items()},
            "compared": {kind: tally.compared for kind, tally in each.items()},
            "nats": {"in_charge": by_side(IN_CHARGE), "shadow": by_side(SHADOW)},
            "difference_squares": {k: round(tally.square, 6) for k, tally in each.items()},
            "pit": {"in_charge": pit(IN_CHARGE), "shadow": pit(SHADOW)},
            "alerts": {
                "both": self.both,
                "come": self.alone[SHADOW],
                "go": self.alone[IN_CHARGE],
                "examples": [
                    {
                        "change": "come" if one.side == SHADOW else "go",
                        "kind": self.kinds[one.kind],
                        "id": id_of(tables[one.kind].rows[one.row]),
                        "event_time": rfc3339(one.time_ms),
                    }
                    for one in examples
                ],
            },
            "missed_batches": self.missed,
            "warm": round(warm, 4),
        }
