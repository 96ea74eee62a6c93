"""What the job reads of a model's folder at start: encoder, prior, and what follows from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from flink_jobs.advance import PRIOR_NUMBERS, AdvanceModel
from flink_jobs.components import KindComponents
from flink_jobs.decide import DecideModel
from flink_jobs.errors import EddyError
from flink_jobs.kind_model import KindModel
from flink_jobs.rollout import FILE, Rollout, read_rollout, versions_in
from flink_jobs.settings import Settings
from models.baselines.registry import Context
from models.prior import KindPrior, Prior, load_prior
from models.prior_check import CheckModel
from models.tpp.encoder import Encoder

REPOSITORY = Path(__file__).resolve().parent.parent / "triton_repo"


def model_root(settings: Settings) -> Path:
    """Return the folder that holds the model's versions."""
    return Path(settings.triton.model_repository or REPOSITORY) / settings.triton.model_name


def current_rollout(settings: Settings) -> Rollout:
    """Return who is in charge: the version that the settings pin, or as the rollout file says.

    Raises:
        EddyError: the repository holds no such model or version.
    """
    root, pinned = model_root(settings), settings.triton.model_version
    found = versions_in(root)
    if not found or (pinned and int(pinned) not in found):
        raise EddyError(
            f"model repository: expected {root.name}/{pinned or '<version>'} with encoder.npz and "
            f"prior.json, found versions {[str(version) for version in found]}; check "
            "triton.model_repository, triton.model_name and triton.model_version"
        )
    if not pinned:
        return read_rollout(root)
    base = read_rollout(root).base if (root / FILE).exists() else int(pinned)
    return Rollout(int(pinned), base)


def model_folder(settings: Settings) -> Path:
    """Return the folder of the model version in charge.

    Raises:
        EddyError: the repository holds no such model or version.
    """
    return model_root(settings) / str(current_rollout(settings).in_charge)


def load_encoder(folder: Path) -> Encoder:
    """Read the encoder's weights, float32, of the feature version that this release knows."""
    with (
        (folder / "encoder.npz").open("rb") as file,  # numpy leaves a broken one open
        np.load(file, allow_pickle=False) as arrays,
    ):
        return Encoder.of({name: arrays[name] for name in arrays.files})


def kind_components(settings: Settings, prior: Prior) -> list[KindComponents]:
    """Build the components of each entity kind, in the order of `settings.event.entities`.

    Raises:
        EddyError: one cannot be built from the prior of its kind.
    """
    named = dict(settings.detection.components)
    marks, window_ms = len(settings.event.marks), settings.detection.partner_window_s * 1000
    built = []
    for kind, _ in settings.event.entities:
        try:
            context = Context(prior.of(kind), marks, window_ms)
            built.append(KindComponents.of(named.get(kind, ()), context))
        except ValueError as error:
            raise EddyError(
                f"detection.components.{kind}: the prior of {kind} does not serve {error}; leave "
                "the component out, or fit the prior again with `eddy fit`"
            ) from error
    return built


def kind_models(settings: Settings, encoder: Encoder, prior: Prior) -> list[KindModel]:
    """Put together the models of each entity kind as the settings want them.

    Raises:
        EddyError: a component cannot be built from the prior of its kind.
    """
    detection = settings.detection
    kinds = [kind for kind, _ in settings.event.entities]
    partners: Mapping[str, str] = dict(detection.partner_kinds)
    models = []
    for kind, components in zip(kinds, kind_components(settings, prior), strict=True):
        partner = partners.get(kind) if "partners" in detection.detectors else None
        window_ms = detection.partner_window_s * 1000
        own = prior.of(kind)
        silent = kind in detection.silence_kinds
        silence_alpha = detection.silence_false_alerts_per_million * 1e-6 if silent else None
        models.append(
            KindModel(
                kind=kind,
                advance=AdvanceModel.of(own, encoder, window_ms if partner else None),
                decide=DecideModel.of(
                    own,
                    alpha=detection.false_alerts_per_million * 1e-6,
                    detectors=detection.detectors,
                    min_events=detection.min_events,
                    quiet_ms=detection.incident_quiet_s * 1000,
                    silence_alpha=silence_alpha,
                    silence_min_events=detection.silence_min_events,
                    components=components.labels,
                    fuse_all=settings.sink.scores_topic is not None,
                ),
                partner=kinds.index(partner) if partner else None,
                check=CheckModel.of(own),
                components=components,
                hashed_partner=_hashed_partner(kinds, partners.get(kind), components),
            )
        )
    return models


def _hashed_partner(
    kinds: list[str], partner: str | None, components: KindComponents
) -> int | None:
    return kinds.index(partner) if partner and components.reads_partner else None


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """What the job reads of one version.

    Attributes:
        weights: name of the weights, from the card; "" where it has none.
        encoder: of its memories.
        prior: its tails count, where they were fitted upon the same moments.
    """

    weights: str
    encoder: Encoder
    prior: Prior


def load_version(settings: Settings, version: int, models: Sequence[KindModel]) -> ModelVersion:
    """Read a version that is to work in a job that runs.

    Args:
        settings: of the job.
        version: number of the folder.
        models: by kind, as the job has them.

    Raises:
        EddyError: the folder is broken, or its calibration rests on other moments than the job's.
    """
    folder = model_root(settings) / str(version)
    try:
        encoder, prior = load_encoder(folder), load_prior(folder / "prior.json")
        path = folder / "card.json"
        known = path.exists()
        card: dict[str, Any] = json.loads(path.read_text("utf-8")) if known else {}
        weights = card["model_version"] if known else ""
        found = damaged(folder, card.get("files", {}))
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        EOFError,
        BadZipFile,
    ) as error:
        raise EddyError(f"model folder {folder.name}: {error}") from error
    if found:
        raise EddyError(f"model folder {folder.name}: {found}")
    for model in models:
        other = same_moments(model.advance, prior.of(model.kind))
        if other:
            raise EddyError(
                f"model folder {folder.name}: its prior of {model.kind} has another {other} than "
                "the job's, whose state rests on it; train the version with the prior in charge "
                "(`eddy train` takes it by itself), or start without the savepoint"
            )
    return ModelVersion(str(weights), encoder, prior)


def damaged(folder: Path, sums: Mapping[str, Any]) -> str:
    """Name the first file that is not what the card's SHA-256 vouch for; "" for none."""
    for name, expected in sums.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            return f"card.json lists {name!r}: there is no such file"
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != expected:
            return (
                f"{name}: expected SHA-256 {expected} of the card, found {found}: the file was "
                "damaged or changed after the training; copy the folder again"
            )
    return ""


def same_moments(model: AdvanceModel, prior: KindPrior) -> str:
    """Name the first of the prior's numbers in which it differs from the model's; "" for none."""
    other = moments(AdvanceModel.of(prior, model.encoder, None))
    return next((name for name, own in moments(model).items() if own != other[name]), "")


def moments(model: AdvanceModel) -> dict[str, Any]:
    """Return what a job's state rests on, by name: the prior's numbers and the weekly profile."""
    numbers = model.parameters._asdict()
    profile = {"weekly profile": tuple(model.cumulative.tolist())}
    return {name: numbers[name] for name in PRIOR_NUMBERS} | profile


def load_models(settings: Settings) -> list[KindModel]:
    """Read the base's folder and put together the models of each entity kind."""
    folder = model_root(settings) / str(current_rollout(settings).base)
    try:
        return kind_models(settings, load_encoder(folder), read_prior(settings, folder))
    except (OSError, ValueError, KeyError) as error:
        raise EddyError(f"model folder {folder.name}: {error}") from error


def read_prior(settings: Settings, folder: Path) -> Prior:
    """Read the prior that the settings name, or the one in the model's `folder`.

    Raises:
        EddyError: the named file cannot be read, or is no prior.
    """
    if not settings.detection.prior:
        return load_prior(folder / "prior.json")
    path = Path(settings.detection.prior)
    try:
        return load_prior(path)
    except OSError as error:
        raise EddyError(
            f"detection.prior: {path} cannot be read: {error.strerror}; make it with `eddy fit`"
        ) from None
    except (ValueError, KeyError, AttributeError) as error:
        raise EddyError(f"detection.prior: {path} is no prior: {error}") from None
