"""How a user of the population chooses where, with what and how much to pay."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.simulation.config import SimulationConfig
from models.simulation.cycle import pay_day_factor, step_of_week
from models.simulation.payments import DEVICES_PER_OWNER, TRANSFER
from models.simulation.population import BOUGHT_DEVICE, CLOCKS, EXPLORING, Population, clock_hours

# Now and then an amount has nothing to do with the usual: heavier tails than the log-normal.
ODD_AMOUNTS = 0.02
ODD_SIGMA = 1.2


def choose_merchants(
    people: Population, user: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw a merchant, int64[n], for each user: mostly a favourite."""
    draw = rng.random(len(user))
    slot = (people.favourite_cdf[user, :-1] < rng.random(len(user))[:, None]).sum(axis=1)
    merchant = people.favourites[user, slot]
    exploring = np.flatnonzero(draw < EXPLORING)
    # What remains of the draw is itself uniform.
    merchant[exploring] = np.searchsorted(people.popularity_cdf, draw[exploring] / EXPLORING)
    return np.asarray(merchant, np.int64)


def choose_amounts(
    people: Population,
    user: NDArray[np.int64],
    merchant: NDArray[np.int64],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Draw an amount, float64[n], minor units: log-normal about the user's level there."""
    sigma = people.merchant_sigma[merchant]
    odd = np.flatnonzero(rng.random(len(user)) < ODD_AMOUNTS)
    sigma[odd] = ODD_SIGMA
    center = people.merchant_log_amount[merchant] + people.log_level[user]
    return np.asarray(np.exp(center + sigma * rng.standard_normal(len(user))), np.float64)


def choose_devices(
    people: Population,
    user: NDArray[np.int64],
    time_ms: NDArray[np.int64],
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Draw one of the user's devices, int64[n], among those owned at that time."""
    draw = rng.random(len(user))
    cdf = people.device_cdf
    slot = (cdf[user, 0] < draw).astype(np.int64) + (cdf[user, 1] < draw)
    device = people.devices[user, slot]
    bought = np.flatnonzero((time_ms >= people.purchase_ms[user]) & (slot == 0))
    device[bought] = user[bought] * DEVICES_PER_OWNER + BOUGHT_DEVICE
    return np.asarray(device, np.int64)


def choose_channels(
    people: Population, user: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw a channel, int64[n], from the user's own mix; never a recurring one."""
    slot = (people.channel_cdf[user, :-1] < rng.random(len(user))[:, None]).sum(axis=1)
    return np.where(slot == 3, TRANSFER, slot)


def merchant_demand(people: Population, settled: bool) -> NDArray[np.float64]:
    """Return each merchant's share of the payments by its customers' clocks.

    Args:
        people: U users and M merchants.
        settled: count only users who are there from the start.

    Returns:
        float64[M, 24]: column k is the activity of customers whose clock runs about k - 6 hours
        ahead. The sum over all is 1, or less where `settled` leaves some out.
    """
    merchants = len(people.popularity_cdf)
    column = clock_hours(people.shift_s) - CLOCKS[0]
    activity = people.activity * ((people.arrival_ms == people.arrival_ms.min()) | (not settled))
    pmf = np.diff(people.favourite_cdf, axis=1, prepend=0.0) * (1 - EXPLORING) * activity[:, None]
    cell = people.favourites * len(CLOCKS) + column[:, None]
    demand = np.bincount(
        cell.ravel(), weights=pmf.ravel(), minlength=merchants * len(CLOCKS)
    ).reshape(merchants, len(CLOCKS))
    popularity = np.diff(people.popularity_cdf, prepend=0.0)
    explored = np.bincount(column, weights=activity * EXPLORING, minlength=len(CLOCKS))
    return np.asarray(demand + popularity[:, None] * explored, np.float64)


def expected_by_step(
    config: SimulationConfig, people: Population, demand: NDArray[np.float64], step_s: int
) -> NDArray[np.float64]:
    """Return the payments to expect in each step of the span, float64[steps].

    Args:
        config: the span.
        people: whose profile and scale hold.
        demand: float64[24], one row of `merchant_demand`, or a user's activity by clock.
        step_s: length of a step, seconds.
    """
    steps = np.arange(config.start_ms, config.end_ms, step_s * 1_000, dtype=np.int64)
    rate = np.zeros(len(steps))
    for hours, share in zip(CLOCKS.tolist(), demand.tolist(), strict=True):
        if share > 0:
            shift_s = np.full(len(steps), hours * 3_600, np.int64)
            rate += share * people.profile[step_of_week(steps, shift_s)]
    return np.asarray(people.scale * step_s * rate * pay_day_factor(steps), np.float64)


def user_demand(people: Population, user: int) -> NDArray[np.float64]:
    """Return one user's activity in the form of a row of `merchant_demand`."""
    demand = np.zeros(len(CLOCKS))
    column = clock_hours(people.shift_s[user : user + 1]) - CLOCKS[0]
    demand[column] = people.activity[user]
    return demand
