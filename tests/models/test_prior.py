"""The prior: files that come back, and fits that find what the data were made with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.baselines.renewal import HOUR_MS, HOURS
from models.prior import LEVEL_NOISE, KindPrior, Prior, Tail, load_prior, save_prior
from models.prior_fit import TAIL_CLUSTERS, fit_kind, fit_profile, fit_tail

MONDAY_MS = 1_767_571_200_000


def test_a_prior_comes_back(tmp_path: Path) -> None:
    prior = Prior(
        {
            "user": KindPrior(
                value_mean=7.5,
                gap_mean=-1.25,
                profile=tuple(1.0 + h / HOURS for h in range(HOURS)),
                tails={"burst": Tail(-3.5, 0.25)}, degraded_tails={"amount": Tail(1.0, 0.5)},
            ),
            "default": KindPrior(),
        }
    )  # fmt: skip
    path = tmp_path / "prior.json"
    save_prior(prior, path)
    assert load_prior(path) == prior


def test_kinds_that_were_not_fitted_take_the_default() -> None:
    fitted, default = KindPrior(value_mean=1.0), KindPrior(value_mean=2.0)
    assert Prior({"user": fitted, "default": default}).of("user") == fitted
    assert Prior({"user": fitted, "default": default}).of("shop") == default
    assert Prior({"user": fitted}).of("shop") == KindPrior()


def test_an_uncalibrated_detector_takes_its_surprise_at_half() -> None:
    prior = KindPrior(tails={"burst": Tail(-1.0, 0.8)})
    assert prior.tail("burst", degraded=False) == Tail(-1.0, 0.8)
    assert prior.tail("burst", degraded=True) == Tail(0.0, 0.5)
    assert prior.tail("mark", degraded=False) == Tail(0.0, 0.5)


def test_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prior.json"
    path.write_text(json.dumps({"version": 99, "kinds": {}}))
    with pytest.raises(ValueError, match="prior.json: expected prior version 2, found 99; fit"):
        load_prior(path)


def test_a_short_profile_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prior.json"
    save_prior(Prior({"user": KindPrior(profile=(1.0, 2.0))}), path)
    with pytest.raises(ValueError, match="kind user: expected a profile of 168 hours, found 2"):
        load_prior(path)


# -- moments ---------------------------------------------------------------------------------------

VALUE = (7.0, 1.5, 0.6)  # mean, sd between entities, sd within
GAP = (5.0, 1.0, 0.8)


def simulated(entities: int = 300, events: int = 60) -> tuple[NDArray[np.int64], ...]:
    """Return entity, time and value of a stream made from the model itself."""
    rng = np.random.default_rng(5)
    who, when, what = [], [], []
    for entity in range(entities):
        gap_mean = rng.normal(GAP[0], GAP[1])
        gaps_s = np.exp(rng.normal(gap_mean, GAP[2], events))
        when.append(MONDAY_MS + np.cumsum(1000 * gaps_s).astype(np.int64))
        what.append(rng.normal(rng.normal(VALUE[0], VALUE[1]), VALUE[2], events))
        who.append(np.full(events, entity))
    order = np.argsort(np.concatenate(when), kind="stable")
    return tuple(np.concatenate(column)[order] for column in (who, when, what))


def test_fit_kind_finds_what_the_stream_was_made_with() -> None:
    entity, time_ms, value = simulated()
    early = time_ms < MONDAY_MS + 160 * HOUR_MS  # under a week: the profile stays flat
    entity, time_ms, value = entity[early], time_ms[early], value[early]
    value = np.where(np.random.default_rng(1).random(len(value)) < 0.05, np.nan, value)
    prior = fit_kind(entity, time_ms, value.astype(np.float64))
    assert prior.profile == (1.0,) * HOURS
    assert prior.value_mean == pytest.approx(VALUE[0], abs=0.3)
    assert prior.value_between_var == pytest.approx(VALUE[1] ** 2, rel=0.25)
    assert prior.value_within_var == pytest.approx(VALUE[2] ** 2, rel=0.05)
    assert prior.gap_mean == pytest.approx(GAP[0], abs=0.2)
    assert prior.gap_between_var == pytest.approx(GAP[1] ** 2, rel=0.25)
    assert prior.gap_within_var == pytest.approx(GAP[2] ** 2, rel=0.06)
    assert prior.partner_mean == 1.0
    assert prior.tails == {}


def test_a_stream_without_values_has_a_plain_value_prior() -> None:
    entity, time_ms, _ = simulated(20, 20)
    prior = fit_kind(entity, time_ms, np.full(len(entity), np.nan))
    assert (prior.value_mean, prior.value_between_var, prior.value_within_var) == (0.0, 1.0, 1.0)


def test_partners_are_counted_by_two_windows() -> None:
    window_ms = 1000
    times = np.array([0, 500, 1500, 1999, 2000, 2500] * 2, np.int64)
    entity = np.array([1] * 6 + [2] * 6, np.int64)
    partner = np.array([1, 2, 3, 1, 9, 9, 5, 5, 5, 5, 5, 5], np.int64)
    order = np.argsort(times, kind="stable")
    prior = fit_kind(entity[order], times[order], np.zeros(12), partner[order], window_ms)
    assert prior.partner_mean == pytest.approx((3 + 1 + 1 + 1) / 4)


def test_too_short_a_stream_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 entities with 5 events each .* found 1; give"):
        fit_kind(np.array([1] * 8 + [2] * 3), np.arange(11) * 1000, np.zeros(11))


# -- profile ---------------------------------------------------------------------------------------


def test_the_profile_finds_day_and_night() -> None:
    rng = np.random.default_rng(6)
    hours = rng.integers(0, 8 * HOURS, 400_000)
    keep = rng.random(len(hours)) < np.where(hours % 24 < 8, 0.2, 1.0)
    time_ms = np.sort(MONDAY_MS + hours[keep] * HOUR_MS + rng.integers(0, HOUR_MS, keep.sum()))
    profile = np.array(fit_profile(time_ms))
    assert profile.mean() == pytest.approx(1.0, abs=1e-3)
    by_hour = profile.reshape(7, 24)
    assert by_hour[:, 3].mean() / by_hour[:, 15].mean() == pytest.approx(0.2, rel=0.1)


def test_an_hour_without_events_still_passes() -> None:
    hours = np.arange(0, 3 * HOURS)
    hours = hours[(hours % 24 < 3) | (hours % 24 > 6)]
    profile = np.array(fit_profile(MONDAY_MS + hours * HOUR_MS))
    assert profile.min() == pytest.approx(0.05, rel=0.1)


def test_less_than_a_week_gives_a_flat_profile() -> None:
    assert fit_profile(np.array([MONDAY_MS, MONDAY_MS + 100 * HOUR_MS])) == (1.0,) * HOURS
    assert fit_profile(np.zeros(0, np.int64)) == (1.0,) * HOURS


# -- tails -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.3, 0.6, 0.9])
def test_fit_tail_recovers_the_slope_of_exponential_data(rate: float) -> None:
    rng = np.random.default_rng(7)
    n = 200_000
    surprise = rng.exponential(1.0 / rate, n).astype(np.float32)
    tail = fit_tail(surprise, np.arange(n))
    # Two hundred maxima: a standard error of 7%, and the lesser of two estimates.
    assert 0.72 * rate < tail.slope <= 1.05 * rate
    # Where the tail begins, 200 of 200,000 lie beyond: there the fit is exact.
    start = np.sort(surprise)[-TAIL_CLUSTERS - 1]
    assert tail.offset - tail.slope * start == pytest.approx(np.log(TAIL_CLUSTERS / n), abs=1e-3)


def test_a_surprise_is_never_taken_for_more_than_it_says() -> None:
    surprise = np.random.default_rng(8).exponential(0.2, 50_000).astype(np.float32)
    assert fit_tail(surprise, np.arange(50_000)).slope == 1.0
    assert fit_tail(surprise, np.arange(50_000), steepest=2.0).slope == 2.0


def test_a_cluster_counts_once() -> None:
    """An entity's day of high CUSUMs raises one alert, not one for each event."""
    rng = np.random.default_rng(9)
    top = rng.exponential(2.0, 2000).astype(np.float32)
    once = fit_tail(np.repeat(top, 20), np.repeat(np.arange(2000), 20))
    single = np.zeros(40_000, np.float32)
    single[::20] = top
    assert once == fit_tail(single, np.repeat(np.arange(2000), 20))


def test_a_tail_heavier_than_exponential_gets_a_flatter_slope() -> None:
    rng = np.random.default_rng(10)
    light = rng.exponential(2.0, 50_000)
    heavy = np.where(rng.random(50_000) < 0.001, light * 8.0, light)
    which = np.arange(50_000)
    assert (
        fit_tail(heavy.astype(np.float32), which).slope
        < 0.65 * fit_tail(light.astype(np.float32), which).slope
    )


def test_too_few_events_or_no_tail_at_all() -> None:
    assert fit_tail(np.zeros(100, np.float32), np.arange(100)) == Tail(0.0, 0.5)
    assert fit_tail(np.zeros(30_000, np.float32), np.arange(30_000)) == Tail(0.0, 1.0)
    assert fit_tail(np.ones(30_000, np.float32), np.zeros(30_000, np.int64)) == Tail(0.0, 1.0)


def test_trimmed_maxima_change_nothing_on_clean_data_and_guard_against_anomalies() -> None:
    clean, guarded, spoiled = [], [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        surprise = rng.exponential(2.0, 100_000).astype(np.float32)
        which = np.arange(100_000)
        clean.append(fit_tail(surprise, which).slope)
        guarded.append(fit_tail(surprise, which, trimmed=20).slope)
        surprise[:15] = 40.0  # anomalies
        spoiled.append(
            (fit_tail(surprise, which).slope, fit_tail(surprise, which, trimmed=20).slope)
        )
    assert np.mean(guarded) == pytest.approx(0.5, rel=0.08)
    assert np.mean(guarded) == pytest.approx(np.mean(clean), rel=0.08)
    # What is trimmed for nothing counts as normal at the far end, so some sharpness is lost.
    assert np.mean([blind for blind, _ in spoiled]) < 0.2
    assert np.mean([sharp for _, sharp in spoiled]) == pytest.approx(0.5, rel=0.3)


def test_too_much_cannot_be_trimmed() -> None:
    with pytest.raises(ValueError, match="expected to trim 0 to 99 maxima, found 100"):
        fit_tail(np.zeros(30_000, np.float32), np.arange(30_000), trimmed=100)


def test_a_file_of_version_1_is_read(tmp_path: Path) -> None:
    """As `eddy train` wrote it before priors were fitted from streams."""
    path = tmp_path / "prior.json"
    tails = {"burst": {"offset": -3.5, "slope": 0.25}}
    fields = {
        "value_mean": 8.25, "value_between_var": 0.25, "value_within_var": 0.5,
        "gap_mean": 8.0, "gap_between_var": 0.75, "gap_within_var": 5.0,
        "partner_mean": 1.5, "profile": [1.0] * HOURS, "tails": tails, "degraded_tails": {},
    }  # fmt: skip
    path.write_text(json.dumps({"version": 1, "kinds": {"user": fields}}))
    prior = load_prior(path)
    user = prior.of("user")
    assert (user.value_mean, user.partner_mean) == (8.25, 1.5)
    assert user.tails == {"burst": Tail(-3.5, 0.25)}
    assert (user.level_noise, user.value_pit, user.gap_pit) == (LEVEL_NOISE, (), ())
    assert prior.origin == {}
    save_prior(prior, path)
    assert load_prior(path) == prior


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value_within_var": 0.0}, "expected a number above 0 as value_within_var, found 0.0"),
        ({"gap_mean": float("nan")}, "expected a finite number as gap_mean, found nan"),
        ({"level_noise": "much"}, "expected a finite number as level_noise, found much"),
        ({"tails": {"burst": {"offset": 0.0, "slope": float("inf")}}}, "finite number as tails"),
        ({"value_pit": [0.5, 0.5]}, "expected a value_pit of 20 parts, found 2; fit"),
        ({"colour": 1}, "unexpected keyword argument 'colour'; fit the prior again"),
    ],
)
def test_a_prior_with_broken_numbers_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "prior.json"
    save_prior(Prior({"user": KindPrior()}), path)
    body = json.loads(path.read_text())
    body["kinds"]["user"] |= change
    path.write_text(json.dumps(body))
    with pytest.raises(ValueError, match=message):
        load_prior(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="expected prior version 2, found None"):
        load_prior(path)
