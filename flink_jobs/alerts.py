"""Alerts and late events as any consumer reads them: CloudEvents 1.0 in JSON."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import orjson
from numpy.typing import NDArray

from flink_jobs.components import BAND_Z, EventTells, span
from models.baselines.renewal import BURST
from models.detectors import FUSED
from models.fusion import calibrated_p

ALERT = "alert"
LATE = "late"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Output:
    """A message for one of the job's topics.

    Attributes:
        kind: ALERT or LATE.
        key: Kafka key, the entity as kind/id.
        value: JSON.
    """

    kind: str
    key: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Entity:
    """Whose alert it is."""

    kind: str
    id: str

    @property
    def key(self) -> str:
        """The entity as Kafka's key and CloudEvents' subject."""
        return f"{self.kind}/{self.id}"


@dataclass(frozen=True, slots=True)
class EventPlace:
    """The event that raised an alert, and where it lies in Kafka."""

    event_id: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class AlertContext:
    """What all alerts of a job share.

    Attributes:
        source: CloudEvents source, eddy/<job>.
        log_values: values are logarithms of what was found in the events.
        alpha: fused p-value under which an event is anomalous.
        silence_alpha: p-value under which a silence is.
    """

    source: str
    log_values: bool
    alpha: float
    silence_alpha: float


def rfc3339(time_ms: int) -> str:
    """Write epoch milliseconds as RFC 3339 in UTC.

    >>> rfc3339(0)
    '1970-01-01T00:00:00.000Z'
    """
    moment = _EPOCH + timedelta(milliseconds=time_ms)  # a float of seconds rounds far dates
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _number(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _alert_id(context: AlertContext, entity: Entity, cause: str, time_ms: int) -> str:
    text = "\x1f".join((context.source, entity.kind, entity.id, cause, str(time_ms)))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _envelope(
    context: AlertContext, entity: Entity, alert_id: str, time_ms: int, data: dict[str, object]
) -> Output:
    body = {
        "specversion": "1.0",
        "id": alert_id,
        "source": context.source,
        "type": "io.eddy.alert.opened",
        "subject": entity.key,
        "time": rfc3339(time_ms),
        "datacontenttype": "application/json",
        "data": {"entity": {"kind": entity.kind, "id": entity.id}, **data},
    }
    return Output(ALERT, entity.key, orjson.dumps(body))


def _reason_text(name: str, told: np.void, components: EventTells, back: _Back) -> str:
    if name not in FUSED:
        return components.reason(name, float(told["value"]), back)
    if name == "amount":
        return f"value {back(told['value']):.6g} where {back(told['typical']):.6g} is typical"
    if name in ("amount_up", "amount_down"):
        way = "above" if name == "amount_up" else "below"
        return f"values have stayed {way} the typical {back(told['typical']):.6g}"
    if name == "burst":
        gap, usual = math.exp(told["log_gap"]), math.exp(told["gap_mean"])
        return (
            f"events come at {BURST:g} times the expected rate or more: the last after "
            f"{span(gap)}, where {span(usual)} is usual"
        )
    if name == "surge":
        return (
            f"events come faster and values are higher than the typical {back(told['typical']):.6g}"
        )
    if name == "regularity":
        return "the gaps are too regular for this entity"
    if name == "partners":
        return f"about {told['partner_count']:.0f} distinct partners, more than expected"
    return "a mark that this entity's history does not suggest"


class _Back:
    """Turns a transformed value into one as found in the events."""

    def __init__(self, log_values: bool) -> None:
        self._log = log_values

    def __call__(self, value: float) -> float:
        return math.exp(min(float(value), 700.0)) if self._log else float(value)


def event_alert(
    context: AlertContext,
    entity: Entity,
    place: EventPlace,
    told: np.void,
    decided: np.void,
    tail: tuple[NDArray[np.float64], NDArray[np.float64]],
    model: tuple[str | None, str],
    degraded: bool,
    names: Sequence[str] = FUSED,
    components: EventTells | None = None,
) -> Output:
    """Write the alert of an anomalous event.

    Args:
        context: of the job.
        entity: whose alert it is.
        place: the event.
        told: its ADVANCED record.
        decided: its DECIDED record.
        tail: float64[D] offsets and slopes of the detectors' calibration.
        model: whose prediction scored the event as model/version, None where there was none; and
            the name of its weights, else of those in charge, empty where none answers.
        degraded: the intensity model took no part, though it should have.
        names: of the D detectors.
        components: what the kind's components told of the event.
    """
    components = components or EventTells()
    time_ms = int(told["time_ms"])
    back = _Back(context.log_values)
    p_values = [
        calibrated_p(float(s), o, b) if math.isfinite(o) else 1.0
        for s, o, b in zip(decided["surprise"], *tail, strict=True)
    ]
    evidence = np.array([-math.log(max(p, 1e-300)) for p in p_values])
    share = np.exp(evidence - evidence.max())
    share /= share.sum()
    order = np.argsort(-evidence, kind="stable")
    reasons = [
        {
            "detector": names[d],
            "p_value": p_values[d],
            "weight": round(float(share[d]), 4),
            "text": _reason_text(names[d], told, components, back),
        }
        for d in order
        if d == order[0] or (p_values[d] < 0.05 and decided["surprise"][d] > 0.0)
    ]
    log_p = float(decided["log_p"])
    low, typical, high = components.expected() or _expected(told)
    gap = (time_ms - int(told["last_ms"])) / 1000 if told["timed"] else None
    data: dict[str, object] = {
        "event_time": rfc3339(time_ms),
        "data_start_time": rfc3339(int(told["first_ms"])),
        "score": round(log_p / math.log(context.alpha), 4),
        "p_value": math.exp(log_p),
        "threshold": context.alpha,
        "detector": names[int(order[0])],
        "reasons": reasons,
        "actual": {"value": _number(back(told["value"])), "gap_s": gap},
        "typical": {
            "value": _number(back(typical)),
            "gap_s": _number(math.exp(told["gap_mean"])),
        },
        "expected_values": {
            "low": _number(back(low)),
            "high": _number(back(high)),
        },
        "degraded": degraded,
        "model": model[0],
        "model_version": model[1],
        "warmth": {"events": int(told["events"])},
        "payment_id": place.event_id,
        "partition": place.partition,
        "offset": place.offset,
    }
    alert_id = _alert_id(context, entity, place.event_id, time_ms)
    return _envelope(context, entity, alert_id, time_ms, data)


def _expected(told: np.void) -> tuple[float, float, float]:
    """Return (low, typical, high) on the transformed scale, by the core."""
    typical, reach = float(told["typical"]), BAND_Z * float(told["spread"])
    return typical - reach, typical, typical + reach


@dataclass(frozen=True, slots=True)
class Silence:
    """An entity that has stopped: times in ms, `scale` the mean log gap, in log seconds."""

    last_ms: int
    due_ms: int
    first_ms: int
    scale: float
    events: int
    degraded: bool


def silence_alert(
    context: AlertContext, entity: Entity, silence: Silence, model: tuple[str | None, str]
) -> Output:
    """Write the alert of a silence; it is dated when the silence became surprising.

    `model` is as for `event_alert`.
    """
    gap_s = (silence.due_ms - silence.last_ms) / 1000
    usual_s = math.exp(silence.scale)
    text = f"nothing for {span(gap_s)}, where an event every {span(usual_s)} is usual"
    p = context.silence_alpha
    data: dict[str, object] = {
        "event_time": rfc3339(silence.due_ms),
        "data_start_time": rfc3339(silence.first_ms),
        "score": 1.0,
        "p_value": p,
        "threshold": p,
        "detector": "silence",
        "reasons": [{"detector": "silence", "p_value": p, "weight": 1.0, "text": text}],
        "actual": {"value": None, "gap_s": gap_s},
        "typical": {"value": None, "gap_s": _number(usual_s)},
        "expected_values": {"low": None, "high": None},
        "degraded": silence.degraded,
        "model": model[0],
        "model_version": model[1],
        "warmth": {"events": silence.events},
        "payment_id": None,
        "partition": None,
        "offset": None,
    }
    alert_id = _alert_id(context, entity, "silence", silence.last_ms)
    return _envelope(context, entity, alert_id, silence.due_ms, data)
