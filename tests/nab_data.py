"""Where the benchmark data lies; tests that need it skip where it is missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deploy.stack.options import REPOSITORY


def needs_nab() -> Path:
    """Return the folder of NAB's data, or skip the test."""
    folder = Path(os.environ.get("EDDY_DATA", REPOSITORY.parent / "shared" / "data")) / "nab"
    if not (folder / "data").is_dir():
        pytest.skip(f"no benchmark data in {folder}: set EDDY_DATA")
    return folder
