"""The ground truth of a simulated run: which anomalies there are, of whom, and when."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True, slots=True)
class Anomaly:
    """One labelled anomaly.

    Attributes:
        anomaly_id: unique within the run.
        kind: takeover, card_testing, outage, bot_timing, shared_device or drift.
        entity_kind: user, merchant or device: whose anomaly it is.
        entity: its id in the payload.
        start_ms: first moment, milliseconds since the epoch.
        end_ms: last moment (inclusive). Where payments are injected, the first and last of them.
        involved: (kind, id) of the other entities that take part in it.
        payment_ids: its payments in event-time order; none for an outage.
    """

    anomaly_id: str
    kind: str
    entity_kind: str
    entity: str
    start_ms: int
    end_ms: int
    involved: tuple[tuple[str, str], ...] = ()
    payment_ids: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Return one line of the truth file, without the line's end."""
        return json.dumps(
            {
                "anomaly_id": self.anomaly_id,
                "kind": self.kind,
                "entity_kind": self.entity_kind,
                "entity": self.entity,
                "start": rfc3339(self.start_ms),
                "end": rfc3339(self.end_ms),
                "involved": [{"kind": kind, "id": name} for kind, name in self.involved],
                "payment_ids": list(self.payment_ids),
            },
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, line: str) -> Anomaly:
        """Read a line of the truth file.

        Raises:
            KeyError, ValueError: if the line is none of `to_json`.
        """
        found = json.loads(line)
        return cls(
            anomaly_id=found["anomaly_id"],
            kind=found["kind"],
            entity_kind=found["entity_kind"],
            entity=found["entity"],
            start_ms=_epoch_ms(found["start"]),
            end_ms=_epoch_ms(found["end"]),
            involved=tuple((one["kind"], one["id"]) for one in found["involved"]),
            payment_ids=tuple(found["payment_ids"]),
        )


def rfc3339(time_ms: int) -> str:
    """Return a time in the form of the payload.

    >>> rfc3339(1767571200123)
    '2026-01-05T00:00:00.123Z'
    """
    at = datetime.fromtimestamp(time_ms // 1_000, UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{time_ms % 1_000:03d}Z"


def _epoch_ms(text: str) -> int:
    at = datetime.fromisoformat(text)
    return round(at.timestamp() * 1_000)
