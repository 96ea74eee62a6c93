"""Train and test the streamable model on each process of a file, beside the classical references.

Run by `eddy evaluate tpp` in the training environment: `python -m deploy.evaluate_tpp --data FILE`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.tpp.classical import Process, best_of, mean_nll
from models.tpp.classical_fit import fit_all
from models.tpp.known import KNOWN, known_sequences
from models.tpp.screening import renumber_marks, suggest, teacher_of
from models.tpp.sequences import Sequences, ks_p_value, split

STEPS_PER_S = 8.0
"""Gradient steps for each second of the budget: a third of what a core does alone, so that the same
budget means the same model on a busy machine too."""
PUBLISHED_SEED = 1
_PROGRESS_LOOKS = 10


@dataclass(frozen=True, slots=True)
class Part:
    """The sequences of one process by their use.

    Attributes:
        train: to learn from.
        valid: to choose by.
        test: to judge by.
        absent: how many sequences of the whole set's test part are not in the file.
    """

    train: Sequences
    valid: Sequences
    test: Sequences
    absent: int


def read(path: Path) -> dict[str, dict[int, Sequences]]:
    """Return the sequences of each process by their number.

    Columns: `t`, float; `seq`, int; `process`, text, missing where the file is of one process,
    which is then named after the file; `mark`, int, and `amount`, float, where events have them.

    Raises:
        ValueError: the file is missing or no Parquet, or a column is missing or holds no numbers.
    """
    import pyarrow as pa
    from pyarrow import parquet

    if not path.is_file():
        raise ValueError(f"expected a Parquet file, found none at {path}; give --data FILE.parquet")
    try:
        table = parquet.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"expected a Parquet file, found another at {path}: {error}") from error
    if missing := {"t", "seq"} - set(table.column_names):
        raise ValueError(
            f"expected the columns t and seq, found {table.column_names} in {path}; "
            f"add {', '.join(sorted(missing))}"
        )
    columns = {name: table[name].to_numpy() for name in table.column_names}
    names = columns.get("process", np.full(len(table), path.stem, object))
    found: dict[str, dict[int, Sequences]] = {}
    for name in sorted(set(names)):
        rows = np.flatnonzero(names == name)
        # Stable: events of one time stay in the file's order, and are refused with a message.
        order = rows[np.lexsort((columns["t"][rows], columns["seq"][rows]))]
        numbers, begins = np.unique(columns["seq"][order], return_index=True)
        by_number = {}
        for number, one in zip(numbers, np.split(order, begins[1:]), strict=True):
            by_number[int(number)] = Sequences.join(
                [columns["t"][one].astype(np.float64)],
                [columns["mark"][one].astype(np.int64)] if "mark" in columns else None,
                [columns["amount"][one].astype(np.float64)] if "amount" in columns else None,
            )
        found[str(name)] = by_number
    return found


def _join(by_number: dict[int, Sequences], numbers: NDArray[np.int64]) -> Sequences:
    parts = [by_number[int(i)] for i in numbers if int(i) in by_number and len(by_number[int(i)])]
    marks = [part.mark for part in parts if part.mark is not None]
    amounts = [part.amount for part in parts if part.amount is not None]
    return Sequences.join(
        [part.time for part in parts],
        marks if len(marks) == len(parts) else None,
        amounts if len(amounts) == len(parts) else None,
    )


def parts_of(by_number: dict[int, Sequences], seed: int = PUBLISHED_SEED) -> Part:
    """Split a process as published: over the numbers from 0 to the greatest, present or not."""
    train, valid, test = split(max(by_number) + 1, seed)
    absent = sum(int(i) not in by_number for i in test)
    return Part(_join(by_number, train), _join(by_number, valid), _join(by_number, test), absent)


@dataclass(frozen=True, slots=True)
class Options:
    """What `evaluate` may be told.

    Attributes:
        seed: of training; the split has its own.
        budget_s: of training per process.
        split_seed: 1 gives the published split.
        layers: of the encoder.
        simulate: whether an unrefuted classical process extends the training data.
    """

    seed: int = 1
    budget_s: float = 180.0
    split_seed: int = PUBLISHED_SEED
    layers: int = 1
    simulate: bool = True


def evaluate(
    part: Part, options: Options, report: Callable[[str], None]
) -> dict[str, float | str | int | None]:
    """Fit the references, train the streamable model, and judge both on the test sequences."""
    import torch

    from models.tpp.training.likelihood import Look, Training, fit, judge
    from models.tpp.training.streamable import Model

    begun = time.monotonic()
    fits = fit_all(part.train)
    reference = best_of(fits, part.valid)
    teacher: Process | None = None
    if options.simulate:
        teacher = teacher_of(fits, part.train, part.valid)
    report(
        f"reference {reference.name}: test {mean_nll(reference, part.test):.4f}; "
        f"{'its simulations extend the data' if teacher else 'refuted or not asked: data alone'}"
    )
    marks, (train, valid, test) = renumber_marks(part.train, part.valid, part.test)
    form = suggest(train, valid, teacher, marks, options.layers)
    steps = max(int(options.budget_s * STEPS_PER_S), 40)
    config = Training(seed=options.seed, steps=steps, limit_s=options.budget_s)
    torch.manual_seed(options.seed)
    scales = form.scales
    change = float(np.log(scales.log_gap_sd) + np.log(valid.scored).mean())

    def told(look: Look) -> None:
        report(
            f"step {look.step} of {steps} at most: validation {look.validation + change:.4f}, "
            f"{look.seconds:.0f} s"
        )

    model, looks = fit(Model.streamable(form), train, valid, config, teacher, told)
    judged = judge(model, test)
    return {
        "test_nll": round(judged.gap_nll, 4),
        "reference_nll": round(mean_nll(reference, part.test), 4),
        "ks_p": round(ks_p_value(judged.pit), 4),
        "reference": reference.name,
        "teacher": teacher.name if teacher else None,
        "mark_nll": None if judged.mark_nll is None else round(judged.mark_nll, 4),
        "amount_nll": None if judged.amount_nll is None else round(judged.amount_nll, 4),
        "valid_nll": round(judge(model, valid).gap_nll, 4),
        "test_sequences": part.test.count,
        "test_sequences_absent": part.absent,
        "test_gaps": len(part.test) - part.test.count,
        "steps": looks[-1].step,
        "parameters": sum(value.numel() for value in model.parameters()),
        "memory": form.memory,
        "seconds": round(time.monotonic() - begun, 1),
    }


def _chosen(asked: list[str], processes: dict[str, dict[int, Sequences]]) -> list[str]:
    if unknown := set(asked) - set(processes):
        raise ValueError(
            f"expected processes of {sorted(processes)}, found {sorted(unknown)} in --process"
        )
    return asked or sorted(processes)


def main() -> int:
    """Evaluate and print JSON."""
    parser = argparse.ArgumentParser(prog="eddy evaluate tpp", description=__doc__)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--data", type=Path)
    where.add_argument("--known", action="store_true")
    parser.add_argument("--process", action="append", default=[])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--split-seed", type=int, default=PUBLISHED_SEED)
    parser.add_argument("--budget-s", type=float, default=180.0)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--no-simulation", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    options = Options(
        given.seed, given.budget_s, given.split_seed, given.layers, not given.no_simulation
    )
    try:
        processes = (
            {name: known_sequences(name) for name in KNOWN} if given.known else read(given.data)
        )
        found = {}
        for name in _chosen(given.process, processes):

            def report(line: str, name: str = name) -> None:
                print(f"{name}: {line}", file=sys.stderr, flush=True)  # noqa: T201 progress

            part = parts_of(processes[name], options.split_seed)
            found[name] = evaluate(part, options, report)
            if given.known:
                found[name]["true_nll"] = round(mean_nll(KNOWN[name], part.test), 4)
    except ValueError as error:
        print(f"eddy: {error}", file=sys.stderr)  # noqa: T201 what a person must put right
        return 1
    if given.json:
        print(json.dumps(found, indent=2))  # noqa: T201 the answer
        return 0
    for name, row in found.items():
        print(  # noqa: T201 the answer
            f"{name}: test {row['test_nll']} nats/event, {row['reference']} "
            f"{row['reference_nll']}, KS p {row['ks_p']}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
