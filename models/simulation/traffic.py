"""Normal traffic: cycles, bursts, sales and subscriptions, one window of time after another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.simulation.behaviour import (
    choose_amounts,
    choose_channels,
    choose_devices,
    choose_merchants,
    merchant_demand,
)
from models.simulation.config import DAY_S, SimulationConfig
from models.simulation.cycle import DAY_MS, day_of_month, pay_day_factor, step_of_week
from models.simulation.payments import RECURRING, Payments
from models.simulation.population import Population

# Payments to expect in a window: enough to work in columns, few enough to begin at once.
WINDOW_PAYMENTS = 65_536

# A payment's followers: how soon, and how often at the same merchant.
SOON_S, LATER_S = 240.0, 2_400.0
LATER = 0.3
SAME_MERCHANT = 0.4

# A merchant's sale: once in two weeks, 1 to 3 hours in the day, 2 to 4 times the usual rate.
SALES_PER_DAY = 1 / 14
SALE_FACTOR = (2.0, 4.0)
SALE_HOURS = (1.0, 3.0)

_TRAFFIC_STREAM = 2


@dataclass(frozen=True, slots=True)
class Sales:
    """f flash sales: int64[f] merchant, begin_ms, length_ms; float64[f] payments on top."""

    merchant: NDArray[np.int64]
    begin_ms: NDArray[np.int64]
    length_ms: NDArray[np.int64]
    extra: NDArray[np.float64]


def plan_sales(config: SimulationConfig, people: Population, rng: np.random.Generator) -> Sales:
    """Draw when merchants hold a sale: they begin between 8 and 20 o'clock."""
    share = merchant_demand(people, settled=False).sum(axis=1)
    days = config.duration_s / DAY_S
    merchant = np.repeat(
        np.arange(config.merchants), rng.poisson(SALES_PER_DAY * days, config.merchants)
    )
    count = len(merchant)
    day = (rng.random(count) * np.ceil(days)).astype(np.int64)
    hour = rng.uniform(8, 20, count)
    length_h = rng.uniform(*SALE_HOURS, count)
    factor = rng.uniform(*SALE_FACTOR, count)
    midnight = config.start_ms // DAY_MS * DAY_MS
    return Sales(
        merchant=merchant,
        begin_ms=midnight + day * DAY_MS + (hour * 3_600_000).astype(np.int64),
        length_ms=(length_h * 3_600_000).astype(np.int64),
        extra=config.rate_per_s * share[merchant] * (factor - 1) * length_h * 3_600,
    )


def window_ms(config: SimulationConfig) -> int:
    """Return the length of a window: a function of the settings alone.

    What is drawn depends on the windows, so their length must not depend on how the payments
    are consumed.
    """
    payments = max(WINDOW_PAYMENTS, config.users)
    return 1_000 * int(np.clip(payments / config.rate_per_s, 1, DAY_S))


def normal_traffic(
    config: SimulationConfig, people: Population, sales: Sales
) -> Iterator[tuple[int, Payments]]:
    """Yield (end of the window, its normal payments in event-time order) through the span.

    Each window has its own random numbers, so that it is the same whatever comes before.
    Payments that a window sets off beyond its end wait for theirs; those past the span's end
    are left out.
    """
    length = window_ms(config)
    waiting = Payments.none()
    share = _immigrant_share(config, people)
    for number, begin in enumerate(range(config.start_ms, config.end_ms, length)):
        end = min(begin + length, config.end_ms)
        rng = np.random.Generator(
            np.random.SFC64(np.random.SeedSequence([config.seed, _TRAFFIC_STREAM, number]))
        )
        parts = [
            waiting,
            _spontaneous(config, people, share, begin, end, rng),
            _sale_payments(people, sales, begin, end, rng),
            _recurring(people, begin, end, rng),
        ]
        payments = Payments.join(parts).by_time()
        cut = int(np.searchsorted(payments.time_ms, end))
        waiting = payments.take(slice(cut, None))
        yield end, payments.take(slice(cut))


def _immigrant_share(config: SimulationConfig, people: Population) -> float:
    """Return the share of the payments that come by themselves and not from something else."""
    monthly = float((people.subscriptions.day > 0).sum())
    weekly = float((people.subscriptions.day < 0).sum())
    recurring = (monthly / 30.4 + weekly / 7) / DAY_S / config.rate_per_s
    sales = SALES_PER_DAY * (sum(SALE_FACTOR) / 2 - 1) * (sum(SALE_HOURS) / 2) / 24
    return float(max(1 - recurring - sales, 0.1) * (1 - config.branching))


def _spontaneous(
    config: SimulationConfig,
    people: Population,
    share: float,
    begin: int,
    end: int,
    rng: np.random.Generator,
) -> Payments:
    """Draw the window's own payments and all that they set off, by thinning a Poisson process."""
    ends = np.array([begin, end - 1], np.int64)
    peak = float(people.profile.max()) * float(pay_day_factor(ends).max())
    mean = people.activity * (people.scale * share * peak * (end - begin) / 1_000)
    user = np.repeat(np.arange(len(mean)), rng.poisson(mean))
    time_ms = begin + (rng.random(len(user)) * (end - begin)).astype(np.int64)
    rate = people.profile[step_of_week(time_ms, people.shift_s[user])] * pay_day_factor(time_ms)
    kept = (rng.random(len(user)) * peak < rate) & (time_ms >= people.arrival_ms[user])
    user, time_ms = user[kept], time_ms[kept]
    merchant = choose_merchants(people, user, rng)
    users, times, merchants = [user], [time_ms], [merchant]
    while len(user):
        followers = rng.poisson(config.branching, len(user))
        user, time_ms = np.repeat(user, followers), np.repeat(time_ms, followers)
        same = np.repeat(merchant, followers)
        mean_s = np.where(rng.random(len(user)) < LATER, LATER_S, SOON_S)
        time_ms = time_ms + 1 + (rng.exponential(1_000, len(user)) * mean_s).astype(np.int64)
        other = choose_merchants(people, user, rng)
        merchant = np.where(rng.random(len(user)) < SAME_MERCHANT, same, other)
        users.append(user)
        times.append(time_ms)
        merchants.append(merchant)
    return ordinary(
        people, np.concatenate(times), np.concatenate(users), np.concatenate(merchants), rng
    )


def ordinary(
    people: Population,
    time_ms: NDArray[np.int64],
    user: NDArray[np.int64],
    merchant: NDArray[np.int64],
    rng: np.random.Generator,
) -> Payments:
    """Return payments whose amount, device and channel are the user's usual ones."""
    return Payments.of(
        time_ms,
        user,
        merchant,
        choose_devices(people, user, time_ms, rng),
        choose_amounts(people, user, merchant, rng),
        people.currency[user],
        choose_channels(people, user, rng),
    )


def _sale_payments(
    people: Population, sales: Sales, begin: int, end: int, rng: np.random.Generator
) -> Payments:
    """Draw the payments of the sales that begin in the window, most of them early on."""
    now = np.flatnonzero((sales.begin_ms >= begin) & (sales.begin_ms < end))
    if not len(now):
        return Payments.none()
    sale = np.repeat(now, rng.poisson(sales.extra[now]))
    # The density falls in a straight line to zero at the end.
    at = 1 - np.sqrt(rng.random(len(sale)))
    time_ms = sales.begin_ms[sale] + (at * sales.length_ms[sale]).astype(np.int64)
    user = np.searchsorted(np.cumsum(people.activity)[:-1], rng.random(len(sale)))
    there = time_ms >= people.arrival_ms[user]
    return ordinary(people, time_ms[there], user[there], sales.merchant[sale][there], rng)


def _recurring(people: Population, begin: int, end: int, rng: np.random.Generator) -> Payments:
    """Return the subscriptions charged in the window, each within ten minutes of its second."""
    due = people.subscriptions
    parts = []
    for day in range(begin // DAY_MS, (end - 1) // DAY_MS + 1):
        of_month = int(day_of_month(np.array([day]))[0])
        of_week = -((day + 3) % 7 + 1)
        time_ms = day * DAY_MS + due.second * 1_000
        today = (due.day == of_month) | (due.day == of_week)
        which = np.flatnonzero(today & (time_ms >= begin) & (time_ms < end))
        parts.append((which, time_ms[which] + rng.integers(0, 600_000, len(which))))
    which = np.concatenate([w for w, _ in parts])
    time_ms = np.concatenate([t for _, t in parts])
    here = time_ms >= people.arrival_ms[due.user[which]]
    which, time_ms = which[here], time_ms[here]
    user = due.user[which]
    return Payments.of(
        time_ms,
        user,
        due.merchant[which],
        people.devices[user, 0],
        due.amount[which],
        people.currency[user],
        np.full(len(which), RECURRING, np.int64),
    )
