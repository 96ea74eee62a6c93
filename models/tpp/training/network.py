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
AMOUNT_HIDDEN = 16


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
    """Map x [rows, 69] to y [rows, 32], as the ONNX graph on the server does.

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
        self.input = nn.Linear(spec.MARK, width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.output = nn.Linear(width, spec.AMOUNT.start)
        self.amount = AmountHead(width)
        with torch.no_grad():
            self.output.weight.mul_(0.3)
            bias = torch.zeros(spec.AMOUNT.start)
            bias[spec.MEAN] = torch.tensor([-4.0, -1.5, 0.0, 1.0])
            bias[spec.LOG_SD] = torch.tensor([0.3, 0.0, -0.2, -0.2])
            self.output.bias.copy_(bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return y as `models.tpp.spec` has it, weights and probabilities normalised."""
        scaled = x[..., : spec.MARK] * self.scale
        # log1p(|.|) with the sign, not the values: sums over 10^6 events stay in range, and no
        # input overflows (asinh's square would).
        z = self.input(torch.sign(scaled) * torch.log(torch.abs(scaled) + 1.0))
        z = z + self.down(nn.functional.gelu(self.up(self.norm(z))))
        raw = self.output(z).float()
        return torch.cat(
            [
                *_mixture(raw[..., spec.GAP]),
                torch.log_softmax(raw[..., spec.LOG_MARK], -1),
                *_mixture(self.amount(z, x[..., spec.MARK])),
            ],
            -1,
        )


class AmountHead(nn.Module):  # type: ignore[misc]  # torch is not where mypy runs
    """Answer an event's amount given its mark and what the decoder made of gap and history.

    It learns nothing back into what it reads: timing and marks are learnt as if there were no
    amounts, and an encoder that keeps its weights keeps the memories of a running job.

    Args:
        width: of the decoder's residual stream.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, AMOUNT_HIDDEN)
        self.mark = nn.Embedding(spec.MARKS + 1, AMOUNT_HIDDEN)
        self.output = nn.Linear(AMOUNT_HIDDEN, 3 * spec.COMPONENTS)
        with torch.no_grad():
            self.output.weight.mul_(0.3)
            bias = [0.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.5, 1.5, 0.0, -0.2, -0.2, 0.3]
            self.output.bias.copy_(torch.tensor(bias))

    def forward(self, z: Tensor, mark: Tensor) -> Tensor:
        """Return the mixture's parameters before they are brought into their ranges, [..., 12].

        Args:
            z: float32 [..., width].
            mark: float32 [...], its index, MARKS for none.
        """
        known = self.mark(mark.clamp(0.0, float(spec.MARKS)).long())
        raw: Tensor = self.output(nn.functional.silu(self.hidden(z.detach()) + known)).float()
        return raw


def _mixture(raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log weights, means and log sds in their ranges, each [..., 4]."""
    weight, mean, log_sd = raw.chunk(3, -1)
    return (
        torch.log_softmax(weight, -1),
        mean.clamp(-spec.MEAN_LIMIT, spec.MEAN_LIMIT),
        log_sd.clamp(*spec.LOG_SD_RANGE),
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


def mixture_log_density(params: Tensor, value: Tensor) -> Tensor:
    """Log density of `value` under mixtures of normals [..., 12], y's GAP or AMOUNT; nats."""
    weight, mean, log_sd = params.chunk(3, -1)
    z = (value.unsqueeze(-1) - mean) * torch.exp(-log_sd)
    parts = weight - log_sd - 0.5 * z * z
    return torch.logsumexp(parts, -1) - 0.5 * math.log(2.0 * math.pi)


def mixture_log_survival(params: Tensor, value: Tensor) -> Tensor:
    """Log P(larger than `value`) under mixtures of normals params [..., 12]; nats."""
    weight, mean, log_sd = params.chunk(3, -1)
    z = (value.unsqueeze(-1) - mean) * torch.exp(-log_sd)
    return torch.logsumexp(weight + torch.special.log_ndtr(-z), -1)


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
