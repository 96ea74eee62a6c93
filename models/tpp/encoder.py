"""History encoder of the intensity model: a linear recurrence, one step per event.

The numba twin of `models.tpp.training`'s torch encoder; its form is that of `models.tpp.spec`:
h_k <- exp(-elapsed / tau_k) h_k + e_k for k in 0..31, with tau_k = .02 * 2**(k mod 16), and
h_k <- exp(-1 / n_k) h_k + e_k for k in 32..63, with n_k log-spaced from 1 to 1000;
e = W2 relu(W1 u + b1) + b2, u = (zgap, ratio, is_first, one-hot mark).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.baselines.renewal import MIN_GAP_S, gap_step, operational_s
from models.tpp.spec import (
    COUNT_CONSTANTS,
    ENCODER_HIDDEN,
    FEATURE_VERSION,
    MARKS,
    MEMORY,
    RATIO_LIMIT,
    SHORTEST_TIME,
    TIME_DOUBLINGS,
    ZGAP_LIMIT,
)

TIMES = TIME_DOUBLINGS
SCRATCH = ENCODER_HIDDEN + MEMORY  # what encoder_step needs to work in
COUNT_DECAY: NDArray[np.float32] = np.exp(-1.0 / COUNT_CONSTANTS).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Encoder:
    """Weights of the encoder, transposed so that the inner loop is contiguous.

    Attributes:
        w1: float32[11, 32], from features to the hidden layer.
        b1: float32[32].
        w2: float32[32, 64], from the hidden layer to the memory.
        b2: float32[64].
    """

    w1: NDArray[np.float32]
    b1: NDArray[np.float32]
    w2: NDArray[np.float32]
    b2: NDArray[np.float32]

    @classmethod
    def of(cls, arrays: dict[str, NDArray[np.float32]]) -> Encoder:
        """Take the torch layout: W1 [32, 11], b1 [32], W2 [64, 32], b2 [64]."""
        expected = {"W1": (32, 3 + MARKS), "b1": (32,), "W2": (MEMORY, 32), "b2": (MEMORY,)}
        for name, shape in expected.items():
            found = arrays[name].shape if name in arrays else None
            if found != shape:
                raise ValueError(
                    f"encoder weights {name}: expected shape {shape} of feature version "
                    f"{FEATURE_VERSION}, found {found}; export the model again"
                )
        transposed = [np.ascontiguousarray(arrays[n].T, np.float32) for n in ("W1", "W2")]
        return cls(transposed[0], arrays["b1"], transposed[1], arrays["b2"])


@njit(cache=True)
def gap_features(gap_s, gap_mean, within_sd):  # type: ignore[no-untyped-def]
    """Return (elapsed, zgap, ratio) of a gap, given the entity's mean log gap before it."""
    elapsed = gap_s / math.exp(gap_mean)
    zgap = (math.log(gap_s) - gap_mean) / within_sd
    return elapsed, min(max(zgap, -ZGAP_LIMIT), ZGAP_LIMIT), min(elapsed, RATIO_LIMIT)


@njit(cache=True)
def sequence_features(time_ms, cumulative, prior_mean, prior_var, prior_events):  # type: ignore[no-untyped-def]
    """Walk one entity's sequence exactly as the stream does.

    Args:
        time_ms: int64[n], event times in order.
        cumulative: float64[169], the kind's weekly profile.
        prior_mean: mean log gap of the population, prior of the entity's.
        prior_var: variance of the log gap within an entity.
        prior_events: weight of the prior, in events.

    Returns:
        float64[n, 5]: elapsed, zgap, ratio, is_first of each event, and the mean log gap after it
        (the next gap is predicted as its log minus that mean).
    """
    out = np.zeros((len(time_ms), 5))
    mean, var = prior_mean, prior_var
    within_sd = math.sqrt(prior_var)
    out[0] = (0.0, 0.0, 1.0, 1.0, mean)
    for i in range(1, len(time_ms)):
        gap = operational_s(time_ms[i], cumulative) - operational_s(time_ms[i - 1], cumulative)
        gap = max(gap, MIN_GAP_S)
        elapsed, zgap, ratio = gap_features(gap, mean, within_sd)
        mean, var = gap_step(math.log(gap), mean, var, float(i), prior_events)
        out[i] = (elapsed, zgap, ratio, 0.0, mean)
    return out


@njit(cache=True)
def encoder_step(memory, elapsed, zgap, ratio, is_first, mark, w1, b1, w2, b2, hidden):  # type: ignore[no-untyped-def]
    """Advance `memory` (float32[64], changed in place) by one event.

    Args:
        memory: float32[64].
        elapsed: the gap in units of the entity's mean gap, 0 for a first event.
        zgap: standardised log gap, as `gap_features` gives it; so are `ratio` and `is_first`.
        ratio: `elapsed`, cut at RATIO_LIMIT.
        is_first: 1.0 for an entity's first event, with zgap 0 and ratio 1.
        mark: index of the mark; anything from MARKS on is none.
        w1: as in `Encoder`.
        b1: as in `Encoder`.
        w2: as in `Encoder`.
        b2: as in `Encoder`.
        hidden: float32[SCRATCH], to work in: the hidden layer, then what is added to the memory.
    """
    for j in range(ENCODER_HIDDEN):
        hidden[j] = b1[j] + zgap * w1[0, j] + ratio * w1[1, j] + is_first * w1[2, j]
    if mark < MARKS:
        for j in range(ENCODER_HIDDEN):
            hidden[j] += w1[3 + mark, j]
    step = hidden[ENCODER_HIDDEN:]
    for k in range(MEMORY):
        step[k] = b2[k]
    for j in range(ENCODER_HIDDEN):
        active = hidden[j]
        if active > 0.0:
            for k in range(MEMORY):
                step[k] += active * w2[j, k]
    # tau doubles from one time constant to the next, so each decay is the next one squared.
    decay = np.float32(math.exp(-elapsed / (SHORTEST_TIME * 2.0 ** (TIMES - 1))))
    for k in range(TIMES - 1, -1, -1):
        memory[k] = decay * memory[k] + step[k]
        memory[k + TIMES] = decay * memory[k + TIMES] + step[k + TIMES]
        decay *= decay
    for k in range(2 * TIMES, MEMORY):
        memory[k] = COUNT_DECAY[k - 2 * TIMES] * memory[k] + step[k]
