"""Read the handbook's payments from parquet files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from flink_jobs.errors import EddyError
from models.evaluation.handbook import Payments

COLUMNS = (
    "TRANSACTION_ID", "TX_DATETIME", "CUSTOMER_ID", "TERMINAL_ID", "TX_AMOUNT", "TX_FRAUD",
)  # fmt: skip
SCENARIO = "TX_FRAUD_SCENARIO"


def read_payments(folder: Path) -> Payments:
    """Read all payments of `folder`/raw/*.parquet, in the order of (time, id).

    Args:
        folder: holds `raw`. A file without TX_FRAUD_SCENARIO has frauds of scenario -1: unknown.

    Raises:
        EddyError: no file is there, a file is no parquet or lacks a column, a value is missing, an
            id is no whole number, an amount is no number, TX_FRAUD is neither 0 nor 1, or an id
            comes twice.
    """
    paths = sorted((folder / "raw").glob("*.parquet"))
    if not paths:
        raise EddyError(
            f"expected the handbook's payments as {folder / 'raw'}/*.parquet, found no such file; "
            "name the folder above `raw` with --data"
        )
    columns = [_read(path) for path in paths]
    joined = {name: np.concatenate([each[name] for each in columns]) for name in columns[0]}
    order = np.lexsort((joined["TRANSACTION_ID"], joined["TX_DATETIME"]))
    sorted_columns = {name: values[order] for name, values in joined.items()}
    payment = sorted_columns["TRANSACTION_ID"]
    if len(np.unique(payment)) != len(payment):
        raise EddyError(
            f"{folder / 'raw'}: expected each TRANSACTION_ID once, found "
            f"{len(payment) - len(np.unique(payment))} again; do two files overlap?"
        )
    return Payments(
        payment,
        sorted_columns["TX_DATETIME"],
        sorted_columns["CUSTOMER_ID"],
        sorted_columns["TERMINAL_ID"],
        sorted_columns["TX_AMOUNT"],
        sorted_columns["TX_FRAUD"] == 1,
        sorted_columns[SCENARIO].astype(np.int8),
    )


def _read(path: Path) -> dict[str, NDArray[Any]]:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise EddyError(f"{path}: expected a parquet file, found {error}") from None
    missing = sorted(set(COLUMNS) - set(table.column_names))
    if missing:
        raise EddyError(
            f"{path}: expected the columns {', '.join(COLUMNS)}; {', '.join(missing)} is missing"
        )
    names = [*COLUMNS, *([SCENARIO] if SCENARIO in table.column_names else [])]
    empty = [name for name in names if table[name].null_count]
    if empty:
        raise EddyError(f"{path}: expected no missing value, found some in {', '.join(empty)}")
    if not pa.types.is_timestamp(table.schema.field("TX_DATETIME").type):
        raise EddyError(
            f"{path}: expected timestamps in TX_DATETIME, found "
            f"{table.schema.field('TX_DATETIME').type}"
        )
    found = {name: table[name].to_numpy() for name in names}
    found["TX_DATETIME"] = found["TX_DATETIME"].astype("datetime64[ms]").astype(np.int64)
    if not np.isin(found["TX_FRAUD"], (0, 1)).all():
        raise EddyError(f"{path}: expected 0 or 1 in TX_FRAUD, found other values")
    found["TX_AMOUNT"] = _numbers(path, "TX_AMOUNT", found["TX_AMOUNT"])
    for name in ("TRANSACTION_ID", "CUSTOMER_ID", "TERMINAL_ID"):
        found[name] = _whole(path, name, found[name])
    if SCENARIO not in found:
        found[SCENARIO] = np.where(found["TX_FRAUD"] == 1, -1, 0)
    found[SCENARIO] = _whole(path, SCENARIO, found[SCENARIO])
    return found


def _numbers(path: Path, name: str, values: NDArray[Any]) -> NDArray[np.float64]:
    try:
        numbers = values.astype(np.float64)
    except (TypeError, ValueError):
        numbers = np.array([np.nan])
    if not np.isfinite(numbers).all():
        raise EddyError(f"{path}: expected finite numbers in {name}, found others")
    return numbers


def _whole(path: Path, name: str, values: NDArray[Any]) -> NDArray[np.int64]:
    """Return whole numbers, also of text that holds such."""
    try:
        whole = values.astype(np.int64)
        fits = values.dtype.kind == "O" or bool((whole == values).all())
    except (TypeError, ValueError, OverflowError):
        fits = False
    if not fits:
        raise EddyError(
            f"{path}: expected whole numbers in {name}, found others ({values.dtype}, first"
            f" {values[0]!r}); number the identifiers"
        )
    return whole
