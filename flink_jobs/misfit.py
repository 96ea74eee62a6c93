"""How well the prior fits today's stream, as metrics of the job.

Gauges hold whole numbers: a misfit is told in thousandths, and -1 until enough events were seen.
`eddy.prior_misfit.<kind>` is the worse of `eddy.prior_misfit_value.<kind>` and
`eddy.prior_misfit_gap.<kind>`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from flink_jobs.scorer import ShardScorer
from models.prior_check import Misfit

GROUPS = {"prior_misfit": "worst", "prior_misfit_value": "value", "prior_misfit_gap": "gap"}
UNKNOWN = -1


def register_misfits(
    metrics: Any, kinds: Sequence[str], shards: Callable[[], Iterable[ShardScorer]]
) -> None:
    """Register the gauges of each kind.

    Args:
        metrics: Flink's group of eddy's metrics.
        kinds: names, in the order of the settings.
        shards: gives the shards that this worker holds now; the worst of them is told.
    """
    for name, part in GROUPS.items():
        group = metrics.add_group(name)
        for k, kind in enumerate(kinds):
            group.gauge(kind, _gauge(k, part, shards))


def _gauge(k: int, part: str, shards: Callable[[], Iterable[ShardScorer]]) -> Callable[[], int]:
    def read() -> int:
        return max((thousandths(s.checks[k].misfit(), part) for s in shards()), default=UNKNOWN)

    return read


def thousandths(misfit: Misfit, part: str) -> int:
    """Return one part of a misfit ("value", "gap" or "worst") as a gauge holds it."""
    distance = float(getattr(misfit, part))
    return UNKNOWN if math.isnan(distance) else round(1000.0 * distance)
