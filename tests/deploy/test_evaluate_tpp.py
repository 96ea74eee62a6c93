"""`eddy evaluate tpp`: what it reads and refuses, and one small run where torch is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from deploy import evaluate_tpp
from deploy.cli import app
from models.tpp.classical import Hawkes, draw
from models.tpp.sequences import split

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def write(path: Path, **columns: object) -> Path:
    parquet.write_table(pa.table(columns), path)
    return path


def two_processes(path: Path, sequences: int = 10, events: int = 60) -> Path:
    data = draw(Hawkes(0.2, (0.5,), (2.0,)), events, 2 * sequences, 1)
    seq = np.tile(np.repeat(np.arange(sequences), events), 2)
    process = np.repeat(["late", "early"], sequences * events)
    order = np.random.default_rng(0).permutation(len(seq))
    return write(path, process=process[order], seq=seq[order], t=data.time[order])


def test_processes_are_read_whatever_the_order_of_rows(tmp_path: Path) -> None:
    found = evaluate_tpp.read(two_processes(tmp_path / "two.parquet"))
    assert list(found) == ["early", "late"]
    assert sorted(found["late"]) == list(range(10))
    expected = draw(Hawkes(0.2, (0.5,), (2.0,)), 60, 20, 1)
    assert np.array_equal(found["late"][3].time, expected.time[180:240])
    assert np.array_equal(found["early"][0].time, expected.time[600:660])
    assert found["late"][3].mark is None


def test_a_file_without_processes_is_named_after_itself(tmp_path: Path) -> None:
    path = write(
        tmp_path / "edits.parquet", seq=[0, 0, 2, 2], t=[0, 5, 1, 3], mark=[4, 4, 9, 7],
        amount=[1.0, 2.0, 3.0, 4.0],
    )  # fmt: skip
    found = evaluate_tpp.read(path)["edits"]
    assert found[2].time.tolist() == [1.0, 3.0]
    assert found[2].mark is not None
    assert found[2].mark.tolist() == [9, 7]
    assert found[2].amount is not None
    assert found[2].amount.tolist() == [3.0, 4.0]


def test_absent_sequences_leave_the_split_as_it_was(tmp_path: Path) -> None:
    found = evaluate_tpp.read(two_processes(tmp_path / "two.parquet"))["late"]
    test = split(10)[2]
    del found[int(test[0])]
    part = evaluate_tpp.parts_of(found)
    assert (part.absent, part.test.count, part.train.count) == (1, len(test) - 1, 6)
    assert np.array_equal(part.test.time, found[int(test[1])].time)


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a Parquet file, found none at"):
        evaluate_tpp.read(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("t,seq\n1,2\n")
    with pytest.raises(ValueError, match="expected a Parquet file, found another at"):
        evaluate_tpp.read(tmp_path / "text.parquet")
    with pytest.raises(ValueError, match=r"expected the columns t and seq, found \['t'\]"):
        evaluate_tpp.read(write(tmp_path / "t.parquet", t=[1.0]))
    with pytest.raises(ValueError, match="finite times that increase within a sequence"):
        evaluate_tpp.read(write(tmp_path / "n.parquet", t=[1.0, 1.0], seq=[0, 0]))


def test_the_command_says_what_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("deploy.commands.evaluate_tpp.REPOSITORY", tmp_path)
    result = CliRunner().invoke(app, ["evaluate", "tpp", "--data", "x.parquet"])
    assert result.exit_code == 1
    assert "run `make train`" in str(result.exception)
    help_text = CliRunner().invoke(app, ["evaluate", "tpp", "--help"]).output
    assert "--budget-s" in help_text


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
        "--seed", "4", "--split-seed", "1", "--budget-s", "180.0", "--layers", "1",
        "--no-simulation", "--json",
    ]  # fmt: skip


def test_a_small_run_prints_the_three_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("torch", reason="the training environment has it")
    path = two_processes(tmp_path / "two.parquet", events=200)
    arguments = ["x", "--data", str(path), "--process", "late", "--budget-s", "5", "--json"]
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
