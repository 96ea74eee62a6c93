"""The components that settings can name, and how each is put together for an entity kind.

Importing this module imports no kernel: settings are checked without numba.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.baselines.component import Component
    from models.prior import KindPrior


@dataclass(frozen=True, slots=True)
class Context:
    """What a component may be built from.

    Attributes:
        prior: of the entity kind.
        marks: number of marks that the settings name.
        partner_window_ms: time over which partners are counted.
    """

    prior: KindPrior
    marks: int = 0
    partner_window_ms: int = 86_400_000


@dataclass(frozen=True, slots=True)
class Entry:
    """A component that settings can name.

    Attributes:
        build: makes it, with all parameters in it.
        reads_partner: the log then keeps 8 bytes of each event's partner for a replay.
        texts: by surprise, the sentence of a reason in an alert; {tell} stands for what the
            component told, in the unit of its documentation, {tell:value} for a transformed value
            as found in the events, and {actual} for the event's own value.
        expected: the two of `tells` that are mean and standard deviation of the predicted
            transformed value, for the alert's band; None where the component predicts no value.
    """

    build: Callable[[Context], Component]
    reads_partner: bool = False
    texts: Mapping[str, str] = field(default_factory=dict)
    expected: tuple[str, str] | None = None


REGISTRY: dict[str, Entry] = {}


def label(component: str, tell: str) -> str:
    """Name what a component tells as calibration and alerts do: never the same for two components.

    >>> label("markov", "transition"), label("counts", "counts_low")
    ('markov.transition', 'counts_low')
    """
    if tell == component or tell.startswith(f"{component}_"):
        return tell
    return f"{component}.{tell}"
