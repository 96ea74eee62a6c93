"""Who has which anomaly, and when: drawn before the run, by random numbers of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.simulation.behaviour import expected_by_step, merchant_demand, user_demand
from models.simulation.config import SimulationConfig
from models.simulation.payments import DEVICES_PER_OWNER
from models.simulation.population import FIRST_FREE_DEVICE, Population

# A user with an anomaly has this many payments to expect before the warm-up's end, and is there
# from the start: without a past nothing is unusual.
SETTLED_PAYMENTS = 10
# An outage lasts until this many payments are missed in expectation (drawn anew for each). Even
# if payments came in clusters of three, none at all would have a probability below 3e-4; with
# the simulated branching of .3 it is some 3e-8.
MISSED_PAYMENTS = (25.0, 60.0)
# Outages and drifts are bounded as shares of the span.
LONGEST_OUTAGE = 0.10
DRIFT_LENGTH = (0.10, 0.25)
# A drift holds this many payments at least; an entity qualifies where half as many again are to
# be expected.
DRIFT_PAYMENTS = 60
DRIFT_MARGIN = 1.5

# How long the kinds made of injected payments last. A bot may need 150 gaps of 120 s.
MINUTES = {
    "takeover": (10.0, 90.0),
    "card_testing": (5.0, 30.0),
    "bot_timing": (310.0, 310.0),
    "shared_device": (60.0, 360.0),
}

# Among whom candidates are sought. A device is found through its owner.
ENTITY_KINDS_OF = {
    "takeover": ("user",),
    "card_testing": ("merchant",),
    "outage": ("merchant",),
    "bot_timing": ("user",),
    "shared_device": ("user",),
    "drift": ("user", "merchant"),
}

STEP_S = 900


@dataclass(slots=True)
class Cast:
    """Who is taken: an entity has one anomaly at most, and extras get numbers of their own.

    Attributes:
        users, merchants, devices: numbers of the entities that have an anomaly of their own; a
            user whose device has one counts as well.
        next_user: number of the next user that is not of the population.
        next_device: the next free device number by owner.
    """

    next_user: int
    users: set[int] = field(default_factory=set)
    merchants: set[int] = field(default_factory=set)
    devices: set[int] = field(default_factory=set)
    next_device: dict[int, int] = field(default_factory=dict)

    def new_device(self, owner: int) -> int:
        """Return a device that nobody has used yet, named after `owner`."""
        number = self.next_device.get(owner, FIRST_FREE_DEVICE)
        if number >= DEVICES_PER_OWNER:
            raise ValueError(f"user {owner} has no device number left: simulate more users")
        self.next_device[owner] = number + 1
        return owner * DEVICES_PER_OWNER + number

    def new_users(self, count: int) -> NDArray[np.int64]:
        """Return users that the population does not know."""
        self.next_user += count
        return np.arange(self.next_user - count, self.next_user)


@dataclass(frozen=True, slots=True)
class Target:
    """What a kind of anomaly happens to.

    Attributes:
        kind: of the anomaly.
        entity_kind: user, merchant or device.
        entity: its number (device: owner * 256 + number).
        begin_ms, end_ms: the stretch in which it takes place.
    """

    kind: str
    entity_kind: str
    entity: int
    begin_ms: int
    end_ms: int


class _Casting:
    """Chooses whom the anomalies befall; what it learns on the way lives in `cast`."""

    def __init__(
        self, config: SimulationConfig, people: Population, cast: Cast, rng: np.random.Generator
    ) -> None:
        self.config, self.people, self.cast, self.rng = config, people, cast, rng
        self.demand = merchant_demand(people, settled=True)

    def candidates(self, kind: str, entity_kind: str) -> Iterator[int]:
        """Return those who might qualify, in random order."""
        config, people = self.config, self.people
        if entity_kind == "merchant":
            return iter(self.rng.permutation(config.merchants).tolist())
        if kind == "drift":
            span_s, enough = DRIFT_LENGTH[1] * config.duration_s, DRIFT_PAYMENTS
        else:
            span_s, enough = config.duration_s * max(config.warm_up, 0.1), SETTLED_PAYMENTS
        past = people.activity * people.scale * span_s
        settled = np.flatnonzero((past >= enough) & (people.arrival_ms == config.start_ms))
        return iter(self.rng.permutation(settled).tolist())

    def cast_kind(self, kind: str, count: int) -> list[Target]:
        """Return `count` targets; entity kinds by turns, as long as there is one who qualifies."""
        waiting = [(one, self.candidates(kind, one)) for one in ENTITY_KINDS_OF[kind]]
        chosen: list[Target] = []
        while waiting and len(chosen) < count:
            entity_kind, candidates = waiting.pop(0)
            targets = (self.choose(kind, entity_kind, entity) for entity in candidates)
            target = next((target for target in targets if target is not None), None)
            if target is not None:
                chosen.append(target)
                waiting.append((entity_kind, candidates))
        return chosen

    def choose(self, kind: str, entity_kind: str, entity: int) -> Target | None:
        """Return when the anomaly befalls the candidate, or none where it cannot."""
        taken = self.cast.merchants if entity_kind == "merchant" else self.cast.users
        if entity in taken:
            return None
        if kind == "outage":
            target = self.outage(entity)
        elif kind == "drift":
            target = self.drift(entity_kind, entity)
        elif kind == "shared_device":
            target = self.shared_device(entity)
        else:
            target = self.short(kind, entity_kind, entity, self.rng.uniform(*MINUTES[kind]))
        if target is not None:
            taken.add(entity)
        return target

    def begin_ms(self, length_ms: int) -> int:
        """Return a random begin after the warm-up, so that the length fits into the span."""
        config = self.config
        first = config.quiet_until_ms
        return first + int(self.rng.random() * max(config.end_ms - first - length_ms, 1))

    def short(self, kind: str, entity_kind: str, entity: int, minutes: float) -> Target:
        """Return an anomaly of some minutes at any time of day."""
        length_ms = round(minutes * 60_000)
        begin_ms = self.begin_ms(length_ms)
        return Target(kind, entity_kind, entity, begin_ms, begin_ms + length_ms)

    def shared_device(self, owner: int) -> Target | None:
        """Take the device of a settled user, or half of the time one that was never seen."""
        device = int(self.people.devices[owner, 0])
        if self.rng.random() < 0.5:
            device = self.cast.new_device(owner)
        if device in self.cast.devices:
            return None
        self.cast.devices.add(device)
        minutes = self.rng.uniform(*MINUTES["shared_device"])
        return self.short("shared_device", "device", device, minutes)

    def outage(self, merchant: int) -> Target | None:
        """Return an outage just long enough for the payments to be missed, if that fits.

        What is to be expected counts only customers who are there from the start.
        """
        missed = self.rng.uniform(*MISSED_PAYMENTS)
        begin_ms = self.begin_ms(0)
        expected = np.cumsum(
            expected_by_step(self.config, self.people, self.demand[merchant], STEP_S)
        )
        first = (begin_ms - self.config.start_ms) // (STEP_S * 1_000)
        if first >= len(expected):
            return None
        # Step `first` is counted in what came before: the outage may begin at its end.
        last = int(np.searchsorted(expected, expected[first] + missed))
        end_ms = self.config.start_ms + (last + 1) * STEP_S * 1_000
        longest_ms = LONGEST_OUTAGE * self.config.duration_s * 1_000
        if last >= len(expected) or end_ms - begin_ms > longest_ms or end_ms > self.config.end_ms:
            return None
        return Target("outage", "merchant", merchant, begin_ms, end_ms)

    def drift(self, entity_kind: str, entity: int) -> Target | None:
        """Return a drift of the entity, if it is likely to hold enough payments."""
        length_ms = round(self.rng.uniform(*DRIFT_LENGTH) * self.config.duration_s * 1_000)
        begin_ms = self.begin_ms(length_ms)
        demand = user_demand(self.people, entity) if entity_kind == "user" else self.demand[entity]
        expected = expected_by_step(self.config, self.people, demand, STEP_S)
        first = (begin_ms - self.config.start_ms) // (STEP_S * 1_000)
        last = (begin_ms + length_ms - self.config.start_ms) // (STEP_S * 1_000)
        if expected[first:last].sum() < DRIFT_PAYMENTS * DRIFT_MARGIN:
            return None
        return Target("drift", entity_kind, entity, begin_ms, begin_ms + length_ms)


def plan_targets(
    config: SimulationConfig, people: Population, cast: Cast, rng: np.random.Generator
) -> list[Target]:
    """Choose the entity and the time of every anomaly; return them by their begin.

    Nobody has two anomalies. All lie between the warm-up's end and the span's end. The kinds
    that need the most activity are cast first.

    Raises:
        ValueError: if the world has too few entities that qualify.
    """
    casting = _Casting(config, people, cast, rng)
    counts = config.anomalies.by_kind()
    targets: list[Target] = []
    for kind in ("outage", "drift", "card_testing", "takeover", "bot_timing", "shared_device"):
        chosen = casting.cast_kind(kind, counts[kind])
        if len(chosen) < counts[kind]:
            raise ValueError(
                f"simulation.anomalies.{kind}: expected {counts[kind]} entities active enough, "
                f"found {len(chosen)}: simulate more payments or entities, or ask for fewer"
            )
        targets += chosen
    return sorted(targets, key=lambda target: (target.begin_ms, target.kind, target.entity))
