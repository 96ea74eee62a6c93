"""A teacher by self-attention for the model that is served, and what is learnt from it.

It reads the features of `models.tpp.spec` and answers in the same 64 numbers as the stream's
encoder, so that decoder, likelihood and judgement are the same. It is too dear for the stream: each
event looks at all before it in its segment.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from models.tpp import spec
from models.tpp.training.data import Block
from models.tpp.training.fit import Loss, event_losses, likelihood_loss, predict
from models.tpp.training.hardware import on
from models.tpp.training.network import Decoder, Encoder, mixture_log_density

CONTEXT = 128
"""Events of a segment at most: what the teacher has seen where it is asked last."""
_LONGEST = float(spec.TIME_CONSTANTS.max())
_FEWEST = 1e-37  # a decay that underflowed: the gap is then some 85 of the longest constants

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(5)  # type: ignore[no-untyped-call]
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


def padded(first: Tensor) -> tuple[Tensor, Tensor]:
    """Return row numbers int64 [segments, longest] of the events, and where they are real."""
    starts = torch.nonzero(first).squeeze(1)
    ends = torch.cat([starts[1:], torch.tensor([len(first)], device=first.device)])
    rows = starts.unsqueeze(1) + torch.arange(int((ends - starts).max()), device=first.device)
    return rows.clamp(max=len(first) - 1), rows < ends.unsqueeze(1)


class AttentionEncoder(nn.Module):  # type: ignore[misc]  # torch is not where mypy runs
    """Causal self-attention, pre-norm; scores fall with the log of the time between two events.

    Each head learns its own slope of that fall: with irregular times it takes the place of a
    positional encoding (as in `references`, on the features that the server's model has).
    """

    def __init__(self, heads: int = 4, blocks: int = 2) -> None:
        super().__init__()
        width = spec.MEMORY
        self.heads = heads
        self.input = nn.Linear(spec.ENCODER_INPUT + 1, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * blocks))
        self.queries = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(blocks))
        self.joins = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.ups = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(blocks))
        self.downs = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(blocks))
        self.slopes = nn.Parameter(torch.linspace(0.0, 1.0, heads).repeat(blocks, 1))

    def forward(self, u: Tensor, slowest: Tensor, first: Tensor) -> Tensor:
        """Return float32 [events, 64], one row after each event; arguments as `Encoder`'s."""
        rows, real = padded(first)
        # The decay of the longest time constant holds the gap, in the entity's usual gaps.
        elapsed = -_LONGEST * torch.log(slowest.clamp(min=_FEWEST))
        clock = torch.cumsum(torch.where(real, elapsed[rows], 0.0), 1)
        between = torch.log1p((clock.unsqueeze(2) - clock.unsqueeze(1)).clamp(min=0.0))
        later = torch.ones(rows.shape[1:] * 2, dtype=torch.bool, device=u.device).triu(1)
        x = self.input(torch.cat([u, torch.log1p(elapsed).unsqueeze(1) / 4.0], 1))[rows]
        for b, query in enumerate(self.queries):
            q, k, v = (
                part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
                for part in query(self.norms[2 * b](x)).chunk(3, -1)
            )
            bias = -self.slopes[b].view(1, -1, 1, 1) * between.unsqueeze(1)
            bias = bias.masked_fill(later, -math.inf).to(q.dtype)
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
            x = x + self.joins[b](mixed.transpose(1, 2).flatten(2))
            wide = nn.functional.silu(self.ups[b](self.norms[2 * b + 1](x)))
            x = x + self.downs[b](wide)
        return x[real].float()


def cross_entropy(of: Tensor, by: Tensor) -> Tensor:
    """Return E[-log density of `by`] under the mixtures `of`, nats, [n].

    Five-point Gauss-Hermite quadrature in each component: exact for what is a polynomial of ninth
    degree within a component, and without a draw.

    Args:
        of: [n, 12] of the teacher, y's GAP or AMOUNT, no gradient.
        by: [n, 12] of the student.
    """
    total = torch.zeros(len(by), device=by.device)
    log_weight, mean, log_sd = of.chunk(3, -1)
    weight, sd = torch.exp(log_weight), torch.exp(log_sd)
    for node, share in zip(_NODES.tolist(), _WEIGHTS.tolist(), strict=True):
        at = mean + node * sd
        for k in range(spec.COMPONENTS):
            total = total - share * weight[:, k] * mixture_log_density(by, at[:, k])
    return total


def distillation_loss(teacher: Encoder, decoder: Decoder, share: float, marks: bool) -> Loss:
    """Return the loss that follows the teacher's predictions and the data alike.

    Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network (2015), at temperature
    1: a mixture density has no other. Of an event the teacher gives the whole distribution, where
    the data give one draw. Blocks with segments beyond the teacher's context are learnt by their
    likelihood alone, so that the student's long memory stays in use.

    Args:
        teacher: its encoder.
        decoder: its decoder.
        share: of the teacher in the loss, 0 to 1; the likelihood has the rest.
        marks: whether marks count.
    """
    teacher.requires_grad_(False)
    decoder.requires_grad_(False)

    plain = likelihood_loss(marks)

    def loss(encoder: Encoder, student: Decoder, block: Block) -> Tensor:
        starts = np.append(np.flatnonzero(block.first), len(block))
        if int(np.diff(starts).max()) > CONTEXT:
            return plain(encoder, student, block)
        with torch.no_grad():
            soft = predict(teacher, decoder, block)
        y = predict(encoder, student, block)
        gap, mark, amount = event_losses(y, block)
        device = y.device
        known = on(device, block.known)
        of_gap = torch.where(known, cross_entropy(soft[:, spec.GAP], y[:, spec.GAP]), gap)
        share_of_mark = torch.exp(soft[:, spec.LOG_MARK])
        of_mark = -(share_of_mark * y[:, spec.LOG_MARK]).sum(1)
        of_mark = torch.where(on(device, block.next_mark) >= 0, of_mark, 0.0)
        valued = on(device, np.isfinite(block.amount))
        of_amount = cross_entropy(soft[:, spec.AMOUNT], y[:, spec.AMOUNT])
        of_amount = torch.where(valued, of_amount, 0.0)
        each = (1.0 - share) * (gap + amount) + share * (of_gap + of_amount)
        if marks:
            each = each + (1.0 - share) * mark + share * of_mark
        weight = on(device, block.weight)
        return (each * weight).sum() / weight.sum()

    return loss
