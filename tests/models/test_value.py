"""Conjugate values, their tail and attack episodes against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from models.baselines.episodes import (
    LOG_ODDS_LIMIT,
    EpisodesParameters,
    episode_step,
    episodes_component,
    log_t_density,
)
from models.baselines.exceedance import ExceedanceParameters, exceedance_component
from models.baselines.value import ValueParameters, value_component, value_predict, value_update
from tests.models.component_cases import events_of, walk

PRIOR = ValueParameters(3.0, 0.7, 2.5, 4.0, 1.0, math.inf, 1e-9)
EPISODES = EpisodesParameters(3.0, 0.7, 20.0, 20.0, 1e-9, 0.01, 0.1, 0.3, 6.0)


def test_posterior_is_the_closed_form_of_the_batch() -> None:
    """Gelman et al., 3.3: the posterior after n values from their mean and sum of squares."""
    y = np.random.default_rng(1).normal(5.0, 2.0, 300)
    out, state = walk(value_component(PRIOR), events_of(np.arange(300), y))
    n, mean = len(y), y.mean()
    after = PRIOR.mean_events + n
    scale = PRIOR.scale + 0.5 * np.sum((y - mean) ** 2)
    scale += 0.5 * PRIOR.mean_events * n / after * (mean - PRIOR.mean) ** 2
    assert state["events"][0] == pytest.approx(after, rel=1e-12)
    assert state["mean"][0] == pytest.approx(
        (PRIOR.mean_events * PRIOR.mean + n * mean) / after, rel=1e-8
    )
    assert state["shape"][0] == pytest.approx(PRIOR.shape + n / 2, rel=1e-12)
    assert state["scale"][0] == pytest.approx(scale, rel=1e-8)
    assert np.isfinite(out).all()


def test_prediction_is_the_posterior_student_t() -> None:
    y = np.random.default_rng(2).normal(5.0, 2.0, 20)
    posterior = (PRIOR.mean, PRIOR.mean_events, PRIOR.shape, PRIOR.scale)
    out, _ = walk(value_component(PRIOR), events_of(np.arange(20), y))
    for i, value in enumerate(y):
        mean, events, shape, scale = posterior
        spread = math.sqrt(scale / shape * (1.0 + 1.0 / events))
        level, found_spread, dof = value_predict(*posterior, PRIOR.var_floor)
        assert (level, found_spread, dof) == pytest.approx((mean, spread, 2.0 * shape), rel=1e-12)
        t = abs(value - mean) / spread
        two_sided = -math.log(2.0 * stats.t.sf(t, 2.0 * shape))
        upper = -stats.t.logsf((value - mean) / spread, 2.0 * shape)
        assert out[i] == pytest.approx([two_sided, upper, mean, spread], rel=1e-6, abs=1e-6)
        posterior = value_update(value, *posterior, PRIOR)


def test_one_outlier_moves_a_clipped_level_by_its_bound_only() -> None:
    p = PRIOR._replace(clip=3.0)
    mean, events, shape, scale = 5.0, 50.0, 30.0, 30.0
    _, spread, _ = value_predict(mean, events, shape, scale, p.var_floor)
    moved, *_ = value_update(1e6, mean, events, shape, scale, p)
    assert moved == pytest.approx(5.0 + 3.0 * spread / 51.0, rel=1e-12)


def test_the_discount_bounds_the_memory() -> None:
    p = PRIOR._replace(discount=0.98)
    y = np.random.default_rng(3).normal(0.0, 1.0, 2000)
    _, state = walk(value_component(p), events_of(np.arange(2000), y))
    assert state["events"][0] == pytest.approx(50.0, rel=1e-9)
    assert state["shape"][0] == pytest.approx(25.0, rel=1e-9)


@pytest.mark.parametrize(
    "change",
    [{"mean": math.nan}, {"shape": 0.0}, {"discount": 0.0}, {"discount": 1.1}, {"clip": -1.0}],
)
def test_settings_out_of_range_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="value: expected a finite mean"):
        value_component(PRIOR._replace(**change))


def test_the_tail_is_lomax() -> None:
    p = ExceedanceParameters(0.9, 10.0, 3.0, 6.0, 100.0, 1.0)
    component = exceedance_component(p)
    for y in (10.5, 17.0, 400.0):
        out, state = walk(component, events_of(np.zeros(1, np.int64), np.array([y])))
        wanted = -math.log(0.1) - stats.lomax.logsf(y - 10.0, 3.0, scale=6.0)
        assert out[0, 0] == pytest.approx(wanted, rel=1e-6)
        assert state["shape"][0] == 4.0
        assert state["rate"][0] == pytest.approx(6.0 + min(y - 10.0, 20.0), rel=1e-12)
    out, state = walk(component, events_of(np.zeros(1, np.int64), np.array([9.0])))
    assert out[0].tolist() == [0.0, 10.0]
    assert state["shape"][0] == 3.0


def test_the_threshold_finds_its_quantile() -> None:
    p = ExceedanceParameters(0.98, 1.0, 2.0, 2.0, 5000.0, 1.0)
    y = np.random.default_rng(4).normal(100.0, 10.0, 100_000)
    _, state = walk(exceedance_component(p), events_of(np.arange(100_000), y))
    assert state["threshold"][0] == pytest.approx(stats.norm.ppf(0.98, 100.0, 10.0), abs=1.0)


def test_a_tail_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="tail: expected a quantile"):
        exceedance_component(ExceedanceParameters(1.0, 10.0, 3.0, 6.0, 100.0, 1.0))


@pytest.mark.parametrize("t", [-4.0, 0.0, 2.5])
def test_density_of_student_t(t: float) -> None:
    assert log_t_density(t, 7.0) == pytest.approx(stats.t.logpdf(t, 7.0), rel=1e-12)


def test_episodes_are_filtered_as_the_dense_chain() -> None:
    """Forward algorithm over (at ease; under attack, own; under attack, the attacker's)."""
    rng = np.random.default_rng(5)
    log_own, log_theirs = rng.normal(-1.0, 1.0, 60), rng.normal(-2.0, 2.0, 60)
    p = EPISODES
    attack = 0.2
    dense = np.array([0.8, 0.2 * (1.0 - p.share), 0.2 * p.share])
    for own, theirs in zip(log_own, log_theirs, strict=True):
        under = dense[1] + dense[2]
        now = under * (1.0 - p.end) + (1.0 - under) * p.onset
        dense = np.array([1.0 - now, now * (1.0 - p.share), now * p.share])
        dense *= np.exp([own, own, theirs])
        dense /= dense.sum()
        _, attack, log_odds = episode_step(attack, own, theirs, p)
        assert attack == pytest.approx(dense[1] + dense[2], rel=1e-8)
        assert log_odds == pytest.approx(math.log(dense[2] / (dense[0] + dense[1])), rel=1e-8)


def test_an_attack_makes_moderate_values_suspicious_and_is_not_learned() -> None:
    rng = np.random.default_rng(6)
    calm = rng.normal(10.0, 1.0, 200)
    component = episodes_component(EPISODES)
    alone, _ = walk(component, events_of(np.arange(201), np.append(calm, 13.0)))
    y = np.concatenate([calm, [50.0, 10.0, 13.0]])
    out, state = walk(component, events_of(np.arange(203), y))
    assert 40.0 < out[200, 0] <= LOG_ODDS_LIMIT
    assert out[202, 0] > alone[200, 0] + 3.0
    assert state["mean"][0] == pytest.approx(calm.mean(), abs=0.1)


def test_a_missing_value_has_no_odds() -> None:
    out, _ = walk(episodes_component(EPISODES), events_of(np.arange(2), np.array([3.0, np.nan])))
    assert math.isnan(out[1, 0])
    assert out[1, 1] == out[0, 1]


def test_episodes_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="episodes: expected a finite mean"):
        episodes_component(EPISODES._replace(share=1.0))
