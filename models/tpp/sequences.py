"""Event sequences as arrays, and the published split of them.

The split is that of Shchur, Bilos and Guennemann (ICLR 2020, branch original-code): 60/20/20 of
whole sequences, drawn by numpy's legacy generator in two steps. With seed 1 and 64 sequences the
test sequences are 2 3 10 19 21 26 34 35 38 39 40 54 56, as they were for the published likelihoods.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TRAIN_SHARE = 0.6
HELD_SHARE = 0.4
FEWEST_SEQUENCES = 5
FEWEST_GAPS = 100


@dataclass(frozen=True, slots=True)
class Sequences:
    """Sequences of one process, one after the other.

    Attributes:
        time: float64[n], event times in the process's own unit, increasing within a sequence. The
            clock begins at 0 and nothing came before a sequence's first event.
        starts: int64[s + 1], where each sequence begins, and the end.
        mark: int64[n], or None where events have none.
        amount: float64[n], positive, or None where events have none.
    """

    time: NDArray[np.float64]
    starts: NDArray[np.int64]
    mark: NDArray[np.int64] | None = None
    amount: NDArray[np.float64] | None = None

    @classmethod
    def join(
        cls,
        times: list[NDArray[np.float64]],
        marks: list[NDArray[np.int64]] | None = None,
        amounts: list[NDArray[np.float64]] | None = None,
    ) -> Sequences:
        """Put sequences one after the other.

        Raises:
            ValueError: there are none, one is empty, or a time is not finite or not above the one
                before it.
        """
        if not times or min(len(t) for t in times) == 0:
            raise ValueError(
                "expected sequences of at least one event each, found "
                f"{[len(t) for t in times][:10]}; leave empty sequences out"
            )
        starts = np.concatenate([[0], np.cumsum([len(t) for t in times])]).astype(np.int64)
        found = cls(
            np.concatenate(times).astype(np.float64),
            starts,
            None if marks is None else np.concatenate(marks).astype(np.int64),
            None if amounts is None else np.concatenate(amounts).astype(np.float64),
        )
        gap = found.gap[~found.first]
        bad = int((~np.isfinite(found.time)).sum() + (~(gap > 0.0)).sum())
        if bad:
            raise ValueError(
                f"expected finite times that increase within a sequence, found {bad} that do not; "
                "sort each sequence, and merge or part events of the same time"
            )
        if found.amount is not None and not np.all(found.amount > 0.0):
            raise ValueError("expected amounts above 0, found others; leave those events out")
        return found

    def __len__(self) -> int:
        return len(self.time)

    @property
    def count(self) -> int:
        """How many sequences there are."""
        return len(self.starts) - 1

    @property
    def first(self) -> NDArray[np.bool_]:
        """bool[n], True where a sequence begins."""
        found = np.zeros(len(self.time), np.bool_)
        found[self.starts[:-1]] = True
        return found

    @property
    def gap(self) -> NDArray[np.float64]:
        """float64[n], time since the sequence's event before; for a first event since 0."""
        found = np.diff(self.time, prepend=0.0)
        found[self.starts[:-1]] = self.time[self.starts[:-1]]
        return found

    @property
    def scored(self) -> NDArray[np.float64]:
        """The gaps that likelihoods count: those after each first event."""
        return self.gap[~self.first]

    def take(self, which: NDArray[np.int64]) -> Sequences:
        """Return the sequences numbered `which`, in that order."""
        rows = np.concatenate([np.arange(self.starts[i], self.starts[i + 1]) for i in which])
        sizes = np.diff(self.starts)[which]
        return Sequences(
            self.time[rows],
            np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            None if self.mark is None else self.mark[rows],
            None if self.amount is None else self.amount[rows],
        )


def split(count: int, seed: int = 1) -> tuple[NDArray[np.int64], ...]:
    """Return the numbers of the training, validation and test sequences, each sorted.

    Args:
        count: sequences of the whole set, those that are not at hand included.
        seed: 1 gives the published split.

    Raises:
        ValueError: with so few sequences a part would be empty.
    """
    if count < FEWEST_SEQUENCES:
        raise ValueError(
            f"expected at least {FEWEST_SEQUENCES} sequences to split 60/20/20, found {count}; "
            "cut a long sequence into pieces"
        )
    # The legacy generator, because the published split was drawn by it.
    rng = np.random.RandomState(seed)
    held_count = math.ceil(HELD_SHARE * count)
    order = rng.permutation(count)
    held = order[:held_count]
    train = order[held_count : held_count + int(TRAIN_SHARE * count)]
    second = rng.permutation(held_count)
    test_count = math.ceil(held_count / 2)
    parts = train, held[second[test_count:]], held[second[:test_count]]
    return tuple(np.sort(part).astype(np.int64) for part in parts)


def ks_p_value(uniform: NDArray[np.float64]) -> float:
    """Return the Kolmogorov-Smirnov p-value of `uniform` being uniform on [0, 1].

    Kolmogorov's series with Stephens' correction of the statistic for finite n (1970): within .01
    of the exact value at n = 500 (tests), and closer for small p.

    Raises:
        ValueError: there is none, or one is outside [0, 1].
    """
    n = len(uniform)
    if n == 0 or not (np.min(uniform) >= 0.0 and np.max(uniform) <= 1.0):
        raise ValueError(f"expected values in [0, 1], found {n} of which some are not")
    ordered = np.sort(uniform)
    above = np.arange(1, n + 1) / n - ordered
    below = ordered - np.arange(n) / n
    root = math.sqrt(n)
    x = (root + 0.12 + 0.11 / root) * float(max(above.max(), below.max()))
    if x < 0.2:  # the series converges too slowly there, and the value is 1 to 12 digits
        return 1.0
    terms = np.arange(1, 101)
    total = 2.0 * float(np.sum((-1.0) ** (terms - 1) * np.exp(-2.0 * (terms * x) ** 2)))
    return min(max(total, 0.0), 1.0)
