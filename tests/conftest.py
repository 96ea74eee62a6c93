"""What all tests share: one real stack for a session, where its environments are installed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.stack import stack as servers
from deploy.stack.options import REPOSITORY, StackOptions
from deploy.stack.record import StackState


@pytest.fixture(scope="session")
def triton_venv() -> Path:
    """Triton's environment: .venv-triton, or the one that EDDY_TEST_TRITON_VENV names."""
    venv = Path(os.environ.get("EDDY_TEST_TRITON_VENV", REPOSITORY / ".venv-triton"))
    if not (venv / "bin" / "python").exists():
        pytest.skip(f"no Triton in {venv}: run `make setup`")
    return venv


@pytest.fixture(scope="session")
def stack(triton_venv: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackState]:
    """Kafka, Triton and Flink on ports and in a folder of their own, for the whole session."""
    options = StackOptions(
        root=tmp_path_factory.mktemp("stack"),
        triton_venv=triton_venv,
        start_timeout_s=240.0,
        # Tests wait for metrics; by default they are two seconds old.
        flink_config={"metrics.fetcher.update-interval": "500"},
    )
    try:
        yield servers.up(options)
    finally:
        servers.down(options.root, purge=True)
