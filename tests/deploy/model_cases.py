"""Versions of the intensity model made for tests: sound ones, broken ones, and a server of them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from deploy.bench.onnx_file import model, node
from deploy.models.server import READY, ServerAwayError, ServerRefusedError
from deploy.stack.options import REPOSITORY
from flink_jobs.settings import Settings, load
from models.tpp import spec

SHIPPED = REPOSITORY / "triton_repo" / "intensity"


def settings_of(repository: Path, *more: str) -> Settings:
    return load(None, {}, [f"triton.model_repository={repository}", *more])


def copy_repository(folder: Path) -> Path:
    """Copy the model that ships; return the model's folder."""
    root = folder / "repository" / "intensity"
    shutil.copytree(SHIPPED / "1", root / "1")
    shutil.copytree(SHIPPED / "configs", root / "configs")
    return root


def linear_decoder(
    weights: str,
    *,
    seed: int = 3,
    outputs: int = spec.OUTPUT,
    fill: float | None = None,
    blocks: int = 0,
    feature_version: str = spec.FEATURE_VERSION,
) -> bytes:
    """Return a decoder y = x W, with `blocks` large products before it that take time."""
    draw = np.random.default_rng(seed)
    matrix = draw.normal(0.0, 0.01, (spec.INPUT, outputs)).astype(np.float32)
    if fill is not None:
        matrix[:] = fill
    constants: dict[str, NDArray[Any]] = {"W": matrix}
    nodes = []
    last = "x"
    if blocks:
        wide = 512
        constants["wide"] = np.eye(spec.INPUT, wide, dtype=np.float32)
        constants["eye"] = np.eye(wide, dtype=np.float32)
        constants["narrow"] = np.eye(wide, spec.INPUT, dtype=np.float32)
        names = ["wide", *["eye"] * blocks, "narrow"]
        for k, name in enumerate(names):
            nodes.append(node("MatMul", [last, name], [f"b{k}"]))
            last = f"b{k}"
    nodes.append(node("MatMul", [last, "W"], ["y"]))
    return model(
        nodes,
        {"x": ["rows", spec.INPUT]},
        {"y": ["rows", outputs]},
        constants,
        {"feature_version": feature_version, "model_version": weights},
    )


def write_version(
    folder: Path,
    weights: str,
    decoder: bytes,
    *,
    y: NDArray[np.float32] | None = None,
    encoder_scale: float = 1.0,
    prior: dict[str, Any] | None = None,
    card: dict[str, Any] | None = None,
) -> Path:
    """Write a version's folder as `eddy train` does; y is what its decoder answers if not given."""
    folder.mkdir(parents=True)
    (folder / "decoder.onnx").write_bytes(decoder)
    with np.load(SHIPPED / "1" / "encoder.npz") as arrays:
        np.savez(
            folder / "encoder.npz",
            **{name: (encoder_scale * arrays[name]).astype(np.float32) for name in arrays.files},
        )
    with np.load(SHIPPED / "1" / "check.npz") as check:
        x = check["x"]
    if y is None:
        session = onnxruntime.InferenceSession(decoder, providers=["CPUExecutionProvider"])
        (y,) = session.run(["y"], {"x": x})
        if y.shape[1] != spec.OUTPUT or not np.isfinite(y).all():
            # As if the training had seen other answers than the file gives.
            y = np.zeros((len(x), spec.OUTPUT), np.float32)
    np.savez(folder / "check.npz", x=x, y=y)
    if prior is None:
        shutil.copyfile(SHIPPED / "1" / "prior.json", folder / "prior.json")
    else:
        (folder / "prior.json").write_text(json.dumps(prior), "utf-8")
    told = {
        "model_version": weights,
        "feature_version": spec.FEATURE_VERSION,
        "data": {"source": "made for a test"},
    }
    write_card(folder, told | (card or {}))
    return folder


def write_card(folder: Path, card: dict[str, Any]) -> None:
    names = ("decoder.onnx", "encoder.npz", "check.npz")
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    (folder / "card.json").write_text(json.dumps({"files": sums} | card), "utf-8")


class FakeServer:
    """Loads what is in the folder, on onnxruntime in this process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.away = False
        self.refuses: str | None = None
        self.all_versions = True
        self.deaf = False  # reads another repository
        self.loads = 0
        self.answer_of: dict[int, NDArray[np.float32]] = {}
        self._states: dict[int, str] = {}
        self.load()

    def _check(self) -> None:
        if self.away:
            raise ServerAwayError("no Triton answers at test")

    def served(self) -> dict[int, str]:
        self._check()
        return dict(self._states)

    def keeps_all_versions(self) -> bool:
        self._check()
        return self.all_versions

    def load(self) -> None:
        self._check()
        self.loads += 1
        there = {int(p.name) for p in self.root.glob("[0-9]*")}
        if self.refuses is not None and there - set(self._states):
            raise ServerRefusedError(self.refuses)
        if not self.deaf:
            self._states = dict.fromkeys(there, READY)

    def ask(self, version: int, x: NDArray[np.float32]) -> NDArray[np.float32]:
        self._check()
        if version in self.answer_of:
            return self.answer_of[version]
        path = str(self.root / str(version) / "decoder.onnx")
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (y,) = session.run(["y"], {"x": x})
        answer: NDArray[np.float32] = y
        return answer


def shadow_report(
    *,
    version: int = 1,
    other: int = 2,
    shard: int = 0,
    generation: int = 3,
    at: str = "2026-11-25T12:00:00.000Z",
    differences: dict[str, list[float]] | None = None,
    warm: float = 1.0,
    pit: dict[str, dict[str, list[int]]] | None = None,
    p99: tuple[float, float] = (9.0, 9.5),
    failures: dict[str, dict[str, int]] | None = None,
    source: str = "eddy/eddy-detect",
) -> dict[str, Any]:
    """Return a report whose per-event differences (shadow less in charge) are those given."""
    differences = {"user": [-0.1, 0.1] * 100} if differences is None else differences
    count = {kind: len(values) for kind, values in differences.items()}
    flat = {kind: [10] * 20 for kind in differences}
    base = {kind: 3.0 * n for kind, n in count.items()}
    return {
        "type": "shadow_report",
        "at": at,
        "source": source,
        "shard": shard,
        "model": "intensity",
        "version": version,
        "weights": f"tpp-{version:012}",
        "other": {"version": other, "weights": f"tpp-{other:012}"},
        "generation": generation,
        "reason": "",
        "report": {
            "events": {kind: n + 10 for kind, n in count.items()},
            "compared": count,
            "nats": {
                "in_charge": base,
                "shadow": {kind: base[kind] + sum(v) for kind, v in differences.items()},
            },
            "difference_squares": {
                kind: sum(one * one for one in v) for kind, v in differences.items()
            },
            "pit": pit or {"in_charge": flat, "shadow": flat},
            "alerts": {
                "both": 4,
                "come": 1,
                "go": 2,
                "examples": [
                    {
                        "change": "come",
                        "kind": "user",
                        "id": f"u-{shard}",
                        "event_time": f"2026-01-1{shard}T10:00:00.000Z",
                    }
                ],
            },
            "latency_ms": {
                "in_charge": {"requests": 100, "mean": 4.0, "p99": p99[0]},
                "shadow": {"requests": 100, "mean": 5.0, "p99": p99[1]},
            },
            "failures": failures or {"in_charge": {}, "shadow": {}},
            "missed_batches": 1,
            "warm": warm,
        },
    }
