"""Fit a prior from a user's stream: read, fit a sample of entities, calibrate, report."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploy.fit.source import edition, read_stream
from deploy.fit.work import Work
from flink_jobs.alerts import rfc3339
from flink_jobs.batches import transformed
from flink_jobs.calibrate import FittedTail, Surprises, observe
from flink_jobs.errors import EddyError
from flink_jobs.intensity_in_process import InProcessClient
from flink_jobs.intensity_protocol import IntensityClient, NullClient
from flink_jobs.kind_model import KindModel
from flink_jobs.model_files import kind_components, kind_models, load_encoder, model_folder
from flink_jobs.pit import PitCounts
from flink_jobs.settings import Settings
from models.level_fit import LevelFit, cross_check, fit_level, standardised_innovations
from models.population import (
    GapFits,
    KindFit,
    KindStream,
    fit_gaps,
    fit_kind_prior,
    profile_of,
    sample_entities,
)
from models.prior import KindPrior, Prior, save_prior
from models.prior_fit import fit_partner_mean
from state.events import EventBatch

REPLAY_EVENTS = 4_096
EM_ENTITIES = 5  # of each kind, cross-checked by EM

Progress = Callable[[str, int, int | None], None]
_Played = tuple[Surprises, PitCounts]


@dataclass(frozen=True, slots=True)
class FitOptions:
    """What to fit.

    Attributes:
        source: a file or a topic.
        out: where the prior is written; the work of the fit lies in `out` + ".work" until then.
        sample: entities of each kind whose level is fitted.
        seed: of every draw.
        resume: go on with the work that is there.
        limit: newest events that are taken.
        trimmed: largest entity-weeks of each detector that may be anomalies.
    """

    source: str
    out: Path
    sample: int = 200
    seed: int = 1
    resume: bool = False
    limit: int = 3_000_000
    trimmed: int = 40


@dataclass(frozen=True, slots=True)
class KindResult:
    """The fit of one kind, with what the report shows of it.

    Attributes:
        kind: name.
        events: of the kind.
        entities: of the kind.
        fit: moments, and notes on them.
        levels: of the sampled entities.
        innovations: of each of them.
        gaps: of the entities whose gaps were fitted.
        prior: calibrated.
        aided: tails with the intensity model; None where it is switched off.
        unaided: tails without it.
        pits: counts in 100 equal parts by what was predicted: "value", "gap" (log-normal) and
            "gap, model" (intensity model).
    """

    kind: str
    events: int
    entities: int
    fit: KindFit
    levels: tuple[LevelFit, ...]
    innovations: tuple[NDArray[np.float64], ...]
    gaps: GapFits
    prior: KindPrior
    aided: dict[str, FittedTail] | None
    unaided: dict[str, FittedTail]
    pits: dict[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class FitResult:
    """Everything that a fit found.

    Attributes:
        prior: as it was written.
        messages: read, the bad and the dropped ones included.
        events: that were fitted.
        rejected: bad messages by reason.
        dropped: events that were too old for the limit.
        first_bad: what was wrong with the first bad message.
        kinds: by entity kind.
    """

    prior: Prior
    messages: int
    events: int
    rejected: dict[str, int]
    dropped: int
    first_bad: str
    kinds: tuple[KindResult, ...]


@dataclass(frozen=True, slots=True)
class _Sampled:
    """One kind before its calibration: its events, its fitted entities by index, its prior."""

    stream: KindStream
    levels: list[tuple[int, LevelFit]]
    fit: KindFit


def run_fit(settings: Settings, options: FitOptions, progress: Progress) -> FitResult:
    """Fit, calibrate, and write the prior; the work is removed when it stands.

    Args:
        settings: of the job that will use the prior.
        options: what to fit.
        progress: told (what, done, total or None).

    Raises:
        EddyError: the stream cannot be read or holds no event, the work is of another fit, or a
            component cannot be built: where no prior would serve it, before anything is read.
    """
    folder = model_folder(settings)
    kind_components(settings, Prior({}))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    work = Work(work_folder(options.out), _job(settings, options), options.resume)
    try:
        read = work.events(
            lambda: read_stream(
                options.source, settings, options.limit, lambda n: progress("read", n, None)
            )
        )
        names = [kind for kind, _ in settings.event.entities]
        streams = [kind_stream(read.events, k, settings) for k in range(len(names))]
        levels = _fit_levels(names, streams, options, work, progress)
        sampled = [
            _Sampled(stream, mine, _fit_kind(read.events, k, stream, mine, settings, options.seed))
            for k, (stream, mine) in enumerate(zip(streams, levels, strict=True))
        ]
        plain = Prior(
            {name: one.fit.prior for name, one in zip(names, sampled, strict=True)},
            _origin(settings, options, read.events),
        )
        kinds = _calibrate(settings, folder, options, read.events, plain, sampled, progress)
    finally:
        work.close()
    prior = replace(plain, kinds={kind.kind: kind.prior for kind in kinds})
    save_prior(prior, options.out)
    work.remove()
    return FitResult(
        prior=prior,
        messages=read.messages,
        events=len(read.events),
        rejected=dict(read.rejected),
        dropped=read.dropped,
        first_bad=read.first_bad,
        kinds=tuple(kinds),
    )


def work_folder(out: Path) -> Path:
    """Return where the work of a fit lies."""
    return out.with_name(out.name + ".work")


def _job(settings: Settings, options: FitOptions) -> dict[str, object]:
    """Name what the work depends on."""
    event = hashlib.sha256(repr(settings.event).encode()).hexdigest()[:16]
    job: dict[str, object] = {
        "from": options.source,
        "events": event,
        "sample": options.sample,
        "seed": options.seed,
        "limit": options.limit,
    }
    return job | edition(options.source, settings)


def _origin(settings: Settings, options: FitOptions, events: EventBatch) -> dict[str, str]:
    return {
        "from": options.source,
        "events": str(len(events)),
        "first": rfc3339(int(events.time_ms[0])),
        "last": rfc3339(int(events.time_ms[-1])),
        "seed": str(options.seed),
        "sample": str(options.sample),
        "settings": settings.settings_hash(),
    }


def kind_stream(events: EventBatch, k: int, settings: Settings) -> KindStream:
    """Group the events that have an entity of kind number `k`.

    Raises:
        EddyError: no event has one.
    """
    mine = (events.owned >> k & 1) == 1
    if not mine.any():
        kind, pointer = settings.event.entities[k]
        raise EddyError(
            f"no event has an entity of the kind {kind} at {pointer}: expected some; check "
            "[event.entities]"
        )
    value = transformed(events.value[mine], settings.event)
    return KindStream.of(events.hashes[k][mine], events.time_ms[mine], value)


def _fit_levels(
    names: list[str], streams: list[KindStream], options: FitOptions, work: Work, progress: Progress
) -> list[list[tuple[int, LevelFit]]]:
    """Fit the level of the sampled entities of each kind: (index, fit)."""
    chosen = [
        sample_entities(stream, options.sample, options.seed + k)
        for k, stream in enumerate(streams)
    ]
    total, done = sum(map(len, chosen)), 0
    sampled = []
    for name, stream, indices in zip(names, streams, chosen, strict=True):
        # Spread over the sample, whose order is that of the entities' hashes.
        checked = set(indices[:: -(-len(indices) // EM_ENTITIES) or 1].tolist())
        mine = []
        for index in indices.tolist():
            key = name, int(stream.entity[index])
            if key not in work.fits:
                values = stream.values(index)
                fit = fit_level(values)
                work.save_fit(key, cross_check(values, fit) if index in checked else fit)
            mine.append((index, work.fits[key]))
            done += 1
            progress("fit entities", done, total)
        sampled.append(mine)
    return sampled


def _fit_kind(
    events: EventBatch,
    k: int,
    stream: KindStream,
    sampled: list[tuple[int, LevelFit]],
    settings: Settings,
    seed: int,
) -> KindFit:
    profile, notes = profile_of(stream)
    partner_mean = 1.0
    partners = dict(settings.detection.partner_kinds)
    kinds = [kind for kind, _ in settings.event.entities]
    if kinds[k] in partners:
        other = kinds.index(partners[kinds[k]])
        both = (events.owned >> k & events.owned >> other & 1) == 1
        if both.any():
            numbers = [
                np.unique(events.hashes[i][both], return_inverse=True)[1] for i in (k, other)
            ]
            partner_mean = fit_partner_mean(
                numbers[0],
                events.time_ms[both],
                numbers[1],
                settings.detection.partner_window_s * 1000,
            )
    fit = fit_kind_prior(stream, [one for _, one in sampled], profile, partner_mean, seed)
    return replace(fit, notes=(*notes, *fit.notes))


def _calibrate(
    settings: Settings,
    folder: Path,
    options: FitOptions,
    events: EventBatch,
    prior: Prior,
    sampled: list[_Sampled],
    progress: Progress,
) -> list[KindResult]:
    """Play the stream through the job's steps, with the intensity model and without."""
    models = kind_models(settings, load_encoder(folder), prior)
    alone = _play(settings, models, NullClient(), events, "without the model", progress)
    aided = None
    if settings.triton.enabled:
        client = InProcessClient(folder / "decoder.onnx")
        aided = _play(settings, models, client, events, "with the model", progress)
    return [
        _kind_result(kind, k, one, options, alone, aided)
        for k, ((kind, _), one) in enumerate(zip(settings.event.entities, sampled, strict=True))
    ]


def _kind_result(
    kind: str, k: int, sampled: _Sampled, options: FitOptions, alone: _Played, aided: _Played | None
) -> KindResult:
    surprises, pits = alone
    unaided = surprises.tails(k, options.trimmed)
    with_model = aided[0].tails(k, options.trimmed) if aided else None
    value_pit, gap_pit = pits.population[k].shares()
    prior = replace(
        sampled.fit.prior,
        tails={name: one.tail for name, one in (with_model or unaided).items()},
        degraded_tails={name: one.tail for name, one in unaided.items()},
        value_pit=value_pit,
        gap_pit=gap_pit,
    )
    histograms = {"value": pits.value[k], "gap": pits.gap[k]}
    if aided:
        histograms["gap, model"] = aided[1].gap[k]
    stream = sampled.stream
    innovations = [standardised_innovations(stream.values(i), fit) for i, fit in sampled.levels]
    return KindResult(
        kind=kind,
        events=len(stream.time_ms),
        entities=len(stream.entity),
        fit=sampled.fit,
        levels=tuple(fit for _, fit in sampled.levels),
        innovations=tuple(innovations),
        gaps=fit_gaps(stream, prior.profile, options.seed),
        prior=prior,
        aided=with_model,
        unaided=unaided,
        pits=histograms,
    )


def _play(
    settings: Settings,
    models: list[KindModel],
    client: IntensityClient,
    events: EventBatch,
    what: str,
    progress: Progress,
) -> _Played:
    def batches() -> Iterator[EventBatch]:
        for start in range(0, len(events), REPLAY_EVENTS):
            yield events.part(start, start + REPLAY_EVENTS)
            progress(f"calibrate {what}", min(start + REPLAY_EVENTS, len(events)), len(events))

    seen = Surprises(settings, models)
    pits = PitCounts([model.check for model in models], settings.detection.min_events)
    observe([batches], settings, models, client, seen, [pits])
    return seen, pits


def summary(result: FitResult) -> dict[str, object]:
    """Return the numbers of a fit, as `--json` prints them."""
    from deploy.fit.words import warnings_of

    return {
        "messages": result.messages,
        "events": result.events,
        "rejected": result.rejected,
        "dropped": result.dropped,
        "kinds": {
            one.kind: {
                "events": one.events,
                "entities": one.entities,
                "fitted": len(one.levels),
                **{
                    name: getattr(one.prior, name)
                    for name in (
                        "value_mean", "value_between_var", "value_within_var", "level_noise",
                        "gap_mean", "gap_between_var", "gap_within_var", "partner_mean",
                    )
                },
                "tails": {name: asdict(tail) for name, tail in one.prior.tails.items()},
                "degraded_tails": {
                    name: asdict(tail) for name, tail in one.prior.degraded_tails.items()
                },
                "warnings": warnings_of(one),
            }
            for one in result.kinds
        },
    }  # fmt: skip
