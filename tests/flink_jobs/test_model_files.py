"""The model's folder: which version is in charge, and what is wrong with a broken one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flink_jobs.errors import EddyError
from flink_jobs.model_files import kind_models, load_models, model_folder
from flink_jobs.settings import Settings, load
from models.prior import KindPrior, Prior, save_prior
from tests.flink_jobs.score_cases import encoder

FORMER_DIGEST = "4672b1fa653ce8c1"  # of such a model, before the level noise was a parameter


def settings_of(folder: Path, *overrides: str) -> Settings:
    return load(None, {}, [f"triton.model_repository={folder}", *overrides])


def write_model(folder: Path, value_mean: float = 5.0) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    np.savez(
        folder / "encoder.npz",
        W1=rng.normal(size=(32, 11)).astype(np.float32),
        b1=np.zeros(32, np.float32),
        W2=rng.normal(size=(64, 32)).astype(np.float32),
        b2=np.zeros(64, np.float32),
    )
    save_prior(
        Prior({"user": KindPrior(value_mean=value_mean), "default": KindPrior()}),
        folder / "prior.json",
    )


def test_the_newest_version_is_in_charge_by_number(tmp_path: Path) -> None:
    for version in ("1", "2", "10"):
        write_model(tmp_path / "intensity" / version, float(version))
    (tmp_path / "intensity" / "configs").mkdir()
    assert model_folder(settings_of(tmp_path)).name == "10"
    assert model_folder(settings_of(tmp_path, "triton.model_version=2")).name == "2"
    assert load_models(settings_of(tmp_path))[0].advance.parameters.value_mean == 10.0


def test_a_version_that_is_not_there(tmp_path: Path) -> None:
    write_model(tmp_path / "intensity" / "1")
    wanted = r"expected intensity/7 with encoder.npz and prior.json, found versions \['1'\]; check"
    with pytest.raises(EddyError, match=wanted):
        model_folder(settings_of(tmp_path, "triton.model_version=7"))
    with pytest.raises(EddyError, match="expected other/<version> with"):
        model_folder(settings_of(tmp_path, "triton.model_name=other"))


def test_a_broken_folder_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "intensity" / "3"
    write_model(folder)
    (folder / "prior.json").unlink()
    with pytest.raises(EddyError, match="model folder 3: .*prior.json"):
        load_models(settings_of(tmp_path))
    np.savez(folder / "encoder.npz", W1=np.zeros((2, 2), np.float32))
    with pytest.raises(EddyError, match=r"encoder weights W1: expected shape \(32, 11\)"):
        load_models(settings_of(tmp_path))


def test_the_kinds_take_what_the_settings_want(tmp_path: Path) -> None:
    chosen = settings_of(
        tmp_path,
        "detection.silence_kinds=merchant",
        "detection.silence_min_events=31",
        "detection.min_events=9",
        "detection.incident_quiet_s=77",
        "detection.partner_window_s=50",
        "detection.false_alerts_per_million=2",
    )
    prior = Prior({"user": KindPrior(value_mean=5.0), "default": KindPrior(value_mean=6.0)})
    user, merchant, device = kind_models(chosen, encoder(), prior)
    assert [m.kind for m in (user, merchant, device)] == ["user", "merchant", "device"]
    assert [m.advance.parameters.value_mean for m in (user, merchant, device)] == [5.0, 6.0, 6.0]
    assert [m.partner for m in (user, merchant, device)] == [None, None, 0]
    assert [m.advance.parameters.has_partners for m in (user, merchant, device)] == [
        False,
        False,
        True,
    ]
    assert device.advance.parameters.partner_window_ms == 50_000
    assert [m.decide.parameters.awaits for m in (user, merchant, device)] == [False, True, False]
    parameters = merchant.decide.parameters
    assert parameters.await_min_events == 31
    assert parameters.min_events == 9
    assert parameters.quiet_ms == 77_000
    assert parameters.log_alpha == pytest.approx(np.log(2e-6))


def test_partners_switched_off_are_not_counted(tmp_path: Path) -> None:
    chosen = settings_of(tmp_path, "detection.detectors=amount,silence")
    models = kind_models(chosen, encoder(), Prior({}))
    assert [m.partner for m in models] == [None, None, None]


def test_models_that_differ_have_other_digests(tmp_path: Path) -> None:
    one = kind_models(settings_of(tmp_path), encoder(), Prior({}))
    same = kind_models(settings_of(tmp_path), encoder(), Prior({}))
    other = kind_models(settings_of(tmp_path), encoder(), Prior({"user": KindPrior(gap_mean=1.0)}))
    assert [m.digest() for m in one] == [m.digest() for m in same]
    assert [a.digest() == b.digest() for a, b in zip(one, other, strict=True)] == [
        False,
        True,
        True,
    ]


def test_the_model_that_is_shipped_loads() -> None:
    models = load_models(load(None, {}, []))
    assert [m.kind for m in models] == ["user", "merchant", "device"]
    assert all(m.advance.cumulative[-1] == pytest.approx(168.0) for m in models)


def test_the_prior_that_the_settings_name_is_loaded(tmp_path: Path) -> None:
    write_model(tmp_path / "intensity" / "1", 5.0)
    own = tmp_path / "mine.json"
    save_prior(Prior({"user": KindPrior(value_mean=6.5)}), own)
    chosen = settings_of(tmp_path, f"detection.prior={own}")
    assert load_models(chosen)[0].advance.parameters.value_mean == 6.5
    assert load_models(settings_of(tmp_path))[0].advance.parameters.value_mean == 5.0
    digests = [load_models(s)[0].digest() for s in (chosen, settings_of(tmp_path))]
    assert digests[0] != digests[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "mine.json cannot be read: No such file or directory; make it with `eddy fit`"),
        ("{", "mine.json is no prior"),
        ('{"version": 7, "kinds": {}}', "is no prior: mine.json: expected prior version 2"),
        ('{"version": 2}', "is no prior: 'kinds'"),
        ('{"version": 2, "kinds": {"user": {}}}', "is no prior: 'tails'"),
    ],
)
def test_a_named_prior_that_cannot_be_used(tmp_path: Path, text: str | None, message: str) -> None:
    write_model(tmp_path / "intensity" / "1")
    own = tmp_path / "mine.json"
    if text is not None:
        own.write_text(text)
    with pytest.raises(EddyError, match=f"detection.prior: .*{message}"):
        load_models(settings_of(tmp_path, f"detection.prior={own}"))


def test_a_level_noise_of_its_own_changes_the_digest_and_the_former_one_does_not(
    tmp_path: Path,
) -> None:
    """A savepoint that was written before the level noise could be fitted still restores."""
    (plain, *_) = kind_models(settings_of(tmp_path), encoder(), Prior({"user": KindPrior()}))
    prior = Prior({"user": KindPrior(level_noise=1e-3)})
    (moving, *_) = kind_models(settings_of(tmp_path), encoder(), prior)
    assert plain.digest() == FORMER_DIGEST
    assert moving.digest() != plain.digest()
