"""Train on the sequences of a folder: `python -m models.tpp.training.learn FOLDER`.

Run by `eddy train --from` in the training environment; `plan` says what the folder holds.
"""

from __future__ import annotations

import json
import platform
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from models.prior import KindPrior, load_prior
from models.tpp import plan as plans
from models.tpp.plan import KindSequences, Plan
from models.tpp.training.compress import Data, compress
from models.tpp.training.data import KindData, Segment
from models.tpp.training.errors import TrainingError
from models.tpp.training.export import write_model
from models.tpp.training.fit import Fitted, Look, Setting, TrainingConfig, train
from models.tpp.training.hardware import Hardware
from models.tpp.training.judge import ROWS, judged_rows, judgement
from models.tpp.training.network import Encoder, fix_marks, load_encoder
from models.tpp.training.quantise import answers
from models.tpp.training.run import check_rows

# Of a kind: validation is looked at often, the test once.
_VALIDATION_EVENTS = 20_000
_TEST_EVENTS = 60_000
# Events before the first that is watched: what the memory must know; more changes nothing at the
# fourth digit and each look walks them.
_HISTORY = 512
PIT_BINS = 20
RELIABILITY_NATS = tuple(float(t) for t in np.arange(0.5, 12.5, 0.5))

Report = Callable[[str], None]


def kind_data(sequences: KindSequences, prior: KindPrior, end_ms: int) -> KindData:
    """Take the sequences of a folder for those of the training."""
    owner = np.arange(len(sequences.starts) - 1)
    return KindData(
        sequences.kind, prior, sequences.time_ms, sequences.mark, sequences.value, sequences.starts,
        owner, end_ms,
    )  # fmt: skip


def before(data: KindData, until_ms: int) -> KindData:
    """Return what was known at a time: the events before it, the last gaps censored by it."""
    keep = data.time_ms < until_ms
    count = np.concatenate([[0], np.cumsum(keep)])
    starts = count[data.starts]
    some = np.diff(starts) > 0
    return KindData(
        data.kind,
        data.prior,
        data.time_ms[keep],
        data.mark[keep],
        data.value[keep],
        np.append(starts[:-1][some], starts[-1]),
        data.owner[some],
        until_ms,
    )


def drawn(data: KindData, from_ms: int, events: int, seed: int) -> NDArray[np.int64]:
    """Draw sequences until about so many of their events are at or after a time.

    Args:
        data: of one kind.
        from_ms: events from then on count.
        events: to draw.
        seed: of the order.
    """
    counted = np.concatenate([[0], np.cumsum(data.time_ms >= from_ms)])
    own = np.diff(counted[data.starts])
    order = np.random.default_rng(seed).permutation(len(own))
    order = order[own[order] > 0]
    total = np.cumsum(own[order])
    return np.sort(order[: int(np.searchsorted(total, events)) + 1])


def watched(data: KindData, from_ms: int, events: int, seed: int) -> list[Segment]:
    """Return segments to judge by: a history, then what counts, censored at its end.

    Args:
        data: of one kind, nothing of a later part in it.
        from_ms: what counts begins.
        events: that count, about.
        seed: of the sequences drawn.
    """
    found = []
    for sequence in drawn(data, from_ms, events, seed).tolist():
        begin, end = int(data.starts[sequence]), int(data.starts[sequence + 1])
        first = begin + int(np.searchsorted(data.time_ms[begin:end], from_ms))
        found.append(Segment(data, max(begin, first - _HISTORY), end, True, 1.0, from_ms))
    return found


@dataclass(frozen=True, slots=True)
class _Job:
    """A folder's training, put together."""

    plan: Plan
    whole: list[KindData]
    data: Data
    config: TrainingConfig
    setting: Setting


def _job(folder: Path) -> _Job:
    plan = plans.read_plan(folder)
    prior = load_prior(folder / plans.PRIOR)
    whole = [
        kind_data(one, prior.of(one.kind), plan.end_ms)
        for one in plans.read_sequences(folder, plan)
    ]
    config = TrainingConfig(**{k: _tuple(v) for k, v in plan.config.items()})
    known = [before(data, plan.valid_ms) for data in whole]
    seed = config.seed
    data = Data(
        learning=[(data, np.arange(len(data.starts) - 1)) for data in known],
        validation=[
            segment
            for data in whole
            for segment in watched(
                before(data, plan.test_ms), plan.valid_ms, _VALIDATION_EVENTS, seed
            )
        ],
        test=[
            segment for data in whole for segment in watched(data, plan.test_ms, _TEST_EVENTS, seed)
        ],
    )
    keep = None
    if (folder / plans.KEEP).exists():
        with np.load(folder / plans.KEEP, allow_pickle=False) as arrays:
            keep = load_encoder({name: arrays[name] for name in arrays.files})
    setting = Setting(
        hardware=Hardware.choose(plan.device, plan.precision),
        encoder=keep,
        marks=not plan.mark_log_share,
        checkpoint=folder / plans.CHECKPOINT,
        job=plans.job_of(folder),
    )
    return _Job(plan, whole, data, config, setting)


def _learn(job: _Job, report: Report) -> Fitted:
    config, hardware = job.config, job.setting.hardware
    events = sum(len(data.time_ms) for data, _ in job.data.learning)
    report(
        f"training on {events:,} events of {', '.join(job.plan.kinds)}, {hardware.device} in "
        f"{hardware.precision}, {config.steps:,} steps at most"
    )

    def tell(look: Look) -> None:
        report(
            f"step {look.step:>5}/{config.steps}  {look.seconds:6.1f} s  validation: gap "
            f"{look.gap:.4f}, mark {look.mark:.4f}, amount {look.amount:.4f}, together "
            f"{look.total:.4f} nats an event; training {look.learning:.4f}"
        )

    fitted = train(job.data.learning, job.data.validation, config, job.setting, tell)
    if job.plan.mark_log_share:
        fix_marks(fitted.decoder, np.array(job.plan.mark_log_share))
    return fitted


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def judged(
    encoder: Encoder, decoder: torch.nn.Module, data: KindData, plan: Plan, seed: int
) -> dict[str, object] | None:
    """Judge one kind on the events of the test's time; None where none of them ends a gap.

    Returns:
        The `Judgement`'s fields, `pit` (counts in PIT_BINS equal parts), and `reliability`: for
        each of RELIABILITY_NATS how many gaps had a survival below exp(-t).
    """
    which = drawn(data, plan.test_ms, _TEST_EVENTS, seed)
    rows = judged_rows(encoder, decoder, data, which, plan.test_ms, by_end=True)
    if not rows.shape[1]:
        return None
    log_survival = rows[ROWS.index("log_survival")]
    pit = np.clip(-np.expm1(log_survival), 0.0, 1.0)
    counts, _ = np.histogram(pit, PIT_BINS, (0.0, 1.0))
    beyond = [int(np.count_nonzero(log_survival < -t)) for t in RELIABILITY_NATS]
    return {
        **judgement(data.kind, rows).as_dict(),
        "entities": len(which),
        "pit": counts.tolist(),
        "reliability": beyond,
    }


def learn(folder: Path, report: Report) -> dict[str, object]:
    """Train as the folder's plan says, write the model and `learnt.json`, and return the latter.

    Raises:
        TrainingError: see `train`.
    """
    job = _job(folder)
    fitted = _learn(job, report)
    encoder, decoder = fitted.encoder, fitted.decoder
    check = check_rows(encoder, job.data.validation)
    version = write_model(encoder, decoder, check, folder / plans.MODEL)
    learnt: dict[str, object] = {
        "model_version": version,
        "steps": fitted.steps,
        "best_step": fitted.best_step,
        "seconds": round(fitted.seconds, 1),
        "hardware": asdict(job.setting.hardware),
        "parameters": {
            "encoder": sum(p.numel() for p in encoder.parameters()),
            "decoder": sum(p.numel() for p in decoder.parameters()),
        },
        "looks": [asdict(look) for look in fitted.looks],
        "judged": _judge(job, encoder, decoder),
        "reliability_nats": RELIABILITY_NATS,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "onnx": onnx.__version__,
        },
    }
    if job.plan.compress:
        learnt["variants"] = compress(
            fitted, job.data, job.config, job.setting, check, folder / plans.VARIANTS,
            job.plan.mark_log_share, report,
        )  # fmt: skip
    _write(folder, learnt)
    return learnt


def choose(folder: Path, variant: str) -> None:
    """Put a variant in the place of the model, and judge it in full.

    Args:
        folder: of a training that is done.
        variant: name of its folder.
    """
    job = _job(folder)
    chosen = folder / plans.VARIANTS / variant
    shutil.copytree(chosen, folder / plans.MODEL, dirs_exist_ok=True)
    with np.load(chosen / "encoder.npz", allow_pickle=False) as arrays:
        encoder = load_encoder({name: arrays[name] for name in arrays.files})
    learnt = json.loads((folder / plans.LEARNT).read_text())
    (row,) = (row for row in learnt["variants"] if row["folder"] == variant)
    learnt["model_version"] = row["model_version"]
    learnt["judged"] = _judge(job, encoder, _Served(chosen / "decoder.onnx"))
    _write(folder, learnt)


class _Served(torch.nn.Module):  # type: ignore[misc]  # torch is not where mypy runs
    """A decoder as it is served, for the judgement."""

    def __init__(self, decoder: Path) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(answers(self.decoder, x.numpy()))


def _judge(job: _Job, encoder: Encoder, decoder: torch.nn.Module) -> list[dict[str, object]]:
    found = [judged(encoder, decoder, data, job.plan, job.config.seed) for data in job.whole]
    return [one for one in found if one is not None]


def _write(folder: Path, learnt: dict[str, object]) -> None:
    path = folder / plans.LEARNT
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(json.dumps(learnt, indent=1) + "\n")
    unfinished.replace(path)


def main(arguments: Sequence[str]) -> int:
    """Train in the folder that is named, or choose one of its variants; errors to stderr."""
    if len(arguments) not in (1, 2):
        sys.stderr.write("usage: python -m models.tpp.training.learn FOLDER [VARIANT]\n")
        return 2
    folder = Path(arguments[0])
    try:
        if len(arguments) == 2:
            choose(folder, arguments[1])
        else:
            learn(folder, lambda text: print(text, file=sys.stderr, flush=True))  # noqa: T201
    except TrainingError as error:
        sys.stderr.write(f"eddy: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
