"""The contract of a component that learns from labels, which come after the events they judge.

Labels are a second input, with an order of their own: `walk` scores events in the order of the
stream, `learn` takes labels in the order of their arrival. Whoever drives both calls `learn` with a
label only once its arrival lies at or before the next event: the kernel cannot know.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from models.baselines.component import Component

Learn = Callable[..., None]


@dataclass(frozen=True, slots=True)
class LabelledComponent(Component):
    """A component with a second kernel, for late labels.

    `learn(state, row, fresh, event_time_ms, label, parameters)` is compiled (numba, nogil, cached)
    and takes m labels in the order in which they arrived:

    - state: as in `walk`, changed in place.
    - row: int32[m], the record of the judged event's entity.
    - fresh: bool[m], the record begins anew from the prior with this label: it was evicted, or the
      label came before any event.
    - event_time_ms: int64[m], time of the judged event, in any order.
    - label: float64[m], 1 for fraud or anomaly, 0 for normal; NaN is a label withdrawn or unknown
      and teaches nothing.
    - parameters: as in `walk`.

    The order of labels of one entity does not matter beyond rounding where the component says so.
    One call with all labels equals a call for each, bit for bit; entities do not influence each
    other; walk changes nothing that a label taught.

    Attributes:
        learn: the kernel.
    """

    learn: Learn
