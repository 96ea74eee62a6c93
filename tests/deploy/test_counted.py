"""Counts with their nouns, and tables without the padding at their ends."""

from __future__ import annotations

import doctest
import io

from rich.console import Console
from rich.table import Table

from deploy import counted
from deploy.trimmed import Trimmed


def test_the_examples_hold() -> None:
    assert doctest.testmod(counted).failed == 0


def test_lines_end_with_their_last_sign() -> None:
    table = Table("a", "b", box=None, pad_edge=False)
    table.add_row("1", "long enough to pad the head")
    table.add_row("[red]22[/]", "")
    for terminal in (False, True):
        out = io.StringIO()
        console = Console(file=out, width=60, force_terminal=terminal, color_system=None)
        console.print(Trimmed(table))
        lines = out.getvalue().splitlines()
        assert [line.replace("\x1b[1m", "").replace("\x1b[0m", "") for line in lines] == [
            "a   b", "1   long enough to pad the head", "22"
        ]  # fmt: skip
