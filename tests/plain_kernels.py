"""With NUMBA_DISABLE_JIT=1, as `make coverage` has it, the kernels run as Python."""

from __future__ import annotations

from importlib import import_module

import numpy as np
from numba import config

# In the order of imports: what comes later takes the types from what comes before.
RECORDS = {
    "state.table": ("ROW", "FORMER"),
    "models.baselines.metric": ("STATE",),
    "flink_jobs.advance": ("ADVANCED",),
    "flink_jobs.decide": ("PREDICTION", "DECIDED"),
}

if config.DISABLE_JIT:  # type: ignore[attr-defined]
    # Hashes wrap around, and kernels divide and overflow as machine code does.
    np.seterr(all="ignore")
    # Kernels reach the fields of a record as attributes; in Python only np.record has these.
    for module_name, names in RECORDS.items():
        module = import_module(module_name)
        for name in names:
            setattr(module, name, np.dtype((np.record, getattr(module, name))))
