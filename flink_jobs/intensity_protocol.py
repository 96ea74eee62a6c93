"""What a client of the intensity model is, what it counts, and the client that has no model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from flink_jobs.breaker import BreakerState

LATENCY_BOUNDS_MS: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)


class IncompatibleModelError(ValueError):
    """The server's model is not one that this job can ask."""


class ModelUnavailableError(ConnectionError):
    """The server or the model cannot be reached now."""


class Ticket(Protocol):
    """One batch on its way."""

    def done(self) -> bool:
        """Return True once `result` will not wait."""

    def result(self, timeout_s: float) -> NDArray[np.float32] | None:
        """Return y float32 [rows, 32], or None where there is no whole, sound answer in time."""


class IntensityClient(Protocol):
    """Anything that predicts the next gap and mark from the encoder's memory."""

    @property
    def state(self) -> BreakerState:
        """State of the breaker: anything but closed means that answers are missing."""

    @property
    def model_version(self) -> str:
        """Name of the weights that answer; empty while unknown."""

    def submit(self, x: NDArray[np.float32]) -> Ticket:
        """Send x float32 [rows, 69] on its way; never blocks.

        Raises:
            ValueError: x has another shape or type.
        """

    def has_room(self, rows: int) -> bool:
        """Return True if `rows` would be sent now rather than refused."""

    def close(self) -> None:
        """Give up what is under way and free what is held."""


@dataclass(slots=True)
class IntensityCounters:
    """What a client has done since it was made.

    Attributes:
        requests: requests sent, probes not among them.
        rows: rows submitted.
        answered_rows: rows of sound answers.
        probes: probes sent while the breaker was open.
        opened: times that the breaker opened.
        failures: requests without a sound answer, by reason; `breaker_open` and `in_flight_limit`
            count requests that were never sent.
        latency_s: sum over answered requests, seconds.
        latency_counts: answered requests by upper bound in LATENCY_BOUNDS_MS; the last is the rest.
    """

    requests: int = 0
    rows: int = 0
    answered_rows: int = 0
    probes: int = 0
    opened: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    latency_s: float = 0.0
    latency_counts: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS_MS) + 1))

    def answer(self, rows: int, latency_s: float) -> None:
        """Count one sound answer."""
        self.answered_rows += rows
        self.latency_s += latency_s
        at = sum(1e3 * latency_s > bound for bound in LATENCY_BOUNDS_MS)
        self.latency_counts[at] += 1


class ReadyTicket:
    """An answer, or its absence, that is known at once."""

    def __init__(self, y: NDArray[np.float32] | None) -> None:
        self._y = y

    def done(self) -> bool:
        """Return True."""
        return True

    def result(self, timeout_s: float) -> NDArray[np.float32] | None:  # noqa: ARG002 (protocol)
        """Return the answer without waiting."""
        return self._y


class NullClient:
    """No model at all: never answers."""

    state: BreakerState = "open"
    model_version = ""

    def submit(self, x: NDArray[np.float32]) -> Ticket:  # noqa: ARG002 (protocol)
        """Return a ticket without an answer."""
        return ReadyTicket(None)

    def has_room(self, rows: int) -> bool:  # noqa: ARG002 (protocol)
        """Return True."""
        return True

    def close(self) -> None:
        """Do nothing."""
