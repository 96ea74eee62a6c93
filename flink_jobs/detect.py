"""The main job. `build` is the picture of the pipeline; read it from top to bottom.

    Kafka -> micro-batches (SQL) -> parse -> key by shard -> score -> Kafka

Run by `eddy run`, or `flink run -pym flink_jobs.detect -- SETTINGS.json`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pyflink.common import Configuration, Types
from pyflink.datastream import DataStream, StreamExecutionEnvironment
from pyflink.table import Schema, StreamTableEnvironment

from flink_jobs import kafka_tables
from flink_jobs.operators import (
    DEAD_LETTERS,
    MESSAGE,
    SHARD_BATCH,
    ParseOperator,
    ScoreOperator,
)
from flink_jobs.settings import Settings

SHARD_KEY = Types.INT()


def build(env: StreamExecutionEnvironment, settings: Settings) -> None:
    """Connect the steps of the job."""
    tables = StreamTableEnvironment.create(env)
    code = settings.to_json()

    batches = micro_batches(tables, settings)
    parsed = batches.process(ParseOperator(code), SHARD_BATCH).name("parse").uid("parse")
    scored = (
        parsed.key_by(lambda message: message[0], key_type=SHARD_KEY)
        .process(ScoreOperator(code), MESSAGE)
        .name("score")
        .uid("score")
    )
    write(tables, scored.union(parsed.get_side_output(DEAD_LETTERS)), settings)


def micro_batches(tables: StreamTableEnvironment, settings: Settings) -> DataStream:
    """Read Kafka and gather what arrives within `batch_ms` into one row, in the JVM."""
    tables.execute_sql(kafka_tables.source(settings))
    batches = tables.sql_query(kafka_tables.micro_batches(settings))
    return tables.to_data_stream(batches)


def write(tables: StreamTableEnvironment, messages: DataStream, settings: Settings) -> None:
    """Write (topic, key, value) to Kafka, all topics in one transaction."""
    tables.execute_sql(kafka_tables.sink(settings))
    columns = Schema.new_builder()
    for name, kind in (("f0", "STRING"), ("f1", "BYTES"), ("f2", "BYTES")):
        columns.column(name, kind)
    table = tables.from_data_stream(messages, columns.build())
    statements = tables.create_statement_set()
    statements.add_insert(kafka_tables.SINK, table)
    statements.attach_as_datastream()


def configuration(settings: Settings) -> Configuration:
    """Return what the job asks of Flink; the cluster's own configuration has the rest."""
    flink = settings.flink
    exactly_once = settings.sink.delivery == "exactly_once"
    config = Configuration()
    for key, value in {
        "pipeline.name": settings.job.name,
        "parallelism.default": flink.parallelism,
        "execution.checkpointing.interval": f"{flink.checkpoint_interval_ms} ms",
        "execution.checkpointing.mode": "EXACTLY_ONCE" if exactly_once else "AT_LEAST_ONCE",
        "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
        "execution.checkpointing.tolerable-failed-checkpoints": 10,
        "state.backend.type": "rocksdb",
        "execution.checkpointing.incremental": "true",
        "state.backend.rocksdb.compaction.style": "UNIVERSAL",
        "state.backend.rocksdb.compression.per.level": "NO_COMPRESSION",
        "python.fn-execution.bundle.time": flink.bundle_time_ms,
        "python.fn-execution.bundle.size": flink.bundle_size,
        # Entries put into the map are not read again: do not keep them in the worker.
        "python.map-state.read-cache-size": 1,
        "python.map-state.iterate-response-batch-size": 1_000,
        # A batch is smaller than a network buffer: each exchange would keep it for up to 100 ms.
        "execution.buffer-timeout.interval": "5 ms",
        "table.exec.source.idle-timeout": "0 ms",
    }.items():
        config.set_string(key, str(value))
    return config


def main(arguments: list[str]) -> None:
    """Run the job with the settings in the file that is named."""
    settings = Settings.from_json(Path(arguments[0]).read_text())
    env = StreamExecutionEnvironment.get_execution_environment(configuration(settings))
    build(env, settings)
    env.execute(settings.job.name)


if __name__ == "__main__":
    main(sys.argv[1:])
