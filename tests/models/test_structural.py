"""Structural models: each part against statsmodels, pykalman and one dense Gaussian solve."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, date, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pykalman import KalmanFilter
from scipy import linalg, stats
from statsmodels.tsa.statespace.kalman_filter import KalmanFilter as StatsmodelsFilter
from statsmodels.tsa.statespace.structural import UnobservedComponents

from models.baselines.calendar import Regressor, on_days, pay_day, regressor_value, weekend
from models.baselines.structural import (
    EXPECTED,
    EXPECTED_SD,
    LEVEL_NOW,
    LOG_RATIO,
    NOISE_VAR,
    SHIFTED,
    SURPRISE,
    structural,
)
from models.baselines.structural_spec import (
    Autoregression,
    Level,
    Noise,
    Robust,
    Season,
    StructuralSpec,
    Trend,
    companion,
)
from tests.models.component_cases import (
    CASES,
    LOCAL_LEVEL,
    SPECS,
    START_MS,
    Events,
    draw,
    events_of,
    measurements,
    walk,
)

Floats = NDArray[np.float64]
INTERVAL_S = 300.0
NOISE = 0.7
# The plain Kalman filter: known variances, no weights.
PLAIN = StructuralSpec(
    level=Level(0.05, mean=5.0, var=3.0),
    interval_s=INTERVAL_S,
    noise=Noise(NOISE, learns=False, ratio_rate=0.0),
    robust=Robust(dof=0.0, shift_events=0),
)
DAY = Season(30 * INTERVAL_S, 3, noise_var=0.01, var=2.0)
WEEK = Season(70 * INTERVAL_S, 2, noise_var=0.02, var=1.0)
STEPS = Regressor("steps", "hour_of_week", tuple(np.cos(np.arange(168)).tolist()), 0, 0.03, 1.5)
PARTS = {
    "level": PLAIN,
    "trend": replace(PLAIN, trend=Trend(0.002, var=0.1)),
    "damped_trend": replace(PLAIN, trend=Trend(0.02, damping=0.3, var=0.1)),
    "season": replace(PLAIN, seasons=(DAY,)),
    "seasons": replace(PLAIN, seasons=(DAY, WEEK)),
    "ar_1": replace(PLAIN, autoregression=Autoregression((0.8,), 0.4)),
    "ar_1_alternating": replace(PLAIN, autoregression=Autoregression((-0.6,), 0.4)),
    "ar_3": replace(PLAIN, autoregression=Autoregression((0.5, -0.3, 0.2), 0.4)),
    "regressors": replace(PLAIN, regressors=(STEPS, weekend(0.01), pay_day(5, 1))),
    "all": replace(
        PLAIN,
        trend=Trend(0.02, damping=0.3, var=0.1),
        seasons=(DAY, WEEK),
        autoregression=Autoregression((0.5, -0.3), 0.4),
        regressors=(STEPS, weekend(0.01)),
    ),
}
by_part = pytest.mark.parametrize("spec", PARTS.values(), ids=PARTS.keys())


def series(spec: StructuralSpec, irregular: bool, n: int = 80, seed: int = 1) -> Events:
    """Return events with missing values; an autoregression wants whole intervals."""
    rng = np.random.default_rng(seed)
    gap = rng.exponential(2.0, n) if irregular else np.ones(n)
    part = spec.autoregression
    if irregular and part is not None and (len(part.coefficients) > 1 or part.coefficients[0] < 0):
        gap = np.round(gap)
    time_ms = START_MS + np.round(np.cumsum(gap) * INTERVAL_S * 1000).astype(np.int64)
    value = 5.0 + np.cumsum(rng.normal(0, 0.3, n)) + rng.normal(0, 1.5, n)
    value[rng.uniform(size=n) < 0.1] = np.nan
    return events_of(time_ms, value)


class Track:
    """The filter's state after each event in double precision, and its predictions."""

    def __init__(self, spec: StructuralSpec, events: Events) -> None:
        component = structural(spec, precision="double")
        n, d = len(events), spec.states
        state = np.zeros(1, component.state)
        self.out = np.empty((n, len(component.tells)))
        self.mean, self.cov = np.empty((n, d)), np.empty((n, d, d))
        self.learned = np.empty((n, 6))
        for i in range(n):
            one = events.take(slice(i, i + 1))
            columns = (one.row, one.fresh, one.time_ms, one.value, one.mark, one.partner)
            component.walk(state, *columns, component.parameters, self.out[i : i + 1])
            noise_var = spec.noise.var or float(state["learned"][0, NOISE_VAR])
            lower = np.zeros((d, d))
            lower[np.tril_indices(d)] = state["cov"][0] * noise_var
            self.mean[i] = state["mean"][0]
            self.cov[i] = lower + np.tril(lower, -1).T
            self.learned[i] = state["learned"][0]


class Matrices:
    """The same model as plain matrices, with Van Loan's (1978) integral for its process noise.

    It shares no formula with `models.baselines.state_space`: blocks are given by their drift and
    diffusion, and matrix exponentials do the rest.
    """

    def __init__(self, spec: StructuralSpec) -> None:
        drifts: list[Floats] = []
        diffusions: list[Floats] = []
        prior: list[Floats] = []
        self.discrete: tuple[int, Floats, Floats] | None = None
        if spec.trend is None:
            drifts.append(np.zeros((1, 1)))
            diffusions.append(np.array([[spec.level.noise_var]]))
            prior.append(np.array([[spec.level.var]]))
        else:
            drifts.append(np.array([[0.0, 1.0], [0.0, -spec.trend.damping]]))
            diffusions.append(np.diag([spec.level.noise_var, spec.trend.noise_var]))
            prior.append(np.diag([spec.level.var, spec.trend.var]))
        for season in spec.seasons:
            for k in range(1, season.harmonics + 1):
                rate = 2 * np.pi * k * spec.interval_s / season.period_s
                drifts.append(np.array([[0.0, rate], [-rate, 0.0]]))
                diffusions.append(season.noise_var * np.eye(2))
                prior.append(season.var * np.eye(2))
        if spec.autoregression is not None:
            self._add_autoregression(spec.autoregression, drifts, diffusions, prior)
        for regressor in spec.regressors:
            drifts.append(np.zeros((1, 1)))
            diffusions.append(np.array([[regressor.noise_var]]))
            prior.append(np.array([[regressor.var]]))
        self.drift = linalg.block_diag(*drifts)
        self.diffusion = NOISE * linalg.block_diag(*diffusions)
        self.prior_cov = NOISE * linalg.block_diag(*prior)
        self.spec = spec

    def _add_autoregression(
        self,
        part: Autoregression,
        drifts: list[Floats],
        diffusions: list[Floats],
        prior: list[Floats],
    ) -> None:
        p = len(part.coefficients)
        matrix, noise = companion(part.coefficients), np.zeros((p, p))
        noise[0, 0] = part.noise_var
        prior.append(linalg.solve_discrete_lyapunov(matrix, noise))
        if p == 1 and part.coefficients[0] > 0:
            rate = -math.log(part.coefficients[0])
            drifts.append(np.array([[-rate]]))
            diffusions.append(2 * rate * prior[-1])
        else:
            self.discrete = (sum(len(block) for block in drifts), matrix, NOISE * noise)
            drifts.append(np.zeros((p, p)))
            diffusions.append(np.zeros((p, p)))

    def over(self, time: float) -> tuple[Floats, Floats]:
        """Return transition and process noise over `time` intervals."""
        d = len(self.drift)
        both = np.block([[-self.drift, self.diffusion], [np.zeros((d, d)), self.drift.T]]) * time
        raised = linalg.expm(both)
        transition = raised[d:, d:].T
        noise = transition @ raised[:d, d:]
        if self.discrete is not None:
            at, matrix, step_noise = self.discrete
            inside = slice(at, at + len(matrix))
            block, block_noise = np.eye(len(matrix)), np.zeros_like(step_noise)
            for _ in range(round(time)):
                block = matrix @ block
                block_noise = matrix @ block_noise @ matrix.T + step_noise
            transition[inside, inside] = block
            noise[inside, inside] = block_noise
        return transition, noise

    def loading(self, time_ms: int) -> Floats:
        """Return the observation vector at a time."""
        loads = [1.0] + [0.0] * (self.spec.trend is not None)
        loads += [1.0, 0.0] * sum(season.harmonics for season in self.spec.seasons)
        if self.spec.autoregression is not None:
            loads += [1.0] + [0.0] * (len(self.spec.autoregression.coefficients) - 1)
        at = datetime.fromtimestamp(time_ms / 1000, UTC)
        return np.array(loads + [regressor_value(r, at) for r in self.spec.regressors])


def gaps(events: Events) -> Floats:
    passed: Floats = np.diff(events.time_ms) / (1000 * INTERVAL_S)
    return passed


@by_part
@pytest.mark.parametrize("irregular", [False, True], ids=["regular", "irregular"])
def test_equals_pykalmans_filter_update(spec: StructuralSpec, irregular: bool) -> None:
    events, model = series(spec, irregular), Matrices(spec)
    track = Track(spec, events)
    theirs = KalmanFilter(n_dim_state=spec.states, n_dim_obs=1)
    mean = np.zeros(spec.states)
    cov = model.prior_cov
    for i, passed in enumerate(np.concatenate([[0.0], gaps(events)])):
        transition, noise = model.over(float(passed))
        y = events.value[i]
        mean, cov = theirs.filter_update(
            mean,
            cov,
            observation=None if np.isnan(y) else np.array([y - 5.0]),
            transition_matrix=transition,
            transition_covariance=noise,
            transition_offset=np.zeros(spec.states),
            observation_matrix=model.loading(int(events.time_ms[i]))[None],
            observation_covariance=np.array([[NOISE]]),
            observation_offset=np.zeros(1),
        )
        mean = np.asarray(mean)
        np.testing.assert_allclose(track.mean[i], mean, rtol=0, atol=1e-9)
        np.testing.assert_allclose(track.cov[i], cov, rtol=0, atol=1e-9)


@by_part
@pytest.mark.parametrize("irregular", [False, True], ids=["regular", "irregular"])
def test_equals_statsmodels_filter(spec: StructuralSpec, irregular: bool) -> None:
    events, model = series(spec, irregular, seed=2), Matrices(spec)
    track, n, d = Track(spec, events), 80, spec.states
    # statsmodels predicts ahead: the matrices at t carry the state from t to t + 1.
    over = [model.over(float(passed)) for passed in gaps(events)] + [model.over(1.0)]
    theirs = StatsmodelsFilter(k_endog=1, k_states=d, tolerance=0.0)
    theirs.bind(events.value - 5.0)
    theirs["design"] = np.array([[model.loading(int(t)) for t in events.time_ms]]).transpose(
        0, 2, 1
    )
    theirs["obs_cov"] = np.array([[NOISE]])
    theirs["transition"] = np.dstack([transition for transition, _ in over])
    theirs["selection"] = np.eye(d)
    theirs["state_cov"] = np.dstack([noise for _, noise in over])
    theirs.initialize_known(np.zeros(d), model.prior_cov)
    found = theirs.filter()
    np.testing.assert_allclose(track.mean.T, found.filtered_state, rtol=0, atol=1e-9)
    np.testing.assert_allclose(
        track.cov.transpose(1, 2, 0), found.filtered_state_cov, rtol=0, atol=1e-9
    )
    seen = ~np.isnan(events.value)
    np.testing.assert_allclose(
        track.out[seen, EXPECTED] - 5.0, found.forecasts[0, seen], rtol=0, atol=1e-9
    )
    np.testing.assert_allclose(
        track.out[seen, EXPECTED_SD] ** 2, found.forecasts_error_cov[0, 0, seen], rtol=0, atol=1e-9
    )
    assert len(seen) == n


def test_equals_statsmodels_unobserved_components() -> None:
    """Its own names for level, seasons and autoregression, in discrete time."""
    spec = replace(PLAIN, seasons=(DAY,), autoregression=Autoregression((0.5, -0.3), 0.4))
    events = series(spec, irregular=False, seed=3)
    theirs = UnobservedComponents(
        events.value - 5.0,
        "llevel",
        freq_seasonal=[{"period": 30, "harmonics": 3}],
        autoregressive=2,
    )
    theirs.ssm.initialize_known(np.zeros(9), Matrices(spec).prior_cov)
    theirs.ssm.tolerance = 0.0
    values = {
        "sigma2.irregular": NOISE,
        "sigma2.level": 0.05 * NOISE,
        "sigma2.freq_seasonal_30(3)": 0.01 * NOISE,
        "sigma2.ar": 0.4 * NOISE,
        "ar.L1": 0.5,
        "ar.L2": -0.3,
    }
    found = theirs.filter([values[name] for name in theirs.param_names])
    track = Track(spec, events)
    np.testing.assert_allclose(track.mean.T, found.filtered_state, rtol=0, atol=1e-9)


def dense_cov(spec: StructuralSpec, events: Events) -> Floats:
    """Return the covariance of all observations from the parts' covariance functions.

    No recursion and no matrix exponential: closed-form integrals of each part's response.
    """
    t = (events.time_ms - events.time_ms[0]) / (1000 * INTERVAL_S)
    first, second = np.meshgrid(t, t, indexing="ij")
    low, lag = np.minimum(first, second), np.abs(first - second)
    cov = spec.level.var + spec.level.noise_var * low + np.eye(len(t))
    if spec.trend is not None:
        cov += _trend_cov(spec.trend, first, second, low)
    for season in spec.seasons:
        for k in range(1, season.harmonics + 1):
            angle = 2 * np.pi * k * INTERVAL_S / season.period_s * lag
            cov += np.cos(angle) * (season.var + season.noise_var * low)
    if spec.autoregression is not None:
        cov += _autoregression_cov(spec.autoregression, lag)
    for regressor in spec.regressors:
        x = np.array(
            [
                regressor_value(regressor, datetime.fromtimestamp(ms / 1000, UTC))
                for ms in events.time_ms.tolist()
            ]
        )
        cov += np.outer(x, x) * (regressor.var + regressor.noise_var * low)
    return NOISE * cov


def _trend_cov(part: Trend, first: Floats, second: Floats, low: Floats) -> Floats:
    """Integrate the response to each moment's noise, (1 - exp(-rate age)) / rate."""
    if part.damping == 0.0:
        wiener: Floats = part.var * first * second + part.noise_var * (
            low**2 / 2 * np.maximum(first, second) - low**3 / 6
        )
        return wiener
    rate = part.damping
    start = part.var * np.expm1(-rate * first) * np.expm1(-rate * second) / rate**2
    fading = (np.exp(-rate * (first - low)) - np.exp(-rate * first)) / rate
    fading += (np.exp(-rate * (second - low)) - np.exp(-rate * second)) / rate
    both = np.exp(-rate * (first + second - 2 * low)) - np.exp(-rate * (first + second))
    damped: Floats = start + part.noise_var / rate**2 * (low - fading + both / (2 * rate))
    return damped


def _autoregression_cov(part: Autoregression, lag: Floats) -> Floats:
    """Return the autocovariance: the impulse responses' sum of products."""
    p = len(part.coefficients)
    if p == 1 and part.coefficients[0] > 0:
        ornstein: Floats = part.noise_var * part.coefficients[0] ** lag
        return ornstein / (1 - part.coefficients[0] ** 2)
    steps = np.round(lag).astype(int)
    responses = np.zeros(2000 + steps.max())
    responses[0] = 1.0
    for n in range(1, len(responses)):
        for k in range(min(p, n)):
            responses[n] += part.coefficients[k] * responses[n - 1 - k]
    by_lag = np.array([responses[:1900] @ responses[k : 1900 + k] for k in range(steps.max() + 1)])
    whole: Floats = part.noise_var * by_lag[steps]
    return whole


@by_part
@pytest.mark.parametrize("irregular", [False, True], ids=["regular", "irregular"])
def test_equals_one_dense_joint_gaussian_solve(spec: StructuralSpec, irregular: bool) -> None:
    """Each prediction from all observations before it, and their joint density."""
    events = series(spec, irregular, n=60, seed=4)
    track, cov = Track(spec, events), dense_cov(spec, events)
    seen = np.flatnonzero(~np.isnan(events.value))
    density = 0.0
    for n, i in enumerate(seen):
        before, y = seen[:n], events.value[seen[:n]] - 5.0
        gain = np.linalg.solve(cov[np.ix_(before, before)], cov[before, i])
        mean, var = 5.0 + gain @ y, cov[i, i] - gain @ cov[before, i]
        assert track.out[i, EXPECTED] == pytest.approx(mean, abs=1e-8)
        assert track.out[i, EXPECTED_SD] ** 2 == pytest.approx(var, abs=1e-8)
        density += stats.norm.logpdf(
            events.value[i], track.out[i, EXPECTED], track.out[i, EXPECTED_SD]
        )
    joint = stats.multivariate_normal(np.full(len(seen), 5.0), cov[np.ix_(seen, seen)])
    assert density == pytest.approx(joint.logpdf(events.value[seen]), abs=1e-8)


@by_part
def test_splitting_a_gap_changes_nothing(spec: StructuralSpec) -> None:
    """The transition over a + b is that over a, then b: events without value in between."""
    events = series(spec, irregular=True, n=40, seed=5)
    whole = spec.autoregression is not None and len(spec.autoregression.coefficients) > 1
    whole |= spec is PARTS["ar_1_alternating"]
    inside = np.diff(events.time_ms) * (0.0 if whole else 0.37)
    time_ms = np.empty(79, np.int64)
    time_ms[0::2], time_ms[1::2] = events.time_ms, events.time_ms[:-1] + inside.astype(np.int64)
    value = np.full(79, np.nan)
    value[0::2] = events.value
    split = events_of(time_ms, value)
    found, wanted = Track(spec, split), Track(spec, events)
    np.testing.assert_allclose(found.mean[0::2], wanted.mean, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.cov[0::2], wanted.cov, rtol=0, atol=1e-9)


def test_a_diffuse_level_is_the_limit_of_a_wide_prior() -> None:
    parts = PARTS["all"]
    events = series(parts, irregular=True, seed=6)
    events.value[:1] = 4.0
    found = Track(replace(parts, level=Level(0.05)), events)
    wide = replace(parts, level=Level(0.05, mean=0.0, var=1e9))
    wanted = Track(wide, events)
    # The state is relative to the first value, and the wide prior loses digits.
    mean = found.mean.copy()
    mean[:, 0] += 4.0
    np.testing.assert_allclose(mean[1:], wanted.mean[1:], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.cov[1:], wanted.cov[1:], rtol=0, atol=1e-5)
    assert np.isnan(found.out[0, EXPECTED])


def test_the_learned_noise_is_the_conjugate_posterior() -> None:
    """Inverse gamma with squares that the cut leaves alone: (n0 s0 + sum z^2) / (n0 + n)."""
    rng = np.random.default_rng(7)
    spec = replace(
        PLAIN,
        level=Level(0.0, mean=0.0, var=0.0),
        noise=Noise(NOISE, prior_events=10, memory_events=1e6, ratio_rate=0.0),
    )
    y = rng.uniform(-1.2, 1.2, 300)
    track = Track(spec, events_of(START_MS + np.arange(300) * 300_000, y))
    n = np.arange(1, 301)
    # CUT makes up for squares beyond CLIP, which a uniform does not have.
    scale = track.learned[:, 0]
    np.testing.assert_allclose(track.learned[:, 1], 10 + n, rtol=1e-9)
    np.testing.assert_allclose(scale, (10 * NOISE + np.cumsum(y**2)) / (10 + n), rtol=6e-3)


def test_an_outlier_pulls_by_a_bounded_amount() -> None:
    quiet = draw(LOCAL_LEVEL, 8, 400).value
    pulls = {}
    for size in (3.0, 10.0, 100.0, 1e4, 1e8):
        value = np.append(quiet, quiet[-50:].mean() + size * 2.0)
        events = events_of(START_MS + np.arange(401) * 300_000, value)
        out, state = walk(structural(LOCAL_LEVEL), events)
        settled, before = walk(structural(LOCAL_LEVEL), events.take(slice(0, 400)))
        pulls[size] = (out[400, LEVEL_NOW] - settled[399, LEVEL_NOW]) / settled[399, EXPECTED_SD]
        grown = state["learned"][0, NOISE_VAR] / before["learned"][0, NOISE_VAR]
        assert 1.0 < grown < 1.05
    assert max(pulls.values()) < 1.0
    assert pulls[1e8] < pulls[1e4] < pulls[100.0] < pulls[10.0]
    assert pulls[1e8] < 0.2


@pytest.mark.parametrize("size", [5.0, 30.0, 1e4])
def test_the_level_follows_a_true_shift(size: float) -> None:
    events = draw(LOCAL_LEVEL, 9, 900)
    events.value[600:] += size * 2.0
    out, state = walk(structural(LOCAL_LEVEL), events)
    assert out[600, SURPRISE] > 8.0
    assert out[600:625, SHIFTED].sum() >= (size > 10.0)
    assert np.median(out[625:, SURPRISE]) < 2.0
    assert abs(np.median(out[625:, EXPECTED] - events.value[625:])) < 2.0
    assert state["learned"][0, NOISE_VAR] < 4.0 * 4.0


def test_process_noise_is_learned() -> None:
    """Data whose level moves 10 times, or a tenth, of what the spec says."""
    for truth, low, high in ((0.5, 4.0, 25.0), (0.005, 0.03, 0.35)):
        moved = replace(LOCAL_LEVEL, level=Level(truth))
        events = draw(moved, 10, 12_000)
        component = structural(LOCAL_LEVEL)
        found = []
        state = np.zeros(1, component.state)
        for start in range(0, 12_000, 500):
            walk(component, events.take(slice(start, start + 500)), state=state)
            found.append(float(state["learned"][0, LOG_RATIO]))
        assert low < math.exp(np.mean(found[8:])) < high


def test_no_scale_no_score() -> None:
    """Without a known variance the first difference gives it; a long constant start is one."""
    times = START_MS + np.arange(40) * 300_000
    out, state = walk(structural(LOCAL_LEVEL), events_of(times[:3], np.array([7.0, 7.0, 9.0])))
    assert (out[:, SURPRISE] == 0.0).all()
    assert state["learned"][0, NOISE_VAR] > 0.0
    out, _ = walk(structural(LOCAL_LEVEL), events_of(times, np.append(np.full(39, 7.0), 9.0)))
    assert (out[:39, SURPRISE] == 0.0).all()
    assert out[39, SURPRISE] > 30.0


def test_large_values_keep_their_small_changes() -> None:
    events = draw(LOCAL_LEVEL, 11, 500)
    plain, _ = walk(structural(LOCAL_LEVEL), events)
    events.value[:] += 1e6
    moved, _ = walk(structural(LOCAL_LEVEL), events)
    np.testing.assert_allclose(moved[50:, SURPRISE], plain[50:, SURPRISE], atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["level", "level_by_event", "level_trend_day"])
def test_p_values_hold_to_one_in_a_thousand(name: str) -> None:
    """60,000 held-out events of 20 simulated streams, within a factor of 1.5."""
    case = next(case for case in CASES if case.name == name)
    assert case.model_events is not None
    component, told = case.make(), []
    for seed in range(20):
        out, _ = walk(component, case.model_events(1000 + seed, case.warm + 3_000))
        told.append(out[case.warm :, SURPRISE])
    surprise = np.concatenate(told)
    for nominal in (0.01, 0.001):
        rate = float((surprise > -math.log(nominal)).mean())
        assert nominal / 1.5 < rate < nominal * 1.5, f"{rate} at {nominal}"
    ks = stats.kstest(np.exp(-surprise[::20].astype(np.float64)), "uniform")
    assert ks.pvalue > 1e-3


def test_p_values_hold_from_the_first_scored_events() -> None:
    """400 streams of which nothing is known, not even the scale."""
    component = structural(LOCAL_LEVEL)
    rng = np.random.default_rng(15)
    told = np.empty((400, 50))
    times = START_MS + np.arange(50) * 300_000
    for k in range(400):
        scale = math.exp(rng.uniform(-8, 8))
        y = np.cumsum(rng.normal(0, 0.05**0.5, 50)) + rng.normal(0, 1, 50)
        out, _ = walk(component, events_of(times, 100.0 + scale * y))
        told[k] = out[:, SURPRISE]
    for first, last in ((2, 10), (10, 50)):
        part = told[:, first:last]
        for nominal in (0.1, 0.01):
            rate = float((part > -math.log(nominal)).mean())
            assert nominal / 2 < rate < nominal * 1.7, f"{rate} at {nominal}, events {first}-{last}"


def covs(state: NDArray[np.void], d: int) -> Floats:
    lower = np.zeros((len(state), d, d))
    rows, columns = np.tril_indices(d)
    lower[:, rows, columns] = state["cov"]
    lower[:, columns, rows] = state["cov"]
    return lower


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    name=st.sampled_from(["level_trend_day", "all_parts", "drifting"]),
    gaps_ms=st.lists(st.integers(0, 10**10), min_size=5, max_size=60),
    values=st.lists(st.floats(width=32), min_size=60, max_size=60),
)
def test_stored_covariances_are_positive_semi_definite(
    name: str, gaps_ms: list[int], values: list[float]
) -> None:
    component = next(case for case in CASES if case.name == name).make()
    d = len(component.parameters.loading)
    n = len(gaps_ms)
    events = events_of(START_MS + np.cumsum(gaps_ms), np.array(values[:n]))
    state = np.zeros(1, component.state)
    for i in range(n):
        walk(component, events.take(slice(i, i + 1)), state=state)
        cov = covs(state, d)[0]
        assert np.isfinite(cov).all()
        scale = np.sqrt(np.maximum(np.diag(cov), 1e-30))
        assert np.linalg.eigvalsh(cov / np.outer(scale, scale)).min() >= -1e-12


def test_bad_specs_are_refused() -> None:
    for make, message in (
        (lambda: StructuralSpec(interval_s=0.0), "interval_s: expected a finite number above 0"),
        (lambda: StructuralSpec(clock="days"), "clock: expected"),  # type: ignore[arg-type]
        (lambda: StructuralSpec(level=Level(-1.0)), "level.noise_var: expected"),
        (lambda: StructuralSpec(level=Level(mean=math.nan)), "level.mean: expected"),
        (lambda: StructuralSpec(seasons=(Season(60.0, 0),)), "season.harmonics: expected"),
        (
            lambda: StructuralSpec(seasons=(Season(100.0, 1), Season(200.0, 2))),
            "expected each frequency once, found a period of 100 s twice",
        ),
        (
            lambda: StructuralSpec(autoregression=Autoregression(())),
            "autoregression.coefficients: expected at least one",
        ),
        (
            lambda: StructuralSpec(autoregression=Autoregression((1.0,))),
            "expected a stationary process",
        ),
        (lambda: StructuralSpec(noise=Noise(learns=False)), "expected noise.var where"),
        (lambda: StructuralSpec(noise=Noise(1.0, prior_events=900)), "expected at most memory"),
        (lambda: StructuralSpec(seasons=(Season(60.0, 16),)), "expected at most 32 states"),
        (lambda: StructuralSpec(regressors=(weekend(), weekend())), "expected each name once"),
        (lambda: structural(replace(PLAIN, level=Level(mean=0.0, var=1e6))), "single precision"),
        (lambda: Regressor("r", "day", ()), "regressor r: expected finite values"),
        (lambda: Regressor("r", "hour_of_week", (1.0,)), "expected 168 values, found 1"),
        (lambda: Regressor("r", "week", (1.0,)), "expected by"),  # type: ignore[arg-type]
        (lambda: weekend(var=-1.0), "regressor weekend, var: expected"),
        (lambda: pay_day(32), "pay_day: expected a day of 1..31"),
        (lambda: on_days("holidays", []), "expected at least one day, found none"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_the_calendar() -> None:
    def at(day: date) -> datetime:
        return datetime(day.year, day.month, day.day, 13, tzinfo=UTC)

    paid = pay_day(31, 1)
    days = [date(2026, 2, 27), date(2026, 2, 28), date(2026, 3, 1), date(2026, 3, 2)]
    assert [regressor_value(paid, at(day)) for day in days] == [0.0, 1.0, 1.0, 0.0]
    assert regressor_value(weekend(), at(date(2026, 1, 9))) == 0.0
    assert regressor_value(weekend(), at(date(2026, 1, 11))) == 1.0
    holiday = on_days("holidays", [date(2026, 12, 25), date(2026, 1, 1)])
    assert regressor_value(holiday, at(date(2026, 12, 25))) == 1.0
    assert regressor_value(holiday, at(date(2026, 12, 24))) == 0.0
    assert regressor_value(holiday, at(date(2030, 1, 1))) == 0.0


def test_a_regressor_is_learned() -> None:
    """A weekend that is 6 higher, after some weeks of hourly values."""
    rng = np.random.default_rng(12)
    times = START_MS + np.arange(24 * 7 * 8) * 3_600_000
    off = (times // 86_400_000 + 3) % 7 >= 5
    value = 50.0 + 6.0 * off + rng.normal(0, 1, len(times))
    spec = StructuralSpec(
        level=Level(1e-4), interval_s=3600.0, regressors=(weekend(var=100.0),), noise=Noise()
    )
    _, state = walk(structural(spec), events_of(times, value))
    assert state["mean"][0, 1] == pytest.approx(6.0, abs=0.7)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.compiled
def test_single_precision_scores_as_double_does(name: str) -> None:
    events = measurements(13, 3_000)
    single, _ = walk(structural(SPECS[name]), events)
    double, _ = walk(structural(SPECS[name], precision="double"), events)
    np.testing.assert_allclose(single[:, SURPRISE], double[:, SURPRISE], rtol=0.02, atol=0.02)
