"""What an entity's event times, as a sequence, say against its model: state and update.

Under the true model the compensator's increments between events, c = -log survival of each gap, are
independent unit exponentials (time rescaling: Papangelou 1972, Daley and Vere-Jones 7.4), whatever
the entity's history. In that time the entity is a Poisson process with rate 1, and every statistic
here has a known null. `models.tpp.sequence_families` judges what is kept here.

The window is the last WINDOW expected events, in blocks of BLOCK expected events, each of CELLS
cells. Counts are kept by cell; what is summed over spacings, by block of the event that ends them.
All is additive, so the window slides by dropping a block, in bounded memory and with no history.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

BLOCKS = 5
CELLS = 4
CELL = 5.0  # expected events
BLOCK = CELLS * CELL
WINDOW = BLOCKS * BLOCK
# A sum of increments that ends on a block's edge must not fall into the next by rounding.
EDGE = 1e-6
# Equal times, and clocks that tick: below it a spacing's log tells of the clock. Under the null one
# spacing in 10,000 is as short.
SHORTEST = 1e-4
LONGEST = 1e4  # as the job caps a compensator
FAST, SLOW = 1.0, 6.0  # expected events: the two ranges over which events may excite each other
LEVELS = 8  # of equal probability, for the distribution of spacings
# So many spacings in a row from another model than the window's begin a window of that model: fewer
# are a passing failure, and are left out.
PATIENCE = 8

# One entity. Zeros are the beginning of a window. No field has the name of an array's method, such
# as `count`, `sum` or `any`: np.record would hide it when the kernels run as Python.
SEQUENCE = np.dtype(
    [
        ("position", np.float64),  # since the beginning of the block, expected events
        ("block", np.int8),  # where the ring is
        ("full", np.int8),  # complete blocks before it, 0 to BLOCKS - 1
        ("slid", np.int8),  # a block has left: the window no longer begins where the record does
        ("seen", np.int8),  # an event has been seen: `centred` speaks of it
        ("centred", np.float32),  # the last spacing's survival less 1/2
        ("fast", np.float32),  # sum of exp(-age / FAST) over earlier events, after the last one
        ("slow", np.float32),  # the same with SLOW
        ("events", np.uint16, BLOCKS * CELLS),  # by cell
        ("total", np.float32, BLOCKS),  # of spacings
        ("squares", np.float32, BLOCKS),
        ("logs", np.float32, BLOCKS),
        ("longest", np.float32, BLOCKS),
        ("fast_pairs", np.float32, BLOCKS),  # sum of exp(-distance / FAST) over pairs of events
        ("slow_pairs", np.float32, BLOCKS),
        ("serial", np.float32, BLOCKS),  # sum of products of successive centred survivals
        ("levels", np.uint8, (BLOCKS, LEVELS)),  # spacings by survival
        ("source", np.uint8),  # whose compensators the window holds
        ("strangers", np.uint8),  # spacings of another source since the last that counted
        ("unjudged", np.uint8),  # events since the window was judged; kept by whoever judges
    ],
    align=True,
)


@njit(cache=True)
def blocks_passed(position):  # type: ignore[no-untyped-def]
    """Return how many blocks' edges lie before `position`, measured from a block's start."""
    return math.floor(max(position - EDGE, 0.0) / BLOCK)


@njit(cache=True)
def _clear(entity, block):  # type: ignore[no-untyped-def]
    for j in range(CELLS):
        entity.events[block * CELLS + j] = 0
    entity.total[block] = 0.0
    entity.squares[block] = 0.0
    entity.logs[block] = 0.0
    entity.longest[block] = 0.0
    entity.fast_pairs[block] = 0.0
    entity.slow_pairs[block] = 0.0
    entity.serial[block] = 0.0
    for j in range(LEVELS):
        entity.levels[block, j] = 0


@njit(cache=True)
def begin(entity):  # type: ignore[no-untyped-def]
    """Begin a window now: nothing has been seen."""
    entity.position = 0.0
    entity.block = 0
    entity.full = 0
    entity.slid = 0
    entity.seen = 0
    entity.centred = 0.0
    entity.fast = 0.0
    entity.slow = 0.0
    entity.source = 0
    entity.strangers = 0
    entity.unjudged = 0
    for b in range(BLOCKS):
        _clear(entity, b)


@njit(cache=True)
def admit(entity, source):  # type: ignore[no-untyped-def]
    """Tell whether a spacing counts whose compensator comes from the model `source`.

    The increments under one model are exponential, and so are some of them left out; those of a
    better and a worse model in one window are neither's null.

    Args:
        entity: SEQUENCE record, changed.
        source: 0 to 255.
    """
    if entity.seen == 0:
        entity.source = source
    elif entity.source != source:
        entity.strangers += 1
        if entity.strangers < PATIENCE:
            return False
        begin(entity)
        entity.source = source
    entity.strangers = 0
    return True


@njit(cache=True)
def spend(entity, compensator):  # type: ignore[no-untyped-def]
    """Let time pass with no event in it; blocks that leave the window are forgotten."""
    position = entity.position + compensator
    passed = blocks_passed(position)
    for _ in range(min(passed, BLOCKS)):
        entity.block = (entity.block + 1) % BLOCKS
        if entity.full == BLOCKS - 1:
            entity.slid = 1
        else:
            entity.full += 1
        _clear(entity, entity.block)
    entity.position = position - passed * BLOCK


@njit(cache=True)
def observe(entity, compensator):  # type: ignore[no-untyped-def]
    """Take in one event.

    Args:
        entity: SEQUENCE record, changed.
        compensator: of the spacing that this event ends, expected events; finite and >= 0, in
            [0, LONGEST] (what is longer counts as LONGEST).
    """
    c = min(compensator, LONGEST)
    spend(entity, c)
    b = entity.block
    cell = b * CELLS + min(int(max(entity.position - EDGE, 0.0) / CELL), CELLS - 1)
    if entity.events[cell] < 65535:
        entity.events[cell] += 1
    entity.total[b] += c
    entity.squares[b] += c * c
    entity.logs[b] += math.log(max(c, SHORTEST))
    entity.longest[b] = max(entity.longest[b], c)
    survival = math.exp(-c)
    fast = entity.fast * math.exp(-c / FAST)
    slow = entity.slow * math.exp(-c / SLOW)
    entity.fast_pairs[b] += fast
    entity.slow_pairs[b] += slow
    entity.fast = fast + 1.0
    entity.slow = slow + 1.0
    if entity.seen:
        entity.serial[b] += entity.centred * (survival - 0.5)
    entity.centred = survival - 0.5
    entity.seen = 1
    level = min(int(survival * LEVELS), LEVELS - 1)
    if entity.levels[b, level] < 255:
        entity.levels[b, level] += 1
