"""What a benchmark does: durations, sizes and rates, all of them written into its report."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

SYSTEMS = ("eddy", "no_triton", "pass_through", "naive")


@dataclass(frozen=True, slots=True)
class Plan:
    """Durations, sizes and rates.

    Attributes:
        entities: of each kind.
        warm_s: seconds from the first payment that count as cold; the JVM compiles its code.
        until_s: seconds from the first payment at which a throughput run ends.
        backlog_per_s: the backlog holds this many payments for each second of the run, so that
            it outlasts every system but the pass-through.
        naive_per_s: the same for the naive job.
        rate_per_s: payments per second in live runs.
        live_warm_s: seconds of a live run before those that are measured.
        live_s: measured seconds of a live run.
        marker_every: every so-manieth payment of a live run has an amount that must alert.
        history_events: payments per entity that a live run begins with; an alert needs some.
        small: entities of each kind in the smaller throughput run of `state`.
        large: the same in the larger run.
        recover_large: measure the recovery with `large` entities of each kind as well.
        seed: of the payments.
        systems: what is measured, of SYSTEMS; `state` measures eddy alone.
    """

    entities: int = 100_000
    warm_s: float = 45.0
    until_s: float = 120.0
    backlog_per_s: int = 110_000
    naive_per_s: int = 3_000
    rate_per_s: float = 5_000.0
    live_warm_s: float = 45.0
    live_s: float = 60.0
    marker_every: int = 50
    history_events: int = 12
    small: int = 10_000
    large: int = 1_000_000
    recover_large: bool = False
    seed: int = 1
    systems: tuple[str, ...] = SYSTEMS

    def __post_init__(self) -> None:
        if not 0 < self.warm_s < self.until_s:
            raise ValueError(
                f"expected 0 < warm_s < until_s, found {self.warm_s} and {self.until_s}"
            )
        unknown = sorted(set(self.systems) - set(SYSTEMS))
        if unknown:
            raise ValueError(f"expected systems of {', '.join(SYSTEMS)}, found {unknown}")

    @property
    def backlog(self) -> int:
        """Payments of a throughput run's backlog."""
        return math.ceil(self.until_s * self.backlog_per_s)

    @property
    def naive_backlog(self) -> int:
        """Payments of the naive job's backlog."""
        return math.ceil(self.until_s * self.naive_per_s)

    def measured_for(self, seconds: float) -> Plan:
        """Return the plan with that many measured seconds after the warm-up."""
        return replace(self, until_s=self.warm_s + seconds, live_s=seconds)


FULL = Plan()
# Half a minute for each system: shows that everything works, its figures are those of a cold JVM.
SHORT = Plan(
    entities=10_000,
    warm_s=15.0,
    until_s=35.0,
    backlog_per_s=80_000,
    live_warm_s=10.0,
    live_s=15.0,
    small=2_000,
    large=50_000,
)
