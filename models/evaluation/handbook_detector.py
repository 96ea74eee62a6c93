"""The detector of the handbook's card payments, put together from the job's baseline components.

Events and labels pass in the order of time through the components' own kernels. Without labels: how
odd is the amount for this card (attack episodes) and for all cards (upper tail). With late labels:
the terminal's risk (compromise filters of several dwell times, averaged by how well each predicted
the labels so far), and weights of the amounts' evidence learned online. Nothing is fitted ahead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.baselines.component import NO_MARK, NO_PARTNER, Component
from models.baselines.compromise import CompromiseParameters, compromise_component
from models.baselines.episodes import EpisodesParameters, episodes_component
from models.baselines.exceedance import ExceedanceParameters, exceedance_component
from models.baselines.labelled import LabelledComponent
from models.baselines.risk import RiskParameters, risk_component
from models.baselines.value import FORGET_NOTHING, ValueParameters, value_component
from models.evaluation.handbook import DAY_MS, DELAY_DAYS, Payments
from models.late_fusion import fuse, learn_fusion, prior_weights

STEP_MS = 3_600_000  # labels that have come by the begin of an hour serve all of that hour
EVIDENCE_LIMIT = 15.0  # nats of one evidence in the fusion
EXPLAINED = 0.5  # a fraud that its amount explains at least so well says nothing of the terminal
BASE_RATE = 0.005  # of fraud, before any label
DWELLS_DAYS = (7.0, 14.0, 28.0, 56.0)  # candidates; the labels decide
STAGES = 16
ONSET_PER_DAY = 2e-4  # of a terminal's compromise

Progress = Callable[[int, int], None]


def card_components() -> tuple[Component, Component]:
    """Return the components of a card: attack episodes, and the plain conjugate value."""
    # Amounts in the currency's units: a typical 50, cards apart by as much, and within a card half.
    mean, events, shape, scale, floor = 50.0, 1.0, 2.0, 2.0 * 625.0, 1e-2
    episodes = EpisodesParameters(mean, events, shape, scale, floor, 1e-4, 0.03, 0.3, 6.0)
    value = ValueParameters(mean, events, shape, scale, FORGET_NOTHING, 3.0, floor)
    return episodes_component(episodes), value_component(value)


def network_component() -> Component:
    """Return the component of all cards together: the upper 2% of amounts."""
    return exceedance_component(ExceedanceParameters(0.98, 150.0, 2.0, 60.0, 1e5, 1.0))


def terminal_components() -> tuple[LabelledComponent, ...]:
    """Return the compromise filters, and last the plain beta-Bernoulli risk."""
    filters = tuple(
        compromise_component(
            CompromiseParameters(
                STAGES, days * DAY_MS, ONSET_PER_DAY / DAY_MS, BASE_RATE, 1.0 - 0.05
            )
        )
        for days in DWELLS_DAYS
    )
    risk = RiskParameters(0.5 * BASE_RATE, 0.5 * (1.0 - BASE_RATE), 7.0 * DAY_MS)
    return (*filters, risk_component(risk))


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of all payments; higher is more suspicious.

    Attributes:
        unlabelled: float64[n], fused without any label.
        late: float64[n], log odds of fraud, fused with the labels that had come.
        parts: by name, float64[n]: what each component says alone, and other ways to fuse.
        dwell_weights: float64[k], what the labels say of each of DWELLS_DAYS at the end.
        weights: float64[3], learned weights of (1, episodes, tail) at the end.
    """

    unlabelled: NDArray[np.float64]
    late: NDArray[np.float64]
    parts: dict[str, NDArray[np.float64]]
    dwell_weights: NDArray[np.float64]
    weights: NDArray[np.float64]


def score_payments(
    payments: Payments, delay_ms: int = DELAY_DAYS * DAY_MS, progress: Progress | None = None
) -> Scores:
    """Score every payment with what was known when it came.

    Args:
        payments: in the order of time.
        delay_ms: from a payment to its label, >= 0.
        progress: called with (payments done, payments).

    Raises:
        ValueError: no payments, or a negative delay.
    """
    if len(payments) == 0 or delay_ms < 0:
        raise ValueError(f"expected payments and a delay >= 0, found {len(payments)}, {delay_ms}")
    card_row = _rows(payments.customer)
    episodes, value = card_components()
    told = _walk_all(episodes, card_row, payments)
    usual = _walk_all(value, card_row, payments)
    network = _walk_all(network_component(), np.zeros(len(payments), np.int32), payments)
    # A missing amount has no evidence.
    odds = np.nan_to_num(told[:, 0], nan=-EVIDENCE_LIMIT)
    evidence = np.column_stack(
        [
            np.ones(len(payments)),
            np.clip(odds, -EVIDENCE_LIMIT, EVIDENCE_LIMIT),
            np.minimum(network[:, 0], EVIDENCE_LIMIT),
        ]
    )
    unlabelled = odds + network[:, 0]
    late = _LateLabels(payments, evidence, delay_ms)
    late.run(progress)
    parts = {
        "episodes": odds,
        "tail": network[:, 0].astype(np.float64),
        "value_high": usual[:, 1].astype(np.float64),
        "value_and_tail": usual[:, 1].astype(np.float64) + network[:, 0],
        "compromise": late.terminal,
        "beta_bernoulli": late.risk,
        "late_fixed": _log_odds(late.fixed),
        "late_beta_bernoulli": _log_odds(late.plain),
    }
    return Scores(unlabelled, _log_odds(late.fused), parts, late.dwell_weights, late.mean)


class _LateLabels:
    """Events and labels interleaved, an hour at a time."""

    def __init__(self, payments: Payments, evidence: NDArray[np.float64], delay_ms: int) -> None:
        n = len(payments)
        self.payments = payments
        self.evidence = evidence
        self.delay_ms = delay_ms
        self.row = _rows(payments.terminal)
        self.fresh = _first(self.row)
        self.components = terminal_components()
        entities = int(self.row.max()) + 1
        self.states = [np.zeros(entities, c.state) for c in self.components]
        # As if each evidence were at its word, but far from sure of it.
        self.mean, self.cov = prior_weights((0.0, 1.0, 1.0), (3.0, 0.5, 0.5))
        self.trust = self.mean.copy()
        self.dwell_weights = np.full(len(DWELLS_DAYS), 1.0 / len(DWELLS_DAYS))
        self.terminal = np.zeros(n)
        self.risk = np.zeros(n)
        self.fused = np.zeros(n)
        self.fixed = np.zeros(n)
        self.plain = np.zeros(n)

    def run(self, progress: Progress | None) -> None:
        time_ms = self.payments.time_ms
        edges = np.arange(time_ms[0] // STEP_MS * STEP_MS, time_ms[-1] + STEP_MS, STEP_MS)
        begin = np.searchsorted(time_ms, edges)
        end = np.append(begin[1:], len(time_ms))
        arrived = np.searchsorted(time_ms, edges - self.delay_ms, side="right")
        learned = 0
        for b, e, a in zip(begin, end, np.minimum(arrived, begin), strict=True):
            if a > learned:
                self._learn(slice(learned, a))
                learned = a
            if e > b:
                self._score(slice(b, e))
                if progress is not None:
                    progress(int(e), len(time_ms))

    def _learn(self, at: slice) -> None:
        label = self.payments.fraud[at].astype(np.float64)
        never = np.zeros(len(label), np.bool_)
        own = np.empty(len(label))
        fuse(self.mean, self.evidence[at], np.zeros(len(label)), own)
        of_terminal = np.where((label > 0.0) & (own > EXPLAINED), np.nan, label)
        for component, state in zip(self.components, self.states, strict=True):
            component.learn(
                state, self.row[at], never, self.payments.time_ms[at], of_terminal,
                component.parameters,
            )  # fmt: skip
        # An exact sum: neither the order of rows nor later rows have a say in its rounding.
        log_evidence = np.array([math.fsum(s["log_evidence"]) for s in self.states[:-1]])
        weights = np.exp(log_evidence - log_evidence.max())
        self.dwell_weights = weights / weights.sum()
        learn_fusion(self.mean, self.cov, self.evidence[at], self.terminal[at], label)

    def _score(self, at: slice) -> None:
        told = [
            _walk(component, state, self.row[at], self.fresh[at], self.payments, at)
            for component, state in zip(self.components, self.states, strict=True)
        ]
        self.terminal[at] = self.dwell_weights @ np.array([t[:, 0] for t in told[:-1]], np.float64)
        self.risk[at] = told[-1][:, 0]
        fuse(self.mean, self.evidence[at], self.terminal[at], self.fused[at])
        fuse(self.trust, self.evidence[at], self.terminal[at], self.fixed[at])
        fuse(self.mean, self.evidence[at], self.risk[at], self.plain[at])


def _walk(
    component: Component,
    state: NDArray[np.void],
    row: NDArray[np.int32],
    fresh: NDArray[np.bool_],
    payments: Payments,
    at: slice,
) -> NDArray[np.float32]:
    m = len(row)
    out = np.zeros((m, len(component.tells)), np.float32)
    component.walk(
        state, row, fresh, payments.time_ms[at], payments.amount[at],
        np.full(m, NO_MARK, np.uint8), np.full(m, NO_PARTNER, np.uint64), component.parameters, out,
    )  # fmt: skip
    return out


def _walk_all(
    component: Component, row: NDArray[np.int32], payments: Payments
) -> NDArray[np.float32]:
    state = np.zeros(int(row.max()) + 1, component.state)
    return _walk(component, state, row, _first(row), payments, slice(0, len(payments)))


def _rows(entity: NDArray[np.int64]) -> NDArray[np.int32]:
    """Give each entity a row; which one has no influence on its scores."""
    return np.unique(entity, return_inverse=True)[1].astype(np.int32)


def _first(row: NDArray[np.int32]) -> NDArray[np.bool_]:
    fresh = np.zeros(len(row), np.bool_)
    fresh[np.unique(row, return_index=True)[1]] = True
    return fresh


def _log_odds(p: NDArray[np.float64]) -> NDArray[np.float64]:
    inside = np.clip(p, 1e-15, 1.0 - 1e-15)
    log_odds: NDArray[np.float64] = np.log(inside) - np.log1p(-inside)
    return log_odds
