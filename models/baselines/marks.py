"""Chains of marks: which mark follows which, with Dirichlet priors and forgetting.

Two kernels. Order 1 is the conjugate Markov chain. Variable order mixes the predictions of contexts
of 0 to 3 marks: each context's Dirichlet has the next shorter context's prediction as its base (the
hierarchy of interpolated and PPM models, Teh 2006 with all discounts 0), and the orders are
weighed by how well each predicted, with a fixed share so that the best may change (Herbster and
Warmuth 1998). Contexts of 2 and 3 marks live in a small hash table; a rare one gives way.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.baselines.component import Component
from models.baselines.tails import surprise

MARKS = 8
SLOTS = 32
PROBES = 4
ORDERS = 4
TIE = 1.0 + 1e-12  # probabilities that only rounding tells apart are tied

MARKOV_STATE = np.dtype(
    [("count", np.float32, (MARKS + 1, MARKS)), ("last", np.uint8), ("begun", np.uint8)], align=True
)
VARIABLE_STATE = np.dtype(
    [
        ("count", np.float32, (MARKS + 1, MARKS)),  # of order 1; the last line is order 0
        ("slot", np.float32, (SLOTS, MARKS)),
        ("key", np.uint16, (SLOTS,)),  # of the slot's context; 0 is empty
        ("weight", np.float64, (ORDERS,)),
        ("last", np.uint8, (ORDERS - 1,)),  # newest first
        ("begun", np.uint8),
    ],
    align=True,
)
NONE = MARKS


class MarksParameters(NamedTuple):
    """Prior and settings of both chains.

    Attributes:
        base: float64[k], the population's probabilities of the k <= 8 marks.
        strength: events that the base is worth in each context, > 0.
        discount: in (0, 1], of a context's counts each time it comes.
        share: of the orders' weights that is spread evenly at each event, in [0, 1).
        order: longest context, 1 to 3.
    """

    base: NDArray[np.float64]
    strength: float
    discount: float
    share: float
    order: int


@njit(cache=True)
def mark_log_p(probability, mark):  # type: ignore[no-untyped-def]
    """Return the log of the p-value of `mark`: the sum over marks that are no more probable."""
    total = 0.0
    for m in range(len(probability)):
        if probability[m] <= probability[mark] * TIE:
            total += probability[m]
    return math.log(min(max(total, 1e-300), 1.0))


@njit(cache=True)
def predict_mark(count, base, strength, out):  # type: ignore[no-untyped-def]
    """Fill out[k] with the Dirichlet predictive: (strength base + count) / (strength + n)."""
    total = strength
    for m in range(len(base)):
        total += count[m]
    for m in range(len(base)):
        out[m] = (strength * base[m] + count[m]) / total


@njit(cache=True)
def _count_mark(count, mark, discount):  # type: ignore[no-untyped-def]
    for m in range(len(count)):
        count[m] *= np.float32(discount)
    count[mark] += np.float32(1.0)


@njit(cache=True, nogil=True)
def _walk_markov(state, row, fresh, time_ms, value, mark, partner, p, out):  # type: ignore[no-untyped-def] # noqa: ARG001
    probability = np.empty(len(p.base))
    for i in range(len(row)):
        entity = state[row[i]]
        if fresh[i] or entity["begun"] == 0:
            entity["count"][:] = 0.0
            entity["last"] = NONE
            entity["begun"] = 1
        m = mark[i]
        out[i, 0] = 0.0
        out[i, 1] = math.nan
        if m >= len(p.base):
            continue
        count = entity["count"][entity["last"]]
        predict_mark(count, p.base, p.strength, probability)
        out[i, 0] = surprise(mark_log_p(probability, m))
        out[i, 1] = probability[m]
        _count_mark(count, m, p.discount)
        entity["last"] = m


@njit(cache=True)
def _find_slot(key, slot, k):  # type: ignore[no-untyped-def]
    """Return the slot of context `k` among PROBES places, or -1 - the lightest of them."""
    first = k * 40503 % 65536 // (65536 // SLOTS)  # Fibonacci hashing
    lightest = first
    least = np.inf
    for j in range(PROBES):
        place = (first + j) % SLOTS
        if key[place] == k:
            return place
        weight = slot[place].sum()
        if weight < least:
            lightest, least = place, weight
    return -1 - lightest


@njit(cache=True)
def _claim(entity, place):  # type: ignore[no-untyped-def]
    """Let the context at `place` age; return whether its place is free now."""
    counts = entity["slot"][place]
    for m in range(MARKS):
        counts[m] *= np.float32(0.5)
    if entity["key"][place] != 0 and counts.sum() >= 1.0:
        return False
    counts[:] = 0.0
    return True


@njit(cache=True)
def _context_key(last, order):  # type: ignore[no-untyped-def]
    """Return a number > 0 for the newest `order` marks, or 0 where there are not so many."""
    k = order
    for j in range(order):
        if last[j] == NONE:
            return 0
        k = k * MARKS + last[j]
    return k


@njit(cache=True)
def _begin_variable(entity, p):  # type: ignore[no-untyped-def]
    entity["count"][:] = 0.0
    entity["slot"][:] = 0.0
    entity["key"][:] = 0
    entity["last"][:] = NONE
    for k in range(ORDERS):
        entity["weight"][k] = 1.0 / (p.order + 1.0) if k <= p.order else 0.0
    entity["begun"] = 1


@njit(cache=True, nogil=True)
def _walk_variable(state, row, fresh, time_ms, value, mark, partner, p, out):  # type: ignore[no-untyped-def] # noqa: ARG001
    marks = len(p.base)
    by_order = np.empty((ORDERS, marks))
    mixed = np.empty(marks)
    nothing = np.zeros(MARKS, np.float32)
    place = np.empty(ORDERS, np.int64)
    for i in range(len(row)):
        entity = state[row[i]]
        if fresh[i] or entity["begun"] == 0:
            _begin_variable(entity, p)
        m = mark[i]
        out[i, 0] = 0.0
        out[i, 1] = math.nan
        if m >= marks:
            continue
        last = entity["last"]
        counts = entity["count"]
        predict_mark(counts[NONE], p.base, p.strength, by_order[0])
        newest = last[0]
        predict_mark(
            counts[newest] if newest != NONE else nothing, by_order[0], p.strength, by_order[1]
        )
        for order in range(2, p.order + 1):
            key = _context_key(last, order)
            place[order] = _find_slot(entity["key"], entity["slot"], key) if key else -SLOTS - 1
            known = entity["slot"][place[order]] if place[order] >= 0 else nothing
            predict_mark(known, by_order[order - 1], p.strength, by_order[order])
        mixed[:] = 0.0
        for order in range(p.order + 1):
            mixed += entity["weight"][order] * by_order[order]
        out[i, 0] = surprise(mark_log_p(mixed, m))
        out[i, 1] = mixed[m]
        _learn_variable(entity, m, mixed[m], by_order, place, p)


@njit(cache=True)
def _learn_variable(entity, m, mixed, by_order, place, p):  # type: ignore[no-untyped-def]
    last = entity["last"]
    even = p.share / (p.order + 1.0)
    for order in range(p.order + 1):
        weight = entity["weight"][order] * by_order[order, m] / mixed
        entity["weight"][order] = (1.0 - p.share) * weight + even
    _count_mark(entity["count"][NONE], m, p.discount)
    if last[0] != NONE:
        _count_mark(entity["count"][last[0]], m, p.discount)
    for order in range(2, p.order + 1):
        at = place[order]
        if at == -SLOTS - 1:
            continue
        if at < 0:
            at = -1 - at
            if not _claim(entity, at):
                continue
            entity["key"][at] = _context_key(last, order)
        _count_mark(entity["slot"][at], m, p.discount)
    for j in range(ORDERS - 2, 0, -1):
        last[j] = last[j - 1]
    last[0] = m


def markov_component(
    base: tuple[float, ...], strength: float, discount: float = 1.0, name: str = "mark"
) -> Component:
    """Return the order-1 chain of marks.

    Both chains tell the surprise `name` and `name_probability`, what the observed mark was given.
    A mark that is missing, or beyond the base's, is not scored and leaves the context as it is. The
    p-value of a discrete outcome is conservative: P(p <= x) <= x.

    Args:
        base: probabilities of the 2 to 8 marks in the population, positive; scaled to sum 1.
        strength: events that the base is worth in each context, > 0.
        discount: in (0, 1], of a context's counts each time it comes.
        name: of the component.

    Raises:
        ValueError: a parameter is out of its range.
    """
    p = _parameters(base, strength, discount, 0.0, 1, name)
    return Component(name, 1, MARKOV_STATE, _tells(name), (name,), p, _walk_markov)


def variable_order_component(
    base: tuple[float, ...],
    strength: float,
    discount: float = 1.0,
    share: float = 0.01,
    order: int = 3,
    name: str = "mark",
) -> Component:
    """Return the chain of variable order; see `markov_component`.

    Args:
        base: as there.
        strength: as there.
        discount: as there.
        share: of the orders' weights that is spread evenly at each event, in [0, 1).
        order: longest context, 2 or 3 marks.
        name: of the component.

    Raises:
        ValueError: a parameter is out of its range.
    """
    if order not in (2, 3):
        raise ValueError(f"{name}: expected an order of 2 or 3, found {order}")
    p = _parameters(base, strength, discount, share, order, name)
    return Component(name, 1, VARIABLE_STATE, _tells(name), (name,), p, _walk_variable)


def _tells(name: str) -> tuple[str, ...]:
    return (name, f"{name}_probability")


def _parameters(
    base: tuple[float, ...], strength: float, discount: float, share: float, order: int, name: str
) -> MarksParameters:
    fits = 2 <= len(base) <= MARKS and min(base) > 0.0
    if not (fits and strength > 0.0 and 0.0 < discount <= 1.0 and 0.0 <= share < 1.0):
        raise ValueError(
            f"{name}: expected 2 to {MARKS} positive probabilities, a positive strength, a "
            f"discount in (0, 1] and a share in [0, 1); found {base}, "
            f"{strength}, {discount}, {share}"
        )
    scaled = np.array(base, np.float64) / np.sum(base)
    return MarksParameters(scaled, strength, discount, share, order)
