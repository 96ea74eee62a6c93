"""A circuit breaker: after failures in a row nothing is sent but a probe now and then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BreakerState = Literal["closed", "open", "half_open"]


@dataclass(slots=True)
class Breaker:
    """State of a breaker; not locked, the clock is an argument.

    Attributes:
        failures_to_open: failures in a row after which it opens, at least 1.
        open_s: seconds between two probes.
        state: closed, requests pass; open, nothing passes; half_open, a probe is under way.
        failures: failures in a row.
        opened_s: the clock when it opened, or when the last probe failed.
    """

    failures_to_open: int
    open_s: float
    state: BreakerState = "closed"
    failures: int = 0
    opened_s: float = 0.0

    def succeed(self) -> None:
        """Note a success of a request; it closes nothing, only a probe does."""
        self.failures = 0

    def fail(self, now_s: float) -> bool:
        """Note a failure of a request; return True if the breaker opens by it."""
        self.failures += 1
        if self.state != "closed" or self.failures < self.failures_to_open:
            return False
        self.state = "open"
        self.opened_s = now_s
        return True

    def take_probe(self, now_s: float) -> bool:
        """Return True if a probe is due, and count it as under way."""
        if self.state != "open" or now_s - self.opened_s < self.open_s:
            return False
        self.state = "half_open"
        return True

    def end_probe(self, good: bool, now_s: float) -> None:
        """Close after a good probe; stay open for another `open_s` after a bad one."""
        self.failures = 0 if good else self.failures
        self.state = "closed" if good else "open"
        self.opened_s = now_s
