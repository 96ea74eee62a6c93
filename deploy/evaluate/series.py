"""Metric series read from files: NAB's folder, and CSV or Parquet of any metrics."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flink_jobs.errors import EddyError
from models.evaluation.nab import Labelled

Window = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Series:
    """One metric, row by row as the detector sees it.

    Attributes:
        name: of the series or entity.
        time_ms: int64[n], event time.
        value: float64[n]; NaN where it is missing.
    """

    name: str
    time_ms: NDArray[np.int64]
    value: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class NabCorpus:
    """A folder in NAB's layout.

    Attributes:
        series: in order of their names.
        labels: of the same series, in the same order.
        unlabelled: names of series in `data` that the labels do not know: they are left out.
    """

    series: tuple[Series, ...]
    labels: tuple[Labelled, ...]
    unlabelled: tuple[str, ...] = ()


def read_nab(folder: Path) -> NabCorpus:
    """Read `folder/data/*/*.csv` and the windows of `folder/labels/combined_windows.json`.

    Rows stay in the order of the file, which is the order NAB scores them in: some of its series
    repeat an hour. The labels may name series that the folder does not hold, which are of other
    parts, and lack some that it holds, which cannot be judged.

    Raises:
        EddyError: A part is missing, no series is labelled, or a file is not as NAB writes it.
    """
    labels_path = folder / "labels" / "combined_windows.json"
    paths = sorted((folder / "data").glob("*/*.csv"))
    if not paths or not labels_path.is_file():
        raise EddyError(
            f"{folder}: expected NAB's layout, data/CATEGORY/*.csv and"
            f" labels/combined_windows.json, found {len(paths)} series and"
            f" {'the' if labels_path.is_file() else 'no'} labels;"
            " name the folder that holds both"
        )
    try:
        windows = json.loads(labels_path.read_text("utf-8"))
    except ValueError as error:
        raise EddyError(f"{labels_path}: expected JSON, {error}") from None
    if not isinstance(windows, dict):
        raise EddyError(f"{labels_path}: expected an object of windows by series, found none")
    series, labels, unlabelled = [], [], []
    for path in paths:
        name = f"{path.parent.name}/{path.name}"
        if name not in windows:
            unlabelled.append(name)
            continue
        one = _read_nab_series(path, name)
        series.append(one)
        labels.append(_labelled(one, windows[name], labels_path))
    if not series:
        raise EddyError(
            f"{labels_path}: no entry {unlabelled[0]}, nor of any other of the {len(unlabelled)}"
            " series; a series needs its windows or []"
        )
    return NabCorpus(tuple(series), tuple(labels), tuple(unlabelled))


def read_metrics(path: Path) -> list[Series]:
    """Read a CSV or Parquet file with columns `entity, time, value` or `time, value`.

    Times are ISO 8601 (UTC where they name no zone) or whole milliseconds since 1970. The rows of
    an entity are put in order of time; rows of one time stay in the file's order. An empty value is
    a missing one.

    Raises:
        EddyError: The file, a column or a row is not as expected; the message names the row.
    """
    if not path.is_file():
        raise EddyError(f"{path}: no such file")
    rows = _parquet_rows(path) if path.suffix in (".parquet", ".pq") else _csv_rows(path)
    times: dict[str, list[int]] = {}
    values: dict[str, list[float]] = {}
    for number, (entity, time, value) in enumerate(rows, 1):
        where = f"{path}, row {number}"
        times.setdefault(entity, []).append(_time_ms(time, where))
        values.setdefault(entity, []).append(_value(value, where))
    if not times:
        raise EddyError(f"{path}: expected rows below the header, found none")
    series = []
    for entity, own in times.items():
        time_ms = np.array(own, np.int64)
        order = np.argsort(time_ms, kind="stable")
        series.append(Series(entity, time_ms[order], np.array(values[entity])[order]))
    return series


def _read_nab_series(path: Path, name: str) -> Series:
    times, values = [], []
    for number, (_, time, value) in enumerate(_csv_rows(path, "timestamp"), 1):
        times.append(_time_ms(time, f"{path}, row {number}"))
        values.append(_value(value, f"{path}, row {number}"))
    if not times:
        raise EddyError(f"{path}: expected rows below the header, found none")
    return Series(name, np.array(times, np.int64), np.array(values))


def _labelled(series: Series, windows: object, path: Path) -> Labelled:
    where = f"{path}, {series.name}"
    pairs = isinstance(windows, list) and all(isinstance(w, list) and len(w) == 2 for w in windows)
    if not isinstance(windows, list) or not pairs:
        raise EddyError(f"{where}: expected windows as a list of [start, end], found {windows!r}")
    rows = []
    for start, end in windows:
        found = _window_rows(series.time_ms, _time_ms(start, where), _time_ms(end, where))
        if found is None:
            raise EddyError(f"{path}: {series.name} has no row between {start} and {end}")
        rows.append(found)
    try:
        return Labelled(series.name, len(series.value), tuple(sorted(rows)))
    except ValueError as error:
        raise EddyError(f"{path}: {error}") from None


def _window_rows(time_ms: NDArray[np.int64], start: int, end: int) -> Window | None:
    """Return first and last row of a window; None where no row lies within.

    As NAB does, a window begins at the first row of its first time and ends at the first row of its
    last: where a time is repeated, the repetition is outside. Where no row has just that time, the
    nearest within counts.
    """
    inside = np.flatnonzero((time_ms >= start) & (time_ms <= end))
    if len(inside) == 0:
        return None
    starts = np.flatnonzero(time_ms == start)
    first = int(starts[0] if len(starts) else inside[0])
    ends = np.flatnonzero(time_ms[first:] == end)
    return first, first + int(ends[0]) if len(ends) else int(inside[-1])


def _csv_rows(path: Path, time_column: str = "time") -> Iterator[tuple[str, object, object]]:
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise EddyError(f"{path}: expected a CSV file in UTF-8, {error}") from None
    with io.StringIO(text, newline="") as file:
        reader = csv.reader(file)
        columns = next(reader, [])
        entity, time, value = _places(columns, time_column, path)
        for number, row in enumerate(reader, 1):
            if not row:  # an empty line
                continue
            if len(row) != len(columns):
                raise EddyError(
                    f"{path}, row {number}: expected {len(columns)} fields, found {len(row)}"
                )
            yield ("" if entity is None else row[entity]), row[time], row[value]


def _parquet_rows(path: Path) -> Iterator[tuple[str, object, object]]:
    from pyarrow import ArrowException, parquet

    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise EddyError(f"{path}: expected Parquet, {error}") from None
    entity, time, value = _places(table.column_names, "time", path)
    entities: Iterable[object] = (
        ("" for _ in range(table.num_rows)) if entity is None else table.column(entity).to_pylist()
    )
    columns = (table.column(time).to_pylist(), table.column(value).to_pylist())
    for name, moment, number in zip(entities, *columns, strict=True):
        yield str(name), moment, number


def _places(columns: list[str], time_column: str, path: Path) -> tuple[int | None, int, int]:
    missing = [name for name in (time_column, "value") if name not in columns]
    if missing:
        raise EddyError(
            f"{path}: expected the columns {time_column} and value (and entity where there are"
            f" several), found {', '.join(columns) or 'none'}"
        )
    entity = columns.index("entity") if "entity" in columns else None
    return entity, columns.index(time_column), columns.index("value")


def _time_ms(time: object, where: str) -> int:
    if isinstance(time, int):
        return time
    try:
        moment = time if isinstance(time, datetime) else None
        if moment is None:
            text = str(time).strip()
            if text.lstrip("-").isdigit():
                return int(text)
            moment = datetime.fromisoformat(text)
    except ValueError:
        raise EddyError(
            f"{where}: expected a time in ISO 8601 or whole milliseconds since 1970, found {time!r}"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1_000)


def _value(value: object, where: str) -> float:
    if value is None or value == "":
        return float("nan")
    try:
        return float(str(value))
    except ValueError:
        raise EddyError(f"{where}: expected a number or nothing, found {value!r}") from None
