"""Import this first in a Flink worker: what numba, Beam and Python need there."""

from __future__ import annotations

import builtins
import sys
import threading
from importlib import import_module
from typing import Any

from models.kernel_cache import key_by_source

# Parse and score share one interpreter with gRPC's threads. With Python's 5 ms, a thread that has
# an answer to hand on waits that long for one that computes.
SWITCH_INTERVAL_S = 0.0005


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


key_by_source()
_import_numba()
_stop_sampling()
sys.setswitchinterval(SWITCH_INTERVAL_S)
