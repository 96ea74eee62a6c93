"""What is read of a Parquet file of event sequences: put right and said, or refused."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import pytest

from deploy.tpp_file import Recorded, part_ties, recorded, tables

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def read(path: Path, **columns: object) -> dict[str, Recorded]:
    parquet.write_table(pa.table(columns), path)
    return {name: recorded(table) for name, table in tables(path).items()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "edits.parquet"


def test_processes_are_read_whatever_the_order_of_rows(path: Path) -> None:
    found = read(
        path, process=["b", "a", "b", "a", "b"], seq=[1, 0, 0, 0, 1], t=[5.0, 2.0, 1.0, 0.5, 3.0]
    )
    assert list(found) == ["a", "b"]
    assert found["b"].sequences[1].time.tolist() == [3.0, 5.0]
    assert found["a"].sequences[0].time.tolist() == [0.5, 2.0]
    assert found["a"].sequences[0].mark is None


def test_a_file_without_processes_is_named_after_itself(path: Path) -> None:
    columns = {"seq": [0, 0, 2, 2], "t": [0, 5, 1, 3], "mark": [4, 4, 9, 7]}
    for more in ({}, {"process": pa.nulls(4, pa.string())}):
        found = read(path, **columns, amount=[1.0, 2.0, 3.0, 4.0], **more)["edits"].sequences
        assert found[2].time.tolist() == [1.0, 3.0]
        assert found[2].mark is not None
        assert found[2].mark.tolist() == [9, 7]
        assert found[2].amount is not None
        assert found[2].amount.tolist() == [3.0, 4.0]


def test_what_cannot_be_read_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a Parquet file, found none at"):
        tables(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("t,seq\n1,2\n")
    with pytest.raises(ValueError, match="expected a Parquet file, found another at"):
        tables(tmp_path / "text.parquet")
    for columns, message in (
        ({"t": [1.0]}, r"expected the columns t and seq, found \['t'\]"),
        ({"t": pa.array([], pa.float64()), "seq": pa.array([], pa.int64())}, "without rows"),
        ({"t": [1.0, 2.0], "seq": [0, 0], "process": ["a", None]}, "found 1 without"),
        ({"t": [1.0, None], "seq": [0, 0]}, "a time t in every row, found 1 without"),
        ({"t": [1.0, np.inf], "seq": [0, 0]}, "finite times t, found 1 that are not"),
        ({"t": ["1", "2"], "seq": [0, 0]}, "numbers or time stamps as t, found string"),
        ({"t": [1.0, 2.0], "seq": [0, None]}, "a sequence seq in every row, found 1 without"),
        ({"t": [1.0, 1.0], "seq": [0, 0]}, "events differ in time, found none"),
        ({"t": [1.0, 2.0], "seq": [0, 0], "mark": [1, None]}, "of mark in every row .* 1 of 2"),
        ({"t": [1.0, 2.0], "seq": [0, 0], "amount": [1.0, 0.0]}, "amounts above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            read(path, **columns)


def test_a_column_that_one_process_lacks_or_that_tells_nothing_is_absent(path: Path) -> None:
    found = read(
        path,
        process=["a", "a", "b", "b", "c", "c"],
        seq=[0, 0, 0, 0, 0, 0],
        t=[1.0, 2.0, 1.0, 2.0, 1.0, 2.0],
        mark=pa.array([None, None, 1, 2, 7, 7], pa.int32()),
    )
    a, b, c = (found[name].sequences[0].mark for name in "abc")
    assert (a, c) == (None, None)
    assert b is not None
    assert b.tolist() == [1, 2]
    assert found["c"].warnings == ("mark is 7 in every row and left out",)
    assert found["a"].warnings == found["b"].warnings == ()


def test_times_of_every_kind_are_floats_from_the_earliest_on(path: Path) -> None:
    begin = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    stamps = [begin + dt.timedelta(milliseconds=ms) for ms in (0, 1, 2_500)]
    nanoseconds = 1_767_225_600_000_000_000
    for times, expected in (
        (pa.array([2, 4, 9], pa.int16()), [2.0, 4.0, 9.0]),
        (pa.array([0.5, 2.0, 4.0], pa.float32()), [0.5, 2.0, 4.0]),
        (pa.array(stamps, pa.timestamp("ns", "UTC")), [0.0, 0.001, 2.5]),
        (pa.array(stamps, pa.timestamp("ms")), [0.0, 0.001, 2.5]),
        (pa.array([1, 2, 5], pa.date32()), [86_400.0, 172_800.0, 432_000.0]),
        (pa.array([1, 2, 5], pa.duration("ms")), [0.001, 0.002, 0.005]),
        (pa.array([nanoseconds, nanoseconds + 1, nanoseconds + 3]), [0.0, 1.0, 3.0]),
        (pa.array([-4.0, 1.0, 2.0]), [0.0, 5.0, 6.0]),
    ):
        found = read(path, seq=[0, 0, 0], t=times)["edits"]
        assert found.sequences[0].time.tolist() == expected
        assert bool(found.warnings) is (expected[0] == 0.0)


def test_sequences_and_marks_may_have_names(path: Path) -> None:
    for seq in (["x", "y", "y"], [0.5, 0.7, 0.7], [-1, 3, 3]):
        found = read(path, seq=seq, t=[1.0, 1.0, 2.0], mark=["edit", "talk", "edit"])["edits"]
        assert sorted(found.sequences) == [0, 1]
        mark = found.sequences[1].mark
        assert mark is not None
        assert mark.tolist() == [1, 0]
    found = read(path, seq=[0.0, 4.0, 4.0], t=[1.0, 1.0, 2.0], mark=[-1, 3, -1])["edits"]
    assert sorted(found.sequences) == [0, 4]


def test_events_of_one_time_are_parted_evenly(path: Path) -> None:
    found = read(path, seq=[0, 0, 0, 0, 1, 1, 1], t=[1.0, 1.0, 1.0, 4.0, 2.0, 2.0, 5.0])["edits"]
    assert found.sequences[0].time.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert found.sequences[1].time.tolist() == [2.0, 3.0, 5.0]
    assert found.warnings[0].startswith("3 events came at the time of the event before")
    # Where a third of the least gap is less than a float tells, to the next float.
    time = np.array([1.0, 1.0, 1.0, np.nextafter(1.0, 2.0), 3.0])
    parted, moved = part_ties(time, np.array([True, False, False, False, False]))
    assert moved == 2
    assert (np.diff(parted) > 0.0).all()
    np.testing.assert_allclose(parted, time, rtol=1e-12)
