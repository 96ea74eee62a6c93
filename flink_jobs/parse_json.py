"""Walk the bytes of a JSON object without building it: compiled by numba, strict, and unsure.

`walk` notes where the settings' pointers lead and checks all the rest of the object on its way.
It returns `NOWHERE` for what is faulty and for the little that it does not want to judge; the
exact reader in `parse_message` then tells the two apart. What runs per token is inlined: with
calls in its place the walk took a fifth longer.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from flink_jobs.parse_mapping import FNV_OFFSET, FNV_PRIME

NOWHERE = -1
MAX_KEYS = 256  # of the objects open at one time; their hashes are compared pairwise
# The forms of a token; ESCAPED is a string with escapes, ABSENT is null or nothing.
ABSENT, STRING, ESCAPED, INTEGER, DECIMAL, BOOLEAN, CONTAINER = range(7)

_OFFSET, _PRIME = np.uint64(FNV_OFFSET), np.uint64(FNV_PRIME)
QUOTE, BACKSLASH, MINUS, DOT, ZERO, NINE = (ord(c) for c in '"\\-.09')


def _character_classes() -> NDArray[np.uint8]:
    """Return uint8[256]: 0 plain within a string, 1 quote, 2 backslash, 3 control, 4 not ASCII."""
    classes = np.zeros(256, np.uint8)
    classes[:32], classes[128:] = 3, 4
    classes[QUOTE], classes[BACKSLASH] = 1, 2
    return classes


_CLASS = _character_classes()
_ESCAPABLE = np.isin(np.arange(256), list(b'"\\/bfnrt'))


@njit(cache=True, inline="always")
def _skip_space(data: NDArray[np.uint8], at: int) -> int:
    while data[at] == 32 or data[at] == 10 or data[at] == 13 or data[at] == 9:
        at += 1
    return at


@njit(cache=True)
def _utf8_end(data: NDArray[np.uint8], at: int) -> int:
    """Return the end of the character of 2 to 4 bytes at `at`, or -1 (Unicode, table 3-7)."""
    first, second = data[at], data[at + 1]
    low, high = 0x80, 0xBF
    if 0xC2 <= first <= 0xDF:
        more = 0
    elif 0xE0 <= first <= 0xEF:
        more = 1
        if first == 0xE0:
            low = 0xA0
        elif first == 0xED:
            high = 0x9F
    elif 0xF0 <= first <= 0xF4:
        more = 2
        if first == 0xF0:
            low = 0x90
        elif first == 0xF4:
            high = 0x8F
    else:
        return NOWHERE
    if not low <= second <= high:
        return NOWHERE
    for k in range(more):
        if data[at + 2 + k] & 0xC0 != 0x80:  # a NUL after the message ends this loop too
            return NOWHERE
    return at + 2 + more


@njit(cache=True)
def _hex4(data: NDArray[np.uint8], at: int) -> int:
    """Return the number that four hexadecimal digits write, or -1."""
    number = 0
    for k in range(4):
        c = data[at + k]
        if 48 <= c <= 57:
            digit = c - 48
        elif 97 <= c <= 102:
            digit = c - 87
        elif 65 <= c <= 70:
            digit = c - 55
        else:
            return -1
        number = number * 16 + int(digit)
    return number


@njit(cache=True)
def _escape_end(data: NDArray[np.uint8], at: int) -> int:
    """Return the end of the escape whose backslash is at `at`, or -1; half a pair is none."""
    c = data[at + 1]
    if c == 117:  # u
        unit = _hex4(data, at + 2)
        if unit < 0 or 0xDC00 <= unit <= 0xDFFF:
            return NOWHERE
        if unit < 0xD800 or unit > 0xDFFF:
            return at + 6
        if data[at + 6] != BACKSLASH or data[at + 7] != 117:
            return NOWHERE
        return at + 12 if 0xDC00 <= _hex4(data, at + 8) <= 0xDFFF else NOWHERE
    return at + 2 if _ESCAPABLE[c] else NOWHERE


@njit(cache=True)
def _string_end(data: NDArray[np.uint8], at: int) -> tuple[int, bool]:
    """Return where the string whose first character is at `at` has its quote, and any escapes."""
    escaped = False
    while True:
        kind = _CLASS[data[at]]
        if kind == 0:
            at += 1
        elif kind == 1:
            return at, escaped
        elif kind == 3:
            return NOWHERE, escaped
        else:
            escaped = escaped or kind == 2
            at = _escape_end(data, at) if kind == 2 else _utf8_end(data, at)
            if at < 0:
                return NOWHERE, escaped


@njit(cache=True)
def _digits_end(data: NDArray[np.uint8], at: int) -> int:
    """Return where the digits that begin at `at` end."""
    while ZERO <= data[at] <= NINE:
        at += 1
    return at


@njit(cache=True)
def _number_end(data: NDArray[np.uint8], at: int) -> tuple[int, int]:
    """Return the end of the JSON number at `at`, or -1, and its form."""
    form = INTEGER
    if data[at] == MINUS:
        at += 1
    whole = at
    at = _digits_end(data, at)
    if at == whole or (data[whole] == ZERO and at - whole > 1):
        return NOWHERE, form
    if data[at] == DOT:
        form = DECIMAL
        fraction = at + 1
        at = _digits_end(data, fraction)
        if at == fraction:
            return NOWHERE, form
    if data[at] == 101 or data[at] == 69:  # e E
        form = DECIMAL
        at += 1
        if data[at] == 43 or data[at] == MINUS:  # +
            at += 1
        exponent = at
        at = _digits_end(data, exponent)
        if at == exponent:
            return NOWHERE, form
    return at, form


@njit(cache=True)
def _literal_end(data: NDArray[np.uint8], at: int) -> tuple[int, int]:
    """Return the end of true, false or null at `at`, or -1, and its form."""
    if data[at] == 116 and data[at + 1] == 114 and data[at + 2] == 117 and data[at + 3] == 101:
        return at + 4, BOOLEAN
    if data[at] == 110 and data[at + 1] == 117 and data[at + 2] == 108 and data[at + 3] == 108:
        return at + 4, ABSENT
    if (
        data[at] == 102
        and data[at + 1] == 97
        and data[at + 2] == 108
        and data[at + 3] == 115
        and data[at + 4] == 101
    ):
        return at + 5, BOOLEAN
    return NOWHERE, ABSENT


@njit(cache=True)
def _equal(a: NDArray[np.uint8], a_at: int, b: NDArray[np.uint8], b_at: int, length: int) -> bool:
    """Return whether `length` bytes of `a` at `a_at` are those of `b` at `b_at`."""
    for k in range(length):  # noqa: SIM110 - numba compiles the loop, not a generator
        if a[a_at + k] != b[b_at + k]:
            return False
    return True


@njit(cache=True, inline="always")
def _child_by_key(
    data: NDArray[np.uint8],
    at: int,
    length: int,
    key_hash: np.uint64,
    first: int,
    end: int,
    edges: NDArray[np.int64],
    names: NDArray[np.uint8],
) -> int:
    for edge in range(first, end):
        start = edges[edge, 3]
        if (
            np.uint64(edges[edge, 2]) == key_hash
            and edges[edge + 1, 3] - start == length
            and _equal(data, at, names, start, length)
        ):
            return int(edges[edge, 0])
    return NOWHERE


@njit(cache=True)
def _child_by_index(index: int, first: int, end: int, edges: NDArray[np.int64]) -> int:
    for edge in range(first, end):
        if edges[edge, 1] == index:
            return int(edges[edge, 0])
    return NOWHERE


@njit(cache=True)
def _key_end(data: NDArray[np.uint8], at: int) -> tuple[int, np.uint64]:
    """Return where the key whose first character is at `at` has its quote, and its hash.

    -1 for a faulty key, and for one with an escape: its hash is not that of its characters.
    """
    key_hash = _OFFSET
    while True:
        kind = _CLASS[data[at]]
        if kind == 0:
            key_hash = (key_hash ^ np.uint64(data[at])) * _PRIME
            at += 1
        elif kind == 1:
            return at, key_hash
        elif kind == 4:
            end = _utf8_end(data, at)
            if end < 0:
                return NOWHERE, key_hash
            while at < end:
                key_hash = (key_hash ^ np.uint64(data[at])) * _PRIME
                at += 1
        else:
            return NOWHERE, key_hash


@njit(cache=True, inline="always")
def _seen(key_hash: np.uint64, key_hashes: NDArray[np.uint64], first: int, end: int) -> bool:
    for k in range(first, end):  # noqa: SIM110 - numba compiles the loop, not a generator
        if key_hashes[k] == key_hash:
            return True
    return False


@njit(cache=True, inline="always")
def _member(
    data: NDArray[np.uint8],
    at: int,
    nodes: NDArray[np.int64],
    edges: NDArray[np.int64],
    names: NDArray[np.uint8],
    node: int,
    first: int,
    keys: int,
    key_hashes: NDArray[np.uint64],
) -> tuple[int, int]:
    """Read the key and colon at `at`; return where the value begins, or -1, and its trie node."""
    if data[at] != QUOTE or keys == MAX_KEYS:
        return NOWHERE, node
    end, key_hash = _key_end(data, at + 1)
    if end < 0 or _seen(key_hash, key_hashes, first, keys):
        return NOWHERE, node
    key_hashes[keys] = key_hash
    if node >= 0:
        node = _child_by_key(
            data,
            at + 1,
            end - at - 1,
            key_hash,
            nodes[node, 1],
            nodes[node + 1, 1],
            edges,
            names,
        )
    at = _skip_space(data, end + 1)
    if data[at] != 58:  # :
        return NOWHERE, node
    return _skip_space(data, at + 1), node


@njit(cache=True, inline="always")
def _scalar(data: NDArray[np.uint8], at: int) -> tuple[int, int, int]:
    """Return the end of the string, number or literal at `at`, or -1, its form and quotes."""
    c = data[at]
    if c == QUOTE:
        end, escaped = _string_end(data, at + 1)
        return end, ESCAPED if escaped else STRING, 1
    if c == MINUS or ZERO <= c <= NINE:
        end, form = _number_end(data, at)
        return end, form, 0
    end, form = _literal_end(data, at)
    return end, form, 0


@njit(cache=True)
def _walk(  # noqa: C901 - one loop in one piece: each call costs a tenth of the whole
    data: NDArray[np.uint8],
    at: int,
    nodes: NDArray[np.int64],
    edges: NDArray[np.int64],
    names: NDArray[np.uint8],
    max_nesting: int,
    stack: NDArray[np.int64],
    key_hashes: NDArray[np.uint64],
    tokens: NDArray[np.int64],
) -> int:
    """Walk the JSON object at `at`; return where it and the space behind it end, or -1."""
    at = _skip_space(data, at)
    if data[at] != 123:  # {
        return NOWHERE
    at += 1
    depth, keys = 1, 0
    stack[1, 0], stack[1, 1], stack[1, 2] = 0, 0, -1
    opened, after_value = True, False
    while True:
        at = _skip_space(data, at)
        in_array = stack[depth, 2] >= 0
        if data[at] == (93 if in_array else 125) and (opened or after_value):  # ] }
            at, keys = at + 1, stack[depth, 1]
            depth -= 1
            if depth == 0:
                return _skip_space(data, at)
            opened, after_value = False, True
            continue
        if after_value:
            if data[at] != 44:  # ,
                return NOWHERE
            at = _skip_space(data, at + 1)
            stack[depth, 2] += 1 if in_array else 0
        node = stack[depth, 0]
        if not in_array:
            at, node = _member(
                data, at, nodes, edges, names, node, stack[depth, 1], keys, key_hashes
            )
            keys += 1
            if at < 0:
                return NOWHERE
        elif node >= 0:
            node = _child_by_index(stack[depth, 2], nodes[node, 1], nodes[node + 1, 1], edges)
        opened = data[at] == 123 or data[at] == 91  # { [
        after_value = not opened
        if opened:
            if depth == max_nesting:
                return NOWHERE
            depth += 1
            stack[depth, 0], stack[depth, 1] = node, keys
            stack[depth, 2] = -1 if data[at] == 123 else 0
            end, form, quotes = at + 1, CONTAINER, 0
        else:
            end, form, quotes = _scalar(data, at)
            if end < 0:
                return NOWHERE
        if node >= 0 and nodes[node, 0] >= 0:
            target = nodes[node, 0]
            start = at + quotes
            tokens[target, 0], tokens[target, 1], tokens[target, 2] = start, end - start, form
        at = end + quotes


@njit(cache=True)
def walk(
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    nodes: NDArray[np.int64],
    edges: NDArray[np.int64],
    names: NDArray[np.uint8],
    max_nesting: int,
    good: NDArray[np.uint8],
    tokens: NDArray[np.int64],
) -> None:
    """Walk n JSON objects.

    Args:
        data: uint8[*], the objects, each followed by a NUL: no JSON holds one, so every loop ends
            there without asking for the end.
        starts: int64[n + 1], where each message begins.
        nodes: the nodes of the `Trie` of what to look for.
        edges: its edges.
        names: its names.
        max_nesting: deepest nesting of objects and arrays; the message itself is 1.
        good: uint8[n], receives 1 where the message is JSON for sure, else 0.
        tokens: int64[n, T, 3], receives the start, length and form of what stands at each target.
    """
    # Scratch: per open container its trie node or -1, its first hash, and array index or -1.
    stack = np.empty((max_nesting + 1, 3), np.int64)
    key_hashes = np.empty(MAX_KEYS, np.uint64)
    for row in range(len(good)):
        tokens[row, :, 2] = ABSENT
        end = _walk(
            data,
            starts[row],
            nodes,
            edges,
            names,
            max_nesting,
            stack,
            key_hashes,
            tokens[row],
        )
        good[row] = end == starts[row + 1] - 1
