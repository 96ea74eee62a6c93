"""The general linear recurrence as a differentiable operation, for learned real and complex poles.

Sequences lie one after the other in one array, so no length is padded. Forward and backward are one
compiled walk each; the gradient of the poles needs the memory before each event, which is kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor


@njit(cache=True, nogil=True)
def _forward(e, real, imaginary, first, h):  # type: ignore[no-untyped-def]
    size, pairs = e.shape[1], imaginary.shape[1]
    plain = size - 2 * pairs
    for n in range(e.shape[0]):
        if first[n]:
            h[n] = e[n]
            continue
        for k in range(plain):
            h[n, k] = real[n, k] * h[n - 1, k] + e[n, k]
        for k in range(plain, plain + pairs):
            a, b = real[n, k], imaginary[n, k - plain]
            re, im = h[n - 1, k], h[n - 1, k + pairs]
            h[n, k] = a * re - b * im + e[n, k]
            h[n, k + pairs] = a * im + b * re + e[n, k + pairs]


@njit(cache=True, nogil=True)
def _backward(grad, real, imaginary, first, h, of_e, of_real, of_imaginary):  # type: ignore[no-untyped-def]
    size, pairs = grad.shape[1], imaginary.shape[1]
    plain = size - 2 * pairs
    last = grad.shape[0] - 1
    for n in range(last, -1, -1):
        of_e[n] = grad[n]
        if n < last and not first[n + 1]:
            for k in range(plain):
                of_e[n, k] += real[n + 1, k] * of_e[n + 1, k]
            for k in range(plain, plain + pairs):
                a, b = real[n + 1, k], imaginary[n + 1, k - plain]
                re, im = of_e[n + 1, k], of_e[n + 1, k + pairs]
                of_e[n, k] += a * re + b * im
                of_e[n, k + pairs] += a * im - b * re
        if first[n]:
            continue
        for k in range(plain):
            of_real[n, k] = of_e[n, k] * h[n - 1, k]
        for k in range(plain, plain + pairs):
            re, im = of_e[n, k], of_e[n, k + pairs]
            before_re, before_im = h[n - 1, k], h[n - 1, k + pairs]
            of_real[n, k] = re * before_re + im * before_im
            of_imaginary[n, k - plain] = im * before_re - re * before_im


class _Scan(torch.autograd.Function):  # type: ignore[misc]  # torch is not where mypy runs
    @staticmethod
    def forward(ctx: Any, e: Tensor, real: Tensor, imaginary: Tensor, first: Tensor) -> Tensor:
        h = torch.empty_like(e)
        found, re, im, begins = (
            part.detach().contiguous().numpy() for part in (e, real, imaginary, first)
        )
        _forward(found, re, im, begins, h.numpy())
        ctx.save_for_backward(real, imaginary, first, h)
        return h

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        real, imaginary, first, h = (part.contiguous() for part in ctx.saved_tensors)
        grad = grads[0].contiguous()
        found = torch.empty_like(grad), torch.zeros_like(real), torch.zeros_like(imaginary)
        _backward(
            grad.numpy(), real.detach().numpy(), imaginary.detach().numpy(), first.numpy(),
            h.detach().numpy(), *(part.numpy() for part in found),
        )  # fmt: skip
        return *found, None


def pole_scan(e: Tensor, real: Tensor, imaginary: Tensor, first: Tensor) -> Tensor:
    """Run h <- a h + e over sequences that lie one after the other.

    Args:
        e: [n, plain + 2 pairs], what each event adds: plain, then real, then imaginary parts.
        real: [n, plain + pairs], the poles over the gap before each event, their real parts.
        imaginary: [n, pairs], the imaginary parts of the complex ones.
        first: bool [n], True where a sequence begins: the memory before it is empty.

    Returns:
        [n, plain + 2 pairs], the memory after each event, of e's type.
    """
    found: Tensor = _Scan.apply(e, real, imaginary, first)
    return found


def empty_poles(events: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the imaginary parts of no complex poles."""
    return torch.from_numpy(np.zeros((events, 0))).to(dtype)
