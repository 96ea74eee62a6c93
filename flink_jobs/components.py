"""The components that the settings name: their columns in the table, their walk, their reasons."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from flink_jobs.advance import KindEvents
from models.baselines.component import NO_PARTNER, Component
from models.baselines.registry import REGISTRY, Context, label
from state.table import Part, Table

BAND_Z = 2.5758  # the expected band holds 99% of a normal prediction


@dataclass(frozen=True, slots=True)
class KindComponents:
    """The components of one entity kind, in the order of the settings.

    Attributes:
        components: with their parameters.
        layout: their parts of the table.
        labels: names of all their surprises, in order: the columns after those of the core.
        columns: by component, int64[s], where its surprises stand among what it tells.
        reads_partner: one of them reads the partner's hash.
    """

    components: tuple[Component, ...]
    layout: tuple[Part, ...]
    labels: tuple[str, ...]
    columns: tuple[NDArray[np.int64], ...]
    reads_partner: bool

    @classmethod
    def of(cls, names: Sequence[str], context: Context) -> KindComponents:
        """Build the components that `names` asks for.

        Raises:
            ValueError: one cannot be built from the prior; the message begins with its name.
        """
        components = tuple(_component(name, context) for name in names)
        built = [component.name for component in components]
        assert built == list(names), f"expected components named {names}, found {built}"
        return cls(
            components,
            tuple(Part(c.name, c.version, c.state, _digest(c.parameters)) for c in components),
            tuple(label(c.name, surprise) for c in components for surprise in c.surprises),
            tuple(np.array([c.tells.index(s) for s in c.surprises], int) for c in components),
            any(REGISTRY[name].reads_partner for name in names),
        )

    def labels_of(self, names: Collection[str]) -> list[str]:
        """Return the names of the surprises of the components `names`."""
        return [
            label(c.name, surprise)
            for c in self.components
            if c.name in names
            for surprise in c.surprises
        ]

    def surprises(self, tells: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return float32[m, S], the columns of `labels`, of what the components told."""
        return np.concatenate(
            [out[:, columns] for out, columns in zip(tells, self.columns, strict=True)], axis=1
        )


def _component(name: str, context: Context) -> Component:
    try:
        return REGISTRY[name].build(context)
    except (ValueError, ArithmeticError) as error:
        raise ValueError(f"{name}: {error}") from error


NO_COMPONENTS = KindComponents((), (), (), (), False)


def walk(table: Table, kind: KindComponents, events: KindEvents) -> tuple[NDArray[np.float32], ...]:
    """Score `events` with the components of their kind and update their records in `table`.

    One call with all events equals a call for each of them.

    Args:
        table: changed in its parts.
        kind: the components.
        events: m events.

    Returns:
        By component, float32[m, len(tells)].
    """
    if not kind.components:
        return ()
    n = len(events)
    partner = events.partner_hash
    if partner is None:
        partner = np.full(n, NO_PARTNER, np.uint64)
    tells = []
    begins = np.empty(n, np.bool_)
    # The parts of further encoders' memories stand behind the components'.
    for component, records, begun in zip(kind.components, table.parts, table.begun, strict=False):
        out = np.zeros((n, len(component.tells)), np.float32)
        begin_records(events.row, events.fresh, begun, begins)
        component.walk(
            records, events.row, begins, events.time_ms, events.value, events.mark, partner,
            component.parameters, out,
        )  # fmt: skip
        tells.append(out)
    return tuple(tells)


@njit(cache=True, nogil=True)
def begin_records(row, fresh, begun, begins):  # type: ignore[no-untyped-def]
    """Let a record begin with the entity's first event, or with its first since it joined."""
    for i in range(len(row)):
        begins[i] = fresh[i] or begun[row[i]] == 0
        begun[row[i]] = 1


@dataclass(frozen=True, slots=True)
class EventTells:
    """What the components told of one event, as alerts need it.

    Attributes:
        kind: the components.
        tells: by component, float32[m, len(tells)].
        event: index of the event among the m.
    """

    kind: KindComponents = NO_COMPONENTS
    tells: tuple[NDArray[np.float32], ...] = ()
    event: int = 0

    def expected(self) -> tuple[float, float, float] | None:
        """Return (low, typical, high) of the transformed value, of the first that knows."""
        for component, told in self._by_component():
            names = REGISTRY[component.name].expected or ()
            found = [told[name] for name in names]
            if not found or not all(map(math.isfinite, found)):
                continue
            if len(found) == 2:
                mean, sd = found
                return mean - BAND_Z * sd, mean, mean + BAND_Z * sd
            typical, low, high = found
            return low, typical, high
        return None

    def all(self) -> dict[str, dict[str, float]]:
        """Return by component, by name, all that was told."""
        return {component.name: told for component, told in self._by_component()}

    def reason(self, name: str, actual: float, back: Callable[[float], float]) -> str:
        """Write the sentence of a reason.

        Args:
            name: of the surprise, as `label` gives it.
            actual: the event's transformed value.
            back: turns a transformed value into one as found in the events.
        """
        for component, told in self._by_component():
            for surprise in component.surprises:
                text = REGISTRY[component.name].texts.get(surprise)
                if label(component.name, surprise) == name and text is not None:
                    numbers = {"actual": _Number(actual, back)}
                    numbers |= {key: _Number(x, back) for key, x in told.items()}
                    return text.format(**numbers) if isinstance(text, str) else text(numbers)
        return f"{name.replace('_', ' ')} is not as this entity's history suggests"

    def _by_component(self) -> Iterator[tuple[Component, dict[str, float]]]:
        for component, out in zip(self.kind.components, self.tells, strict=True):
            told = out[self.event].tolist()
            yield component, dict(zip(component.tells, told, strict=True))


class _Number:
    """A number in a sentence; see `models.baselines.registry.Number`."""

    def __init__(self, value: float, back: Callable[[float], float]) -> None:
        self._value, self._back = value, back

    def __float__(self) -> float:
        return self._value

    def __format__(self, spec: str) -> str:
        if not math.isfinite(self._value):
            return "unknown"
        if spec == "value":
            return f"{self._back(self._value):.6g}"
        if spec == "span":
            return span(self._value)
        return format(self._value, spec or ".3g")


def span(seconds: float) -> str:
    """Write a span of time in a unit that fits.

    >>> span(7_200.0)
    '2.0 h'
    """
    for unit, size in (("d", 86_400.0), ("h", 3_600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.3g} s"


def _digest(parameters: object) -> str:
    """Return a digest of a NamedTuple of numbers, texts and arrays, nested as they may be."""
    digest = hashlib.blake2b(digest_size=8)

    def add(value: object) -> None:
        if isinstance(value, np.ndarray):
            digest.update(f"{value.dtype.str}{value.shape}".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, tuple | list):
            digest.update(f"{len(value)}(".encode())
            for one in value:
                add(one)
        else:
            digest.update(f"{value!r};".encode())

    add(parameters)
    return digest.hexdigest()
