"""Train on the sequences of a folder: `python -m models.tpp.training.learn FOLDER`.

Run by `eddy train --from` in the training environment; `plan` says what the folder holds.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from models.prior import KindPrior, load_prior
from models.tpp import plan as plans
from models.tpp.plan import KindSequences, Plan
from models.tpp.training.data import KindData, Segment, cut
from models.tpp.training.errors import TrainingError
from models.tpp.training.export import write_model
from models.tpp.training.fit import Fitted, Look, Setting, TrainingConfig, train
from models.tpp.training.hardware import Hardware
from models.tpp.training.judge import ROWS, judged_rows, judgement
from models.tpp.training.network import Decoder, Encoder, fix_marks, load_encoder
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
        sequences.kind, prior, sequences.time_ms, sequences.mark, sequences.starts, owner, end_ms
    )


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


def watched(data: KindData, plan: Plan, seed: int) -> list[Segment]:
    """Return the validation's segments: a history, then what counts, censored at its end.

    Args:
        data: of one kind, nothing of the test's time in it.
        plan: says when validation begins.
        seed: of the sequences drawn.
    """
    found = []
    for sequence in drawn(data, plan.valid_ms, _VALIDATION_EVENTS, seed).tolist():
        begin, end = int(data.starts[sequence]), int(data.starts[sequence + 1])
        first = begin + int(np.searchsorted(data.time_ms[begin:end], plan.valid_ms))
        found.append(Segment(data, max(begin, first - _HISTORY), end, True, 1.0, plan.valid_ms))
    return found


def _learn(folder: Path, plan: Plan, whole: Sequence[KindData], report: Report) -> Fitted:
    config = TrainingConfig(**{k: _tuple(v) for k, v in plan.config.items()})
    known = [before(data, plan.valid_ms) for data in whole]
    learning = [(data, np.arange(len(data.starts) - 1)) for data in known]
    validation = [
        segment
        for data in whole
        for segment in watched(before(data, plan.test_ms), plan, config.seed)
    ]
    hardware = Hardware.choose(plan.device, plan.precision)
    keep = None
    if (folder / plans.KEEP).exists():
        with np.load(folder / plans.KEEP, allow_pickle=False) as arrays:
            keep = load_encoder({name: arrays[name] for name in arrays.files})
    events = sum(len(data.time_ms) for data in known)
    report(
        f"training on {events:,} events of {', '.join(plan.kinds)}, {hardware.device} in "
        f"{hardware.precision}, {config.steps:,} steps at most"
    )

    def tell(look: Look) -> None:
        report(
            f"step {look.step:>5}/{config.steps}  {look.seconds:6.1f} s  validation: gap "
            f"{look.gap:.4f}, mark {look.mark:.4f}, both {look.total:.4f} nats an event; training "
            f"{look.learning:.4f}"
        )

    setting = Setting(
        hardware=hardware,
        encoder=keep,
        marks=not plan.mark_log_share,
        checkpoint=folder / plans.CHECKPOINT,
        job=plans.job_of(folder),
    )
    fitted = train(learning, validation, config, setting, tell)
    if plan.mark_log_share:
        fix_marks(fitted.decoder, np.array(plan.mark_log_share))
    return fitted


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def judged(
    encoder: Encoder, decoder: Decoder, data: KindData, plan: Plan, seed: int
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
    plan = plans.read_plan(folder)
    prior = load_prior(folder / plans.PRIOR)
    whole = [
        kind_data(one, prior.of(one.kind), plan.end_ms)
        for one in plans.read_sequences(folder, plan)
    ]
    fitted = _learn(folder, plan, whole, report)
    encoder, decoder = fitted.encoder, fitted.decoder
    seed = TrainingConfig(**{k: _tuple(v) for k, v in plan.config.items()}).seed
    validation = [
        s
        for data in whole
        for s in cut(data, drawn(data, plan.valid_ms, _VALIDATION_EVENTS, seed), 1 << 30)
    ]
    version = write_model(encoder, decoder, check_rows(encoder, validation), folder / plans.MODEL)
    found = [judged(encoder, decoder, data, plan, seed) for data in whole]
    learnt: dict[str, object] = {
        "model_version": version,
        "steps": fitted.steps,
        "best_step": fitted.best_step,
        "seconds": round(fitted.seconds, 1),
        "hardware": asdict(Hardware.choose(plan.device, plan.precision)),
        "parameters": {
            "encoder": sum(p.numel() for p in encoder.parameters()),
            "decoder": sum(p.numel() for p in decoder.parameters()),
        },
        "looks": [asdict(look) for look in fitted.looks],
        "judged": [one for one in found if one is not None],
        "reliability_nats": RELIABILITY_NATS,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "onnx": onnx.__version__,
        },
    }
    path = folder / plans.LEARNT
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(json.dumps(learnt, indent=1) + "\n")
    unfinished.replace(path)
    return learnt


def main(arguments: Sequence[str]) -> int:
    """Train in the folder that is named; progress and errors go to standard error."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m models.tpp.training.learn FOLDER\n")
        return 2
    try:
        learn(Path(arguments[0]), lambda text: print(text, file=sys.stderr, flush=True))  # noqa: T201
    except TrainingError as error:
        sys.stderr.write(f"eddy: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
