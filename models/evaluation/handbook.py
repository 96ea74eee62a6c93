"""The protocol of the Fraud Detection Handbook: what is trained on, tested, and left out.

Train week, a week in which labels are awaited, test week. Cards that are known to be defrauded
when a test day begins are no part of that day: nobody needs to find them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.evaluation.metrics import average_precision, card_days, card_precision, roc_auc

DAY_MS = 86_400_000
TRAIN_DAYS = 7
DELAY_DAYS = 7
TEST_DAYS = 7
TOP_CARDS = 100


@dataclass(frozen=True, slots=True)
class Payments:
    """Card payments in the order of their time.

    Attributes:
        payment: int64[n], ids.
        time_ms: int64[n], ascending; the handbook's naive times are taken as UTC.
        customer: int64[n], ids of cards.
        terminal: int64[n], ids.
        amount: float64[n].
        fraud: bool[n].
        scenario: int8[n], 0 for no fraud, else the handbook's 1 to 3.
    """

    payment: NDArray[np.int64]
    time_ms: NDArray[np.int64]
    customer: NDArray[np.int64]
    terminal: NDArray[np.int64]
    amount: NDArray[np.float64]
    fraud: NDArray[np.bool_]
    scenario: NDArray[np.int8]

    def __post_init__(self) -> None:
        lengths = {len(getattr(self, name)) for name in self.__slots__}
        if len(lengths) != 1:
            raise ValueError(f"expected columns of one length, found {sorted(lengths)}")
        if np.any(np.diff(self.time_ms) < 0):
            raise ValueError("expected payments sorted by time, found an earlier one after a later")

    def __len__(self) -> int:
        return len(self.time_ms)

    @property
    def day(self) -> NDArray[np.int64]:
        """int64[n], days since the epoch."""
        return self.time_ms // DAY_MS

    def until(self, end_ms: int) -> Payments:
        """Return the payments before `end_ms`."""
        n = int(np.searchsorted(self.time_ms, end_ms))
        return Payments(*(getattr(self, name)[:n] for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Split:
    """Which payments are trained on and which are tested.

    Attributes:
        train: int64, indices of the train week's payments.
        test: int64, indices of the test week's payments, cards known as defrauded left out.
    """

    train: NDArray[np.int64]
    test: NDArray[np.int64]


def split(payments: Payments, test_from_ms: int) -> Split:
    """Return the handbook's train and test sets.

    Known before test day d are the cards defrauded in the train week, and those defrauded from then
    on up to 8 days before d: their labels have come.

    Args:
        payments: of at least the train week and the test week.
        test_from_ms: midnight at which the test week begins.

    Raises:
        ValueError: `test_from_ms` is no midnight, or a week has no payments.
    """
    if test_from_ms % DAY_MS:
        raise ValueError(f"expected a midnight in UTC as the test's begin, found {test_from_ms} ms")
    first = test_from_ms // DAY_MS
    day = payments.day
    before = first - DELAY_DAYS
    train = np.flatnonzero((day >= before - TRAIN_DAYS) & (day < before))
    test = []
    for d in range(first, first + TEST_DAYS):
        judged = payments.fraud & (day >= before - TRAIN_DAYS) & (day < d - DELAY_DAYS)
        # Where d is the first day, day d - DELAY_DAYS - 1 is the train week's last.
        known = np.unique(payments.customer[judged])
        at = np.flatnonzero(day == d)
        test.append(at[~np.isin(payments.customer[at], known)])
    chosen = Split(train, np.concatenate(test))
    if min(len(chosen.train), len(chosen.test)) == 0:
        raise ValueError(
            f"expected payments in the train and the test week, found {len(chosen.train)} and "
            f"{len(chosen.test)}; choose a test week that begins at least "
            f"{TRAIN_DAYS + DELAY_DAYS} days after the first payment and before the last"
        )
    return chosen


def figures(
    payments: Payments, test: NDArray[np.int64], score: NDArray[np.float64]
) -> Mapping[str, float]:
    """Return the handbook's three figures of one score.

    Args:
        payments: all of them.
        test: int64[m], the tested ones.
        score: float64[n], of all payments; only those of `test` are read.
    """
    label, tested = payments.fraud[test], score[test]
    days = card_days(payments.day[test], payments.customer[test], label, tested, TOP_CARDS)
    return {
        "roc_auc": roc_auc(label, tested),
        "average_precision": average_precision(label, tested),
        f"card_precision_{TOP_CARDS}": card_precision(days, TOP_CARDS),
    }
