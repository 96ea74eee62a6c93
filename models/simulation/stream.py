"""The simulated stream: normal traffic, the anomalies on top, and the truth about them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.simulation.config import SimulationConfig
from models.simulation.inject import Injection, inject
from models.simulation.payments import (
    Payments,
    SimulatedChunk,
    chunked,
    device_name,
    id_key,
    merchant_name,
    payment_ids,
    user_name,
)
from models.simulation.plan import DRIFT_PAYMENTS, Cast, Target, plan_targets
from models.simulation.population import Population, populate
from models.simulation.traffic import normal_traffic, plan_sales
from models.simulation.truth import Anomaly

CHUNK_PAYMENTS = 8_192
DRIFT_FACTOR = (3.0, 8.0)

_PEOPLE_STREAM, _SALES_STREAM, _PLAN_STREAM, _ANOMALY_STREAM = 1, 3, 4, 5

_NAMES = {"user": user_name, "merchant": merchant_name, "device": device_name}


@dataclass(slots=True)
class _Running:
    """An anomaly of the plan, and what is known of it so far."""

    target: Target
    involved: tuple[tuple[str, str], ...]
    factor: float = 1.0
    payments: int = 0
    begin_ms: int = 0
    end_ms: int = 0


def _child(config: SimulationConfig, *path: int) -> np.random.Generator:
    """Return the random numbers of one part of the world: parts do not disturb each other."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence([config.seed, *path])))


class Simulation:
    """One run: its payments by chunks, once, and then its truth.

    `chunks` may be consumed only once; `truth` is complete when it is exhausted.
    """

    def __init__(self, config: SimulationConfig) -> None:
        self.config = config
        self.people: Population = populate(config, _child(config, _PEOPLE_STREAM))
        self.sales = plan_sales(config, self.people, _child(config, _SALES_STREAM))
        self._cast = Cast(next_user=config.users)
        self._running: list[_Running] = []
        self._ids: list[list[NDArray[np.uint64]]] = []
        self._injected = self._plan()
        self._index = 0

    def _plan(self) -> Payments:
        """Cast the anomalies and return all the payments that they add, in event-time order."""
        config, parts = self.config, [Payments.none()]
        if not config.anomalies.total:
            return parts[0]
        targets = plan_targets(config, self.people, self._cast, _child(config, _PLAN_STREAM))
        for number, target in enumerate(targets):
            rng = _child(config, _ANOMALY_STREAM, number)
            added: Injection = inject(target, number, self.people, self._cast, rng)
            running = _Running(
                target, added.involved, begin_ms=target.begin_ms, end_ms=target.end_ms
            )
            if len(added.payments):
                running.begin_ms = int(added.payments.time_ms[0])
                running.end_ms = int(added.payments.time_ms[-1])
            elif target.kind == "drift":
                running.factor = float(np.exp(rng.uniform(*np.log(DRIFT_FACTOR))))
            self._running.append(running)
            parts.append(added.payments)
        self._ids = [[] for _ in targets]
        return Payments.join(parts).by_time()

    def _drift(self, payments: Payments) -> list[tuple[int, NDArray[np.int64]]]:
        """Let amounts creep up in place; return (anomaly, which payments) for the truth.

        The logarithm of the factor grows in a straight line through the planned stretch. If that
        held too few payments, the last factor stays until there were enough.
        """
        found = []
        for number, running in enumerate(self._running):
            target = running.target
            if target.kind != "drift":
                continue
            column = payments.user if target.entity_kind == "user" else payments.merchant
            which = np.flatnonzero(
                (column == target.entity) & (payments.time_ms >= target.begin_ms)
            )
            in_time = int((payments.time_ms[which] <= target.end_ms).sum())
            which = which[: max(in_time, DRIFT_PAYMENTS - running.payments)]
            if not len(which):
                continue
            time_ms = payments.time_ms[which]
            part = (time_ms - target.begin_ms) / (target.end_ms - target.begin_ms)
            factor = running.factor ** np.minimum(part, 1.0)
            payments.amount[which] = np.rint(payments.amount[which] * factor).astype(np.int64)
            running.payments += len(which)
            if target.entity_kind == "user":  # the user's devices carry the same payments
                names = {
                    ("device", device_name(d)) for d in np.unique(payments.device[which]).tolist()
                }
                running.involved = tuple(sorted(names.union(running.involved)))
            running.end_ms = max(target.end_ms, int(time_ms[-1]))
            found.append((number, which))
        return found

    def _without_outages(self, payments: Payments) -> Payments:
        """Drop the payments at merchants that are out."""
        kept = np.ones(len(payments), np.bool_)
        for running in self._running:
            target = running.target
            if target.kind == "outage":
                inside = (payments.time_ms >= target.begin_ms) & (payments.time_ms <= target.end_ms)
                kept &= ~((payments.merchant == target.entity) & inside)
        return payments if kept.all() else payments.take(kept)

    def _windows(self) -> Iterator[Payments]:
        """Yield the payments of each window as they are sent, and take notes for the truth."""
        at = 0
        for end_ms, normal in normal_traffic(self.config, self.people, self.sales):
            until = int(np.searchsorted(self._injected.time_ms, end_ms))
            payments = normal
            if until > at:
                payments = Payments.join([normal, self._injected.take(slice(at, until))]).by_time()
            at = until
            payments = self._without_outages(payments)
            notes = self._drift(payments)
            labelled = np.flatnonzero(payments.anomaly >= 0)
            for number in np.unique(payments.anomaly[labelled]).tolist():
                notes.append((number, labelled[payments.anomaly[labelled] == number]))
            for number, which in notes:
                self._ids[number].append((which + self._index).astype(np.uint64))
            self._index += len(payments)
            yield payments

    def chunks(self, chunk_payments: int = CHUNK_PAYMENTS) -> Iterator[SimulatedChunk]:
        """Return the payments in event-time order, `chunk_payments` (at least 1) at a time.

        The payments do not depend on the size of the chunks. The last one may be shorter.
        """
        return chunked(self._windows(), id_key(self.config.seed), chunk_payments)

    def truth(self, payments: int | None = None, until_ms: int | None = None) -> list[Anomaly]:
        """Return the anomalies by their begin.

        Args:
            payments: how many were sent, where the run was cut short: none beyond is named.
            until_ms: event time of the last one sent: anomalies that begin later are left out,
                and none ends later.
        """
        found = []
        for number, running in enumerate(self._running):
            if until_ms is not None and running.begin_ms > until_ms:
                continue
            index = np.concatenate([np.zeros(0, np.uint64), *self._ids[number]])
            if payments is not None:
                index = index[index < payments]
            target, end_ms = running.target, running.end_ms
            found.append(
                Anomaly(
                    anomaly_id=f"a-{number + 1:04d}",
                    kind=target.kind,
                    entity_kind=target.entity_kind,
                    entity=_NAMES[target.entity_kind](target.entity),
                    start_ms=running.begin_ms,
                    end_ms=end_ms if until_ms is None else min(end_ms, until_ms),
                    involved=running.involved,
                    payment_ids=tuple(payment_ids(index, id_key(self.config.seed))),
                )
            )
        return found


def simulate(
    config: SimulationConfig, chunk_payments: int = CHUNK_PAYMENTS
) -> Iterator[SimulatedChunk]:
    """Yield the payments of a world in event-time order, by columns."""
    return Simulation(config).chunks(chunk_payments)


def ground_truth(config: SimulationConfig) -> list[Anomaly]:
    """Return the anomalies of a world. It plays the run; `Simulation` gives both in one go."""
    simulation = Simulation(config)
    for _ in simulation.chunks(1 << 20):
        pass
    return simulation.truth()
