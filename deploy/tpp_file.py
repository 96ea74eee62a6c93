"""Read the event sequences of a Parquet file, process by process.

What can be put right without doubt is, and is said; the rest is refused with what to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from models.tpp.sequences import Sequences

if TYPE_CHECKING:
    import pyarrow as pa

_PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}


@dataclass(frozen=True, slots=True)
class Recorded:
    """One process as its file has it.

    Attributes:
        sequences: by their number.
        warnings: what was put right.
    """

    sequences: dict[int, Sequences]
    warnings: tuple[str, ...] = ()


def tables(path: Path) -> dict[str, pa.Table]:
    """Return the rows of each process, by its name.

    Columns: `t`, numbers or time stamps; `seq`, whole numbers or text; `process`, missing or all
    null where the file is of one process, which is then named after the file; `mark` and `amount`
    where events have them.

    Raises:
        ValueError: the file is missing, empty or no Parquet, or a column or a process's name is
            missing.
    """
    import pyarrow as pa
    from pyarrow import parquet

    if not path.is_file():
        raise ValueError(f"expected a Parquet file, found none at {path}; give --data FILE.parquet")
    try:
        table = parquet.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"expected a Parquet file, found another at {path}: {error}") from error
    if missing := {"t", "seq"} - set(table.column_names):
        raise ValueError(
            f"expected the columns t and seq, found {table.column_names} in {path}; "
            f"add {', '.join(sorted(missing))}"
        )
    if not len(table):
        raise ValueError(f"expected events, found a file without rows at {path}")
    if "process" not in table.column_names or table["process"].null_count == len(table):
        return {path.stem: table}
    if nulls := table["process"].null_count:
        raise ValueError(
            f"expected a process in every row, found {nulls} without in {path}; fill them, or drop "
            "the column where all rows are of one process"
        )
    names = table["process"].cast(pa.string()).to_numpy()
    return {
        str(name): table.take(np.flatnonzero(names == name)) for name in sorted(set(names.tolist()))
    }


def _clock(column: pa.ChunkedArray, warnings: list[str]) -> NDArray[np.float64]:
    """Return times as float64[n], seconds where the column holds time stamps."""
    import pyarrow as pa

    kind, unit = column.type, 1.0
    if column.null_count:
        raise ValueError(f"expected a time t in every row, found {column.null_count} without")
    if pa.types.is_date(kind):
        column = column.cast(pa.timestamp("ms"))
        kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_duration(kind):
        column, unit = column.cast(pa.int64()), _PER_SECOND[kind.unit]
    elif pa.types.is_decimal(kind) or pa.types.is_floating(kind):
        column = column.cast(pa.float64())
    elif not pa.types.is_integer(kind):
        raise ValueError(f"expected numbers or time stamps as t, found {kind}")
    values: NDArray[Any] = column.to_numpy()
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise ValueError(f"expected finite times t, found {bad} that are not")
    low, high = values.min(), values.max()
    if low < 0 or low > high - low:
        # Whole numbers are shifted as such: nanoseconds since 1970 have more digits than a float.
        values = values - low
        warnings.append(f"the clock begins at the earliest event, {low} in the file's unit")
    return values.astype(np.float64) / unit


def _numbers(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Return the sequences' numbers, int64[n]: their ranks where they are no whole numbers."""
    if column.null_count:
        raise ValueError(f"expected a sequence seq in every row, found {column.null_count} without")
    values: NDArray[Any] = column.to_numpy()
    if values.dtype.kind == "f" and np.isfinite(values).all() and (values % 1.0 == 0.0).all():
        values = values.astype(np.int64)
    return _whole(values.astype(str) if values.dtype.kind == "O" else values)


def _whole(values: NDArray[Any]) -> NDArray[np.int64]:
    """Return whole numbers from 0 on as they are, int64[n], and other values by their rank."""
    known = values.dtype.kind in "iu" and values.min() >= 0
    found: NDArray[np.int64] = (
        values if known else np.unique(values, return_inverse=True)[1]
    ).astype(np.int64)
    return found


def _optional(table: pa.Table, name: str) -> NDArray[Any] | None:
    """Return a column's values; None where it is missing, all null, or tells nothing."""
    if name not in table.column_names or table[name].null_count == len(table):
        return None
    column = table[name]
    if column.null_count:
        raise ValueError(
            f"expected a value of {name} in every row or in none, found {column.null_count} of "
            f"{len(table)} null; fill them, or leave the column out"
        )
    values: NDArray[Any] = column.to_numpy()
    if values.dtype.kind == "O":
        values = values.astype(np.float64 if name == "amount" else str)
    return values


def part_ties(
    time: NDArray[np.float64], first: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], int]:
    """Part events of one time, and return the times and how many were moved.

    The k-th of m events of one time moves to t + (k - 1) g / m', g the least gap above 0 of the
    process and m' its largest m: evenly, in order, and never past the event after. Where a float
    cannot tell that from t, to the next float.

    Args:
        time: float64[n], ordered within each sequence.
        first: bool[n], a sequence begins.

    Raises:
        ValueError: no two events of a sequence differ in time.
    """
    gap = np.diff(time, prepend=0.0)[~first]
    if (gap > 0.0).all():
        return time, 0
    if not (gap > 0.0).any():
        raise ValueError("expected sequences whose events differ in time, found none")
    place = np.arange(len(time))
    same = ~first & (np.diff(time, prepend=-np.inf) == 0.0)
    in_run = place - np.maximum.accumulate(np.where(same, 0, place))
    found = time + in_run * (gap[gap > 0.0].min() / (in_run.max() + 1.0))
    late = np.flatnonzero(~first & (np.diff(found, prepend=-np.inf) <= 0.0))
    for i in range(late[0], len(found)) if len(late) else ():
        if not first[i] and found[i] <= found[i - 1]:
            found[i] = np.nextafter(found[i - 1], np.inf)
    return found, int(same.sum())


def recorded(table: pa.Table) -> Recorded:
    """Return the sequences of one process, sorted by time.

    Marks and amounts of one value in all rows tell nothing and count as absent.

    Raises:
        ValueError: a column holds nulls in some rows, or what cannot be read as numbers.
    """
    warnings: list[str] = []
    time, number = _clock(table["t"], warnings), _numbers(table["seq"])
    # Stable: events of one time stay in the file's order.
    order = np.lexsort((time, number))
    time, number = time[order], number[order]
    first = np.diff(number, prepend=-1) != 0
    time, moved = part_ties(time, first)
    if moved:
        warnings.append(
            f"{moved} events came at the time of the event before and were moved after it, by even "
            "parts of the least gap above 0"
        )
    kept: dict[str, NDArray[Any]] = {}
    for name in ("mark", "amount"):
        values = _optional(table, name)
        if values is None:
            continue
        if (values == values[0]).all():
            warnings.append(f"{name} is {values[0]} in every row and left out")
            continue
        kept[name] = values[order]
    ends = np.flatnonzero(first)[1:]
    times = np.split(time, ends)
    marks = np.split(_whole(kept["mark"]), ends) if "mark" in kept else None
    amounts = np.split(kept["amount"].astype(np.float64), ends) if "amount" in kept else None
    found = {
        int(one): Sequences.join(
            [times[i]],
            None if marks is None else [marks[i]],
            None if amounts is None else [amounts[i]],
        )
        for i, one in enumerate(number[first])
    }
    return Recorded(found, tuple(warnings))
