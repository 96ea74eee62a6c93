"""Structured pruning of the decoder: narrower layers, which any runtime profits from."""

from __future__ import annotations

import torch
from torch import Tensor

from models.tpp.training.network import Decoder


def _strongest(importance: Tensor, count: int) -> Tensor:
    return torch.sort(torch.topk(importance, count).indices).values


def prune(decoder: Decoder, width: int, hidden: int) -> Decoder:
    """Return a narrower decoder of the strongest channels; it wants fine-tuning.

    By magnitude: a hidden unit counts by the norms of what goes in and what comes out, a channel
    of the residual stream by what is written into it times what is read from it.

    Args:
        decoder: stays as it is.
        width: channels of the residual stream to keep.
        hidden: hidden units to keep.

    Raises:
        ValueError: it has fewer.
    """
    found = decoder.norm.weight.shape[0], decoder.up.weight.shape[0]
    if width > found[0] or hidden > found[1]:
        raise ValueError(f"expected at most {found} channels and units, found {(width, hidden)}")
    with torch.no_grad():
        unit = decoder.up.weight.norm(dim=1) * decoder.down.weight.norm(dim=0)
        units = _strongest(unit, hidden)
        written = torch.hypot(decoder.input.weight.norm(dim=1), decoder.down.weight.norm(dim=1))
        by_up = decoder.norm.weight.abs() * decoder.up.weight.norm(dim=0)
        channels = _strongest(
            written * torch.hypot(decoder.output.weight.norm(dim=0), by_up), width
        )
        narrow = Decoder(width, hidden)
        state = decoder.state_dict()
        state["input.weight"] = state["input.weight"][channels]
        state["amount.hidden.weight"] = state["amount.hidden.weight"][:, channels]
        state["down.weight"] = state["down.weight"][channels][:, units]
        state["up.weight"] = state["up.weight"][units][:, channels]
        state["output.weight"] = state["output.weight"][:, channels]
        state["up.bias"] = state["up.bias"][units]
        for name in ("input.bias", "down.bias", "norm.weight", "norm.bias"):
            state[name] = state[name][channels]
        narrow.load_state_dict({name: value.clone() for name, value in state.items()})
    narrow.eval()
    return narrow
