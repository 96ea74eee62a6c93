"""`eddy models` without servers: publish, shadow, compare, promote, roll back, retire."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.cli import main
from deploy.models import life, listing, report, topic
from deploy.models.folder import RefusedModelError, check_folder
from deploy.models.server import ServerAwayError, ServerRefusedError, TritonServer
from flink_jobs import rollout as rollouts
from flink_jobs.errors import EddyError
from flink_jobs.settings import Settings
from models.tpp import spec
from tests.deploy.model_cases import (
    SHIPPED,
    FakeServer,
    copy_repository,
    linear_decoder,
    settings_of,
    shadow_report,
    write_card,
    write_version,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return copy_repository(tmp_path)


@pytest.fixture
def settings(root: Path) -> Settings:
    return settings_of(root.parent)


@pytest.fixture
def server(root: Path) -> FakeServer:
    return FakeServer(root)


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    return write_version(tmp_path / "new", "tpp-new", linear_decoder("tpp-new"))


def _left(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


# --- the folder ---------------------------------------------------------------------------------


def test_the_shipped_version_is_sound() -> None:
    version = check_folder(SHIPPED / "1")
    assert version.weights == json.loads((SHIPPED / "1" / "card.json").read_text())["model_version"]
    assert version.x.shape == (128, spec.INPUT)
    assert version.tolerance == 1e-5


@pytest.mark.parametrize("name", ["decoder.onnx", "encoder.npz", "check.npz", "prior.json"])
def test_a_missing_file_is_named(fresh: Path, name: str) -> None:
    (fresh / name).unlink()
    with pytest.raises(RefusedModelError, match=f"found no {name}"):
        check_folder(fresh)


def test_a_damaged_file_is_found_by_its_sum(fresh: Path) -> None:
    data = bytearray((fresh / "encoder.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (fresh / "encoder.npz").write_bytes(data)
    with pytest.raises(RefusedModelError, match=r"encoder.npz: expected SHA-256 [0-9a-f]{64} of"):
        check_folder(fresh)


def test_a_card_must_vouch_for_what_is_served(fresh: Path) -> None:
    card = json.loads((fresh / "card.json").read_text())
    del card["files"]["decoder.onnx"]
    (fresh / "card.json").write_text(json.dumps(card))
    with pytest.raises(RefusedModelError, match="found none of decoder.onnx"):
        check_folder(fresh)
    card["files"] |= {"decoder.onnx": "0", "../other": "0"}
    (fresh / "card.json").write_text(json.dumps(card))
    with pytest.raises(RefusedModelError, match=r"SHA-256|lists '\.\./other'"):
        check_folder(fresh)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "expected 'model_version' as `eddy train` writes it, found 'list'"),
        ('{"model_version": 3}', "found 3"),
    ],
)
def test_a_card_that_is_none(fresh: Path, text: str, message: str) -> None:
    (fresh / "card.json").write_text(text)
    with pytest.raises(RefusedModelError, match=message):
        check_folder(fresh)


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (linear_decoder("tpp-new", fill=np.nan), r"4,096 of 4,096 not finite: its weights are dam"),
        (linear_decoder("tpp-new", fill=np.inf), "not finite"),
        (
            linear_decoder("tpp-new", outputs=19),
            r"expected one output y FP32 \[rows, 32\], found \[\"y FP32 \['rows', 19\]\"\]",
        ),
        (linear_decoder("tpp-other"), "expected model_version tpp-new in it, found tpp-other"),
        (
            linear_decoder("tpp-new", feature_version="0"),
            "expected feature_version 3 in it, found 0",
        ),
        (b"not a model", "onnxruntime cannot load it"),
    ],
)
def test_a_decoder_that_must_not_be_served(tmp_path: Path, decoder: bytes, message: str) -> None:
    zeros = np.zeros((128, spec.OUTPUT), np.float32)
    folder = write_version(tmp_path / "bad", "tpp-new", decoder, y=zeros)
    with pytest.raises(RefusedModelError, match=message):
        check_folder(folder)


def test_answers_must_be_those_of_the_export_unless_the_card_allows_more(tmp_path: Path) -> None:
    decoder = linear_decoder("tpp-new")
    sound = write_version(tmp_path / "sound", "tpp-new", decoder)
    with np.load(sound / "check.npz") as check:
        y = check["y"]
    off = write_version(tmp_path / "off", "tpp-new", decoder, y=y + np.float32(0.004))
    with pytest.raises(RefusedModelError, match=r"within 1e-05, found a difference of 0.004"):
        check_folder(off)
    write_card(off, json.loads((off / "card.json").read_text()) | {"tolerance": 0.01})
    assert check_folder(off).tolerance == 0.01
    write_card(off, json.loads((off / "card.json").read_text()) | {"tolerance": "much"})
    with pytest.raises(RefusedModelError, match="expected a tolerance between 0 and 1"):
        check_folder(off)


def test_another_feature_version_is_refused(fresh: Path) -> None:
    write_card(fresh, json.loads((fresh / "card.json").read_text()) | {"feature_version": "0"})
    with pytest.raises(RefusedModelError, match="expected feature version 3, found 0"):
        check_folder(fresh)


# --- publish ------------------------------------------------------------------------------------


def test_publish_brings_a_version_and_replaces_nobody(
    settings: Settings, root: Path, server: FakeServer, fresh: Path
) -> None:
    (fresh / ".hidden").write_text("not for the server")
    done = life.publish(settings, fresh, server)
    assert done.version == 2
    assert done.rollout.in_charge == done.rollout.base == 1
    assert [c.action for c in done.rollout.history] == ["publish"]
    assert done.notes == []
    for name in ("decoder.onnx", "encoder.npz", "check.npz", "prior.json", "card.json"):
        assert (root / "2" / name).read_bytes() == (fresh / name).read_bytes()
    assert (root / "2" / "model.py").read_bytes() == (root / "1" / "model.py").read_bytes()
    assert not (root / "2" / ".hidden").exists()
    again = life.publish(settings, fresh, server)
    assert again.version == 3
    assert again.notes == ["version 2 has the same weights (tpp-new)"]


def test_server_code_that_comes_along_is_taken_and_vouched_for(
    settings: Settings, root: Path, server: FakeServer, fresh: Path
) -> None:
    (fresh / "model.py").write_text("# its own")
    card = json.loads((fresh / "card.json").read_text())
    card["files"]["model.py"] = hashlib.sha256(b"# its own").hexdigest()
    (fresh / "card.json").write_text(json.dumps(card))
    life.publish(settings, fresh, server)
    assert (root / "2" / "model.py").read_text() == "# its own"
    (fresh / "model.py").write_text("# another's")
    with pytest.raises(RefusedModelError, match="model.py: expected SHA-256"):
        life.publish(settings, fresh, server)


def test_a_newer_folder_never_takes_over_by_coming(
    settings: Settings, root: Path, server: FakeServer, fresh: Path
) -> None:
    """Workers read the rollout each second, also between the folder's coming and its trial."""
    seen = []
    load = server.load

    def loading() -> None:
        seen.append(rollouts.read_rollout(root).in_charge)
        load()

    server.load = loading  # type: ignore[method-assign]
    life.publish(settings, fresh, server)
    assert seen == [1]


def test_with_triton_away_nothing_is_published(
    settings: Settings, root: Path, server: FakeServer, fresh: Path
) -> None:
    server.away = True
    with pytest.raises(ServerAwayError):
        life.publish(settings, fresh, server)
    assert rollouts.versions_in(root) == [1]
    assert "rollout.json" not in _left(root)


def test_what_triton_refuses_is_removed_and_told_in_its_words(
    settings: Settings, root: Path, server: FakeServer, fresh: Path
) -> None:
    server.refuses = "version 2 is at UNAVAILABLE state: Internal: out of memory"
    with pytest.raises(ServerRefusedError, match="In Triton's words: .* out of memory"):
        life.publish(settings, fresh, server)
    assert rollouts.versions_in(root) == [1]
    assert rollouts.read_rollout(root).history == ()
    server.refuses = None
    server.deaf = True
    with pytest.raises(ServerRefusedError, match="has no version 2 .*does it read the repository"):
        life.publish(settings, fresh, server)
    assert not [name for name in _left(root) if name.startswith((".publish", ".removed", "2"))]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (np.full((1, spec.OUTPUT), np.nan, np.float32), "expected a finite y"),
        (np.zeros((1, 3), np.float32), r"found \[1, 3\]"),
    ],
)
def test_what_answers_badly_on_triton_is_unloaded(
    settings: Settings,
    root: Path,
    server: FakeServer,
    fresh: Path,
    answer: np.ndarray[Any, np.dtype[np.float32]],
    message: str,
) -> None:
    server.answer_of[2] = answer
    with pytest.raises(ServerRefusedError, match=message):
        life.publish(settings, fresh, server)
    assert rollouts.versions_in(root) == [1]
    assert server.served() == {1: "READY"}


def test_a_policy_that_would_drop_the_one_in_charge_is_refused(
    settings: Settings, root: Path, server: FakeServer, fresh: Path
) -> None:
    server.all_versions = False
    with pytest.raises(
        EddyError, match=r"would drop version 1 .*`version_policy: \{ all \{ \} \}`"
    ):
        life.publish(settings, fresh, server)
    assert rollouts.versions_in(root) == [1]


def test_slow_models_are_told_and_hopeless_ones_refused(
    settings: Settings, server: FakeServer, tmp_path: Path
) -> None:
    decoder = linear_decoder("tpp-slow", blocks=60)
    slow = write_version(tmp_path / "slow", "tpp-slow", decoder)
    done = life.publish(settings, slow, server)
    assert len(done.notes) == 1
    assert done.notes[0].startswith("it is slow: ")
    assert "where version 1 takes" in done.notes[0]
    hasty = replace(settings, triton=replace(settings.triton, timeout_ms=1))
    with pytest.raises(ServerRefusedError, match="the job would never hear it"):
        life.publish(hasty, slow, server)


def test_another_encoder_is_allowed_and_told(
    settings: Settings, server: FakeServer, tmp_path: Path
) -> None:
    folder = write_version(
        tmp_path / "new", "tpp-new", linear_decoder("tpp-new"), encoder_scale=1.5
    )
    done = life.publish(settings, folder, server)
    assert done.notes == [
        "it has another encoder than the version in charge: in shadow its memories will be built "
        "beside the old ones until they are warm"
    ]


def test_other_moments_are_refused_and_other_tails_are_not(
    settings: Settings, server: FakeServer, tmp_path: Path
) -> None:
    prior = json.loads((SHIPPED / "1" / "prior.json").read_text())
    prior["kinds"]["user"]["tails"] = {"amount": {"offset": 1.0, "slope": 0.5}}
    decoder = linear_decoder("tpp-new")
    tails = write_version(tmp_path / "tails", "tpp-new", decoder, prior=prior)
    assert life.publish(settings, tails, server).version == 2
    prior["kinds"]["user"]["gap_within_var"] *= 2
    moments = write_version(tmp_path / "moments", "tpp-new", decoder, prior=prior)
    with pytest.raises(RefusedModelError, match=r"kind user: expected the gap_within_var of versi"):
        life.publish(settings, moments, server)
    prior = json.loads((SHIPPED / "1" / "prior.json").read_text())
    prior["kinds"]["device"]["profile"][7] *= 1.01
    profile = write_version(tmp_path / "profile", "tpp-new", decoder, prior=prior)
    with pytest.raises(RefusedModelError, match="kind device: expected the weekly profile"):
        life.publish(settings, profile, server)
    own = settings.override(f"detection.prior={profile / 'prior.json'}")
    assert life.publish(own, profile, server).version == 3
    with pytest.raises(RefusedModelError, match=r"expected the weekly profile of .*prior.json"):
        life.publish(own, tails, server)


def test_numbers_are_never_given_twice(
    settings: Settings, root: Path, server: FakeServer, fresh: Path
) -> None:
    assert life.publish(settings, fresh, server).version == 2
    life.retire(settings, 2, server)
    assert rollouts.versions_in(root) == [1]
    assert life.publish(settings, fresh, server).version == 3


def test_numbers_outlive_the_history(
    settings: Settings, root: Path, server: FakeServer, fresh: Path
) -> None:
    for number in (2, 3):
        assert life.publish(settings, fresh, server).version == number
    life.retire(settings, 3, server)
    for k in range(rollouts.KEPT_CHANGES + 1):
        rollouts.promote(root, 2 - k % 2)
    assert life.publish(settings, fresh, server).version == 4


def test_no_two_versions_in_use_share_a_slot(root: Path) -> None:
    rollouts.begin_rollout(root)
    rollouts.note_published(root, 255)
    now = rollouts.read_rollout(root)
    assert life._next_number(root, now) == 257, "256 has the slot of 1"
    for number in range(2, 255):
        (root / str(number)).mkdir()
    assert life._next_number(root, now) == 510, "255 alone is free"
    (root / "255").mkdir()
    with pytest.raises(EddyError, match=r"expected fewer than 255 .*found 255 folders"):
        life._next_number(root, now)


def test_two_publish_at_once(
    settings: Settings, root: Path, server: FakeServer, fresh: Path
) -> None:
    numbers = []

    def publish() -> None:
        numbers.append(life.publish(settings, fresh, server).version)

    threads = [threading.Thread(target=publish) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(n for n in numbers if n) == [2, 3, 4, 5]
    assert rollouts.versions_in(root) == [1, 2, 3, 4, 5]


# --- shadow, promote, roll back, retire ---------------------------------------------------------


@pytest.fixture
def published(settings: Settings, server: FakeServer, fresh: Path) -> FakeServer:
    life.publish(settings, fresh, server)
    return server


def test_shadow_begins_and_ends(settings: Settings, root: Path, published: FakeServer) -> None:
    assert life.shadow(settings, 2, published).rollout.shadow == 2
    assert life.shadow(settings, None, published).rollout.shadow is None
    with pytest.raises(EddyError, match="version 1 is in charge"):
        life.shadow(settings, 1, published)
    with pytest.raises(EddyError, match=r"expected a version of \[1, 2\], found 7"):
        life.shadow(settings, 7, published)
    shutil.copytree(root / "2", root / "3")
    with pytest.raises(EddyError, match="found that Triton does not know it"):
        life.shadow(settings, 3, published)


def test_a_shadow_waits_for_the_end_of_a_probation(
    settings: Settings, root: Path, published: FakeServer, fresh: Path
) -> None:
    life.publish(settings, fresh, published)
    life.promote(settings, 2, published, None)
    told = r"version 2 is on probation for another \d+ s at least: version 1 is in its shadow"
    with pytest.raises(EddyError, match=told):
        life.shadow(settings, 3, published)
    assert life.shadow(settings, None, published).notes == []
    assert life.shadow(settings, 1, published).notes == []
    life.shadow(settings, None, published)
    unguarded = settings.override("triton.guard=false")
    assert life.shadow(unguarded, 3, published).rollout.shadow == 3
    life.shadow(settings, None, published)
    over = settings.override("triton.probation_s=0")
    assert life.shadow(over, 3, published).notes == []
    life.shadow(settings, None, published)
    life.promote(settings, 1, published, None)
    done = life.shadow(settings, 3, published, force=True)
    assert done.notes == [
        "the probation of version 1 ends: from here on the guard watches errors alone"
    ]
    assert rollouts.read_rollout(root).probation is None


def test_a_version_that_may_still_answer_is_not_retired(
    settings: Settings, published: FakeServer, tmp_path: Path
) -> None:
    """Version 2 decides until the memories of 3, and then of 4, are warm."""
    for number in (3, 4):
        folder = write_version(
            tmp_path / str(number), f"tpp-{number}", linear_decoder(f"tpp-{number}"),
            encoder_scale=float(number),
        )  # fmt: skip
        life.publish(settings, folder, published)
    for number in (2, 3, 4):
        life.promote(settings, number, published, None, force=True)
    now = rollouts.read_rollout(life.model_root(settings))
    assert 2 not in now.in_use
    with pytest.raises(EddyError, match="where the version in charge still waits, it may be the"):
        life.retire(settings, 2, published)


def test_promote_and_go_back(settings: Settings, published: FakeServer) -> None:
    done = life.promote(settings, 2, published, None, "better on Sundays")
    assert (done.rollout.in_charge, done.rollout.previous, done.rollout.base) == (2, 1, 1)
    assert done.rollout.history[-1].reason == "better on Sundays"
    assert "was never compared in the shadow of version 1" in done.notes[0]
    same = life.promote(settings, 2, published, None)
    assert same.notes == ["version 2 is in charge already"]
    with pytest.raises(EddyError, match=r"version 1 is in use \(previous, base\)"):
        life.retire(settings, 1, published)
    published.away = True
    back = life.roll_back(settings, "no", published)
    assert back.rollout.in_charge == back.version == 1
    assert back.notes == ["Triton does not answer: whether it serves the version is not known"]
    with pytest.raises(ServerAwayError):
        life.promote(settings, 2, published, None)


def test_promote_tells_what_the_shadow_showed(settings: Settings, published: FakeServer) -> None:
    worse = report.compare([shadow_report(differences={"user": [0.1, 0.2] * 100})])
    assert worse is not None
    done = life.promote(settings, 2, published, worse)
    assert done.notes == ["in shadow it was worse than version 1"]


def test_a_job_that_is_pinned_follows_nothing_and_that_is_told(
    settings: Settings, published: FakeServer
) -> None:
    pinned = settings.override("triton.model_version=1")
    told = "triton.model_version = 1: a job with this setting follows no change"
    assert told in life.shadow(pinned, 2, published).notes
    assert told in life.promote(pinned, 2, published, None).notes
    assert told in life.roll_back(pinned, "", published).notes


def test_another_encoder_is_promoted_only_warm(
    settings: Settings, server: FakeServer, tmp_path: Path
) -> None:
    decoder = linear_decoder("tpp-new")
    folder = write_version(tmp_path / "new", "tpp-new", decoder, encoder_scale=1.5)
    life.publish(settings, folder, server)
    assert "its memories begin now" in life.shadow(settings, 2, server).notes[0]
    with pytest.raises(EddyError, match="it never was in shadow; let it run in shadow until then"):
        life.promote(settings, 2, server, None)
    many = {"user": [-0.1, 0.1] * 500}
    cold = report.compare([shadow_report(warm=0.949, differences=many)])
    with pytest.raises(EddyError, match=r"memories of 95% of its events to be warm, found 94.9%"):
        life.promote(settings, 2, server, cold)
    hasty = report.compare([shadow_report(warm=1.0)])
    with pytest.raises(EddyError, match=r"found 100.0% of 210 \(at least 1,000 count\)"):
        life.promote(settings, 2, server, hasty)
    forced = life.promote(settings, 2, server, cold, force=True)
    assert forced.rollout.in_charge == 2
    assert "what it says is poor until they are" in forced.notes[0]
    life.roll_back(settings, "", server)
    warm = report.compare([shadow_report(warm=0.96, differences=many)])
    assert life.promote(settings, 2, server, warm).notes == []


def test_retire_removes_what_nobody_uses(
    settings: Settings, root: Path, published: FakeServer
) -> None:
    life.shadow(settings, 2, published)
    with pytest.raises(EddyError, match=r"version 2 is in use \(shadow\)"):
        life.retire(settings, 2, published)
    life.shadow(settings, None, published)
    assert life.retire(settings, 2, published).notes == []
    assert published.served() == {1: "READY"}
    assert rollouts.versions_in(root) == [1]
    shutil.copytree(root / "1", root / "5")
    published.away = True
    done = life.retire(settings, 5, published)
    assert "Triton was not told" in done.notes[0]
    assert rollouts.versions_in(root) == [1]


def test_a_version_that_was_in_charge_is_retired_by_force_alone(
    settings: Settings, root: Path, published: FakeServer
) -> None:
    life.promote(settings, 2, published, None)
    life.roll_back(settings, "", published)
    with pytest.raises(EddyError, match=r"version 2 was in charge: .*--force removes it"):
        life.retire(settings, 2, published)
    assert rollouts.versions_in(root) == [1, 2]
    done = life.retire(settings, 2, published, force=True)
    assert "judged by the base's tails" in done.notes[0]
    assert rollouts.versions_in(root) == [1]


# --- list ---------------------------------------------------------------------------------------


def test_list_says_who_is_who(
    settings: Settings, root: Path, published: FakeServer, tmp_path: Path
) -> None:
    folder = write_version(tmp_path / "x", "tpp-x", linear_decoder("tpp-x"), encoder_scale=2.0)
    life.publish(settings, folder, published)
    life.promote(settings, 2, published, None)
    (root / "3" / "card.json").write_text("{")
    now = rollouts.read_rollout(root)
    one, two, three = listing.list_versions(root, now, published.served())
    assert (one.version, one.roles, one.published) == (1, ("previous", "base"), "")
    assert one.nats == pytest.approx(4.4435, abs=5e-5)
    assert one.decoder_bytes == (SHIPPED / "1" / "decoder.onnx").stat().st_size
    assert (two.roles, two.weights, two.same_encoder) == (("in charge",), "tpp-new", True)
    assert two.published == now.history[0].at
    assert two.trained_on == "made for a test"
    assert two.nats is None
    assert two.served is True
    assert (three.weights, three.same_encoder) == ("", False)
    assert "is no JSON" in three.fault
    assert [r.served for r in listing.list_versions(root, now, None)] == [None] * 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (rollouts.Change(1, "", "publish", 2), "version 2 was published"),
        (rollouts.Change(1, "", "shadow", 2), "version 2 went into shadow"),
        (rollouts.Change(1, "", "shadow", 0), "no version is in shadow any more"),
        (
            rollouts.Change(1, "", "promote", 2, "user", "better on users"),
            "version 2 was put in charge: better on users",
        ),
        (
            rollouts.Change(1, "", "rollback", 1, "guard", "likelihood: 3.2 nats an event"),
            "the guard went back to version 1: likelihood: 3.2 nats an event",
        ),
        (rollouts.Change(1, "", "rollback", 1), "version 1 was put in charge again"),
    ],
)
def test_changes_are_told_in_plain_words(change: rollouts.Change, words: str) -> None:
    assert listing.in_words(change) == words


def test_cards_of_both_trainings_are_read() -> None:
    """`eddy train` on simulated worlds judges several sets, `eddy train --from` one."""
    rows = [
        {"events": 30, "gap": 2.0, "mark": 1.0},
        {"events": 10, "gap": 1.0, "mark": 0.5},
    ]
    sets: list[Any] = [rows, {"held_out_entities_later": rows}, {"fresh_world": rows, "other": 3}]
    for judged in sets:
        assert listing._nats({"judged": judged}) == pytest.approx((30 * 3.0 + 10 * 1.5) / 40)
    for judged in (None, {}, [], {"fresh_world": []}, [{"events": 0, "gap": 1.0, "mark": 1.0}]):
        assert listing._nats({"judged": judged}) is None
    data = {"source": "/data/payments.jsonl", "first": "2026-01-05T00:00:01Z"}
    assert listing._trained_on({"data": data | {"last": "2026-01-25T23:59:48Z"}}) == (
        "payments.jsonl 2026-01-05 to 2026-01-25"
    )
    assert listing._trained_on({"data": {"source": "models.simulation, x; more"}}) == (
        "models.simulation, x"
    )
    assert listing._trained_on({}) == ""


# --- compare ------------------------------------------------------------------------------------


def test_shards_are_added_up_and_only_their_newest_reports_count() -> None:
    old = shadow_report(shard=0, at="2026-11-25T11:00:00Z", differences={"user": [9.0] * 50})
    user = [0.2, -0.4] * 100
    other = [-0.1, -0.3, 0.1] * 40
    messages = [
        {"type": "waiting", "generation": 9},
        old,
        shadow_report(shard=0, differences={"user": user, "device": [0.0] * 10}),
        shadow_report(shard=1, differences={"user": other}, warm=0.5, at="2026-11-25T12:00:05Z"),
    ]
    found = report.compare(messages)
    assert found is not None
    both = np.array(user + other)
    assert found.shards == 2
    assert found.at == "2026-11-25T12:00:05Z"
    assert found.kinds["user"].compared == len(both)
    assert found.kinds["user"].events == len(both) + 20
    assert found.kinds["user"].difference == pytest.approx(both.mean())
    assert found.kinds["user"].standard_error == pytest.approx(
        both.std(ddof=1) / np.sqrt(len(both))
    )
    assert found.kinds["user"].in_charge == pytest.approx(3.0)
    everything = np.concatenate([both, np.zeros(10)])
    assert found.total.difference == pytest.approx(everything.mean())
    assert found.total.standard_error == pytest.approx(
        everything.std(ddof=1) / np.sqrt(len(everything))
    )
    assert (found.both, found.come, found.go, found.missed_batches) == (8, 2, 4, 2)
    assert [e["id"] for e in found.examples] == ["u-0", "u-1"]
    assert found.latency["shadow"] == report.Latency(200, 5.0, 9.5)
    seen = [200 + 10 + 20, 120 + 10]
    assert found.warm == pytest.approx((seen[0] + 0.5 * seen[1]) / sum(seen))
    assert any("warm for" in caution for caution in found.cautions)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([-0.1, -0.2] * 100, "better"),
        ([0.1, 0.2] * 100, "worse"),
        ([-0.1, 0.1] * 100, "no difference shown"),
        ([-0.1, -0.2] * 10, "too few events"),
        ([0.0] * 200, "no difference shown"),
    ],
)
def test_the_verdict_at_two_standard_errors(values: list[float], verdict: str) -> None:
    found = report.compare([shadow_report(differences={"user": values})])
    assert found is not None
    assert found.verdict == verdict


def test_cautions_name_what_a_likelihood_does_not_show() -> None:
    skewed = [60] + [10] * 19
    flat = [10] * 20
    found = report.compare(
        [
            shadow_report(
                differences={"user": [-0.3, -0.2] * 100, "device": [0.1, 0.2] * 60},
                pit={
                    "in_charge": {"user": flat, "device": flat},
                    "shadow": {"user": skewed, "device": flat},
                },
                p99=(9.0, 40.0),
                failures={"in_charge": {}, "shadow": {"deadline": 3, "not_finite": 2}},
            )
        ]
    )
    assert found is not None
    assert found.kinds["user"].pit_shadow == pytest.approx(60 / 250 - 1 / 20)
    assert found.kinds["user"].pit_in_charge == pytest.approx(0.0)
    assert found.verdict == "better"
    assert list(found.cautions) == [
        "device: its likelihood is worse",
        "user: its calibration is worse (PIT distance 0.190, in charge 0.000)",
        "5 of 105 requests had no sound answer (deadline 3, not_finite 2)",
        "it is slower: p99 40 ms, in charge 9 ms",
    ]


def test_a_rollout_chooses_the_pair_and_its_beginning() -> None:
    change = rollouts.Change
    now = rollouts.Rollout(
        1, 1, shadow=2, generation=6,
        history=(change(4, "", "shadow", 0), change(5, "", "shadow", 2),
                 change(6, "", "publish", 3)),
    )  # fmt: skip
    earlier = shadow_report(shard=0, generation=3, differences={"user": [5.0] * 200})
    assert report.compare([earlier], now) is None
    mine = shadow_report(shard=1, generation=5)
    others = shadow_report(other=4, generation=6)
    found = report.compare([earlier, mine, others], now)
    assert found is not None
    assert (found.shards, found.generation, found.shadow[0]) == (1, 5, 2)
    asked = report.compare([earlier, mine, others], now, 4)
    assert asked is not None
    assert asked.shadow[0] == 4
    # Without a shadow now, the last one's reports are shown.
    last = report.compare([earlier, mine, others], replace(now, shadow=None))
    assert last is not None
    assert last.shadow[0] == 4
    assert report.compare([], now) is None


def test_a_report_of_another_form_is_refused() -> None:
    broken = shadow_report()
    del broken["report"]["nats"]
    with pytest.raises(ValueError, match="a shadow report lacks 'nats'"):
        report.compare([broken])


# --- the command line ---------------------------------------------------------------------------


@pytest.fixture
def shell(
    root: Path,
    server: FakeServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> Any:
    monkeypatch.setattr("deploy.models.server.TritonServer", lambda _settings: server)
    for name in [name for name in os.environ if name.startswith("EDDY_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["models", *arguments, "--set", f"triton.model_repository={root.parent}"])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def _reports(path: Path, *reports: dict[str, Any]) -> str:
    path.write_text("\n".join(json.dumps(one) for one in reports) + "\n\n", "utf-8")
    return str(path)


def test_a_life_by_commands(shell: Any, fresh: Path, tmp_path: Path) -> None:
    assert shell("publish", str(fresh))[:2] == (
        0,
        "version 2 is published; `eddy models shadow 2` tries it\n",
    )
    assert shell("shadow", "2")[1] == "version 2 is in shadow\n"
    lines = _reports(tmp_path / "r.jsonl", shadow_report(differences={"user": [-0.1, -0.2] * 100}))
    code, out, _ = shell("compare", "--from", lines)
    assert code == 0
    assert "better: the shadow gives what happened more probability" in out
    assert "4 stay, 1 would come, 2 would go" in out
    code, out, _ = shell("promote", "2", "--from", lines, "--reason", "better", "--json")
    assert code == 0
    assert json.loads(out)["rollout"]["in_charge"] == 2
    assert json.loads(out)["notes"] == []
    assert shell("rollback", "--reason", "after all not")[1] == "version 1 is in charge again\n"
    code, out, _ = shell("list")
    assert code == 0
    assert "version 1 was put in charge again: after all not" in out
    listed = json.loads(shell("list", "--json")[1])
    assert [row["roles"] for row in listed["versions"]] == [["in charge", "base"], []]
    assert listed["triton_answers"] is True
    assert shell("retire", "2")[0] == 1
    assert shell("retire", "2", "--force")[1] == "version 2 is gone\n"


def test_compare_as_json_has_no_nan(shell: Any, tmp_path: Path) -> None:
    lines = _reports(tmp_path / "r.jsonl", shadow_report(differences={"user": []}))
    code, out, _ = shell("compare", "--from", lines, "--json")
    told = json.loads(out)
    assert code == 0
    assert told["total"]["difference"] is None
    assert told["verdict"] == "too few events"
    code, out, _ = shell("compare", "--from", lines)
    assert "too few events to judge" in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("shadow",), 2, "give the number of a version, or --off"),
        (("shadow", "2", "--off"), 2, "give the number of a version, or --off"),
        (("compare", "--from", "missing.jsonl"), 1, "missing.jsonl cannot be read"),
        (("retire", "9"), 1, "expected a version of [1], found 9"),
        (("rollback",), 1, "none was before it"),
        (("publish", "nowhere"), 1, "found no decoder.onnx"),
    ],
)
def test_mistakes_are_named(
    shell: Any, arguments: tuple[str, ...], code: int, message: str
) -> None:
    found, _, err = shell(*arguments)
    assert found == code
    assert message in err


def test_lines_that_are_no_messages(shell: Any, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"type": "waiting"}\n{\n')
    assert "line 2 is no JSON" in shell("compare", "--from", str(path))[2]
    path.write_text("3\n")
    assert "line 1: expected a JSON object" in shell("compare", "--from", str(path))[2]
    path.write_text('{"type": "waiting"}\n')
    assert "no report of a shadow" in shell("compare", "--from", str(path))[2]


def test_list_with_triton_away(shell: Any, server: FakeServer) -> None:
    server.away = True
    code, out, _ = shell("list")
    assert code == 0
    assert "Triton does not answer" in out


def test_messages_of_a_file_are_put_in_order(tmp_path: Path) -> None:
    late, early = shadow_report(at="2026-01-02T00:00:00Z"), shadow_report(at="2026-01-01T00:00:00Z")
    path = tmp_path / "r.jsonl"
    _reports(path, late, early)
    assert [m["at"] for m in topic.read_file(path)] == [early["at"], late["at"]]


def test_a_server_that_is_not_there(settings: Settings) -> None:
    triton = TritonServer(replace(settings.triton, endpoint="127.0.0.1:1"))
    with pytest.raises(ServerAwayError, match=r"no Triton answers at 127.0.0.1:1"):
        triton.served()
