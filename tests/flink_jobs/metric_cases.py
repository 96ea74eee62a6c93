"""Metrics as a stream, with the settings that read it, and the scores that the harness gives."""

from __future__ import annotations

import heapq
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from deploy.evaluate.series import Series
from models.baselines.metric import metric_component
from models.evaluation.detections import detect

SETTINGS = """
[event]
id_pointer = "/seq"
time_pointer = "/time"
value_pointer = "/value"
mark_pointer = ""
marks = []
value_min = -1e15
value_integer = false
value_transform = "identity"

[event.entities]
metric = "/entity"

[triton]
enabled = false

[state]
ttl_s = 3_000_000_000

[detection]
false_alerts_per_million = 1000
detectors = ["silence"]
silence_kinds = []
min_events = 1
incident_quiet_s = 1

[detection.partner_kinds]

[detection.components]
metric = ["metric"]
"""
TOLD = ("score", "surprise", "typical", "low", "high")


def in_order(series: Iterable[Series]) -> list[tuple[int, str, float]]:
    """Merge series by time, as one stream has them: (time_ms, name, value)."""
    columns = (
        zip(one.time_ms.tolist(), [one.name] * len(one.value), one.value.tolist(), strict=True)
        for one in series
    )
    return list(heapq.merge(*columns, key=lambda event: event[0]))


def messages_of(events: Sequence[tuple[int, str, float]]) -> list[bytes]:
    """Write observations as JSON."""
    return [
        json.dumps({"seq": n, "time": time_ms, "entity": name, "value": value}).encode()
        for n, (time_ms, name, value) in enumerate(events)
    ]


def assert_scores_of_the_harness(
    bodies: Sequence[dict[str, Any]], series: Sequence[Series]
) -> None:
    """Compare what the job wrote on its topic of scores with the harness, exactly."""
    told: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for body in bodies:
        told[body["entity"]["id"]].append(body)
    assert len(bodies) == sum(len(one.value) for one in series)
    for one in series:
        mine = sorted(told[one.name], key=lambda body: int(body["offset"]))
        expected = detect(metric_component(), one.time_ms, one.value)
        for name in TOLD:
            found = [body["components"]["metric"][name] for body in mine]
            known = np.array([np.nan if x is None else x for x in found])
            if name == "score":  # the harness writes 0 where nothing was scored
                known = np.nan_to_num(known)
            wanted = getattr(expected, name)
            assert np.array_equal(known, wanted, equal_nan=True), f"{one.name}: {name}"
