"""`eddy evaluate tpp`: what it reads and refuses, and one small run where torch is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from deploy import evaluate_tpp
from deploy.cli import app
from deploy.tpp_file import Recorded, recorded, tables
from models.tpp.classical import Hawkes, MultivariateHawkes, draw
from models.tpp.sequences import Sequences, split

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

DATA = Path(os.environ.get("EDDY_DATA", Path(__file__).parents[3] / "shared" / "data")) / "tpp"


def write(path: Path, **columns: object) -> Path:
    parquet.write_table(pa.table(columns), path)
    return path


def two_processes(path: Path, sequences: int = 10, events: int = 60) -> Path:
    data = draw(Hawkes(0.2, (0.5,), (2.0,)), events, 2 * sequences, 1)
    seq = np.tile(np.repeat(np.arange(sequences), events), 2)
    process = np.repeat(["late", "early"], sequences * events)
    order = np.random.default_rng(0).permutation(len(seq))
    return write(path, process=process[order], seq=seq[order], t=data.time[order])


def read(path: Path) -> dict[str, Recorded]:
    return {name: recorded(table) for name, table in tables(path).items()}


def test_absent_sequences_leave_the_split_as_it_was(tmp_path: Path) -> None:
    found = read(two_processes(tmp_path / "two.parquet"))["late"].sequences
    test = split(10)[2]
    del found[int(test[0])]
    part = evaluate_tpp.parts_of(found)
    assert (part.absent, part.test.count, part.train.count) == (1, len(test) - 1, 6)
    assert np.array_equal(part.test.time, found[int(test[1])].time)
    assert part.how == "by number"


def some(numbers: list[int], events: int = 4) -> dict[int, Sequences]:
    return {i: Sequences.join([np.arange(events) + 1.0 + i]) for i in numbers}


def test_sparse_numbers_are_split_by_their_ranks() -> None:
    for numbers in ([7, 900, 12, 13, 10**12], [64, 65, 66, 67, 68, 69], [1, 2, 3, 4, 5]):
        part = evaluate_tpp.parts_of(some(numbers))
        ordered = sorted(numbers)
        test = split(len(numbers))[2]
        assert part.how == "by rank"
        firsts = part.test.time[part.test.first] - 1.0
        assert firsts.tolist() == [float(ordered[i]) for i in test]
    # What is left of 1,000 when the training part is taken away: no part may be empty.
    held = np.concatenate(split(1_000)[1:]).tolist()
    part = evaluate_tpp.parts_of(some(held))
    assert (part.train.count, part.valid.count, part.test.count) == (240, 80, 80)
    # More than half are there, but of the validation part none.
    valid = split(12)[1]
    assert valid.max() < 11
    rest = np.setdiff1d(np.arange(12), valid).tolist()
    assert evaluate_tpp.parts_of(some(rest)).how == "by rank"


def test_sequences_without_a_gap_are_left_out() -> None:
    found = some(list(range(10)))
    lone = int(split(10)[0][0])
    found[lone] = Sequences.join([np.array([1.0])])
    part = evaluate_tpp.parts_of(found)
    assert (part.how, part.train.count) == ("by number", 5)
    assert part.test.count == 2
    for i in split(10)[2]:
        found[int(i)] = found[lone]
    assert evaluate_tpp.parts_of(found).how == "by rank"


def test_few_sequences_are_split_in_time() -> None:
    part = evaluate_tpp.parts_of(some([3], 5_000))
    assert part.how == "by time"
    assert (part.train.count, part.valid.count, part.test.count) == (2, 1, 1)
    assert (len(part.train), len(part.valid)) == (3_000, 1_000)
    assert part.train.time.max() < part.valid.time.min() < part.test.time.min()
    with pytest.raises(ValueError, match=r"expected at least 5 sequences of 2 events, .*\[3\]"):
        evaluate_tpp.parts_of(some([0], 3))


@pytest.mark.skipif(not DATA.exists(), reason="needs shared/data/tpp (EDDY_DATA)")
def test_the_published_files_have_the_published_split() -> None:
    found = read(DATA / "wikipedia.parquet")["wikipedia"]
    part = evaluate_tpp.parts_of(found.sequences)
    assert (part.how, part.train.count, part.valid.count) == ("by number", 600, 107)
    assert (part.test.count, part.absent, found.warnings) == (93, 107, ())
    for process in read(DATA / "synthetic.parquet").values():
        part = evaluate_tpp.parts_of(process.sequences)
        assert (part.how, part.absent, process.warnings) == ("by number", 0, ())
        expected = [process.sequences[int(i)].time for i in split(64)[2]]
        assert np.array_equal(part.test.time, np.concatenate(expected))


def test_an_error_of_one_process_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = write(
        tmp_path / "three.parquet",
        process=["a", "a", "b", "b", "c", "c"],
        seq=[0, 0, 0, 0, 0, 0],
        t=[1.0, 2.0, 1.0, None, 5.0, 6.0],
    )
    monkeypatch.setattr(evaluate_tpp, "parts_of", lambda sequences, _: sequences)

    def evaluate(sequences: dict[int, Sequences], *_: object) -> dict[str, object]:
        if sequences[0].time[0] == 0.0:
            raise ZeroDivisionError("float division by zero")
        return {"test_nll": 1.0}

    monkeypatch.setattr(evaluate_tpp, "evaluate", evaluate)
    monkeypatch.setattr("sys.argv", ["x", "--data", str(path), "--json"])
    assert evaluate_tpp.main() == 1
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "a": {"test_nll": 1.0, "warnings": []},
        "b": {"error": "expected a time t in every row, found 1 without"},
        "c": {"error": "ZeroDivisionError('float division by zero')"},
    }
    assert "c: warning: the clock begins at the earliest event, 5.0" in err


def test_the_command_says_what_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("deploy.commands.evaluate_tpp.REPOSITORY", tmp_path)
    result = CliRunner().invoke(app, ["evaluate", "tpp", "--data", "x.parquet"])
    assert result.exit_code == 1
    assert "run `make .venv-train/.ready`" in str(result.exception)
    help_text = CliRunner().invoke(app, ["evaluate", "tpp", "--help"]).output
    assert "--budget-s" in help_text
    assert "--steps" in help_text


def test_the_command_hands_over_to_the_training_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python = tmp_path / ".venv-train" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    monkeypatch.setattr("deploy.commands.evaluate_tpp.REPOSITORY", tmp_path)
    seen: list[list[str]] = []
    monkeypatch.setattr("os.execve", lambda _, command, __: seen.append(command))
    arguments = ["evaluate", "tpp", "--data", "x.parquet", "--process", "a", "--process", "b"]
    CliRunner().invoke(app, [*arguments, "--seed", "4", "--no-simulation", "--json"])
    assert seen[0][1:] == [
        "-m", "deploy.evaluate_tpp", "--data", "x.parquet", "--process", "a", "--process", "b",
        "--seed", "4", "--split-seed", "1", "--steps", "600", "--budget-s", "600.0",
        "--layers", "1", "--no-simulation", "--json",
    ]  # fmt: skip


def test_a_small_run_prints_the_three_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("torch", reason="the training environment has it")
    path = two_processes(tmp_path / "two.parquet", events=200)
    arguments = ["x", "--data", str(path), "--process", "late", "--steps", "40", "--json"]
    monkeypatch.setattr("sys.argv", arguments)
    assert evaluate_tpp.main() == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["late"]
    row = found["late"]
    assert abs(row["test_nll"] - row["reference_nll"]) < 0.1
    assert 0.0 <= row["ks_p"] <= 1.0
    monkeypatch.setattr("sys.argv", [*arguments[:3], "--process", "never"])
    assert evaluate_tpp.main() == 1
    assert "expected processes of ['early', 'late'], found ['never']" in capsys.readouterr().err


@pytest.mark.slow
def test_marks_and_amounts_beside_a_process_that_is_unrefuted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("torch", reason="the training environment has it")
    law = MultivariateHawkes(np.full(2, 0.3), np.full((2, 2), 0.2), np.full((2, 2), 2.0))
    data = draw(law, 100, 10, 1)
    assert data.mark is not None
    seq = np.repeat(np.arange(10), 100)
    # A kind of mark that the training sequences never show.
    mark = np.where((seq == split(10)[2][0]) & (data.mark == 1), 5, data.mark)
    amount = np.random.default_rng(1).lognormal(size=len(seq))
    for columns in ({"mark": data.mark}, {"mark": mark, "amount": amount}, {"amount": amount}):
        path = write(tmp_path / "marked.parquet", seq=seq, t=data.time, **columns)
        monkeypatch.setattr("sys.argv", ["x", "--data", str(path), "--steps", "40", "--json"])
        assert evaluate_tpp.main() == 0
        row = json.loads(capsys.readouterr().out)["marked"]
        assert row["teacher"] is None
        assert abs(row["test_nll"] - row["reference_nll"]) < 0.2
        assert (row["mark_nll"] is None) == ("mark" not in columns)
        assert (row["amount_nll"] is None) == ("amount" not in columns)
