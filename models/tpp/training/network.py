"""The intensity model in torch: history encoder and decoder."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.tpp import spec
from models.tpp.training.recurrence import scan

WIDTH = 64


class Encoder(nn.Module):  # type: ignore[misc]  # torch is not where mypy runs
    """Map an event's features to what it adds to the memory: e = W2 relu(W1 u + b1) + b2."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(spec.ENCODER_INPUT, spec.ENCODER_HIDDEN)
        self.output = nn.Linear(spec.ENCODER_HIDDEN, spec.MEMORY)

    def forward(self, u: Tensor, slowest: Tensor, first: Tensor) -> Tensor:
        """Return the memory after each event, float32 [events, 64].

        Args:
            u: float32 [events, 11], features of each event; sequences lie one after the other.
            slowest: float32 [events], see `scan`.
            first: bool [events], True where a sequence begins.
        """
        # Under autocast the products are narrow; the sum over events never is.
        return scan(self.output(torch.relu(self.hidden(u))).float(), slowest, first)


class Decoder(nn.Module):  # type: ignore[misc]  # torch is not where mypy runs
    """Map x [rows, 68] to y [rows, 20], as the ONNX graph on the server does.

    Args:
        width: of the residual stream; compression narrows it.
        hidden: of the layer inside the residual block.
    """

    def __init__(self, width: int = WIDTH, hidden: int = WIDTH) -> None:
        super().__init__()
        # An exponentially weighted sum over n events is of order n: start from weighted means.
        steps = np.concatenate([np.maximum(spec.TIME_CONSTANTS, 1.0), spec.COUNT_CONSTANTS])
        start = np.concatenate([1.0 / np.sqrt(steps), np.ones(4)])
        self.scale = nn.Parameter(torch.tensor(start, dtype=torch.float32))
        self.input = nn.Linear(spec.INPUT, width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.output = nn.Linear(width, spec.OUTPUT)
        with torch.no_grad():
            self.output.weight.mul_(0.3)
            bias = torch.zeros(spec.OUTPUT)
            bias[spec.MEAN] = torch.tensor([-4.0, -1.5, 0.0, 1.0])
            bias[spec.LOG_SD] = torch.tensor([0.3, 0.0, -0.2, -0.2])
            self.output.bias.copy_(bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return y: normalised log weights, means, log sds, normalised log mark probabilities."""
        scaled = x * self.scale
        # log1p(|.|) with the sign, not the values: sums over 10^6 events stay in range, and no
        # input overflows (asinh's square would).
        z = self.input(torch.sign(scaled) * torch.log(torch.abs(scaled) + 1.0))
        z = z + self.down(nn.functional.gelu(self.up(self.norm(z))))
        raw = self.output(z).float()
        return torch.cat(
            [
                torch.log_softmax(raw[..., spec.LOG_WEIGHT], -1),
                raw[..., spec.MEAN].clamp(-spec.MEAN_LIMIT, spec.MEAN_LIMIT),
                raw[..., spec.LOG_SD].clamp(*spec.LOG_SD_RANGE),
                torch.log_softmax(raw[..., spec.LOG_MARK], -1),
            ],
            -1,
        )


def fix_marks(decoder: Decoder, log_share: NDArray[np.float64]) -> None:
    """Let the decoder answer the same mark probabilities whatever it is asked.

    Args:
        decoder: changed in place.
        log_share: float64[8], their logs.
    """
    with torch.no_grad():
        decoder.output.weight[spec.LOG_MARK] = 0.0
        decoder.output.bias[spec.LOG_MARK] = torch.from_numpy(log_share).float()


def gap_log_density(y: Tensor, value: Tensor) -> Tensor:
    """Log density of `value` = log(next gap) - m under the mixtures y [..., 20]; nats."""
    log_sd = y[..., spec.LOG_SD]
    z = (value.unsqueeze(-1) - y[..., spec.MEAN]) * torch.exp(-log_sd)
    parts = y[..., spec.LOG_WEIGHT] - log_sd - 0.5 * z * z
    return torch.logsumexp(parts, -1) - 0.5 * math.log(2.0 * math.pi)


def gap_log_survival(y: Tensor, value: Tensor) -> Tensor:
    """Log P(log(next gap) - m > value) under the mixtures y [..., 20]; nats."""
    z = (value.unsqueeze(-1) - y[..., spec.MEAN]) * torch.exp(-y[..., spec.LOG_SD])
    return torch.logsumexp(y[..., spec.LOG_WEIGHT] + torch.special.log_ndtr(-z), -1)


def encoder_arrays(encoder: Encoder) -> dict[str, NDArray[np.float32]]:
    """Return W1 [32, 11], b1 [32], W2 [64, 32], b2 [64], as `encoder.npz` holds them."""
    named = {
        "W1": encoder.hidden.weight,
        "b1": encoder.hidden.bias,
        "W2": encoder.output.weight,
        "b2": encoder.output.bias,
    }
    return {name: value.detach().numpy().astype(np.float32) for name, value in named.items()}


def load_encoder(arrays: Mapping[str, NDArray[np.float32]]) -> Encoder:
    """Return the encoder with the weights of an `encoder.npz`, as `encoder_arrays` names them."""
    encoder = Encoder()
    named = {
        "hidden.weight": "W1", "hidden.bias": "b1", "output.weight": "W2", "output.bias": "b2"
    }  # fmt: skip
    encoder.load_state_dict({key: torch.from_numpy(arrays[name]) for key, name in named.items()})
    return encoder
