"""Fit a prior and its calibration from a stream without anomalies, by the job's own steps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flink_jobs.intensity_in_process import InProcessClient
from flink_jobs.intensity_protocol import IntensityClient, NullClient
from flink_jobs.model_files import kind_models, load_encoder
from flink_jobs.scorer import ShardScorer
from flink_jobs.settings import Settings
from models.prior import KindPrior, Prior, Tail
from models.prior_fit import STEEPEST, fit_kind, fit_tail
from state.events import EventBatch

CLUSTER_MS = 7 * 86_400_000  # an incident of a week is one alert
SILENCE_STEEPEST = 3.0

Stream = Callable[[], Iterable[EventBatch]]


class DictStore(dict[int, bytes]):
    """A shard's records in memory."""

    def put(self, key: int, value: bytes) -> None:
        """Set `key`."""
        self[key] = value

    def remove(self, key: int) -> None:
        """Drop `key`."""
        self.pop(key, None)


def fit_prior(stream: Stream, settings: Settings) -> Prior:
    """Fit the moments of every entity kind.

    Args:
        stream: gives the batches of a stream from its beginning, each time it is called.
        settings: name the kinds and the transform of the value.

    Raises:
        ValueError: the stream is too short to fit a kind.
    """
    times, values, hashes = [], [], []
    for batch in stream():
        times.append(batch.time_ms)
        values.append(batch.value)
        hashes.append(batch.hashes)
    time_ms, value = np.concatenate(times), np.concatenate(values)
    if settings.event.value_transform == "log":
        value = np.log(np.maximum(value, 1.0))
    kinds = [kind for kind, _ in settings.event.entities]
    entity = {
        kind: np.unique(column, return_inverse=True)[1]
        for kind, column in zip(kinds, np.concatenate(hashes, axis=1), strict=True)
    }
    partners = dict(settings.detection.partner_kinds)
    window_ms = settings.detection.partner_window_s * 1000
    return Prior(
        {
            kind: fit_kind(
                entity[kind], time_ms, value, entity.get(partners.get(kind, "")), window_ms
            )
            for kind in kinds
        }
    )


class _Surprises:
    """Keeps the largest surprise of each detector by entity and week, and counts the events.

    Args:
        settings: of the job.
        names: by kind, of its surprises: those of the core, then its components'.
    """

    def __init__(self, settings: Settings, names: Sequence[Sequence[str]]) -> None:
        self._names = names
        self._min_events = settings.detection.min_events
        self._silence_min_events = settings.detection.silence_min_events
        self._seen: dict[tuple[int, str], list[tuple[NDArray[np.float32], NDArray[np.int64]]]]
        self._seen = defaultdict(list)
        self._stream = 0

    def begin_stream(self) -> None:
        """Keep the entities of the next stream apart from those before."""
        self._stream += 1

    def __call__(self, kind: int, advanced: NDArray[np.void], decided: NDArray[np.void]) -> None:
        row = (self._stream << 32) + advanced["row"].astype(np.int64)
        cluster = row * 100_000 + advanced["time_ms"] // CLUSTER_MS
        warm = advanced["events"] >= self._min_events
        for d, name in enumerate(self._names[kind]):
            self._seen[kind, name].append((decided["surprise"][warm, d], cluster[warm]))
        warm = (advanced["events"] >= self._silence_min_events) & advanced["timed"]
        self._seen[kind, "silence"].append((decided["compensator"][warm], cluster[warm]))

    def tails(self, kind: int) -> dict[str, Tail]:
        """Fit the tail of each detector of one kind."""
        fitted = {}
        for name in (*self._names[kind], "silence"):
            parts = self._seen[kind, name]
            surprise, cluster = (np.concatenate(column) for column in zip(*parts, strict=True))
            # The model's gaps are wider than the data's: only a silence may be taken for more.
            steepest = SILENCE_STEEPEST if name == "silence" else STEEPEST
            fitted[name] = fit_tail(surprise, cluster, steepest)
        return fitted


def fit_calibration(
    streams: Sequence[Stream], settings: Settings, folder: Path, prior: Prior
) -> Prior:
    """Return `prior` with the detectors' tails, with the model in `folder` and without it.

    Args:
        streams: streams without anomalies; each begins with entities that are all unknown.
        settings: of the job.
        folder: of a model: encoder.npz and decoder.onnx.
        prior: fitted by `fit_prior`.
    """
    kinds = [kind for kind, _ in settings.event.entities]
    encoder = load_encoder(folder)

    def run(client: IntensityClient) -> list[dict[str, Tail]]:
        models = kind_models(settings, encoder, prior)
        seen = _Surprises(settings, [model.decide.names for model in models])
        for stream in streams:
            seen.begin_stream()
            scorer = ShardScorer(settings, models, DictStore(), client, seen)
            for batch in stream():
                for _ in scorer.on_batch(batch):
                    pass
            for _ in scorer.drain():
                pass
        return [seen.tails(k) for k in range(len(kinds))]

    aided, unaided = run(InProcessClient(folder / "decoder.onnx")), run(NullClient())
    fitted: dict[str, KindPrior] = {
        kind: replace(prior.of(kind), tails=aided[k], degraded_tails=unaided[k])
        for k, kind in enumerate(kinds)
    }
    return Prior(fitted)
