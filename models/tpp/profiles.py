"""What training sequences tell of a mark: how soon events follow it, wherever it comes.

Among thousands of marks (users, cards, devices) most have too few events for weights of their own.
A few sums of each, drawn to those of all by as many events as `_SHRINKAGE` (empirical Bayes), say
most of it. While a model learns, a sequence's own events must not tell it of themselves: its
profiles are those of the other sequences, as a new sequence will meet them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.tpp.architecture import FEATURE_LIMIT, PROFILE_FEATURES, Scales
from models.tpp.sequences import Sequences

_SHRINKAGE = 5.0

_F64 = NDArray[np.float64]


def _contributions(data: Sequences, scales: Scales) -> _F64:
    """Return what each event adds to its mark's sums, float64[n, 8].

    Columns: followed by another event; the standardised log gap after it and its square; followed
    by its own mark; log gap after it and its square where so; preceded; log gap before it.
    """
    assert data.mark is not None
    first = data.first
    z = (np.log(np.where(first, 1.0, data.gap)) - scales.log_gap_mean) / scales.log_gap_sd
    before = np.where(first, 0.0, z.clip(-FEATURE_LIMIT, FEATURE_LIMIT))
    followed = ~np.roll(first, -1)
    after = np.where(followed, np.roll(before, -1), 0.0)
    again = followed & (np.roll(data.mark, -1) == data.mark)
    columns = [followed, after, after**2, again, again * after, again * after**2, ~first, before]
    found: _F64 = np.stack(columns, 1).astype(np.float64)
    return found


@dataclass(frozen=True, slots=True)
class Profiles:
    """Sums over the training sequences, by mark.

    Attributes:
        scales: of the process.
        sums: float64[marks + 1, 8], see `_contributions`; 0 in the last row, of further marks.
        sequences: float64[marks + 1], in how many sequences a mark comes.
    """

    scales: Scales
    sums: _F64
    sequences: _F64

    @classmethod
    def of(cls, train: Sequences, scales: Scales, marks: int) -> Profiles:
        """Sum over `train`, whose marks below `marks` are told apart.

        Raises:
            ValueError: the sequences have no marks.
        """
        if train.mark is None:
            raise ValueError("expected sequences with marks, found none; train without profiles")
        row, parts = _rows(train.mark, marks), _contributions(train, scales)
        sums: _F64 = np.stack([np.bincount(row, part, marks + 1) for part in parts.T], 1)
        _, pairs = _by_sequence(train, row, marks)
        sequences: _F64 = np.bincount(pairs % (marks + 1), None, marks + 1).astype(np.float64)
        sums[-1], sequences[-1] = 0.0, 0.0
        return cls(scales, sums, sequences)

    @property
    def table(self) -> NDArray[np.float32]:
        """float32[marks + 1, PROFILE_FEATURES]: each mark's profile, the last of an unknown one."""
        return self._profile(self.sums, self.sequences)

    def without_own(self, data: Sequences) -> NDArray[np.float32]:
        """Return the profile of each event's mark by all but its own sequence's events.

        Args:
            data: some of the sequences that were summed.

        Returns:
            float32[n, PROFILE_FEATURES].
        """
        assert data.mark is not None
        marks = len(self.sums) - 1
        row, parts = _rows(data.mark, marks), _contributions(data, self.scales)
        place, pairs = _by_sequence(data, row, marks)
        own = np.stack([np.bincount(place, part, len(pairs))[place] for part in parts.T], 1)
        known = row < marks
        own[~known] = 0.0
        # Differences of sums: what is left of none must be none.
        left = np.where(self.sums[row, :1] - own[:, :1] > 0.5, self.sums[row] - own, 0.0)
        return self._profile(left, np.maximum(self.sequences[row] - known, 0.0))

    def _profile(self, sums: _F64, sequences: _F64) -> NDArray[np.float32]:
        followed, after, square, again, again_after, again_square, preceded, before = sums.T
        whole = self.sums.sum(0)
        share = whole[3] / max(whole[0], 1.0)
        again_mean = whole[4] / max(whole[3], 1.0)
        again_power = whole[5] / max(whole[3], 1.0)

        def drawn(total: _F64, count: _F64, prior: float) -> _F64:
            return (total + _SHRINKAGE * prior) / (count + _SHRINKAGE) - prior

        found: NDArray[np.float32] = np.stack(
            [
                drawn(after, followed, whole[1] / max(whole[0], 1.0)),
                np.log1p(followed),
                drawn(square, followed, whole[2] / max(whole[0], 1.0)),
                drawn(again, followed, share),
                drawn(before, preceded, whole[7] / max(whole[6], 1.0)),
                drawn(again_after, again, again_mean),
                drawn(again_square, again, again_power),
                np.log1p(sequences),
            ],
            1,
        ).astype(np.float32)
        assert found.shape[1] == PROFILE_FEATURES
        return found


def _rows(mark: NDArray[np.int64], marks: int) -> NDArray[np.int64]:
    return np.where((mark >= 0) & (mark < marks), mark, marks)


def _by_sequence(
    data: Sequences, row: NDArray[np.int64], marks: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number the pairs of sequence and mark: of each event [n], and each one's key [pairs]."""
    sequence = np.repeat(np.arange(data.count), np.diff(data.starts))
    pairs, place = np.unique(sequence * (marks + 1) + row, return_inverse=True)
    return place.astype(np.int64), pairs.astype(np.int64)


def rows_of(table: NDArray[np.float32], mark: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the profile of each mark, float32[n, PROFILE_FEATURES], by a `Profiles.table`."""
    found: NDArray[np.float32] = table[_rows(mark, len(table) - 1)]
    return found
