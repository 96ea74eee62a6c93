"""The job's Kafka source and sink, and its micro-batches, in Flink SQL: they stay in the JVM."""

from __future__ import annotations

from collections.abc import Mapping

from flink_jobs.settings import Settings

SOURCE = "eddy_source"
SINK = "eddy_sink"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _options(options: Mapping[str, str]) -> str:
    return ",\n  ".join(f"{_quoted(key)} = {_quoted(value)}" for key, value in options.items())


def _start(settings: Settings) -> dict[str, str]:
    start = settings.source.start
    if start.startswith("timestamp_ms:"):
        return {
            "scan.startup.mode": "timestamp",
            "scan.startup.timestamp-millis": start.removeprefix("timestamp_ms:"),
        }
    modes = {
        "earliest": "earliest-offset",
        "latest": "latest-offset",
        "committed": "group-offsets",
    }
    found = {"scan.startup.mode": modes[start]}
    if start == "committed":
        found["properties.auto.offset.reset"] = "earliest"
    return found


def source(settings: Settings) -> str:
    """Return the table of the events' topic: raw bytes with their place and time."""
    options = {
        "connector": "kafka",
        "topic": settings.source.topic,
        "properties.bootstrap.servers": settings.source.bootstrap_servers,
        "properties.group.id": settings.source.group_id,
        "properties.fetch.max.bytes": "52428800",
        "properties.max.poll.records": "5000",
        "properties.max.partition.fetch.bytes": "12582912",
        "format": "raw",
        **_start(settings),
        **{f"properties.{key}": value for key, value in dict(settings.source.kafka).items()},
    }
    if settings.source.stop == "latest":
        options["scan.bounded.mode"] = "latest-offset"
    return f"""CREATE TEMPORARY TABLE {SOURCE} (
  `value` BYTES,
  `part` INT METADATA FROM 'partition' VIRTUAL,
  `at` BIGINT METADATA FROM 'offset' VIRTUAL,
  `stamp` TIMESTAMP_LTZ(3) METADATA FROM 'timestamp' VIRTUAL,
  `arrived` AS PROCTIME()
) WITH (
  {_options(options)}
)"""


def micro_batches(settings: Settings) -> str:
    """Return the query that gathers messages by processing time.

    A window of event time would drop late rows without a word; this one only groups.
    """
    seconds, ms = divmod(settings.source.batch_ms, 1000)
    size = f"INTERVAL '{seconds}.{ms:03d}' SECOND(5, 3)"
    group = "window_start, window_end"
    if settings.flink.parallelism > 1:
        group += f", MOD(part, {settings.flink.parallelism})"
    return f"""SELECT
  ARRAY_AGG(`value`),
  ARRAY_AGG(CAST(part AS BIGINT) * 281474976710656 + `at`),
  ARRAY_AGG(EXTRACT(EPOCH FROM stamp) * 1000 + EXTRACT(MILLISECOND FROM stamp))
FROM TABLE(TUMBLE(TABLE {SOURCE}, DESCRIPTOR(arrived), {size}))
GROUP BY {group}"""  # noqa: S608 (every part is ours or a number)


def sink(settings: Settings) -> str:
    """Return the table that writes key and value to the topic each row names."""
    exactly_once = settings.sink.delivery == "exactly_once"
    security = dict(settings.sink.kafka) or dict(settings.source.kafka)
    options = {
        "connector": "kafka",
        "topic": ";".join(settings.sink.topics),
        "properties.bootstrap.servers": settings.source.bootstrap_servers,
        "properties.transaction.timeout.ms": str(settings.sink.transaction_timeout_ms),
        "properties.max.request.size": "2097152",
        "properties.linger.ms": "1",
        "key.format": "raw",
        "key.fields": "key",
        "value.format": "raw",
        "value.fields-include": "EXCEPT_KEY",
        "sink.delivery-guarantee": "exactly-once" if exactly_once else "at-least-once",
        **{f"properties.{key}": value for key, value in security.items()},
    }
    if exactly_once:
        options["sink.transactional-id-prefix"] = f"eddy-{settings.job.name}"
    return f"""CREATE TEMPORARY TABLE {SINK} (
  `topic` STRING NOT NULL METADATA,
  `key` BYTES,
  `value` BYTES
) WITH (
  {_options(options)}
)"""
