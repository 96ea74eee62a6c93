"""The least that any job of this form costs: eddy's source, micro-batches and sink, no detection.

One Python operator takes each batch and hands on a small message for every so many payments.

    flink run -pym deploy.bench.pass_through -- SETTINGS.json PAYMENTS_PER_MESSAGE
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flink_jobs.worker  # noqa: F401  isort: skip

import numpy as np
import orjson
from pyflink.common import Row
from pyflink.datastream import ProcessFunction, RuntimeContext, StreamExecutionEnvironment
from pyflink.table import StreamTableEnvironment

from flink_jobs.detect import configuration, micro_batches, write
from flink_jobs.operators import MESSAGE, PARTITION_SHIFT
from flink_jobs.settings import Settings


class PassThrough(ProcessFunction):  # type: ignore[misc]  # pyflink has no types
    """Counts payments and tells the place of every so-manieth."""

    def __init__(self, topic: str, payments_per_message: int) -> None:
        self._topic = topic
        self._payments_per_message = payments_per_message

    def open(self, context: RuntimeContext) -> None:
        """Register the counter that the benchmark reads."""
        self._payments = context.get_metrics_group().add_group("eddy").counter("payments")

    def process_element(self, value: Any, ctx: ProcessFunction.Context) -> Iterator[Any]:
        """Take one micro-batch: (values, places, timestamps in ms)."""
        del ctx
        place = np.fromiter(value[1], np.int64, len(value[1]))
        offset = place & ((1 << PARTITION_SHIFT) - 1)
        self._payments.inc(len(value[0]))
        for i in np.flatnonzero(offset % self._payments_per_message == 0).tolist():
            partition = int(place[i] >> PARTITION_SHIFT)
            body = {"data": {"partition": partition, "offset": int(offset[i])}}
            yield Row(self._topic, b"pass-through", orjson.dumps(body))


def main(arguments: list[str]) -> None:
    """Run the job with the settings in the file that is named."""
    settings = Settings.from_json(Path(arguments[0]).read_text())
    env = StreamExecutionEnvironment.get_execution_environment(configuration(settings))
    tables = StreamTableEnvironment.create(env)
    operator = PassThrough(settings.sink.alerts_topic, int(arguments[1]))
    messages = micro_batches(tables, settings).process(operator, MESSAGE).name("pass-through")
    write(tables, messages, settings)
    env.execute(settings.job.name)


if __name__ == "__main__":
    # By its name: operators of `__main__` would be sent to the workers by value.
    from deploy.bench import pass_through

    pass_through.main(sys.argv[1:])
