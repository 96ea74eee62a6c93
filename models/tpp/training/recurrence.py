"""The linear memory as a differentiable operation: compiled scans forward and backward.

The decays depend on data only, never on parameters, so the gradient of the scan is one scan in the
other direction and nothing but the decays has to be kept. Sequences lie one after the other in one
array, so no length is padded. On a GPU the same recurrence is an associative scan.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from models.tpp import spec

_TIMES = spec.TIME_DOUBLINGS
_LONGEST = float(spec.TIME_CONSTANTS.max())
_COUNT_DECAY = np.exp(-1.0 / spec.COUNT_CONSTANTS).astype(np.float32)


def slowest_decay(elapsed: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the decay of the longest time constant over gaps in units of exp(m), as the stream."""
    decay: NDArray[np.float32] = np.exp(-elapsed / _LONGEST).astype(np.float32)
    return decay


@njit(cache=True)
def _fill_decays(slowest, count, out):  # type: ignore[no-untyped-def]
    """Fill out [64]; each shorter time constant's decay is the square of the next one's."""
    a = np.float32(slowest)
    for k in range(_TIMES - 1, -1, -1):
        out[k] = a
        out[k + _TIMES] = a
        a = a * a
    for k in range(2 * _TIMES):
        out[2 * _TIMES + k] = count[k]


@njit(cache=True)
def _forward(e, slowest, first, count, h):  # type: ignore[no-untyped-def]
    a = np.empty(e.shape[1], np.float32)
    for n in range(e.shape[0]):
        if first[n]:
            h[n] = e[n]
            continue
        _fill_decays(slowest[n], count, a)
        for k in range(e.shape[1]):
            h[n, k] = a[k] * h[n - 1, k] + e[n, k]


@njit(cache=True)
def _backward(grad, slowest, first, count, out):  # type: ignore[no-untyped-def]
    a = np.empty(grad.shape[1], np.float32)
    last = grad.shape[0] - 1
    for n in range(last, -1, -1):
        if n == last or first[n + 1]:
            out[n] = grad[n]
            continue
        _fill_decays(slowest[n + 1], count, a)
        for k in range(grad.shape[1]):
            out[n, k] = a[k] * out[n + 1, k] + grad[n, k]


class _Scan(torch.autograd.Function):  # type: ignore[misc]  # as in network.py
    @staticmethod
    def forward(ctx: Any, e: Tensor, slowest: Tensor, first: Tensor) -> Tensor:
        ctx.save_for_backward(slowest, first)
        h = torch.empty_like(e)
        e = e.detach().contiguous()
        _forward(e.numpy(), slowest.numpy(), first.numpy(), _COUNT_DECAY, h.numpy())
        return h

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        slowest, first = ctx.saved_tensors
        grad = grads[0].contiguous()
        out = torch.empty_like(grad)
        _backward(grad.numpy(), slowest.numpy(), first.numpy(), _COUNT_DECAY, out.numpy())
        return out, None, None


def decays(slowest: Tensor) -> Tensor:
    """Return the decays [events, 64] as the compiled scan makes them, on any device."""
    a = slowest
    falling = []
    for _ in range(_TIMES):
        falling.append(a)
        a = a * a
    by_time = torch.stack(falling[::-1], 1)
    by_count = torch.from_numpy(_COUNT_DECAY).to(slowest.device).expand(len(slowest), -1)
    return torch.cat([by_time, by_time, by_count], 1)


def parallel_scan(e: Tensor, slowest: Tensor, first: Tensor) -> Tensor:
    """Run the recurrence in log2(events) steps of whole arrays (Hillis and Steele 1986).

    For a GPU, where a walk event by event would be as slow as its launches. The pairs (a, h)
    combine as (a2 a1, a2 h1 + h2); a sequence's first event has a = 0, so that nothing crosses.
    Decays are at most 1, so no product overflows. Arguments and result are those of `scan`.
    """
    a = torch.where(first.unsqueeze(1), torch.zeros((), device=e.device), decays(slowest))
    h, step = e, 1
    while step < len(h):
        h = torch.cat([h[:step], a[step:] * h[:-step] + h[step:]])
        a = torch.cat([a[:step], a[step:] * a[:-step]])
        step *= 2
    return h


def scan(e: Tensor, slowest: Tensor, first: Tensor) -> Tensor:
    """Run h <- a(gap) * h + e over sequences that lie one after the other.

    Args:
        e: float32 [events, 64], what each event adds.
        slowest: float32 [events], `slowest_decay` of the gap before each event.
        first: bool [events], True where a sequence begins: the memory before it is empty.

    Returns:
        float32 [events, 64], the memory after each event.
    """
    if e.is_cuda:
        return parallel_scan(e, slowest, first)
    result: Tensor = _Scan.apply(e, slowest, first)
    return result
