"""What becomes of a model's versions, as messages for whoever runs the job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import orjson

from flink_jobs.alerts import Output

MODEL = "model"


@dataclass(frozen=True, slots=True)
class ModelEvent:
    """One step, or one look at a trial.

    Attributes:
        type: "in_charge", "waiting", "refused", "rolled_back" or "shadow_report".
        version: now in charge, refused, or gone back to.
        weights: name of its weights.
        other: (version, weights) of the shadow, or of the one that was replaced.
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
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        other = (
            None
            if self.other is None
            else dict(zip(("version", "weights"), self.other, strict=True))
        )
        body = {
            "type": self.type,
            "at": now,
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
