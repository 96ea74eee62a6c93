"""Scores of all events, alerted or not, for whoever replays a stream to look at it."""

from __future__ import annotations

import math

import numpy as np
import orjson

from flink_jobs.alerts import AlertContext, Entity, EventPlace, Output, rfc3339
from flink_jobs.components import EventTells
from models.detectors import FUSED

SCORE = "score"


def score_output(
    context: AlertContext,
    entity: Entity,
    place: EventPlace,
    told: np.void,
    decided: np.void,
    components: EventTells,
) -> Output:
    """Write what was computed of one event of one entity.

    Numbers are written as computed, in full precision; what is not known is null.

    Args:
        context: of the job.
        entity: whose score it is.
        place: the event.
        told: its ADVANCED record.
        decided: its DECIDED record, fused whether or not a detector came near its bar.
        components: what the kind's components told.
    """
    log_p = float(decided["log_p"])
    body = {
        "entity": {"kind": entity.kind, "id": entity.id},
        "event_id": place.event_id,
        "event_time": rfc3339(int(told["time_ms"])),
        "partition": place.partition,
        "offset": place.offset,
        "events": int(told["events"]),
        "score": log_p / math.log(context.alpha),
        "p_value": math.exp(log_p),
        "surprises": dict(zip(FUSED, decided["surprise"][: len(FUSED)].tolist(), strict=True)),
        "components": components.all(),
        "unaided": bool(decided["unaided"]),
    }
    return Output(SCORE, entity.key, orjson.dumps(body))
