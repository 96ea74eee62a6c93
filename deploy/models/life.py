"""The steps of a model's life: publish, shadow, promote, roll back, retire.

What a step decides is told as a `Done`, whose notes the command prints. Each step but the roll-back
holds one lock, so that two commands cannot publish under one number or retire what is promoted.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np

from deploy.models.folder import (
    Version,
    check_answers,
    check_folder,
    check_moments,
    read_card,
)
from deploy.models.report import Comparison
from deploy.models.server import (
    READY,
    ModelServer,
    ServerAwayError,
    ServerRefusedError,
    served_or_none,
    wait_until_gone,
)
from flink_jobs import rollout as rollouts
from flink_jobs.decide import SLOTS, slot_of
from flink_jobs.errors import EddyError
from flink_jobs.rollout import FEWEST_SEEN, WARM_SHARE, Rollout
from flink_jobs.settings import Settings

LOCK = ".life.lock"
# Runtimes of server and trainer may differ (TF32 on a GPU): the server's own check has the same.
SERVED_TOLERANCE = 1e-3
TIMED_REQUESTS = 20
SLOW = 2.0


@dataclass(frozen=True, slots=True)
class Done:
    """What a step led to.

    Attributes:
        rollout: after it.
        version: that it was about; None where none was.
        notes: what the user should know, in sentences.
    """

    rollout: Rollout
    version: int | None
    notes: list[str] = field(default_factory=list)


def model_root(settings: Settings) -> Path:
    """Return the model's folder in the repository.

    Raises:
        EddyError: there is none.
    """
    from flink_jobs import model_files

    root = model_files.model_root(settings)
    if not root.is_dir():
        raise EddyError(
            f"model repository: expected a folder {root}; check triton.model_repository and "
            "triton.model_name"
        )
    return root


def same_encoder(one: Path, other: Path) -> bool:
    """Say whether two versions' encoders have the same weights, so that they share memories."""
    with (
        np.load(one / "encoder.npz", allow_pickle=False) as a,
        np.load(other / "encoder.npz", allow_pickle=False) as b,
    ):
        return sorted(a.files) == sorted(b.files) and all(
            np.array_equal(a[name], b[name]) for name in a.files
        )


def publish(settings: Settings, folder: Path, server: ModelServer) -> Done:
    """Bring a version's folder into the repository and onto the server; who is in charge stays.

    Args:
        settings: of the job.
        folder: as `eddy train` writes it.
        server: loads it and answers a sample.

    Raises:
        RefusedModelError: something is wrong with the folder, or with what the server answers.
        ServerAwayError: the server does not answer; nothing was published.
        ServerRefusedError: it does not load the version; the folder is removed again.
    """
    from flink_jobs.model_files import load_encoder

    root = model_root(settings)
    version = check_folder(folder)
    with rollouts.locked(root / LOCK):
        before = rollouts.read_rollout(root)
        in_charge = root / str(before.in_charge)
        try:
            encoder = load_encoder(folder)
        except (OSError, ValueError, KeyError) as error:
            raise EddyError(f"{folder / 'encoder.npz'}: {error}") from None
        check_moments(folder, encoder, settings, root / str(before.base))
        notes = _about_others(root, version, before)
        served = server.served()
        if not server.keeps_all_versions():
            raise EddyError(
                f"Triton serves {root.name} with a version policy that would drop version "
                f"{before.in_charge} for a new one; write `version_policy: {{ all {{ }} }}` into "
                f"{root.name}/configs/*.pbtxt and restart Triton"
            )
        # From here on a folder that comes takes nothing over.
        before = rollouts.begin_rollout(root)
        number = _next_number(root, before)
        _copy(version.folder, root, number, in_charge)
        try:
            _load(server, root, number)
            notes += _try_out(server, number, version, before.in_charge, served, settings)
        except BaseException:
            _take_back(server, root, number)
            raise
        return Done(rollouts.note_published(root, number), number, notes)


def _about_others(root: Path, version: Version, now: Rollout) -> list[str]:
    notes = []
    twins = [
        n
        for n in rollouts.versions_in(root)
        if _weights(root / str(n)) == version.weights and version.weights
    ]
    if twins:
        notes.append(f"version {twins[-1]} has the same weights ({version.weights})")
    if not same_encoder(version.folder, root / str(now.in_charge)):
        notes.append(
            "it has another encoder than the version in charge: in shadow its memories will be "
            "built beside the old ones until they are warm"
        )
    return notes


def _weights(folder: Path) -> str:
    try:
        return str(read_card(folder)["model_version"])
    except EddyError:
        return ""


def _next_number(root: Path, now: Rollout) -> int:
    """Give a number that no version ever had: reports and alerts name versions by it.

    Rows and log name versions by a slot, of which there are 255: one whose slot a version has that
    they may still name is passed over.

    Raises:
        EddyError: all slots are taken.
    """
    there = rollouts.versions_in(root)
    taken = {slot_of(version) for version in (*there, *now.in_use, *now.former)}
    if len(taken) == SLOTS:
        raise EddyError(
            f"model {root.name}: expected fewer than {SLOTS} versions that rows of the state may "
            f"name, found {len(there)} folders; `eddy models retire` those that nobody needs"
        )
    number = max(*there, now.highest, 0) + 1
    while slot_of(number) in taken:
        number += 1
    return number


def _copy(folder: Path, root: Path, number: int, in_charge: Path) -> None:
    """Let the whole folder appear in one step: neither Triton nor a worker sees a part of it."""
    hidden = root / f".publish-{number}"
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir()
    try:
        for path in sorted(folder.iterdir()):
            if path.is_file() and not path.name.startswith("."):
                shutil.copyfile(path, hidden / path.name)
        if not (hidden / "model.py").exists():
            shutil.copyfile(in_charge / "model.py", hidden / "model.py")
        for path in hidden.iterdir():
            with path.open("rb") as written:
                os.fsync(written.fileno())
        hidden.rename(root / str(number))
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _load(server: ModelServer, root: Path, number: int) -> None:
    try:
        server.load()
    except ServerRefusedError as error:
        raise ServerRefusedError(
            f"Triton does not load it; nothing was published. In Triton's words: {error}"
        ) from None
    state = server.served().get(number)
    if state != READY:
        raise ServerRefusedError(
            f"Triton loaded {root.name} anew and has no version {number} ({state or 'not there'}): "
            f"does it read the repository {root.parent}? Nothing was published"
        )


def _try_out(
    server: ModelServer,
    number: int,
    version: Version,
    in_charge: int,
    served: dict[int, str],
    settings: Settings,
) -> list[str]:
    """Ask the loaded version a canary and what training knows the answers to; time it."""
    from flink_jobs.triton_wire import canary_rows
    from models.tpp import spec

    canary = server.ask(number, canary_rows())
    if canary.shape != (1, spec.OUTPUT) or not np.isfinite(canary).all():
        raise ServerRefusedError(
            f"version {number} on Triton: expected a finite y [1, {spec.OUTPUT}] for a canary, "
            f"found {list(canary.shape)}; nothing was published"
        )
    tolerance = max(version.tolerance, SERVED_TOLERANCE)
    check_answers(
        f"version {number} on Triton", server.ask(number, version.x), version.y, tolerance
    )
    mine_ms = _best_ms(server, number, version)
    if mine_ms > settings.triton.timeout_ms:
        raise ServerRefusedError(
            f"version {number} on Triton: expected an answer to {len(version.x)} rows within "
            f"triton.timeout_ms = {settings.triton.timeout_ms}, found {mine_ms:,.0f} ms at best: "
            "the job would never hear it; nothing was published"
        )
    if served.get(in_charge) != READY:
        return [f"version {in_charge}, in charge, is not served by Triton"]
    theirs_ms = _best_ms(server, in_charge, version)
    if mine_ms > SLOW * theirs_ms:
        took = f"{mine_ms:.1f} ms for {len(version.x)} rows"
        return [f"it is slow: {took}, where version {in_charge} takes {theirs_ms:.1f} ms"]
    return []


def _best_ms(server: ModelServer, number: int, version: Version) -> float:
    """Time a request; the best of some, for the machine is busy."""
    best = np.inf
    began = time.perf_counter()
    for _ in range(TIMED_REQUESTS):
        start = time.perf_counter()
        server.ask(number, version.x)
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() - began > 2.0:  # slow indeed: more would not change the finding
            break
    return 1e3 * float(best)


def _take_back(server: ModelServer, root: Path, number: int) -> None:
    """Remove a version that was not accepted; the server forgets it if it can be told."""
    _remove(root, number)
    try:
        if server.served().get(number) == READY:
            server.load()
            wait_until_gone(server, number)  # the next one published has its number
    except (ServerAwayError, ServerRefusedError):
        # It is asked for by nobody, and gone from the repository.
        return


def _remove(root: Path, number: int) -> None:
    hidden = root / f".removed-{number}"
    shutil.rmtree(hidden, ignore_errors=True)
    (root / str(number)).rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def shadow(
    settings: Settings, version: int | None, server: ModelServer, force: bool = False
) -> Done:
    """Let a version be asked beside the one in charge and compared; None ends it.

    Args:
        settings: of the job.
        version: to try.
        server: must serve it.
        force: also while the version in charge is on probation.

    Raises:
        EddyError: there is no such version, it is in charge, Triton does not serve it, or the
            version in charge is on probation.
    """
    root = model_root(settings)
    with rollouts.locked(root / LOCK):
        notes = _pinned(settings)
        now = rollouts.read_rollout(root)
        if version is not None:
            _check_served(server, root, version)
            notes += _on_probation(settings, now, version, force)
            if not same_encoder(root / str(version), root / str(now.base)):
                notes.append(
                    "it has another encoder: its memories begin now, and what it says counts once "
                    "they are warm (`eddy models compare`)"
                )
        return Done(rollouts.put_in_shadow(root, version), version, notes)


def _on_probation(settings: Settings, now: Rollout, version: int, force: bool) -> list[str]:
    """Refuse another shadow while the previous version has its place, unless by force."""
    promotion = now.probation
    if promotion is None or not settings.triton.guard or version in (now.in_charge, now.previous):
        return []
    begun = datetime.fromisoformat(promotion.at).timestamp()
    left_s = begun + settings.triton.probation_s - time.time()
    if left_s <= 0.0:
        return []
    if not force:
        raise EddyError(
            f"version {now.in_charge} is on probation for another {left_s:,.0f} s at least: "
            f"version {now.previous} is in its shadow, and the guard compares the two; wait, or "
            "take its place with --force"
        )
    ended = f"the probation of version {now.in_charge} ends"
    return [f"{ended}: from here on the guard watches errors alone"]


def _pinned(settings: Settings) -> list[str]:
    pinned = settings.triton.model_version
    if not pinned:
        return []
    return [f"triton.model_version = {pinned}: a job with this setting follows no change"]


def _check_served(server: ModelServer, root: Path, version: int) -> None:
    rollouts.check_known(root, version)
    state = server.served().get(version)
    if state != READY:
        raise EddyError(
            f"version {version}: expected Triton to serve it, found "
            f"{state or 'that Triton does not know it'}; restart Triton (`eddy up`), or publish "
            "the version again"
        )


def promote(
    settings: Settings,
    version: int,
    server: ModelServer,
    compared: Comparison | None,
    reason: str = "",
    force: bool = False,
) -> Done:
    """Put a version in charge; the job's workers switch within a second, without a restart.

    Args:
        settings: of the job.
        version: to put in charge.
        server: must serve it.
        compared: how it did in the shadow of the version in charge; None where it never was.
        reason: in words.
        force: also with memories that are not warm.

    Raises:
        EddyError: there is no such version, Triton does not serve it, or its memories are cold.
    """
    root = model_root(settings)
    with rollouts.locked(root / LOCK):
        _check_served(server, root, version)
        now = rollouts.read_rollout(root)
        if version == now.in_charge:
            return Done(now, version, [f"version {version} is in charge already"])
        notes = _pinned(settings)
        known = {now.in_charge, now.base}
        own = not any(same_encoder(root / str(version), root / str(n)) for n in known)
        seen = 0 if compared is None else compared.total.events
        if own and (compared is None or seen < FEWEST_SEEN or compared.warm < WARM_SHARE):
            found = "it never was in shadow"
            if compared is not None:
                found = f"found {compared.warm:.1%} of {seen:,} (at least {FEWEST_SEEN:,} count)"
            text = (
                f"version {version} has another encoder: expected the memories of "
                f"{WARM_SHARE:.0%} of its events to be warm, {found}"
            )
            if not force:
                raise EddyError(
                    f"{text}; let it run in shadow until then (`eddy models shadow {version}`, "
                    "`eddy models compare`), or promote it cold with --force"
                )
            notes.append(f"{text}: what it says is poor until they are")
        if compared is None:
            notes.append(
                f"version {version} was never compared in the shadow of version {now.in_charge}: "
                "`eddy models shadow` and `eddy models compare` show what a promotion changes"
            )
        elif compared.verdict == "worse":
            notes.append(f"in shadow it was worse than version {now.in_charge}")
        return Done(rollouts.promote(root, version, reason, force), version, notes)


def roll_back(settings: Settings, reason: str, server: ModelServer) -> Done:
    """Put the version in charge again that was so before; works without Triton as well.

    Raises:
        EddyError: there is none to go back to.
    """
    root = model_root(settings)
    after = rollouts.roll_back(root, "user", reason)
    served = served_or_none(server)
    notes = _pinned(settings)
    if served is None:
        notes.append("Triton does not answer: whether it serves the version is not known")
    elif served.get(after.in_charge) != READY:
        notes.append(f"Triton does not serve version {after.in_charge}: restart it (`eddy up`)")
    return Done(after, after.in_charge, notes)


def retire(settings: Settings, version: int, server: ModelServer, force: bool = False) -> Done:
    """Unload a version and remove its folder.

    Args:
        settings: of the job.
        version: to remove.
        server: told to unload it.
        force: also one that was in charge.

    Raises:
        EddyError: there is no such version, it is in use, or it was in charge.
    """
    root = model_root(settings)
    with rollouts.locked(root / LOCK):
        rollouts.check_known(root, version)
        now = rollouts.begin_rollout(root)
        if version in now.in_use:
            raise EddyError(
                f"version {version} is in use ({', '.join(roles(now, version))}): in charge, "
                "shadow, previous and base must stay"
            )
        notes = []
        if version in now.former:
            text = (
                f"version {version} was in charge: until its next event an entity may hold what it "
                "predicted, which without the folder is judged by the base's tails and told without"
                " a name; and where the version in charge still waits, it may be the one that "
                "answers"
            )
            if not force:
                raise EddyError(f"{text}. --force removes it all the same")
            notes.append(text)
        _remove(root, version)
        try:
            if version in server.served():
                server.load()
                if not wait_until_gone(server, version):
                    notes.append(f"Triton still serves version {version}; it drops it at a restart")
        except (ServerAwayError, ServerRefusedError) as error:
            notes.append(f"the folder is gone; Triton was not told: {error}")
        return Done(now, version, notes)


def roles(now: Rollout, version: int) -> list[str]:
    """Name what a version is: in charge, shadow, previous, base."""
    named = (
        ("in charge", now.in_charge),
        ("shadow", now.shadow),
        ("previous", now.previous),
        ("base", now.base),
    )
    return [name for name, number in named if number == version]
