"""Read a stream to fit on: a file of JSON lines, CSV or Parquet, or a Kafka topic to its end.

Whatever it is becomes messages that the job's own parse step reads, with its rules: what the job
would send to the dead letters is counted here.
"""

from __future__ import annotations

import gzip
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flink_jobs.errors import EddyError
from flink_jobs.parse import Records, parse
from flink_jobs.parse_mapping import pointer_tokens
from flink_jobs.settings import EventSettings, Settings
from state.columns import Strings
from state.events import EventBatch

CHUNK_MESSAGES = 8_192
# A file's messages have no Kafka timestamp to be ahead of: the year 9999.
NO_LIMIT_MS = 253_402_300_799_000
TABLE_SUFFIXES = (".csv", ".parquet")
LINE_SUFFIXES = (".jsonl", ".ndjson", ".json", ".gz")
KAFKA_POLL_S = 1.0
KAFKA_SILENCE_S = 60.0  # without a message and without an end
METADATA_TIMEOUT_S = 10.0

Progress = Callable[[int], None]


@dataclass(slots=True)
class ReadEvents:
    """What a stream held.

    Attributes:
        events: in order of event time, as if of one partition.
        messages: read, the bad and the dropped ones included.
        rejected: bad messages by reason.
        dropped: events that were too old for the limit.
        first_bad: what was wrong with the first bad message; repeats nothing of it.
    """

    events: EventBatch
    messages: int
    rejected: Counter[str] = field(default_factory=Counter)
    dropped: int = 0
    first_bad: str = ""


def edition(source: str, settings: Settings) -> dict[str, object]:
    """Name what tells one state of a source from another: a file's size and time, or brokers."""
    if is_file(source) and Path(source).is_file():
        stat = Path(source).stat()
        return {"size": stat.st_size, "changed": stat.st_mtime_ns}
    return {"servers": settings.source.bootstrap_servers}


def is_file(source: str) -> bool:
    """Tell a file from a topic: it exists, or has a folder or a known ending in its name."""
    known = (*TABLE_SUFFIXES, *LINE_SUFFIXES)
    return Path(source).exists() or "/" in source or source.lower().endswith(known)


def read_stream(source: str, settings: Settings, limit: int, progress: Progress) -> ReadEvents:
    """Read all events of a file or topic, of which the newest `limit` are kept.

    Args:
        source: path of a file, or name of a topic.
        settings: how messages become events, and where Kafka is.
        limit: events that are kept at most.
        progress: told the number of messages read so far.

    Raises:
        EddyError: it cannot be read, lacks a column, or holds no event.
    """
    if is_file(source):
        path = Path(source)
        if not path.is_file():
            raise EddyError(f"--from: expected a file or the name of a topic, found no {source}")
        chunks = _file_chunks(path, settings.event)
    else:
        chunks = _topic_chunks(source, settings, limit)
    return gather_events(chunks, source, settings.event, limit, progress)


def gather_events(
    chunks: Iterable[list[tuple[bytes, int]]],
    name: str,
    event: EventSettings,
    limit: int,
    progress: Progress,
) -> ReadEvents:
    """Parse messages, each with its Kafka timestamp, and keep the newest `limit` events by arrival.

    Raises:
        EddyError: no message is an event.
    """
    kept: deque[EventBatch] = deque()
    rejected: Counter[str] = Counter()
    messages = held = dropped = 0
    first_bad = ""
    for chunk in chunks:
        n = len(chunk)
        records = Records(
            "fit",
            [value for value, _ in chunk],
            np.zeros(n, np.int32),
            np.arange(messages, messages + n),
            np.array([timestamp for _, timestamp in chunk], np.int64),
        )
        parsed = parse(records, event, 1)
        for bad in parsed.rejected:
            first_bad = first_bad or f"message {bad.offset + 1}: {bad.detail}"
            rejected[str(bad.reason)] += 1
        for _, batch in parsed.batches:
            kept.append(batch)
            held += len(batch)
        while kept and held - len(kept[0]) >= limit:
            held -= len(kept[0])
            dropped += len(kept.popleft())
        messages += n
        progress(messages)
    if not kept:
        why = f"; the first: {first_bad}" if first_bad else ""
        raise EddyError(
            f"--from {name}: expected events as [event] of the settings maps them, found none in "
            f"{messages:,} messages{why}"
        )
    return ReadEvents(in_order(list(kept)), messages, rejected, dropped, first_bad)


def in_order(batches: list[EventBatch]) -> EventBatch:
    """Join batches into one in order of event time, then of arrival, as of one partition."""
    time_ms = np.concatenate([b.time_ms for b in batches])
    order = np.argsort(time_ms, kind="stable")

    def numbers(name: str) -> Any:
        return np.concatenate([getattr(b, name) for b in batches])[order]

    return EventBatch(
        topic=batches[0].topic,
        time_ms=time_ms[order],
        value=numbers("value"),
        mark=numbers("mark"),
        owned=numbers("owned"),
        partition=np.zeros(len(order), np.int32),
        offset=np.arange(len(order)),
        ingest_ms=time_ms[order],
        event_id=_joined([b.event_id for b in batches], order),
        ids=tuple(_joined([b.ids[k] for b in batches], order) for k in range(len(batches[0].ids))),
        hashes=np.concatenate([b.hashes for b in batches], axis=1)[:, order],
    )


def _joined(columns: list[Strings], order: Any) -> Strings:
    data = np.concatenate([column.data for column in columns])
    lengths = np.concatenate([np.diff(column.offsets) for column in columns]).astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])[:-1]
    lengths, starts = lengths[order], starts[order]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    # Byte j of string i stands at starts[i] + j - offsets[i].
    at = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
    return Strings(data[at], offsets.astype(np.int32))


# -- files -----------------------------------------------------------------------------------------


def _file_chunks(path: Path, event: EventSettings) -> Iterator[list[tuple[bytes, int]]]:
    suffix = path.suffix.lower()
    if suffix in TABLE_SUFFIXES:
        messages = _table_messages(path, suffix, event)
    else:
        messages = _lines(path, suffix)
    return _chunks((message, NO_LIMIT_MS) for message in messages)


def _chunks(messages: Iterable[tuple[bytes, int]]) -> Iterator[list[tuple[bytes, int]]]:
    chunk: list[tuple[bytes, int]] = []
    for message in messages:
        chunk.append(message)
        if len(chunk) == CHUNK_MESSAGES:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _lines(path: Path, suffix: str) -> Iterator[bytes]:
    try:
        with gzip.open(path) if suffix == ".gz" else path.open("rb") as lines:
            for line in lines:
                if text := line.strip():
                    yield text
    except (OSError, EOFError, zlib.error) as error:  # the last two: cut off or damaged
        raise EddyError(f"--from: {path} cannot be read: {error}") from None


def _table_messages(path: Path, suffix: str, event: EventSettings) -> Iterator[bytes]:
    """Write each row as the message that the settings' pointers find their fields in."""
    import orjson

    columns = pointer_columns(event)
    texts = {event.id_pointer, event.mark_pointer, *(pointer for _, pointer in event.entities)}
    for rows in _tables(path, suffix, {c for p, c in columns.items() if p in texts}):
        names = set(rows.column_names)
        found = {p: _column(p, names) for p in columns}
        _require(path, found, event, names)
        wanted = {pointer: column for pointer, column in found.items() if column is not None}
        for row in rows.select(sorted(set(wanted.values()))).to_pylist():
            message: dict[str, Any] = {}
            for pointer, column in wanted.items():
                _put(message, pointer_tokens(pointer), row[column])
            yield orjson.dumps(message, default=_plain, option=orjson.OPT_NAIVE_UTC)


def pointer_columns(event: EventSettings) -> dict[str, str]:
    """Return the plainest name of a column for each pointer of the settings: "/a/b" is "a.b"."""
    pointers = [event.id_pointer, event.time_pointer, event.value_pointer, event.mark_pointer]
    pointers += [pointer for _, pointer in event.entities]
    return {p: ".".join(pointer_tokens(p)) for p in pointers if p is not None}


def _column(pointer: str, names: set[str]) -> str | None:
    """Find the column of a pointer: "a.b", "a/b" or "/a/b"."""
    tokens = pointer_tokens(pointer)
    return next((n for n in (".".join(tokens), "/".join(tokens), pointer) if n in names), None)


def _require(
    path: Path, found: dict[str, str | None], event: EventSettings, names: set[str]
) -> None:
    needed = [event.id_pointer, event.time_pointer]
    missing = [p for p in needed if found[p] is None]
    if all(found[pointer] is None for _, pointer in event.entities):
        missing += [pointer for _, pointer in event.entities]
    if missing:
        raise EddyError(
            f"--from: {path} lacks columns for {', '.join(missing)} of [event]; it has "
            f"{', '.join(sorted(names))}. A pointer /a/b is the column a.b; name yours in the "
            "settings"
        )


def _put(message: dict[str, Any], tokens: tuple[str, ...], value: Any) -> None:
    for token in tokens[:-1]:
        message = message.setdefault(token, {})
    message[tokens[-1]] = value


def _plain(value: Any) -> Any:
    """Turn what a table holds and JSON does not into what the parse step reads."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if hasattr(value, "isoformat"):
        text = value.isoformat()
        return text if value.tzinfo is not None else f"{text}Z"
    return float(value)  # decimals


def _tables(path: Path, suffix: str, texts: set[str]) -> Iterator[Any]:
    """Yield record batches; identifiers of a CSV file stay text, with their leading zeros."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    try:
        if suffix == ".parquet":
            yield from parquet.ParquetFile(path).iter_batches(CHUNK_MESSAGES)
            return
        types = {name: pa.string() for text in texts for name in (text, text.replace(".", "/"))}
        convert = csv.ConvertOptions(column_types=types, strings_can_be_null=True)
        with csv.open_csv(path, convert_options=convert) as reader:
            yield from reader
    except (pa.ArrowException, OSError) as error:
        raise EddyError(f"--from: {path} cannot be read: {error}") from None


# -- Kafka -----------------------------------------------------------------------------------------


def _topic_chunks(topic: str, settings: Settings, limit: int) -> Iterator[list[tuple[bytes, int]]]:
    """Read a topic from its beginning, or where the newest `limit` messages begin, to its end."""
    from confluent_kafka import Consumer, KafkaException

    from deploy.kafka_properties import to_librdkafka

    servers = settings.source.bootstrap_servers
    consumer = Consumer(
        {
            **to_librdkafka(settings.source.kafka),
            "bootstrap.servers": servers,
            "group.id": "eddy-fit",  # no offset is committed
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "log_level": 0,
        }
    )
    try:
        yield from _chunks(_messages(consumer, topic, servers, limit))
    except KafkaException as error:
        raise EddyError(f"topic {topic} at {servers}: {error.args[0].str()}") from None
    finally:
        consumer.close()


def _messages(consumer: Any, topic: str, servers: str, limit: int) -> Iterator[tuple[bytes, int]]:
    from confluent_kafka import KafkaError, TopicPartition

    ends = _ends(consumer, topic, servers)
    share = -(-limit // max(1, len(ends)))
    consumer.assign(
        [TopicPartition(topic, p, max(low, high - share)) for p, (low, high) in ends.items()]
    )
    open_partitions = {p for p, (low, high) in ends.items() if high > low}
    silent_s = 0.0
    while open_partitions:
        message = consumer.poll(KAFKA_POLL_S)
        if message is None:
            silent_s += KAFKA_POLL_S
            if silent_s > KAFKA_SILENCE_S:
                raise EddyError(
                    f"topic {topic} at {servers}: nothing came for {KAFKA_SILENCE_S:.0f} s before "
                    "its end; is the broker well?"
                )
            continue
        silent_s = 0.0
        partition, error = message.partition(), message.error()
        if error is not None:
            if error.code() != KafkaError._PARTITION_EOF:
                raise EddyError(f"topic {topic} at {servers}: {error.str()}")
            open_partitions.discard(partition)
            continue
        if message.offset() >= ends[partition][1]:  # it came after the beginning of the fit
            open_partitions.discard(partition)
            continue
        yield message.value() or b"", message.timestamp()[1]
        if message.offset() + 1 == ends[partition][1]:
            open_partitions.discard(partition)


def _ends(consumer: Any, topic: str, servers: str) -> dict[int, tuple[int, int]]:
    from confluent_kafka import KafkaException, TopicPartition

    try:
        known = consumer.list_topics(topic, timeout=METADATA_TIMEOUT_S).topics[topic]
    except KafkaException as error:
        raise EddyError(
            f"no Kafka broker answers at {servers}: {error.args[0].str()}; name yours in "
            "source.bootstrap_servers"
        ) from None
    if known.error is not None:
        raise EddyError(
            f'--from: "{topic}" is no file, and as a topic at {servers}: {known.error.str()}'
        )
    return {
        p: consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=METADATA_TIMEOUT_S)
        for p in sorted(known.partitions)
    }
