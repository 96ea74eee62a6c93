"""What to simulate: one frozen, checked object, and the presets made of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

HOUR_S = 3_600
DAY_S = 24 * HOUR_S

# The shortest span after the warm-up in which every kind of anomaly can be placed.
SHORTEST_LABELLED_SPAN_S = 12 * HOUR_S

ANOMALY_KINDS = ("takeover", "card_testing", "outage", "bot_timing", "shared_device", "drift")


@dataclass(frozen=True, slots=True)
class AnomalyCounts:
    """How many anomalies of each kind a run contains, each at least 0."""

    takeover: int = 0
    card_testing: int = 0
    outage: int = 0
    bot_timing: int = 0
    shared_device: int = 0
    drift: int = 0

    def __post_init__(self) -> None:
        for kind, count in self.by_kind().items():
            if count < 0:
                raise ValueError(f"anomalies.{kind} must be at least 0, found {count}")

    def by_kind(self) -> dict[str, int]:
        """Return the count of each kind, in a fixed order."""
        return {kind: int(getattr(self, kind)) for kind in ANOMALY_KINDS}

    @property
    def total(self) -> int:
        """All anomalies together."""
        return sum(self.by_kind().values())

    @classmethod
    def balanced(cls, total: int) -> AnomalyCounts:
        """Spread `total` anomalies over the six kinds as evenly as possible.

        >>> AnomalyCounts.balanced(8).by_kind()["takeover"]
        2
        """
        each, rest = divmod(total, len(ANOMALY_KINDS))
        return cls(**{kind: each + (i < rest) for i, kind in enumerate(ANOMALY_KINDS)})


@dataclass(frozen=True, slots=True)
class SimulationConfig:
    """A simulated world and the stretch of event time that is played.

    Attributes:
        seed: everything random follows from it, 0 to 2^63 - 1.
        users: entities of the kind user, at least 2. Card testing adds users of its own.
        merchants: entities of the kind merchant, at least 8.
        devices_per_user: the most devices that a user owns at the start, 1 to 3.
        start: event time of the first moment, with a time zone.
        duration_s: length of the span in event time.
        payments: payments to expect in the span, anomalies not counted; the number that comes
            out is random (about 1% off). Give `mean_rate_per_s` in its place where wanted.
        mean_rate_per_s: mean payments per second of event time; overrides `payments`.
        anomalies: how many of each kind.
        warm_up: share of the span, from its beginning, that holds no anomaly, 0 to 0.9.
        newcomers: share of the users who first appear during the span, 0 to 0.9.
        branching: mean number of payments that a payment sets off soon after, 0 to 0.6.
    """

    seed: int = 1
    users: int = 3_000
    merchants: int = 300
    devices_per_user: int = 3
    start: datetime = field(default_factory=lambda: datetime(2026, 1, 5, tzinfo=UTC))
    duration_s: int = 21 * DAY_S
    payments: int = 600_000
    mean_rate_per_s: float | None = None
    anomalies: AnomalyCounts = AnomalyCounts()
    warm_up: float = 1 / 3
    newcomers: float = 0.15
    branching: float = 0.3

    def __post_init__(self) -> None:
        checks = (
            (0 <= self.seed < 2**63, "seed", "0 to 2^63 - 1", self.seed),
            (2 <= self.users <= 10**8, "users", "2 to 1e8", self.users),
            (8 <= self.merchants <= 10**7, "merchants", "8 to 1e7", self.merchants),
            (1 <= self.devices_per_user <= 3, "devices_per_user", "1 to 3", self.devices_per_user),
            (self.start.tzinfo is not None, "start", "a time with its zone", self.start),
            (self.duration_s >= 1, "duration_s", "at least 1", self.duration_s),
            (self.rate_per_s > 0, "payments, mean_rate_per_s", "more than 0", self.rate_per_s),
            (0 <= self.warm_up <= 0.9, "warm_up", "0 to 0.9", self.warm_up),
            (0 <= self.newcomers <= 0.9, "newcomers", "0 to 0.9", self.newcomers),
            (0 <= self.branching <= 0.6, "branching", "0 to 0.6", self.branching),
        )
        for good, name, expected, found in checks:
            if not good:
                raise ValueError(f"simulation.{name}: expected {expected}, found {found}")
        labelled_s = self.duration_s * (1 - self.warm_up)
        if self.anomalies.total and labelled_s < SHORTEST_LABELLED_SPAN_S:
            raise ValueError(
                f"simulation.duration_s: anomalies need {SHORTEST_LABELLED_SPAN_S} s after the "
                f"warm-up, found {labelled_s:.0f} s: lengthen the span or ask for no anomalies"
            )

    @property
    def rate_per_s(self) -> float:
        """Mean payments per second of event time."""
        if self.mean_rate_per_s is not None:
            return self.mean_rate_per_s
        return self.payments / self.duration_s

    @property
    def start_ms(self) -> int:
        """Start, milliseconds since the epoch."""
        return round(self.start.timestamp() * 1_000)

    @property
    def quiet_until_ms(self) -> int:
        """End of the warm-up, before which no anomaly begins, milliseconds since the epoch."""
        return self.start_ms + round(self.duration_s * self.warm_up * 1_000)

    @property
    def end_ms(self) -> int:
        """End (exclusive), milliseconds since the epoch."""
        return self.start_ms + self.duration_s * 1_000


def demo(seed: int = 1) -> SimulationConfig:
    """The demo's world: 600,000 payments in 21 days, 10 anomalies of each of 6 kinds."""
    return SimulationConfig(seed=seed, anomalies=AnomalyCounts.balanced(60))


def training(seed: int = 1) -> SimulationConfig:
    """The demo's world without anomalies, to fit priors and models on."""
    return replace(demo(seed), anomalies=AnomalyCounts())
