"""Fit the intensity model by maximum likelihood on one core, the same for the same seed."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.tpp import spec
from models.tpp.training.data import Block, KindData, Segment, build, cut, pack
from models.tpp.training.network import Decoder, Encoder, gap_log_density, gap_log_survival

_LOG = logging.getLogger(__name__)

_EMA = 0.995
_CLIP_NORM = 1.0
_TARGET_LIMIT = 24.0


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """How to train.

    Attributes:
        seed: everything random follows from it.
        worlds: simulated worlds to learn from.
        steps: gradient steps at most.
        batch_events: events of a step, about.
        longest: longest segments, drawn per pass; the shorter pass sees more beginnings.
        learning_rate: at its peak.
        warm_steps: steps until the peak.
        check_steps: steps between looks at the validation set.
        patience: looks without a better likelihood after which training stops.
    """

    seed: int = 7
    worlds: int = 4
    steps: int = 1_600
    batch_events: int = 8_192
    longest: tuple[int, ...] = (2_048, 8_192, 512)
    learning_rate: float = 4e-3
    warm_steps: int = 60
    check_steps: int = 100
    patience: int = 6


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trained model and how its training went.

    Attributes:
        encoder: with the weights of the best look.
        decoder: likewise.
        steps: steps made.
        best_step: the step of these weights.
        validation: nats per event (gap and mark) at each look.
        seconds: wall time.
    """

    encoder: Encoder
    decoder: Decoder
    steps: int
    best_step: int
    validation: tuple[float, ...]
    seconds: float


def decoder_input(encoder: Encoder, block: Block) -> Tensor:
    """Return x float32 [n, 68], what the server is asked after each event of `block`."""
    memory = encoder(
        torch.from_numpy(block.u), torch.from_numpy(block.slowest), torch.from_numpy(block.first)
    )
    return torch.cat([memory, torch.from_numpy(block.rest)], 1)


def predict(encoder: Encoder, decoder: Decoder, block: Block) -> Tensor:
    """Return y float32 [n, 20], the prediction made after each event of `block`."""
    y: Tensor = decoder(decoder_input(encoder, block))
    return y


def event_losses(y: Tensor, block: Block) -> tuple[Tensor, Tensor]:
    """Return the negative log likelihoods of next gap and next mark, nats, each [n].

    The gap counts as a density of its log, or where nothing followed as the survival until the
    end of watching; where neither is known it is zero.
    """
    target = torch.from_numpy(block.target).clamp(-_TARGET_LIMIT, _TARGET_LIMIT)
    known, censored = torch.from_numpy(block.known), torch.from_numpy(block.censored)
    gap = torch.where(known, -gap_log_density(y, target), torch.zeros(()))
    if bool(censored.any()):
        gap = gap.clone()
        gap[censored] = -gap_log_survival(y[censored], target[censored])
    mark = torch.from_numpy(block.next_mark)
    chosen = y[:, spec.LOG_MARK].gather(1, mark.clamp(min=0).unsqueeze(1)).squeeze(1)
    return gap, torch.where(mark >= 0, -chosen, torch.zeros(()))


def mean_loss(encoder: Encoder, decoder: Decoder, blocks: Sequence[Block]) -> float:
    """Return gap and mark likelihood in nats per event, every event alike."""
    total, count = 0.0, 0
    with torch.no_grad():
        for block in blocks:
            gap, mark = event_losses(predict(encoder, decoder, block), block)
            total += float(gap.sum() + mark.sum())
            count += int(block.known.sum())
    return total / max(count, 1)


def _rate(step: int, config: TrainingConfig) -> float:
    if step < config.warm_steps:
        return (step + 1) / config.warm_steps
    done = (step - config.warm_steps) / max(config.steps - config.warm_steps, 1)
    return 0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))


def _learn(modules: torch.nn.ModuleList, block: Block, optimiser: torch.optim.Optimizer) -> None:
    encoder, decoder = modules
    assert isinstance(encoder, Encoder)
    assert isinstance(decoder, Decoder)
    gap, mark = event_losses(predict(encoder, decoder, block), block)
    weight = torch.from_numpy(block.weight)
    loss = ((gap + mark) * weight).sum() / weight.sum()
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(modules.parameters(), _CLIP_NORM)
    optimiser.step()


def train(
    learning: Sequence[tuple[KindData, NDArray[np.int64]]],
    validation: Sequence[Segment],
    config: TrainingConfig,
) -> Fitted:
    """Train encoder and decoder on sequences.

    Args:
        learning: for each kind of each world its data and int64[m], the sequences to learn from.
        validation: segments that decide when to stop.
        config: how.

    Returns:
        The weights, averaged over the last steps, of the best look at the validation set.
    """
    begun = time.monotonic()
    torch.manual_seed(config.seed)
    torch.set_num_threads(1)
    rng = np.random.default_rng(config.seed)
    modules = torch.nn.ModuleList([Encoder(), Decoder()])
    average = copy.deepcopy(modules)
    optimiser = torch.optim.AdamW(modules.parameters(), config.learning_rate, weight_decay=1e-4)
    watched = [build(batch) for batch in pack(validation, config.batch_events, rng)]
    best, best_step, best_state = math.inf, 0, copy.deepcopy(average.state_dict())
    looks: list[float] = []
    batches: list[list[Segment]] = []
    passes = step = 0
    while step < config.steps:
        if not batches:
            longest = config.longest[passes % len(config.longest)]
            passes += 1
            segments = [s for data, which in learning for s in cut(data, which, longest, rng)]
            batches = pack(segments, config.batch_events, rng)
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * _rate(step, config)
        _learn(modules, build(batches.pop()), optimiser)
        step += 1
        keep = min(_EMA, step / (step + 10.0))
        with torch.no_grad():
            for mean, value in zip(average.parameters(), modules.parameters(), strict=True):
                mean.lerp_(value, 1.0 - keep)
        if step % config.check_steps and step < config.steps:
            continue
        looks.append(mean_loss(average[0], average[1], watched))
        _LOG.info("step %d: validation %.4f nats per event", step, looks[-1])
        if looks[-1] < best:
            best, best_step, best_state = looks[-1], step, copy.deepcopy(average.state_dict())
        elif step - best_step >= config.patience * config.check_steps:
            break
    average.load_state_dict(best_state)
    encoder, decoder = average
    assert isinstance(encoder, Encoder)
    assert isinstance(decoder, Decoder)
    return Fitted(
        encoder.eval(), decoder.eval(), step, best_step, tuple(looks), time.monotonic() - begun
    )
