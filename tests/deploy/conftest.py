"""Fixtures of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.cli import main
from deploy.stack import record
from deploy.stack.options import StackOptions
from deploy.stack.record import StackState
from tests.deploy.command_line import Result, Run


@pytest.fixture
def eddy(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Run:
    """Run a command line in an empty folder, with no variables of eddy's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("EDDY_CONFIG", raising=False)

    def run_line(*arguments: str) -> Result:
        code = main(arguments)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run_line


@pytest.fixture
def running(tmp_path: Path) -> StackState:
    """Record a local stack on unusual ports in ./.eddy."""
    ports = {name: port + 10 for name, port in record.USUAL_PORTS.items()}
    state = StackState(StackOptions(root=tmp_path / ".eddy"), ports)
    record.save(state)
    return state
