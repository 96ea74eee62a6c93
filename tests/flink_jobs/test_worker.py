"""What a worker changes in Flink and Beam: faster, and the same to whoever listens.

Each runs in a process of its own, for the changes stay.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

STATE_WRITES = """
import sys
from pyflink.common import Types
from pyflink.fn_execution import state_impl
from pyflink.fn_execution.beam.beam_coders import FlinkCoder
from pyflink.fn_execution.coders import from_type_info

def encoder(kind):
    coder = FlinkCoder(from_type_info(kind)).get_impl()
    return lambda value, stream: coder.encode_to_stream(value, stream, True)

class Sent:
    def append_raw(self, state_key, data):
        self.found = state_key, data

Handler = state_impl.CachingMapStateHandler
SET, GONE, NONE = Handler.SET_VALUE, Handler.DELETE, Handler.SET_NONE
longs, data = Types.LONG(), Types.PRIMITIVE_ARRAY(Types.BYTE())
cases = [
    (longs, data, []),
    (longs, data, [(SET, 4, b""), (SET, -7, bytes(range(256)) * 300), (GONE, 5, None)]),
    (longs, Types.STRING(), [(SET, 1, "text"), (NONE, 2, None)]),
    (Types.STRING(), longs, [(SET, "key", -3), (GONE, "gone", None)]),
]

def written():
    for key, value, items in cases:
        handler = Handler.__new__(Handler)
        handler._underlying = Sent()
        handler._append_raw("state", items, encoder(key), encoder(value))
        yield handler._underlying.found

before, original = list(written()), Handler._append_raw
import flink_jobs.worker
assert Handler._append_raw is not original
assert list(written()) == before, "other bytes"
assert len(before[1][1]) > 256 * 300
"""


def _run(code: str) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_state_is_written_in_the_same_bytes() -> None:
    _run(STATE_WRITES)


METRICS = """
from types import SimpleNamespace
from apache_beam.metrics.execution import MetricsContainer
from apache_beam.metrics.metricbase import MetricName
from apache_beam.runners.worker.bundle_processor import BundleProcessor
from pyflink.fn_execution.datastream.process.operations import Operation
import flink_jobs.worker as worker

metrics = MetricsContainer("score")
gauge, counter = MetricName("eddy", "events"), MetricName("eddy", "parsed")
processor = SimpleNamespace(ops={"score": SimpleNamespace(metrics_container=metrics)})

def told():
    infos = BundleProcessor.monitoring_infos(processor)
    return {info.labels["NAME"]: info.payload for info in infos}

metrics.get_gauge(gauge).set(7)
metrics.get_counter(counter).inc(3)
first = told()
assert set(first) == {"events", "parsed"}
assert (first["events"][-1], first["parsed"][-1]) == (7, 3), first
metrics.reset()  # as between bundles
metrics.get_counter(counter).inc(5)
assert {name: payload[-1] for name, payload in told().items()} == {"parsed": 5}

class Score(Operation):
    def __init__(self, group):
        self.base_metric_group = group

    finish = process_element = open = close = lambda self: None

def group(name, subs):
    beam = SimpleNamespace(set=lambda value: seen.append((name, value)))
    own = {name: lambda: 1}
    return SimpleNamespace(_flink_gauge=own, _beam_gauge={name: beam}, _sub_groups=subs)

seen, now_s = [], [100.0]
worker.time = SimpleNamespace(monotonic=lambda: now_s[0])
both = group("base", [group("sub", [])])
operations = Score(both), Score(both)
for operation in operations:
    operation._update_gauge(both)
assert seen == 2 * [("base", 1), ("sub", 1)], "each operation tells its own, groups below too"
now_s[0] += worker.GAUGES_S - 0.01
operations[0]._update_gauge(both)
assert len(seen) == 4, "too soon"
now_s[0] += 0.01
operations[0]._update_gauge(both)
assert len(seen) == 6
"""


def test_counters_are_told_in_each_bundle_and_gauges_now_and_then() -> None:
    _run(METRICS)


MEMORY = """
import resource
import flink_jobs.worker

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

blocks = [bytes(1 << 20) for _ in range(4)]
del blocks
before = faults()
for _ in range(100):
    blocks = [bytes(1 << 20) for _ in range(4)]
    del blocks
assert faults() - before < 2_000, faults() - before  # 100,000 where they go back each time
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library's allocator")
def test_what_a_batch_frees_is_kept_for_the_next() -> None:
    _run(MEMORY)
