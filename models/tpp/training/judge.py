"""Judge a trained model: likelihoods beside those of simpler models, and the tails it promises."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

from models.baselines.renewal import GAP_PRIOR_EVENTS, gap_step
from models.tpp import spec
from models.tpp.mixture import log_cdfs, log_survivals
from models.tpp.training.data import KindData, Segment, build
from models.tpp.training.fit import event_losses, predict
from models.tpp.training.network import Decoder, Encoder

TAIL_NATS = (4.0, 7.0, 10.0)
_MARK_PRIOR_EVENTS = 5.0
ROWS = (
    "gap", "mark", "amount", "renewal", "poisson", "frequency", "level", "log_survival", "log_cdf"
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Judgement:
    """Nats per event on a set of sequences of one kind; lower is better.

    Attributes:
        kind: entity kind.
        events: next events judged.
        gap: the model's negative log density of the log gap.
        gap_renewal: that of a log-normal renewal process with the entity's own running moments.
        gap_poisson: that of a Poisson process with the entity's own running rate.
        mark: the model's negative log probability of the next mark.
        mark_frequency: that of the entity's own running frequencies.
        amount: the model's negative log density of the next amount's standardised innovation, given
            the gap before it and its mark; NaN where no amount is known.
        amount_level: that of the standard normal, which the entity's own level promises.
        tail_ratio: how often P(gap longer) < exp(-4), exp(-7), exp(-10), over what it promises.
        low_tail_ratio: the same for P(gap shorter).
    """

    kind: str
    events: int
    gap: float
    gap_renewal: float
    gap_poisson: float
    mark: float
    mark_frequency: float
    amount: float
    amount_level: float
    tail_ratio: tuple[float, ...]
    low_tail_ratio: tuple[float, ...]

    def as_dict(self) -> dict[str, object]:
        """Return the fields, rounded."""
        return {
            key: (round(value, 4) if math.isfinite(value) else None)
            if isinstance(value, float)
            else [round(v, 2) for v in value]
            if isinstance(value, tuple)
            else value
            for key, value in asdict(self).items()
        }


@njit(cache=True)
def _simple(target, mean, prior_mean, prior_var, between, renewal, poisson):  # type: ignore[no-untyped-def]
    """Fill in the losses of the two renewal processes at each event but the last."""
    running, var = prior_mean, prior_var
    total = GAP_PRIOR_EVENTS * np.exp(prior_mean + 0.5 * prior_var)
    for n in range(len(target) - 1):
        log_gap = target[n] + mean[n]
        spread = var + between * prior_var / (prior_var + (n + 1.0) * between)
        error = log_gap - running
        renewal[n] = 0.5 * (np.log(2.0 * np.pi * spread) + error * error / spread)
        x = np.log(GAP_PRIOR_EVENTS + n) - np.log(total) + log_gap
        poisson[n] = np.exp(x) - x
        total += np.exp(log_gap)
        running, var = gap_step(log_gap, running, var, n + 1.0, GAP_PRIOR_EVENTS)


@njit(cache=True)
def _frequency(mark, share, out):  # type: ignore[no-untyped-def]
    count = share * _MARK_PRIOR_EVENTS
    for n in range(len(mark) - 1):
        if mark[n] < len(count):
            count[mark[n]] += 1.0
        if mark[n + 1] < len(count):
            out[n] = -np.log(count[mark[n + 1]] / count.sum())


def judge(
    encoder: Encoder,
    decoder: Decoder,
    data: KindData,
    which: NDArray[np.int64],
    after_ms: int = 0,
) -> Judgement:
    """Judge the model on whole sequences, each from its first event.

    Args:
        encoder: trained.
        decoder: trained.
        data: sequences of one kind.
        which: numbers of the sequences.
        after_ms: only predictions made at or after this time count.
    """
    return judgement(data.kind, judged_rows(encoder, decoder, data, which, after_ms))


def judged_rows(
    encoder: Encoder,
    decoder: Decoder,
    data: KindData,
    which: NDArray[np.int64],
    after_ms: int = 0,
    by_end: bool = False,
) -> NDArray[np.float64]:
    """Return float64 [9, n], see `ROWS`, of every next event that counts.

    Args:
        encoder: trained.
        decoder: trained.
        data: sequences of one kind.
        which: numbers of the sequences.
        after_ms: only predictions made at or after this time count.
        by_end: only those of events at or after this time count, whenever they were made: of a
            short span that is a fair sample of gaps, where those that begin in it and are seen to
            end are the shorter ones.
    """
    share = np.bincount(data.mark, minlength=spec.MARKS)[: spec.MARKS] + 1.0
    share = share / share.sum()
    columns: list[NDArray[np.float64]] = [np.empty((len(ROWS), 0))]
    for sequence in which:
        begin, end = int(data.starts[sequence]), int(data.starts[sequence + 1])
        if end - begin > 1:
            rows = _judge_one(encoder, decoder, data, begin, end, share)
            time_ms = data.time_ms[begin:end]
            columns.append(rows[:, (time_ms[1:] if by_end else time_ms[:-1]) >= after_ms])
    return np.concatenate(columns, 1)


def judgement(kind: str, rows: NDArray[np.float64]) -> Judgement:
    """Average what `judged_rows` found."""
    gap, mark, amount, renewal, poisson, frequency, level, log_survival, log_cdf = rows
    valued = np.isfinite(amount)
    return Judgement(
        kind,
        rows.shape[1],
        float(gap.mean()),
        float(renewal.mean()),
        float(poisson.mean()),
        float(mark.mean()),
        float(frequency.mean()),
        float(amount[valued].mean()) if valued.any() else math.nan,
        float(level[valued].mean()) if valued.any() else math.nan,
        tuple(float(np.mean(log_survival < -t) * np.exp(t)) for t in TAIL_NATS),
        tuple(float(np.mean(log_cdf < -t) * np.exp(t)) for t in TAIL_NATS),
    )


def _judge_one(
    encoder: Encoder,
    decoder: Decoder,
    data: KindData,
    begin: int,
    end: int,
    share: NDArray[np.float64],
) -> NDArray[np.float64]:
    block = build([Segment(data, begin, end, False, 1.0)])
    with torch.no_grad():
        y = predict(encoder, decoder, block)
        gap, mark, amount = event_losses(y, block)
    n = end - begin - 1
    innovation = block.amount[1:].astype(np.float64)
    target = block.target.astype(np.float64)
    params = y.numpy()[:n, spec.GAP].astype(np.float64)
    simple = np.zeros((3, n + 1))
    prior = data.prior
    mean = _means(target[:-1], prior.gap_mean, prior.gap_within_var)
    _simple(
        target, mean, prior.gap_mean, prior.gap_within_var, prior.gap_between_var,
        simple[0], simple[1],
    )  # fmt: skip
    _frequency(data.mark[begin:end], share.copy(), simple[2])
    return np.stack(
        [
            gap.numpy()[:n],
            mark.numpy()[:n],
            # An event's amount is told with the event itself, the next one's with the next row.
            np.where(np.isfinite(innovation), amount.numpy()[1:], np.nan),
            *simple[:, :n],
            0.5 * (math.log(2.0 * math.pi) + innovation * innovation),
            log_survivals(params, target[:n]),
            log_cdfs(params, target[:n]),
        ]
    )


@njit(cache=True)
def _means(target, prior_mean, prior_var):  # type: ignore[no-untyped-def]
    """Return m after each event but the last, from the targets log(next gap) - m."""
    out = np.empty(len(target))
    mean, var = prior_mean, prior_var
    for n in range(len(target)):
        out[n] = mean
        mean, var = gap_step(target[n] + mean, mean, var, n + 1.0, GAP_PRIOR_EVENTS)
    return out


def judge_all(
    encoder: Encoder,
    decoder: Decoder,
    sets: Sequence[tuple[KindData, NDArray[np.int64]]],
    after_ms: int = 0,
) -> list[dict[str, object]]:
    """Judge every kind; see `judge`."""
    return [judge(encoder, decoder, d, which, after_ms).as_dict() for d, which in sets]
