"""The sequences of a stream by entity kind, split in time, and whether there is enough to learn."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flink_jobs.batches import transformed
from flink_jobs.errors import EddyError
from flink_jobs.settings import Settings
from models.tpp import spec
from models.tpp.plan import KindSequences
from state.events import EventBatch

VALID_SHARE, TEST_SHARE = 0.7, 0.85  # of the events, by which validation and test begin
FEWEST_GAPS = 500  # of a kind, to learn from
FEWEST_HELD_GAPS = 50  # of a kind, to validate by, and to test by
_EQUAL = 1e-6  # standard deviation of log gaps, below which they are one


@dataclass(frozen=True, slots=True)
class Split:
    """Where the parts of a stream begin, epoch milliseconds.

    Attributes:
        valid_ms: validation; what is before is learnt from.
        test_ms: test.
        end_ms: the last event.
    """

    valid_ms: int
    test_ms: int
    end_ms: int


@dataclass(frozen=True, slots=True)
class Learnable:
    """What there is to learn.

    Attributes:
        kinds: with enough gaps, in the settings' order.
        left_out: by kind, why it is not learnt from.
        mark_log_share: float[8] logs of constant mark probabilities; empty where marks are learnt.
        notes: fallbacks, in words for people.
    """

    kinds: tuple[KindSequences, ...]
    left_out: dict[str, str]
    mark_log_share: tuple[float, ...]
    notes: tuple[str, ...]


def split_of(events: EventBatch) -> Split:
    """Split a stream that is in order of event time by its number of events."""
    time_ms, n = events.time_ms, len(events)
    return Split(
        int(time_ms[int(VALID_SHARE * n)]), int(time_ms[int(TEST_SHARE * n)]), int(time_ms[-1])
    )


def sequences_of(events: EventBatch, settings: Settings) -> tuple[KindSequences, ...]:
    """Put the events of each entity side by side, for each kind of the settings.

    Raises:
        EddyError: no event has an entity of some kind.
    """
    value = transformed(events.value, settings.event)
    found = []
    for k, (kind, pointer) in enumerate(settings.event.entities):
        mine = (events.owned >> k & 1) == 1
        if not mine.any():
            raise EddyError(
                f"no event has an entity of the kind {kind} at {pointer}: expected some; check "
                "[event.entities]"
            )
        who = events.hashes[k][mine]
        order = np.argsort(who, kind="stable")
        begins = np.flatnonzero(np.diff(who[order])) + 1
        starts = np.concatenate([[0], begins, [len(order)]]).astype(np.int64)
        found.append(
            KindSequences(
                kind,
                events.time_ms[mine][order],
                events.mark[mine][order],
                value[mine][order],
                starts,
            )
        )
    return tuple(found)


def learnable(kinds: tuple[KindSequences, ...], split: Split, settings: Settings) -> Learnable:
    """Choose the kinds that can be learnt from.

    Raises:
        EddyError: none can.
    """
    left_out = {}
    kept = []
    for one in kinds:
        why = _why_not(one, split)
        if why:
            left_out[one.kind] = why
        else:
            kept.append(one)
    if not kept:
        told = "; ".join(f"{kind}: {why}" for kind, why in left_out.items())
        raise EddyError(
            f"nothing to learn the timing of events from: {told}. Give a longer stream, or look at "
            "[event] of the settings: time_pointer and the entities"
        )
    notes = [f"{kind} is not learnt from: {why}" for kind, why in left_out.items()]
    share, note = _marks(kept, split, settings)
    learnt = [one.value[one.time_ms < split.valid_ms] for one in kept]
    if not any(np.isfinite(value).any() for value in learnt):
        note.append("no event has an amount: the amount head stays as it began and is never asked")
    return Learnable(tuple(kept), left_out, share, (*notes, *note))


def _why_not(one: KindSequences, split: Split) -> str:
    gaps_s, at = _gaps(one)
    learnt = int(np.count_nonzero(at < split.valid_ms))
    entities = len(one.starts) - 1
    if not len(gaps_s):
        return f"no gaps: each of its {entities:,} entities has one event"
    if float(np.std(np.log(np.maximum(gaps_s, spec.GAP_FLOOR_S)))) < _EQUAL:
        return (
            f"all its {len(gaps_s):,} gaps are {gaps_s[0]:g} s: any other gap is a surprise "
            "without a model (regularity), and a model has nothing to say"
        )
    if learnt < FEWEST_GAPS:
        return (
            f"expected at least {FEWEST_GAPS} gaps to learn from, found {learnt:,} of {entities:,} "
            f"entities in the first {VALID_SHARE:.0%} of the events"
        )
    # A prediction belongs to the part in which it is made.
    made = at - np.rint(1e3 * gaps_s).astype(np.int64)
    valid = int(np.count_nonzero((made >= split.valid_ms) & (at < split.test_ms)))
    test = int(np.count_nonzero(made >= split.test_ms))
    if min(valid, test) < FEWEST_HELD_GAPS:
        return (
            f"expected at least {FEWEST_HELD_GAPS} gaps each to validate and to test by, found "
            f"{valid:,} and {test:,}"
        )
    return ""


def _gaps(one: KindSequences) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the gaps between the events of one entity, seconds, and the times at their ends."""
    gap_ms = np.diff(one.time_ms)
    inside = np.ones(len(gap_ms), np.bool_)
    inside[one.starts[1:-1] - 1] = False
    return gap_ms[inside] / 1e3, one.time_ms[1:][inside]


def _marks(
    kinds: list[KindSequences], split: Split, settings: Settings
) -> tuple[tuple[float, ...], list[str]]:
    """Return the constant mark head, where marks cannot be learnt, and what to say of it."""
    counts = np.zeros(spec.MARKS)
    for one in kinds:
        mark = one.mark[(one.time_ms < split.valid_ms) & (one.mark < spec.MARKS)]
        counts += np.bincount(mark, minlength=spec.MARKS)
    if np.count_nonzero(counts) > 1:
        return (), []
    share = (counts + 1.0) / (counts.sum() + spec.MARKS)
    if not counts.sum():
        what = "events have no known mark"
    else:
        what = f"one mark only, {settings.event.marks[int(counts.argmax())]}"
    return tuple(math.log(p) for p in share), [f"{what}: the mark head is constant and not learnt"]
