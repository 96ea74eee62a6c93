"""Train and test the streamable model on each process of a file, beside the classical references.

Run by `eddy evaluate tpp` in the training environment: `python -m deploy.evaluate_tpp --data FILE`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploy.tpp_file import Recorded, recorded, tables
from models.tpp.classical import Process, best_of, mean_nll
from models.tpp.classical_fit import fit_all
from models.tpp.known import KNOWN, known_sequences
from models.tpp.screening import renumber_marks, suggest, teacher_of
from models.tpp.sequences import (
    FEWEST_SEQUENCES,
    TRAIN_SHARE,
    Sequences,
    ks_p_value,
    split,
)

PUBLISHED_SEED = 1
FEWEST_EVENTS = 2
PIECE_EVENTS = 1_024
_PROGRESS_LOOKS = 10


@dataclass(frozen=True, slots=True)
class Part:
    """The sequences of one process by their use.

    Attributes:
        train: to learn from.
        valid: to choose by.
        test: to judge by.
        absent: how many sequences of the whole set's test part are not in the file.
        how: the split was drawn: "by number", "by rank" or "by time".
    """

    train: Sequences
    valid: Sequences
    test: Sequences
    absent: int
    how: str


def _join(parts: list[Sequences]) -> Sequences:
    marks = [part.mark for part in parts if part.mark is not None]
    amounts = [part.amount for part in parts if part.amount is not None]
    return Sequences.join(
        [part.time for part in parts],
        marks if len(marks) == len(parts) else None,
        amounts if len(amounts) == len(parts) else None,
    )


def _slice(data: Sequences, rows: NDArray[np.int64]) -> Sequences:
    return Sequences.join(
        [data.time[rows]],
        None if data.mark is None else [data.mark[rows]],
        None if data.amount is None else [data.amount[rows]],
    )


def _by_time(sequences: list[Sequences]) -> Part:
    """Split each sequence in time, 60/20/20, and cut what is long into pieces."""
    found: list[list[Sequences]] = [[], [], []]
    for data in sequences:
        ends = (np.array([TRAIN_SHARE, 0.5 * (1.0 + TRAIN_SHARE)]) * len(data)).astype(np.int64)
        for rows, part in zip(np.split(np.arange(len(data)), ends), found, strict=True):
            pieces = np.array_split(rows, max(len(rows) // PIECE_EVENTS, 1))
            part += [_slice(data, piece) for piece in pieces if len(piece) >= FEWEST_EVENTS]
    if not all(found):
        raise ValueError(
            f"expected at least {FEWEST_SEQUENCES} sequences of {FEWEST_EVENTS} events, or longer "
            f"ones to split in time, found {[len(data) for data in sequences]} events"
        )
    train, valid, test = (_join(part) for part in found)
    return Part(train, valid, test, 0, "by time")


def parts_of(by_number: dict[int, Sequences], seed: int = PUBLISHED_SEED) -> Part:
    """Split the sequences of a process 60/20/20, as published where that can be.

    By number: over the numbers from 0 to the greatest, where at most half of them are absent, so
    that a part of a published set keeps its split. By rank: over the sequences at hand, where more
    are absent, the numbers run on from another than 0, or a part would be empty. By time: each
    sequence in itself, where there are fewer than 5. A sequence of one event has no gap and is left
    out.
    """
    numbers = sorted(by_number)
    usable = [i for i in numbers if len(by_number[i]) >= FEWEST_EVENTS]
    if len(usable) < FEWEST_SEQUENCES:
        return _by_time([by_number[i] for i in usable])
    whole = numbers[-1] + 1
    draws = [("by rank", numbers), ("by rank", usable)]
    if 2 * len(numbers) >= whole and (numbers[0] == 0 or numbers[-1] - numbers[0] >= len(numbers)):
        draws.insert(0, ("by number", list(range(whole))))
    fit = set(usable)
    parts: list[list[Sequences]] = [[]]
    how = ""
    while not all(parts):  # the last draw leaves none empty
        how, drawn = draws.pop(0)
        which = [[drawn[i] for i in part] for part in split(len(drawn), seed)]
        parts = [[by_number[i] for i in part if i in fit] for part in which]
    absent = sum(i not in by_number for i in which[2])
    train, valid, test = (_join(part) for part in parts)
    return Part(train, valid, test, absent, how)


@dataclass(frozen=True, slots=True)
class Options:
    """What `evaluate` may be told.

    Attributes:
        seed: of training; the split has its own.
        steps: of training per process at most.
        budget_s: seconds of a core for them at most.
        split_seed: 1 gives the published split.
        layers: of the encoder.
        simulate: whether an unrefuted classical process extends the training data.
    """

    seed: int = 1
    steps: int = 600
    budget_s: float = 600.0
    split_seed: int = PUBLISHED_SEED
    layers: int = 1
    simulate: bool = True


Row = dict[str, float | str | int | list[str] | None]


def _figure(value: float | None) -> float | None:
    """Round for the answer; None where it is no number, which JSON has not."""
    return round(value, 4) if value is not None and np.isfinite(value) else None


def evaluate(part: Part, options: Options, report: Callable[[str], None]) -> Row:
    """Fit the references, train the streamable model, and judge both on the test sequences."""
    import torch

    from models.tpp.training.likelihood import Look, Training, fit, judge
    from models.tpp.training.streamable import Model

    begun = time.monotonic()
    fits = fit_all(part.train, part.valid, part.test)
    reference = best_of(fits, part.valid)
    teacher: Process | None = None
    # Simulations would have neither marks nor amounts, which the model then reads and predicts.
    if options.simulate and part.train.mark is None and part.train.amount is None:
        teacher = teacher_of(fits, part.train, part.valid)
    report(
        f"reference {reference.name}: test {mean_nll(reference, part.test):.4f}; "
        f"{'its simulations extend the data' if teacher else 'refuted or not asked: data alone'}"
    )
    marks, (train, valid, test) = renumber_marks(part.train, part.valid, part.test)
    form = suggest(train, valid, teacher, marks, options.layers)
    config = Training(seed=options.seed, steps=options.steps, limit_s=options.budget_s)
    torch.manual_seed(options.seed)
    scales = form.scales
    change = float(np.log(scales.log_gap_sd) + np.log(valid.scored).mean())

    def told(look: Look) -> None:
        report(
            f"step {look.step} of {options.steps} at most: "
            f"validation {look.validation + change:.4f}, {look.seconds:.0f} s"
        )

    model, looks = fit(Model.streamable(form), train, valid, config, teacher, told)
    judged = judge(model, test)
    return {
        "test_nll": _figure(judged.gap_nll),
        "reference_nll": _figure(mean_nll(reference, part.test)),
        "ks_p": _figure(ks_p_value(np.clip(judged.pit, 0.0, 1.0))),
        "reference": reference.name,
        "teacher": teacher.name if teacher else None,
        "mark_nll": _figure(judged.mark_nll),
        "amount_nll": _figure(judged.amount_nll),
        "valid_nll": _figure(judge(model, valid).gap_nll),
        "split": part.how,
        "test_sequences": part.test.count,
        "test_sequences_absent": part.absent,
        "test_gaps": len(part.test) - part.test.count,
        "steps": looks[-1].step,
        "parameters": sum(value.numel() for value in model.parameters()),
        "memory": form.memory,
        "seconds": round(time.monotonic() - begun, 1),
    }


def _chosen(asked: list[str], names: Iterable[str]) -> list[str]:
    if unknown := set(asked) - set(names):
        raise ValueError(
            f"expected processes of {sorted(names)}, found {sorted(unknown)} in --process"
        )
    return asked or sorted(names)


def judge_each(
    names: Iterable[str], load: Callable[[str], Recorded], options: Options
) -> tuple[dict[str, Row], int]:
    """Evaluate each process, and return the rows and the exit code: 1 where one has an error."""
    found: dict[str, Row] = {}
    for name in names:

        def report(line: str, name: str = name) -> None:
            print(f"{name}: {line}", file=sys.stderr, flush=True)  # noqa: T201 progress

        try:
            given = load(name)
            for warning in given.warnings:
                report(f"warning: {warning}")
            part = parts_of(given.sequences, options.split_seed)
            found[name] = evaluate(part, options, report)
            found[name]["warnings"] = list(given.warnings)
            if load is _known:
                found[name]["true_nll"] = _figure(mean_nll(KNOWN[name], part.test))
        except Exception as error:  # noqa: BLE001 the other processes' answers still count
            what = str(error) if isinstance(error, ValueError) else repr(error)
            report(f"error: {what}")
            found[name] = {"error": what}
    return found, int(any("error" in row for row in found.values()))


def _known(name: str) -> Recorded:
    return Recorded(known_sequences(name))


def main() -> int:
    """Evaluate and print JSON."""
    parser = argparse.ArgumentParser(prog="eddy evaluate tpp", description=__doc__)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--data", type=Path)
    where.add_argument("--known", action="store_true")
    parser.add_argument("--process", action="append", default=[])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--split-seed", type=int, default=PUBLISHED_SEED)
    parser.add_argument("--steps", type=int, default=Options().steps)
    parser.add_argument("--budget-s", type=float, default=Options().budget_s)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--no-simulation", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    options = Options(
        given.seed, given.steps, given.budget_s, given.split_seed, given.layers,
        not given.no_simulation,
    )  # fmt: skip
    load: Callable[[str], Recorded] = _known
    try:
        read = {} if given.known else tables(given.data)
        names = _chosen(given.process, KNOWN if given.known else read)
        if not given.known:
            load = lambda name: recorded(read[name])  # noqa: E731
    except ValueError as error:
        print(f"eddy: {error}", file=sys.stderr)  # noqa: T201 what a person must put right
        return 1
    found, code = judge_each(names, load, options)
    if given.json:
        print(json.dumps(found, indent=2))  # noqa: T201 the answer
        return code
    for name, row in found.items():
        if "error" in row:
            continue
        print(  # noqa: T201 the answer
            f"{name}: test {row['test_nll']} nats/event, {row['reference']} "
            f"{row['reference_nll']}, KS p {row['ks_p']}"
        )
    return code


if __name__ == "__main__":
    sys.exit(main())
