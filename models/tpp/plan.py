"""What one training on a user's stream is asked, and the folder in which it is asked.

The folder is the border between two environments: the stream's reads events and calibrates, and the
training's has torch. It holds

    plan.json        a `Plan`
    prior.json       moments and weekly profiles that standardise the features
    sequences.npz    the sequences of each kind
    keep.npz         weights of an encoder that must not change; absent where it learns
    checkpoint.pt    written by the training at each look
    model/           written by the training: decoder.onnx, encoder.npz, check.npz
    variants/        cheaper forms of the model, a folder each, where they are asked for
    learnt.json      written last: how the training went
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PLAN, PRIOR, SEQUENCES = "plan.json", "prior.json", "sequences.npz"
KEEP, CHECKPOINT, MODEL, LEARNT = "keep.npz", "checkpoint.pt", "model", "learnt.json"
VARIANTS = "variants"


@dataclass(frozen=True, slots=True)
class Plan:
    """How to train on the sequences beside it.

    Attributes:
        kinds: that are trained on, in the order of `sequences.npz`.
        valid_ms: training ends and validation begins, epoch milliseconds.
        test_ms: validation ends and the test begins.
        end_ms: the last event.
        config: fields of the training's `TrainingConfig` that differ from its defaults.
        device: "auto", "cpu" or "cuda".
        precision: "auto", "fp32", "bf16" or "fp16".
        mark_log_share: logs of the mark probabilities that the model always answers; empty where
            they are learnt.
        compress: whether to look for a cheaper decoder.
    """

    kinds: tuple[str, ...]
    valid_ms: int
    test_ms: int
    end_ms: int
    config: Mapping[str, Any]
    device: str = "auto"
    precision: str = "auto"
    mark_log_share: tuple[float, ...] = ()
    compress: bool = False


@dataclass(frozen=True, slots=True)
class KindSequences:
    """The events of one entity kind, those of an entity side by side.

    Attributes:
        kind: name.
        time_ms: int64[n], in order within an entity.
        mark: uint8[n]; 255 is none.
        value: float64[n], transformed amount; NaN is missing.
        starts: int64[s + 1], where each entity's events begin, and the end.
    """

    kind: str
    time_ms: NDArray[np.int64]
    mark: NDArray[np.uint8]
    value: NDArray[np.float64]
    starts: NDArray[np.int64]


def read_plan(folder: Path) -> Plan:
    """Read the plan of a folder."""
    body = json.loads((folder / PLAN).read_text())
    body["kinds"], body["mark_log_share"] = tuple(body["kinds"]), tuple(body["mark_log_share"])
    return Plan(**body)


def write_plan(folder: Path, plan: Plan, sequences: Sequence[KindSequences]) -> None:
    """Write the plan of a folder and its sequences, one for each of the plan's kinds."""
    columns = {
        f"{k}.{name}": getattr(one, name)
        for k, one in enumerate(sequences)
        for name in ("time_ms", "mark", "value", "starts")
    }
    np.savez(folder / SEQUENCES, **columns)
    (folder / PLAN).write_text(json.dumps(asdict(plan), indent=1) + "\n")


def read_sequences(folder: Path, plan: Plan) -> list[KindSequences]:
    """Read the sequences of each kind of the plan."""
    with np.load(folder / SEQUENCES, allow_pickle=False) as arrays:
        return [
            KindSequences(
                kind,
                arrays[f"{k}.time_ms"],
                arrays[f"{k}.mark"],
                arrays[f"{k}.value"],
                arrays[f"{k}.starts"],
            )
            for k, kind in enumerate(plan.kinds)
        ]


def job_of(folder: Path) -> str:
    """Name what a training depends on: plan, prior, sequences and encoder, by their bytes."""
    digest = hashlib.sha256()
    for name in (PLAN, PRIOR, SEQUENCES, KEEP):
        path = folder / name
        digest.update(path.read_bytes() if path.exists() else b"")
    return digest.hexdigest()
