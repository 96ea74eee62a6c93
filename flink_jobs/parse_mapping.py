"""Where an event's fields stand in a message: the settings' JSON Pointers, compiled.

Both readers of messages work from the same `EventMapping`: the exact one, row by row, follows the
tokens of each pointer (`parse_message`); the fast one walks a trie of them (`parse_columns`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flink_jobs.settings import EventSettings

MAX_KINDS = 8  # EventBatch.owned has a bit for each
MAX_MARKS = 255  # EventBatch.mark is a byte, and 255 means unknown
MAX_NESTING = 512  # the exact reader recurses, and Python stops at 1,000 calls
FNV_OFFSET = 0xCBF29CE484222325
FNV_PRIME = 0x100000001B3

_BAD_ESCAPE = re.compile(r"~(?![01])")
_ARRAY_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")


class Trie(NamedTuple):
    """The pointers' tokens as a tree of T targets, N nodes and C edges; node 0 is the root.

    Attributes:
        nodes: int64[N + 1, 2], the target that ends at the node or -1; its first edge. Its edges
            go up to the first of the next node.
        edges: int64[C + 1, 4], where the edge leads; its token as an array index or -1; the
            FNV-1a hash of its token, to compare before the bytes; where its token begins in
            `names`. Its token goes up to the beginning of the next.
        names: uint8[*], the tokens in UTF-8, one after the other.
    """

    nodes: NDArray[np.int64]
    edges: NDArray[np.int64]
    names: NDArray[np.uint8]


class Roles(NamedTuple):
    """Which target holds what, and the limits on it, in the form that the compiled reader takes.

    Attributes:
        time, event_id: target of the event's time and identifier.
        value, mark: target, or -1 where the settings name none.
        value_min, value_max: limits of the value, both inclusive.
        value_integer: whether the value must be a whole number.
        max_id_bytes: longest identifier, in bytes of UTF-8.
        max_nesting: deepest nesting of objects and arrays; the message itself is 1.
        max_future_ms: how far an event's time may lie after its Kafka record's.
    """

    time: int
    event_id: int
    value: int
    mark: int
    value_min: float
    value_max: float
    value_integer: bool
    max_id_bytes: int
    max_nesting: int
    max_future_ms: int


@dataclass(frozen=True, eq=False)
class EventMapping:
    """The compiled settings.

    Attributes:
        settings: what was compiled.
        targets: T distinct pointers, each as its tokens.
        tokens: all tokens of all pointers.
        roles: which target holds what, and the limits on it.
        entities: int64[K], target of each entity kind.
        mark_starts: int64[M + 1], where each mark begins in `marks`.
        marks: uint8[*], the marks in UTF-8, one after the other.
        trie: the targets as a tree.
    """

    settings: EventSettings
    targets: tuple[tuple[str, ...], ...]
    tokens: frozenset[str]
    roles: Roles
    entities: NDArray[np.int64]
    mark_starts: NDArray[np.int64]
    marks: NDArray[np.uint8]
    trie: Trie


def pointer_tokens(pointer: str) -> tuple[str, ...]:
    """Split a JSON Pointer (RFC 6901) into its unescaped reference tokens.

    Raises:
        ValueError: no slash at the front (the whole message is no field), or a `~` that is
            neither `~0` nor `~1`.

    >>> pointer_tokens("/sensor/a~1b/0")
    ('sensor', 'a/b', '0')
    """
    if not pointer.startswith("/"):
        raise ValueError(f"expected a JSON Pointer such as /user/id, found {pointer!r}")
    if _BAD_ESCAPE.search(pointer):
        raise ValueError(f"expected ~0 for ~ and ~1 for / in the JSON Pointer {pointer!r}")
    return tuple(t.replace("~1", "/").replace("~0", "~") for t in pointer[1:].split("/"))


def fnv1a(data: bytes) -> int:
    """Hash `data` to 64 bits as the compiled reader hashes the keys that it meets."""
    value = FNV_OFFSET
    for byte in data:
        value = (value ^ byte) * FNV_PRIME & 0xFFFFFFFFFFFFFFFF
    return value


def array_index(token: str) -> int:
    """Return the array index that `token` writes (RFC 6901, section 4), or -1."""
    return int(token) if _ARRAY_INDEX.fullmatch(token) else -1


def _starts(strings: list[bytes]) -> NDArray[np.int64]:
    return np.cumsum([0, *map(len, strings)]).astype(np.int64)


def _trie(targets: tuple[tuple[str, ...], ...]) -> Trie:
    children: list[dict[str, int]] = [{}]
    node_target = [-1]
    for target, tokens in enumerate(targets):
        node = 0
        for token in tokens:
            if token not in children[node]:
                children[node][token] = len(children)
                children.append({})
                node_target.append(-1)
            node = children[node][token]
        node_target[node] = target
    first_edges = np.cumsum([0, *map(len, children)])
    edges = [(token.encode(), token, node) for of in children for token, node in of.items()]
    starts = _starts([data for data, _, _ in edges]).tolist()
    rows = [
        (node, array_index(token), fnv1a(data), start)
        for (data, token, node), start in zip(edges, starts[:-1], strict=True)
    ]
    # The hashes go through uint64, for half of them have the sign bit of an int64 set.
    return Trie(
        nodes=np.column_stack([np.array([*node_target, -1]), first_edges]).astype(np.int64),
        edges=np.array(
            [[row[0], row[1] % 2**64, row[2], row[3]] for row in rows] + [[0, 0, 0, starts[-1]]],
            np.uint64,
        ).view(np.int64),
        names=np.frombuffer(b"".join(data for data, _, _ in edges), np.uint8),
    )


def _check(settings: EventSettings) -> None:
    kinds = [kind for kind, _ in settings.entities]
    if not 1 <= len(kinds) <= MAX_KINDS or len(set(kinds)) != len(kinds):
        raise ValueError(f"expected 1 to {MAX_KINDS} different entity kinds, found {kinds}")
    if len(settings.marks) > MAX_MARKS or len(set(settings.marks)) != len(settings.marks):
        raise ValueError(f"expected at most {MAX_MARKS} marks, each once: {settings.marks}")
    if not 1 <= settings.max_nesting <= MAX_NESTING:
        raise ValueError(f"expected max_nesting in 1..{MAX_NESTING}, found {settings.max_nesting}")
    if settings.max_message_bytes < 1 or settings.max_id_bytes < 1 or settings.max_future_ms < 0:
        raise ValueError("expected max_message_bytes, max_id_bytes >= 1 and max_future_ms >= 0")
    if not settings.value_min <= settings.value_max:
        raise ValueError(
            f"expected value_min <= value_max, found {settings.value_min}, {settings.value_max}"
        )


@lru_cache(maxsize=16)
def compile_mapping(settings: EventSettings) -> EventMapping:
    """Compile `settings` (hashable) once; later calls return the same mapping.

    Raises:
        ValueError: a pointer, limit, mark or entity kind cannot be used.
    """
    _check(settings)
    target_of: dict[tuple[str, ...], int] = {}

    def target(pointer: str | None) -> int:
        if pointer is None:
            return -1
        return target_of.setdefault(pointer_tokens(pointer), len(target_of))

    marks = [mark.encode() for mark in settings.marks]
    entities = [target(pointer) for _, pointer in settings.entities]
    roles = Roles(
        time=target(settings.time_pointer),
        event_id=target(settings.id_pointer),
        value=target(settings.value_pointer),
        mark=target(settings.mark_pointer),
        value_min=float(settings.value_min),
        value_max=float(settings.value_max),
        value_integer=bool(settings.value_integer),
        max_id_bytes=settings.max_id_bytes,
        max_nesting=settings.max_nesting,
        max_future_ms=settings.max_future_ms,
    )
    targets = tuple(target_of)
    return EventMapping(
        settings=settings,
        targets=targets,
        tokens=frozenset(token for tokens in targets for token in tokens),
        roles=roles,
        entities=np.array(entities, np.int64),
        mark_starts=_starts(marks),
        marks=np.frombuffer(b"".join(marks), np.uint8),
        trie=_trie(targets),
    )
