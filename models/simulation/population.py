"""The people of a simulated world: who they are before anything happens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.simulation.config import SimulationConfig
from models.simulation.cycle import (
    STEP_S,
    pay_day_factor,
    step_of_week,
    weekly_profile,
)
from models.simulation.payments import CURRENCIES, DEVICES_PER_OWNER

FAVOURITES = 8
# Share of payments at a merchant that is none of the user's favourites.
EXPLORING = 0.12
ACTIVITY_SIGMA = 1.1
ACTIVITY_MAX = 15.0
NIGHT_OWLS = 0.05
HOUSEHOLDS = 0.10
NEW_DEVICES = 0.10
# Clocks of the users in whole hours ahead of the population's, for sums over many users.
CLOCKS = np.arange(-6, 18)

# Typical amount of a merchant's category, minor units: groceries, fuel, restaurants, fashion,
# electronics, travel, digital goods, health.
_CATEGORY_AMOUNT = np.array([3_500, 5_000, 2_600, 5_500, 9_000, 14_000, 1_300, 2_200])
_CATEGORY_SHARE = np.array([0.22, 0.10, 0.20, 0.14, 0.08, 0.06, 0.12, 0.08])

# A device number of 4 is the one bought during the run; anomalies take from 5 on.
BOUGHT_DEVICE = 4
FIRST_FREE_DEVICE = 5


@dataclass(frozen=True, slots=True)
class Subscriptions:
    """s recurring payments.

    Attributes:
        user, merchant: int64[s].
        day: int64[s], 1 to 28 for a day of the month, -1 to -7 for Monday to Sunday.
        second: int64[s], second of the day (UTC) at which it is charged, give or take minutes.
        amount: float64[s], minor units: the same each time.
    """

    user: NDArray[np.int64]
    merchant: NDArray[np.int64]
    day: NDArray[np.int64]
    second: NDArray[np.int64]
    amount: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Population:
    """U users and M merchants.

    Attributes:
        activity: float64[U], each user's share of all payments, sum 1, heavy-tailed.
        arrival_ms: int64[U], when the user first exists; the start but for newcomers.
        shift_s: int64[U], by how much the user's clock runs ahead of the population's.
        log_level: float64[U], the user's departure from a merchant's usual log amount.
        currency: uint8[U].
        channel_cdf: float64[U, 4], over ecom, pos, app, transfer.
        favourites: int64[U, FAVOURITES], merchants, the dearest first.
        favourite_cdf: float64[U, FAVOURITES].
        devices: int64[U, 3], owner * 256 + number; some belong to someone else as well.
        device_cdf: float64[U, 3].
        purchase_ms: int64[U], when a new device takes the first one's place; end of time if never.
        popularity_cdf: float64[M], Zipf-like.
        merchant_log_amount: float64[M], usual log of the amount.
        merchant_sigma: float64[M], scatter of the log amount for one user.
        subscriptions: recurring payments.
        profile: float64[2016], the population's week.
        scale: payments per second of the whole population where profile and pay-day are 1, so
            that the span's mean is the rate asked for.
    """

    activity: NDArray[np.float64]
    arrival_ms: NDArray[np.int64]
    shift_s: NDArray[np.int64]
    log_level: NDArray[np.float64]
    currency: NDArray[np.uint8]
    channel_cdf: NDArray[np.float64]
    favourites: NDArray[np.int64]
    favourite_cdf: NDArray[np.float64]
    devices: NDArray[np.int64]
    device_cdf: NDArray[np.float64]
    purchase_ms: NDArray[np.int64]
    popularity_cdf: NDArray[np.float64]
    merchant_log_amount: NDArray[np.float64]
    merchant_sigma: NDArray[np.float64]
    subscriptions: Subscriptions
    profile: NDArray[np.float64]
    scale: float


def populate(config: SimulationConfig, rng: np.random.Generator) -> Population:
    """Draw the users, merchants, devices and subscriptions of a world."""
    users, profile = config.users, weekly_profile()
    activity = np.minimum(np.exp(rng.normal(0, ACTIVITY_SIGMA, users)), ACTIVITY_MAX * np.exp(0.6))
    activity /= activity.sum()
    span_ms = config.end_ms - config.start_ms
    arrival_ms = np.where(
        rng.random(users) < config.newcomers,
        config.start_ms + (rng.random(users) * span_ms).astype(np.int64),
        config.start_ms,
    )
    owl = rng.random(users) < NIGHT_OWLS
    shift_h = rng.normal(0, 1.0, users) + np.where(owl, rng.uniform(9, 12, users), 0.0)
    shift_s = (shift_h * 3_600).astype(np.int64)
    popularity_cdf, merchant_log_amount, merchant_sigma = _merchants(config.merchants, rng)
    favourites, favourite_cdf = _favourites(users, popularity_cdf, rng)
    devices, device_cdf = _devices(config, rng)
    bought = rng.random(users) < NEW_DEVICES
    purchase_ms = config.start_ms + (rng.random(users) * span_ms).astype(np.int64)
    mix = rng.standard_gamma(np.array([1.6, 2.0, 1.2, 0.4]), (users, 4)) + 1e-3
    currency = rng.choice(len(CURRENCIES), users, p=[0.82, 0.07, 0.06, 0.05])
    log_level = rng.normal(0, 0.4, users)
    return Population(
        activity=activity,
        arrival_ms=arrival_ms,
        shift_s=shift_s,
        log_level=log_level,
        currency=currency.astype(np.uint8),
        channel_cdf=_cdf(mix),
        favourites=favourites,
        favourite_cdf=favourite_cdf,
        devices=devices,
        device_cdf=device_cdf,
        purchase_ms=np.where(bought, purchase_ms, np.iinfo(np.int64).max),
        popularity_cdf=popularity_cdf,
        merchant_log_amount=merchant_log_amount,
        merchant_sigma=merchant_sigma,
        subscriptions=_subscriptions(config, favourites, merchant_log_amount, log_level, rng),
        profile=profile,
        scale=config.rate_per_s / _mean_activity(config, activity, arrival_ms, shift_s, profile),
    )


def _cdf(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cumulative shares along the last axis; the last is exactly 1."""
    cdf = np.cumsum(weights, axis=-1)
    cdf /= cdf[..., -1:]
    return cdf


def _merchants(
    merchants: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return popularity_cdf, log amount and scatter of the merchants."""
    popularity = rng.permutation(1 / (np.arange(merchants) + 4.0) ** 0.8)
    category = rng.choice(len(_CATEGORY_AMOUNT), merchants, p=_CATEGORY_SHARE)
    log_amount = np.log(_CATEGORY_AMOUNT[category]) + rng.normal(0, 0.25, merchants)
    return _cdf(popularity), log_amount, rng.uniform(0.3, 0.6, merchants)


def _favourites(
    users: int, popularity_cdf: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return each user's favourite merchants, a Zipf law over 3 to 8 of them, and its cdf."""
    favourites = np.searchsorted(popularity_cdf, rng.random((users, FAVOURITES)))
    rank = np.arange(1, FAVOURITES + 1)
    weights = rank ** -rng.uniform(0.7, 1.5, (users, 1))
    weights = weights * (rank <= rng.integers(3, FAVOURITES + 1, (users, 1)))
    return favourites, _cdf(weights)


def _devices(
    config: SimulationConfig, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return each user's devices and the cdf of their use; some are shared with one other."""
    users = config.users
    devices = np.arange(users)[:, None] * DEVICES_PER_OWNER + np.arange(1, 4)
    owned = 1 + np.minimum(rng.choice(3, users, p=[0.5, 0.35, 0.15]), config.devices_per_user - 1)
    # Partners are drawn as pairs, so that a device has at most two users.
    pairs = rng.permutation(users)[: 2 * int(users * HOUSEHOLDS / 2)].reshape(-1, 2)
    devices[pairs[:, 0], owned[pairs[:, 0]] - 1] = devices[pairs[:, 1], 0]
    weights = np.where(np.arange(3) < owned[:, None], np.array([0.75, 0.2, 0.1]), 0.0)
    return devices, _cdf(weights)


def _subscriptions(
    config: SimulationConfig,
    favourites: NDArray[np.int64],
    merchant_log_amount: NDArray[np.float64],
    log_level: NDArray[np.float64],
    rng: np.random.Generator,
) -> Subscriptions:
    """Draw up to three recurring payments a user, a quarter of them weekly.

    Where a user pays less than once a day on average there are fewer, so that subscriptions
    never become most of the traffic.
    """
    payments_per_day = config.rate_per_s * 86_400 / config.users
    mean = min(1.2, payments_per_day)
    user = np.repeat(np.arange(config.users), np.minimum(rng.poisson(mean, config.users), 3))
    count = len(user)
    merchant = favourites[user, rng.integers(0, FAVOURITES, count)]
    weekly = rng.random(count) < 0.25
    noise = rng.normal(0, 0.3, count)
    amount = np.exp(merchant_log_amount[merchant] + log_level[user] + noise)
    return Subscriptions(
        user=user,
        merchant=merchant,
        day=np.where(weekly, -rng.integers(1, 8, count), rng.integers(1, 29, count)),
        second=rng.integers(2 * 3_600, 9 * 3_600, count),
        amount=np.maximum(np.rint(amount), 50),
    )


def clock_hours(shift_s: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the users' clocks in whole hours ahead, int64[U], one of CLOCKS."""
    hours = np.rint(shift_s / 3_600).astype(np.int64)
    return np.asarray(np.clip(hours, CLOCKS[0], CLOCKS[-1]), np.int64)


def _mean_activity(
    config: SimulationConfig,
    activity: NDArray[np.float64],
    arrival_ms: NDArray[np.int64],
    shift_s: NDArray[np.int64],
    profile: NDArray[np.float64],
) -> float:
    """Return the mean over the span of present activity x profile x pay-day."""
    steps = np.arange(config.start_ms, config.end_ms, STEP_S * 1_000, dtype=np.int64)
    clock, total = clock_hours(shift_s), np.zeros(len(steps))
    for hours in CLOCKS.tolist():
        of_clock = np.flatnonzero(clock == hours)
        order = of_clock[np.argsort(arrival_ms[of_clock], kind="stable")]
        arrived = np.concatenate([[0.0], np.cumsum(activity[order])])
        present = arrived[np.searchsorted(arrival_ms[order], steps, side="right")]
        ahead_s = np.full(len(steps), hours * 3_600, np.int64)
        total += present * profile[step_of_week(steps, ahead_s)]
    return float(np.mean(total * pay_day_factor(steps)))
