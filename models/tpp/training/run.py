"""From a seed to a model on disk: worlds, training, judgement, files and card."""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.simulation.config import SimulationConfig, training
from models.tpp import spec
from models.tpp.training.card import render
from models.tpp.training.data import KINDS, KindData, Segment, build, cut, folds, read_world, worlds
from models.tpp.training.export import name_in_configs, sha256, write_model
from models.tpp.training.fit import Setting, TrainingConfig, decoder_input, train
from models.tpp.training.judge import judge_all
from models.tpp.training.network import Encoder

_LOG = logging.getLogger(__name__)

LEARNT_SPAN = 0.75
_FOLDS = 10
_VALIDATION, _TEST = 0, 1
# Validation must be quick; sequences are taken until about so many events of a kind are reached.
_VALIDATION_EVENTS = 60_000
_CHECK_ROWS = 128

Share = tuple[KindData, NDArray[np.int64]]


def _split(data: KindData, seed: int) -> tuple[Share, Share, Share]:
    fold = folds(data, _FOLDS, seed)
    learning = np.flatnonzero((fold != _VALIDATION) & (fold != _TEST))
    return (
        (data, learning),
        (data, np.flatnonzero(fold == _VALIDATION)),
        (data, np.flatnonzero(fold == _TEST)),
    )


def _some(share: Share, events: int) -> Share:
    data, which = share
    total = np.cumsum(np.diff(data.starts)[which])
    return data, which[: int(np.searchsorted(total, events)) + 1]


def fresh_world(seed: int) -> SimulationConfig:
    """Return the world that only the last judgement sees."""
    return training(seed * 1_000 + 999)


def check_rows(encoder: Encoder, segments: Sequence[Segment]) -> NDArray[np.float32]:
    """Return decoder inputs from all over some sequences, float32 [rows, 69]."""
    block = build(segments)
    x = decoder_input(encoder, block).detach().numpy()
    return np.ascontiguousarray(x[:: max(len(x) // _CHECK_ROWS, 1)][:_CHECK_ROWS])


def train_and_export(
    config: TrainingConfig, folder: Path, checkpoint: Path | None = None
) -> dict[str, object]:
    """Train on simulated worlds, write the model into `folder` with its card; return the card.

    Where `checkpoint` is given it is written as training goes, and gone on from where it is there.

    Entities are split into folds of 80, 10 and 10%; training and validation see the first three
    quarters of each world's time. Judged are held-out entities before and after that time, and
    every entity of a world of another seed.
    """
    plans = worlds(config.seed, config.worlds)
    early = [data for plan in plans for data in read_world(plan, LEARNT_SPAN)]
    splits = [_split(data, config.seed) for data in early]
    validation = [
        segment
        for _, held, _ in splits
        for segment in cut(*_some(held, _VALIDATION_EVENTS // config.worlds), 1 << 30)
    ]
    learning = [share for share, _, _ in splits]
    setting = Setting(checkpoint=checkpoint, job="simulated worlds")
    fitted = train(learning, validation, config, setting)
    encoder, decoder = fitted.encoder, fitted.decoder
    until_ms = plans[0].start_ms + int(plans[0].duration_s * 1_000 * LEARNT_SPAN)
    # Judged with the priors of the first world's learnt span: the later time and the new world
    # must not have told anything of themselves.
    priors = {data.kind: data.prior for data in early[: len(KINDS)]}
    later = [_split(data, config.seed)[2] for data in read_world(plans[0], priors=priors)]
    fresh = read_world(fresh_world(config.seed), priors=priors)
    new = [(data, np.arange(len(data.starts) - 1)) for data in fresh]
    version = write_model(encoder, decoder, check_rows(encoder, validation), folder)
    name_in_configs(folder, version)
    card: dict[str, object] = {
        "model_version": version,
        "feature_version": spec.FEATURE_VERSION,
        "command": (
            f"python -m models.tpp.training --seed {config.seed} --worlds {config.worlds} "
            f"--steps {config.steps} --out FOLDER"
        ),
        "config": asdict(config),
        "data": {
            "source": "models.simulation, preset training; every fourth world has 1,500 users, "
            "100 merchants and branching .5",
            "world_seeds": [plan.seed for plan in plans],
            "fresh_world_seed": fresh_world(config.seed).seed,
            "learnt_span": LEARNT_SPAN,
            "entity_folds": {"learning": 0.8, "validation": 0.1, "test": 0.1},
        },
        "training": {
            "steps": fitted.steps,
            "best_step": fitted.best_step,
            "seconds": round(fitted.seconds, 1),
            "validation_nats_per_event": [round(v, 4) for v in fitted.validation],
        },
        "judged": {
            "held_out_entities": judge_all(encoder, decoder, [s[2] for s in splits[:3]]),
            "held_out_entities_later": judge_all(encoder, decoder, later, until_ms),
            "fresh_world": judge_all(encoder, decoder, new),
        },
        "files": {
            name: sha256(folder / name) for name in ("decoder.onnx", "encoder.npz", "check.npz")
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    (folder / "card.md").write_text(render(card))
    return card
