"""From samples to figures: rates, shares of CPU, percentiles, gaps. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Sample:
    """What was seen at one moment.

    Attributes:
        at_s: seconds of a monotonic clock.
        payments: payments that have gone through the whole job by then.
        cpu_s: CPU seconds used by then, by part of the system.
    """

    at_s: float
    payments: float
    cpu_s: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Throughput:
    """Figures of one throughput run.

    Attributes:
        cold_payments_per_s: mean rate from the first payment to `window_s[0]`.
        payments_per_s: slope of a line fitted to the samples in `window_s`.
        window_s: seconds after the first payment in which the warm part was measured; it ends
            early where the backlog did.
        cpu_us_per_payment: microseconds of CPU in the window, by part of the system.
    """

    cold_payments_per_s: float
    payments_per_s: float
    window_s: tuple[float, float]
    cpu_us_per_payment: Mapping[str, float]


def begin_s(samples: Sequence[Sample]) -> float:
    """Return the moment of the last sample before the first payment was through.

    Raises:
        ValueError: nothing ever went through.
    """
    for i, sample in enumerate(samples):
        if sample.payments > 0:
            return samples[max(i - 1, 0)].at_s
    raise ValueError("no payment went through")


def throughput(
    samples: Sequence[Sample], warm_s: float, until_s: float, backlog: int
) -> Throughput:
    """Measure the warm part of a run, and the cold part beside it.

    Args:
        samples: in order of time.
        warm_s: seconds after the first payment at which the warm part begins.
        until_s: seconds after the first payment at which it ends.
        backlog: payments there were; samples that have seen them all are left out.

    Raises:
        ValueError: fewer than three samples fall in the warm part.
    """
    start_s = begin_s(samples)
    busy = [s for s in samples if s.payments < backlog and s.at_s <= start_s + until_s]
    cold = [s for s in busy if s.at_s <= start_s + warm_s and s.payments > 0]
    warm = [s for s in busy if s.at_s >= start_s + warm_s]
    if len(warm) < 3 or not cold:
        last = samples[-1]
        raise ValueError(
            f"the backlog of {backlog} payments did not last beyond the {warm_s:.0f} s of warm-up: "
            f"{last.payments:.0f} were through after {last.at_s - start_s:.0f} s; make it larger"
        )
    first, last = warm[0], warm[-1]
    done = max(last.payments - first.payments, 1.0)
    return Throughput(
        cold_payments_per_s=cold[-1].payments / (cold[-1].at_s - start_s),
        payments_per_s=slope([s.at_s for s in warm], [s.payments for s in warm]),
        window_s=(first.at_s - start_s, last.at_s - start_s),
        cpu_us_per_payment={
            part: 1e6 * (used - first.cpu_s.get(part, 0.0)) / done
            for part, used in last.cpu_s.items()
        },
    )


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the slope of the least-squares line; 0 where all x are the same."""
    dx = np.asarray(x, np.float64) - np.mean(x)
    spread = float(dx @ dx)
    return float(dx @ np.asarray(y, np.float64)) / spread if spread > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Arrival:
    """An output that was received.

    Attributes:
        at_s: when, seconds since the epoch.
        offset: offset of the payment that it tells of.
    """

    at_s: float
    offset: int


def first_arrivals(arrivals: Iterable[Arrival]) -> list[Arrival]:
    """Keep the first arrival of each payment, in order of offset."""
    first: dict[int, Arrival] = {}
    for arrival in arrivals:
        known = first.get(arrival.offset)
        if known is None or arrival.at_s < known.at_s:
            first[arrival.offset] = arrival
    return [first[offset] for offset in sorted(first)]


def latencies_ms(
    arrivals: Iterable[Arrival], first_offset: int, sent_ms: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return how long each payment took until its first output.

    Args:
        arrivals: outputs, of any payments and in any order.
        first_offset: offset of the first payment of `sent_ms`; earlier ones are left out.
        sent_ms: int64[n], Kafka's timestamp of each payment.
    """
    known = [
        arrival
        for arrival in first_arrivals(arrivals)
        if first_offset <= arrival.offset < first_offset + len(sent_ms)
    ]
    at_ms = np.array([1e3 * arrival.at_s for arrival in known])
    sent = sent_ms[np.array([arrival.offset - first_offset for arrival in known], np.int64)]
    return np.asarray(at_ms - sent, np.float64)


def percentiles(values: NDArray[np.float64]) -> dict[str, float]:
    """Return p50 and p99 of at least one value.

    Raises:
        ValueError: there is none.
    """
    if not len(values):
        raise ValueError("no output arrived in the measured seconds")
    p50, p99 = np.percentile(values, [50, 99])
    return {"p50_ms": float(p50), "p99_ms": float(p99)}


def longest_gap_s(at_s: Iterable[float], from_s: float, until_s: float) -> float:
    """Return the longest time without an arrival from `from_s` to `until_s`."""
    inside = sorted(at for at in at_s if from_s <= at <= until_s)
    return float(np.max(np.diff([from_s, *inside, until_s])))


def ratio(above: float | None, below: float | None) -> float | None:
    """Return above / below; None where one is missing or nothing can be divided."""
    return None if above is None or not below else above / below
