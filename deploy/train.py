"""Make a model folder from simulated payments: prior, decoder and encoder, calibration.

Run by `eddy train` without `--from` in the training environment: `python -m deploy.train --seed 7
--out FOLDER`.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from flink_jobs.calibrate import Stream, fit_calibration, fit_prior
from flink_jobs.parse import Records, parse
from flink_jobs.settings import Settings, load
from models.prior import save_prior
from models.simulation.config import SimulationConfig, training
from models.simulation.encode import encode_payments
from models.simulation.stream import simulate
from state.events import EventBatch

CALIBRATION_WORLDS = 3
# Beside the core: its packaged prior must know the tails of what a user may switch on later.
COMPONENTS = ("sequence",)
WORLD_SEEDS = 100  # priors and calibration see other worlds than the decoder does


def _batches(config: SimulationConfig, settings: Settings) -> Iterator[EventBatch]:
    """Play a world through the job's own parse step."""
    offset = 0
    for chunk in simulate(config):
        values = encode_payments(chunk)
        n = len(values)
        records = Records(
            settings.source.topic,
            values,
            np.zeros(n, np.int32),
            np.arange(offset, offset + n),
            np.full(n, chunk.time_ms[-1]),
        )
        parsed = parse(records, settings.event, 1)
        if parsed.rejected:
            raise ValueError(f"a simulated payment was rejected: {parsed.rejected[0].detail}")
        offset += n
        yield from (batch for _, batch in parsed.batches)


def _stream(seed: int, settings: Settings) -> Stream:
    return lambda: _batches(training(seed), settings)


def calibrate(settings: Settings, folder: Path, seed: int, report: Callable[[str], None]) -> None:
    """Fit prior and calibration of the model in `folder`, and write its prior.json.

    Args:
        settings: of the job.
        folder: of a model, with encoder.npz and decoder.onnx.
        seed: of the first world; 1,000 seeds apart give other worlds.
        report: told of each step.
    """
    named = ",".join(COMPONENTS)
    settings = settings.override(
        *(f"detection.components.{kind}={named}" for kind, _ in settings.event.entities)
    )
    first = seed * WORLD_SEEDS
    report(f"prior: simulated world {first}")
    prior = fit_prior(_stream(first, settings), settings)
    worlds = range(first + 1, first + 1 + CALIBRATION_WORLDS)
    report(f"calibration: simulated worlds {worlds[0]} to {worlds[-1]}, with the model and without")
    streams = [_stream(world, settings) for world in worlds]
    save_prior(fit_calibration(streams, settings, folder, prior), folder / "prior.json")


def train(
    settings: Settings,
    folder: Path,
    *,
    seed: int,
    worlds: int | None = None,
    steps: int | None = None,
    resume: bool = False,
    report: Callable[[str], None],
) -> None:
    """Train the intensity model on simulated worlds, and calibrate the detectors on others.

    Args:
        settings: of the job that will use the model.
        folder: a version folder of Triton's repository, such as triton_repo/intensity/1.
        seed: everything random follows from it.
        worlds: simulated worlds to train on; None is the default of the training.
        steps: optimiser steps at most; None likewise.
        resume: go on from the checkpoint of a training that was killed.
        report: told of each step.

    Raises:
        ImportError: torch is missing: run it in the training environment (`make
            .venv-train/.ready`).
    """
    from models.tpp.training.fit import TrainingConfig
    from models.tpp.training.run import train_and_export

    config = TrainingConfig(seed=seed)
    config = replace(config, worlds=worlds or config.worlds, steps=steps or config.steps)
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    checkpoint = folder.with_name(folder.name + ".checkpoint")
    if not resume:
        checkpoint.unlink(missing_ok=True)
    card = train_and_export(config, folder, checkpoint)
    checkpoint.unlink(missing_ok=True)
    report(f"decoder and encoder: {card['model_version']}")
    calibrate(settings, folder, seed, report)


def main() -> None:
    """Train and calibrate, or calibrate a model that is there."""
    parser = argparse.ArgumentParser(prog="eddy train", description=__doc__)
    parser.add_argument("--seed", type=int, default=7, help="everything random follows from it")
    parser.add_argument("--worlds", type=int, help="simulated worlds to train on")
    parser.add_argument("--steps", type=int, help="optimiser steps at most")
    parser.add_argument(
        "--resume", action="store_true", help="go on with a training that was killed"
    )
    parser.add_argument("--out", type=Path, default=Path("triton_repo/intensity/1"))
    parser.add_argument(
        "--calibrate-only", action="store_true", help="keep the weights, fit prior.json anew"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    report, settings = logging.getLogger(__name__).info, load(None, {}, [])
    if arguments.calibrate_only:
        calibrate(settings, arguments.out, arguments.seed, report)
    else:
        train(
            settings,
            arguments.out,
            seed=arguments.seed,
            worlds=arguments.worlds,
            steps=arguments.steps,
            resume=arguments.resume,
            report=report,
        )


if __name__ == "__main__":
    main()
