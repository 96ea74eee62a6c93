"""Read what the job says of its models: the topic `eddy.models`, or a file of the same messages."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from flink_jobs.errors import EddyError
from flink_jobs.settings import Settings

# Of each partition: reports of shards come every few seconds, and only the newest count.
NEWEST = 20_000


def read_topic(settings: Settings) -> list[Mapping[str, Any]]:
    """Return the newest messages of the model that the settings name, oldest first.

    Raises:
        EddyError: the job writes none, no broker answers, or there is no such topic.
    """
    from deploy import alerts
    from deploy.kafka_properties import to_librdkafka

    name = settings.sink.models_topic
    if name is None:
        raise EddyError(
            "the job writes no reports on its models; name a topic in sink.models_topic"
        )

    source = alerts.AlertTopic(
        settings.source.bootstrap_servers,
        name,
        to_librdkafka(settings.sink.kafka or settings.source.kafka),
        setting="sink.models_topic",
    )
    found = alerts.follow(source, True, True, threading.Event(), newest=NEWEST)
    mine = [m for m in found if m.get("model") == settings.triton.model_name]
    # Shards write to several partitions; the order between these is an accident.
    return sorted(mine, key=lambda message: str(message.get("at")))


def read_file(path: Path) -> list[Mapping[str, Any]]:
    """Return the messages of a file of JSON lines, oldest first.

    Raises:
        EddyError: it cannot be read, or a line is no JSON object.
    """
    return sorted(_lines(path), key=lambda message: str(message.get("at")))


def _lines(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise EddyError(f"--from: {path} cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            message = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise EddyError(f"--from: {path}, line {number} is no JSON: {error}") from None
        if not isinstance(message, dict):
            raise EddyError(f"--from: {path}, line {number}: expected a JSON object")
        yield message
