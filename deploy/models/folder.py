"""Check a version's folder before it joins the repository: what can be found out without Triton."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flink_jobs.errors import EddyError
from flink_jobs.settings import Settings
from models.tpp import spec

if TYPE_CHECKING:
    from models.prior import Prior
    from models.tpp.encoder import Encoder

CARD = "card.json"
DECODER = "decoder.onnx"
CHECK = "check.npz"
# What the server and the job read of a version; the card must vouch for the first three.
VOUCHED = (DECODER, "encoder.npz", CHECK)
REQUIRED = (*VOUCHED, "prior.json", CARD)
TOLERANCE = 1e-5  # one runtime, one machine: torch's export and onnxruntime agree to rounding
_DTYPES = {"tensor(float)": "FP32"}


class RefusedModelError(EddyError):
    """A version that must not join the repository; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Version:
    """A version's folder that was found sound.

    Attributes:
        folder: where it is.
        weights: the name of its weights, `model_version` of the card.
        card: the whole card.
        x: float32[rows, 69], questions whose answers are known.
        y: float32[rows, 32], the answers that training saw.
        tolerance: how far an answer may be from y; more than TOLERANCE only where the card says so.
    """

    folder: Path
    weights: str
    card: Mapping[str, Any]
    x: NDArray[np.float32]
    y: NDArray[np.float32]
    tolerance: float


def read_card(folder: Path) -> dict[str, Any]:
    """Read a version's card.

    Raises:
        RefusedModelError: there is none, or it is no JSON object with the names that eddy needs.
    """
    path = folder / CARD
    try:
        card = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise RefusedModelError(f"{path}: {error.strerror}; `eddy train` writes it") from None
    except ValueError as error:
        raise RefusedModelError(f"{path} is no JSON: {error}") from None
    for name, form in (("model_version", str), ("feature_version", str), ("files", dict)):
        if not isinstance(card, dict) or not isinstance(card.get(name), form):
            raise RefusedModelError(
                f"{path}: expected {name!r} as `eddy train` writes it, found "
                f"{card.get(name) if isinstance(card, dict) else type(card).__name__!r}"
            )
    return dict(card)


def check_folder(folder: Path) -> Version:
    """Check files, checksums, feature version, and the decoder's answers in this process.

    Args:
        folder: as `eddy train` writes it.

    Raises:
        RefusedModelError: something is missing or wrong; says what was expected and found.
    """
    missing = [name for name in REQUIRED if not (folder / name).is_file()]
    if missing:
        raise RefusedModelError(
            f"{folder}: expected {', '.join(REQUIRED)} as `eddy train` writes them, "
            f"found no {', '.join(missing)}"
        )
    card = read_card(folder)
    _check_sums(folder, card["files"])
    if card["feature_version"] != spec.FEATURE_VERSION:
        raise RefusedModelError(
            f"{folder / CARD}: expected feature version {spec.FEATURE_VERSION}, found "
            f"{card['feature_version']}; train it again with this version of eddy"
        )
    x, y = _read_check(folder / CHECK)
    tolerance = _tolerance(folder, card)
    _check_decoder(folder / DECODER, card["model_version"], x, y, tolerance)
    return Version(folder, card["model_version"], card, x, y, tolerance)


def _check_sums(folder: Path, sums: Mapping[str, Any]) -> None:
    from flink_jobs.model_files import damaged

    unvouched = [name for name in VOUCHED if name not in sums]
    if unvouched:
        raise RefusedModelError(
            f"{folder / CARD}: expected the SHA-256 of {', '.join(VOUCHED)} under files, "
            f"found none of {', '.join(unvouched)}"
        )
    found = damaged(folder, sums)
    if found:
        raise RefusedModelError(f"{folder}/{found}")


def _tolerance(folder: Path, card: Mapping[str, Any]) -> float:
    told = card.get("tolerance", TOLERANCE)
    if not isinstance(told, int | float) or not 0.0 <= told <= 1.0:
        raise RefusedModelError(
            f"{folder / CARD}: expected a tolerance between 0 and 1, found {told!r}"
        )
    return max(TOLERANCE, float(told))


def _read_check(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            x, y = arrays["x"], arrays["y"]
    except (OSError, ValueError, KeyError) as error:
        raise RefusedModelError(f"{path}: expected arrays x and y: {error}") from None
    for name, array, width in (("x", x, spec.INPUT), ("y", y, spec.OUTPUT)):
        good = array.ndim == 2 and array.shape[1] == width and array.dtype == np.float32
        if not good or len(array) != len(x) or not len(x) or not np.isfinite(array).all():
            raise RefusedModelError(
                f"{path}: expected {name} as finite float32 [rows, {width}], found {array.dtype} "
                f"{list(array.shape)}{'' if np.isfinite(array).all() else ' not finite'}"
            )
    return x, y


def _check_decoder(
    path: Path,
    weights: str,
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    tolerance: float,
) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - onnxruntime raises classes of its C++ side
        raise RefusedModelError(f"{path}: onnxruntime cannot load it: {error}") from None
    meta = session.get_modelmeta().custom_metadata_map
    for key, expected in (("feature_version", spec.FEATURE_VERSION), ("model_version", weights)):
        if meta.get(key) != expected:
            raise RefusedModelError(
                f"{path}: expected {key} {expected} in it, found {meta.get(key)}: decoder and "
                "card are not of one training"
            )
    for side, tensors, name, width in (
        ("input", session.get_inputs(), "x", spec.INPUT),
        ("output", session.get_outputs(), "y", spec.OUTPUT),
    ):
        found = [f"{t.name} {_DTYPES.get(t.type, t.type)} {list(t.shape)}" for t in tensors]
        # A dimension without a fixed size has a name, or None.
        free = all(isinstance(t.shape[0], str | None) for t in tensors if t.shape)
        if [(t.name, t.type, *t.shape[1:]) for t in tensors] != [
            (name, "tensor(float)", width)
        ] or not free:
            raise RefusedModelError(
                f"{path}: expected one {side} {name} FP32 [rows, {width}], found {found}"
            )
    try:
        (answers,) = session.run(["y"], {"x": x})
    except Exception as error:  # noqa: BLE001 - as above
        raise RefusedModelError(f"{path}: onnxruntime cannot run it: {error}") from None
    check_answers(f"{path} in this process", answers, y, tolerance)


def check_answers(
    who: str, answers: NDArray[np.float32], expected: NDArray[np.float32], tolerance: float
) -> None:
    """Compare a decoder's answers with those that training saw.

    Args:
        who: answered, for the message.
        answers: what came.
        expected: float32[rows, 32].
        tolerance: largest absolute difference.

    Raises:
        RefusedModelError: another shape, numbers that are not finite, or too far off.
    """
    if answers.shape != expected.shape:
        raise RefusedModelError(
            f"{who}: expected answers [{', '.join(map(str, expected.shape))}] to {CHECK}, found "
            f"{list(answers.shape)}"
        )
    odd = int(np.sum(~np.isfinite(answers)))
    if odd:
        raise RefusedModelError(
            f"{who}: expected finite answers to {CHECK}, found {odd:,} of {answers.size:,} not "
            "finite: its weights are damaged, or its training diverged"
        )
    worst = float(np.abs(answers - expected).max())
    if worst > tolerance:
        raise RefusedModelError(
            f"{who}: expected the answers of {CHECK} within {tolerance:g}, found a difference of "
            f"{worst:.3g}: decoder and check are not of one export; train it again"
        )


def check_moments(
    version: Path, encoder: Encoder, settings: Settings, base: Path
) -> Mapping[str, Any]:
    """Refuse a version whose prior's moments are not those that the job's state was made with.

    Args:
        version: its folder.
        encoder: any; what is compared does not depend on it.
        settings: `detection.prior` and the entity kinds.
        base: folder of the version that the job's state is founded on.

    Returns:
        The moments, by kind and name.

    Raises:
        RefusedModelError: they differ, or the version's prior cannot be read.
    """
    from flink_jobs.model_files import read_prior
    from models.prior import load_prior

    try:
        told = load_prior(version / "prior.json")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise RefusedModelError(f"{version / 'prior.json'} is no prior: {error}") from None
    known = read_prior(settings, base)
    kinds = [kind for kind, _ in settings.event.entities]
    ours, theirs = (_moments(prior, kinds, encoder) for prior in (known, told))
    where = settings.detection.prior or f"version {base.name}"
    for kind, moments in ours.items():
        for name, expected in moments.items():
            found = theirs[kind][name]
            if found != expected:
                raise RefusedModelError(
                    f"{version / 'prior.json'}, kind {kind}: expected the {name} of {where}"
                    f"{_numbers(expected, found)}. The moments and the weekly profile are part of "
                    "the job's state: train on the prior that the job runs with"
                    " (`eddy train --help`), or give the new prior a job and a state of its own"
                )
    return ours


def _moments(prior: Prior, kinds: list[str], encoder: Encoder) -> dict[str, dict[str, Any]]:
    from flink_jobs.advance import AdvanceModel
    from flink_jobs.model_files import moments

    return {kind: moments(AdvanceModel.of(prior.of(kind), encoder, None)) for kind in kinds}


def _numbers(expected: object, found: object) -> str:
    return "" if isinstance(expected, tuple) else f", {expected:g}, found {found:g}"
