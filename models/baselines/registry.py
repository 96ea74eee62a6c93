"""The components that settings can name, and how each is put together for an entity kind.

Importing this module imports no kernel: settings are checked without numba.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

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


class Number(Protocol):
    """A number that a component told, or nothing known, as a sentence shows it.

    Formats: `value` turns a transformed value back to the events' scale, `span` writes seconds in
    a fitting unit; any other is Python's.
    """

    def __format__(self, spec: str) -> str:
        """Write the number."""

    def __float__(self) -> float:
        """Return the number; NaN where nothing is known."""


Sentence = str | Callable[[Mapping[str, Number]], str]


@dataclass(frozen=True, slots=True)
class Entry:
    """A component that settings can name.

    Attributes:
        build: makes it, with all parameters in it.
        texts: by surprise, the sentence of a reason in an alert: a format of what the component
            told, by the names of its `tells`, and of `actual`, the event's own transformed value;
            or a function of these.
        expected: of `tells`, those that are mean and standard deviation of the predicted
            transformed value, or typical value and both ends of its 99% band; None where it
            predicts none.
        reads_partner: the log then keeps 8 bytes of each event's partner for a replay.
        reads_mark: it needs at least two marks.
        reads_compensator: its `value` is the compensator of the gap before each event, under the
            intensity model (its `mark` is then 1) or the gap baseline (0).
    """

    build: Callable[[Context], Component]
    texts: Mapping[str, Sentence] = field(default_factory=dict)
    expected: tuple[str, ...] | None = None
    reads_partner: bool = False
    reads_mark: bool = False
    reads_compensator: bool = False


def _built(name: str) -> Callable[[Context], Component]:
    def build(context: Context) -> Component:
        from models.baselines.builders import BUILDERS

        return BUILDERS[name](context, name)

    return build


def _gaps(name: str) -> Entry:
    usual = f"{{{name}_typical:span}} is usual"
    return Entry(
        _built(name),
        {
            f"{name}_short": f"a shorter gap than this entity's, of which {usual}",
            f"{name}_long": f"a longer gap than this entity's, of which {usual}",
        },
    )


def _structural(name: str) -> Entry:
    text = "value {actual:value} where {expected:value} is expected"
    return Entry(_built(name), {"surprise": text}, ("expected", "expected_sd"))


def _metric_text(told: Mapping[str, Number]) -> str:
    from models.baselines.metric_views import VIEWS

    view = float(told["view"])
    named = VIEWS[int(view)].replace("_", " ") if view == view else "value"
    return (
        f"value {told['actual']:value} where {told['low']:value} to {told['high']:value} is "
        f"expected: its {named} lies outside all that it has been"
    )


def _sequence_text(told: Mapping[str, Number]) -> str:
    from models.tpp.sequence_words import reason

    return reason({name: float(number) for name, number in told.items()})


REGISTRY: dict[str, Entry] = {
    "level": _structural("level"),
    "trend": _structural("trend"),
    "season": _structural("season"),
    "metric": Entry(_built("metric"), {"alarm": _metric_text}, ("typical", "low", "high")),
    "value": Entry(
        _built("value"),
        {
            "value": "value {actual:value} where {value_level:value} is expected",
            "value_high": "value {actual:value}, higher than the expected {value_level:value}",
        },
        ("value_level", "value_spread"),
    ),
    "tail": Entry(
        _built("tail"),
        {"tail": "value {actual:value}, far beyond {tail_threshold:value}, which few exceed"},
    ),
    "change": Entry(
        _built("change"),
        {
            "change": "value {actual:value} where {change_level:value} is the level of the last "
            "{change_run:.0f} events"
        },
    ),
    "counts": Entry(
        _built("counts"),
        {
            "counts_high": "more events in a day than the {counts_expected:.3g} expected",
            "counts_low": "fewer events in a day than the {counts_expected:.3g} expected",
        },
    ),
    "log_normal_gaps": _gaps("log_normal_gaps"),
    "gamma_gaps": _gaps("gamma_gaps"),
    "weibull_gaps": _gaps("weibull_gaps"),
    "markov": Entry(
        _built("markov"),
        {"markov": "a mark that follows the one before with probability {markov_probability:.2g}"},
        reads_mark=True,
    ),
    "variable_markov": Entry(
        _built("variable_markov"),
        {
            "variable_markov": "a mark that follows those before with probability "
            "{variable_markov_probability:.2g}"
        },
        reads_mark=True,
    ),
    "distinct_partners": Entry(
        _built("distinct_partners"),
        {
            "distinct_partners": "about {distinct_partners_count:.0f} distinct partners in the "
            "window, more than this entity's history suggests"
        },
        reads_partner=True,
    ),
    "sequence": Entry(_built("sequence"), {"sequence": _sequence_text}, reads_compensator=True),
}


def label(component: str, tell: str) -> str:
    """Name what a component tells as calibration and alerts do: never the same for two components.

    >>> label("markov", "transition"), label("counts", "counts_low")
    ('markov.transition', 'counts_low')
    """
    if tell == component or tell.startswith(f"{component}_"):
        return tell
    return f"{component}.{tell}"
