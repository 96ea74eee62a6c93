"""Encoders that are too dear for the stream: references, and teachers to distil from.

Both read what the linear encoder reads and answer in the same place, so that a comparison is of the
encoder alone. Sequences are padded here, since both walk them side by side.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.tpp.architecture import Architecture
from models.tpp.training.streamable import Events, Model

_LOG_GAP_SCALE = 4.0


def _padded(events: Events) -> tuple[Tensor, Tensor]:
    """Return row numbers [sequences, longest] of the events, and where they are real."""
    starts = torch.nonzero(events.first).squeeze(1)
    ends = torch.cat([starts[1:], torch.tensor([len(events.first)])])
    longest = int((ends - starts).max())
    rows = starts.unsqueeze(1) + torch.arange(longest)
    real = rows < ends.unsqueeze(1)
    return rows.clamp(max=len(events.first) - 1), real


class _Input(nn.Module):  # type: ignore[misc]
    def __init__(self, form: Architecture, width: int) -> None:
        super().__init__()
        self.input = nn.Linear(form.features + 1, width)
        self.by_mark = nn.Parameter(torch.zeros(form.marks, width))

    def forward(self, events: Events) -> Tensor:
        log_gap = torch.log1p(events.elapsed).float().unsqueeze(1) / _LOG_GAP_SCALE
        x = self.input(torch.cat([events.features, log_gap], 1))
        if len(self.by_mark):
            x = x + self.by_mark[events.mark.clamp(max=len(self.by_mark) - 1)]
        return x


class GruEncoder(nn.Module):  # type: ignore[misc]
    """A gated recurrent unit over each sequence."""

    def __init__(self, form: Architecture, width: int = 64) -> None:
        super().__init__()
        self.input = _Input(form, width)
        self.gru = nn.GRU(width, width, batch_first=True)

    def forward(self, events: Events) -> Tensor:
        """Return float32 [n, width + features], one row after each event."""
        rows, real = _padded(events)
        hidden, _ = self.gru(nn.functional.silu(self.input(events))[rows])
        return torch.cat([hidden[real], events.features], 1)


class AttentionEncoder(nn.Module):  # type: ignore[misc]
    """Causal self-attention, pre-norm; scores fall with the log of the time between two events.

    Each head has its own slope of that fall, learned: with irregular times it takes the place of a
    positional encoding.
    """

    def __init__(
        self, form: Architecture, width: int = 64, heads: int = 4, blocks: int = 2
    ) -> None:
        super().__init__()
        self.heads = heads
        self.input = _Input(form, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * blocks))
        self.queries = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(blocks))
        self.joins = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.ups = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(blocks))
        self.downs = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(blocks))
        self.slopes = nn.Parameter(torch.linspace(0.0, 1.0, heads).repeat(blocks, 1))

    def forward(self, events: Events) -> Tensor:
        """Return float32 [n, width + features], one row after each event."""
        rows, real = _padded(events)
        x = self.input(events)[rows]
        clock = torch.cumsum(torch.where(real, events.elapsed[rows], 0.0), 1)
        between = torch.log1p((clock.unsqueeze(2) - clock.unsqueeze(1)).clamp(min=0.0)).float()
        longest = rows.shape[1]
        later = torch.ones(longest, longest, dtype=torch.bool).triu(1)
        for b, query in enumerate(self.queries):
            q, k, v = (
                part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
                for part in query(self.norms[2 * b](x)).chunk(3, -1)
            )
            score = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
            score = score - self.slopes[b].view(1, -1, 1, 1) * between.unsqueeze(1)
            mixed = torch.softmax(score.masked_fill(later, -math.inf), -1) @ v
            x = x + self.joins[b](mixed.transpose(1, 2).flatten(2))
            wide = nn.functional.silu(self.ups[b](self.norms[2 * b + 1](x)))
            x = x + self.downs[b](wide)
        return torch.cat([x[real], events.features], 1)


def gru(form: Architecture, width: int = 64) -> Model:
    """Return the model with a GRU in place of the linear encoder."""
    return Model(form, GruEncoder(form, width), width + form.features)


def attention(form: Architecture, width: int = 64) -> Model:
    """Return the model with self-attention in place of the linear encoder."""
    return Model(form, AttentionEncoder(form, width), width + form.features)
