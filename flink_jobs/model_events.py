"""What becomes of a model's versions, as messages for whoever runs the job."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from flink_jobs.alerts import Output, rfc3339

MODEL = "model"


@dataclass(frozen=True, slots=True)
class ModelEvent:
    """One step, or one look at a trial.

    Attributes:
        type: "in_charge", "waiting", "refused", "rolled_back" or "shadow_report".
        version: now in charge, waiting, refused, or gone back to.
        weights: name of its weights.
        other: (version, weights) of the shadow, of the one that was replaced, or of the one that
            stands in; None where there is none.
        reason: in words.
    """

    type: str
    version: int
    weights: str
    other: tuple[int, str] | None = None
    reason: str = ""

    def output(
        self,
        source: str,
        model: str,
        shard: int,
        generation: int,
        report: Mapping[str, object] | None = None,
    ) -> Output:
        """Write the message; contract/model.schema.json describes it."""
        other = (
            None
            if self.other is None
            else dict(zip(("version", "weights"), self.other, strict=True))
        )
        body = {
            "type": self.type,
            "at": rfc3339(time.time_ns() // 1_000_000),
            "source": source,
            "shard": shard,
            "model": model,
            "version": self.version,
            "weights": self.weights,
            "other": other,
            "generation": generation,
            "reason": self.reason,
            "report": report,
        }
        return Output(MODEL, f"{model}/{self.version}", orjson.dumps(body))
