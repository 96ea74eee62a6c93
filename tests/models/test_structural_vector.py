"""Structural models of several values against a dense Gaussian solve and statsmodels."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from statsmodels.tsa.statespace.kalman_filter import KalmanFilter as StatsmodelsFilter

from models.baselines.component import NO_MARK, NO_PARTNER, Component
from models.baselines.local_level import CUT
from models.baselines.structural import structural
from models.baselines.structural_spec import Level, Noise, Season, StructuralSpec
from models.baselines.structural_vector import CUT_AT, CUT_VALUES, structural_vector
from tests.models.component_cases import START_MS
from tests.models.test_structural import PARTS, PLAIN, Matrices, dense_cov, gaps, series

Floats = NDArray[np.float64]
NOISE_COV = np.array([[0.7, 0.4, -0.1], [0.4, 1.5, 0.2], [-0.1, 0.2, 0.3]])
ONE = replace(PLAIN, noise=replace(PLAIN.noise, var=1.0))
VECTOR = StructuralSpec(level=Level(0.05), interval_s=300.0)


def run(
    component: Component,
    time_ms: NDArray[np.int64],
    value: Floats,
    state: NDArray[np.void] | None = None,
    row: NDArray[np.int32] | None = None,
    fresh_first: bool = True,
    double: bool = False,
) -> tuple[NDArray[np.floating[Any]], NDArray[np.void]]:
    n = len(time_ms)
    row = np.zeros(n, np.int32) if row is None else row
    state = np.zeros(int(row.max()) + 1, component.state) if state is None else state
    number = np.float64 if double else np.float32
    out: NDArray[np.floating[Any]] = np.empty((n, len(component.tells)), number)
    fresh = np.zeros(n, np.bool_)
    if fresh_first:
        fresh[np.unique(row, return_index=True)[1]] = True
    marks, partners = np.full(n, NO_MARK, np.uint8), np.full(n, NO_PARTNER, np.uint64)
    component.walk(state, row, fresh, time_ms, value, marks, partners, component.parameters, out)
    return out, state


def several(spec: StructuralSpec, n: int, seed: int) -> tuple[NDArray[np.int64], Floats]:
    """Three values at irregular times; some events have none."""
    columns = [series(spec, irregular=True, n=n, seed=seed).value for _ in range(3)]
    value = np.stack(columns, axis=1)
    rng = np.random.default_rng(seed)
    value[:, 1:] += rng.normal(0, 1, (n, 2))
    return series(spec, irregular=True, n=n, seed=seed).time_ms, value


def expected(component: Component, out: NDArray[np.floating[Any]]) -> tuple[Floats, Floats]:
    where = [component.tells.index(f"expected_{i}") for i in range(3)]
    return out[:, where].astype(float), out[:, [w + 1 for w in where]].astype(float)


@pytest.mark.parametrize("name", PARTS)
def test_equals_one_dense_joint_gaussian_solve(name: str) -> None:
    """The covariance of all values of all times is that of one value, Kronecker the noise's."""
    spec = replace(PARTS[name], noise=ONE.noise)
    time_ms, value = several(spec, 40, seed=1)
    component = structural_vector(spec, 3, noise_cov=NOISE_COV.tolist(), precision="double")
    out, _ = run(component, time_ms, value, double=True)
    mean, sd = expected(component, out)
    events = series(spec, irregular=True, n=40, seed=1)
    cov = np.kron(dense_cov(spec, events) / 0.7, NOISE_COV)
    density, told = 0.0, -np.log(np.ones(40))
    seen: list[int] = []
    for i in range(40):
        if np.isnan(value[i]).any():
            continue
        now = list(range(3 * i, 3 * i + 3))
        gain = np.linalg.solve(cov[np.ix_(seen, seen)], cov[np.ix_(seen, now)])
        wanted = 5.0 + gain.T @ (value.ravel()[seen] - 5.0)
        var = cov[np.ix_(now, now)] - gain.T @ cov[np.ix_(seen, now)]
        np.testing.assert_allclose(mean[i], wanted, rtol=0, atol=1e-8)
        np.testing.assert_allclose(sd[i] ** 2, np.diag(var), rtol=0, atol=1e-8)
        off = value[i] - wanted
        told[i] = -stats.chi2.logsf(off @ np.linalg.solve(var, off), 3)
        density += stats.multivariate_normal(wanted, var).logpdf(value[i])
        seen += now
    np.testing.assert_allclose(out[:, 0], told, rtol=1e-5, atol=1e-6)
    values = value.ravel()[seen]
    joint = stats.multivariate_normal(np.full(len(seen), 5.0), cov[np.ix_(seen, seen)])
    assert density == pytest.approx(joint.logpdf(values), abs=1e-7)


@pytest.mark.parametrize("name", ["level", "damped_trend", "seasons", "ar_3", "all"])
def test_equals_statsmodels_with_several_observations(name: str) -> None:
    spec = replace(PARTS[name], noise=ONE.noise)
    time_ms, value = several(spec, 40, seed=2)
    events, model, d = series(spec, irregular=True, n=40, seed=2), Matrices(spec), spec.states
    over = [model.over(float(passed)) for passed in gaps(events)] + [model.over(1.0)]
    theirs = StatsmodelsFilter(k_endog=3, k_states=3 * d, tolerance=0.0)
    theirs.bind(value - 5.0)
    eye = np.eye(3)
    loadings = [np.kron(eye, model.loading(int(t))[None]) for t in time_ms]
    theirs["design"] = np.dstack(loadings)
    theirs["obs_cov"] = NOISE_COV
    theirs["transition"] = np.dstack([np.kron(eye, transition) for transition, _ in over])
    theirs["selection"] = np.eye(3 * d)
    theirs["state_cov"] = np.dstack([np.kron(NOISE_COV, noise / 0.7) for _, noise in over])
    theirs.initialize_known(np.zeros(3 * d), np.kron(NOISE_COV, model.prior_cov / 0.7))
    found = theirs.filter()
    component = structural_vector(spec, 3, noise_cov=NOISE_COV.tolist(), precision="double")
    _, state = run(component, time_ms, value, double=True)
    np.testing.assert_allclose(
        state["mean"][0].ravel(), found.filtered_state[:, -1], rtol=0, atol=1e-9
    )
    cov = np.zeros((d, d))
    cov[np.tril_indices(d)] = state["cov"][0]
    cov += np.tril(cov, -1).T
    np.testing.assert_allclose(
        np.kron(NOISE_COV, cov), found.filtered_state_cov[:, :, -1], rtol=0, atol=1e-9
    )


def test_one_value_equals_the_scalar_model() -> None:
    events = series(PARTS["all"], irregular=True, seed=3)
    scalar = structural(PARTS["all"], precision="double")
    vector = structural_vector(PARTS["all"], 1, precision="double")
    wanted, wanted_state = run(scalar, events.time_ms, events.value, double=True)
    found, found_state = run(vector, events.time_ms, events.value[:, None], double=True)
    np.testing.assert_allclose(found[:, 0], wanted[:, 0], rtol=0, atol=1e-9)
    np.testing.assert_allclose(found_state["mean"][0, 0], wanted_state["mean"][0], atol=1e-12)
    np.testing.assert_allclose(found_state["cov"][0], wanted_state["cov"][0], atol=1e-12)


def test_a_missing_value_moves_by_what_the_others_say() -> None:
    """The means are exact: a dense solve without that value."""
    spec = replace(ONE, level=Level(0.05, mean=5.0, var=3.0))
    time_ms = START_MS + np.arange(6) * 300_000
    rng = np.random.default_rng(4)
    value = 5.0 + rng.normal(0, 1.5, (6, 3))
    value[5, 1] = np.nan
    component = structural_vector(spec, 3, noise_cov=NOISE_COV.tolist(), precision="double")
    _, state = run(component, time_ms, value, double=True)
    low = np.minimum.outer(np.arange(6), np.arange(6))
    cov = np.kron(3.0 + 0.05 * low + np.eye(6), NOISE_COV)
    level_cov = np.kron(3.0 + 0.05 * low[-1:], NOISE_COV)
    seen = np.flatnonzero(~np.isnan(value.ravel()))
    wanted = level_cov[:, seen] @ np.linalg.solve(
        cov[np.ix_(seen, seen)], value.ravel()[seen] - 5.0
    )
    np.testing.assert_allclose(state["mean"][0, :, 0], wanted, rtol=0, atol=1e-9)
    assert float(state["cov"][0, 0]) > 0.0


def test_the_noise_covariance_is_learned() -> None:
    rng = np.random.default_rng(5)
    n = 4_000
    time_ms = START_MS + np.arange(n) * 300_000
    level = np.cumsum(rng.multivariate_normal(np.zeros(3), 0.05 * NOISE_COV, n), axis=0)
    value = level + rng.multivariate_normal(np.zeros(3), NOISE_COV, n) + [10.0, -4.0, 1e4]
    spec = replace(VECTOR, noise=Noise(memory_events=1_000), robust=replace(VECTOR.robust, dof=0.0))
    _, state = run(structural_vector(spec, 3), time_ms, value)
    found = np.zeros((3, 3))
    found[np.tril_indices(3)] = state["noise_cov"][0]
    found += np.tril(found, -1).T
    np.testing.assert_allclose(found, NOISE_COV, rtol=0.3, atol=0.12)


@pytest.mark.parametrize("values", [2, 3, 4])
@pytest.mark.compiled
def test_p_values_are_uniform_on_data_from_the_model(values: int) -> None:
    told = []
    for seed in range(6):
        rng = np.random.default_rng(100 + seed)
        mix = rng.normal(0, 1, (values, values)) + 2 * np.eye(values)
        n = 3_500
        time_ms = START_MS + np.cumsum(rng.integers(100_000, 500_000, n))
        gap = np.diff(time_ms, prepend=time_ms[0]) / 300_000
        level = np.cumsum(rng.normal(0, 1, (n, values)) * np.sqrt(0.05 * gap)[:, None], axis=0)
        value = (level + rng.normal(0, 1, (n, values))) @ mix
        out, _ = run(structural_vector(VECTOR, values), time_ms, value)
        told.append(out[500:, 0])
    surprise = np.concatenate(told)
    for nominal in (0.1, 0.01):
        rate = float((surprise > -math.log(nominal)).mean())
        assert nominal / 1.5 < rate < nominal * 1.5, f"{rate} at {nominal}"


def test_a_broken_correlation_is_surprising() -> None:
    rng = np.random.default_rng(6)
    n = 1_000
    shared = rng.normal(0, 1, n)
    value = np.stack([shared, shared], axis=1) + rng.normal(0, 0.1, (n, 2))
    value[-1] = 1.5, -1.5  # neither is unusual by itself
    out, _ = run(structural_vector(VECTOR, 2), START_MS + np.arange(n) * 300_000, value)
    assert out[-1, 0] > 20.0
    assert abs(out[-1, 1]) < 2.5


def ordinary(seed: int, n: int, values: int) -> tuple[NDArray[np.int64], Floats]:
    rng = np.random.default_rng(seed)
    value = np.cumsum(rng.normal(0, 0.1, (n, values)), axis=0) + rng.normal(0, 1, (n, values))
    value[rng.uniform(size=(n, values)) < 0.1] = np.nan
    value[rng.uniform(size=(n, values)) < 0.02] = 1e9
    value[rng.uniform(size=(n, values)) < 0.02] = np.inf
    value[rng.uniform(size=n) < 0.05] = np.nan
    time_ms = START_MS + np.cumsum(rng.integers(0, 900_000, n))
    return time_ms, value


@pytest.mark.parametrize("values", [1, 2, 4])
def test_the_contract(values: int) -> None:
    """Finite, one by one equals the batch, and entities do not influence each other."""
    spec = StructuralSpec(interval_s=300.0, seasons=(Season(86_400.0, 2),))
    component = structural_vector(spec, values)
    n = 150
    streams = [ordinary(seed, n, values) for seed in range(3)]
    alone = [run(component, *stream) for stream in streams]
    for out, state in alone:
        assert not np.isinf(out).any()
        assert (out[:, 0] >= 0.0).all()
        for field in ("learned", "noise_cov", "mean", "cov"):
            assert np.isfinite(state[field]).all()
        spread = np.zeros((values, values))
        spread[np.tril_indices(values)] = state["noise_cov"][0]
        spread += np.tril(spread, -1).T
        scale = np.sqrt(np.maximum(np.diag(spread), 1e-30))
        assert np.linalg.eigvalsh(spread / np.outer(scale, scale))[0] >= -1e-6
    time_ms = np.stack([t for t, _ in streams], axis=1).ravel()
    value = np.stack([v for _, v in streams], axis=1).reshape(3 * n, values)
    row = np.tile(np.arange(3, dtype=np.int32), n)
    together, state = run(component, time_ms, value, row=row)
    for k in range(3):
        np.testing.assert_array_equal(together[row == k], alone[k][0])
        assert state[k : k + 1].tobytes() == alone[k][1].tobytes()
    one_state = np.zeros(1, component.state)
    for i in range(n):
        one, _ = run(
            component,
            streams[0][0][i : i + 1],
            streams[0][1][i : i + 1],
            state=one_state,
            fresh_first=i == 0,
        )
        np.testing.assert_array_equal(one[0], alone[0][0][i])
    assert one_state.tobytes() == alone[0][1].tobytes()


def test_constant_values_are_quiet() -> None:
    out, _ = run(
        structural_vector(VECTOR, 2), START_MS + np.arange(600) * 300_000, np.full((600, 2), 5.0)
    )
    assert out[:, 0].max() < 3.0


def test_values_that_move_as_one_divide_by_nothing() -> None:
    walk = np.random.default_rng(7).normal(0, 1, 500)
    value = np.stack([walk, walk, 2 * walk], axis=1)
    out, state = run(structural_vector(VECTOR, 3), START_MS + np.arange(500) * 300_000, value)
    assert np.isfinite(out[:, 0]).all()
    assert np.isfinite(state["noise_cov"]).all()


def test_a_true_shift_of_one_value_is_followed() -> None:
    rng = np.random.default_rng(8)
    value = rng.normal(0, 1, (900, 3))
    value[600:, 1] += 500.0
    component = structural_vector(VECTOR, 3)
    out, _ = run(component, START_MS + np.arange(900) * 300_000, value)
    assert out[600, 0] > 20.0
    assert out[600, 2] == 1.0
    assert out[600:612, component.tells.index("shift")].sum() >= 1.0
    assert np.median(out[630:, 0]) < 2.0


def test_the_cut_is_made_up_for() -> None:
    for values, cut_at, cut in zip((1, 2, 3, 4), CUT_AT, CUT_VALUES, strict=True):
        kept = values * stats.chi2.cdf(cut_at, values + 2) + cut_at * stats.chi2.sf(cut_at, values)
        assert cut == pytest.approx(values / kept, abs=1e-4)
    assert CUT_VALUES[0] == CUT


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="values: expected 1 to 4, found 5"):
        structural_vector(VECTOR, 5)
    with pytest.raises(ValueError, match="noise_cov: expected noise.var beside it"):
        structural_vector(VECTOR, 2, noise_cov=[[1, 0], [0, 1]])
    for bad, message in (
        ([[1.0]], "expected 2 x 2 finite numbers"),
        ([[1.0, 2.0], [2.0, 1.0]], "expected symmetric and positive definite"),
    ):
        with pytest.raises(ValueError, match=message):
            structural_vector(ONE, 2, noise_cov=bad)
