"""The versions of the intensity model that a worker asks, as the rollout file wants them.

The file is looked at each second. A version takes charge once it has answered a canary and, where
its encoder is another one, its memories are warm; until then the old one goes on, so a switch costs
no request. The guard watches a promoted version and goes back by itself.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from flink_jobs.errors import EddyError
from flink_jobs.intensity import TritonClient
from flink_jobs.intensity_protocol import (
    IncompatibleModelError,
    ModelUnavailableError,
    NullClient,
)
from flink_jobs.kind_model import KindModel
from flink_jobs.memories import Memory, encoder_digest
from flink_jobs.model_events import ModelEvent
from flink_jobs.model_files import current_rollout, load_version, model_root
from flink_jobs.model_watch import PooledClient, Watch
from flink_jobs.rollout import FEWEST_SEEN, FILE, WARM_SHARE, Change, roll_back
from flink_jobs.serving import NOBODY, ServedModel, Serving
from flink_jobs.settings import Settings, TritonSettings
from flink_jobs.trial import Trial

ANSWER_S = 15.0  # within which a version that is put in charge must answer a canary
REST_S = 30.0  # a version that is no longer in use may still have requests under way
NO_FILE = (0, 0, 0)
_LOG = logging.getLogger(__name__)


def connect(settings: TritonSettings) -> PooledClient:
    """Connect to one version on Triton.

    A server that is away is met later.

    Raises:
        IncompatibleModelError: the model does not fit.
    """
    client = TritonClient(settings)
    try:
        client.check_model()
    except ModelUnavailableError as error:
        _LOG.warning("degraded from the start: %s", error)
    except IncompatibleModelError:
        client.close()
        raise
    return client


def _named(model: ServedModel) -> tuple[int, str] | None:
    return (model.version, model.named) if model.version else None


class ModelPool:
    """Keeps a client for each version in use, and says which of them answers.

    Args:
        settings: of the job.
        models: by entity kind, as the base has them.
        connect_first: connects to the version in charge at the start, and asks it.
        connect_later: connects to further versions, in the background.
        clock: epoch seconds.

    Attributes:
        serving: who answers now.
        watch: counts how.
    """

    def __init__(
        self,
        settings: Settings,
        models: Sequence[KindModel],
        connect_first: Callable[[TritonSettings], PooledClient] = connect,
        connect_later: Callable[[TritonSettings], PooledClient] = TritonClient,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._models = models
        self._root = model_root(settings)
        self._clock = clock
        self._connect = connect_later
        self._stamp = self._stat()
        self._rollout = current_rollout(settings)
        self._base = encoder_digest(models[0].advance.encoder)
        self._broken: dict[int, str] = {}
        self._read: dict[int, ServedModel] = {}
        self._remembered: dict[int, ServedModel] = {}
        self._clients: dict[int, PooledClient] = {}
        self._unused_since: dict[int, float] = {}
        self.watch = Watch(self._clients)
        self._asked_since: dict[int, float] = {}
        self._told: set[tuple[str, int, int]] = set()  # what was said of a version, by generation
        self._awaited: int | None = None  # should be in charge since the start, and could not
        self._events: list[ModelEvent] = []  # what the start has to tell
        self._in_charge_since: float | None = None  # None for since before the start
        self._warmed: set[str] = set()  # encoders whose memories were found warm
        charge = self._begin(connect_first)
        self.serving = Serving(charge)
        self.serving = self._serving(charge, self._shadow(charge))

    @property
    def generation(self) -> int:
        """Of the rollout that is followed."""
        return self._rollout.generation

    def close(self) -> None:
        """Give up what is under way at every version."""
        self.watch.close()
        for client in self._clients.values():
            client.close()

    # -- the start ---------------------------------------------------------------------------

    def _begin(self, connect_first: Callable[[TritonSettings], PooledClient]) -> ServedModel:
        """Return the version in charge if it is sound and answers, else the one to stand in.

        Where none answers it is the server that is away, and the first that is sound is waited for.
        """
        version, why = self._rollout.in_charge, ""
        first: ServedModel | None = None
        try:
            first = self._served(version, connect_first)
            if first.client.state == "closed":
                return first
            why = f"it does not answer: {self._clients[version].last_error or 'no canary came'}"
        except (EddyError, IncompatibleModelError) as error:
            why = str(error)
        other = self._stand_in(answers=first is not None)
        if first is not None and other is NOBODY:
            return first
        self._awaited = version
        self._note_refused(version, why, other, self._events)
        return other

    def _stand_in(
        self, warm: Mapping[str, float] | None = None, answers: bool = False
    ) -> ServedModel:
        """Return the previous version, else the base, while the one in charge cannot be.

        Args:
            warm: as in `refresh`; a version whose memories are cold does not stand in.
            answers: take only one that answers.
        """
        rollout, sound = self._rollout, []
        for version in dict.fromkeys((rollout.previous, rollout.base)):
            if version is None or version == rollout.in_charge:
                continue
            try:
                found = self._served(version)
            except EddyError as error:
                if version not in self._broken:
                    _LOG.error("version %d cannot stand in: %s", version, error)
                self._broken[version] = str(error)
                continue
            if self._cold(found, warm or {}):
                continue
            if self._clients[version].health():
                self._clients[version].poll()
                return found
            sound.append(found)
        return NOBODY if answers or not sound else sound[0]

    # -- following the file ------------------------------------------------------------------

    def refresh(self, warm: Mapping[str, float]) -> list[ModelEvent]:
        """Follow the rollout file; `serving` may be another one afterwards.

        Args:
            warm: by encoder, the share of the latest events whose memories are warm; without those
                of too few events.

        Returns:
            What is worth telling.
        """
        events, self._events = self._events, []
        self._warmed |= {digest for digest, share in warm.items() if share >= WARM_SHARE}
        stamp = self._stat()
        # A file that is gone says nothing: the newest version would be taken for the base.
        gone = stamp == NO_FILE
        if stamp != self._stamp and not gone and not self._settings.triton.model_version:
            self._stamp = stamp
            try:
                self._rollout = current_rollout(self._settings)
                self._broken.clear()
                self._asked_since.clear()
            except EddyError as error:
                _LOG.error("the rollout is not followed: %s", error)
        charge = self.serving.in_charge
        if self._rollout.in_charge != self._awaited:
            self._awaited = None
        if self._rollout.in_charge != charge.version:
            charge = self._candidate(charge, warm, events)
        elif self._cold(charge, warm):
            # After a start: what took charge while the job ran was warm.
            wanted, charge = charge, self._stand_in(warm)
            self._awaited = wanted.version
            self._tell_waiting(wanted, charge, warm, events)
        if charge is NOBODY:
            charge = self._stand_in(warm)
        shadow = self._shadow(charge)
        if (charge.version, shadow and shadow.version) != (
            self.serving.in_charge.version,
            self.serving.shadow and self.serving.shadow.version,
        ):
            self._switch(charge, shadow, events)
        self._rest()
        return events

    def _candidate(
        self, charge: ServedModel, warm: Mapping[str, float], events: list[ModelEvent]
    ) -> ServedModel:
        """Return the version that is wanted in charge if it can be, else the one that is."""
        version = self._rollout.in_charge
        try:
            wanted = self._served(version)
        except EddyError as error:
            self._refuse(version, str(error), events)
            return charge
        client = self._clients[version]
        client.poll()
        since = self._asked_since.setdefault(version, self._clock())
        if client.state != "closed":
            if self._clock() - since > ANSWER_S and charge.client.state == "closed":
                why = f"it does not answer: {client.last_error or 'no answer to a canary'}"
                self._refuse(version, why, events)
            return charge
        share = 1.0 if wanted.memory is None else warm.get(wanted.memory.digest, 0.0)
        if not share >= WARM_SHARE and not self._rollout.cold:
            self._tell_waiting(wanted, charge, warm, events)
            return charge
        return wanted

    def _cold(self, model: ServedModel, warm: Mapping[str, float]) -> bool:
        """Return True if the memories that `model` reads are known to be cold, and never were warm.

        A version in charge is asked this after a start, when the state may lack them.
        """
        if model.memory is None or model.memory.digest in self._warmed or self._rollout.cold:
            return False
        return warm.get(model.memory.digest, 1.0) < WARM_SHARE

    def _tell_waiting(
        self,
        wanted: ServedModel,
        charge: ServedModel,
        warm: Mapping[str, float],
        events: list[ModelEvent],
    ) -> None:
        found = warm.get(wanted.memory.digest) if wanted.memory else 1.0
        why = f"its memories are warm for {found or 0.0:.0%} of the latest events"
        if found is None:
            why = f"fewer than {FEWEST_SEEN:,} events were seen since its memories began"
        self._tell("waiting", wanted, charge, f"{why}, {WARM_SHARE:.0%} are needed", events)

    def _switch(
        self, charge: ServedModel, shadow: ServedModel | None, events: list[ModelEvent]
    ) -> None:
        before = self.serving
        self.serving = self._serving(charge, shadow)
        self.watch.begin()
        if charge.version == before.in_charge.version:
            return
        self._in_charge_since = self._clock()
        if charge.version != self._rollout.in_charge:
            _LOG.warning("version %d stands in", charge.version)
        elif charge.version == self._awaited:
            self._awaited = None
            self._tell("in_charge", charge, before.in_charge, "it can be in charge again", events)
        else:
            last = self._rollout.history[-1] if self._rollout.history else None
            back = last is not None and last.action == "rollback"
            reason = last.reason if last is not None else ""
            kind = "rolled_back" if back else "in_charge"
            self._tell(kind, charge, before.in_charge, reason, events)

    def _refuse(self, version: int, why: str, events: list[ModelEvent]) -> None:
        """Tell that a version cannot take charge, and leave the one before there."""
        other = self.serving.in_charge
        self._note_refused(version, why, other, events)
        # What should be in charge since the start may come back: it is tried again and again.
        if self._rollout.previous == other.version and version != self._awaited:
            self._go_back(version, why)

    def _note_refused(
        self, version: int, why: str, other: ServedModel, events: list[ModelEvent]
    ) -> None:
        key = ("refused", version, self._rollout.generation)
        if key not in self._told:
            self._told.add(key)
            events.append(ModelEvent("refused", version, "", _named(other), why))
            stands_in = f"version {other.version} stands in" if other.version else "none stands in"
            _LOG.error("version %d is refused, %s: %s", version, stands_in, why)

    def _tell(
        self,
        kind: str,
        model: ServedModel,
        other: ServedModel,
        reason: str,
        events: list[ModelEvent],
    ) -> None:
        key = (kind, model.version, self._rollout.generation)
        if key not in self._told:
            self._told.add(key)
            events.append(ModelEvent(kind, model.version, model.named, _named(other), reason))
            _LOG.warning("version %d: %s %s", model.version, kind.replace("_", " "), reason)

    def _shadow(self, charge: ServedModel) -> ServedModel | None:
        """Return who is asked in the shadow: whoever waits, the previous one, or as wanted."""
        rollout = self._rollout
        now, wanted = charge.version, rollout.shadow
        if now != rollout.in_charge:
            wanted = rollout.in_charge
        elif self._on_probation(now):
            wanted = rollout.previous
        if wanted is None or wanted == now or wanted in self._broken:
            return None
        try:
            found = self._served(wanted)
        except EddyError as error:
            self._broken[wanted] = str(error)
            _LOG.error("no shadow: %s", error)
            return None
        self._clients[wanted].poll()
        return found

    def _on_probation(self, charge: int) -> bool:
        """Return True while `charge` took charge not long ago; after a start, was promoted."""
        promotion = self._rollout.probation
        if not self._settings.triton.guard or promotion is None:
            return False
        if charge != self.serving.in_charge.version:
            return self._settings.triton.probation_s > 0  # it is about to
        begun = self._in_charge_since or datetime.fromisoformat(promotion.at).timestamp()
        return self._clock() < begun + self._settings.triton.probation_s

    # -- versions ----------------------------------------------------------------------------

    def _triton(self, version: int) -> TritonSettings:
        return replace(self._settings.triton, model_version=str(version))

    def _served(
        self, version: int, connect: Callable[[TritonSettings], PooledClient] | None = None
    ) -> ServedModel:
        """Read a version and connect to it.

        Raises:
            EddyError: its folder does not serve this job.
        """
        if version in self._read and version in self._clients:
            return self._read[version]
        of_base = version == self._rollout.base
        read = load_version(self._settings, version, () if of_base else self._models)
        if version not in self._clients:
            self._clients[version] = (connect or self._connect)(self._triton(version))
        digest = encoder_digest(read.encoder)
        memory = None if digest == self._base else Memory(digest, read.encoder)
        prior = None if of_base else read.prior
        found = ServedModel(version, self._clients[version], read.weights, memory, prior)
        self._read[version] = found
        self._broken.pop(version, None)
        return found

    def _serving(self, charge: ServedModel, shadow: ServedModel | None) -> Serving:
        known = []
        for version in sorted(self._rollout.in_use):
            if version in self._broken or version in (charge.version, shadow and shadow.version):
                continue
            try:
                known.append(self._served(version))
            except EddyError as error:
                self._broken[version] = str(error)
        known += [model for version in self._rollout.former for model in self._former(version)]
        return Serving(charge, shadow, tuple(known), self._settings.triton.model_name)

    def _former(self, version: int) -> list[ServedModel]:
        """Read a version that is asked no more, for its name and the tails of its calibration."""
        if version in self._rollout.in_use or version in self._broken:
            return []
        if version not in self._remembered:
            try:
                read = load_version(self._settings, version, self._models)
            except EddyError as error:
                self._broken[version] = str(error)
                return []
            found = ServedModel(version, NullClient(), read.weights, None, read.prior)
            self._remembered[version] = found
        return [self._remembered[version]]

    def _rest(self) -> None:
        """Close the clients of versions that nobody has used for a while."""
        asked = (self.serving.in_charge, self.serving.shadow)
        used = {model.version for model in asked if model is not None} | self._rollout.in_use
        for version in list(self._clients):
            if version in used:
                self._unused_since.pop(version, None)
            elif self._clock() - self._unused_since.setdefault(version, self._clock()) > REST_S:
                self._clients.pop(version).close()
                self._read.pop(version, None)
                self._unused_since.pop(version)

    def _stat(self) -> tuple[int, int, int]:
        try:
            found = (self._root / FILE).stat()
        except OSError:
            return NO_FILE
        return found.st_mtime_ns, found.st_ino, found.st_size

    # -- the guard ---------------------------------------------------------------------------

    def guard(self, trials: Sequence[Trial]) -> None:
        """Go back to the previous version if the one in charge has failed.

        Args:
            trials: by shard.
        """
        serving, rollout = self.serving, self._rollout
        charge, previous = serving.in_charge, rollout.previous
        if not self._settings.triton.guard or previous is None:
            return
        if charge.version != rollout.in_charge or previous not in self._clients:
            return
        mine = None
        if serving.shadow is not None and serving.shadow.version == previous:
            pair = (charge.version, previous)
            mine = [t for t in trials if (t.in_charge.version, t.shadow.version) == pair]
        why = self.watch.look(charge.version, previous, mine)
        if why:
            self._go_back(charge.version, why)

    def _go_back(self, version: int, why: str) -> None:
        try:
            self._rollout = roll_back(self._root, "guard", why, version)
            self._stamp = (-1, 0, 0)  # somebody may have written since: it is read again
        except (OSError, EddyError) as error:
            # A repository that cannot be written is no reason to stay with what fails.
            _LOG.error("the rollback is not noted: %s", error)
            previous = self._rollout.previous
            if previous is not None:
                why = f"{why}; in this worker alone, for it cannot be written down: {error}"
                change = Change(self._rollout.generation, "", "rollback", previous, "guard", why)
                self._rollout = self._rollout.changed(
                    change, in_charge=previous, previous=None, cold=False
                )
        _LOG.error("rolled back from version %d: %s", version, why)
