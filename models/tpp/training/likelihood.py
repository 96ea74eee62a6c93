"""Maximum likelihood training of a model on sequences, and its test. One core, the same by seed."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from models.tpp.architecture import Architecture
from models.tpp.classical import Process
from models.tpp.classical_fit import fit_log_normal_mixture
from models.tpp.features import features
from models.tpp.gap_laws import LogNormalMixture
from models.tpp.profiles import Profiles, rows_of
from models.tpp.sequences import Sequences
from models.tpp.training.streamable import Events, Model, mixture_cdf

_CLIP_NORM = 1.0
_FLOOR = 0.02
_CHUNK_EVENTS = 32_768


@dataclass(frozen=True, slots=True)
class Training:
    """How to train.

    Attributes:
        seed: everything random follows from it.
        steps: gradient steps.
        batch_events: events of a step, about.
        learning_rate: at its peak.
        warm_steps: steps until the peak.
        weight_decay: of AdamW.
        averaging: of the weights over the steps.
        looks: at the validation sequences.
        patience: looks without a better one after which training stops.
        passes: over the training data at most, where no teacher extends them: more only teach them
            by heart.
        simulated: share of the batches that are drawn from the teacher, where there is one.
        limit_s: seconds of the processor after which no further step begins: other work on the
            machine does not count. Where they end first, the learning rate falls by them and the
            result depends on the machine.
    """

    seed: int = 1
    steps: int = 1_000
    batch_events: int = 4_096
    learning_rate: float = 4e-3
    warm_steps: int = 40
    weight_decay: float = 1e-3
    averaging: float = 0.99
    looks: int = 20
    patience: int = 8
    passes: int = 25
    simulated: float = 0.9
    limit_s: float = 1e9


@dataclass(frozen=True, slots=True)
class Look:
    """A look at the validation sequences.

    Attributes:
        step: after how many steps.
        validation: nats per event, all heads.
        seconds: of the processor since training began.
    """

    step: int
    validation: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Judged:
    """What a model says of sequences.

    Attributes:
        gap_nll: nats per event of the gaps after each first event, as densities of the gap.
        mark_nll: nats per event of the marks, None without a head.
        amount_nll: nats per event of the amounts (density of the log amount), None without.
        pit: float64, P(gap <= observed) of each.
    """

    gap_nll: float
    mark_nll: float | None
    amount_nll: float | None
    pit: NDArray[np.float64]


def prepare(
    data: Sequences, form: Architecture, profiles: NDArray[np.float32] | None = None
) -> Events:
    """Return `data` as the network reads them.

    Args:
        data: of the process.
        form: of the network.
        profiles: float32[n, PROFILE_FEATURES], of each event's mark; None without such features.
    """
    found, elapsed = features(data, form, profiles)
    scales = form.scales
    gap, first = data.gap, data.first
    y = (np.log(np.where(first, 1.0, gap)) - scales.log_gap_mean) / scales.log_gap_sd
    known = ~np.roll(first, -1)
    target = np.where(known, np.roll(y, -1), 0.0)
    n = len(data)
    mark = np.zeros(n, np.int64) if data.mark is None else data.mark
    amount = np.zeros(n)
    if data.amount is not None:
        amount = (np.log(data.amount) - scales.log_amount_mean) / scales.log_amount_sd
    return Events(
        torch.from_numpy(found),
        torch.from_numpy(elapsed),
        torch.from_numpy(first),
        torch.from_numpy(mark),
        torch.from_numpy(target.astype(np.float32)),
        torch.from_numpy(known),
        torch.from_numpy(amount.astype(np.float32)),
    )


def batches(data: Sequences, events: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Shuffle the sequences into batches of about `events` events: numbers of sequences."""
    found: list[NDArray[np.int64]] = []
    batch: list[int] = []
    filled = 0
    sizes = np.diff(data.starts)
    for number in rng.permutation(data.count):
        batch.append(int(number))
        filled += int(sizes[number])
        if filled >= events:
            found.append(np.array(batch))
            batch, filled = [], 0
    if batch:
        found.append(np.array(batch))
    return found


def _rate(step: int, seconds: float, config: Training) -> float:
    """Return the share of the peak learning rate: it falls by steps, or by time where that ends."""
    if step < config.warm_steps:
        return (step + 1) / config.warm_steps
    done = (step - config.warm_steps) / max(config.steps - config.warm_steps, 1)
    done = max(done, seconds / config.limit_s)
    return _FLOOR + (1.0 - _FLOOR) * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))


def mean_loss(model: Model, prepared: Sequence[Events]) -> float:
    """Return nats per event, all heads, gaps as densities of the standardised log gap."""
    total, count = 0.0, 0
    model.eval()
    with torch.no_grad():
        for events in prepared:
            total += sum(float(part.sum()) for part in model.losses(events).values())
            count += int(events.known.sum())
    return total / max(count, 1)


def prepare_for(model: Model, data: Sequences) -> Events:
    """Return `data`, from outside the training sequences, as the network reads them."""
    rows = None
    if model.form.profiles and data.mark is not None:
        rows = rows_of(model.profiles.numpy(), data.mark)
    return prepare(data, model.form, rows)


def _chunks(data: Sequences, model: Model) -> list[Events]:
    in_order: list[list[int]] = [[]]
    filled = 0
    for number, size in enumerate(np.diff(data.starts)):
        if filled and filled + size > _CHUNK_EVENTS:
            in_order.append([])
            filled = 0
        in_order[-1].append(number)
        filled += int(size)
    return [prepare_for(model, data.take(np.array(part))) for part in in_order]


class _Source:
    """Batches of real sequences and, by chance, of simulated ones."""

    def __init__(
        self, train: Sequences, form: Architecture, teacher: Process | None, config: Training
    ) -> None:
        self.train, self.form, self.teacher, self.config = train, form, teacher, config
        self.profiles = Profiles.of(train, form.scales, form.profiles) if form.profiles else None
        self.rng = np.random.default_rng(config.seed)
        self.left: list[NDArray[np.int64]] = []

    def next(self) -> Events:
        size = self.config.batch_events
        if self.teacher is not None and self.rng.random() < self.config.simulated:
            length = int(np.median(np.diff(self.train.starts)))
            count = max(1, size // max(length, 1))
            return prepare(self.teacher.simulate(length, count, self.rng), self.form)
        if not self.left:
            self.left = batches(self.train, size, self.rng)
        return self.real(self.left.pop())

    def real(self, which: NDArray[np.int64]) -> Events:
        """Return the sequences numbered `which`; their marks' profiles are by the others."""
        data = self.train.take(which)
        own = None if self.profiles is None else self.profiles.without_own(data)
        return prepare(data, self.form, own)


def _start(model: Model, source: _Source) -> None:
    """Let the gap's mixture begin at the best one without history, and tell the marks' profiles."""
    scales = model.form.scales
    law = fit_log_normal_mixture(source.train, model.form.components).law
    assert isinstance(law, LogNormalMixture)
    mean = (np.array(law.mean) - scales.log_gap_mean) / scales.log_gap_sd
    sd = np.array(law.sd) / scales.log_gap_sd
    model.decoder.begin_at(LogNormalMixture(law.weight, tuple(mean), tuple(sd)))
    if source.profiles is not None:
        model.profiles.copy_(torch.from_numpy(source.profiles.table))


def fit(
    model: Model,
    train: Sequences,
    valid: Sequences,
    config: Training,
    teacher: Process | None = None,
    report: Callable[[Look], None] | None = None,
) -> tuple[Model, list[Look]]:
    """Train `model` and return the averaged weights of the best look, and all looks.

    Args:
        model: changed in place; make it after `torch.manual_seed`.
        train: sequences to learn from.
        valid: sequences that choose the weights.
        config: how.
        teacher: a classical process whose simulations extend `train`; the architecture must then
            read times only.
        report: told of each look.

    Raises:
        ValueError: there is a teacher, and the architecture reads marks or amounts.
    """
    if teacher is not None and (model.form.marks or model.form.amount):
        raise ValueError(
            "expected an architecture that reads times only beside a teacher, whose simulations "
            "have no marks and amounts of the data's; train without one"
        )
    torch.set_num_threads(1)
    source = _Source(train, model.form, teacher, config)
    _compile(model, source)
    begun = time.process_time()
    _start(model, source)
    average = copy.deepcopy(model)
    poles: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, value in model.named_parameters():
        (poles if ".log_" in name else others).append(value)
    groups = [
        {"params": others, "weight_decay": config.weight_decay},
        {"params": poles, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, config.learning_rate)
    watched = _chunks(valid, model)
    steps = config.steps
    if teacher is None:
        steps = min(steps, max(config.passes * len(train) // config.batch_events, 1))
    config = replace(config, steps=steps)
    best, best_state = math.inf, copy.deepcopy(average.state_dict())
    looks: list[Look] = []
    worse = 0
    every = max(config.steps // config.looks, 1)
    for step in range(1, config.steps + 1):
        seconds = time.process_time() - begun
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * _rate(step - 1, seconds, config)
        _learn(model, source.next(), optimiser)
        keep = min(config.averaging, step / (step + 10.0))
        with torch.no_grad():
            for mean, value in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(value, 1.0 - keep)
        late = time.process_time() - begun > config.limit_s
        if step % every and step < config.steps and not late:
            continue
        looks.append(Look(step, mean_loss(average, watched), time.process_time() - begun))
        if report is not None:
            report(looks[-1])
        worse += 1
        if looks[-1].validation < best:
            best, best_state, worse = looks[-1].validation, copy.deepcopy(average.state_dict()), 0
        elif worse >= config.patience:
            break
        if late:
            break
    average.load_state_dict(best_state)
    return average.eval(), looks


def _compile(model: Model, source: _Source) -> None:
    """Call every kernel of a step once: compiling them takes half a minute, not of the budget."""
    if source.teacher is not None:
        source.teacher.simulate(2, 1, np.random.default_rng(0))
    # Without dropout, on a copy: neither torch's generator nor the model moves.
    copied = copy.deepcopy(model).eval()
    losses = copied.losses(source.real(np.array([0])))
    torch.stack([part.sum() for part in losses.values()]).sum().backward()


def _learn(model: Model, events: Events, optimiser: torch.optim.Optimizer) -> None:
    model.train()
    losses = model.losses(events)
    loss = torch.stack([part.sum() for part in losses.values()]).sum() / events.known.sum()
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP_NORM)
    optimiser.step()


def judge(model: Model, data: Sequences) -> Judged:
    """Return the likelihoods and the PIT of `data` under the model."""
    scales = model.form.scales
    sums: dict[str, float] = {}
    uniform: list[NDArray[np.float64]] = []
    model.eval()
    with torch.no_grad():
        for events in _chunks(data, model):
            for name, part in model.losses(events).items():
                sums[name] = sums.get(name, 0.0) + float(part.double().sum())
            params = model.decoder.gap_parameters(model(events))
            below = mixture_cdf(params.double(), events.target.double())
            uniform.append(below[events.known].numpy())
    count = len(data) - data.count
    # From the standardised log gap's density to the gap's: minus log of its derivative.
    change = math.log(scales.log_gap_sd) + float(np.log(data.scored).mean())
    mean = {name: value / count for name, value in sums.items()}
    amount = mean.get("amount")
    return Judged(
        mean["gap"] + change,
        mean.get("mark"),
        None if amount is None else amount + math.log(scales.log_amount_sd),
        np.concatenate(uniform),
    )
