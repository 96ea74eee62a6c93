"""The Flink SQL of source, micro-batches and sink: options from the settings, quoted."""

from __future__ import annotations

import re

import pytest

from flink_jobs import kafka_tables
from flink_jobs.settings import load


def options(sql: str) -> dict[str, str]:
    """Return the options of a CREATE TABLE, unquoted."""
    found = re.findall(r"'((?:[^']|'')*)' = '((?:[^']|'')*)'", sql.split("WITH (")[1])
    return {k.replace("''", "'"): v.replace("''", "'") for k, v in found}


def test_the_source_reads_bytes_with_their_place() -> None:
    chosen = load(
        None, {}, ["source.bootstrap_servers=a:1,b:2", "source.topic=t", "source.group_id=g"]
    )
    sql = kafka_tables.source(chosen)
    found = options(sql)
    assert sql.startswith("CREATE TEMPORARY TABLE eddy_source (")
    assert "`value` BYTES" in sql
    assert found["connector"] == "kafka"
    assert found["properties.bootstrap.servers"] == "a:1,b:2"
    assert (found["topic"], found["properties.group.id"], found["format"]) == ("t", "g", "raw")
    assert "scan.bounded.mode" not in found


@pytest.mark.parametrize(
    ("start", "wanted"),
    [
        ("earliest", {"scan.startup.mode": "earliest-offset"}),
        ("latest", {"scan.startup.mode": "latest-offset"}),
        (
            "committed",
            {"scan.startup.mode": "group-offsets", "properties.auto.offset.reset": "earliest"},
        ),
        (
            "timestamp_ms:123",
            {"scan.startup.mode": "timestamp", "scan.startup.timestamp-millis": "123"},
        ),
    ],
)
def test_where_the_source_begins(start: str, wanted: dict[str, str]) -> None:
    found = options(kafka_tables.source(load(None, {}, [f"source.start={start}"])))
    names = ("scan.startup.mode", "scan.startup.timestamp-millis", "properties.auto.offset.reset")
    assert {name: found[name] for name in names if name in found} == wanted


def test_a_bounded_source_stops_at_the_offsets_of_its_start() -> None:
    found = options(kafka_tables.source(load(None, {}, ["source.stop=latest"])))
    assert found["scan.bounded.mode"] == "latest-offset"


def test_kafka_properties_are_passed_on_and_quoted() -> None:
    chosen = load(None, {"EDDY_SOURCE__KAFKA__SASL_JAAS_CONFIG": "login password='it is';"}, [])
    for sql in (kafka_tables.source(chosen), kafka_tables.sink(chosen)):
        assert "password=''it is'';" in sql
        assert options(sql)["properties.sasl.jaas.config"] == "login password='it is';"


def test_the_sink_may_have_its_own_properties() -> None:
    environ = {
        "EDDY_SOURCE__KAFKA__SECURITY_PROTOCOL": "SSL",
        "EDDY_SINK__KAFKA__SECURITY_PROTOCOL": "PLAINTEXT",
    }
    chosen = load(None, environ, [])
    assert options(kafka_tables.source(chosen))["properties.security.protocol"] == "SSL"
    assert options(kafka_tables.sink(chosen))["properties.security.protocol"] == "PLAINTEXT"


def test_the_user_has_the_last_word_on_a_property() -> None:
    chosen = load(None, {"EDDY_SOURCE__KAFKA__MAX_POLL_RECORDS": "7"}, [])
    assert options(kafka_tables.source(chosen))["properties.max.poll.records"] == "7"


def test_the_sink_writes_exactly_once_in_transactions_of_its_own() -> None:
    found = options(kafka_tables.sink(load(None, {}, ["job.name=blue"])))
    assert found["topic"] == "eddy.alerts;eddy.dead-letters;eddy.late;eddy.models"
    assert found["sink.delivery-guarantee"] == "exactly-once"
    assert found["sink.transactional-id-prefix"] == "eddy-blue"
    assert found["properties.transaction.timeout.ms"] == "600000"


def test_the_sink_writes_at_least_once_without_transactions() -> None:
    found = options(kafka_tables.sink(load(None, {}, ["sink.delivery=at_least_once"])))
    assert found["sink.delivery-guarantee"] == "at-least-once"
    assert "sink.transactional-id-prefix" not in found


def test_micro_batches_gather_by_processing_time() -> None:
    sql = kafka_tables.micro_batches(load(None, {}, ["source.batch_ms=20"]))
    assert "INTERVAL '0.020' SECOND(5, 3)" in sql
    assert "DESCRIPTOR(arrived)" in sql
    assert "MOD(part" not in sql
    sql = kafka_tables.micro_batches(
        load(None, {}, ["source.batch_ms=1500", "flink.parallelism=4", "flink.shards=4"])
    )
    assert "INTERVAL '1.500' SECOND(5, 3)" in sql
    assert "MOD(part, 4)" in sql
