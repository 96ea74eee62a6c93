"""Which form of a trained model is served: what a row of each costs, and the rule that chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploy.training.cost import measure
from deploy.training.served import IN_FLIGHT, rates
from models.tpp import plan as plans

MOST_LOST_NATS = 0.005
JOB_ROWS = 512  # of a request at the job's usual load
EQUAL_COST = 0.03  # a difference that the next measurement may turn round
RULE = (
    f"Kept is the form that costs least for a row at {JOB_ROWS} rows a request, of those whose "
    f"validation likelihood is at most {MOST_LOST_NATS:g} nats per event worse than the base's; of "
    f"forms within {EQUAL_COST:.0%} of the least cost the likeliest. The likelihoods shown are "
    "those of the last part of the stream, which has no say in the choice."
)


def choose(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the name of the row that is kept by RULE.

    Args:
        rows: with name, valid_nats and us_per_row (None where it is not served); the first is the
            base.
    """
    base = rows[0]["valid_nats"]
    served = [
        row
        for row in rows
        if row["us_per_row"] is not None and row["valid_nats"] - base <= MOST_LOST_NATS
    ]
    least = min(row["us_per_row"] for row in served)
    equal = [row for row in served if row["us_per_row"] <= (1.0 + EQUAL_COST) * least]
    name: str = min(equal, key=lambda row: row["valid_nats"])["name"]
    return name


def table(work: Path, learnt: Mapping[str, Any], model_py: Path) -> dict[str, Any]:
    """Measure the variants of a training and return the table, the kept one marked.

    Args:
        work: folder of the training.
        learnt: what it told.
        model_py: the server's code, for the rate on Triton.
    """
    folders = {
        row["name"]: work / plans.VARIANTS / row["folder"]
        for row in learnt["variants"]
        if row["folder"]
    }
    with np.load(work / plans.MODEL / "check.npz", allow_pickle=False) as check:
        x = check["x"]
    cost = measure({name: f / "decoder.onnx" for name, f in folders.items()}, x, rounds=25)
    served, why = rates(folders, model_py, x, JOB_ROWS)
    base = learnt["variants"][0]["test_nats"]
    rows = [
        {
            "name": row["name"],
            "folder": row["folder"],
            "valid_nats": round(row["valid_nats"], 4),
            "test_nats": round(row["test_nats"], 4),
            "loss_nats": round(row["test_nats"] - base, 4),
            "bytes": row["bytes"],
            "us_per_row": _at(cost, row["name"], JOB_ROWS),
            "us_per_row_by_rows": {
                str(n): round(us, 3) for n, us in cost.get(row["name"], {}).items()
            },
            "rows_per_s": served.get(row["name"]),
            "kept": False,
        }
        for row in learnt["variants"]
    ]
    kept = choose(
        [
            {**row, "valid_nats": full["valid_nats"]}
            for row, full in zip(rows, learnt["variants"], strict=True)
        ]
    )
    for row in rows:
        row["kept"] = row["name"] == kept
    where = f"Triton on CPU, {JOB_ROWS} rows a request, {IN_FLIGHT} under way" if served else why
    return {"rule": RULE, "rows_per_s_on": where, "rows": JOB_ROWS, "variants": rows}


def _at(cost: Mapping[str, Mapping[int, float]], name: str, rows: int) -> float | None:
    return round(cost[name][rows], 4) if name in cost else None
