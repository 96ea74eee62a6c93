"""Decide: score each gap with the prediction made before it, fuse, calibrate, and raise alerts."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import NormalDist
from typing import NamedTuple, Protocol

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.baselines.entity_level import innovation
from models.baselines.renewal import (
    burst_step,
    cumulative_profile,
    log_normal_log_survival,
    operational_s,
    surge_step,
    wall_ms,
)
from models.detectors import DETECTORS, FUSED, votes
from models.fusion import fuse
from models.prior import KindPrior
from models.tpp.mixture import (
    mixture_log_cdf,
    mixture_log_pdf,
    mixture_log_survival,
    mixture_upper_quantile,
)
from models.tpp.spec import AMOUNT as AMOUNT_PART
from state.prefetch import AHEAD, prefetch
from state.table import MARKS, MIXTURE, NEVER_MS, ROW_SIZE

# An answer as the log keeps it, and as rows keep what it says of the next event: mixture parameters
# in 1/1024, surprises of marks in 1/16 nat, that of the event's own amount in 1/1024 nat.
PREDICTION = np.dtype(
    [
        ("mixture", np.int16, MIXTURE),
        ("mark_surprise", np.uint8, MARKS),
        ("amount_surprise", np.uint16),
    ]
)
MIXTURE_UNIT = 1024.0
MARK_UNIT = 16.0
AMOUNT_UNIT = 1024.0
NO_AMOUNT = 65535  # nothing is said of the amount: it is missing, or the log is too old
AMOUNT_LIMIT = 24.0  # sd: as far as the training looks
CAP = 1e4  # of a compensator
_LOG_2 = math.log(2.0)

CORE = len(FUSED)  # the components' surprises come after
AMOUNT = 0
QUIET = 0
ALERT = 1

# What decide tells of one event of one entity, without components; see `decided_dtype`.
DECIDED = np.dtype(
    [
        ("silence_ms", np.int64),  # when the silence before this event became one; else NEVER_MS
        ("log_p", np.float32),  # fused; 0 where no detector came near the threshold
        ("compensator", np.float32),  # expected number of events in the gap
        ("usual", np.float32),  # mean log gap before the event
        ("nats", np.float32),  # see `decide`; NaN where no prediction was there to be measured
        ("surprise", np.float32, len(FUSED)),
        ("verdict", np.uint8),
        ("unaided", np.bool_),  # no prediction of the intensity model stood behind the score
        ("slot", np.uint8),  # of the model whose prediction did; 0 where none
        ("amount_slot", np.uint8),  # of the model that judged the amount; 0 where the baseline did
    ],
    align=True,
)


@cache
def decided_dtype(surprises: int) -> np.dtype[np.void]:
    """Return DECIDED with room for `surprises`: those of the core, then the components'."""
    if surprises == len(FUSED):
        return DECIDED
    fields = [
        (name, (np.dtype(np.float32), (surprises,))) if name == "surprise" else (name, of)
        for name, of in ((name, DECIDED[name]) for name in DECIDED.names or ())
    ]
    return np.dtype((DECIDED.type, np.dtype(fields, align=True)))


SLOTS = 255
AIDED, UNAIDED = 0, 1  # modes of every calibration: with the first intensity model, and without any


def slot_of(version: int) -> int:
    """Return the slot, 1 to 255, by which rows and log name a model's version.

    Two versions share one if they are 255 apart: long before, the older one's folder is gone.
    """
    return 1 + (version - 1) % SLOTS


class DecideParameters(NamedTuple):
    """Numbers of one kind that the compiled kernel reads; log_* are natural logarithms."""

    log_alpha: float
    min_events: int
    quiet_ms: int
    awaits: bool
    await_min_events: int


@dataclass(frozen=True, slots=True)
class DecideOptions:
    """What the settings say of one kind's decisions; the names are those of `DecideModel.of`."""

    alpha: float
    detectors: frozenset[str]
    silence_alpha: float | None
    components: tuple[str, ...]
    fuse_all: bool


class Modes(NamedTuple):
    """Calibration by mode: AIDED, UNAIDED, then one for each further version of the model.

    Attributes:
        of_slot: uint8[256], the mode by the slot of the model that predicted.
        offset: float64[M, D], of each detector's tail.
        slope: float64[M, D], likewise.
        bar: float64[M, D], surprise above which a detector alone may raise an alert.
        silence: float64[M, 2], the surprise at which a silence is told, and its normal quantile.
    """

    of_slot: NDArray[np.uint8]
    offset: NDArray[np.float64]
    slope: NDArray[np.float64]
    bar: NDArray[np.float64]
    silence: NDArray[np.float64]


def _mode(
    prior: KindPrior, options: DecideOptions, degraded: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return one mode's offset [D], slope [D], bar [D] and silence [2]."""
    names = (*FUSED, *options.components)
    tails = [prior.tail(name, degraded) for name in names]
    offset = np.array([t.offset for t in tails])
    slope = np.array([t.slope for t in tails])
    # The fused p-value is never below the least of those it is made of.
    bar = (offset - math.log(options.alpha)) / slope
    if options.fuse_all:
        bar[:] = -math.inf
    for d, name in enumerate(FUSED):
        if not votes(name, options.detectors):
            offset[d], slope[d], bar[d] = math.inf, 0.0, math.inf
    tail = prior.tail("silence", degraded)
    silence = (tail.offset - math.log(options.silence_alpha or options.alpha)) / tail.slope
    return offset, slope, bar, np.array([silence, _normal_upper_quantile(silence)])


@dataclass(frozen=True, slots=True)
class DecideModel:
    """Everything of one kind that `decide` needs beside the table.

    Attributes:
        parameters: thresholds.
        options: what the settings say.
        modes: calibration, by the model that predicted.
        cumulative: float64[169], weekly profile.
    """

    parameters: DecideParameters
    options: DecideOptions
    modes: Modes
    cumulative: NDArray[np.float64]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the D surprises: FUSED, then the components'."""
        return (*FUSED, *self.options.components)

    @classmethod
    def of(
        cls,
        prior: KindPrior,
        *,
        alpha: float,
        detectors: Collection[str],
        min_events: int,
        quiet_ms: int,
        silence_alpha: float | None,
        silence_min_events: int,
        components: Sequence[str] = (),
        fuse_all: bool = False,
    ) -> DecideModel:
        """Gather the model of a kind.

        Args:
            prior: calibration and profile.
            alpha: fused p-value under which an event is anomalous, in (0, 1).
            detectors: names from `models.fusion.DETECTORS` that are switched on.
            min_events: events an entity must have had before it can be alerted on.
            quiet_ms: event time without anomaly after which an incident is over.
            silence_alpha: p-value of a silence; None where this kind's silences are not told.
            silence_min_events: events an entity must have had before its silence can be told.
            components: names of the surprises of the kind's components; all of them vote.
            fuse_all: give every event its fused p-value, not only those near the threshold.

        Raises:
            ValueError: a detector's name is not known.
        """
        unknown = set(detectors) - set(DETECTORS)
        if unknown:
            raise ValueError(f"expected detectors of {DETECTORS}, found {sorted(unknown)}")
        awaits = silence_alpha is not None and "silence" in detectors
        options = DecideOptions(
            alpha, frozenset(detectors), silence_alpha, tuple(components), fuse_all
        )
        both = [_mode(prior, options, degraded) for degraded in (False, True)]
        of_slot = np.full(SLOTS + 1, AIDED, np.uint8)
        of_slot[0] = UNAIDED
        modes = Modes(of_slot, *(np.stack(part) for part in zip(*both, strict=True)))
        parameters = DecideParameters(
            math.log(alpha), min_events, quiet_ms, awaits, silence_min_events
        )
        return cls(parameters, options, modes, cumulative_profile(np.array(prior.profile)))

    def serving(self, others: Mapping[int, KindPrior]) -> DecideModel:
        """Return the model with a calibration of its own for further versions.

        Args:
            others: by slot, the prior that came with the version; of it only the tails count.
        """
        of_slot = self.modes.of_slot.copy()
        of_slot[1:] = AIDED
        parts = [[part[:2]] for part in self.modes[1:]]
        for at, (slot, prior) in enumerate(sorted(others.items())):
            of_slot[slot] = 2 + at
            for part, row in zip(parts, _mode(prior, self.options, False), strict=True):
                part.append(row[None])
        return replace(self, modes=Modes(of_slot, *(np.concatenate(part) for part in parts)))

    def tails(self, slot: int, amount_slot: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return float64[D] offsets and slopes of an event's surprises, by the slots DECIDED tells.

        What is said of the amount comes with the event's own answer, the rest was predicted with
        the one before: they can be of two models.
        """
        both = []
        for part in (self.modes.offset, self.modes.slope):
            mine = part[self.modes.of_slot[slot]].copy()
            mine[AMOUNT] = part[self.modes.of_slot[amount_slot], AMOUNT]
            both.append(mine)
        return both[0], both[1]

    def without(self, names: Collection[str]) -> DecideModel:
        """Return the model that decides as if the surprises `names` were not there."""
        modes = self.modes
        offset, slope, bar = modes.offset.copy(), modes.slope.copy(), modes.bar.copy()
        off = [d for d, name in enumerate(self.names) if name in names]
        offset[:, off], slope[:, off], bar[:, off] = math.inf, 0.0, math.inf
        return replace(self, modes=modes._replace(offset=offset, slope=slope, bar=bar))


def _normal_upper_quantile(surprise: float) -> float:
    """Return z with -log P(Z > z) = surprise."""
    if surprise < 600.0:
        return -NormalDist().inv_cdf(math.exp(-max(surprise, 1e-9)))
    return math.sqrt(2.0 * surprise)


def pack(
    answer: NDArray[np.float32],
    advanced: NDArray[np.void],
    nats: NDArray[np.float32] | None = None,
) -> NDArray[np.void]:
    """Round the intensity model's answer to PREDICTION[m].

    Args:
        answer: float32[m, 32].
        advanced: ADVANCED[m], the events that it was asked about.
        nats: float32[m], filled where it is given: the negative log density of each event's
            standardised innovation under its answer, 0 where the amount is missing.
    """
    out = np.empty(len(answer), PREDICTION)
    # One type of array, so one kernel: to compile another takes seconds, in the midst of a stream.
    fixed = answer.view()
    fixed.flags.writeable = False
    _pack(
        fixed, advanced, np.empty(0, np.float32) if nats is None else nats,
        out["mixture"], out["mark_surprise"], out["amount_surprise"],
    )  # fmt: skip
    return out


def unsaid() -> np.void:
    """Return a PREDICTION with what stands in fields that older logs have not."""
    record = np.zeros(1, PREDICTION)
    record["amount_surprise"] = NO_AMOUNT
    return record[0]  # type: ignore[no-any-return]


@njit(cache=True, nogil=True)
def _pack(answer, advanced, nats, mixture, mark_surprise, amount_surprise):  # type: ignore[no-untyped-def]
    params = np.empty(12)
    for i in range(len(answer)):
        for k in range(MIXTURE):
            kept = min(max(answer[i, k], np.float32(-31.0)), np.float32(31.0))
            mixture[i, k] = np.int16(np.rint(kept * np.float32(MIXTURE_UNIT)))
        for k in range(MARKS):
            kept = min(max(-answer[i, MIXTURE + k], np.float32(0.0)), np.float32(15.9))
            mark_surprise[i, k] = np.uint8(np.rint(kept * np.float32(MARK_UNIT)))
        amount_surprise[i] = NO_AMOUNT
        if len(nats):
            nats[i] = 0.0
        value = innovation(advanced[i])
        if not math.isnan(value):
            _amount_params(answer[i], params)
            surprise = min(_two_sided(params, _limited(value)), 63.9)
            amount_surprise[i] = np.uint16(np.rint(surprise * AMOUNT_UNIT))
            if len(nats):
                nats[i] = -mixture_log_pdf(params, _limited(value))


@njit(cache=True)
def _amount_params(answer, params):  # type: ignore[no-untyped-def]
    # In the range of the gap's: whatever a server answers, its tails stay numbers.
    for k in range(params.shape[0]):
        kept = min(max(answer[AMOUNT_PART.start + k], np.float32(-31.0)), np.float32(31.0))
        params[k] = kept


@njit(cache=True)
def _limited(value):  # type: ignore[no-untyped-def]
    return min(max(value, -AMOUNT_LIMIT), AMOUNT_LIMIT)


@njit(cache=True)
def _two_sided(params, value):  # type: ignore[no-untyped-def]
    """Return -log of twice the smaller of both tails of a mixture at `value`, nats, >= 0."""
    upper = mixture_log_survival(params, value)
    # Where the upper tail is nearly all, 1 - P has lost its digits.
    if upper > -1e-3:
        return max(-mixture_log_cdf(params, value) - _LOG_2, 0.0)
    return max(-min(upper, math.log(-math.expm1(upper))) - _LOG_2, 0.0)


class Rows(Protocol):
    """What deciding needs of a table, see `state.table.Table`."""

    rows: NDArray[np.void]
    deadline_ms: NDArray[np.int64]
    used: int


def decide(
    table: Rows,
    advanced: NDArray[np.void],
    predictions: NDArray[np.void] | None,
    model: DecideModel,
    components: NDArray[np.float32] | None = None,
    slot: int = 1,
    measured: NDArray[np.float32] | None = None,
) -> NDArray[np.void]:
    """Score what `advance` told, with the predictions made before each event.

    One call with all events equals a call for each of them.

    Args:
        table: changed in the fields that belong to decide.
        advanced: ADVANCED[m].
        predictions: PREDICTION[m], of the event after each; None where there was no answer.
        model: of the kind.
        components: float32[m, S], the surprises of the kind's components; None where it has none.
        slot: of the model that made the predictions.
        measured: float32[m], the `nats` of `pack`: fill `nats`, to which are added the negative log
            density of each event's log gap and the negative log probability of its mark, under the
            prediction made before it.

    Returns:
        DECIDED[m], with D = 8 + S surprises.
    """
    out = np.zeros(len(advanced), decided_dtype(len(model.names)))
    if components is None:
        components = np.empty((len(advanced), 0), np.float32)
    given = predictions if predictions is not None else np.empty(0, PREDICTION)
    _decide(
        table.rows, table.deadline_ms, advanced, given, slot if predictions is not None else 0,
        components, model.parameters, model.modes, model.cumulative,
        np.empty(0, np.float32) if measured is None else measured, out,
    )  # fmt: skip
    return out


def sweep(table: Rows, watermark_ms: int, model: DecideModel) -> list[tuple[int, int]]:
    """Find the entities whose silence has become surprising by `watermark_ms`.

    Returns:
        (row, event time in ms at which it did), earliest first; each is told once.
    """
    if not model.parameters.awaits:
        return []
    candidates = np.flatnonzero(table.deadline_ms[: table.used] < watermark_ms)
    found = []
    for row in candidates:
        due = _due(table.rows[row : row + 1], model.modes, model.cumulative)
        if due < watermark_ms:
            found.append((due, int(row)))
            due = NEVER_MS
        table.deadline_ms[row] = due
    return [(row, due) for due, row in sorted(found)]


@njit(cache=True)
def unpack(entity, params):  # type: ignore[no-untyped-def]
    """Fill params float64[12] with the mixture of a row or a PREDICTION."""
    mixture = entity.mixture
    for k in range(params.shape[0]):
        params[k] = mixture[k] * (1.0 / MIXTURE_UNIT)


@njit(cache=True)
def _crossing(entity, last_ms, params, modes, cumulative):  # type: ignore[no-untyped-def]
    """Return the event time, ms, at which a silence since `last_ms` reaches its bar."""
    bar, z = modes.silence[modes.of_slot[entity.predicted]]
    y = mixture_upper_quantile(params, -bar) if entity.predicted else z * entity.spread
    gap = math.exp(min(entity.scale + y, 25.0))
    return wall_ms(operational_s(last_ms, cumulative) + gap, cumulative)


@njit(cache=True)
def _due(rows, modes, cumulative):  # type: ignore[no-untyped-def]
    params = np.empty(12)
    unpack(rows[0], params)
    return _crossing(rows[0], rows[0].decided_ms, params, modes, cumulative)


@njit(cache=True)
def _bound(entity, params, modes, cumulative):  # type: ignore[no-untyped-def]
    """Return a time, ms, not after `_crossing`: the least of the components' own quantiles."""
    z = modes.silence[modes.of_slot[entity.predicted], 1]
    y = z * entity.spread
    if entity.predicted:
        y = 1e9
        for k in range(4):
            y = min(y, params[4 + k] + z * math.exp(params[8 + k]))
    gap = math.exp(min(entity.scale + y, 25.0))
    return wall_ms(operational_s(entity.decided_ms, cumulative) + gap, cumulative) - 1


@njit(cache=True)
def _begin(entity, time_ms):  # type: ignore[no-untyped-def]
    entity.incident_ms = -(1 << 60)
    entity.decided_ms = time_ms
    entity.burst = 0.0
    entity.surge = 0.0
    entity.predicted = 0
    entity.scale = 0.0
    entity.spread = 1.0


@njit(cache=True)
def gap_log_survival(predicted, params, scale, told):  # type: ignore[no-untyped-def]
    """Log P(a longer gap) by the prediction before it; without one, by the entity's log-normal."""
    if predicted:
        return mixture_log_survival(params, told.log_gap - scale)
    return log_normal_log_survival((told.log_gap - scale) / told.gap_sd)


@njit(cache=True)
def _score_gap(entity, told, params, measured, out):  # type: ignore[no-untyped-def]
    """Fill in the compensator, the surprises of burst, mark and surge, and the nats."""
    if entity.predicted:
        if told.mark < len(entity.mark_surprise):
            out.surprise[6] = entity.mark_surprise[told.mark] * (1.0 / MARK_UNIT)
        if len(measured):
            log_pdf = mixture_log_pdf(params, told.log_gap - entity.scale)
            out.nats = measured[0] + out.surprise[6] - log_pdf
    log_survival = gap_log_survival(entity.predicted, params, entity.scale, told)
    out.compensator = min(-log_survival, CAP)
    entity.burst = burst_step(entity.burst, out.compensator)
    out.surprise[3] = entity.burst
    if not math.isnan(told.value):
        entity.surge = surge_step(entity.surge, out.compensator, innovation(told))
        out.surprise[7] = entity.surge


@njit(cache=True)
def _judge(entity, time_ms, p, offset, slope, bar, out):  # type: ignore[no-untyped-def]
    """Fuse the surprises where one of them is beyond its bar; open or prolong an incident."""
    near = False
    for d in range(len(out.surprise)):
        near = near or out.surprise[d] > bar[d]
    if near:
        out.log_p = fuse(out.surprise, offset, slope)
        if out.log_p < p.log_alpha:
            if time_ms > entity.incident_ms + p.quiet_ms:
                out.verdict = ALERT
            entity.incident_ms = max(entity.incident_ms, time_ms)


@njit(cache=True)
def _take_over(told, components, out):  # type: ignore[no-untyped-def]
    """Fill in the surprises that `advance` and the components told."""
    surprise = out.surprise
    surprise[AMOUNT] = told.amount
    surprise[1] = told.amount_up
    surprise[2] = told.amount_down
    surprise[4] = told.rhythm
    surprise[5] = told.partners
    for s in range(len(components)):
        surprise[CORE + s] = components[s]


@njit(cache=True)
def _mix_tails(modes, mode, of_amount, tails):  # type: ignore[no-untyped-def]
    """Fill tails float64[3, D] with a mode's offset, slope and bar, the amount's of another."""
    tails[0], tails[1], tails[2] = modes.offset[mode], modes.slope[mode], modes.bar[mode]
    tails[0, AMOUNT] = modes.offset[of_amount, AMOUNT]
    tails[1, AMOUNT] = modes.slope[of_amount, AMOUNT]
    tails[2, AMOUNT] = modes.bar[of_amount, AMOUNT]


@njit(cache=True, nogil=True)
def _decide(  # type: ignore[no-untyped-def]
    rows,
    deadline_ms,
    advanced,
    predictions,
    slot,
    components,
    p,
    modes,
    cumulative,
    measured,
    decided,
):
    params = np.empty(12)
    tails = np.empty((3, modes.offset.shape[1]))
    for i in range(len(advanced)):
        if i + AHEAD < len(advanced):
            prefetch(rows, advanced[i + AHEAD].row, ROW_SIZE)
            prefetch(deadline_ms, advanced[i + AHEAD].row, 8)
        told = advanced[i]
        out = decided[i]
        r = told.row
        entity = rows[r]
        out.silence_ms = NEVER_MS
        out.nats = math.nan
        if told.fresh:
            _begin(entity, told.time_ms)
            deadline_ms[r] = NEVER_MS
        unpack(entity, params)
        _take_over(told, components[i], out)
        if slot and predictions[i].amount_surprise != NO_AMOUNT:
            out.surprise[AMOUNT] = predictions[i].amount_surprise * (1.0 / AMOUNT_UNIT)
            out.amount_slot = slot
        mode = modes.of_slot[entity.predicted]
        if told.timed:
            _score_gap(entity, told, params, measured[i : i + 1], out)
            if deadline_ms[r] < told.time_ms:
                due = _crossing(entity, entity.decided_ms, params, modes, cumulative)
                if due < told.time_ms:
                    out.silence_ms = due
        out.unaided = entity.predicted == 0
        out.slot = entity.predicted
        out.usual = entity.scale
        if told.events >= p.min_events:
            offset, slope, bar = modes.offset[mode], modes.slope[mode], modes.bar[mode]
            of_amount = modes.of_slot[out.amount_slot]
            if of_amount != mode:
                _mix_tails(modes, mode, of_amount, tails)
                offset, slope, bar = tails[0], tails[1], tails[2]
            _judge(entity, told.time_ms, p, offset, slope, bar, out)
        entity.scale = told.gap_mean
        entity.spread = max(told.gap_sd, 0.1)
        entity.decided_ms = max(entity.decided_ms, told.time_ms)
        entity.decided_events = told.events
        entity.predicted = slot
        if slot:
            entity.mixture[:] = predictions[i].mixture
            entity.mark_surprise[:] = predictions[i].mark_surprise
        if p.awaits and told.events >= p.await_min_events:
            unpack(entity, params)
            deadline_ms[r] = _bound(entity, params, modes, cumulative)
