"""Who is in charge: one file, many writers, and a guard that must not swing."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from flink_jobs import rollout
from flink_jobs.errors import EddyError
from flink_jobs.rollout import FILE, KEPT_CHANGES, KEPT_FORMER, Rollout, read_rollout


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "intensity"
    for name in ("1", "2", "10", ".publish-11", "configs"):
        (folder / name).mkdir(parents=True)
    return folder


def test_without_a_file_the_newest_is_in_charge(root: Path) -> None:
    assert rollout.versions_in(root) == [1, 2, 10]
    assert read_rollout(root) == Rollout(10, 10)
    assert not (root / FILE).exists()


def test_without_any_version_nothing_is(tmp_path: Path) -> None:
    with pytest.raises(EddyError, match="expected a folder with a version's number"):
        read_rollout(tmp_path)


def test_begin_keeps_the_newest_in_charge_once_a_newer_one_comes(root: Path) -> None:
    began = rollout.begin_rollout(root)
    assert began == Rollout(10, 10)
    (root / "11").mkdir()
    assert read_rollout(root) == began
    rollout.promote(root, 11)
    assert rollout.begin_rollout(root) == read_rollout(root)
    assert read_rollout(root).in_charge == 11


def test_a_publication_is_noted_and_changes_nobody(root: Path) -> None:
    rollout.begin_rollout(root)
    (root / "11").mkdir()
    after = rollout.note_published(root, 11)
    assert (after.in_charge, after.base, after.generation, after.highest) == (10, 10, 1, 11)
    assert [(c.action, c.version, c.by) for c in after.history] == [("publish", 11, "user")]
    rollout.promote(root, 2)
    (root / "12").mkdir()
    assert rollout.note_published(root, 12).in_charge == 2


def test_shadow_begins_changes_and_ends(root: Path) -> None:
    assert rollout.put_in_shadow(root, 2).shadow == 2
    again = rollout.put_in_shadow(root, 2)
    assert again.generation == 1
    assert rollout.put_in_shadow(root, 1).shadow == 1
    ended = rollout.put_in_shadow(root, None)
    assert ended.shadow is None
    assert [c.version for c in ended.history] == [2, 1, 0]
    with pytest.raises(EddyError, match="version 10 is in charge"):
        rollout.put_in_shadow(root, 10)
    with pytest.raises(EddyError, match=r"expected a version of \[1, 2, 10\], found 3"):
        rollout.put_in_shadow(root, 3)
    assert read_rollout(root) == ended


def test_promotion_keeps_the_one_before_and_the_base(root: Path) -> None:
    rollout.put_in_shadow(root, 2)
    after = rollout.promote(root, 2, "better")
    assert after.in_charge == 2
    assert after.previous == 10
    assert after.base == 10
    assert after.shadow is None
    assert after.in_use == {2, 10}
    assert rollout.promote(root, 2) == after
    rollout.put_in_shadow(root, 1)
    other = rollout.promote(root, 10)
    assert other.shadow == 1
    assert other.in_use == {1, 2, 10}
    with pytest.raises(EddyError, match="found 3"):
        rollout.promote(root, 3)


def test_a_guard_that_fails_twice_does_not_swing(root: Path) -> None:
    rollout.promote(root, 2)
    back = rollout.roll_back(root, "guard", "not finite", failed=2)
    assert (back.in_charge, back.previous) == (10, None)
    assert (back.history[-1].by, back.history[-1].reason) == ("guard", "not finite")
    # The guards of the other workers saw the same failure: theirs change nothing.
    assert rollout.roll_back(root, "guard", "not finite", failed=2) == back
    # And the version gone back to, failing as well, has nowhere to go.
    with pytest.raises(EddyError, match="none was before it"):
        rollout.roll_back(root, "guard", "slow", failed=10)
    assert read_rollout(root) == back
    assert rollout.promote(root, 2).previous == 10


def test_a_rollback_to_the_shadow_ends_it(root: Path) -> None:
    rollout.promote(root, 2)
    rollout.put_in_shadow(root, 10)
    assert rollout.roll_back(root, "user", "").shadow is None
    rollout.promote(root, 2)
    rollout.put_in_shadow(root, 1)
    assert rollout.roll_back(root, "user", "").shadow == 1


def test_who_was_in_charge_is_remembered(root: Path) -> None:
    assert rollout.promote(root, 2).former == (10,)
    assert rollout.promote(root, 1).former == (2, 10)
    assert rollout.roll_back(root, "user", "").former == (1, 10)
    assert rollout.put_in_shadow(root, 1).former == (1, 10)
    # A file of before, without the field.
    text = json.loads((root / FILE).read_text())
    del text["former"]
    (root / FILE).write_text(json.dumps(text))
    assert read_rollout(root).former == (1,)
    for version in range(20, 40):
        (root / str(version)).mkdir()
        after = rollout.promote(root, version)
    assert after.former == tuple(range(38, 38 - KEPT_FORMER, -1))


def test_history_has_a_limit(root: Path) -> None:
    for k in range(KEPT_CHANGES + 7):
        rollout.promote(root, 1 + k % 2)
    last = read_rollout(root)
    assert last.generation == KEPT_CHANGES + 7
    assert len(last.history) == KEPT_CHANGES
    assert [c.generation for c in last.history] == list(range(8, KEPT_CHANGES + 8))


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"form": 2}', '{"form": 1}', '{"form": 1, "history": [{"odd": 1}]}'],
)
def test_a_damaged_file_is_named_with_the_way_out(root: Path, text: str) -> None:
    rollout.promote(root, 2)
    rollout.promote(root, 1)
    (root / FILE).write_text(text)
    with pytest.raises(EddyError, match=rf"{FILE} cannot be read: .*restore it from {FILE}.before"):
        read_rollout(root)
    with pytest.raises(EddyError, match="cannot be read"):
        rollout.promote(root, 2)
    assert (root / FILE).read_text() == text
    (root / FILE).write_bytes((root / f"{FILE}.before").read_bytes())
    assert read_rollout(root).in_charge == 2


def test_a_write_that_was_cut_short_leaves_the_old_one(root: Path) -> None:
    before = rollout.promote(root, 2)
    (root / f"{FILE}.new").write_text('{"form": 1, "in_')
    assert read_rollout(root) == before
    assert rollout.promote(root, 1).previous == 2


def test_each_write_reaches_the_disk_before_it_counts(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def fsync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    monkeypatch.setattr("os.fsync", fsync)
    rollout.promote(root, 2)
    assert synced == [f"{FILE}.new", root.name]
    rollout.promote(root, 1)
    assert synced[2:] == [f"{FILE}.before.new", root.name, f"{FILE}.new", root.name]


def test_the_highest_number_is_kept_beyond_the_history(root: Path) -> None:
    rollout.begin_rollout(root)
    rollout.note_published(root, 11)
    for k in range(KEPT_CHANGES + 1):
        rollout.promote(root, 1 + k % 2)
    assert read_rollout(root).highest == 11
    text = json.loads((root / FILE).read_text())
    del text["highest"]
    (root / FILE).write_text(json.dumps(text))
    assert read_rollout(root).highest == 2, "a file of before knows its history alone"


def _promote_often(root: Path, version: int, times: int) -> None:
    for _ in range(times):
        rollout.promote(root, version)


def test_writers_of_many_processes_lose_no_change(root: Path) -> None:
    """Two promote in turn, while this one reads: no torn file, no generation given twice."""
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_promote_often, args=(root, v, 60)) for v in (1, 2)]
    for writer in writers:
        writer.start()
    seen = []
    while any(writer.is_alive() for writer in writers):
        seen.append(read_rollout(root).generation)
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert seen == sorted(seen)
    last = read_rollout(root)
    generations = [c.generation for c in last.history]
    assert generations == list(range(last.generation - len(generations) + 1, last.generation + 1))
    # Each change put another version in charge: none acted on a state that another had changed.
    assert all(a.version != b.version for a, b in zip(last.history, last.history[1:], strict=False))
    assert json.loads((root / FILE).read_text())["in_charge"] == last.history[-1].version
