"""The shapes and constants of the intensity model, in one place for stream, training and server.

The history encoder is a linear recurrence over an entity's events (see `FEATURE_VERSION`):

    phi  = [zgap, ratio, is_first]                      u = [phi, one_hot(mark)]
    e    = W2 @ relu(W1 @ u + b1) + b2
    h[k] = exp(-gap / (TIME_CONSTANTS[k] * exp(m))) * h[k] + e[k]      0 <= k < 32
    h[k] = exp(-1 / COUNT_CONSTANTS[k - 32])        * h[k] + e[k]     32 <= k < 64

where `gap` is in seconds of operational time and `m` is the entity's running mean of log gap
before this event. The decoder reads x = [h, zgap, ratio, is_first, log1p(n_events) / 5, mark] and
answers y = [4 log weights, 4 means, 4 log sds, 8 log mark probabilities, 4 log weights, 4 means,
4 log sds]: a log-normal mixture of log(next gap in s) - m (m after this event), the next mark, and
a mixture of normals of this event's amount given its gap, its mark and all events before it.

The amount is told as the standardised innovation (value - level) / sd of the entity's own level
before the event (`models.baselines.entity_level`): what earlier amounts say is in level and sd, and
the encoder reads none. So the answer about an event's amount comes with the event's own request,
and nothing of it must be kept until the next event.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

FEATURE_VERSION: Final = "3"
"""Changes with every change to the meaning of `x` or `y`; the job refuses a model of another one. 1
had no amount; the versions between and after are those of the general form of `architecture`, which
no server hosts."""

MEMORY: Final = 64
MARKS: Final = 8
NO_MARK: Final = 255
"""Mark of an event that has none: its one-hot part is all zeros."""
PHI: Final = 3
ENCODER_INPUT: Final = PHI + MARKS
ENCODER_HIDDEN: Final = 32
COMPONENTS: Final = 4
INPUT: Final = MEMORY + PHI + 2
OUTPUT: Final = 6 * COMPONENTS + MARKS

GAP_FLOOR_S: Final = 1e-3
"""Time stamps are in ms: two events of one ms are taken to be one ms apart."""
ZGAP_LIMIT: Final = 6.0
RATIO_LIMIT: Final = 20.0

TIME_DOUBLINGS: Final = 16
SHORTEST_TIME: Final = 0.02
"""Shortest time constant, in units of the entity's own scale exp(m)."""
TIME_CONSTANTS: Final[NDArray[np.float64]] = np.tile(
    SHORTEST_TIME * 2.0 ** np.arange(TIME_DOUBLINGS), 2
)
"""[32] in units of exp(m). In the stream, in training and in the feature version a[15] is one exp
rounded to float32 and each shorter one is its neighbour's square in float32, a[k-1] = a[k] ** 2: up
to 2^-9 off the formula at the shortest constants, which the model is trained with."""
COUNT_CONSTANTS: Final[NDArray[np.float64]] = np.tile(np.geomspace(1.0, 1000.0, 16), 2)
"""[32] in events."""

# Columns of x after the memory.
ZGAP: Final = MEMORY
RATIO: Final = MEMORY + 1
IS_FIRST: Final = MEMORY + 2
LOG_COUNT: Final = MEMORY + 3
LOG_COUNT_DIVISOR: Final = 5.0
MARK: Final = MEMORY + 4
"""Index of this event's mark, MARKS for none."""

# Parts of y.
GAP: Final = slice(0, 3 * COMPONENTS)
LOG_WEIGHT: Final = slice(0, COMPONENTS)
MEAN: Final = slice(COMPONENTS, 2 * COMPONENTS)
LOG_SD: Final = slice(2 * COMPONENTS, 3 * COMPONENTS)
LOG_MARK: Final = slice(3 * COMPONENTS, 3 * COMPONENTS + MARKS)
AMOUNT: Final = slice(LOG_MARK.stop, OUTPUT)
"""Log weights, means and log sds of the amount's mixture."""

MEAN_LIMIT: Final = 25.0
LOG_SD_RANGE: Final = (-4.0, 2.5)
"""The narrowest component has a width of 2% of a gap: regular timing is learnt, but a spike on the
ms grid of the time stamps cannot buy likelihood without limit."""
