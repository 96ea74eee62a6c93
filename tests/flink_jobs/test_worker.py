"""What a worker changes in Flink and Beam: faster, and the same to whoever listens.

Each runs in a process of its own, for the changes stay.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
