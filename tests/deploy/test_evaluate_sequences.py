"""`eddy evaluate sequences` from its command line to its page."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest

from deploy.cli import main
from deploy.evaluate.sequences import page, picture, table


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["evaluate", "sequences", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_json_on_standard_output_and_progress_beside_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "report.html"
    code, out, err = run(capsys, "--seed", "4", "--sequences", "30", "--json", "--html", str(file))
    assert code == 0
    report = json.loads(out)
    assert report["seed"] == 4
    assert report["sequences"] == 30
    assert set(report) >= {"scenarios", "mean_at_0.5", "3S", "likelihood_ratio_ceiling"}
    assert len(report["scenarios"]) == 8
    assert len(re.findall(r"^\w+: [01]\.\d+ at 0\.5", err, re.MULTILINE)) == 8
    text = file.read_text()
    assert text == page(report)
    assert base64.b64encode(picture(report)).decode() in text
    assert text.count("<table>") == 3
    assert f"{report['scenarios']['Hawkes']['0.5']:.3f}" in text
    assert "http" not in text


def test_a_table_for_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--sequences", "20")
    assert code == 0
    for name in ("IncreasingRate", "Stopping", "mean", "ceiling"):
        assert name in out
    _, again, _ = run(capsys, "--sequences", "20")
    assert out == again


def test_a_folder_that_is_not_there_is_told_before_the_work(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, err = run(capsys, "--html", str(tmp_path / "none" / "report.html"))
    assert code == 1
    assert "expected a folder" in err
    assert out == ""


def test_the_table_has_a_row_for_each_scenario() -> None:
    block = {"scenarios": {"A": {"0.5": 0.9}, "B": {"0.5": 0.8}}, "mean_at_0.5": 0.85}
    report = {"seed": 1, **block, "3S": block, "likelihood_ratio_ceiling": block}
    assert table(report).row_count == 3
