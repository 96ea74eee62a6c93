"""Components that read what the intensity model expected: walked when a batch is decided.

`advance` cannot walk them: the compensator of a gap follows from the prediction made at the event
before, which may still be on its way. Their records are part of the table all the same. Pages are
written only when every batch is decided, and a restore decides logged batches again with the
predictions in the log, so that these records come back to the bit as decide's other fields do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

from flink_jobs.components import KindComponents, mark_begun
from flink_jobs.decide import CAP, PREDICTION, gap_log_survival, unpack
from models.baselines.component import NO_PARTNER
from state.table import MIXTURE, Table


def walk_decided(
    table: Table,
    kind: KindComponents,
    advanced: NDArray[np.void],
    predictions: NDArray[np.void] | None,
    tells: Sequence[NDArray[np.float32]],
) -> None:
    """Score a batch with the components that read compensators, and update their records.

    To be called before `decide` takes in the batch: the rows hold the predictions made before it.
    One call with all events equals a call for each of them, `decide` following each.

    Args:
        table: changed in these components' parts; its rows are read.
        kind: the components.
        advanced: ADVANCED[m].
        predictions: PREDICTION[m], of the event after each; None where there was no answer.
        tells: by component, float32[m, len(tells)]; filled for these components.
    """
    if not any(kind.decided):
        return
    compensator, aided = compensators(table, advanced, predictions)
    row, time_ms = advanced["row"].copy(), advanced["time_ms"].copy()
    fresh, partner = advanced["fresh"].copy(), np.full(len(row), NO_PARTNER, np.uint64)
    for j, component in enumerate(kind.components):
        if kind.decided[j]:
            begins = mark_begun(row, fresh, table.begun[j])
            component.walk(
                table.parts[j], row, begins, time_ms, compensator, aided, partner,
                component.parameters, tells[j],
            )  # fmt: skip


def compensators(
    table: Table, advanced: NDArray[np.void], predictions: NDArray[np.void] | None
) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Return what `decide` will find as the compensators of a batch, before it takes it in.

    Args:
        table: as `decide` left it after the batch before.
        advanced: ADVANCED[m].
        predictions: PREDICTION[m], of the event after each; None where there was no answer.

    Returns:
        float64[m], expected number of events in each gap, NaN where none is timed; and uint8[m],
        1 where the intensity model predicted the gap, 0 where the entity's baseline stood in.
    """
    out = np.full(len(advanced), np.nan)
    aided = np.zeros(len(advanced), np.uint8)
    answered = predictions is not None
    given = predictions if predictions is not None else np.empty(0, PREDICTION)
    before = _events_before(advanced["row"])
    _compensators(table.rows, advanced, given, answered, before, out, aided)
    return out, aided


def _events_before(row: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return int64[m], the index of the event of the same row before each; -1 where none is."""
    order = np.argsort(row, kind="stable")
    same = row[order[1:]] == row[order[:-1]]
    before = np.full(len(row), -1, np.int64)
    before[order[1:][same]] = order[:-1][same]
    return before


@njit(cache=True, nogil=True)
def _compensators(rows, advanced, predictions, answered, before, out, aided):  # type: ignore[no-untyped-def]
    params = np.empty(MIXTURE)
    for i in range(len(advanced)):
        told = advanced[i]
        if not told.timed:
            continue
        if before[i] < 0:
            entity = rows[told.row]
            predicted = entity.predicted != 0
            scale = entity.scale
            if predicted:
                unpack(entity, params)
        else:
            predicted = answered
            scale = advanced[before[i]].gap_mean
            if predicted:
                unpack(predictions[before[i]], params)
        aided[i] = predicted
        # Rounded weights may add up to a little more than 1.
        out[i] = min(max(-gap_log_survival(predicted, params, scale, told), 0.0), CAP)
