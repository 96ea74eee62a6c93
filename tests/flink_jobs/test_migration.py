"""Savepoints of earlier releases, restored: the next scores are those of the release that wrote."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flink_jobs import decide
from flink_jobs.alerts import Output
from flink_jobs.kind_model import KindModel
from flink_jobs.model_files import kind_models
from flink_jobs.scorer import ShardScorer
from flink_jobs.settings import Settings
from models.prior import load_prior
from models.tpp.encoder import Encoder
from tests.flink_jobs.score_cases import (
    COMPILED,
    DictStore,
    Event,
    FakeClient,
    run,
    scorer_of,
    settings_of,
    split,
)
from tests.state import fixtures

FOLDER = Path(fixtures.__file__).parent
MODEL = re.compile(r'"model":("intensity/1"|null),')
LATER = {"elapsed", "nats", "slot", "amount_slot"}  # what later releases tell as well


@dataclass(frozen=True)
class Savepoint:
    """A shard's map, and what the release that wrote it made of the next events."""

    arrays: dict[str, NDArray[Any]]

    def text(self, name: str) -> str:
        return self.arrays[name].tobytes().decode()

    @property
    def settings(self) -> Settings:
        return settings_of(*json.loads(self.text("options")))

    @property
    def store(self) -> DictStore:
        ends = np.cumsum(self.arrays["sizes"])
        data = self.arrays["data"].tobytes()
        starts = ends - self.arrays["sizes"]
        return DictStore(
            {
                int(key): data[start:end]
                for key, start, end in zip(self.arrays["keys"], starts, ends, strict=True)
            }
        )

    @property
    def events(self) -> list[Event]:
        return [Event(**json.loads(line)) for line in self.text("events").splitlines()]

    def models(self, settings: Settings) -> list[KindModel]:
        encoder = Encoder(*(self.arrays[f"encoder_{name}"] for name in ("w1", "b1", "w2", "b2")))
        return kind_models(settings, encoder, load_prior(FOLDER / "savepoint-1-prior.json"))


@pytest.fixture(autouse=True)
def no_amounts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the model say nothing of amounts, as those that the earlier releases asked."""

    def pack(
        answer: NDArray[np.float32],
        advanced: NDArray[np.void],
        nats: NDArray[np.float32] | None = None,
    ) -> NDArray[np.void]:
        packed = decide.pack(answer, advanced, nats)
        packed["amount_surprise"] = decide.NO_AMOUNT
        return packed

    monkeypatch.setattr("flink_jobs.scorer.pack", pack)


@pytest.fixture(scope="module")
def savepoint() -> Savepoint:
    with np.load(FOLDER / "savepoint-1.npz", allow_pickle=False) as arrays:
        return Savepoint({name: arrays[name] for name in arrays.files})


class Restored:
    """The savepoint restored by this release, and played on."""

    def __init__(self, savepoint: Savepoint, *overrides: str) -> None:
        settings = savepoint.settings.override(*overrides)
        self.seen: list[tuple[int, NDArray[np.void], NDArray[np.void]]] = []
        self.store = savepoint.store
        self.scorer: ShardScorer = scorer_of(
            settings,
            self.store,
            FakeClient((0, 1), refuse_every=6),
            lambda kind, told, decided: self.seen.append((kind, told.copy(), decided.copy())),
            savepoint.models(settings),
        )
        self.in_flight = self.scorer.in_flight
        self.outputs: list[Output] = run(self.scorer, split(savepoint.events, [11]))

    def scores(self, kind: int) -> tuple[NDArray[np.void], NDArray[np.void]]:
        mine = [(told, decided) for k, told, decided in self.seen if k == kind]
        told, decided = zip(*mine, strict=True)
        return np.concatenate(told), np.concatenate(decided)


def assert_equal(found: NDArray[Any], expected: NDArray[Any], name: str) -> None:
    """Compare bit for bit; kernels that run as Python may differ in the last digits."""
    if COMPILED or found.dtype.kind != "f":
        assert found.tobytes() == expected.tobytes(), name
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4, err_msg=name)


def assert_core_equal(restored: Restored, savepoint: Savepoint, row_fields: bool = True) -> None:
    for k, table in enumerate(restored.scorer.tables):
        told, decided = restored.scores(k)
        for name in set(told.dtype.names or ()) - LATER:
            assert_equal(told[name], savepoint.arrays[f"told_{k}_{name}"], f"{k} told {name}")
        surprise = savepoint.arrays[f"decided_{k}_surprise"]
        assert_equal(decided["surprise"][:, : surprise.shape[1]], surprise, f"{k} surprise")
        if row_fields:
            for name in set(decided.dtype.names or ()) - {"surprise"} - LATER:
                expected = savepoint.arrays[f"decided_{k}_{name}"]
                assert_equal(decided[name], expected, f"{k} decided {name}")
            for name in table.rows.dtype.names or ():
                expected = savepoint.arrays[f"row_{k}_{name}"]
                assert_equal(table.rows[name][: table.used], expected, f"{k} row {name}")
        assert_equal(table.memory[: table.used], savepoint.arrays[f"memory_{k}"], f"{k} memory")
        expected = savepoint.arrays[f"deadline_{k}"]
        assert_equal(table.deadline_ms[: table.used], expected, f"{k} deadline")


def test_the_savepoint_has_what_a_migration_must_cope_with(savepoint: Savepoint) -> None:
    store = savepoint.store
    versions = {value[:4]: int.from_bytes(value[4:6], "little") for value in store.values()}
    assert {versions[magic] for magic in (b"EdPg", b"EdLb", b"EdLa")} == {1}
    assert b"components" not in store[0]
    assert sum(len(value) for value in store.values()) > 20_000
    outputs = savepoint.text("outputs")
    assert '"detector":"silence"' in outputs
    assert '"detector":"amount' in outputs or '"detector":"burst' in outputs


def _without_sentences(output: str) -> str:
    return re.sub(r'"text":"[^"]*"', '"text":""', output)


def test_state_form_1_goes_on_with_the_same_scores(savepoint: Savepoint) -> None:
    restored = Restored(savepoint)
    assert restored.in_flight > 0
    assert restored.scorer.changes == []
    assert_core_equal(restored, savepoint)
    # Alerts have named model and version since.
    found = [f"{o.kind} {MODEL.sub('', o.value.decode())}" for o in restored.outputs]
    if COMPILED:
        # All but the sentences, whose wording has changed since.
        assert [*map(_without_sentences, found)] == [
            *map(_without_sentences, savepoint.text("outputs").split("\n"))
        ]
    else:
        assert len(found) == len(savepoint.text("outputs").split("\n"))


def test_a_restore_of_form_1_writes_nothing_and_new_pages_are_of_form_2(
    savepoint: Savepoint,
) -> None:
    settings = savepoint.settings
    store = savepoint.store
    scorer = scorer_of(settings, store, FakeClient(), models=savepoint.models(settings))
    assert store == savepoint.store
    run(scorer, split(savepoint.events, [11]))
    written = {key: value for key, value in store.items() if value != savepoint.store.get(key)}
    pages = [value for key, value in written.items() if key < 0]
    assert pages
    assert {int.from_bytes(value[4:6], "little") for value in pages} == {2}
