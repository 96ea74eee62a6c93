"""Asking for memory ahead of time: compiled to the instruction, and without any effect."""

from __future__ import annotations

import numpy as np
import pytest
from numba import config, njit

from state.prefetch import prefetch
from state.table import ROW, ROW_SIZE

COMPILED = not config.DISABLE_JIT  # type: ignore[attr-defined]


@njit
def _ask_for_all(rows, memory):  # type: ignore[no-untyped-def]
    for i in range(len(rows)):
        prefetch(rows, i, ROW_SIZE)
        prefetch(memory, i, 4 * memory.shape[1])


def test_rows_are_as_they_were() -> None:
    rng = np.random.default_rng(3)
    rows = np.frombuffer(rng.bytes(50 * ROW_SIZE), ROW).copy()
    memory = rng.normal(size=(50, 64)).astype(np.float32)
    before = rows.tobytes(), memory.tobytes()
    _ask_for_all(rows, memory)
    assert (rows.tobytes(), memory.tobytes()) == before


@pytest.mark.skipif(not COMPILED, reason="there is no machine code where nothing is compiled")
def test_the_processor_is_asked() -> None:
    _ask_for_all(np.zeros(2, ROW), np.zeros((2, 64), np.float32))
    (code,) = _ask_for_all.inspect_llvm().values()
    assert "llvm.prefetch" in code
