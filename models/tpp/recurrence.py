"""The general linear recurrence, one event at a time: real and complex poles, stacked layers.

The numba twin of `models.tpp.training.streamable.Encoder`. Layer l keeps a memory h_l:

    x_1 = features + embedding of the mark, x_l = [features, squash(scale_{l-1} h_{l-1})]
    e   = W2 silu(W1 x + b1 + mark row) + b2
    h_l <- a(gap) h_l + e             squash(v) = sign(v) log(1 + |v|)

Real poles by time a = exp(-gap / tau), by count a = exp(-1 / n); complex ones
a = exp(-gap / tau + 2 pi i gap / period). A sequence's first event finds h = 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.tpp.architecture import PROFILE_FEATURES, Architecture
from models.tpp.features import feature_step, new_history, scale_array

_F32 = NDArray[np.float32]
_F64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer's weights; matrices are transposed so that the inner loop is contiguous.

    Attributes:
        w1: float32[inputs, hidden].
        b1: float32[hidden].
        by_mark: float32[marks, hidden], added to b1; [0, hidden] where no marks are read.
        w2: float32[hidden, size].
        b2: float32[size].
        time_constant: float64[real], in mean gaps.
        count_decay: float32[counts], the decay per event.
        complex_constant: float64[pairs], in mean gaps.
        complex_period: float64[pairs], in mean gaps.
        scale: float32[size], before the squash.
    """

    w1: _F32
    b1: _F32
    by_mark: _F32
    w2: _F32
    b2: _F32
    time_constant: _F64
    count_decay: _F32
    complex_constant: _F64
    complex_period: _F64
    scale: _F32


@njit(cache=True, nogil=True)
def fade(memory, gap, time_constant, count_decay, complex_constant, complex_period):  # type: ignore[no-untyped-def]
    """Multiply a layer's memory (float32, changed in place) by its poles over `gap` mean gaps.

    Each pole is a float64 exponential rounded once to float32, as in torch: a difference in the
    last place of a pole near 1 would grow a thousandfold over its reach.
    """
    at = 0
    for k in range(len(time_constant)):
        memory[at] *= np.float32(math.exp(-gap / time_constant[k]))
        at += 1
    for k in range(len(count_decay)):
        memory[at] *= count_decay[k]
        at += 1
    pairs = len(complex_constant)
    for k in range(pairs):
        size = math.exp(-gap / complex_constant[k])
        angle = 2.0 * math.pi * (gap / complex_period[k])
        real = np.float32(size * math.cos(angle))
        imaginary = np.float32(size * math.sin(angle))
        re, im = memory[at + k], memory[at + pairs + k]
        memory[at + k] = real * re - imaginary * im
        memory[at + pairs + k] = real * im + imaginary * re


@njit(cache=True, nogil=True)
def layer_step(  # type: ignore[no-untyped-def]
    memory, x, gap, mark, w1, b1, by_mark, w2, b2,
    time_constant, count_decay, complex_constant, complex_period,
):  # fmt: skip
    """Advance one layer's memory (float32[size], changed in place) by one event.

    Args:
        memory: float32[size].
        x: float32[inputs], the layer's input.
        gap: in mean gaps, before the event.
        mark: number of the mark; one that by_mark lacks counts as its last.
        w1: as in `LayerWeights`, and so on.
        b1: likewise.
        by_mark: likewise.
        w2: likewise.
        b2: likewise.
        time_constant: likewise.
        count_decay: likewise.
        complex_constant: likewise.
        complex_period: likewise.
    """
    fade(memory, gap, time_constant, count_decay, complex_constant, complex_period)
    hidden = b1.copy()
    for i in range(len(x)):
        for j in range(len(hidden)):
            hidden[j] += x[i] * w1[i, j]
    marks = len(by_mark)
    if marks > 0:
        row = mark if 0 <= mark < marks else marks - 1
        for j in range(len(hidden)):
            hidden[j] += by_mark[row, j]
    step = b2.copy()
    for j in range(len(hidden)):
        # silu by tanh: exp(-x) would overflow far below 0.
        active = np.float32(hidden[j] * 0.5 * (1.0 + math.tanh(0.5 * hidden[j])))
        for k in range(len(step)):
            step[k] += active * w2[j, k]
    for k in range(len(memory)):
        memory[k] += step[k]


def squash(value: _F32) -> _F32:
    """Return sign(v) log(1 + |v|) of each: sums over any number of events stay in range."""
    found: _F32 = (np.sign(value) * np.log1p(np.abs(value))).astype(np.float32)
    return found


@dataclass(slots=True)
class Memory:
    """What the stream keeps of an entity: its history and its memory, of one architecture.

    Attributes:
        digest: of the architecture that gives the numbers their meaning.
        history: float64[HISTORY + 3 levels], see `models.tpp.features`.
        layers: float32[size] by layer.
    """

    digest: str
    history: _F64
    layers: tuple[_F32, ...]


@dataclass(frozen=True, slots=True)
class Recurrence:
    """The encoder of feature version 4 as the stream runs it.

    Attributes:
        architecture: its form.
        layers: the weights, by layer.
        profiles: float32[profiles + 1, PROFILE_FEATURES], of each mark and of an unknown one; where
            the architecture has none, [1, 0].
    """

    architecture: Architecture
    layers: tuple[LayerWeights, ...]
    profiles: _F32 = field(default_factory=lambda: np.zeros((1, 0), np.float32))

    def __post_init__(self) -> None:
        """Refuse profiles that are not those of the architecture."""
        wanted = self.architecture.profiles
        expected = wanted + 1, PROFILE_FEATURES if wanted else 0
        if self.profiles.shape != expected:
            raise ValueError(
                f"expected profiles of shape {expected}, found {self.profiles.shape}; give those "
                "that the model learnt with"
            )

    def new_memory(self) -> Memory:
        """Return the memory of an entity without events."""
        sizes = [np.zeros(layer.size, np.float32) for layer in self.architecture.layers]
        history = new_history(len(self.architecture.levels))
        return Memory(self.architecture.digest, history, tuple(sizes))

    def advance(self, memory: Memory, time: float, mark: int = 0, amount: float = 1.0) -> _F32:
        """Advance `memory` by an event and return the decoder's input.

        Args:
            memory: changed in place.
            time: of the event, in the unit of training.
            mark: number of the mark, ignored without marks.
            amount: ignored without amounts.

        Returns:
            float32[memory + features]: the memory of each layer, squashed, then the features.

        Raises:
            ValueError: the memory is of another architecture, the time is not finite or earlier
                than the event before, or the amount is not above 0.
        """
        form = self.architecture
        if memory.digest != form.digest:
            raise ValueError(
                f"expected a memory of architecture {form.digest}, found one of {memory.digest}; "
                "build the memories anew from the events"
            )
        if not (math.isfinite(time) and time >= memory.history[0]) or not amount > 0.0:
            raise ValueError(
                f"expected a finite time from {memory.history[0]} on and an amount above 0, found "
                f"{time} and {amount}; order the events and leave out what is not finite"
            )
        found = np.zeros(form.features, np.float32)
        row = mark if 0 <= mark < form.profiles else form.profiles
        gap = feature_step(
            memory.history, time, mark, amount, scale_array(form), form.marks > 0, form.amount,
            form.clock, np.array(form.levels, np.float64), self.profiles[row],
            np.array(form.clock_periods, np.float64), found,
        )  # fmt: skip
        x, parts = found, []
        for weights, part in zip(self.layers, memory.layers, strict=True):
            layer_step(
                part, x, gap, mark, weights.w1, weights.b1, weights.by_mark, weights.w2,
                weights.b2, weights.time_constant, weights.count_decay, weights.complex_constant,
                weights.complex_period,
            )  # fmt: skip
            below = squash(part * weights.scale)
            parts.append(below)
            x = np.concatenate([found, below])
        return np.concatenate([*parts, found])
