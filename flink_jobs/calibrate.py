"""Fit a prior and its calibration from a stream without anomalies, by the job's own steps."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flink_jobs.batches import transformed
from flink_jobs.intensity_in_process import InProcessClient
from flink_jobs.intensity_protocol import IntensityClient, NullClient
from flink_jobs.kind_model import KindModel, Observer
from flink_jobs.model_files import kind_models, load_encoder
from flink_jobs.scorer import ShardScorer
from flink_jobs.settings import Settings
from models.detectors import FUSED
from models.prior import KindPrior, Prior, Tail
from models.prior_check import CheckModel, PriorCheck
from models.prior_fit import STEEPEST, cluster_maxima, fit_kind, fit_tail_of_maxima
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
    time_ms, value = np.concatenate(times), transformed(np.concatenate(values), settings.event)
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


_COMPACT_EVENTS = 4_000_000  # that wait before they are reduced to their clusters' maxima


@dataclass(slots=True)
class _Maxima:
    """The largest surprise of each cluster of one detector of one kind."""

    surprise: list[NDArray[np.float32]] = field(default_factory=list)
    cluster: list[NDArray[np.int64]] = field(default_factory=list)
    events: int = 0
    waiting: int = 0

    def add(self, surprise: NDArray[np.float32], cluster: NDArray[np.int64]) -> None:
        self.surprise.append(surprise)
        self.cluster.append(cluster)
        self.events += len(surprise)
        self.waiting += len(surprise)
        if self.waiting > _COMPACT_EVENTS:
            self.reduce()

    def reduce(self) -> NDArray[np.float32]:
        if not self.surprise:
            return np.empty(0, np.float32)
        maxima, cluster = cluster_maxima(
            np.concatenate(self.surprise), np.concatenate(self.cluster)
        )
        self.surprise, self.cluster, self.waiting = [maxima], [cluster], 0
        return maxima


@dataclass(frozen=True, slots=True)
class FittedTail:
    """The tail of one detector, and what it was fitted to.

    Attributes:
        tail: the fit.
        maxima: float32[c], the clusters' maxima, falling; at most SHOWN_MAXIMA.
        events: scored events behind them.
        clusters: all of them.
    """

    tail: Tail
    maxima: NDArray[np.float32]
    events: int
    clusters: int


SHOWN_MAXIMA = 2_000


class Surprises:
    """Keeps the largest surprise of each detector by entity and week, and counts the events.

    Args:
        settings: of the job.
        models: by kind, with the components whose surprises count as well; None is the core alone.
    """

    def __init__(self, settings: Settings, models: Sequence[KindModel] | None = None) -> None:
        self._models = models
        self._min_events = settings.detection.min_events
        self._silence_min_events = settings.detection.silence_min_events
        self._seen: dict[tuple[int, str], _Maxima] = defaultdict(_Maxima)
        self._stream = 0

    def begin_stream(self) -> None:
        """Keep the entities of the next stream apart from those before."""
        self._stream += 1

    def __call__(self, kind: int, advanced: NDArray[np.void], decided: NDArray[np.void]) -> None:
        """Take the records of one kind in one batch."""
        row = (self._stream << 32) + advanced["row"].astype(np.int64)
        cluster = row * 100_000 + advanced["time_ms"] // CLUSTER_MS
        warm = advanced["events"] >= self._min_events
        for d, name in enumerate(self._names(kind)):
            self._seen[kind, name].add(decided["surprise"][warm, d], cluster[warm])
        warm = (advanced["events"] >= self._silence_min_events) & advanced["timed"]
        self._seen[kind, "silence"].add(decided["compensator"][warm], cluster[warm])

    def tails(self, kind: int, trimmed: int = 0) -> dict[str, FittedTail]:
        """Fit the tail of each detector of one kind, the `trimmed` largest maxima censored."""
        fitted = {}
        for name in (*self._names(kind), "silence"):
            seen = self._seen[kind, name]
            maxima = seen.reduce()
            # The model's gaps are wider than the data's: only a silence may be taken for more.
            steepest = SILENCE_STEEPEST if name == "silence" else STEEPEST
            tail = fit_tail_of_maxima(maxima, seen.events, steepest, trimmed)
            falling = np.sort(maxima)[::-1][:SHOWN_MAXIMA]
            fitted[name] = FittedTail(tail, falling, seen.events, len(maxima))
        return fitted

    def _names(self, kind: int) -> Sequence[str]:
        return FUSED if self._models is None else self._models[kind].decide.names


def observe(
    streams: Sequence[Stream],
    settings: Settings,
    models: list[KindModel],
    client: IntensityClient,
    surprises: Surprises,
    others: Sequence[Observer] = (),
) -> None:
    """Play streams through the job's own steps, each from unknown entities on.

    Args:
        streams: to play.
        settings: of the job.
        models: by kind.
        client: of the intensity model.
        surprises: takes every decided event.
        others: likewise.
    """

    def tell(kind: int, advanced: NDArray[np.void], decided: NDArray[np.void]) -> None:
        for one in (surprises, *others):
            one(kind, advanced, decided)

    for stream in streams:
        surprises.begin_stream()
        scorer = ShardScorer(settings, models, DictStore(), client, tell)
        for batch in stream():
            for _ in scorer.on_batch(batch):
                pass
        for _ in scorer.drain():
            pass


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
    models = kind_models(settings, load_encoder(folder), prior)
    checks = [PriorCheck(CheckModel.of(prior.of(kind)), 1, 1, math.inf) for kind in kinds]

    def count(kind: int, advanced: NDArray[np.void], decided: NDArray[np.void]) -> None:
        del decided
        checks[kind].add(advanced["value"], advanced["log_gap"], advanced["timed"])

    def run(client: IntensityClient, others: Sequence[Observer] = ()) -> list[dict[str, Tail]]:
        seen = Surprises(settings, models)
        observe(streams, settings, models, client, seen, others)
        return [{n: t.tail for n, t in seen.tails(k).items()} for k in range(len(kinds))]

    aided, unaided = run(InProcessClient(folder / "decoder.onnx")), run(NullClient(), [count])
    fitted: dict[str, KindPrior] = {}
    for k, kind in enumerate(kinds):
        value_pit, gap_pit = checks[k].shares()
        fitted[kind] = replace(
            prior.of(kind),
            tails=aided[k],
            degraded_tails=unaided[k],
            value_pit=value_pit,
            gap_pit=gap_pit,
        )
    return Prior(fitted, prior.origin)
