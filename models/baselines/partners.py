"""Distinct partners: how many different entities another entity is seen with (users of a device).

Two 64-bit maps hold the partners of this window and the one before; linear counting (Whang,
Vander-Zanden and Taylor 1990) turns the bits set into a number.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

BITS = 64.0


@njit(cache=True)
def count_bits(bits):  # type: ignore[no-untyped-def]
    """Count the bits set in a uint64."""
    x = bits - ((bits >> np.uint64(1)) & np.uint64(0x5555555555555555))
    low = np.uint64(0x3333333333333333)
    x = (x & low) + ((x >> np.uint64(2)) & low)
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((x * np.uint64(0x0101010101010101)) >> np.uint64(56))


@njit(cache=True)
def distinct(bits):  # type: ignore[no-untyped-def]
    """Estimate how many partners set `bits`; 64 bits tell up to about 250 apart."""
    clear = BITS - count_bits(bits)
    return BITS * math.log(BITS / max(clear, 1.0))


@njit(cache=True)
def partner_surprise(count, expected):  # type: ignore[no-untyped-def]
    """Poisson log likelihood ratio of `count` against `expected`, where it is larger, in nats."""
    if count <= expected:
        return 0.0
    return count * math.log(count / expected) - (count - expected)
