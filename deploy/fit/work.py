"""The work of a fit under way, in a folder beside its result, so that a killed fit goes on.

`events` holds what was read (an encoded EventBatch), `read.json` what was counted, and `fits.jsonl`
one line for each entity that is done. `job.json` says whose work it is.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from deploy.fit.source import ReadEvents
from flink_jobs.errors import EddyError
from models.level_fit import LevelFit
from state.events import decode, encode

Key = tuple[str, int]  # kind, entity's hash


class Work:
    """The folder of one fit.

    Args:
        folder: where the work lies.
        job: what the work depends on; a folder with another one is not gone on with.
        resume: go on with what is there; else begin anew.
        what: the work is called in errors.

    Raises:
        EddyError: there is the work of another fit.
    """

    def __init__(
        self, folder: Path, job: Mapping[str, object], resume: bool, what: str = "fit"
    ) -> None:
        self.folder = folder
        if not resume:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        known = folder / "job.json"
        wanted = json.loads(json.dumps(job))
        if known.exists():
            found = json.loads(known.read_text())
            differ = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
            if differ:
                raise EddyError(
                    f"--resume: {folder} holds the work of another {what} ({', '.join(differ)} "
                    "differ); begin anew without --resume"
                )
        else:
            _write(known, json.dumps(wanted, indent=1).encode())
        self.fits, good = _read_fits(folder / "fits.jsonl")
        if (folder / "fits.jsonl").exists():
            with (folder / "fits.jsonl").open("r+b") as file:
                file.truncate(good)  # a line that the kill cut short
        self._file: TextIO | None = None

    def load_events(self) -> ReadEvents | None:
        """Return the events that were read already; None where that was not finished."""
        if not (self.folder / "read.json").exists():
            return None
        told = json.loads((self.folder / "read.json").read_text())
        told["rejected"] = Counter(told["rejected"])
        return ReadEvents(decode((self.folder / "events").read_bytes()), **told)

    def save_events(self, read: ReadEvents) -> None:
        """Keep what was read."""
        _write(self.folder / "events", encode(read.events))
        told = {
            "messages": read.messages,
            "rejected": dict(read.rejected),
            "dropped": read.dropped,
            "first_bad": read.first_bad,
        }
        _write(self.folder / "read.json", json.dumps(told).encode())  # last: it says that all is

    def events(self, read: Callable[[], ReadEvents]) -> ReadEvents:
        """Return the events that were read already, else those of `read`, which are kept.

        Raises:
            EddyError: of `read`; nothing is then kept.
        """
        found = self.load_events()
        if found is None:
            try:
                found = read()
            except EddyError:
                self.remove()
                raise
            self.save_events(found)
        return found

    def save_fit(self, key: Key, fit: LevelFit) -> None:
        """Keep the fit of one entity, at once."""
        if self._file is None:
            self._file = (self.folder / "fits.jsonl").open("a")
        self._file.write(json.dumps([*key, asdict(fit)]) + "\n")
        self._file.flush()
        self.fits[key] = fit

    def close(self) -> None:
        """Stop writing; the work stays for --resume."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        """Remove the folder: the result stands."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _read_fits(path: Path) -> tuple[dict[Key, LevelFit], int]:
    """Return the fits, and how many bytes of whole lines hold them."""
    fits: dict[Key, LevelFit] = {}
    good = 0
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        if not line.endswith(b"\n"):
            break
        kind, entity, fields = json.loads(line)
        for name in ("profile", "profile_var"):
            fields[name] = tuple(fields[name])
        fits[kind, entity] = LevelFit(**fields)
        good += len(line)
    return fits, good


def _write(path: Path, data: bytes) -> None:
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_bytes(data)
    unfinished.replace(path)
