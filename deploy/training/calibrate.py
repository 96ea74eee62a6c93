"""Calibrate the detectors with a new model on the later part of a user's stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flink_jobs.calibrate import FittedTail, Surprises, observe
from flink_jobs.intensity_in_process import InProcessClient
from flink_jobs.intensity_protocol import IntensityClient, NullClient
from flink_jobs.kind_model import KindModel
from flink_jobs.model_files import kind_models, load_encoder
from flink_jobs.pit import PitCounts
from flink_jobs.settings import Settings
from models.prior import KindPrior, Prior, Tail
from models.prior_fit import FEWEST_TAIL_EVENTS, TAIL_CLUSTERS
from state.events import EventBatch

REPLAY_EVENTS = 4_096

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, slots=True)
class KindCalibration:
    """The calibration of one kind.

    Attributes:
        kind: name.
        tails: by detector, with the model.
        whole: detectors whose tails are of the whole stream, since the later part is too short.
        degraded: detectors whose tails without the model were fitted anew: the prior had none.
        pit: float64[100], counts of the gaps by where they fell in what the model predicted, on
            the later part, as the job counts them.
    """

    kind: str
    tails: dict[str, FittedTail]
    whole: tuple[str, ...]
    degraded: tuple[str, ...]
    pit: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Since:
    """Hands on what is decided from a time on."""

    others: tuple[Surprises | PitCounts, ...]
    from_ms: int

    def __call__(self, kind: int, advanced: NDArray[np.void], decided: NDArray[np.void]) -> None:
        late = advanced["time_ms"] >= self.from_ms
        for other in self.others:
            other(kind, advanced[late], decided[late])


@dataclass(frozen=True, slots=True)
class _Played:
    whole: Surprises
    late: Surprises
    pits: PitCounts


def calibrate(
    settings: Settings,
    folder: Path,
    prior: Prior,
    events: EventBatch,
    from_ms: int,
    trimmed: int,
    progress: Progress,
) -> tuple[Prior, list[KindCalibration]]:
    """Return `prior` with tails for the model in `folder`; its moments stay as they are.

    The whole stream is played through the job's own steps, so that entities are known by the time
    that counts. A detector with too few events since `from_ms` is calibrated on all of them.
    Anomalies are trimmed as in `eddy fit`. Tails without the model are those of `prior`; those that
    it lacks are fitted as well.

    Args:
        settings: of the job.
        folder: of a model: encoder.npz and decoder.onnx.
        prior: in charge.
        events: in order of time.
        from_ms: end of what the model was trained on.
        trimmed: largest entity-weeks of each detector that may be anomalies.
        progress: told (what, done, total).
    """
    models = kind_models(settings, load_encoder(folder), prior)
    client = InProcessClient(folder / "decoder.onnx")
    aided = _play(settings, models, client, events, from_ms, "calibrate with the model", progress)
    kinds = [kind for kind, _ in settings.event.entities]
    missing = [
        [n for n in (*model.decide.names, "silence") if n not in prior.of(kind).degraded_tails]
        for kind, model in zip(kinds, models, strict=True)
    ]
    alone = None
    if any(missing):
        what = "calibrate without the model"
        alone = _play(settings, models, NullClient(), events, from_ms, what, progress)
    fitted: dict[str, KindPrior] = {}
    told = []
    for k, kind in enumerate(kinds):
        tails, whole = _tails(aided, k, trimmed)
        degraded: dict[str, Tail] = dict(prior.of(kind).degraded_tails)
        if alone is not None:
            own, _ = _tails(alone, k, trimmed)
            degraded |= {name: own[name].tail for name in missing[k]}
        fitted[kind] = replace(
            prior.of(kind),
            tails={name: one.tail for name, one in tails.items()},
            degraded_tails=degraded,
        )
        told.append(KindCalibration(kind, tails, whole, tuple(missing[k]), aided.pits.gap[k]))
    return Prior(fitted, prior.origin), told


def _play(
    settings: Settings,
    models: list[KindModel],
    client: IntensityClient,
    events: EventBatch,
    from_ms: int,
    what: str,
    progress: Progress,
) -> _Played:
    def batches() -> Iterator[EventBatch]:
        for start in range(0, len(events), REPLAY_EVENTS):
            yield events.part(start, start + REPLAY_EVENTS)
            progress(what, min(start + REPLAY_EVENTS, len(events)), len(events))

    whole, late = Surprises(settings, models), Surprises(settings, models)
    pits = PitCounts([model.check for model in models], settings.detection.min_events)
    observe([batches], settings, models, client, whole, [_Since((late, pits), from_ms)])
    return _Played(whole, late, pits)


def _tails(played: _Played, k: int, trimmed: int) -> tuple[dict[str, FittedTail], tuple[str, ...]]:
    """Return the tail of each detector, and those that had to be fitted on the whole stream."""
    late, whole = played.late.tails(k, trimmed), played.whole.tails(k, trimmed)
    short = [
        name
        for name, one in late.items()
        if one.events < FEWEST_TAIL_EVENTS or one.clusters <= TAIL_CLUSTERS
    ]
    return late | {name: whole[name] for name in short}, tuple(short)
