"""A worker follows the rollout file: switches, refusals, waiting memories, and the guard."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from datetime import datetime
from pathlib import Path

import numpy as np
import orjson
import pytest
from numpy.typing import NDArray

from flink_jobs.breaker import BreakerState
from flink_jobs.errors import EddyError
from flink_jobs.guard import FEWEST_COMPARED, FEWEST_REQUESTS, Health, fault, slower, unreliable
from flink_jobs.intensity_protocol import IncompatibleModelError, IntensityCounters, Ticket
from flink_jobs.model_events import MODEL, ModelEvent
from flink_jobs.model_files import load_models
from flink_jobs.model_pool import ANSWER_S, REST_S, ModelPool
from flink_jobs.model_watch import LOOKS, Watch
from flink_jobs.rollout import promote, put_in_shadow, read_rollout, roll_back
from flink_jobs.serving import ServedModel
from flink_jobs.settings import Settings, TritonSettings, load
from flink_jobs.trial import Trial
from models.prior import KindPrior, Prior, save_prior
from tests.flink_jobs.score_cases import FakeClient, answer_to


class PoolClient:
    """A client that a test can break.

    Attributes:
        state: of its breaker; a poll closes it where `answers`.
    """

    def __init__(self, settings: TritonSettings) -> None:
        self.version = settings.model_version
        self.state: BreakerState = "open"
        self.answers = True
        self.counters = IntensityCounters()
        self.last_error = ""
        self.model_version = "from-server"
        self.closed = False
        self.checks = 0

    def poll(self) -> None:
        if self.state != "closed":
            self.state = "closed" if self.answers else "open"
            self.last_error = "" if self.answers else "NOT_FOUND: no such version"

    def health(self) -> bool:
        self.checks += 1
        return self.answers

    def submit(self, x: NDArray[np.float32]) -> Ticket:
        return FakeClient().submit(x)

    def has_room(self, rows: int) -> bool:  # noqa: ARG002 (protocol)
        return True

    def close(self) -> None:
        self.closed = True


def write_version(root: Path, version: int, encoder_seed: int = 1, gap_mean: float = 4.0) -> None:
    folder = root / str(version)
    folder.mkdir(parents=True)
    rng = np.random.default_rng(encoder_seed)
    np.savez(
        folder / "encoder.npz",
        W1=rng.normal(size=(32, 11)).astype(np.float32),
        b1=np.zeros(32, np.float32),
        W2=rng.normal(size=(64, 32)).astype(np.float32),
        b2=np.zeros(64, np.float32),
    )
    save_prior(Prior({"default": KindPrior(gap_mean=gap_mean)}), folder / "prior.json")
    (folder / "card.json").write_text(json.dumps({"model_version": f"tpp-{version}"}))


class World:
    """A repository, a clock, and the clients that were made."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.root = folder / "intensity"
        write_version(self.root, 1)
        self.overrides = (f"triton.model_repository={folder}", *overrides)
        self.clients: dict[str, PoolClient] = {}
        self.silent: set[str] = set()  # versions that do not answer
        self.now = 1_800_000_000.0

    def settings(self) -> Settings:
        return load(None, {}, list(self.overrides))

    def connect(self, settings: TritonSettings) -> PoolClient:
        client = self.clients[settings.model_version] = PoolClient(settings)
        client.answers = settings.model_version not in self.silent
        return client

    def first(self, settings: TritonSettings) -> PoolClient:
        client = self.connect(settings)
        client.poll()
        return client

    def pool(self) -> ModelPool:
        settings = self.settings()
        return ModelPool(
            settings, load_models(settings), self.first, self.connect, lambda: self.now
        )


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def shadow_of(pool: ModelPool) -> int | None:
    shadow = pool.serving.shadow
    return None if shadow is None else shadow.version


def is_closed(world: World, version: int) -> bool:
    return world.clients[str(version)].closed


def begun(root: Path, seconds_ago: float, world: World) -> None:
    """Let the world's clock stand so long after the last change."""
    at = read_rollout(root).history[-1].at
    world.now = datetime.fromisoformat(at).timestamp() + seconds_ago


def test_a_promoted_version_takes_charge_and_the_old_one_stays_in_its_shadow(world: World) -> None:
    write_version(world.root, 2)
    begin_with_one(world)
    pool = world.pool()
    assert pool.serving.in_charge.version == 1
    assert pool.refresh({}) == []
    promote(world.root, 2)
    begun(world.root, 1.0, world)
    (event,) = pool.refresh({})
    assert (event.type, event.version, event.weights) == ("in_charge", 2, "tpp-2")
    assert event.other == (1, "tpp-1")
    assert pool.serving.in_charge.version == 2
    assert pool.serving.in_charge.memory is None
    assert shadow_of(pool) == 1
    assert {m.version for m in pool.serving.models} == {1, 2}
    begun(world.root, 601.0, world)
    assert pool.refresh({}) == []
    assert shadow_of(pool) is None
    assert not is_closed(world, 1), "there must be a way back"


def begin_with_one(world: World) -> None:
    """Put version 1 in charge though 2 is there."""
    text: dict[str, object] = {
        "form": 1, "in_charge": 1, "base": 1, "shadow": None, "previous": None,
        "generation": 1, "history": [],
    }  # fmt: skip
    (world.root / "rollout.json").write_text(json.dumps(text))


def two_versions(world: World, **second: object) -> ModelPool:
    write_version(world.root, 2, **second)  # type: ignore[arg-type]
    begin_with_one(world)
    return world.pool()


def test_a_version_that_does_not_answer_never_takes_charge(world: World) -> None:
    pool = two_versions(world)
    put_in_shadow(world.root, 2)
    assert pool.refresh({}) == []
    assert pool.serving.shadow is not None
    world.clients["2"].answers, world.clients["2"].state = False, "open"
    promote(world.root, 2)
    begun(world.root, 1.0, world)
    assert pool.refresh({}) == []
    assert pool.serving.in_charge.version == 1
    world.now += ANSWER_S + 1.0
    (event,) = pool.refresh({})
    assert event.type == "refused"
    assert "NOT_FOUND" in event.reason
    rollout = read_rollout(world.root)
    assert (rollout.in_charge, rollout.previous) == (1, None)
    assert (rollout.history[-1].by, rollout.history[-1].action) == ("guard", "rollback")
    assert pool.refresh({}) == []
    assert pool.serving.in_charge.version == 1


def test_a_server_that_is_away_refuses_nobody(world: World) -> None:
    pool = two_versions(world)
    promote(world.root, 2)
    begun(world.root, 1.0, world)
    pool.serving.in_charge.client.state = "open"  # type: ignore[misc]
    world.connect(world.settings().triton)
    pool._clients[2] = world.clients.setdefault("2", PoolClient(world.settings().triton))
    world.clients["2"].answers = False
    for _ in range(3):
        assert pool.refresh({}) == []
        world.now += ANSWER_S
    assert read_rollout(world.root).in_charge == 2, "who is away may come back"
    world.clients["2"].answers = True
    (event,) = pool.refresh({})
    assert (event.type, event.version) == ("in_charge", 2)


def test_another_encoder_waits_until_its_memories_are_warm(world: World) -> None:
    pool = two_versions(world, encoder_seed=2)
    promote(world.root, 2)
    begun(world.root, 1.0, world)
    (event,) = pool.refresh({})
    assert event.type == "waiting"
    assert pool.serving.in_charge.version == 1
    shadow = pool.serving.shadow
    assert shadow is not None
    assert shadow.memory is not None
    digest = shadow.memory.digest
    assert pool.refresh({digest: 0.94}) == []
    (event,) = pool.refresh({digest: 0.96})
    assert (event.type, event.version) == ("in_charge", 2)
    assert pool.serving.in_charge.memory == shadow.memory
    again = world.pool()
    assert again.serving.in_charge.version == 2, "a restart has the memories in its state"
    assert again.serving.in_charge.memory == shadow.memory


def test_a_promotion_may_be_cold(world: World) -> None:
    pool = two_versions(world, encoder_seed=2)
    promote(world.root, 2, cold=True)
    (event,) = pool.refresh({})
    assert (event.type, event.version) == ("in_charge", 2)
    put_in_shadow(world.root, None)
    assert read_rollout(world.root).cold
    promote(world.root, 1)
    assert not read_rollout(world.root).cold


def test_a_calibration_upon_other_moments_is_refused(world: World) -> None:
    pool = two_versions(world, gap_mean=5.0)
    put_in_shadow(world.root, 2)
    assert pool.refresh({}) == []
    assert shadow_of(pool) is None
    promote(world.root, 2)
    (event,) = pool.refresh({})
    assert event.type == "refused"
    assert "another gap_mean than the job's" in event.reason
    assert read_rollout(world.root).in_charge == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [("encoder.npz", b"PK\x03\x04 cut off"), ("card.json", b"[]"), ("prior.json", b"{}")],
)
def test_a_broken_folder_is_refused_and_the_job_goes_on(
    world: World, name: str, content: bytes
) -> None:
    pool = two_versions(world)
    (world.root / "2" / name).write_bytes(content)
    promote(world.root, 2)
    (event,) = pool.refresh({})
    assert event.type == "refused"
    assert event.reason.startswith("model folder 2: ")
    assert pool.serving.in_charge.version == 1
    assert read_rollout(world.root).in_charge == 1


def test_a_pinned_version_follows_nothing(tmp_path: Path) -> None:
    world = World(tmp_path, "triton.model_version=1")
    pool = two_versions(world)
    promote(world.root, 2)
    assert pool.refresh({}) == []
    assert pool.serving.in_charge.version == 1


def test_a_damaged_file_changes_nothing(world: World) -> None:
    pool = two_versions(world)
    (world.root / "rollout.json").write_text("{")
    assert pool.refresh({}) == []
    assert pool.serving.in_charge.version == 1
    with pytest.raises(EddyError, match="cannot be read"):
        read_rollout(world.root)


def test_a_version_that_nobody_uses_is_closed_after_a_while(world: World) -> None:
    pool = two_versions(world)
    put_in_shadow(world.root, 2)
    pool.refresh({})
    put_in_shadow(world.root, None)
    pool.refresh({})
    assert shadow_of(pool) is None
    assert not is_closed(world, 2)
    world.now += REST_S + 1.0
    pool.refresh({})
    assert is_closed(world, 2)
    shutil.rmtree(world.root / "2")
    assert pool.refresh({}) == []
    pool.close()
    assert is_closed(world, 1)


def test_versions_that_were_in_charge_stay_known(world: World) -> None:
    pool = two_versions(world)
    for version in (3, 4):
        write_version(world.root, version)
    for version in (2, 3, 4):
        promote(world.root, version)
        pool.refresh({})
    roll_back(world.root, "user", "")
    pool.refresh({})
    assert pool.serving.in_charge.version == 3
    for version in (2, 4):
        assert pool.serving.label(version) == (f"intensity/{version}", f"tpp-{version}")
    assert set(pool.serving.priors) == {2, 3, 4}
    world.now += REST_S + 1.0
    pool.refresh({})
    assert is_closed(world, 2), "it is asked no more"
    again = world.pool()
    assert set(again.serving.priors) == {2, 3, 4}
    shutil.rmtree(world.root / "2")
    assert set(world.pool().serving.priors) == {3, 4}


# -- the start ------------------------------------------------------------------------------------


def in_charge_of_two(
    world: World, previous: int | None = 1, *, write: bool = True, **second: object
) -> None:
    """Put version 2 in charge, as a job that starts finds it."""
    if write:
        write_version(world.root, 2, **second)  # type: ignore[arg-type]
    text: dict[str, object] = {
        "form": 1, "in_charge": 2, "base": 1, "shadow": None, "previous": previous,
        "generation": 4, "history": [],
    }  # fmt: skip
    (world.root / "rollout.json").write_text(json.dumps(text))


def break_by(name: str, folder: Path) -> None:
    if name == "sum":
        card = {"model_version": "tpp-2", "files": {"encoder.npz": 64 * "0"}}
        (folder / "card.json").write_text(json.dumps(card))
    elif name == "weights":
        (folder / "encoder.npz").write_bytes(b"PK\x03\x04 cut off")
    else:
        (folder / name).unlink()


@pytest.mark.parametrize("previous", [1, None])
@pytest.mark.parametrize("fault", ["encoder.npz", "prior.json", "sum", "weights"])
def test_a_job_starts_with_another_version_where_the_one_in_charge_is_broken(
    world: World, fault: str, previous: int | None
) -> None:
    in_charge_of_two(world, previous)
    sound = {p.name: p.read_bytes() for p in (world.root / "2").iterdir()}
    break_by(fault, world.root / "2")
    before = (world.root / "rollout.json").read_bytes()
    pool = world.pool()
    assert pool.serving.in_charge.version == 1
    (event,) = pool.refresh({})
    assert (event.type, event.version, event.other) == ("refused", 2, (1, "tpp-1"))
    assert event.reason.startswith("model folder 2: ")
    assert pool.refresh({}) == []
    assert (world.root / "rollout.json").read_bytes() == before, "what broke may be mended"
    for name, content in sound.items():
        (world.root / "2" / name).write_bytes(content)
    (event,) = pool.refresh({})
    assert (event.type, event.version, event.reason) == (
        "in_charge", 2, "it can be in charge again",
    )  # fmt: skip
    assert pool.serving.in_charge.version == 2


def test_a_job_whose_only_version_is_broken_starts_without_any(world: World) -> None:
    card = (world.root / "1" / "card.json").read_text()
    (world.root / "1" / "card.json").write_text("[]")
    pool = world.pool()
    assert (pool.serving.in_charge.version, pool.serving.in_charge.client.state) == (0, "open")
    assert pool.serving.label(0) == (None, "")
    (event,) = pool.refresh({})
    assert (event.type, event.version, event.other) == ("refused", 1, None)
    assert pool.refresh({}) == []
    (world.root / "1" / "card.json").write_text(card)
    (event,) = pool.refresh({})
    assert (event.type, event.version, event.other) == ("in_charge", 1, None)
    assert pool.serving.in_charge.version == 1


def test_a_model_that_does_not_fit_is_stood_in_for(world: World) -> None:
    in_charge_of_two(world)

    def connect(settings: TritonSettings) -> PoolClient:
        raise IncompatibleModelError(f"intensity/{settings.model_version}: expected [68]")

    pool = ModelPool(
        world.settings(), load_models(world.settings()), connect, world.connect, lambda: world.now
    )
    assert pool.serving.in_charge.version == 1
    assert "expected [68]" in pool.refresh({})[0].reason


def test_a_version_that_does_not_answer_at_the_start_is_stood_in_for(world: World) -> None:
    in_charge_of_two(world)
    world.silent = {"2"}
    pool = world.pool()
    assert pool.serving.in_charge.version == 1
    assert shadow_of(pool) == 2
    (event,) = pool.refresh({})
    assert (event.type, event.version) == ("refused", 2)
    assert "it does not answer: NOT_FOUND" in event.reason
    world.now += ANSWER_S + 1.0
    assert pool.refresh({}) == []
    assert read_rollout(world.root).in_charge == 2
    world.clients["2"].answers = True
    (event,) = pool.refresh({})
    assert (event.type, event.version) == ("in_charge", 2)


def test_a_server_that_is_away_at_the_start_blames_nobody(world: World) -> None:
    in_charge_of_two(world)
    world.silent = {"1", "2"}
    pool = world.pool()
    assert pool.serving.in_charge.version == 2
    assert pool.refresh({}) == []


def test_memories_that_a_restored_state_has_not_are_waited_for(world: World) -> None:
    in_charge_of_two(world, encoder_seed=2)
    pool = world.pool()
    assert pool.serving.in_charge.version == 2
    memory = pool.serving.in_charge.memory
    assert memory is not None
    (event,) = pool.refresh({memory.digest: 0.2})
    assert (event.type, event.version, event.other) == ("waiting", 2, (1, "tpp-1"))
    assert "warm for 20%" in event.reason
    assert (pool.serving.in_charge.version, shadow_of(pool)) == (1, 2)
    assert pool.serving.memories == (memory,)
    assert pool.refresh({memory.digest: 0.9}) == []
    (event,) = pool.refresh({memory.digest: 0.97})
    assert (event.type, event.version) == ("in_charge", 2)
    assert pool.refresh({memory.digest: 0.9}) == [], "and does not swing"
    assert pool.serving.in_charge.version == 2
    assert read_rollout(world.root).in_charge == 2


def test_memories_that_a_restored_state_has_go_on(world: World) -> None:
    in_charge_of_two(world, encoder_seed=2)
    pool = world.pool()
    memory = pool.serving.in_charge.memory
    assert memory is not None
    assert pool.refresh({}) == []
    assert pool.refresh({memory.digest: 0.99}) == []
    assert pool.refresh({memory.digest: 0.94}) == []
    assert pool.serving.in_charge.version == 2


# -- the guard ------------------------------------------------------------------------------------


def promoted(world: World) -> ModelPool:
    pool = two_versions(world)
    promote(world.root, 2)
    begun(world.root, 1.0, world)
    pool.refresh({})
    assert pool.serving.in_charge.version == 2
    return pool


def test_the_guard_goes_back_when_the_new_one_fails_and_the_old_one_answers(world: World) -> None:
    pool = promoted(world)
    pool.guard([])
    assert read_rollout(world.root).in_charge == 2
    new = world.clients["2"]
    new.state, new.answers = "open", False
    new.counters.failures["not_finite"] += 3
    assert looks(pool, world) == LOOKS + 1
    rollout = read_rollout(world.root)
    assert (rollout.in_charge, rollout.previous) == (1, None)
    assert rollout.history[-1].reason == "it does not answer: 3 x not_finite"
    (event,) = pool.refresh({})
    assert (event.type, event.version, event.other) == ("rolled_back", 1, (2, "tpp-2"))
    assert "not_finite" in event.reason
    assert pool.serving.in_charge.version == 1
    for _ in range(5):  # and never flaps
        world.clients["1"].state = "open"
        pool.guard([])
        assert pool.refresh({}) == []
    assert read_rollout(world.root).in_charge == 1


def test_after_the_probation_errors_alone_are_watched(world: World) -> None:
    pool = promoted(world)
    begun(world.root, 700.0, world)
    pool.refresh({})
    assert shadow_of(pool) is None
    pool.guard([])
    new, old = world.clients["2"], world.clients["1"]
    new.state, new.answers, old.answers = "open", False, False
    looks(pool, world, 20)  # the server is away: both are, so nobody is to blame
    assert read_rollout(world.root).in_charge == 2
    old.answers = True
    assert LOOKS <= looks(pool, world, 20) <= LOOKS + 1
    assert read_rollout(world.root).in_charge == 1
    assert old.checks > 1


def looks(pool: ModelPool, world: World, most: int = 10) -> int:
    """Let the guard look until it goes back; return how often."""
    for count in range(1, most + 1):
        pool.guard([])
        if read_rollout(world.root).previous is None:
            return count
        pool.watch._checks.submit(int).result()  # the canaries have come
    return most + 1


def test_the_probation_begins_with_taking_charge(world: World) -> None:
    pool = two_versions(world, encoder_seed=2)
    promote(world.root, 2)
    begun(world.root, 1.0, world)
    pool.refresh({})
    memory = pool.serving.shadow.memory if pool.serving.shadow else None
    assert memory is not None
    begun(world.root, 5_000.0, world)  # its memories took their time
    pool.refresh({memory.digest: 1.0})
    assert pool.serving.in_charge.version == 2
    assert shadow_of(pool) == 1, "with the same step"
    world.now += 599.0
    pool.refresh({memory.digest: 1.0})
    assert shadow_of(pool) == 1
    world.now += 2.0
    pool.refresh({memory.digest: 1.0})
    assert shadow_of(pool) is None


def test_the_guard_goes_on_comparing_whatever_is_in_the_shadow(world: World) -> None:
    write_version(world.root, 3)
    pool = two_versions(world)
    put_in_shadow(world.root, 3)
    promote(world.root, 2)
    begun(world.root, 1.0, world)
    pool.refresh({})
    assert shadow_of(pool) == 1, "not the one that was tried before"
    put_in_shadow(world.root, None)
    pool.refresh({})
    assert shadow_of(pool) == 1
    put_in_shadow(world.root, 3)  # by force: the command refuses it
    pool.refresh({})
    assert shadow_of(pool) == 3


def test_a_trial_of_another_version_says_nothing_of_the_previous_one(world: World) -> None:
    pool = promoted(world)
    worse, mine = trial((2.5, 2.0)), trial((2.0, 2.0))
    worse.shadow = ServedModel(3, FakeClient())
    for _ in range(2 * LOOKS):
        pool.guard([worse, mine])
    assert read_rollout(world.root).in_charge == 2
    worse.shadow = mine.shadow
    for _ in range(LOOKS):
        pool.guard([worse, mine])
    assert read_rollout(world.root).history[-1].reason.startswith("likelihood: ")


def test_a_failure_that_passes_is_no_reason_to_go_back(world: World) -> None:
    pool = promoted(world)
    new = world.clients["2"]
    for _ in range(5):
        new.counters.failures["deadline"] += 3
        new.state = "open"
        assert looks(pool, world, 2) == 3
        new.state = "closed"  # the probe was good
        for _ in range(4):
            new.counters.answer(10, 0.005)
        assert looks(pool, world, 1) == 2
    assert read_rollout(world.root).in_charge == 2
    # One canary that gets lost is none either.
    new.state, new.answers = "open", False
    looks(pool, world, 2)
    new.answers = True
    looks(pool, world, 10)
    assert read_rollout(world.root).in_charge == 2


def test_a_version_that_comes_back_only_to_fail_again_is_gone_back_from(world: World) -> None:
    pool = promoted(world)
    new = world.clients["2"]
    rounds = 0
    while read_rollout(world.root).in_charge == 2:
        rounds += 1
        new.counters.failures["deadline"] += 5
        new.state = "open"
        looks(pool, world, 2)  # its canary is good, so its breaker closes again
        new.state = "closed"
        looks(pool, world, 1)
    assert rounds == LOOKS
    assert read_rollout(world.root).history[-1].reason == "it does not answer: 15 x deadline"


def test_latency_must_last_too(world: World) -> None:
    pool = promoted(world)
    new, old = world.clients["2"], world.clients["1"]

    def asked(times: int, latency_s: float) -> None:
        for _ in range(times):
            new.counters.answer(1, latency_s)
            old.counters.answer(1, 0.005)

    asked(60, 0.2)
    assert looks(pool, world, 1) == 2
    for _ in range(5):
        asked(2, 0.005)  # it stalled once: its mean still says so, what comes now does not
        assert looks(pool, world, 1) == 2
    for _ in range(LOOKS):
        assert read_rollout(world.root).in_charge == 2
        asked(5, 0.2)
        looks(pool, world, 1)
    assert read_rollout(world.root).history[-1].reason.startswith("latency: a request takes 1")


def test_without_a_guard_nothing_happens(tmp_path: Path) -> None:
    world = World(tmp_path, "triton.guard=false")
    pool = promoted(world)
    assert shadow_of(pool) is None
    world.clients["2"].state, world.clients["2"].answers = "open", False
    pool.guard([])
    assert read_rollout(world.root).in_charge == 2


def test_a_repository_that_cannot_be_written_is_gone_back_from_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = promoted(world)
    world.clients["2"].state, world.clients["2"].answers = "open", False

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("flink_jobs.model_pool.roll_back", refuse)
    looks(pool, world)
    (event,) = pool.refresh({})
    assert (event.type, event.version) == ("rolled_back", 1)
    assert event.reason == (
        "it does not answer: no request was answered; in this worker alone, for it cannot be "
        "written down: [Errno 30] Read-only file system"
    )
    assert pool.serving.in_charge.version == 1
    assert pool.serving.label(2) == ("intensity/2", "tpp-2")
    assert read_rollout(world.root).in_charge == 2
    assert pool.refresh({}) == []


WELL = Health(True, FEWEST_REQUESTS, 5.0, Counter())


def trial(nats: tuple[float, float], pit: tuple[float, float] = (0.0, 0.0)) -> Trial:
    """Return a trial whose every event had these nats, and whose PIT is off by so much."""
    one, two = ServedModel(2, FakeClient()), ServedModel(1, FakeClient())
    found = Trial(one, two, ["user"], [])
    tally = found.tallies[0]
    tally.compared = FEWEST_COMPARED
    tally.nats[:] = np.array(nats) * FEWEST_COMPARED
    tally.square = (nats[1] - nats[0]) ** 2 * FEWEST_COMPARED
    for side in range(2):
        tally.pit[side] = 100.0
        tally.pit[side, 0] += 2000.0 * pit[side]
    return found


@pytest.mark.parametrize(
    ("trials", "why"),
    [
        ([], ""),
        ([trial((2.0, 2.0))], ""),
        ([trial((2.04, 2.0))], ""),
        ([trial((2.2, 2.0))], "likelihood: 2.200 nats an event, that of the"),
        ([trial((2.0, 2.0), (0.5, 0.0))], "calibration: its gaps are 0.3"),
        ([trial((2.0, 2.0), (0.5, 0.4))], ""),
    ],
)
def test_what_the_guard_finds(trials: list[Trial], why: str) -> None:
    found = fault(trials)
    assert found.startswith(why) if why else found == ""


def test_what_is_slower() -> None:
    assert slower(Health(True, 60, 80.0, Counter()), WELL, 50).startswith("latency: a request ta")
    assert slower(Health(True, 60, 34.0, Counter()), WELL, 50) == ""
    assert slower(Health(True, 40, 80.0, Counter()), WELL, 50) == ""


def test_what_fails_a_part_of_its_requests() -> None:
    failing = Health(True, 55, 10.0, Counter({"not_finite": 40, "deadline": 5, "closed": 9}))
    assert unreliable(failing, WELL) == (
        "errors: 45% of 100 requests failed, of the version before 0%: 40 x not_finite, "
        "5 x deadline"
    )
    few = Health(True, 30, 10.0, Counter({"not_finite": 10}))
    assert unreliable(few, WELL) == ""
    both = Health(True, 60, 10.0, Counter({"deadline": 40}))
    assert unreliable(failing, both) == ""  # the server is slow for both
    assert unreliable(Health(True, 98, 10.0, Counter({"deadline": 2})), WELL) == ""


def test_a_check_that_raises_leaves_the_guard_at_work() -> None:
    clients = {v: PoolClient(load(None, {}, [f"triton.model_version={v}"]).triton) for v in (1, 2)}
    watch = Watch(clients)
    clients[2].state = "open"

    def broken() -> bool:
        raise OSError("no such host")

    clients[1].health = broken  # type: ignore[method-assign]
    clients[2].counters.failures["internal"] += 1
    assert watch.look(2, 1, None) == ""
    watch._checks.submit(int).result()
    clients[2].counters.failures["internal"] += 1
    with pytest.raises(OSError, match="no such host"):
        watch.look(2, 1, None)
    clients[1].health = lambda: True  # type: ignore[method-assign]
    for _ in range(8):
        clients[2].counters.failures["internal"] += 1
        why = watch.look(2, 1, None)
        watch._checks.submit(int).result()
    assert why.startswith("it does not answer")
    watch.close()


def test_a_flood_of_alerts_is_a_fault() -> None:
    flood = trial((2.0, 2.0))
    flood.alone[0] = 25
    assert fault([flood]).startswith("alerts: 25 that the version before would not")
    flood.both = 3
    assert fault([flood]) == ""


def test_a_model_event_as_a_message() -> None:
    event = ModelEvent("rolled_back", 1, "tpp-1", (2, "tpp-2"), "it does not answer")
    output = event.output("eddy/job", "intensity", 0, 7, {"warm": 1.0})
    body = orjson.loads(output.value)
    assert (output.kind, output.key) == (MODEL, "intensity/1")
    assert body.pop("at").endswith("Z")
    assert body == {
        "type": "rolled_back", "source": "eddy/job", "shard": 0, "model": "intensity",
        "version": 1, "weights": "tpp-1", "other": {"version": 2, "weights": "tpp-2"},
        "generation": 7, "reason": "it does not answer", "report": {"warm": 1.0},
    }  # fmt: skip
    assert answer_to(np.zeros((1, 69), np.float32)).shape == (1, 32)
