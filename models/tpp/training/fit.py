"""Fit the intensity model by maximum likelihood, the same for the same seed on a CPU."""

from __future__ import annotations

import copy
import hashlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.tpp import spec
from models.tpp.training import checkpoint
from models.tpp.training.data import Block, KindData, Segment, build, cut, pack
from models.tpp.training.errors import TrainingError
from models.tpp.training.hardware import Hardware, on
from models.tpp.training.network import (
    Decoder,
    Encoder,
    mixture_log_density,
    mixture_log_survival,
)

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
class Look:
    """Likelihoods at one look at the validation set, nats per event, lower is better.

    Attributes:
        step: gradient steps made until then.
        seconds: of training until then.
        total: gap, mark and amount on the validation set.
        gap: the gap alone, the censored last ones among it.
        mark: the mark alone.
        amount: the amount alone, per event as the others.
        learning: the loss of the steps since the last look, in the loss's own weights.
    """

    step: int
    seconds: float
    total: float
    gap: float
    mark: float
    amount: float
    learning: float


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trained model and how its training went.

    Attributes:
        encoder: with the weights of the best look, on the CPU.
        decoder: likewise.
        steps: steps made.
        best_step: the step of these weights.
        looks: at the validation set.
        seconds: wall time, that of the runs before a resume included.
    """

    encoder: Encoder
    decoder: Decoder
    steps: int
    best_step: int
    looks: tuple[Look, ...]
    seconds: float

    @property
    def validation(self) -> tuple[float, ...]:
        """Nats per event (gap, mark and amount) at each look."""
        return tuple(look.total for look in self.looks)


Loss = Callable[[Encoder, Decoder, Block], Tensor]
"""Returns the loss of one block, a scalar; see `likelihood_loss`."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a training begins with and runs on, beside its data.

    Attributes:
        hardware: where it runs.
        encoder: its weights stay as they are, and only the decoder learns; None learns both.
        start: encoder and decoder to go on from, in place of the seed's; any encoder that
            answers as `Encoder` does.
        marks: False leaves the marks out of the loss.
        loss: in place of `likelihood_loss`.
        checkpoint: file that is written at each look, and gone on from where it is there.
        job: names the data, so that a checkpoint of other data is not gone on with.
    """

    hardware: Hardware = field(default_factory=Hardware)
    encoder: Encoder | None = None
    start: tuple[Encoder, Decoder] | None = None
    marks: bool = True
    loss: Loss | None = None
    checkpoint: Path | None = None
    job: str = ""


def decoder_input(encoder: Encoder, block: Block) -> Tensor:
    """Return x float32 [n, 69], what the server is asked after each event of `block`."""
    device = next(encoder.parameters()).device
    memory = encoder(on(device, block.u), on(device, block.slowest), on(device, block.first))
    return torch.cat([memory, on(device, block.rest)], 1)


def predict(encoder: Encoder, decoder: Decoder, block: Block) -> Tensor:
    """Return y float32 [n, 32], the prediction made after each event of `block`."""
    y: Tensor = decoder(decoder_input(encoder, block))
    return y


def event_losses(y: Tensor, block: Block) -> tuple[Tensor, Tensor, Tensor]:
    """Return the negative log likelihoods of next gap, next mark and own amount, nats, each [n].

    The gap counts as a density of its log, or where nothing followed as the survival until the
    end of watching; where neither is known it is zero. The amount counts as a density of its
    standardised innovation, and where it is missing as zero.
    """
    device = y.device
    target = on(device, block.target).clamp(-_TARGET_LIMIT, _TARGET_LIMIT)
    known, censored = on(device, block.known), on(device, block.censored)
    none = torch.zeros((), device=device)
    gap = torch.where(known, -mixture_log_density(y[:, spec.GAP], target), none)
    if bool(block.censored.any()):
        gap = gap.clone()
        gap[censored] = -mixture_log_survival(y[censored, spec.GAP], target[censored])
    mark = on(device, block.next_mark)
    chosen = y[:, spec.LOG_MARK].gather(1, mark.clamp(min=0).unsqueeze(1)).squeeze(1)
    innovation = on(device, block.amount)
    valued = torch.isfinite(innovation)
    innovation = torch.where(valued, innovation, none).clamp(-_TARGET_LIMIT, _TARGET_LIMIT)
    amount = torch.where(valued, -mixture_log_density(y[:, spec.AMOUNT], innovation), none)
    return gap, torch.where(mark >= 0, -chosen, none), amount


def likelihood_loss(marks: bool) -> Loss:
    """Return the weighted mean of the events' negative log likelihoods as a loss."""

    def loss(encoder: Encoder, decoder: Decoder, block: Block) -> Tensor:
        gap, mark, amount = event_losses(predict(encoder, decoder, block), block)
        weight = on(gap.device, block.weight)
        each = gap + amount + mark if marks else gap + amount
        return (each * weight).sum() / weight.sum()

    return loss


def mean_losses(
    encoder: Encoder, decoder: Decoder, blocks: Sequence[Block], marks: bool = True
) -> tuple[float, float, float, float]:
    """Return the likelihood, and those of gap, mark and amount, nats per event that weighs.

    Every event counts alike; `marks` False leaves the mark at 0.
    """
    sums = np.zeros(3)
    count = 0
    with torch.no_grad():
        for block in blocks:
            losses = event_losses(predict(encoder, decoder, block), block)
            counts = on(losses[0].device, block.weight > 0.0)
            sums += [float(loss[counts].sum()) for loss in losses]
            count += int((block.known & (block.weight > 0.0)).sum())
    if not marks:
        sums[1] = 0.0
    gap, mark, amount = (sums / max(count, 1)).tolist()
    return gap + mark + amount, gap, mark, amount


def mean_loss(encoder: Encoder, decoder: Decoder, blocks: Sequence[Block]) -> float:
    """Return the likelihood of gap, mark and amount, nats per event, every event alike."""
    return mean_losses(encoder, decoder, blocks)[0]


def _rate(step: int, config: TrainingConfig) -> float:
    if step < config.warm_steps:
        return (step + 1) / config.warm_steps
    done = (step - config.warm_steps) / max(config.steps - config.warm_steps, 1)
    return 0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))


class _Run:
    """A training under way: everything that a checkpoint must hold."""

    def __init__(
        self,
        learning: Sequence[tuple[KindData, NDArray[np.int64]]],
        config: TrainingConfig,
        setting: Setting,
    ) -> None:
        self.config, self.setting, self.learning = config, setting, learning
        torch.manual_seed(config.seed)
        torch.set_num_threads(1)  # the order of sums, and so the weights, must not depend on it
        self.rng = np.random.default_rng(config.seed)
        encoder, decoder = copy.deepcopy(setting.start) or (Encoder(), Decoder())
        if setting.encoder is not None:
            encoder = copy.deepcopy(setting.encoder)
        device = setting.hardware.device
        self.modules = torch.nn.ModuleList([encoder, decoder]).to(device)
        self.modules[0].requires_grad_(setting.encoder is None)
        self.average = copy.deepcopy(self.modules)
        learnt = [p for p in self.modules.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(learnt, config.learning_rate, weight_decay=1e-4)
        # Large gradients of the amount must not shorten the steps of what it learns nothing for.
        of_amount = list(self.modules[1].amount.parameters())
        others = [p for p in learnt if not any(p is one for one in of_amount)]
        self.clipped = (others, of_amount)
        self.scaler = setting.hardware.scaler()
        self.loss = setting.loss or likelihood_loss(setting.marks)
        self.best, self.best_step = math.inf, 0
        self.best_state = copy.deepcopy(self.average.state_dict())
        self.looks: list[Look] = []
        self.batches: list[list[Segment]] = []
        self.before_pass: Any = None  # state of the generator when the pass was drawn
        self.passes = self.step = self.taken = 0
        self.sum_learning, self.since_look = 0.0, 0
        self.seconds_before = 0.0
        self.begun = time.monotonic()

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.begun

    def _draw(self) -> None:
        """Cut and shuffle the next pass; it follows from the generator's state before it."""
        self.before_pass = self.rng.bit_generator.state
        longest = self.config.longest[self.passes % len(self.config.longest)]
        segments = [s for d, which in self.learning for s in cut(d, which, longest, self.rng)]
        self.batches = pack(segments, self.config.batch_events, self.rng)
        self.passes, self.taken = self.passes + 1, 0

    def advance(self) -> None:
        """Make one gradient step.

        Raises:
            TrainingError: the loss is not finite.
        """
        if not self.batches:
            self._draw()
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.learning_rate * _rate(self.step, self.config)
        encoder, decoder = self.modules
        block = build(self.batches.pop())
        self.taken += 1
        with self.setting.hardware.autocast():
            loss = self.loss(encoder, decoder, block)
        self.optimiser.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimiser)
        for part in self.clipped:
            torch.nn.utils.clip_grad_norm_(part, _CLIP_NORM)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.step += 1
        told = float(loss.detach())
        if not math.isfinite(told):
            raise TrainingError(
                f"the loss of step {self.step} is {told}: expected a finite number; train with a "
                "smaller learning rate or in fp32, and look at the data's gaps"
            )
        self.sum_learning, self.since_look = self.sum_learning + told, self.since_look + 1
        keep = min(_EMA, self.step / (self.step + 10.0))
        with torch.no_grad():
            for mean, value in zip(
                self.average.parameters(), self.modules.parameters(), strict=True
            ):
                mean.lerp_(value, 1.0 - keep)

    def look(self, watched: Sequence[Block]) -> bool:
        """Judge the averaged weights, keep the best; return whether to go on."""
        encoder, decoder = self.average
        found = mean_losses(encoder, decoder, watched, self.setting.marks)
        learning = self.sum_learning / self.since_look
        self.looks.append(Look(self.step, round(self.seconds, 1), *found, learning))
        self.sum_learning, self.since_look = 0.0, 0
        if not math.isfinite(found[0]):
            raise TrainingError(
                f"the validation likelihood after step {self.step} is {found[0]}: expected a "
                "finite number; train with a smaller learning rate or in fp32"
            )
        if found[0] < self.best:
            self.best, self.best_step = found[0], self.step
            self.best_state = copy.deepcopy(self.average.state_dict())
            return True
        return self.step - self.best_step < self.config.patience * self.config.check_steps

    def _job(self) -> str:
        kept = self.setting.encoder is not None
        parts = (asdict(self.config), self.setting.job, self.setting.hardware, kept)
        return hashlib.sha256(repr((*parts, self.setting.marks)).encode()).hexdigest()

    def save(self, going: bool) -> None:
        """Write the checkpoint."""
        if self.setting.checkpoint is None:
            return
        tensors = {
            "modules": self.modules.state_dict(),
            "average": self.average.state_dict(),
            "best": self.best_state,
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        told = {
            "step": self.step,
            "passes": self.passes,
            "taken": self.taken,
            "before_pass": self.before_pass,
            "best": self.best,
            "best_step": self.best_step,
            "looks": [asdict(look) for look in self.looks],
            "seconds": self.seconds,
            "going": going,
        }
        checkpoint.save(self.setting.checkpoint, self._job(), tensors, told)

    def restore(self) -> bool:
        """Go on from the checkpoint if there is one; return whether there is more to do."""
        path = self.setting.checkpoint
        found = checkpoint.load(path, self._job(), self.setting.hardware.device) if path else None
        if found is None:
            return True
        tensors, told = found
        self.modules.load_state_dict(tensors["modules"])
        self.average.load_state_dict(tensors["average"])
        self.best_state = tensors["best"]
        self.optimiser.load_state_dict(tensors["optimiser"])
        self.scaler.load_state_dict(tensors["scaler"])
        self.step, self.best, self.best_step = told["step"], told["best"], told["best_step"]
        self.looks = [Look(**look) for look in told["looks"]]
        self.passes = told["passes"] - 1
        self.rng.bit_generator.state = told["before_pass"]
        taken = told["taken"]
        self._draw()  # the same pass again, of which the first batches are done
        self.taken = taken
        del self.batches[len(self.batches) - taken :]
        self.seconds_before = told["seconds"]
        return bool(told["going"])


def train(
    learning: Sequence[tuple[KindData, NDArray[np.int64]]],
    validation: Sequence[Segment],
    config: TrainingConfig,
    setting: Setting | None = None,
    report: Callable[[Look], None] | None = None,
) -> Fitted:
    """Train encoder and decoder on sequences.

    On a CPU in float32 the weights follow from data, configuration and seed, bit for bit, also
    where the training was killed and went on from its checkpoint.

    Args:
        learning: for each kind of each world its data and int64[m], the sequences to learn from.
        validation: segments that decide when to stop.
        config: how.
        setting: hardware, what to begin with, and where the checkpoint lies.
        report: told of each look.

    Returns:
        The weights, averaged over the last steps, of the best look at the validation set.

    Raises:
        TrainingError: a likelihood is not finite, or the checkpoint is of another training.
    """
    run = _Run(learning, config, setting or Setting())
    watched = [build(batch) for batch in pack(validation, config.batch_events, run.rng)]
    going = run.restore()
    while going and run.step < config.steps:
        run.advance()
        if run.step % config.check_steps and run.step < config.steps:
            continue
        going = run.look(watched)
        run.save(going)
        look = run.looks[-1]
        if report is None:
            _LOG.info("step %d: validation %.4f nats per event", look.step, look.total)
        else:
            report(look)
    run.average.load_state_dict(run.best_state)
    encoder, decoder = run.average.cpu()
    encoder.requires_grad_(True)
    return Fitted(
        encoder.eval(), decoder.eval(), run.step, run.best_step, tuple(run.looks), run.seconds
    )
