"""The rates of decoders on a real Triton of their own."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest

from deploy.training.served import rates

SHIPPED = Path(__file__).parents[2] / "triton_repo" / "intensity" / "1"


@pytest.mark.stack
def test_decoders_are_measured_side_by_side_and_nothing_stays(triton_venv: Path) -> None:
    del triton_venv
    with np.load(SHIPPED / "check.npz") as check:
        x = check["x"]
    before = set(Path(tempfile.gettempdir()).glob("eddy-rates-*"))
    found, why = rates({"one": SHIPPED, "other": SHIPPED}, SHIPPED / "model.py", x, 128)
    assert why == ""
    assert set(found) == {"one", "other"}
    assert min(found.values()) > 1_000
    assert set(Path(tempfile.gettempdir()).glob("eddy-rates-*")) <= before
