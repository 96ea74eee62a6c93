"""Which version of a model is in charge, which one is tried in its shadow, and how that came.

One small file beside the versions of a model, `<repository>/<model>/rollout.json`: commands and the
job's guard write it, every worker reads it again each second, so a switch needs no restart.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flink_jobs.errors import EddyError

FILE = "rollout.json"
FORM = 1
KEPT_CHANGES = 100
KEPT_FORMER = 16  # versions formerly in charge, whose predictions rows may still hold
WARM_SHARE = 0.95  # of the latest events, whose memories must be warm before a model takes charge
FEWEST_SEEN = 1_000  # events by which that is judged: the share's standard error is then .007


@dataclass(frozen=True, slots=True)
class Change:
    """One step in a model's life.

    Attributes:
        generation: of the rollout that it led to.
        at: RFC 3339, UTC.
        action: "publish", "shadow", "promote" or "rollback".
        version: that was published, put in the shadow ("shadow" with 0 ends it) or put in charge.
        by: "user" or "guard".
        reason: in words, may be empty.
    """

    generation: int
    at: str
    action: str
    version: int
    by: str = "user"
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Rollout:
    """The versions in use; a version is a folder's number.

    Attributes:
        in_charge: decides.
        base: whose encoder the entities' first memory belongs to. It stays for the life of the
            state, so its folder must stay too.
        shadow: is asked as well and compared, and decides nothing; None for none.
        previous: was in charge before, and is gone back to; None where there is none.
        generation: grows with every change.
        history: the latest changes, oldest first.
        cold: the one in charge need not wait until its memories are warm.
        former: were in charge before, the latest first; what they predicted is still judged by
            their calibration and told under their names, while their folders are there.
        highest: number that a version was published under; none is given twice.
    """

    in_charge: int
    base: int
    shadow: int | None = None
    previous: int | None = None
    generation: int = 0
    history: tuple[Change, ...] = ()
    cold: bool = False
    former: tuple[int, ...] = ()
    highest: int = 0

    @property
    def in_use(self) -> frozenset[int]:
        """The versions whose folders the job reads and whose answers it may need."""
        named = (self.in_charge, self.base, self.shadow, self.previous)
        return frozenset(version for version in named if version is not None)

    @property
    def probation(self) -> Change | None:
        """The promotion on whose probation the version in charge is, for as long as it lasts.

        None after a rollback, and where another version was put in the shadow since.
        """
        none = (0, self.previous)  # in the shadow: neither takes the place of the previous version
        others = (c for c in reversed(self.history) if c.version not in none)
        last = next((c for c in others if c.action != "publish"), None)
        if self.previous is None or last is None or last.action != "promote":
            return None
        return last

    def changed(self, change: Change, **fields: int | bool | None) -> Rollout:
        """Return the rollout after `change`."""
        history = (*self.history, change)[-KEPT_CHANGES:]
        known: dict[str, Any] = dict(fields)
        after = replace(self, generation=change.generation, history=history, **known)
        left = (self.in_charge, *self.former)
        return replace(after, former=_latest(v for v in left if v != after.in_charge))


def _latest(versions: Iterable[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(versions))[:KEPT_FORMER]


def versions_in(root: Path) -> list[int]:
    """Return the numbers of the version folders in a model's folder, rising."""
    return sorted(int(path.name) for path in root.glob("[0-9]*") if path.name.isdigit())


def read_rollout(root: Path) -> Rollout:
    """Read the rollout of the model in folder `root`; without a file the newest is in charge.

    Raises:
        EddyError: the file cannot be read, or there is no version at all.
    """
    path = root / FILE
    try:
        return _parsed(json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        found = versions_in(root)
        if not found:
            raise EddyError(
                f"model {root.name}: expected a folder with a version's number in the model "
                "repository, found none; check triton.model_repository and triton.model_name"
            ) from None
        return Rollout(found[-1], found[-1])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EddyError(
            f"{root.name}/{FILE} cannot be read: {error}; restore it from {FILE}.before"
        ) from error


def _parsed(raw: Mapping[str, Any]) -> Rollout:
    if raw["form"] != FORM:
        raise ValueError(f"expected form {FORM}, found {raw['form']}")
    history = tuple(Change(**change) for change in raw["history"])
    fields = ("in_charge", "base", "shadow", "previous", "generation")
    cold = bool(raw.get("cold", False))
    was = [c.version for c in reversed(history) if c.action in ("promote", "rollback")]
    former = _latest(raw.get("former", (v for v in was if v != raw["in_charge"])))
    highest = raw.get("highest", max((c.version for c in history), default=0))
    named = {name: raw[name] for name in fields}
    return Rollout(**named, history=history, cold=cold, former=former, highest=highest)


def _write(root: Path, rollout: Rollout) -> None:
    path = root / FILE
    if path.exists():
        _put(root / f"{FILE}.before", path.read_bytes())
    _put(path, (json.dumps({"form": FORM} | asdict(rollout), indent=1) + "\n").encode())


def _put(path: Path, content: bytes) -> None:
    """Write a file whole, so that it survives a loss of power: its name as well as its content."""
    new = path.with_name(f"{path.name}.new")
    with new.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`: commands and guards must not overwrite each other's changes."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _change(root: Path, make: Callable[[Rollout, int], Rollout]) -> Rollout:
    with locked(root / f"{FILE}.lock"):
        before = read_rollout(root)
        after = make(before, before.generation + 1)
        if after is not before:
            _write(root, after)
    return after


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def check_known(root: Path, version: int) -> None:
    """Refuse a version that has no folder.

    Raises:
        EddyError: there is none; names those that are there.
    """
    found = versions_in(root)
    if version not in found:
        raise EddyError(
            f"model {root.name}: expected a version of {found}, found {version}; `eddy models list`"
        )


def begin_rollout(root: Path) -> Rollout:
    """Write down who is in charge before another version comes; a file that is there stays.

    Without the file the newest is in charge: a folder that comes would take over at once, unproved.
    """
    with locked(root / f"{FILE}.lock"):
        rollout = read_rollout(root)
        if not (root / FILE).exists():
            _write(root, rollout)
    return rollout


def note_published(root: Path, version: int) -> Rollout:
    """Note a version that has come after `begin_rollout`; who is in charge stays so."""

    def make(now: Rollout, generation: int) -> Rollout:
        change = Change(generation, _now(), "publish", version)
        return now.changed(change, highest=max(version, now.highest))

    return _change(root, make)


def put_in_shadow(root: Path, version: int | None) -> Rollout:
    """Let `version` be tried beside the one in charge; None ends it.

    Raises:
        EddyError: there is no such version, or it is in charge.
    """
    if version is not None:
        check_known(root, version)

    def make(now: Rollout, generation: int) -> Rollout:
        if version == now.in_charge:
            raise EddyError(f"version {version} is in charge; its shadow must be another one")
        if version == now.shadow:
            return now
        return now.changed(Change(generation, _now(), "shadow", version or 0), shadow=version)

    return _change(root, make)


def promote(root: Path, version: int, reason: str = "", cold: bool = False) -> Rollout:
    """Put `version` in charge; the one before is kept to go back to.

    With another encoder it takes charge once its memories are warm; at once if `cold`.

    Raises:
        EddyError: there is no such version.
    """
    check_known(root, version)

    def make(now: Rollout, generation: int) -> Rollout:
        if version == now.in_charge:
            return now
        return now.changed(
            Change(generation, _now(), "promote", version, "user", reason),
            in_charge=version,
            previous=now.in_charge,
            shadow=None if now.shadow == version else now.shadow,
            cold=cold,
        )

    return _change(root, make)


def roll_back(root: Path, by: str, reason: str, failed: int | None = None) -> Rollout:
    """Put the previous version in charge again; there is then none to go back to.

    So a guard that fails twice does not swing between two versions: it takes a promotion to arm it.

    Args:
        root: the model's folder.
        by: "user" or "guard".
        reason: in words.
        failed: the version that must still be in charge for this to be done; None for any.

    Raises:
        EddyError: there is no previous version.
    """

    def make(now: Rollout, generation: int) -> Rollout:
        if failed is not None and now.in_charge != failed:
            return now
        if now.previous is None:
            raise EddyError(
                f"model {root.name}: version {now.in_charge} is in charge and none was before it; "
                "`eddy models promote VERSION` puts another one in charge"
            )
        return now.changed(
            Change(generation, _now(), "rollback", now.previous, by, reason),
            in_charge=now.previous,
            previous=None,
            cold=False,
            shadow=None if now.shadow == now.previous else now.shadow,
        )

    return _change(root, make)
