"""Import this first in a Flink worker: what numba, Beam and Python need there."""

from __future__ import annotations

import builtins
import ctypes
import math
import sys
import threading
import time
from importlib import import_module
from typing import Any

from models.kernel_cache import key_by_source

# Parse and score share one interpreter with gRPC's threads. With Python's 5 ms, a thread that has
# an answer to hand on waits that long for one that computes.
SWITCH_INTERVAL_S = 0.0005
GAUGES_S = 0.5  # how often gauges are told; Flink's page and reporters look each second or later
# Parameters of glibc's allocator (malloc.h) and what they are set to, bytes.
_MALLOC = ((-3, 32 << 20), (-1, 256 << 20), (-2, 16 << 20))  # mmap threshold, trim threshold, pad


def _import_numba() -> None:
    """Import numba with the `print` that Python has.

    Flink replaces `builtins.print` by a bound method of a class in its worker's main module;
    numba's type registry looks functions up by module and name and fails on it. So the original
    stands in while numba is imported.
    """
    replaced = builtins.print
    original = getattr(getattr(replaced, "__self__", None), "_print", None)
    if original is not None:
        builtins.print = original
    try:
        import numba  # noqa: F401
    finally:
        builtins.print = replaced


def _stop_sampling() -> None:
    """Switch Beam's sampling of where a bundle spends its time off.

    It starts a thread for each bundle and joins it at the end, and that thread sleeps for up to a
    fifth of the bundle's own time at once: every bundle ends late by as much. Flink reads none of
    what it finds.
    """
    beam: Any = import_module("apache_beam.runners.worker.statesampler")

    def start(self: Any) -> None:
        self.tracked_thread = threading.current_thread()
        beam.set_current_tracker(self)
        self.started = True

    def stop(self: Any) -> None:
        del self
        beam.set_current_tracker(None)

    beam.StateSampler.start = start
    beam.StateSampler.stop = stop


def _keep_memory() -> None:
    """Let the allocator keep what a batch frees for the next one.

    glibc gives blocks of some 100 KB and more back to the system each time: every batch then finds
    its pages anew, and on a virtual machine a page costs 3 us.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return
    for parameter, size in _MALLOC:
        mallopt(parameter, size)


def _join_state_writes() -> None:
    """Write what a map state sends to the JVM in one piece.

    Flink's own writing copies each value four times, into buffers that grow by doubling: 2.4 in
    place of .1 ms for the log and pages of 2,000 payments. The bytes are the same.
    """
    state: Any = import_module("pyflink.fn_execution.state_impl")
    handler = state.CachingMapStateHandler

    def encoded(encoder: Any, value: object) -> bytes:
        out = state.coder_impl.create_OutputStream()
        encoder(value, out)
        return out.get()  # type: ignore[no-any-return]

    def prefixed(encoder: Any, value: object) -> list[bytes]:
        if type(value) is bytes:
            # Coders of bytes write their length first; what they write of none tells which do.
            empty = encoded(encoder, b"")
            if empty == _size(0):
                return [_size(4 + len(value)), _size(len(value)), value]
        data = encoded(encoder, value)
        return [_size(len(data)), data]

    def append_raw(self: Any, state_key: Any, items: Any, key_encoder: Any, encoder: Any) -> Any:
        parts = [_size(len(items))]
        for flag, key, value in items:
            parts.append(bytes((flag,)))
            parts += prefixed(key_encoder, key)
            if flag == handler.SET_VALUE:
                parts += prefixed(encoder, value)
        return self._underlying.append_raw(state_key, b"".join(parts))

    handler._append_raw = append_raw


def _size(size: int) -> bytes:
    return size.to_bytes(4, "big")


def _tell_gauges_seldom() -> None:
    """Tell gauges at most each GAUGES_S in place of once a bundle.

    There are a hundred bundles a second, and each gauge is computed, written, and read by the JVM.
    Counters are told in each bundle as ever: theirs are differences.
    """
    operations: Any = import_module("pyflink.fn_execution.datastream.process.operations")
    update = operations.Operation._update_gauge

    def update_seldom(self: Any, group: Any) -> None:
        if group is self.base_metric_group:
            now_s = time.monotonic()
            if now_s < getattr(self, "_told_s", -math.inf) + GAUGES_S:
                return
            self._told_s = now_s
        update(self, group)

    beam: Any = import_module("apache_beam.runners.worker.bundle_processor")
    gauge = import_module("apache_beam.metrics.cells").GaugeCell

    def monitoring_infos(self: Any) -> list[Any]:
        # The user's metrics: Flink reads no others. A gauge of time 0 was not set in this bundle.
        return [
            cell.to_runner_api_monitoring_info(key.metric_name, transform)
            for transform, operation in self.ops.items()
            for key, cell in list(operation.metrics_container.metrics.items())
            if not (isinstance(cell, gauge) and cell.data.timestamp == 0)
        ]

    operations.Operation._update_gauge = update_seldom
    beam.BundleProcessor.monitoring_infos = monitoring_infos


key_by_source()
_import_numba()
_stop_sampling()
_keep_memory()
_join_state_writes()
_tell_gauges_seldom()
sys.setswitchinterval(SWITCH_INTERVAL_S)
