"""Known regressors: functions of event time, such as the calendar and the pay day."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Literal

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.baselines.renewal import HOUR_MS, HOURS

DAY_MS = 24 * HOUR_MS
_EPOCH_HOUR = 72  # 1970-01-01 was a Thursday; weeks begin on Monday
HOUR_OF_WEEK, DAY = 0, 1
STATE, KIND, FIRST, START, LENGTH = 0, 1, 2, 3, 4


@dataclass(frozen=True, slots=True)
class Regressor:
    """A known function of time with a coefficient that each entity learns.

    Attributes:
        name: for messages.
        by: "hour_of_week" (values[0] is Monday 00:00-01:00 UTC) or "day" (UTC).
        values: 168 of them, or one for each day from `first_day`; days outside count as 0.
        first_day: days since 1970-01-01.
        noise_var: what the coefficient gains in one interval.
        var: of the coefficient before the first event.
    """

    name: str
    by: Literal["hour_of_week", "day"]
    values: tuple[float, ...]
    first_day: int = 0
    noise_var: float = 0.0
    var: float = 4.0

    def __post_init__(self) -> None:
        if self.by not in ("hour_of_week", "day"):
            raise ValueError(
                f'regressor {self.name}: expected by "hour_of_week" or "day", found {self.by!r}'
            )
        if self.by == "hour_of_week" and len(self.values) != HOURS:
            raise ValueError(
                f"regressor {self.name}: expected {HOURS} values, found {len(self.values)}"
            )
        if not self.values or not all(map(math.isfinite, self.values)):
            raise ValueError(f"regressor {self.name}: expected finite values, at least one")
        for label, found in (("noise_var", self.noise_var), ("var", self.var)):
            if not (math.isfinite(found) and found >= 0.0):
                raise ValueError(
                    f"regressor {self.name}, {label}: expected a finite number >= 0, found {found}"
                )


def weekend(noise_var: float = 0.0, var: float = 4.0) -> Regressor:
    """Return 1 on Saturday and Sunday (UTC), 0 else."""
    values = tuple(float(hour // 24 >= 5) for hour in range(HOURS))
    return Regressor("weekend", "hour_of_week", values, noise_var=noise_var, var=var)


def pay_day(
    day_of_month: int,
    days_after: int = 0,
    years: tuple[int, int] = (2000, 2060),
    noise_var: float = 0.0,
    var: float = 4.0,
) -> Regressor:
    """Return 1 on a day of each month and `days_after` days after it (UTC), 0 else.

    Where a month has no such day (31), its last day counts.

    Raises:
        ValueError: the day is not in 1..31, or `days_after` not in 0..27.
    """
    if not (1 <= day_of_month <= 31 and 0 <= days_after <= 27):
        raise ValueError(
            "pay_day: expected a day of 1..31 and 0..27 days after it, "
            f"found {day_of_month} and {days_after}"
        )
    marked = []
    for year in range(years[0], years[1] + 1):
        for month in range(1, 13):
            following = date(year + month // 12, month % 12 + 1, 1)
            last = (following - timedelta(days=1)).day
            paid = date(year, month, min(day_of_month, last))
            marked += [paid + timedelta(days=after) for after in range(days_after + 1)]
    return on_days("pay_day", marked, noise_var, var)


def on_days(name: str, days: Iterable[date], noise_var: float = 0.0, var: float = 4.0) -> Regressor:
    """Return 1 on the given days (UTC), such as holidays, and 0 else.

    Raises:
        ValueError: no day is given.
    """
    epoch = date(1970, 1, 1)
    numbers = sorted({(day - epoch).days for day in days})
    if not numbers:
        raise ValueError(f"regressor {name}: expected at least one day, found none")
    values = np.zeros(numbers[-1] - numbers[0] + 1)
    values[np.array(numbers) - numbers[0]] = 1.0
    return Regressor(name, "day", tuple(values.tolist()), numbers[0], noise_var, var)


def compile_regressors(
    regressors: Sequence[Regressor], first_state: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return int64[r, 5] (state, kind, first day, start, length), and all values end to end."""
    table = np.zeros((len(regressors), 5), np.int64)
    start = 0
    for n, regressor in enumerate(regressors):
        kind = HOUR_OF_WEEK if regressor.by == "hour_of_week" else DAY
        table[n] = first_state + n, kind, regressor.first_day, start, len(regressor.values)
        start += len(regressor.values)
    values = np.array([value for regressor in regressors for value in regressor.values])
    return table, values.astype(np.float64)


@njit(cache=True)
def fill_regressors(time_ms, table, values, loading):  # type: ignore[no-untyped-def]
    """Write each regressor's value at a time to its place in the loading.

    Args:
        time_ms: int64, event time.
        table: int64[r, 5], of `compile_regressors`.
        values: float64, the same.
        loading: float64[d], changed in place.
    """
    for n in range(len(table)):
        if table[n, KIND] == HOUR_OF_WEEK:
            at = (time_ms // HOUR_MS + _EPOCH_HOUR) % HOURS
        else:
            at = time_ms // DAY_MS - table[n, FIRST]
        inside = 0 <= at < table[n, LENGTH]
        loading[table[n, STATE]] = values[table[n, START] + at] if inside else 0.0


def regressor_value(regressor: Regressor, at: datetime) -> float:
    """Return a regressor's value at a time with a zone, without the kernel: for people and tests.

    >>> regressor_value(weekend(), datetime(2026, 1, 10, tzinfo=UTC))
    1.0
    """
    there = at.astimezone(UTC)
    if regressor.by == "hour_of_week":
        return regressor.values[there.weekday() * 24 + there.hour]
    day = (there.date() - date(1970, 1, 1)).days - regressor.first_day
    return regressor.values[day] if 0 <= day < len(regressor.values) else 0.0
