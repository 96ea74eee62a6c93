"""Advance: walk a batch event by event, score each with the baselines, and update the entities."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.baselines.entity_level import (
    CALM,
    FREEZE,
    LEARNING,
    PATIENCE,
    begin_level,
    level_step,
)
from models.baselines.partners import count_bits, distinct, partner_surprise
from models.baselines.renewal import (
    GAP_PRIOR_EVENTS,
    MIN_GAP_S,
    burst_step,
    cumulative_profile,
    gap_step,
    log_normal_log_survival,
    operational_s,
    rhythm_step,
    rhythm_surprise,
)
from models.prior import KindPrior
from models.tpp.encoder import SCRATCH, Encoder, encoder_step, gap_features
from models.tpp.spec import IS_FIRST, LOG_COUNT, LOG_COUNT_DIVISOR, MARK, MARKS, RATIO, ZGAP
from state.prefetch import AHEAD, prefetch
from state.table import MEMORY, ROW_SIZE, Table

# What advance tells decide of one event of one entity.
ADVANCED = np.dtype(
    [
        ("time_ms", np.int64),
        ("last_ms", np.int64),  # the entity's event before this one
        ("first_ms", np.int64),
        ("event", np.int32),  # index in the batch
        ("row", np.int32),
        ("events", np.uint32),  # of the entity, with this one
        ("fresh", np.bool_),
        ("timed", np.bool_),  # False: first event, or out of order: the gap is not scored
        ("mark", np.uint8),
        ("value", np.float32),  # transformed; NaN where missing
        ("typical", np.float32),  # the level before the event
        ("spread", np.float32),  # standard deviation of the prediction
        ("log_gap", np.float32),  # operational seconds
        ("elapsed", np.float32),  # the gap in the entity's usual gaps before it
        ("gap_mean", np.float32),  # of the log gap, after the event
        ("gap_sd", np.float32),
        ("amount", np.float32),  # surprises, in nats, from here
        ("amount_up", np.float32),
        ("amount_down", np.float32),
        ("rhythm", np.float32),
        ("partners", np.float32),
        ("partner_count", np.float32),
    ],
    align=True,
)

NO_PARTNER = 255


class KindParameters(NamedTuple):
    """Numbers of one kind that the compiled kernel reads."""

    value_mean: float
    value_between_var: float
    value_within_var: float
    gap_mean: float
    gap_between_var: float
    gap_within_var: float
    partner_mean: float
    partner_window_ms: int
    has_partners: bool
    level_noise: float  # of the noise variance, gained by the level at each value


# Those that come from the prior; the others from the settings.
PRIOR_NUMBERS = tuple(
    name for name in KindParameters._fields if name not in ("partner_window_ms", "has_partners")
)


@dataclass(frozen=True, slots=True)
class AdvanceModel:
    """Everything of one kind that `advance` needs beside the table.

    Attributes:
        parameters: the prior's numbers.
        cumulative: float64[169], the weekly profile as `cumulative_profile` gives it.
        encoder: the history encoder.
    """

    parameters: KindParameters
    cumulative: NDArray[np.float64]
    encoder: Encoder

    @classmethod
    def of(cls, prior: KindPrior, encoder: Encoder, partner_window_ms: int | None) -> AdvanceModel:
        """Gather the model of a kind; `partner_window_ms` is None where partners do not count."""
        parameters = KindParameters(
            prior.value_mean,
            prior.value_between_var,
            prior.value_within_var,
            prior.gap_mean,
            prior.gap_between_var,
            prior.gap_within_var,
            prior.partner_mean,
            partner_window_ms or 1,
            partner_window_ms is not None,
            prior.level_noise,
        )
        return cls(parameters, cumulative_profile(np.array(prior.profile)), encoder)


@dataclass(frozen=True, slots=True)
class KindEvents:
    """The events of one batch that have an entity of one kind in this shard.

    Attributes:
        event: int32[m], index of each in the batch.
        row: int32[m], row of the entity.
        fresh: bool[m], the row begins anew with this event.
        time_ms: int64[m], event time.
        value: float64[m], transformed; NaN is missing.
        mark: uint8[m]; 255 is none.
        partner: uint8[m], low 6 bits of the partner's hash; NO_PARTNER where there is none.
        partner_hash: uint64[m], all of it, 0 where there is none; None where no component reads it.
    """

    event: NDArray[np.int32]
    row: NDArray[np.int32]
    fresh: NDArray[np.bool_]
    time_ms: NDArray[np.int64]
    value: NDArray[np.float64]
    mark: NDArray[np.uint8]
    partner: NDArray[np.uint8]
    partner_hash: NDArray[np.uint64] | None = None

    def __len__(self) -> int:
        return len(self.event)

    def only(self, keep: NDArray[np.bool_]) -> KindEvents:
        """Return the events at which `keep` is True."""
        return KindEvents(
            self.event[keep],
            self.row[keep],
            self.fresh[keep],
            self.time_ms[keep],
            self.value[keep],
            self.mark[keep],
            self.partner[keep],
            None if self.partner_hash is None else self.partner_hash[keep],
        )


def advance(
    table: Table, events: KindEvents, model: AdvanceModel, x: NDArray[np.float32]
) -> NDArray[np.void]:
    """Score `events` with the baselines and update their rows and memories in `table`.

    One call with all events equals a call for each of them.

    Args:
        table: changed in the fields that belong to advance.
        events: m events of one kind.
        model: of the kind.
        x: float32[m, 69], filled with what the intensity model is asked for each event.

    Returns:
        ADVANCED[m].
    """
    out = np.zeros(len(events), ADVANCED)
    encoder = model.encoder
    _advance(
        table.rows, table.memory, events.event, events.row, events.fresh, events.time_ms,
        events.value, events.mark, events.partner, model.parameters, model.cumulative,
        encoder.w1, encoder.b1, encoder.w2, encoder.b2, out, x,
    )  # fmt: skip
    return out


@njit(cache=True)
def _begin(entity, memory, time_ms, p):  # type: ignore[no-untyped-def]
    """Give a row the population's prior."""
    entity.last_ms = time_ms
    entity.first_ms = time_ms
    entity.partners_now = 0
    entity.partners_before = 0
    entity.events = 0
    entity.partner_window = 0
    entity.flood = 0.0
    entity.gap_mean = p.gap_mean
    entity.gap_var = p.gap_within_var
    entity.steady_gap_mean = p.gap_mean
    entity.gap_frozen = 0
    entity.rhythm_mean = 0.0
    entity.rhythm_var = 0.0
    entity.partner_mean = p.partner_mean
    begin_level(entity, p)
    memory[:] = 0.0


@njit(cache=True)
def _score_partner(entity, partner, time_ms, p, out):  # type: ignore[no-untyped-def]
    window = np.int32(time_ms // p.partner_window_ms)
    if window > entity.partner_window:
        if entity.events > 0:
            seen = distinct(entity.partners_now | entity.partners_before)
            entity.partner_mean += 0.2 * (seen - entity.partner_mean)
        entity.partners_before = (
            entity.partners_now if window == entity.partner_window + 1 else np.uint64(0)
        )
        entity.partners_now = np.uint64(0)
        entity.partner_window = window
    entity.partners_now |= np.uint64(1) << np.uint64(partner)
    both = entity.partners_now | entity.partners_before
    if count_bits(both) > 1:
        count = distinct(both)
        out.partner_count = count
        out.partners = partner_surprise(count, max(entity.partner_mean, p.partner_mean))
    else:
        out.partner_count = 1.0


@njit(cache=True)
def _learn_gap(entity, log_gap, gap_sd):  # type: ignore[no-untyped-def]
    compensator = -log_normal_log_survival((log_gap - entity.gap_mean) / gap_sd)
    entity.flood = burst_step(entity.flood, compensator)
    if entity.gap_frozen == 0:
        gaps = float(entity.events)
        entity.gap_mean, entity.gap_var = gap_step(
            log_gap, entity.gap_mean, entity.gap_var, gaps, GAP_PRIOR_EVENTS
        )
        if entity.flood <= CALM or gaps <= LEARNING:
            entity.steady_gap_mean = entity.gap_mean
        elif entity.flood > FREEZE:
            entity.gap_mean = entity.steady_gap_mean
            entity.gap_frozen = 1
    else:
        entity.gap_frozen += np.uint16(1)
        if entity.flood <= CALM:
            entity.gap_frozen = 0
        elif entity.gap_frozen > 10 * PATIENCE:
            entity.gap_frozen = 0
            entity.flood = 0.0
            entity.gap_mean = log_gap


@njit(cache=True)
def _score_gap(entity, time_ms, p, cumulative, out):  # type: ignore[no-untyped-def]
    """Score and learn the gap; return (elapsed, zgap, ratio) for the encoder."""
    gap = operational_s(time_ms, cumulative) - operational_s(entity.last_ms, cumulative)
    gap = max(gap, MIN_GAP_S)
    log_gap = math.log(gap)
    mean = entity.gap_mean
    gaps = float(entity.events)
    between = p.gap_between_var * p.gap_within_var
    between /= p.gap_within_var + gaps * p.gap_between_var
    out.timed = True
    out.log_gap = log_gap
    out.gap_sd = math.sqrt(entity.gap_var + between)
    _learn_gap(entity, log_gap, out.gap_sd)
    # Regularity is judged by the clock on the wall: a machine keeps no nights.
    log_wall = math.log(max((time_ms - entity.last_ms) * 1e-3, MIN_GAP_S))
    entity.rhythm_mean, entity.rhythm_var = rhythm_step(
        log_wall, entity.rhythm_mean, entity.rhythm_var, gaps
    )
    out.rhythm = rhythm_surprise(entity.rhythm_var, entity.gap_var, gaps)
    return gap_features(gap, mean, math.sqrt(p.gap_within_var))


@njit(cache=True, nogil=True)
def _advance(  # type: ignore[no-untyped-def]
    rows,
    memory,
    event,
    row,
    fresh,
    time_ms,
    value,
    mark,
    partner,
    p,
    cumulative,
    w1,
    b1,
    w2,
    b2,
    out,
    x,
):
    hidden = np.empty(SCRATCH, np.float32)
    for i in range(len(row)):
        if i + AHEAD < len(row):
            prefetch(rows, row[i + AHEAD], ROW_SIZE)
            prefetch(memory, row[i + AHEAD], 4 * MEMORY)
        r = row[i]
        entity = rows[r]
        told = out[i]
        if fresh[i]:
            _begin(entity, memory[r], time_ms[i], p)
        told.time_ms = time_ms[i]
        told.event = event[i]
        told.row = r
        told.fresh = fresh[i]
        told.mark = mark[i]
        told.last_ms = entity.last_ms
        told.first_ms = entity.first_ms
        level_step(entity, value[i], p, told)
        if p.has_partners and partner[i] != NO_PARTNER:
            _score_partner(entity, partner[i], time_ms[i], p, told)
        elapsed, zgap, ratio, is_first = 0.0, 0.0, 1.0, 0.0
        if entity.events == 0:
            is_first = 1.0
        elif time_ms[i] >= entity.last_ms:
            elapsed, zgap, ratio = _score_gap(entity, time_ms[i], p, cumulative, told)
        entity.events += np.uint32(1)
        entity.last_ms = max(entity.last_ms, time_ms[i])
        told.events = entity.events
        told.elapsed = elapsed
        told.gap_mean = entity.gap_mean
        encoder_step(
            memory[r], elapsed, zgap, ratio, is_first, mark[i], w1, b1, w2, b2, hidden,
        )  # fmt: skip
        x[i, : memory.shape[1]] = memory[r]
        x[i, ZGAP] = zgap
        x[i, RATIO] = ratio
        x[i, IS_FIRST] = is_first
        x[i, LOG_COUNT] = math.log1p(float(entity.events)) / LOG_COUNT_DIVISOR
        x[i, MARK] = min(mark[i], MARKS)
