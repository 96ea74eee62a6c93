"""The day, the week and the pay-day: how a population's rate moves with time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DAY_MS = 86_400_000
STEP_S = 300
STEPS_PER_WEEK = 7 * 86_400 // STEP_S
# 1970-01-01 was a Thursday; the tables begin on a Monday.
EPOCH_WEEKDAY = 3

PAY_DAYS = (25, 26, 27, 28)
PAY_DAY_FACTOR = 1.35

_BY_HOUR = np.array(
    (
        *(0.20, 0.12, 0.08, 0.07, 0.09, 0.20, 0.45, 0.85, 1.15, 1.25, 1.30, 1.45),
        *(1.75, 1.60, 1.35, 1.35, 1.50, 1.80, 1.95, 1.75, 1.45, 1.10, 0.70, 0.40),
    )
)
_BY_WEEKDAY = np.array([0.92, 0.93, 0.96, 1.00, 1.20, 1.18, 0.81])


def weekly_profile() -> NDArray[np.float64]:
    """Return the population's rate through the week, in steps of 5 minutes, mean 1.

    Returns:
        float64[2016], from Monday 00:00 UTC; hours are joined by straight lines, so that the
        rate does not jump on the hour. Weekend mornings begin later.
    """
    hours = np.arange(24)
    later = np.interp(hours - 1.5, hours, _BY_HOUR, period=24)
    week = np.concatenate(
        [(later if day >= 5 else _BY_HOUR) * _BY_WEEKDAY[day] for day in range(7)]
    )
    at = (np.arange(STEPS_PER_WEEK) + 0.5) * STEP_S / 3_600
    profile = np.interp(at, np.arange(168) + 0.5, week, period=168)
    return np.asarray(profile / profile.mean(), np.float64)


def step_of_week(time_ms: NDArray[np.int64], shift_s: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the index into `weekly_profile` for clocks that run `shift_s` ahead."""
    since_monday_s = time_ms // 1_000 + EPOCH_WEEKDAY * 86_400 + shift_s
    return np.asarray((since_monday_s // STEP_S) % STEPS_PER_WEEK, np.int64)


def day_of_month(day: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return 1 to 31 for `day`, int64[n], days since the epoch."""
    date = day.astype("datetime64[D]")
    return np.asarray((date - date.astype("datetime64[M]")).astype(np.int64) + 1, np.int64)


def pay_day_factor(time_ms: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the factor of the pay-day peak, float64[n]: 1 on ordinary days."""
    first = int(time_ms.min()) // DAY_MS if len(time_ms) else 0
    last = int(time_ms.max()) // DAY_MS if len(time_ms) else 0
    by_day = np.where(
        np.isin(day_of_month(np.arange(first, last + 1)), PAY_DAYS), PAY_DAY_FACTOR, 1.0
    )
    return np.asarray(by_day[time_ms // DAY_MS - first], np.float64)
