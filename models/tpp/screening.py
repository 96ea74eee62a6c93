"""Which form of model suits a process: seen from its classical fits and a few linear regressions.

Everything is decided on training and validation sequences, never on those tested on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.tpp.architecture import EXCESS_LIMIT, Architecture, Layer, Scales, poles
from models.tpp.classical import Hawkes, Process, Renewal, SelfCorrecting, best_of, pit
from models.tpp.classical_fit import find_clock
from models.tpp.sequences import Sequences, ks_p_value

_WORTH_NATS = 1e-3
"""What a group of features must gain on the validation sequences: noise gains -parameters / n."""
_REFUTED_P = 1e-3
_REFUTED_SDS = 4.0
_LAGS = (1, 2, 3)
_RARE = 5
_DROPOUT = 0.2
_NEAR_START = 50.0
MOST_MARKS = 64
"""With more kinds of marks a row of weights for each is more than their events can teach (Wikipedia
has 12 events for each of 8,227): each has a profile then."""
MOST_PROFILES = 65_536
"""2 MB of them; a rarer mark has the profile of an unknown one."""
LEVELS = (1.0, 4.0, 16.0, 64.0, 256.0)


def scales_of(train: Sequences) -> Scales:
    """Return what standardises the process."""
    gap = train.scored
    y = np.log(gap)
    amount = np.zeros(2) if train.amount is None else np.log(train.amount)
    return Scales(
        float(gap.mean()),
        float(y.mean()),
        max(float(y.std()), 1e-3),
        float(train.time.max()),
        float(amount.mean()),
        float(amount.std()) or 1.0,
    )


def clock_columns(data: Sequences, scales: Scales) -> NDArray[np.float64]:
    """Return the clock features after each event, float64[n, 5], as `features` has them."""
    count = np.arange(len(data)) - np.repeat(data.starts[:-1], np.diff(data.starts)) + 1.0
    share = data.time / scales.span
    left = np.log1p(np.maximum(scales.span - data.time, 0.0) / scales.gap_mean)
    excess = (data.time / scales.gap_mean - count).clip(-EXCESS_LIMIT, EXCESS_LIMIT)
    return np.stack([excess, np.log1p(count), share, share * share, left], 1)


def _gain(
    train: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
    valid: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
) -> float:
    """Nats that columns bring to a Gaussian regression beside a base: (base, more, target) each."""
    errors = []
    for more in (False, True):
        x, held = (np.hstack([part[0], part[1]]) if more else part[0] for part in (train, valid))
        beta = np.linalg.lstsq(x, train[2], rcond=None)[0]
        errors.append(float(((valid[2] - held @ beta) ** 2).mean()))
    if not min(errors) > 0.0:
        return 0.0
    return 0.5 * math.log(errors[0] / errors[1])


def clock_gain(
    train: Sequences, valid: Sequences, scales: Scales, period: float | None = None
) -> float:
    """Return the nats that the clock (or, given a period, its sine and cosine) tells of a log gap.

    By regression of the next log gap on the last three, and on the clock beside them.
    """
    parts = []
    for data in (train, valid):
        log_gap = np.log(np.where(data.first, math.exp(scales.log_gap_mean), data.gap))
        z = (log_gap - scales.log_gap_mean) / scales.log_gap_sd
        before = [np.concatenate([np.zeros(lag), z[:-lag]]) for lag in (1, 2)]
        base = np.stack([np.ones(len(z)), z, *before], 1)
        more = clock_columns(data, scales)
        if period is not None:
            angle = 2.0 * math.pi * data.time / period
            more = np.stack([np.sin(angle), np.cos(angle)], 1)
        known = ~np.roll(data.first, -1)
        parts.append((base[known], more[known], np.roll(z, -1)[known]))
    return _gain(parts[0], parts[1])


def stands(process: Process, data: Sequences) -> bool:
    """Return whether `data` leave the process unrefuted.

    The compensated gaps must be uniform (Kolmogorov-Smirnov) and not correlate with those before.
    """
    uniform = pit(process, data)
    if not np.isfinite(uniform).all():
        return False
    if ks_p_value(uniform) < _REFUTED_P:
        return False
    centred = uniform - uniform.mean()
    variance = float(centred @ centred)
    if not variance > 0.0:
        return False
    return all(
        abs(float(centred[lag:] @ centred[:-lag])) / variance
        < _REFUTED_SDS / math.sqrt(len(centred))
        for lag in _LAGS
    )


def teacher_of(fits: Sequence[Process], train: Sequences, valid: Sequences) -> Process | None:
    """Return the likeliest classical process, if neither set refutes it.

    Its simulations then extend the training data without limit.
    """
    best = best_of(fits, valid)
    stable = not isinstance(best, Hawkes) or sum(best.branching) < 1.0
    if isinstance(best, Renewal) and best.clock is not None:
        begins = train.time[train.starts[:-1]]
        if float(np.median(begins)) >= _NEAR_START * float(train.scored.mean()):
            # Pieces of a long sequence: simulations from 0 on would show one phase alone.
            best = replace(best, begins=(float(begins.min()), float(begins.max())))
    return best if stable and stands(best, train) and stands(best, valid) else None


def common_marks(train: Sequences, least: int = _RARE) -> NDArray[np.int64]:
    """Return the marks with at least so many events, the most frequent first."""
    if train.mark is None:
        return np.zeros(0, np.int64)
    values, counts = np.unique(train.mark, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return values[order][counts[order] >= least].astype(np.int64)


@dataclass(frozen=True, slots=True)
class Marks:
    """How an architecture reads and predicts marks.

    Attributes:
        rows: of weights, one a mark, the last for every rare one; 0 without marks, 1 where each
            mark has a profile instead.
        profiles: how many marks have a profile.
    """

    rows: int = 0
    profiles: int = 0


NO_MARKS = Marks()


def renumber_marks(train: Sequences, *others: Sequences) -> tuple[Marks, tuple[Sequences, ...]]:
    """Return how an architecture reads the marks, and all sequences with their marks renumbered.

    By their frequency in `train`. Up to MOST_MARKS kinds every rare one is the last; with more the
    unknown ones keep numbers of their own behind the known.
    """
    if train.mark is None:
        return Marks(), (train, *others)
    if len(np.unique(train.mark)) > MOST_MARKS:
        known = common_marks(train, 1)[:MOST_PROFILES]
        marks = Marks(1, len(known))
    else:
        known = common_marks(train)
        marks = Marks(len(known) + 1)
    found = (
        replace(data, mark=recode_marks(data, known, apart=marks.profiles > 0))
        for data in (train, *others)
    )
    return marks, tuple(found)


def recode_marks(
    data: Sequences, known: NDArray[np.int64], apart: bool = False
) -> NDArray[np.int64]:
    """Return each event's place in `known`, len(known) for every other mark.

    Where the others are told `apart`, they are numbered from there on.
    """
    assert data.mark is not None
    order = np.argsort(known)
    at = np.searchsorted(known[order], data.mark).clip(0, max(len(known) - 1, 0))
    if not len(known):
        return np.zeros(len(data), np.int64)
    found = order[at]
    met = known[found] == data.mark
    other = np.full(len(data), len(known))
    if apart:
        other += np.unique(np.where(met, -1, data.mark), return_inverse=True)[1]
    return np.where(met, found, other).astype(np.int64)


def suggest(
    train: Sequences,
    valid: Sequences,
    teacher: Process | None,
    marks: Marks = NO_MARKS,
    layers: int = 1,
    components: int = 16,
) -> Architecture:
    """Return the form for a process.

    Args:
        train: sequences to learn from.
        valid: sequences to choose by.
        teacher: see `teacher_of`; its poles and clock are taken up.
        marks: see `renumber_marks`; from 2 rows on the next mark is predicted.
        layers: of the encoder.
        components: of the gap's mixture.
    """
    scales = scales_of(train)
    gap = train.scored / scales.gap_mean
    shortest = max(float(np.quantile(gap, 0.05)), 1e-4)
    longest = max(float(np.quantile(gap, 0.999)) * 20.0, 200.0)
    extra: tuple[float, ...] = ()
    if isinstance(teacher, Hawkes):
        extra = tuple(1.0 / (decay * scales.gap_mean) for decay in teacher.decay)
    clock = isinstance(teacher, SelfCorrecting) or (
        isinstance(teacher, Renewal) and bool(teacher.clock)
    )
    periods: tuple[float, ...] = ()
    if isinstance(teacher, Renewal) and teacher.clock is not None:
        if teacher.clock.period < 2.0 * scales.span:
            periods = (teacher.clock.period,)
    elif teacher is None:
        clock = clock_gain(train, valid, scales) > _WORTH_NATS
        period = find_clock(train).period
        if period < scales.span and clock_gain(train, valid, scales, period) > _WORTH_NATS:
            periods = (period,)
    first = poles(shortest, longest, extra=extra)
    above = Layer(first.time_constants[::2], first.count_constants, hidden=32)
    return Architecture(
        scales,
        (first, *([above] * (layers - 1))),
        marks=marks.rows,
        mark_head=marks.rows > 1,
        profiles=marks.profiles,
        levels=LEVELS if teacher is None else (),
        amount=train.amount is not None,
        clock=clock,
        clock_periods=periods,
        components=components,
        dropout=0.0 if teacher is not None else _DROPOUT,
    )
