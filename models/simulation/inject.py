"""The payments of the anomalies that add some: takeover, card testing, bots, shared devices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.simulation.behaviour import (
    choose_amounts,
    choose_channels,
    choose_devices,
    choose_merchants,
)
from models.simulation.payments import (
    APP,
    ECOM,
    Payments,
    device_name,
    merchant_name,
    user_name,
)
from models.simulation.plan import Cast, Target
from models.simulation.population import Population

TAKEOVER_PAYMENTS = (8, 40)
TAKEOVER_FACTOR = (5.0, 20.0)
TAKEOVER_MERCHANTS = (3, 10)
TESTING_PAYMENTS = (60, 300)
TESTING_AMOUNT = (50, 300)
TESTING_DEVICES = (2, 6)
# Users per payment, and the share of them that nobody has seen before.
TESTING_USERS = (0.6, 1.0)
TESTING_NEW_USERS = 0.7
BOT_PAYMENTS = (40, 150)
BOT_PERIOD_S = (5.0, 120.0)
BOT_JITTER = (0.01, 0.03)
SHARING_USERS = (12, 40)


# A merchant takes part in an anomaly that is not its own from so many payments of it on.
HIT_PAYMENTS = 3


@dataclass(frozen=True, slots=True)
class Injection:
    """The payments of one anomaly in event-time order, and who else takes part."""

    payments: Payments
    involved: tuple[tuple[str, str], ...]


def inject(
    target: Target, number: int, people: Population, cast: Cast, rng: np.random.Generator
) -> Injection:
    """Draw the payments of an anomaly, none for an outage or a drift.

    Args:
        target: what happens to whom.
        number: the anomaly's index, written beside each payment (never encoded).
        people: the population.
        cast: who has an anomaly: no payment is made at a merchant that has one of its own, but
            the target; gives new users and devices, and is changed by that.
        rng: the anomaly's own random numbers.
    """
    makers = {
        "takeover": _takeover,
        "card_testing": _card_testing,
        "bot_timing": _bot_timing,
        "shared_device": _shared_device,
    }
    if target.kind not in makers:
        return Injection(Payments.none(), ())
    made = makers[target.kind](target, people, cast, rng)
    payments = made.payments.by_time()
    payments.anomaly[:] = number
    return Injection(payments, made.involved + _hit_merchants(target, payments))


def _hit_merchants(target: Target, payments: Payments) -> tuple[tuple[str, str], ...]:
    """Return the merchants that an anomaly of another entity pays several times."""
    merchants, counts = np.unique(payments.merchant, return_counts=True)
    hit = merchants[counts >= HIT_PAYMENTS].tolist()
    return tuple(
        ("merchant", merchant_name(one))
        for one in hit
        if target.entity_kind != "merchant" or one != target.entity
    )


def _times(target: Target, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return times, int64[count], ascending, anywhere in the target's stretch."""
    span = target.end_ms - target.begin_ms
    return np.sort(target.begin_ms + (rng.random(count) * span).astype(np.int64))


def _log_uniform(low: float, high: float, rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _free_merchants(
    people: Population, cast: Cast, excluded: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the merchants without an anomaly of their own, less the excluded where it can be."""
    merchants = np.arange(len(people.popularity_cdf))
    free = merchants[~np.isin(merchants, list(cast.merchants))]
    if not len(free):
        raise ValueError("simulation.merchants: all have an anomaly; simulate more merchants")
    rest = free[~np.isin(free, excluded)]
    return rest if len(rest) else free


def _usual_merchants(
    people: Population, cast: Cast, user: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw merchants as the users would, but for those with an anomaly of their own."""
    merchant = choose_merchants(people, user, rng)
    free = _free_merchants(people, cast, np.zeros(0, np.int64))
    other = free[rng.integers(0, len(free), len(user))]
    return np.where(np.isin(merchant, list(cast.merchants)), other, merchant)


def _takeover(
    target: Target, people: Population, cast: Cast, rng: np.random.Generator
) -> Injection:
    """Pay large sums fast, with a new device, at merchants that the user does not frequent.

    The amount is what the user would pay there, times one factor of 5 to 20 for the anomaly.
    """
    count = int(rng.integers(TAKEOVER_PAYMENTS[0], TAKEOVER_PAYMENTS[1] + 1))
    user = np.full(count, target.entity, np.int64)
    unusual = _free_merchants(people, cast, people.favourites[target.entity])
    few = rng.choice(unusual, int(rng.integers(TAKEOVER_MERCHANTS[0], TAKEOVER_MERCHANTS[1] + 1)))
    merchant = rng.choice(few, count)
    factor = _log_uniform(*TAKEOVER_FACTOR, rng)
    device = cast.new_device(target.entity)
    payments = Payments.of(
        _times(target, count, rng),
        user,
        merchant,
        np.full(count, device, np.int64),
        choose_amounts(people, user, merchant, rng) * factor,
        people.currency[user],
        np.where(rng.random(count) < 0.8, ECOM, APP),
    )
    return Injection(payments, (("device", device_name(device)),))


def _card_testing(
    target: Target, people: Population, cast: Cast, rng: np.random.Generator
) -> Injection:
    """Try many cards with small sums at one merchant, from a handful of new devices."""
    count = int(rng.integers(TESTING_PAYMENTS[0], TESTING_PAYMENTS[1] + 1))
    cards = int(np.ceil(count * rng.uniform(*TESTING_USERS)))
    rare = np.flatnonzero(people.activity <= np.median(people.activity))
    rare = rare[~np.isin(rare, list(cast.users))]
    known = rng.permutation(rare)[: cards - round(cards * TESTING_NEW_USERS)]
    users = rng.permutation(np.concatenate([known, cast.new_users(cards - len(known))]))
    # Each card at least once; the rest are second tries.
    user = np.concatenate([users, rng.choice(users, count - cards)])
    user = rng.permutation(user)
    owners = rng.integers(0, len(people.activity), int(rng.integers(*TESTING_DEVICES) + 1))
    devices = np.array([cast.new_device(int(owner)) for owner in owners], np.int64)
    device = rng.choice(devices, count)
    payments = Payments.of(
        _times(target, count, rng),
        user,
        np.full(count, target.entity, np.int64),
        device,
        rng.integers(TESTING_AMOUNT[0], TESTING_AMOUNT[1] + 1, count).astype(np.float64),
        people.currency[np.minimum(user, len(people.currency) - 1)],
        np.full(count, ECOM, np.int64),
    )
    involved = [("device", device_name(int(one))) for one in np.unique(device)]
    involved += [("user", user_name(int(one))) for one in np.unique(user)]
    return Injection(payments, tuple(involved))


def _bot_timing(
    target: Target, people: Population, cast: Cast, rng: np.random.Generator
) -> Injection:
    """Pay usual sums at one usual merchant, like clockwork."""
    count = int(rng.integers(BOT_PAYMENTS[0], BOT_PAYMENTS[1] + 1))
    period_s, jitter = _log_uniform(*BOT_PERIOD_S, rng), rng.uniform(*BOT_JITTER)
    gap_s = period_s * (1 + jitter * rng.standard_normal(count))
    time_ms = target.begin_ms + np.rint(np.cumsum(gap_s) * 1_000).astype(np.int64)
    user = np.full(count, target.entity, np.int64)
    merchant = np.full(count, _usual_merchants(people, cast, user[:1], rng)[0])
    device = np.full(count, choose_devices(people, user[:1], time_ms[:1], rng)[0])
    payments = Payments.of(
        time_ms,
        user,
        merchant,
        device,
        choose_amounts(people, user, merchant, rng),
        people.currency[user],
        np.full(count, choose_channels(people, user[:1], rng)[0]),
    )
    return Injection(payments, (("device", device_name(int(device[0]))),))


def _shared_device(
    target: Target, people: Population, cast: Cast, rng: np.random.Generator
) -> Injection:
    """Let 12 to 40 users pay one to three times each with the same device, as they usually do."""
    there = np.flatnonzero(people.arrival_ms <= target.begin_ms)
    there = there[~np.isin(there, list(cast.users))]
    wanted = int(rng.integers(SHARING_USERS[0], SHARING_USERS[1] + 1))
    if len(there) < SHARING_USERS[0]:
        raise ValueError(
            f"simulation.users: a shared device needs {SHARING_USERS[0]}, found {len(there)}"
        )
    users = rng.permutation(there)[:wanted]
    user = rng.permutation(np.repeat(users, rng.integers(1, 4, len(users))))
    merchant = _usual_merchants(people, cast, user, rng)
    payments = Payments.of(
        _times(target, len(user), rng),
        user,
        merchant,
        np.full(len(user), target.entity, np.int64),
        choose_amounts(people, user, merchant, rng),
        people.currency[user],
        choose_channels(people, user, rng),
    )
    return Injection(payments, tuple(("user", user_name(int(u))) for u in np.sort(users)))
