"""Cheaper decoders for a trained model: distilled, int8 and pruned, each a folder to choose from.

What is measured here is the likelihood; what a row costs is measured where it is served.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.tpp.training.data import Block, KindData, Segment, build, cut
from models.tpp.training.export import write_model
from models.tpp.training.fit import (
    Fitted,
    Look,
    Setting,
    TrainingConfig,
    decoder_input,
    event_losses,
    mean_losses,
    train,
)
from models.tpp.training.network import Decoder, Encoder, fix_marks
from models.tpp.training.prune import prune
from models.tpp.training.quantise import answers, quantise
from models.tpp.training.teacher import CONTEXT, AttentionEncoder, distillation_loss

WIDTHS = ((48, 32), (32, 16), (16, 16))
TEACHER_SHARE = 0.5
_TUNE_RATE = 1e-3  # a quarter of the training's: what is there is mostly right
_TUNE_SHARE = 0.25  # of the base's steps, for the teacher and for each variant
_TEACHER_BATCH = 4_096  # events: its scores fill memory faster than the encoder's sums
_CALIBRATION_ROWS = 8_192

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Data:
    """What the variants learn from and are judged on.

    Attributes:
        learning: as `train` takes it.
        validation: as `train` takes it.
        test: events of the last part, with the history before them.
    """

    learning: Sequence[tuple[KindData, NDArray[np.int64]]]
    validation: Sequence[Segment]
    test: Sequence[Segment]


@dataclass(frozen=True, slots=True)
class _Judged:
    """Blocks of validation and test, and what each encoder makes of them."""

    validation: list[Block]
    test: list[Block]


def _parts(segments: Sequence[Segment]) -> list[Block]:
    """Build blocks of a bearable size."""
    parts: list[list[Segment]] = [[]]
    filled = 0
    for segment in segments:
        if filled > 16_384:
            parts.append([])
            filled = 0
        parts[-1].append(segment)
        filled += segment.end - segment.begin
    return [build(part) for part in parts]


def short(segments: Sequence[Segment]) -> list[Segment]:
    """Cut segments so that none is longer than the teacher's context.

    Each part has half a context before its first event that weighs, as far as there is one.
    """
    half = CONTEXT // 2
    found = []
    for segment in segments:
        time_ms = segment.data.time_ms
        first = segment.begin + int(
            np.searchsorted(time_ms[segment.begin : segment.end], segment.from_ms)
        )
        while first < segment.end:
            end = min(first + half, segment.end)
            last = end == segment.end
            found.append(
                replace(
                    segment, begin=max(segment.begin, first - half),
                    # The gap after the last event of a part is that of the next one's first.
                    end=end if last else end + 1, closed=segment.closed and last,
                    from_ms=int(time_ms[first]),
                )
            )  # fmt: skip
            first = end
    return found


def _onnx_nats(encoder: Encoder, decoder: Path, blocks: Sequence[Block], marks: bool) -> float:
    """Return the likelihood of an exported decoder, nats per event."""
    total, count = 0.0, 0
    for block in blocks:
        with torch.no_grad():
            x = decoder_input(encoder, block).numpy()
            gap, mark, amount = event_losses(torch.from_numpy(answers(decoder, x)), block)
        counts = torch.from_numpy(block.weight > 0.0)
        total += float((gap + amount + (mark if marks else 0.0))[counts].sum())
        count += int((block.known & (block.weight > 0.0)).sum())
    return total / max(count, 1)


class _Table:
    """Writes each variant into a folder of its own and judges what was written."""

    def __init__(
        self,
        folder: Path,
        data: Data,
        check: NDArray[np.float32],
        log_share: tuple[float, ...],
    ) -> None:
        self._folder, self._check = folder, check
        self._log_share, self._marks = log_share, not log_share
        self._validation, self._test = _parts(data.validation), _parts(data.test)
        self.rows: list[dict[str, Any]] = []

    def add(self, name: str, encoder: Encoder, decoder: Decoder, **told: object) -> Path:
        """Write and judge a decoder in float32; return its ONNX file."""
        folder = self._folder / name.replace(" ", "-").replace("/", "x")
        if self._log_share:
            fix_marks(decoder, np.array(self._log_share))
        version = write_model(encoder, decoder, self._check, folder)
        self._judge(name, folder, version, encoder, told)
        return folder / "decoder.onnx"

    def add_int8(
        self, name: str, of: Path, how: str, encoder: Encoder, x: NDArray[np.float32]
    ) -> None:
        """Write and judge the int8 form of a decoder."""
        folder = self._folder / name.replace(" ", "-").replace("/", "x")
        folder.mkdir(parents=True)
        shutil.copyfile(of.parent / "encoder.npz", folder / "encoder.npz")
        version = quantise(of, folder / "decoder.onnx", how, x)
        y = answers(folder / "decoder.onnx", self._check)
        np.savez(folder / "check.npz", x=self._check, y=y)
        self._judge(name, folder, version, encoder, {})

    def note(self, name: str, valid_nats: float, test_nats: float, **told: object) -> None:
        """Add a row that cannot be served."""
        row = {"name": name, "folder": None, "model_version": None, "bytes": None}
        self.rows.append({**row, "valid_nats": valid_nats, "test_nats": test_nats, **told})

    def _judge(
        self, name: str, folder: Path, version: str, encoder: Encoder, told: dict[str, object]
    ) -> None:
        file = folder / "decoder.onnx"
        self.rows.append(
            {
                "name": name,
                "folder": folder.name,
                "model_version": version,
                "bytes": file.stat().st_size,
                "valid_nats": _onnx_nats(encoder, file, self._validation, self._marks),
                "test_nats": _onnx_nats(encoder, file, self._test, self._marks),
                **told,
            }
        )


def compress(
    base: Fitted,
    data: Data,
    config: TrainingConfig,
    setting: Setting,
    check: NDArray[np.float32],
    folder: Path,
    log_share: tuple[float, ...],
    report: Report,
) -> list[dict[str, Any]]:
    """Write the variants of a trained model into `folder`, each with its likelihoods.

    Rows: the base; the teacher (which is not served); the base trained on for as long as the
    distilled one, so that the teacher is not thanked for the steps; the distilled one; int8 of the
    base, dynamic and static; narrower ones of the better of base and distilled, each tuned from the
    one before; and int8 of the narrowest.

    Args:
        base: trained.
        data: to learn from and to judge on.
        config: of the base's training.
        setting: likewise; a kept encoder is kept here as well.
        check: float32 [rows, 69], see `write_model`.
        folder: emptied.
        log_share: of constant mark probabilities; empty where marks are learnt.
        report: told of each step.

    Returns:
        A row for each variant: name, folder (None: not served), bytes, valid_nats, test_nats.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    table = _Table(folder, data, check, log_share)
    marks = setting.marks
    base_file = table.add("base", base.encoder, base.decoder)
    calm = replace(setting, checkpoint=None)
    tune = replace(
        config,
        steps=max(int(_TUNE_SHARE * config.steps), 1),
        learning_rate=_TUNE_RATE,
        check_steps=max(int(_TUNE_SHARE * config.steps) // 3, 1),
        warm_steps=min(config.warm_steps, 20),
    )
    teacher, seconds = _teach(data, config, calm, table, report)
    # Segments as the teacher bears them, for the one that follows it and the one that does not.
    follow = replace(tune, longest=(CONTEXT, config.longest[0]))
    start = (base.encoder, base.decoder)
    on_own = train(data.learning, data.validation, follow, replace(calm, start=start))
    table.add("base, trained on", on_own.encoder, on_own.decoder, seconds=on_own.seconds)
    loss = distillation_loss(teacher.encoder, teacher.decoder, TEACHER_SHARE, marks)
    distilled = train(data.learning, data.validation, follow, replace(calm, start=start, loss=loss))
    table.add(
        "distilled", distilled.encoder, distilled.decoder, seconds=distilled.seconds + seconds
    )
    _say(table, report)
    better = min((base, on_own, distilled), key=lambda one: min(one.validation))
    x = _calibration_rows(base.encoder, data)
    for how in ("dynamic", "static"):
        table.add_int8(f"int8 {how}", base_file, how, base.encoder, x)
    last, file = better, base_file
    for width, hidden in WIDTHS:
        narrow = prune(last.decoder, width, hidden)
        last = train(
            data.learning, data.validation, tune, replace(calm, start=(last.encoder, narrow))
        )
        file = table.add(
            f"pruned {width}/{hidden}", last.encoder, last.decoder, seconds=last.seconds
        )
        _say(table, report)
    x = _calibration_rows(last.encoder, data)
    table.add_int8("pruned + int8", file, "dynamic", last.encoder, x)
    _say(table, report)
    return table.rows


def _teach(
    data: Data, config: TrainingConfig, setting: Setting, table: _Table, report: Report
) -> tuple[Fitted, float]:
    """Train the teacher and put its likelihoods into the table."""
    torch.manual_seed(config.seed)
    start = (AttentionEncoder(), Decoder())
    steps = max(int(_TUNE_SHARE * config.steps), 1)
    learn = replace(
        config,
        longest=(CONTEXT,),
        learning_rate=2e-3,
        steps=steps,
        check_steps=max(steps // 3, 1),
        batch_events=min(config.batch_events, _TEACHER_BATCH),
    )
    validation, test = short(data.validation), short(data.test)
    alone = replace(setting, start=start, encoder=None)

    def tell(look: Look) -> None:
        report(f"teacher, step {look.step}: validation {look.total:.4f} nats an event")

    fitted = train(data.learning, validation, learn, alone, tell)
    valid = mean_losses(fitted.encoder, fitted.decoder, _parts(validation), setting.marks)[0]
    found = mean_losses(fitted.encoder, fitted.decoder, _parts(test), setting.marks)[0]
    table.note("teacher (not served)", valid, found, seconds=fitted.seconds)
    _say(table, report)
    return fitted, fitted.seconds


def _calibration_rows(encoder: Encoder, data: Data) -> NDArray[np.float32]:
    """Return decoder inputs of what was learnt from, of each kind alike."""
    parts = []
    for kind, which in data.learning:
        rows = 0
        some = []
        for segment in cut(kind, which[:: max(len(which) // 200, 1)], 1_024):
            some.append(segment)
            rows += segment.end - segment.begin
            if rows > 4 * _CALIBRATION_ROWS:
                break
        with torch.no_grad():
            x = decoder_input(encoder, build(some)).numpy()
        parts.append(x[:: max(len(x) // _CALIBRATION_ROWS, 1)][:_CALIBRATION_ROWS])
    return np.ascontiguousarray(np.concatenate(parts))


def _say(table: _Table, report: Report) -> None:
    row = table.rows[-1]
    report(
        f"{row['name']}: validation {row['valid_nats']:.4f}, test {row['test_nats']:.4f} nats an "
        "event"
    )
