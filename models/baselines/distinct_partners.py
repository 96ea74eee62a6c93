"""Distinct partners as a component: how many different entities another meets in a window.

A 64-bit map holds the partners of the current window, as in `partners`. If the partners that join
the first one are Poisson, each of the other 63 bits is set independently with one probability, so
the number of set bits is binomial, collisions included; with a beta prior it is beta-binomial, and
the p-value is exact for the whole window. While the window fills it is conservative: P(at the end
as many bits as now, or more).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from models.baselines.component import NO_PARTNER, Component
from models.baselines.partners import count_bits, distinct
from models.baselines.tails import log_beta_binomial_sf, surprise

OTHER_BITS = 63.0

PARTNERS_STATE = np.dtype(
    [("bits", np.uint64), ("window", np.int64), ("set", np.float64), ("clear", np.float64)],
    align=True,
)


class PartnersParameters(NamedTuple):
    """Prior and settings of distinct partners.

    Attributes:
        window_ms: > 0.
        set: of the beta prior, > 0.
        clear: of the beta prior, > 0.
        discount: in (0, 1]; 1 / (1 - discount) is the memory in windows that had an event. The
            prior is not forgotten.
    """

    window_ms: int
    set: float
    clear: float
    discount: float


@njit(cache=True, nogil=True)
def _walk(state, row, fresh, time_ms, value, mark, partner, p, out):  # type: ignore[no-untyped-def] # noqa: ARG001
    for i in range(len(row)):
        entity = state[row[i]]
        window = time_ms[i] // p.window_ms
        if fresh[i] or entity["set"] == 0.0:
            entity["bits"] = 0
            entity["window"] = window
            entity["set"] = p.set
            entity["clear"] = p.clear
        out[i, 0] = 0.0
        out[i, 1] = math.nan
        if partner[i] == NO_PARTNER or window < entity["window"]:
            continue
        if window > entity["window"]:
            found = float(count_bits(entity["bits"])) - 1.0
            if found >= 0.0:
                entity["set"] = p.set + p.discount * (entity["set"] - p.set) + found
                entity["clear"] = p.clear + p.discount * (entity["clear"] - p.clear)
                entity["clear"] += OTHER_BITS - found
            entity["bits"] = 0
            entity["window"] = window
        bits = np.uint64(entity["bits"]) | (np.uint64(1) << (partner[i] & np.uint64(63)))
        entity["bits"] = bits
        others = float(count_bits(bits)) - 1.0
        out[i, 0] = surprise(
            log_beta_binomial_sf(others, OTHER_BITS, entity["set"], entity["clear"])
        )
        out[i, 1] = distinct(bits)


def partners_component(
    window_ms: int,
    expected: float,
    prior_windows: float,
    discount: float = 1.0,
    name: str = "partners",
) -> Component:
    """Return distinct partners by window.

    It tells the surprise `name` and `name_count`, the estimated number of distinct partners so far.
    An event with no partner, or of a window that is over, is not scored.

    Args:
        window_ms: length of a window, > 0.
        expected: the population's number of partners beside the first in a window, > 0.
        prior_windows: windows that the prior is worth, > 0.
        discount: of what was learned, at each window.
        name: of the component.

    Raises:
        ValueError: a parameter is out of its range.
    """
    if not (min(window_ms, expected, prior_windows) > 0.0 and 0.0 < discount <= 1.0):
        raise ValueError(
            f"{name}: expected positive window_ms, expected and prior_windows, and a discount in "
            f"(0, 1]; found {window_ms}, {expected}, {prior_windows}, {discount}"
        )
    share = -math.expm1(-expected / 64.0)  # of bits that Poisson(expected) partners set
    trials = prior_windows * OTHER_BITS
    p = PartnersParameters(window_ms, trials * share, trials * (1.0 - share), discount)
    return Component(name, 1, PARTNERS_STATE, (name, f"{name}_count"), (name,), p, _walk)
