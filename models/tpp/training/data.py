"""Sequences of events as the arrays that training reads, and those of simulated worlds.

Features come from `models.tpp.encoder.sequence_features`, the walk that the stream itself makes, so
what is learnt is what will be asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from models.baselines.entity_level import LevelPrior, standardised_values
from models.baselines.renewal import GAP_PRIOR_EVENTS, cumulative_profile, operational_s
from models.prior import KindPrior
from models.prior_fit import fit_kind
from models.simulation.config import SimulationConfig, training
from models.simulation.payments import DEVICES_PER_OWNER, Payments, mixed
from models.simulation.stream import Simulation
from models.tpp import spec
from models.tpp.encoder import sequence_features
from models.tpp.training.recurrence import slowest_decay

KINDS = ("user", "merchant", "device")


@dataclass(frozen=True, slots=True)
class KindData:
    """All sequences of one entity kind, one after the other.

    Attributes:
        kind: name of the entity kind.
        prior: what the stream would know of the kind.
        time_ms: int64[n], event times, in order within a sequence.
        mark: uint8[n].
        value: float64[n], transformed amount; NaN is missing.
        starts: int64[s + 1], where each sequence begins, and the end.
        owner: int64[s], the entity's number, for a device that of its user: a user's sequence is
            nearly that of its devices, so the two must be held out together.
        end_ms: when watching ended: what did not happen by then is censored.
    """

    kind: str
    prior: KindPrior
    time_ms: NDArray[np.int64]
    mark: NDArray[np.uint8]
    value: NDArray[np.float64]
    starts: NDArray[np.int64]
    owner: NDArray[np.int64]
    end_ms: int


@dataclass(frozen=True, slots=True)
class Segment:
    """Events `begin` to `end` of sequences of `data`, taken as an entity's whole history.

    Attributes:
        data: where the events lie.
        begin: first event.
        end: after the last event.
        closed: True where nothing follows until `data.end_ms`: the last gap is censored.
        weight: of each event in the loss.
        from_ms: only predictions made at or after this time weigh anything; those before tell the
            memory what it must know.
    """

    data: KindData
    begin: int
    end: int
    closed: bool
    weight: float
    from_ms: int = 0


@dataclass(frozen=True, slots=True)
class Block:
    """Events of several segments, ready for the network.

    Attributes:
        u: float32[n, 11], encoder features.
        slowest: float32[n], decay of the longest time constant.
        first: bool[n], a segment begins.
        rest: float32[n, 5], zgap, ratio, is_first, log1p(events) / 5, mark.
        target: float32[n], log(next gap) - m; where censored, that of the time watched.
        next_mark: int64[n], -1 where there is none.
        amount: float32[n], standardised innovation of the event's own amount; NaN is missing.
        known: bool[n], the next event is known.
        censored: bool[n], nothing followed until the end.
        weight: float32[n], 0 where a prediction does not count.
    """

    u: NDArray[np.float32]
    slowest: NDArray[np.float32]
    first: NDArray[np.bool_]
    rest: NDArray[np.float32]
    target: NDArray[np.float32]
    next_mark: NDArray[np.int64]
    amount: NDArray[np.float32]
    known: NDArray[np.bool_]
    censored: NDArray[np.bool_]
    weight: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.first)


def simulate(config: SimulationConfig) -> Payments:
    """Return all payments of a world."""
    return Payments.join(list(Simulation(config).chunks()))


def worlds(seed: int, count: int) -> list[SimulationConfig]:
    """Return `count` worlds to learn from: the demo's population, and some unlike it."""
    found = []
    for number in range(count):
        config = training(seed * 1_000 + number)
        if number % 4 == 3:
            config = replace(config, users=1_500, merchants=100, branching=0.5)
        found.append(config)
    return found


def gather(
    kind: str,
    entity: NDArray[np.int64],
    payments: Payments,
    end_ms: int,
    prior: KindPrior | None = None,
) -> KindData:
    """Sort payments into the sequences of one kind, and fit the prior if none is given."""
    value = np.log(payments.amount.astype(np.float64))
    if prior is None:
        prior = fit_kind(entity, payments.time_ms, value)
    order = np.argsort(entity, kind="stable")
    changes = np.flatnonzero(np.diff(entity[order])) + 1
    starts = np.concatenate([[0], changes, [len(order)]]).astype(np.int64)
    owner = entity[order][starts[:-1]]
    if kind == "device":
        owner = owner // DEVICES_PER_OWNER
    return KindData(
        kind,
        prior,
        payments.time_ms[order],
        payments.channel[order],
        value[order],
        starts,
        owner,
        end_ms,
    )


def read_world(
    config: SimulationConfig,
    until: float = 1.0,
    priors: Mapping[str, KindPrior] | None = None,
) -> list[KindData]:
    """Simulate a world and return its kinds.

    Args:
        config: the world.
        until: share of its span that is watched.
        priors: by kind, from another world or an earlier time, as the stream would have them; None
            fits them on what is watched.
    """
    payments = simulate(config)
    end_ms = config.start_ms + int(config.duration_s * 1_000 * until)
    payments = payments.take(payments.time_ms < end_ms)
    return [
        gather(
            kind,
            getattr(payments, kind).astype(np.int64),
            payments,
            end_ms,
            priors[kind] if priors else None,
        )
        for kind in KINDS
    ]


def folds(data: KindData, count: int, seed: int) -> NDArray[np.int64]:
    """Assign each sequence to one of `count` folds by its owner's number alone.

    So an entity stays in its fold whatever else is watched, and for however long.
    """
    scrambled = mixed(data.owner.astype(np.uint64) ^ mixed(np.array([seed], np.uint64)))
    return (scrambled % np.uint64(count)).astype(np.int64)


def cut(
    data: KindData,
    which: NDArray[np.int64],
    longest: int,
    rng: np.random.Generator | None = None,
) -> list[Segment]:
    """Cut sequences into segments of at most `longest` events, from a random place on.

    A segment is taken as an entity's whole history: what the stream sees of an entity that it
    met late, or again after its time to live.

    Args:
        data: the sequences.
        which: int64[m], numbers of the sequences to take.
        longest: events of a segment at most.
        rng: where to begin; None begins at each sequence's first event.
    """
    lengths = np.diff(data.starts)[which]
    # An entity of n events weighs as n ** .75: the busiest must not be all that is learnt.
    weights = (lengths / np.median(lengths)) ** -0.25
    weights *= lengths.sum() / (weights * lengths).sum()
    found = []
    for sequence, weight in zip(which, weights, strict=True):
        begin, end = int(data.starts[sequence]), int(data.starts[sequence + 1])
        at = begin
        if rng is not None and end - begin > longest:
            at -= int(rng.integers(0, longest))
        while at < end:
            low, high = max(at, begin), min(at + longest, end)
            found.append(Segment(data, low, high, high == end, float(weight)))
            at += longest
    return found


def build(segments: Sequence[Segment]) -> Block:
    """Compute the features and targets of `segments`."""
    parts = [_build_one(segment) for segment in segments]
    return Block(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Block)))


def _build_one(segment: Segment) -> Block:
    data = segment.data
    time_ms = data.time_ms[segment.begin : segment.end]
    mark = data.mark[segment.begin : segment.end]
    n = len(time_ms)
    prior = data.prior
    cumulative = cumulative_profile(np.array(prior.profile))
    walk = sequence_features(
        time_ms, cumulative, prior.gap_mean, prior.gap_within_var, GAP_PRIOR_EVENTS
    )
    elapsed, phi, mean = walk[:, 0], walk[:, 1:4], walk[:, 4]
    # elapsed = gap / exp(m before the gap): its log is the target itself.
    target = np.empty(n)
    target[:-1] = np.log(elapsed[1:])
    watched = operational_s(data.end_ms, cumulative) - operational_s(int(time_ms[-1]), cumulative)
    target[-1] = np.log(max(watched, spec.GAP_FLOOR_S)) - mean[-1]
    known = np.ones(n, np.bool_)
    known[-1] = False
    censored = ~known & segment.closed
    u = np.zeros((n, spec.ENCODER_INPUT), np.float32)
    u[:, : spec.PHI] = phi
    marked = mark < spec.MARKS
    u[np.flatnonzero(marked), spec.PHI + mark[marked].astype(np.int64)] = 1.0
    rest = np.empty((n, 5), np.float32)
    rest[:, :3] = phi
    rest[:, 3] = np.log1p(np.arange(1, n + 1)) / spec.LOG_COUNT_DIVISOR
    rest[:, 4] = np.minimum(mark, spec.MARKS)
    next_mark = np.full(n, -1, np.int64)
    next_mark[:-1] = np.where(marked[1:], mark[1:], -1)
    first = np.zeros(n, np.bool_)
    first[0] = True
    return Block(
        u,
        slowest_decay(elapsed),
        first,
        rest,
        target.astype(np.float32),
        next_mark,
        standardised_values(data.value[segment.begin : segment.end], _level(prior)),
        known,
        censored,
        np.where(time_ms >= segment.from_ms, np.float32(segment.weight), np.float32(0.0)),
    )


def _level(prior: KindPrior) -> LevelPrior:
    return LevelPrior(*(getattr(prior, name) for name in LevelPrior._fields))


def pack(segments: Sequence[Segment], events: int, rng: np.random.Generator) -> list[list[Segment]]:
    """Shuffle segments into batches of some `events` events each."""
    batches: list[list[Segment]] = [[]]
    filled = 0
    for number in rng.permutation(len(segments)):
        segment = segments[number]
        size = segment.end - segment.begin
        if filled + size > events and batches[-1]:
            batches.append([])
            filled = 0
        batches[-1].append(segment)
        filled += size
    return batches
