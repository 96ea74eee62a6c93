"""What a streamable intensity model is made of: poles, layers, features and heads, as plain data.

The form of `models.tpp.spec`, which the job serves today, is one fixed form: real poles,
one layer, four components. This is the general form beside it, feature version 4. It stands for the
meaning of a memory's numbers, so it is stored with every model, and a memory carries its digest.

Features of an event (see `models.tpp.features`), float32[features]:
    0 standardised log gap, cut at FEATURE_LIMIT, 0 for a first event
    1 gap over the mean gap, cut at RATIO_LIMIT
    2 is_first
    then for each of the levels: the mean of the standardised log gap over about so many events, and
    the log of its standard deviation, both drawn to 0 as by one event there
    then where the architecture has marks, as this sequence has shown them so far: log age of the
    mark, is it new, is it that of the event before; log1p of how often it came in a row before, log
    time since the row began, mean log gap within it; log of how often the mark came, mean log gap
    after it, how often it came again at once, log of how many kinds came
    then with profiles what training sequences tell of the mark (see `models.tpp.profiles`)
    then with amounts the standardised log amount; then with the clock the sequence's excess
    t / mean gap - n within EXCESS_LIMIT, log1p(n), the clock t / span, its square and log1p of what
    is left of the span; then for each period the sine and the cosine of the clock.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

GENERAL_FEATURE_VERSION: Final = "4"
FEATURE_LIMIT: Final = 8.0
RATIO_LIMIT: Final = 20.0
EXCESS_LIMIT: Final = 50.0
"""A clock without correction wanders off by thousands of mean gaps: in float32 such a feature would
drown the others."""
GAP_FEATURES: Final = 3
LEVEL_FEATURES: Final = 2
MARK_FEATURES: Final = 10
PROFILE_FEATURES: Final = 8
CLOCK_FEATURES: Final = 5
RECENT_MARKS: Final = 32
"""How many distinct marks an entity's memory knows something of."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One linear recurrence h <- a h + e.

    The memory holds, in this order: the real poles by time, the real poles by count, the real parts
    of the complex poles, their imaginary parts. A complex pole is
    a = exp(-gap / time_constant + 2 pi i gap / period).

    Attributes:
        time_constants: of the real poles by time, in mean gaps, where training begins.
        count_constants: of the real poles by count, in events.
        periods: of the complex poles: (time constant, period) in mean gaps.
        hidden: width of the network that makes e of the layer's input.
    """

    time_constants: tuple[float, ...]
    count_constants: tuple[float, ...] = ()
    periods: tuple[tuple[float, float], ...] = ()
    hidden: int = 32

    def __post_init__(self) -> None:
        """Refuse poles that would grow or stand still."""
        flat = [*self.time_constants, *self.count_constants, *(x for p in self.periods for x in p)]
        if not flat or not all(0.0 < x < np.inf for x in flat) or self.hidden < 1:
            raise ValueError(
                f"expected finite time and count constants and periods above 0 and a hidden width "
                f"from 1 on, found {flat} and {self.hidden}"
            )

    @property
    def size(self) -> int:
        """How many numbers of memory it has."""
        return len(self.time_constants) + len(self.count_constants) + 2 * len(self.periods)

    @property
    def reach(self) -> NDArray[np.float64]:
        """float64[size], over how many events each number of the memory sums, about."""
        complex_reach = [constant for constant, _ in self.periods]
        flat = [*self.time_constants, *self.count_constants, *complex_reach, *complex_reach]
        return np.maximum(np.array(flat), 1.0)


@dataclass(frozen=True, slots=True)
class Scales:
    """What standardises a process, from its training sequences.

    Attributes:
        gap_mean: mean gap, in the data's unit of time.
        log_gap_mean: of the log gap.
        log_gap_sd: of the log gap.
        span: the clock's greatest value.
        log_amount_mean: of the log amount.
        log_amount_sd: of the log amount.
    """

    gap_mean: float
    log_gap_mean: float
    log_gap_sd: float
    span: float
    log_amount_mean: float = 0.0
    log_amount_sd: float = 1.0


@dataclass(frozen=True, slots=True)
class Architecture:
    """A streamable model's form.

    Attributes:
        scales: of the process.
        layers: each reads the event's features and the memory of the layer below.
        marks: kinds of marks, 0 for none; the last one stands for every other mark.
        mark_head: whether the next mark is predicted.
        profiles: how many marks have a profile, 0 for no such features; a mark from this number on
            has the profile of an unknown one.
        levels: over how many events the running means of the log gap go, about.
        amount: whether events have amounts, which are then predicted given gap and mark.
        clock: whether the sequence's clock and count are features.
        clock_periods: periods of the absolute clock, in the data's unit of time.
        components: log-normals of the gap's mixture.
        amount_components: log-normals of the amount's mixture.
        width: of the decoder.
        blocks: residual blocks of the decoder.
        dropout: in training.
    """

    scales: Scales
    layers: tuple[Layer, ...]
    marks: int = 0
    mark_head: bool = False
    profiles: int = 0
    levels: tuple[float, ...] = ()
    amount: bool = False
    clock: bool = False
    clock_periods: tuple[float, ...] = ()
    components: int = 16
    amount_components: int = 4
    width: int = 64
    blocks: int = 2
    dropout: float = 0.0
    feature_version: str = field(default=GENERAL_FEATURE_VERSION)

    @property
    def features(self) -> int:
        """How many features an event has."""
        return (
            GAP_FEATURES
            + LEVEL_FEATURES * len(self.levels)
            + (PROFILE_FEATURES if self.profiles else 0)
            + (MARK_FEATURES if self.marks else 0)
            + (1 if self.amount else 0)
            + (CLOCK_FEATURES if self.clock else 0)
            + 2 * len(self.clock_periods)
        )

    @property
    def memory(self) -> int:
        """How many numbers of memory all layers have."""
        return sum(layer.size for layer in self.layers)

    @property
    def digest(self) -> str:
        """What a stored memory carries: it changes with every change to the form."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """Return the form as JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Architecture:
        """Read what `to_json` wrote.

        Raises:
            ValueError: it is of another feature version.
        """
        raw: dict[str, Any] = json.loads(text)
        found = raw.get("feature_version")
        if found != GENERAL_FEATURE_VERSION:
            raise ValueError(
                f"expected an architecture of feature version {GENERAL_FEATURE_VERSION}, found "
                f"{found}; train the model again"
            )
        layers = tuple(
            Layer(
                tuple(layer["time_constants"]),
                tuple(layer["count_constants"]),
                tuple((constant, period) for constant, period in layer["periods"]),
                layer["hidden"],
            )
            for layer in raw.pop("layers")
        )
        periods, levels = tuple(raw.pop("clock_periods")), tuple(raw.pop("levels"))
        scales = Scales(**raw.pop("scales"))
        return cls(scales=scales, layers=layers, clock_periods=periods, levels=levels, **raw)

    def without_dropout(self) -> Architecture:
        """Return the form as the stream has it."""
        return replace(self, dropout=0.0)


def poles(
    shortest: float,
    longest: float,
    real: int = 16,
    counts: int = 8,
    complex_pairs: int = 8,
    extra: tuple[float, ...] = (),
) -> Layer:
    """Return a layer of log-spaced poles.

    Args:
        shortest: time constant, in mean gaps.
        longest: time constant, in mean gaps.
        real: poles by time.
        counts: poles by count, from 1 to 512 events.
        complex_pairs: complex poles; each turns once within its time constant.
        extra: further time constants, such as a fitted Hawkes process's.
    """
    turning = np.geomspace(max(shortest, 1e-3), longest, complex_pairs)
    return Layer(
        (*map(float, np.geomspace(shortest, longest, real)), *extra),
        tuple(map(float, np.geomspace(1.0, 512.0, counts))) if counts else (),
        tuple((float(x), float(x)) for x in turning),
    )
