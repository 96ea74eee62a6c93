"""Streams, models and a client without a server, for the tests of the score step."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import orjson
from numba import config
from numpy.typing import NDArray

from flink_jobs.alerts import ALERT, LATE, Output
from flink_jobs.breaker import BreakerState
from flink_jobs.intensity_protocol import IntensityClient, Ticket
from flink_jobs.kind_model import KindModel, Observer
from flink_jobs.model_files import kind_models
from flink_jobs.scorer import ShardScorer
from flink_jobs.settings import Settings, load
from models.prior import KindPrior, Prior, Tail
from models.tpp.encoder import Encoder
from models.tpp.spec import ENCODER_HIDDEN, INPUT, MARK, MARKS, MEMORY
from state.columns import Strings
from state.events import EventBatch, hash_strings

START_MS = 1_767_600_000_000  # 2026-01-05T08:00:00Z, a Monday
COMPILED = not config.DISABLE_JIT  # type: ignore[attr-defined]  # coverage runs the kernels as Python, far slower
NOT_MONEY = ("event.value_transform=identity", "event.value_min=-1e15")


def settings_of(*overrides: str) -> Settings:
    """Return settings under which a short stream alerts often, and pages are written early."""
    return load(
        None,
        {},
        [
            "detection.false_alerts_per_million=20000",
            "detection.silence_false_alerts_per_million=20000",
            "detection.min_events=2",
            "detection.silence_min_events=3",
            "detection.incident_quiet_s=60",
            "state.page_rows=4",
            "state.log_min_bytes=1024",
            "state.log_ratio=0.5",
            "state.initial_entities=1",
            *overrides,
        ],
    )


PRIOR = Prior(
    {
        "default": KindPrior(
            value_mean=7.0,
            value_between_var=1.0,
            gap_mean=4.0,
            gap_between_var=2.0,
            gap_within_var=1.5,
            profile=tuple(0.5 + (hour % 24 >= 8) for hour in range(168)),
            tails={"silence": Tail(0.0, 1.0)},
        )
    }
)


def encoder() -> Encoder:
    """Return random weights."""
    rng = np.random.default_rng(11)
    return Encoder(
        rng.normal(0, 0.5, (3 + MARKS, ENCODER_HIDDEN)).astype(np.float32),
        rng.normal(0, 0.5, ENCODER_HIDDEN).astype(np.float32),
        rng.normal(0, 0.5, (ENCODER_HIDDEN, MEMORY)).astype(np.float32),
        rng.normal(0, 0.1, MEMORY).astype(np.float32),
    )


def models_of(settings: Settings, prior: Prior = PRIOR) -> list[KindModel]:
    return kind_models(settings, encoder(), prior)


class DictStore(dict[int, bytes]):
    """A shard's map, in memory."""

    def put(self, key: int, value: bytes) -> None:
        self[key] = value

    def remove(self, key: int) -> None:
        self.pop(key, None)


def answer_to(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Answer each row by plain arithmetic, so that a row's answer does not depend on the others."""
    u = np.clip(x, -1.0, 1.0).astype(np.float64)
    weights = -1.4 + 0.1 * u[:, :4]
    means = 0.3 * u[:, 4:8]
    log_sds = 0.3 + 0.2 * u[:, 8:12]
    marks = -1.0 - np.abs(u[:, 12:20])
    amounts = [weights[:, ::-1], 4.0 * u[:, 16:20], 0.2 * u[:, 20:24] - 0.3]
    answer: NDArray[np.float32] = np.concatenate(
        [weights, means, log_sds, marks, *amounts], axis=1, dtype=np.float32, casting="same_kind"
    )
    return answer


@dataclass
class _FakeTicket:
    client: FakeClient
    x: NDArray[np.float32]
    ready_at: int
    open: bool = True

    def done(self) -> bool:
        return self.client.submitted >= self.ready_at

    def result(self, timeout_s: float) -> NDArray[np.float32] | None:
        assert timeout_s > 0.0 or self.done(), "waited for an answer that was not there"
        assert self.open, "asked twice"
        self.open = False
        return None if self.client.refuses(self.x) else answer_to(self.x)


class FakeClient:
    """Answers some submissions later, and never those whose content it dislikes.

    Args:
        delays: submissions after which each ticket is done, over and over.
        refuse_every: about one in so many batches is not answered; 0 for none.
        room: tickets that may be open at once.
        down: answers nothing while True.
    """

    state: BreakerState = "closed"
    model_version = "7"

    def __init__(self, delays: Sequence[int] = (0,), refuse_every: int = 0, room: int = 4) -> None:
        self._delays = delays
        self._refuse_every = refuse_every
        self._room = room
        self._tickets: list[_FakeTicket] = []
        self.submitted = 0
        self.down = False

    def submit(self, x: NDArray[np.float32]) -> Ticket:
        assert x.shape[1] == INPUT
        assert np.isfinite(x).all()
        delay = self._delays[self.submitted % len(self._delays)]
        self.submitted += 1
        ticket = _FakeTicket(self, x.copy(), self.submitted + delay)
        self._tickets = [t for t in self._tickets if t.open] + [ticket]
        return ticket

    def refuses(self, x: NDArray[np.float32]) -> bool:
        every = self._refuse_every
        # By the columns of the first feature version: an old savepoint was answered so.
        asked = np.ascontiguousarray(x[:, :MARK])
        return self.down or (every > 0 and zlib.crc32(asked.tobytes()) % every == 0)

    def has_room(self, rows: int) -> bool:  # noqa: ARG002 (protocol)
        return sum(t.open for t in self._tickets) < self._room

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Event:
    """One event in words; an empty id is an entity that the event does not have."""

    at_s: float
    value: float
    user: str = ""
    merchant: str = ""
    device: str = ""
    mark: int = 255
    partition: int = 0
    offset: int = -1


def batch_of(events: Sequence[Event], first_offset: int = 0) -> EventBatch:
    """Put `events` into columns; an offset of -1 is counted on from `first_offset`."""
    n = len(events)
    columns = [
        [getattr(e, kind).encode() for e in events] for kind in ("user", "merchant", "device")
    ]
    ids = tuple(Strings.of(column) for column in columns)
    owned = [sum((len(column[i]) > 0) << k for k, column in enumerate(columns)) for i in range(n)]
    offset = [e.offset if e.offset >= 0 else first_offset + i for i, e in enumerate(events)]
    return EventBatch(
        topic="eddy.payments",
        time_ms=np.array([START_MS + round(1000 * e.at_s) for e in events], np.int64),
        value=np.array([e.value for e in events], np.float64),
        mark=np.array([e.mark for e in events], np.uint8),
        owned=np.array(owned, np.uint8),
        partition=np.array([e.partition for e in events], np.int32),
        offset=np.array(offset, np.int64),
        ingest_ms=np.full(n, START_MS, np.int64),
        event_id=Strings.of(
            [f"p-{e.partition}-{o}".encode() for e, o in zip(events, offset, strict=True)]
        ),
        ids=ids,
        hashes=np.stack([hash_strings(column) for column in ids]),
    )


def stream(
    n: int, seed: int, *, entities: int = 12, partitions: int = 3, jitter_s: float = 4.0
) -> list[Event]:
    """Return `n` events: newcomers, missing values and entities, bursts, outliers, late ones."""
    rng = np.random.default_rng(seed)
    events = []
    now = 0.0
    for i in range(n):
        quick = i % 90 >= 75
        now += rng.exponential(0.5 if quick else 20.0)
        if i % 120 == 119:
            now += 4_000.0
        user = int(rng.integers(entities)) + (i // 60) * (entities // 3)
        at = now - rng.exponential(jitter_s) - (60.0 if rng.random() < 0.03 else 0.0)
        events.append(
            Event(
                at_s=at,
                value=float("nan")
                if rng.random() < 0.05
                else round(np.exp(rng.normal(7, 0.5 if rng.random() < 0.97 else 4))),
                user="" if rng.random() < 0.05 else f"u-{1 if quick else user}",
                merchant=f"m-{int(rng.integers(4))}",
                device="" if rng.random() < 0.1 else f"d-{user % 5}",
                mark=int(rng.choice([0, 1, 2, 255])),
                partition=int(rng.integers(partitions)),
                offset=i,
            )
        )
    return events


def split(events: Sequence[Event], sizes: Iterable[int]) -> Iterator[EventBatch]:
    """Cut `events` into batches of `sizes`, the last repeated until all are out."""
    at, size = 0, 1
    each = iter(sizes)
    while at < len(events):
        size = next(each, size)
        yield batch_of(events[at : at + size])
        at += size


def scorer_of(
    settings: Settings,
    store: DictStore | None = None,
    client: IntensityClient | None = None,
    observer: Observer | None = None,
    models: list[KindModel] | None = None,
) -> ShardScorer:
    return ShardScorer(
        settings,
        models or models_of(settings),
        DictStore() if store is None else store,
        client or FakeClient(),
        observer,
    )


def run(scorer: ShardScorer, batches: Iterable[EventBatch]) -> list[Output]:
    """Score all batches to the end."""
    found = [output for batch in batches for output in scorer.on_batch(batch)]
    return found + list(scorer.drain())


def alerts(outputs: Iterable[Output]) -> list[dict[str, object]]:
    return [orjson.loads(o.value) for o in outputs if o.kind == ALERT]


def late(outputs: Iterable[Output]) -> list[dict[str, object]]:
    return [orjson.loads(o.value) for o in outputs if o.kind == LATE]


def table_bytes(scorer: ShardScorer) -> list[dict[str, bytes]]:
    """Return everything of the tables that later scores depend on."""
    return [
        {
            "rows": table.rows[: table.used].tobytes(),
            "memory": table.memory[: table.used].tobytes(),
            "deadline_ms": table.deadline_ms[: table.used].tobytes(),
            "hashes": table.hashes[: table.used].tobytes(),
            "seen_ms": table.seen_ms[: table.used].tobytes(),
            "parts": b"".join(part[: table.used].tobytes() for part in table.parts),
            "begun": b"".join(begun[: table.used].tobytes() for begun in table.begun),
            "counters": bytes(str((table.used, table.cursor)), "ascii"),
        }
        for table in scorer.tables
    ]


def assert_same_tables(found: ShardScorer, expected: ShardScorer) -> None:
    """Compare the tables byte for byte, and name the first field that differs."""
    for k, (mine, other) in enumerate(zip(found.tables, expected.tables, strict=True)):
        assert (mine.used, mine.cursor) == (other.used, other.cursor), f"kind {k}"
        used = mine.used
        for name in mine.rows.dtype.names or ():
            ours, theirs = mine.rows[name], other.rows[name]
            differ = [r for r in range(used) if ours[r].tobytes() != theirs[r].tobytes()]
            assert not differ, f"kind {k}, field {name}: rows {differ}"
    assert table_bytes(found) == table_bytes(expected)
