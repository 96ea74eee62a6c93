"""Train on a user's stream: read, split, learn (in the training environment), calibrate, report."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from deploy.fit.source import ReadEvents, edition, read_stream
from deploy.fit.work import Work
from deploy.stack.options import REPOSITORY
from deploy.training import card as cards
from deploy.training import compress
from deploy.training.calibrate import KindCalibration, Progress, calibrate
from deploy.training.cost import measure
from deploy.training.folder import (
    CARD,
    LEARNT_FILES,
    PAGE,
    check_free,
    digests,
    publish,
    write_configs,
)
from deploy.training.sequences import (
    Learnable,
    Split,
    learnable,
    sequences_of,
    split_of,
)
from flink_jobs.errors import EddyError
from flink_jobs.model_files import kind_components, load_encoder, model_folder, read_prior
from flink_jobs.settings import Settings
from models.prior import DEFAULT_KIND, Prior, load_prior, save_prior
from models.tpp import plan as plans
from models.tpp.plan import KindSequences, Plan

STEPS = 1_000
CHECK_STEPS = 50


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """What to train.

    Attributes:
        source: a file or a topic.
        out: folder of the model; the work of the training lies in `out` + ".work" until then.
        seed: everything random follows from it.
        steps: gradient steps at most.
        resume: go on with the work that is there.
        limit: newest events that are taken.
        trimmed: largest entity-weeks of each detector that may be anomalies.
        keep_encoder: folder of the model whose encoder stays; None learns one.
        prior: file with moments and profiles; None is the prior in charge.
        device: "auto", "cpu" or "cuda".
        precision: "auto", "fp32", "bf16" or "fp16".
        compress: whether to look for a cheaper decoder.
    """

    source: str
    out: Path
    seed: int = 7
    steps: int = STEPS
    resume: bool = False
    limit: int = 3_000_000
    trimmed: int = 40
    keep_encoder: Path | None = None
    prior: Path | None = None
    device: str = "auto"
    precision: str = "auto"
    compress: bool = False


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A model that stands.

    Attributes:
        card: as it was written.
        learnt: how the training went, as `models.tpp.training.learn` told it.
        calibrated: by kind.
        configs: configurations that were written beside the model.
    """

    card: dict[str, Any]
    learnt: dict[str, Any]
    calibrated: list[KindCalibration]
    configs: list[Path]


Learn = Callable[[Path, str | None], None]
"""Trains in a folder of `models.tpp.plan`, or puts the variant that is named in its place."""


def run_train(
    settings: Settings,
    options: TrainOptions,
    progress: Progress,
    learn: Learn | None = None,
) -> TrainResult:
    """Train, calibrate, and put the model in its folder; the work is removed when it stands.

    Args:
        settings: of the job that will use the model.
        options: what to train.
        progress: told (what, done, total or None).
        learn: trains; None is the training environment.

    Raises:
        EddyError: the stream cannot be read or has too little in it, the work is of another
            training, or the training failed.
    """
    begun = time.monotonic()
    check_free(options.out)
    charge = model_folder(settings)
    prior = prior_of(settings, options, charge)
    kind_components(settings, prior)
    learn = learn or training_environment()
    options.out.absolute().parent.mkdir(parents=True, exist_ok=True)
    work = Work(work_folder(options.out), _job(settings, options), options.resume, "training")
    read = _events(settings, options, work, progress)
    split = split_of(read.events)
    try:
        kinds = sequences_of(read.events, settings)
        chosen = learnable(kinds, split, settings)
        chosen = _with_unknown(chosen, prior, settings)
        _lay_plan(work.folder, options, prior, split, chosen)
    except EddyError:
        work.remove()  # nothing to go on with
        raise
    if not (work.folder / plans.LEARNT).exists():
        learn(work.folder, None)
    learnt = json.loads((work.folder / plans.LEARNT).read_text())
    compression = None
    if options.compress:
        progress("compare decoders", 0, None)
        compression = compress.table(work.folder, learnt, charge / "model.py")
        (kept,) = (row for row in compression["variants"] if row["kept"])
        learn(work.folder, kept["folder"])
        learnt = json.loads((work.folder / plans.LEARNT).read_text())
    made = _fresh(work.folder / "made")
    for name in LEARNT_FILES:
        shutil.copyfile(work.folder / plans.MODEL / name, made / name)
    shutil.copyfile(charge / "model.py", made / "model.py")
    calibrated, told = calibrate(
        settings, made, prior, read.events, split.valid_ms, options.trimmed, progress
    )
    origin = {**prior.origin, **cards.origin(options.source, learnt, read.events, split)}
    save_prior(Prior(calibrated.kinds, origin), made / "prior.json")
    with np.load(made / "check.npz", allow_pickle=False) as check:
        cost = measure({"decoder": made / "decoder.onnx"}, check["x"])["decoder"]
    card = cards.build(
        settings=settings,
        options=options,
        read=read,
        kinds=kinds,
        split=split,
        chosen=chosen,
        learnt=learnt,
        calibrated=told,
        cost=cost,
        seconds=time.monotonic() - begun,
        files=digests(made),
    )
    if compression is not None:
        card["compression"] = compression
    (made / CARD).write_text(json.dumps(card, indent=1) + "\n")
    (made / PAGE).write_text(cards.render(card))
    publish(made, options.out)
    configs = write_configs(charge.parent / "configs", options.out, str(card["model_version"]))
    work.remove()
    return TrainResult(card, learnt, told, configs)


def work_folder(out: Path) -> Path:
    """Return where the work of a training lies."""
    return out.with_name(out.name + ".work")


def prior_of(settings: Settings, options: TrainOptions, charge: Path) -> Prior:
    """Return the prior whose moments standardise the features.

    Raises:
        EddyError: it cannot be read, or is none.
    """
    if options.prior is None:
        return read_prior(settings, charge)
    try:
        return load_prior(options.prior)
    except OSError as error:
        raise EddyError(
            f"--prior: {options.prior} cannot be read: {error.strerror}; make it with `eddy fit`"
        ) from None
    except (ValueError, KeyError, AttributeError) as error:
        raise EddyError(f"--prior: {options.prior} is no prior: {error}") from None


def _with_unknown(chosen: Learnable, prior: Prior, settings: Settings) -> Learnable:
    """Note the kinds whose moments nobody fitted."""
    known = {*prior.kinds}
    unknown = (
        []
        if DEFAULT_KIND in known
        else [kind for kind, _ in settings.event.entities if kind not in known]
    )
    notes = [
        f"the prior has no kind {kind}: its moments are the built-in wide ones; `eddy fit` first"
        for kind in unknown
    ]
    return replace(chosen, notes=(*chosen.notes, *notes))


def training_environment() -> Learn:
    """Return what trains in .venv-train.

    Raises:
        EddyError: it is not installed.
    """
    python = REPOSITORY / ".venv-train" / "bin" / "python"
    if not python.exists():
        raise EddyError(
            f"training needs torch in {python.parents[1]}; run `make .venv-train/.ready`"
        )
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))

    def learn(folder: Path, variant: str | None) -> None:
        command = [str(python), "-m", "models.tpp.training.learn", str(folder.absolute())]
        command += [variant] if variant else []
        code = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": path}, check=False
        ).returncode
        if code:
            raise EddyError(
                f"the training ended with code {code}, see above; its work is kept in {folder}: "
                "--resume goes on from the last checkpoint"
            )

    return learn


def _job(settings: Settings, options: TrainOptions) -> dict[str, object]:
    """Name what the work depends on: what is read of the stream."""
    job: dict[str, object] = {
        "from": options.source,
        "events": repr(settings.event),
        "limit": options.limit,
    }
    return job | edition(options.source, settings)


def _events(
    settings: Settings, options: TrainOptions, work: Work, progress: Progress
) -> ReadEvents:
    return work.events(
        lambda: read_stream(
            options.source, settings, options.limit, lambda n: progress("read", n, None)
        )
    )


def _lay_plan(
    folder: Path, options: TrainOptions, prior: Prior, split: Split, chosen: Learnable
) -> None:
    """Write what the training reads, and drop what another plan had learnt."""
    before = plans.job_of(folder)
    save_prior(prior, folder / plans.PRIOR)
    keep = folder / plans.KEEP
    keep.unlink(missing_ok=True)
    if options.keep_encoder is not None:
        source = options.keep_encoder / "encoder.npz"
        try:
            load_encoder(options.keep_encoder)
            shutil.copyfile(source, keep)
        except OSError as error:
            raise EddyError(
                f"--keep-encoder: expected a model folder with encoder.npz, but {source} cannot be "
                f"read: {error.strerror}"
            ) from None
        except (ValueError, KeyError) as error:
            raise EddyError(f"--keep-encoder: {source}: {error}") from None
    config = {
        "seed": options.seed,
        "steps": options.steps,
        "check_steps": min(CHECK_STEPS, options.steps),
    }
    plan = Plan(
        kinds=tuple(one.kind for one in chosen.kinds),
        valid_ms=split.valid_ms,
        test_ms=split.test_ms,
        end_ms=split.end_ms,
        config=config,
        device=options.device,
        precision=options.precision,
        mark_log_share=chosen.mark_log_share,
        compress=options.compress,
    )
    sequences: tuple[KindSequences, ...] = chosen.kinds
    plans.write_plan(folder, plan, sequences)
    if plans.job_of(folder) != before:
        for name in (plans.LEARNT, plans.CHECKPOINT):
            (folder / name).unlink(missing_ok=True)


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
