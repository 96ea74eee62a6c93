"""Event time of a shard: the clocks of its partitions, the watermark, and what is late by it."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

UNSEEN_MS = -(1 << 62)
PARTITION_IDLE_MS = 600_000  # a partition so far behind in event time no longer holds the rest back


class PartitionClocks:
    """Judges lateness event by event, in arrival order.

    The watermark is the least of the latest event times of the partitions that keep up, less the
    allowed lateness: a partition that is read ahead of another makes nothing late. It never falls,
    also where a partition joins that lies behind, so that it does not matter how a stream is cut
    into batches. A clock that is moved on without events moves the watermark alone: what waits in
    Kafka meanwhile is not late.

    Attributes:
        clocks: int64[partitions], latest event time of each, ms; UNSEEN_MS before the first.
        late_ms: event time before which an event is late.
        watermark_ms: event time up to which silences may be told, at least `late_ms`.
    """

    def __init__(self, allowed_lateness_ms: int) -> None:
        self._lateness_ms = allowed_lateness_ms
        self.clocks = np.empty(0, np.int64)
        self.late_ms = UNSEEN_MS
        self.watermark_ms = UNSEEN_MS

    def judge(self, time_ms: NDArray[np.int64], partition: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Advance the clocks by n events; return bool[n], True where an event is late."""
        late = np.zeros(len(time_ms), np.bool_)
        if len(time_ms):
            missing = int(partition.max()) + 1 - len(self.clocks)
            if missing > 0:
                more = np.full(missing, UNSEEN_MS, np.int64)
                self.clocks = np.concatenate([self.clocks, more])
            low = _judge(time_ms, partition, self.clocks, self._lateness_ms, self.late_ms, late)
            self.late_ms = int(low)
            self.watermark_ms = max(self.watermark_ms, self.late_ms)
        return late


@njit(cache=True)
def _watermark(clocks, lateness_ms):  # type: ignore[no-untyped-def]
    newest = clocks.max()
    low = newest
    for clock in clocks:
        if clock != UNSEEN_MS and clock >= newest - PARTITION_IDLE_MS:
            low = min(low, clock)
    return low - lateness_ms


@njit(cache=True, nogil=True)
def _judge(time_ms, partition, clocks, lateness_ms, low, late):  # type: ignore[no-untyped-def]
    """Mark events older than `low`; advance the clocks; return the new `low`."""
    for i in range(len(time_ms)):
        if time_ms[i] < low:
            late[i] = True
        elif time_ms[i] > clocks[partition[i]]:
            clocks[partition[i]] = time_ms[i]
            low = max(low, _watermark(clocks, lateness_ms))
    return low
