"""Follow the alert topic: read committed alerts from Kafka, and write each as one line of text."""

from __future__ import annotations

import socket
import threading
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import orjson
from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    Consumer,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from rich.text import Text

from flink_jobs.errors import EddyError

Alert = Mapping[str, object]

POLL_S = 0.2
METADATA_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class AlertTopic:
    """Where alerts are read.

    Attributes:
        bootstrap_servers: HOST:PORT, several by commas.
        topic: The topic of alerts.
        properties: Further librdkafka properties, such as `security.protocol`.
        setting: That names the topic, for messages.
    """

    bootstrap_servers: str
    topic: str
    properties: Mapping[str, str]
    setting: str = "sink.alerts_topic"


def follow(
    source: AlertTopic,
    from_beginning: bool,
    to_end: bool,
    stop: threading.Event,
    newest: int | None = None,
) -> Iterator[Alert]:
    """Yield alerts as they are committed.

    Args:
        source: The topic.
        from_beginning: Begin with the oldest alert; else with those that come from now on.
        to_end: End after the alerts that are there; else go on until `stop` is set.
        stop: Ends the iteration when set.
        newest: From the beginning, but at most so many of each partition; None for all.

    Raises:
        EddyError: The brokers cannot be reached, or the topic does not exist.
    """
    consumer = Consumer(
        {
            **source.properties,
            "bootstrap.servers": source.bootstrap_servers,
            # No offset is ever committed: each reader sees everything.
            "group.id": f"eddy-alerts-{uuid.uuid4()}",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "log_level": 0,
        }
    )
    try:
        partitions = _partitions(consumer, source)
        where = OFFSET_BEGINNING if from_beginning else OFFSET_END
        begins = [TopicPartition(source.topic, number, where) for number in partitions]
        if from_beginning and newest is not None:
            for begin in begins:
                low, high = consumer.get_watermark_offsets(begin, timeout=METADATA_TIMEOUT_S)
                begin.offset = max(low, high - newest)
        consumer.assign(begins)
        open_partitions = set(partitions)
        while not stop.is_set() and (open_partitions or not to_end):
            message = consumer.poll(POLL_S)
            if message is None:
                continue
            error = message.error()
            if error is None:
                yield read_alert(message.value())
            elif error.code() == KafkaError._PARTITION_EOF:
                open_partitions.discard(message.partition())
            elif error.fatal():
                raise EddyError(f"{source.bootstrap_servers}: {error.str()}")
    finally:
        consumer.close()


def _partitions(consumer: Consumer, source: AlertTopic) -> list[int]:
    _refuse_where_nothing_listens(source)
    try:
        metadata = consumer.list_topics(source.topic, timeout=METADATA_TIMEOUT_S)
    except KafkaException as error:
        raise _no_broker(source, error.args[0].str()) from None
    topic = metadata.topics[source.topic]
    if topic.error is not None:
        raise EddyError(
            f'topic "{source.topic}" at {source.bootstrap_servers}: {topic.error.str()};'
            f" `eddy run` creates the topics, {source.setting} names this one"
        )
    return sorted(topic.partitions)


def _refuse_where_nothing_listens(source: AlertTopic) -> None:
    """Say at once what librdkafka says only after its timeout: that every address refuses.

    What is no plain HOST:PORT, or answers slowly, is left to librdkafka.
    """
    refused = ""
    for address in source.bootstrap_servers.split(","):
        host, _, port = address.strip().rpartition("://")[2].rpartition(":")
        if not host or not port.isdigit():
            return
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
        except (ConnectionRefusedError, socket.gaierror) as error:
            refused = error.strerror or str(error)
        except (OSError, OverflowError):
            return
        else:
            return
    raise _no_broker(source, refused)


def _no_broker(source: AlertTopic, why: str) -> EddyError:
    return EddyError(
        f"no Kafka broker answers at {source.bootstrap_servers}: {why};"
        " start the local stack with `eddy up`, or name yours in source.bootstrap_servers"
    )


def read_alert(value: bytes | None) -> Alert:
    """Read a message of the topic; what is no alert becomes one that says so."""
    try:
        alert = orjson.loads(value or b"")
    except orjson.JSONDecodeError:
        alert = None
    if not isinstance(alert, dict):
        return {"id": "", "subject": "?", "data": {"reasons": [{"text": "no JSON object"}]}}
    return alert


def to_text(alert: Alert) -> Text:
    """Write an alert as one line: event time, entity, score, detector, the strongest reasons."""
    data = _mapping(alert.get("data"))
    reasons = data.get("reasons")
    texts = [str(_mapping(r).get("text", "")) for r in reasons] if isinstance(reasons, list) else []
    score = data.get("score")
    line = Text()
    line.append(f"{data.get('event_time') or alert.get('time') or ''!s:<24}  ", style="dim")
    line.append(f"{alert.get('subject', '')!s:<24}  ", style="bold")
    line.append(f"{score:>8.2f}" if isinstance(score, int | float) else " " * 8, style="red")
    line.append(f"  {data.get('detector', '')!s:<12}  ", style="cyan")
    line.append("; ".join(text for text in texts[:3] if text))
    if data.get("degraded"):
        line.append("  [without Triton]", style="yellow")
    return line


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}
