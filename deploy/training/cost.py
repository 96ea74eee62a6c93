"""What a decoder costs: microseconds for a row, on onnxruntime in this process, one thread."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flink_jobs.intensity_in_process import InProcessClient

ROWS = (1, 32, 512, 4_096)
_ROUNDS = 7
_ROUND_S = 0.02


def measure(
    decoders: Mapping[str, Path], x: NDArray[np.float32], rounds: int = _ROUNDS
) -> dict[str, dict[int, float]]:
    """Return microseconds a row by decoder and by rows of a request.

    The decoders take turns, so that what else the machine does hits all alike; the fastest round of
    each counts, since noise only ever adds.

    Args:
        decoders: ONNX files by name.
        x: float32 [rows, 69], valid inputs, repeated as needed.
        rounds: turns of each.
    """
    clients = {name: InProcessClient(path) for name, path in decoders.items()}
    found: dict[str, dict[int, float]] = {name: {} for name in decoders}
    for rows in ROWS:
        batch = np.ascontiguousarray(np.resize(x, (rows, x.shape[1])))
        best = dict.fromkeys(clients, float("inf"))
        for _ in range(rounds):
            for name, client in clients.items():
                best[name] = min(best[name], _seconds(client, batch))
        for name, seconds in best.items():
            found[name][rows] = 1e6 * seconds / rows
    return found


def _seconds(client: InProcessClient, batch: NDArray[np.float32]) -> float:
    """Return the mean time of a request over some of them."""
    client.submit(batch)
    begun, requests = time.perf_counter(), 0
    while (spent := time.perf_counter() - begun) < _ROUND_S:
        client.submit(batch)
        requests += 1
    return spent / max(requests, 1)
