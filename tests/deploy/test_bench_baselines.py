"""`eddy bench baselines`: the form of its report, and what happens without the other tools."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from numba import config
from typer.testing import CliRunner

from deploy.bench import baseline_peers, baselines, covariance_forms
from deploy.cli import app

pytestmark = pytest.mark.skipif(
    bool(config.DISABLE_JIT),  # type: ignore[attr-defined]
    reason="measures compiled kernels: as Python they take minutes",
)


def stand_in(folder: Path, body: str) -> Path:
    """An interpreter that answers with `body`."""
    program = folder / "python"
    program.write_text(f"#!{sys.executable}\n{body}\n")
    program.chmod(0o755)
    return program


@pytest.fixture
def one_component(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = baselines.components()
    few = {name: everything[name] for name in (baselines.LOCAL_LEVEL, baselines.LEVEL_TREND_DAY)}
    monkeypatch.setattr(baselines, "components", lambda: few)


@pytest.mark.usefixtures("one_component")
def test_the_report_compares_with_what_there_is(tmp_path: Path) -> None:
    answer = {
        "versions": {"river": "1.0"},
        "systems": {"river HoltWinters: local level": {"us_per_event": 1e6, "events": 10}},
        "left_out": {"pykalman": "no", "simdkalman": "no"},
    }
    first = stand_in(tmp_path, f"print({json.dumps(json.dumps(answer))})")
    report = baselines.run_baselines([first], short=True, progress=lambda _: None)
    assert set(report) == {
        *("benchmark", "machine", "versions", "input", "systems", "ratios", "left_out")
    }
    mine = report["systems"]["eddy: local level, regular"]
    assert mine["bytes_per_entity"] == 56
    slowest = max(mine["us_per_event"] or 0, mine["us_per_event_after"] or 0)
    ratio = report["ratios"]["river HoltWinters / eddy: local level"]
    assert ratio == pytest.approx(1e6 / slowest, rel=1e-3)
    assert report["left_out"] == {"pykalman": "no", "simdkalman": "no"}
    json.dumps(report, allow_nan=False)


def test_an_interpreter_that_fails_is_told(tmp_path: Path) -> None:
    failing = stand_in(tmp_path, "raise SystemExit('no numpy here')")
    assert "no numpy here" in str(baselines.run_peers(failing)["left_out"]["river"])
    (tmp_path / "python").unlink()
    silent = stand_in(tmp_path, "print('not JSON')")
    assert "did not answer" in str(baselines.run_peers(silent)["left_out"]["pykalman"])
    absent = baselines.run_peers(tmp_path / "absent")
    assert "did not answer" in str(absent["left_out"]["simdkalman"])


def test_what_one_interpreter_lacks_another_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "components", dict)
    answers = {
        "a": {"versions": {"river": "1"}, "systems": {}, "left_out": {"pykalman": "no"}},
        "b": {"versions": {"pykalman": "2"}, "systems": {}, "left_out": {"river": "no"}},
    }
    pythons = []
    for name, answer in answers.items():
        (tmp_path / name).mkdir()
        pythons.append(stand_in(tmp_path / name, f"print({json.dumps(json.dumps(answer))})"))
    report = baselines.run_baselines(pythons, short=True, progress=lambda _: None)
    assert report["left_out"] == {}
    assert report["versions"]["river"] == "1"
    assert report["versions"]["pykalman"] == "2"


@pytest.mark.usefixtures("one_component")
def test_the_command_writes_json(tmp_path: Path) -> None:
    answer = {"versions": {}, "systems": {}, "left_out": {"river": "not here"}}
    python = stand_in(tmp_path, f"print({json.dumps(json.dumps(answer))})")
    command = ["bench", "baselines", "--short", "--peers-python", str(python)]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["benchmark"] == "baselines"
    shown = CliRunner().invoke(app, command)
    assert "left out: river: not here" in shown.stdout


def test_the_others_carry_the_model_that_eddy_does() -> None:
    transition, noise, observation = baseline_peers.matrices(season=True)
    assert transition.shape == noise.shape == (8, 8)
    day = np.linalg.matrix_power(transition[2:, 2:], baseline_peers.PERIOD)
    np.testing.assert_allclose(day, np.eye(6), atol=1e-9)
    assert observation.sum() == 4.0
    pykalman = baseline_peers.measure(baseline_peers.pykalman_step(True), np.zeros(30))
    assert pykalman["us_per_event"] > 0.0


@pytest.mark.slow  # compiles six kernels
def test_the_forms_of_a_covariance_agree() -> None:
    """2 chunks of the experiment of decision 8."""
    found = covariance_forms.experiment(covariance_forms.PROBLEMS["ordinary"], updates=20_000)
    for name, figures in found.items():
        assert figures["innovation_var_relative_error"] < 1e-3, name
        assert figures["looks_not_positive"] == 0, name
    assert found["square root"]["innovation_var_relative_error"] < 1e-5


def test_a_triangular_root_keeps_the_product() -> None:
    array = np.random.default_rng(1).normal(size=(5, 9))
    product = array @ array.T
    covariance_forms.triangular(array)
    np.testing.assert_allclose(np.triu(array, 1)[:, :5], 0.0, atol=1e-12)
    np.testing.assert_allclose(array @ array.T, product, atol=1e-12)
    assert (np.diag(array) >= 0.0).all()
