"""The names of the detectors: one list for settings, fusion and alerts; no numba is needed."""

from __future__ import annotations

from collections.abc import Collection

# In the order of the fusion's columns; silence is decided alone, by a timer.
FUSED = ("amount", "amount_up", "amount_down", "burst", "regularity", "partners", "mark", "surge")
# The names in the settings; the shift is looked for both ways.
DETECTORS = (
    "amount",
    "amount_shift",
    "burst",
    "regularity",
    "partners",
    "mark",
    "surge",
    "silence",
)


def votes(fused: str, detectors: Collection[str]) -> bool:
    """Tell whether one of FUSED is switched on by names of DETECTORS.

    >>> votes("amount_up", ["amount_shift"])
    True
    """
    return fused.replace("_up", "_shift").replace("_down", "_shift") in detectors
