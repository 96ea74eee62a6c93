"""Fit the classical point processes by maximum likelihood.

The likelihood is that of the gaps after each sequence's first event, as the published figures count
it. Whatever the unit of time, parameters are found on times divided by the mean gap.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from models.tpp.classical import (
    Clock,
    Hawkes,
    MultivariateHawkes,
    Process,
    Renewal,
    SelfCorrecting,
    mean_nll,
)
from models.tpp.gap_laws import NARROWEST, Gamma, GapLaw, LogNormalMixture, Weibull
from models.tpp.optimise import minimise
from models.tpp.sequences import FEWEST_GAPS, Sequences

_Reals = NDArray[np.float64]
_MIXTURE = 16
_EM_STEPS = 200
_CYCLES = np.arange(0.1, 256.0, 0.25)  # over the span; a peak is about one cycle wide
_BINS = 2_048
_DEEPEST = 0.9999
_MOST_MARKS = 8
_LIMIT = 30.0
_MOST_DECAYS = 4e9


def _best(make: Callable[[_Reals], Process], data: Sequences, starts: list[list[float]]) -> Process:
    """Return the likeliest of the processes that minimising from each start gives."""

    def loss(x: _Reals) -> float:
        if np.abs(x).max() > _LIMIT:
            return math.inf
        with np.errstate(all="ignore"):
            return mean_nll(make(x), data)

    # On some clocks a start is beyond all floats, such as exp(t) at t of 50,000.
    fit_for = [start for start in starts if math.isfinite(loss(np.array(start)))]
    if not fit_for:
        raise ValueError("expected a start with a finite likelihood, found none; rescale the times")
    found = [minimise(loss, np.array(start)) for start in fit_for]
    return make(min(found, key=lambda pair: pair[1])[0])


def fit_poisson(data: Sequences) -> Renewal:
    """Return the Poisson process: the rate is events over time."""
    return Renewal(Weibull(1.0, float(data.scored.mean())))


def _gap_law_starts(data: Sequences) -> float:
    return math.log(float(data.scored.mean()))


def fit_weibull(data: Sequences, clock: Clock | None = None) -> Process:
    """Return the renewal process with Weibull gaps."""
    scale = _gap_law_starts(data)
    return _best(
        lambda x: Renewal(Weibull(math.exp(x[0]), math.exp(x[1])), clock), data, [[0.1, scale]]
    )


def fit_gamma(data: Sequences, clock: Clock | None = None) -> Process:
    """Return the renewal process with gamma gaps."""
    scale = _gap_law_starts(data)
    return _best(
        lambda x: Renewal(Gamma(math.exp(x[0]), math.exp(x[1])), clock), data, [[0.1, scale]]
    )


def fit_log_normal(data: Sequences) -> Renewal:
    """Return the renewal process with log-normal gaps."""
    y = np.log(data.scored)
    sd = max(float(y.std()), NARROWEST)
    return Renewal(LogNormalMixture((1.0,), (float(y.mean()),), (sd,)))


def fit_log_normal_mixture(data: Sequences, components: int = _MIXTURE) -> Renewal:
    """Return the renewal process with a mixture of log-normal gaps, by EM from quantiles."""
    y = np.log(data.scored)
    weight = np.full(components, 1.0 / components)
    mean = np.quantile(y, (np.arange(components) + 0.5) / components)
    sd = np.full(components, max(float(y.std()), NARROWEST) / math.sqrt(components))
    before = -math.inf
    for _ in range(_EM_STEPS):
        z = (y[:, None] - mean) / sd
        log_part = np.log(weight) - 0.5 * z * z - np.log(sd)
        top = log_part.max(1, keepdims=True)
        part = np.exp(log_part - top)
        total = part.sum(1, keepdims=True)
        likelihood = float((np.log(total) + top).mean())
        part /= total
        mass = np.maximum(part.sum(0), 1e-9)
        weight = mass / mass.sum()
        mean = (part * y[:, None]).sum(0) / mass
        sd = np.sqrt((part * (y[:, None] - mean) ** 2).sum(0) / mass)
        sd = np.maximum(sd, NARROWEST)
        if likelihood - before < 1e-7:
            break
        before = likelihood
    return Renewal(LogNormalMixture(tuple(weight), tuple(mean), tuple(sd)))


def fit_hawkes(data: Sequences, kernels: int = 1) -> Process:
    """Return the Hawkes process with `kernels` exponential kernels."""
    rate = 1.0 / float(data.scored.mean())

    def make(x: _Reals) -> Hawkes:
        # Sorted decays: the same process has one form.
        order = np.argsort(x[1 + kernels :])
        return Hawkes(
            rate * math.exp(x[0]),
            tuple(np.exp(x[1 : 1 + kernels][order])),
            tuple(rate * np.exp(x[1 + kernels :][order])),
        )

    starts = []
    for fastest in (1.0, 10.0, 100.0):
        decays = np.geomspace(fastest / 10.0 if kernels > 1 else fastest, fastest, kernels)
        branching = [math.log(0.5 / kernels)] * kernels
        starts.append([math.log(0.5), *branching, *np.log(decays)])
    return _best(make, data, starts)


def fit_self_correcting(data: Sequences) -> Process:
    """Return the self-correcting process, its drift above 0."""
    rate = 1.0 / float(data.scored.mean())

    def make(x: _Reals) -> SelfCorrecting:
        drop = math.exp(x[1])
        # In its own long run the drift makes up for the drops.
        return SelfCorrecting(math.log(rate) + x[0], rate * drop * math.exp(x[2]), drop)

    return _best(make, data, [[0.0, 0.0, 0.0], [0.0, -3.0, 0.0], [0.0, -20.0, 0.0]])


def fit_multivariate_hawkes(data: Sequences) -> Process:
    """Return the Hawkes processes that excite each other, one by mark, by the joint likelihood.

    Raises:
        ValueError: the data have no marks, or too many for d + 2 d^2 parameters.
    """
    kinds = 0 if data.mark is None else int(data.mark.max()) + 1
    if not 1 < kinds <= _MOST_MARKS:
        raise ValueError(
            f"expected 2 to {_MOST_MARKS} marks for a multivariate Hawkes process, found {kinds}"
        )
    rate = 1.0 / float(data.scored.mean())
    later = ~data.first
    square = kinds * kinds

    def make(x: _Reals) -> MultivariateHawkes:
        return MultivariateHawkes(
            rate / kinds * np.exp(x[:kinds]),
            np.exp(x[kinds : kinds + square]).reshape(kinds, kinds),
            rate * np.exp(x[kinds + square :]).reshape(kinds, kinds),
        )

    def loss(x: _Reals) -> float:
        if np.abs(x).max() > _LIMIT:
            return math.inf
        log_density, log_mark, _ = make(x).score_marked(data)
        return -float((log_density + log_mark)[later].mean())

    start = [math.log(0.5)] * kinds + [math.log(0.5 / kinds)] * square + [0.0] * square
    # 8 kinds are 136 parameters and 64 decays an event: fewer iterations, never hours.
    price = 2 * len(start) * square * len(data)
    iterations = int(np.clip(_MOST_DECAYS / price, 5, 200))
    return make(minimise(loss, np.array(start), iterations)[0])


def find_clock(data: Sequences) -> Clock:
    """Return the swing of the rate with the absolute clock that explains the counts best.

    Counts and time watched in bins of the clock, then for each of some periods a few Newton steps
    of a Poisson regression on a sine and a cosine.
    """
    ends = data.time[data.starts[1:] - 1]
    begins = data.time[data.starts[:-1]]
    edges = np.linspace(float(begins.min()), float(ends.max()), _BINS + 1)
    counts = np.histogram(data.time[~data.first], edges)[0].astype(np.float64)
    middle, width = 0.5 * (edges[1:] + edges[:-1]), edges[1] - edges[0]
    inside = np.minimum(ends[:, None], edges[1:]) - np.maximum(begins[:, None], edges[:-1])
    watched = np.maximum(inside, 0.0).sum(0) if len(ends) else np.full(_BINS, width)
    keep = watched > 0.0
    counts, watched, middle = counts[keep], watched[keep], middle[keep]
    span = float(edges[-1] - edges[0])
    best, found = -math.inf, Clock(period=4.0 * span)
    for period in span / _CYCLES:
        angle = 2.0 * math.pi * middle / period
        design = np.stack([np.ones_like(angle), np.sin(angle), np.cos(angle)], 1)
        beta = np.array([math.log(counts.sum() / watched.sum()), 0.0, 0.0])
        for _ in range(6):
            expected = watched * np.exp(np.clip(design @ beta, -20.0, 20.0))
            curvature = design.T @ (expected[:, None] * design) + 1e-9 * np.eye(3)
            beta = beta + np.linalg.solve(curvature, design.T @ (counts - expected))
        log_rate = np.clip(design @ beta, -20.0, 20.0)
        likelihood = float(counts @ log_rate - watched @ np.exp(log_rate))
        if likelihood > best:
            depth = min(math.tanh(math.hypot(beta[1], beta[2])), 0.95)
            best, found = likelihood, Clock(period, depth, math.atan2(beta[2], beta[1]))
    return found


def fit_periodic(data: Sequences, law: str) -> Process:
    """Return a renewal process on a clock whose rate swings: a Poisson one, or of log-normal gaps.

    Args:
        data: the sequences.
        law: "poisson" or "log_normal".
    """
    start = find_clock(data)
    y = np.log(data.scored)

    def clock(x: _Reals) -> Clock:
        depth = _DEEPEST / (1.0 + math.exp(-x[1]))
        return Clock(start.period * math.exp(x[0]), depth, float(x[2]))

    def poisson(x: _Reals) -> Renewal:
        return Renewal(Weibull(1.0, math.exp(x[3])), clock(x))

    def log_normal(x: _Reals) -> Renewal:
        law: GapLaw = LogNormalMixture((1.0,), (float(x[3]),), (math.exp(x[4]),))
        return Renewal(law, clock(x))

    depth = math.log(max(start.depth, 0.05) / (1.0 - max(start.depth, 0.05)))
    swing = [0.0, depth, start.phase]
    if law == "poisson":
        return _best(poisson, data, [[*swing, _gap_law_starts(data)]])
    return _best(log_normal, data, [[*swing, float(y.mean()), math.log(float(y.std()) + 1e-3)]])


def _few_marks(parts: tuple[Sequences, ...]) -> bool:
    """Whether all parts have marks, 2 to 8 kinds in the first, and the others none beside."""
    marks = [part.mark for part in parts if part.mark is not None]
    if len(marks) < len(parts):
        return False
    most = int(marks[0].max())
    inside = all(int(mark.min()) >= 0 and int(mark.max()) <= most for mark in marks)
    return inside and 1 < most + 1 <= _MOST_MARKS


def fit_all(data: Sequences, *others: Sequences) -> list[Process]:
    """Return every classical process fitted to `data`.

    One whose likelihood of `data` is no finite number is left out, and so is the multivariate
    Hawkes process where `others` have marks that `data` have not.

    Args:
        data: sequences to fit to.
        others: sequences that the processes will be asked about.

    Raises:
        ValueError: there are too few gaps, or all are equal.
    """
    gap = data.scored
    if len(gap) < FEWEST_GAPS:
        raise ValueError(f"expected at least {FEWEST_GAPS} gaps, found {len(gap)}; add sequences")
    if float(np.log(gap).std()) < NARROWEST:
        raise ValueError(
            f"expected gaps of different lengths, found all within {NARROWEST:.1%} of "
            f"{float(np.median(gap)):g}: a clockwork has no density; round nothing, or add noise"
        )
    fits: list[Callable[[], Process]] = [
        lambda: fit_poisson(data),
        lambda: fit_log_normal(data),
        lambda: fit_weibull(data),
        lambda: fit_gamma(data),
        lambda: fit_log_normal_mixture(data),
        lambda: fit_hawkes(data, 1),
        lambda: fit_hawkes(data, 2),
        lambda: fit_self_correcting(data),
        lambda: fit_periodic(data, "poisson"),
        lambda: fit_periodic(data, "log_normal"),
    ]
    if _few_marks((data, *others)):
        fits.append(lambda: fit_multivariate_hawkes(data))
    found: list[Process] = []
    for fit in fits:
        try:
            process = fit()
        except (ArithmeticError, ValueError, np.linalg.LinAlgError):
            continue  # on some clocks a family has no finite likelihood; a Poisson process has
        if math.isfinite(mean_nll(process, data)):
            found.append(process)
    return found
