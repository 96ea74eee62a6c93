"""Components that learn from late labels against closed forms and a dense chain."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import linalg, stats

from models.baselines.compromise import (
    CompromiseParameters,
    compromise_component,
    compromise_move,
)
from models.baselines.labelled import LabelledComponent
from models.baselines.risk import RiskParameters, risk_component
from tests.models.component_cases import events_of, walk

DAY_MS = 86_400_000
START_MS = 1_522_540_800_000
RISK = RiskParameters(0.5, 49.5, 7.0 * DAY_MS)
COMPROMISE = CompromiseParameters(5, 28.0 * DAY_MS, 1e-3 / DAY_MS, 0.004, 0.95)
COMPONENTS = [risk_component(RISK), compromise_component(COMPROMISE)]


def learn(
    component: LabelledComponent,
    state: NDArray[np.void],
    time_ms: NDArray[np.int64],
    label: NDArray[np.float64],
    row: NDArray[np.int32] | None = None,
) -> None:
    n = len(label)
    rows = np.zeros(n, np.int32) if row is None else row
    component.learn(state, rows, np.zeros(n, np.bool_), time_ms, label, component.parameters)


def told(
    component: LabelledComponent, state: NDArray[np.void], time_ms: int
) -> NDArray[np.float32]:
    events = events_of(np.array([time_ms]), np.full(1, np.nan))
    events.fresh[:] = False
    out: NDArray[np.float32] = walk(component, events, state=state)[0][0]
    return out


def labels(seed: int, n: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    time_ms = START_MS + np.cumsum(rng.integers(0, 2 * DAY_MS, n))
    return time_ms, (rng.uniform(size=n) < 0.2).astype(np.float64)


def test_without_forgetting_risk_is_the_beta_posterior() -> None:
    component = risk_component(RISK._replace(memory_ms=math.inf))
    state = np.zeros(1, component.state)
    time_ms, label = labels(1, 200)
    learn(component, state, time_ms, label)
    posterior = stats.beta(0.5 + label.sum(), 49.5 + 200 - label.sum())
    risk, evidence, weight = told(component, state, int(time_ms[-1]) + DAY_MS)
    assert state["positives"][0] == label.sum()
    assert risk == pytest.approx(posterior.mean(), rel=1e-6)
    mean = posterior.mean()
    assert evidence == pytest.approx(math.log(mean / (1 - mean) * 49.5 / 0.5), rel=1e-6)
    assert weight == 200.0


@pytest.mark.parametrize("seed", range(3))
def test_risk_forgets_exponentially_whatever_the_order(seed: int) -> None:
    component = risk_component(RISK)
    time_ms, label = labels(seed, 100)
    now = time_ms[-1]
    weight = np.exp(-(now - time_ms) / RISK.memory_ms)
    for order in (np.arange(100), np.random.default_rng(seed).permutation(100)):
        state = np.zeros(1, component.state)
        learn(component, state, time_ms[order], label[order])
        assert state["time_ms"][0] == now
        assert state["positives"][0] == pytest.approx(weight @ label, rel=1e-8)
        assert state["labels"][0] == pytest.approx(weight.sum(), rel=1e-8)


def test_risk_returns_to_the_populations() -> None:
    component = risk_component(RISK)
    state = np.zeros(1, component.state)
    assert told(component, state, START_MS)[0] == pytest.approx(0.01, rel=1e-6)
    learn(component, state, np.array([START_MS]), np.array([1.0]))
    assert told(component, state, START_MS)[0] == pytest.approx(1.5 / 51.0, rel=1e-6)
    assert told(component, state, START_MS + 400 * DAY_MS)[0] == pytest.approx(0.01, rel=1e-6)


def generator(p: CompromiseParameters) -> NDArray[np.float64]:
    """Rates of the chain clean -> stage 1 -> .. -> stage K -> clean, per ms."""
    rates = np.zeros((p.stages + 1, p.stages + 1))
    rates[0, 1] = p.onset_per_ms
    for k in range(1, p.stages + 1):
        rates[k, (k + 1) % (p.stages + 1)] += p.stages / p.dwell_ms
    rates -= np.diag(rates.sum(axis=1))
    return rates


@pytest.mark.parametrize("stages", [1, 2, 5, 16])
@pytest.mark.parametrize("days", [0.0, 1e-3, 1.0, 30.0, 900.0])
def test_the_chain_moves_as_the_matrix_exponential(stages: int, days: float) -> None:
    p = COMPROMISE._replace(stages=stages, onset_per_ms=0.02 / DAY_MS)
    now = np.random.default_rng(stages).dirichlet(np.ones(stages + 1))
    wanted = now @ linalg.expm(generator(p) * days * DAY_MS)
    compromise_move(p, days * DAY_MS, now, np.empty(stages + 1), np.empty(stages + 1))
    assert now == pytest.approx(wanted, rel=1e-8, abs=1e-11)


def test_compromise_is_filtered_as_the_dense_chain() -> None:
    p = COMPROMISE
    component = compromise_component(p)
    time_ms, label = labels(4, 80)
    ratio = p.onset_per_ms * p.dwell_ms
    dense = np.array([1.0] + [ratio / p.stages] * p.stages) / (1.0 + ratio)
    emission = np.array([p.positive_clean] + [p.positive_compromised] * p.stages)
    state = np.zeros(1, component.state)
    last, evidence = time_ms[0], 0.0
    for at, y in zip(time_ms, label, strict=True):
        dense = dense @ linalg.expm(generator(p) * float(at - last))
        dense *= emission if y else 1.0 - emission
        evidence += math.log(dense.sum())
        dense /= dense.sum()
        last = at
    learn(component, state, time_ms, label)
    assert state["clean"][0] == pytest.approx(dense[0], rel=1e-8)
    assert state["stage"][0, : p.stages] == pytest.approx(dense[1:], rel=1e-8)
    assert state["log_evidence"][0] == pytest.approx(evidence, rel=1e-8)
    later = dense @ linalg.expm(generator(p) * 7.0 * DAY_MS)
    risk, odds = told(component, state, int(last) + 7 * DAY_MS)
    assert risk == pytest.approx(later @ emission, rel=1e-6)
    assert odds == pytest.approx(math.log((1 - later[0]) / later[0]), rel=1e-5)


def test_a_compromise_ends_after_its_dwell_time() -> None:
    """Two frauds: soon after all is suspicious, after twice the dwell time nothing is."""
    component = compromise_component(COMPROMISE._replace(stages=16))
    state = np.zeros(1, component.state)
    learn(component, state, START_MS + np.arange(2) * DAY_MS, np.ones(2))
    assert told(component, state, START_MS + 8 * DAY_MS)[0] > 0.65
    assert told(component, state, START_MS + 56 * DAY_MS)[0] < 0.1


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda c: c.name)
def test_labels_one_by_one_equal_the_batch(component: LabelledComponent) -> None:
    time_ms, label = labels(5, 60)
    row = np.random.default_rng(5).integers(0, 3, 60).astype(np.int32)
    at_once = np.zeros(3, component.state)
    learn(component, at_once, time_ms, label, row)
    one_by_one = np.zeros(3, component.state)
    for i in range(60):
        learn(component, one_by_one, time_ms[i : i + 1], label[i : i + 1], row[i : i + 1])
    assert at_once.tobytes() == one_by_one.tobytes()
    for k in range(3):  # entities do not influence each other
        alone = np.zeros(1, component.state)
        learn(component, alone, time_ms[row == k], label[row == k])
        assert alone.tobytes() == at_once[k : k + 1].tobytes()


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda c: c.name)
def test_scoring_does_not_change_what_labels_taught(component: LabelledComponent) -> None:
    time_ms, label = labels(6, 40)
    state = np.zeros(1, component.state)
    learn(component, state, time_ms, label)
    before = state.tobytes()
    told(component, state, int(time_ms[-1]) + DAY_MS)
    assert state.tobytes() == before


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda c: c.name)
def test_an_unknown_label_teaches_nothing(component: LabelledComponent) -> None:
    state = np.zeros(1, component.state)
    learn(component, state, np.array([START_MS]), np.array([math.nan]))
    assert state.tobytes() == bytes(state.nbytes)


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda c: c.name)
def test_a_fresh_label_forgets_what_was_there(component: LabelledComponent) -> None:
    time_ms, label = labels(7, 40)
    used = np.zeros(1, component.state)
    learn(component, used, time_ms, label)
    alone = np.zeros(1, component.state)
    for state in (used, alone):
        component.learn(
            state, np.zeros(1, np.int32), np.ones(1, np.bool_), np.array([START_MS]),
            np.ones(1), component.parameters,
        )  # fmt: skip
    names = used.dtype.names or ()
    for name in names:
        if name != "stage":
            assert used[name] == alone[name]
    assert told(component, used, START_MS + DAY_MS) == pytest.approx(
        told(component, alone, START_MS + DAY_MS), rel=0.0
    )


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="risk: expected positive"):
        risk_component(RISK._replace(memory_ms=0.0))
    with pytest.raises(ValueError, match="compromise: expected 1 to 16 stages"):
        compromise_component(COMPROMISE._replace(stages=17))
    with pytest.raises(ValueError, match="compromise: expected 1 to 16 stages"):
        compromise_component(COMPROMISE._replace(positive_clean=0.0))
