"""The streamable model in torch: encoder of feature version 4, decoder with gap, mark and amount.

The encoder is the twin of `models.tpp.recurrence`, to 1e-5 over 10,000 events.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.tpp.architecture import PROFILE_FEATURES, Architecture, Layer
from models.tpp.gap_laws import LogNormalMixture
from models.tpp.recurrence import LayerWeights, Recurrence
from models.tpp.training.scan import pole_scan

LOG_SD_RANGE = (-5.0, 3.0)
"""Of the standardised log gap, as in the published models: a spike on the grid of the time stamps
cannot buy likelihood without limit."""
MEAN_LIMIT = 25.0
_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


@dataclass(frozen=True, slots=True)
class Events:
    """Events of several sequences, one after the other, ready for the network.

    Attributes:
        features: float32 [n, features].
        elapsed: float64 [n], mean gaps before each event, 0 for a first one.
        first: bool [n], a sequence begins.
        mark: int64 [n], 0 where events have none.
        target: float32 [n], standardised log of the next gap; 0 for a last event.
        known: bool [n], False for the last event of a sequence.
        amount: float32 [n], standardised log amount, 0 where events have none.
    """

    features: Tensor
    elapsed: Tensor
    first: Tensor
    mark: Tensor
    target: Tensor
    known: Tensor
    amount: Tensor


def squash(value: Tensor) -> Tensor:
    """Return sign(value) log(1 + |value|)."""
    return torch.sign(value) * torch.log1p(torch.abs(value))


class RecurrentLayer(nn.Module):  # type: ignore[misc]  # torch is not where mypy runs
    """One linear recurrence with learned poles; its formula is in `models.tpp.recurrence`."""

    def __init__(self, inputs: int, layer: Layer, marks: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, layer.hidden)
        self.output = nn.Linear(layer.hidden, layer.size)
        self.by_mark = nn.Parameter(torch.zeros(marks, layer.hidden))
        constants = [constant for constant, _ in layer.periods]
        turns = [period for _, period in layer.periods]
        self.log_time = nn.Parameter(torch.log(torch.tensor(layer.time_constants)))
        self.log_count = nn.Parameter(torch.log(torch.tensor(layer.count_constants)))
        self.log_constant = nn.Parameter(torch.log(torch.tensor(constants)))
        self.log_period = nn.Parameter(torch.log(torch.tensor(turns)))
        # A sum over n events is of order n: begin from weighted means.
        start = 1.0 / np.sqrt(layer.reach)
        self.scale = nn.Parameter(torch.tensor(start, dtype=torch.float32))

    def poles(self, elapsed: Tensor) -> tuple[Tensor, Tensor]:
        """Return the poles' real [n, plain + pairs] and imaginary [n, pairs] parts.

        In float64, then rounded once, as the stream has them: see `recurrence.fade`.
        """
        column = elapsed.unsqueeze(1)
        by_time = torch.exp(-column * torch.exp(-self.log_time.double()))
        by_count = torch.exp(-torch.exp(-self.log_count.double())).expand(len(elapsed), -1)
        size = torch.exp(-column * torch.exp(-self.log_constant.double()))
        angle = 2.0 * math.pi * (column * torch.exp(-self.log_period.double()))
        real = torch.cat([by_time, by_count, size * torch.cos(angle)], 1)
        return real.float(), (size * torch.sin(angle)).float()

    def forward(self, x: Tensor, events: Events) -> Tensor:
        """Return the layer's memory after each event, squashed, float32 [n, size]."""
        hidden = self.hidden(x)
        if len(self.by_mark):
            hidden = hidden + self.by_mark[events.mark.clamp(max=len(self.by_mark) - 1)]
        e = self.output(nn.functional.silu(hidden))
        return pole_scan(e, *self.poles(events.elapsed), events.first)


class Encoder(nn.Module):  # type: ignore[misc]
    """Stacked linear recurrences; a layer above reads the features and the memory below."""

    def __init__(self, form: Architecture) -> None:
        super().__init__()
        below, stack = 0, []
        for layer in form.layers:
            stack.append(RecurrentLayer(form.features + below, layer, form.marks))
            below = layer.size
        self.layers = nn.ModuleList(stack)

    def forward(self, events: Events) -> Tensor:
        """Return the decoder's input after each event, float32 [n, memory + features]."""
        x, parts = events.features, []
        for layer in self.layers:
            parts.append(squash(layer(x, events) * layer.scale))
            x = torch.cat([events.features, parts[-1]], 1)
        return torch.cat([*parts, events.features], 1)


class Decoder(nn.Module):  # type: ignore[misc]
    """Map the encoder's answer to the next gap, mark and amount."""

    def __init__(self, form: Architecture, inputs: int) -> None:
        super().__init__()
        width = form.width
        self.form = form
        self.input = nn.Linear(inputs, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(form.blocks))
        self.ups = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(form.blocks))
        self.downs = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(form.blocks))
        self.dropout = nn.Dropout(form.dropout)
        self.gap = nn.Linear(width, 3 * form.components)
        self.mark = nn.Linear(width, form.marks) if form.mark_head else None
        self.amount = None
        if form.amount:
            self.given = nn.Linear(width + 1, width)
            self.given_mark = nn.Embedding(max(form.marks, 1), width)
            self.amount = nn.Linear(width, 3 * form.amount_components)
        with torch.no_grad():
            self.gap.weight.mul_(0.1)

    def begin_at(self, law: LogNormalMixture) -> None:
        """Let the gap's mixture begin as `law`, of the standardised log gap, for every history.

        Raises:
            ValueError: the law has another number of components.
        """
        parts = self.form.components
        if len(law.weight) != parts:
            raise ValueError(f"expected {parts} components, found {len(law.weight)}")
        log_sd = np.log(law.sd).clip(*LOG_SD_RANGE)
        start = [np.log(np.maximum(law.weight, 1e-6)), np.array(law.mean), log_sd]
        with torch.no_grad():
            self.gap.bias.copy_(torch.tensor(np.concatenate(start), dtype=torch.float32))

    def trunk(self, x: Tensor) -> Tensor:
        """Return float32 [n, width], what every head reads."""
        z = self.input(x)
        for norm, up, down in zip(self.norms, self.ups, self.downs, strict=True):
            z = z + down(self.dropout(nn.functional.silu(up(norm(z)))))
        return z

    def gap_parameters(self, z: Tensor) -> Tensor:
        """Return [n, 3 components]: normalised log weights, means, log sds of the log gap."""
        return mixture_parameters(self.gap(z), self.form.components)

    def mark_log_probability(self, z: Tensor) -> Tensor:
        """Return [n, marks], log probabilities of the next mark.

        Raises:
            ValueError: the architecture predicts no marks.
        """
        if self.mark is None:
            raise ValueError("expected an architecture with a mark head, found one without")
        return torch.log_softmax(self.mark(z), -1)

    def amount_parameters(self, z: Tensor, gap: Tensor, mark: Tensor) -> Tensor:
        """Return [n, 3 amount components] of the next log amount, given next gap and mark.

        Args:
            z: [n, width], of the trunk.
            gap: [n], standardised log of the next gap.
            mark: int64 [n], the next mark.

        Raises:
            ValueError: the architecture has no amounts.
        """
        if self.amount is None:
            raise ValueError("expected an architecture with amounts, found one without")
        told = self.given(torch.cat([z, gap.unsqueeze(1)], 1))
        told = told + self.given_mark(mark.clamp(max=self.given_mark.num_embeddings - 1))
        return mixture_parameters(
            self.amount(nn.functional.silu(told)), self.form.amount_components
        )


def mixture_parameters(raw: Tensor, components: int) -> Tensor:
    """Return raw [n, 3 components] with normalised log weights and bounded means and log sds."""
    weight, mean, log_sd = raw.split(components, -1)
    bounded = _held(mean, -MEAN_LIMIT, MEAN_LIMIT), _held(log_sd, *LOG_SD_RANGE)
    return torch.cat([torch.log_softmax(weight, -1), *bounded], -1)


def _held(value: Tensor, low: float, high: float) -> Tensor:
    """Clamp, but let gradients through: a component at the bound must be able to come back."""
    return value + (value.clamp(low, high) - value).detach()


def mixture_log_density(params: Tensor, value: Tensor) -> Tensor:
    """Return the log density of value [n] under mixtures of normals params [n, 3 k], nats."""
    log_weight, mean, log_sd = params.chunk(3, -1)
    z = (value.unsqueeze(-1) - mean) * torch.exp(-log_sd)
    return torch.logsumexp(log_weight - log_sd - 0.5 * z * z, -1) - _HALF_LOG_2PI


def mixture_cdf(params: Tensor, value: Tensor) -> Tensor:
    """Return P(Y <= value) [n] under mixtures of normals params [n, 3 k]."""
    log_weight, mean, log_sd = params.chunk(3, -1)
    z = (value.unsqueeze(-1) - mean) * torch.exp(-log_sd)
    return (torch.exp(log_weight) * torch.special.ndtr(z)).sum(-1).clamp(0.0, 1.0)


class Model(nn.Module):  # type: ignore[misc]
    """Any encoder with the decoder; the streamable one is `Model(form, Encoder(form))`."""

    def __init__(self, form: Architecture, encoder: nn.Module, inputs: int) -> None:
        super().__init__()
        self.form = form
        self.encoder = encoder
        self.decoder = Decoder(form, inputs)
        rows = form.profiles + 1, PROFILE_FEATURES if form.profiles else 0
        self.register_buffer("profiles", torch.zeros(rows))

    @classmethod
    def streamable(cls, form: Architecture) -> Model:
        """Return the model whose encoder runs in the stream."""
        return cls(form, Encoder(form), form.memory + form.features)

    def forward(self, events: Events) -> Tensor:
        """Return float32 [n, width], the trunk after each event."""
        return self.decoder.trunk(self.encoder(events))

    def losses(self, events: Events) -> dict[str, Tensor]:
        """Return negative log likelihoods of what follows each event, nats, by head, each [n].

        `gap` is of the standardised log gap. 0 where nothing follows.
        """
        z = self(events)
        nothing = torch.zeros(())
        gap = -mixture_log_density(self.decoder.gap_parameters(z), events.target)
        found = {"gap": torch.where(events.known, gap, nothing)}
        following = torch.roll(events.mark, -1)
        if self.decoder.mark is not None:
            named = following.clamp(max=self.form.marks - 1).unsqueeze(1)
            mark = -self.decoder.mark_log_probability(z).gather(1, named).squeeze(1)
            found["mark"] = torch.where(events.known, mark, nothing)
        if self.decoder.amount is not None:
            params = self.decoder.amount_parameters(z, events.target, following)
            amount = -mixture_log_density(params, torch.roll(events.amount, -1))
            found["amount"] = torch.where(events.known, amount, nothing)
        return found


def stream_weights(model: Model) -> Recurrence:
    """Return the encoder's weights as the stream runs them.

    Raises:
        TypeError: the encoder is not the streamable one.
    """
    if not isinstance(model.encoder, Encoder):
        raise TypeError(
            f"expected the linear encoder, found {type(model.encoder).__name__}: only a linear "
            "recurrence runs in the stream; distil this one"
        )
    found = tuple(_layer_weights(layer) for layer in model.encoder.layers)
    return Recurrence(model.form.without_dropout(), found, _array(model.profiles))


def _layer_weights(layer: RecurrentLayer) -> LayerWeights:
    def constants(log: Tensor) -> NDArray[np.float64]:
        return 1.0 / np.exp(-_array(log).astype(np.float64))

    return LayerWeights(
        _array(layer.hidden.weight.T),
        _array(layer.hidden.bias),
        _array(layer.by_mark),
        _array(layer.output.weight.T),
        _array(layer.output.bias),
        constants(layer.log_time),
        np.exp(-1.0 / constants(layer.log_count)).astype(np.float32),
        constants(layer.log_constant),
        constants(layer.log_period),
        _array(layer.scale),
    )


def _array(value: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(value.detach().numpy(), np.float32)
