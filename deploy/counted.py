"""Counts in sentences."""

from __future__ import annotations


def counted(count: int, one: str, many: str | None = None) -> str:
    """Write a count with its noun.

    Args:
        count: how many.
        one: the noun of one of them.
        many: of any other number; None adds an s.

    >>> counted(1, "alert"), counted(2_000, "alert"), counted(0, "entity", "entities")
    ('1 alert', '2,000 alerts', '0 entities')
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"
