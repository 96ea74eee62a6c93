"""Run the metric detector over one series, event by event, without a look ahead."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.baselines.component import NO_MARK, NO_PARTNER, Component


@dataclass(frozen=True, slots=True)
class Detections:
    """What the detector said of each row of a series, before it learned from the row.

    Attributes:
        score: float64[n], >= 0, finite; from 1 on anomalous. 0 where the value is missing.
        surprise: float64[n], -log of a predictive p-value, nats, >= 0.
        typical: float64[n], the expected value; NaN before the first.
        low: float64[n], lower end of the band expected to hold 99% of values.
        high: float64[n], upper end.
        view: int64[n], number of the view with the highest score; -1 for none.
    """

    score: NDArray[np.float64]
    surprise: NDArray[np.float64]
    typical: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    view: NDArray[np.int64]


def detect(
    component: Component, time_ms: NDArray[np.int64], value: NDArray[np.float64]
) -> Detections:
    """Score one entity's whole series from its first event on.

    Args:
        component: a metric detector, as `models.baselines.metric.metric_component` makes it.
        time_ms: int64[n], event time.
        value: float64[n]; NaN is missing.
    """
    n = len(value)
    state = np.zeros(1, component.state)
    out = np.empty((n, len(component.tells)), np.float32)
    fresh = np.zeros(n, np.bool_)
    fresh[:1] = True
    component.walk(
        state,
        np.zeros(n, np.int32),
        fresh,
        time_ms,
        value,
        np.full(n, NO_MARK, np.uint8),
        np.full(n, NO_PARTNER, np.uint64),
        component.parameters,
        out,
    )
    told = {name: out[:, k].astype(np.float64) for k, name in enumerate(component.tells)}
    view = np.where(np.isnan(told["view"]), -1.0, told["view"]).astype(np.int64)
    score = np.nan_to_num(told["score"])
    return Detections(score, told["surprise"], told["typical"], told["low"], told["high"], view)
