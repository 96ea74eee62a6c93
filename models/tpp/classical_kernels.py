"""Compiled walks of the classical point processes: log density and compensator of each gap.

Each fills log_density[n] (nats, of the gap) and compensator[n] (the integrated intensity over it).
A sequence's first event has the gap since 0, with nothing before it.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

_TAU = 2.0 * math.pi


@njit(cache=True, nogil=True)
def hawkes_walk(gap, first, base, branching, decay, log_density, compensator):  # type: ignore[no-untyped-def]
    """Hawkes process with kernels sum_m branching[m] decay[m] exp(-decay[m] t), recursively.

    Ozaki, Maximum likelihood estimation of Hawkes' self-exciting point processes (1979).
    """
    kernels = len(decay)
    excitation = np.zeros(kernels)
    for i in range(len(gap)):
        if first[i]:
            excitation[:] = 0.0
        mass = base * gap[i]
        intensity = base
        for m in range(kernels):
            faded = excitation[m] * math.exp(-decay[m] * gap[i])
            mass += branching[m] * (excitation[m] - faded)
            intensity += branching[m] * decay[m] * faded
            excitation[m] = faded + 1.0
        compensator[i] = mass
        log_density[i] = math.log(intensity) - mass


@njit(cache=True, nogil=True)
def multivariate_hawkes_walk(  # type: ignore[no-untyped-def]
    gap, first, mark, base, branching, decay, log_density, log_mark, compensator
):
    """Hawkes processes that excite each other: branching[to, from], one decay[to, from] each.

    log_density is that of the gap alone (from the summed intensity), log_mark that of the mark
    given the gap: their sum is the joint one.
    """
    kinds = len(base)
    excitation = np.zeros((kinds, kinds))
    for i in range(len(gap)):
        if first[i]:
            excitation[:] = 0.0
        mass = 0.0
        total = 0.0
        own = 0.0
        for to in range(kinds):
            intensity = base[to]
            mass += base[to] * gap[i]
            for source in range(kinds):
                before = excitation[to, source]
                faded = before * math.exp(-decay[to, source] * gap[i])
                mass += branching[to, source] * (before - faded)
                intensity += branching[to, source] * decay[to, source] * faded
                excitation[to, source] = faded
            total += intensity
            if to == mark[i]:
                own = intensity
        for to in range(kinds):
            excitation[to, mark[i]] += 1.0
        compensator[i] = mass
        log_density[i] = math.log(total) - mass
        log_mark[i] = math.log(own / total)


@njit(cache=True, nogil=True)
def self_correcting_walk(gap, time, first, base, drift, drop, log_density, compensator):  # type: ignore[no-untyped-def]
    """Intensity exp(base + drift t - drop N(t)) t the absolute clock (Isham, Westcott 1979)."""
    count = 0.0
    for i in range(len(gap)):
        if first[i]:
            count = 0.0
        log_start = base + drift * (time[i] - gap[i]) - drop * count
        growth = drift * gap[i]
        grown = gap[i] if abs(growth) < 1e-12 else gap[i] * math.expm1(growth) / growth
        compensator[i] = math.exp(log_start) * grown
        log_density[i] = log_start + growth - compensator[i]
        count += 1.0


@njit(cache=True)
def warped(time, period, depth, phase):  # type: ignore[no-untyped-def]
    """Integrate 1 + depth sin(2 pi t / period + phase) from 0 to `time`."""
    turn = _TAU / period
    return time + depth / turn * (math.cos(phase) - math.cos(turn * time + phase))


@njit(cache=True, nogil=True)
def warp_walk(time, gap, period, depth, phase, warped_gap, log_rate):  # type: ignore[no-untyped-def]
    """Fill each gap on the warped clock, and the log of the clock's rate at its end."""
    turn = _TAU / period
    for i in range(len(time)):
        # The difference of cosines as a product: two equal numbers of size period would cancel.
        middle = turn * (time[i] - 0.5 * gap[i]) + phase
        half = 0.5 * turn * gap[i]
        warped_gap[i] = gap[i] + 2.0 * depth / turn * math.sin(middle) * math.sin(half)
        log_rate[i] = math.log1p(depth * math.sin(turn * time[i] + phase))
