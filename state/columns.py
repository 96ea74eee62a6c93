"""Columns of numbers and strings in bytes: the base of every stored and sent form."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Strings:
    """A column of UTF-8 strings, one after the other.

    Attributes:
        data: uint8[*], the bytes of all strings.
        offsets: int32[n + 1], where each begins; the last is the length of `data`.
    """

    data: NDArray[np.uint8]
    offsets: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> str:
        return bytes(self.data[self.offsets[index] : self.offsets[index + 1]]).decode()

    @classmethod
    def of(cls, strings: list[bytes]) -> Strings:
        """Join `strings`, at most 2 GiB of them, into one column.

        >>> Strings.of([b"u-1", b""])[0]
        'u-1'
        """
        offsets = np.zeros(len(strings) + 1, np.int32)
        np.cumsum([len(s) for s in strings], out=offsets[1:])
        return cls(np.frombuffer(b"".join(strings), np.uint8), offsets)

    def part(self, start: int, stop: int) -> Strings:
        """Return the strings from `start` up to `stop`."""
        offsets = self.offsets[start : stop + 1]
        return Strings(self.data[offsets[0] : offsets[-1]], offsets - offsets[0])

    def only(self, keep: NDArray[np.bool_]) -> Strings:
        """Return the strings at which `keep` (bool[n]) is True."""
        lengths = np.diff(self.offsets)
        offsets = np.zeros(int(np.count_nonzero(keep)) + 1, np.int32)
        np.cumsum(lengths[keep], out=offsets[1:])
        return Strings(self.data[np.repeat(keep, lengths)], offsets)


def write_columns(head: bytes, columns: Iterable[NDArray[Any] | Strings]) -> bytes:
    """Write `head`, then each column, all padded to 8 bytes; little endian as on x86 and Arm."""
    parts = [head, b"\0" * (-len(head) % 8)]
    for column in columns:
        arrays = (column.offsets, column.data) if isinstance(column, Strings) else (column,)
        for array in arrays:
            data = array.tobytes()
            parts.append(data)
            if len(data) % 8:
                parts.append(b"\0" * (-len(data) % 8))
    return b"".join(parts)


class ColumnReader:
    """Hands out read-only views of what `write_columns` wrote, one column after the other."""

    def __init__(self, data: bytes, head_bytes: int) -> None:
        self._data = data
        self._at = head_bytes + (-head_bytes % 8)

    def take(self, dtype: type[T], count: int) -> NDArray[T]:
        """Read `count` numbers of `dtype`."""
        column = np.frombuffer(self._data, dtype, count, self._at)
        self._at += column.nbytes + (-column.nbytes % 8)
        return column

    def records(self, dtype: np.dtype[np.void], count: int) -> NDArray[np.void]:
        """Read `count` records of a structured `dtype`."""
        column = np.frombuffer(self._data, dtype, count, self._at)
        self._at += column.nbytes + (-column.nbytes % 8)
        return column

    def strings(self, count: int) -> Strings:
        """Read `count` strings."""
        offsets = self.take(np.int32, count + 1)
        return Strings(self.take(np.uint8, int(offsets[-1])), offsets)
