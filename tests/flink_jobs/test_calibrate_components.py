"""Calibration by the job's own steps: each detector and each component gets its tail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from flink_jobs import calibrate
from flink_jobs.calibrate import fit_calibration
from models.detectors import FUSED
from models.prior import KindPrior, Prior
from state.columns import Strings
from state.events import EventBatch, hash_strings
from tests.flink_jobs.component_cases import registered
from tests.flink_jobs.score_cases import COMPILED, START_MS, FakeClient, encoder, settings_of

pytestmark = pytest.mark.skipif(not COMPILED, reason="a tail needs more events than Python walks")
ENTITIES = 500
BATCHES = 60
KINDS = 2


def steady(seed: int) -> Iterator[EventBatch]:
    """Yield batches in which each entity has one event and its value is normal about its mean."""
    rng = np.random.default_rng(seed)
    ids = Strings.of([f"e-{i}".encode() for i in range(ENTITIES)])
    mean = rng.normal(0.0, 1.0, ENTITIES)
    for number in range(BATCHES):
        time_ms = START_MS + number * 3_600_000 + np.arange(ENTITIES, dtype=np.int64)
        yield EventBatch(
            "eddy.payments", time_ms, mean + rng.normal(0.0, 0.5, ENTITIES),
            np.full(ENTITIES, 255, np.uint8), np.full(ENTITIES, 3, np.uint8),
            np.zeros(ENTITIES, np.int32), number * ENTITIES + np.arange(ENTITIES), time_ms,
            ids, (ids,) * KINDS, np.stack([hash_strings(ids)] * KINDS),
        )  # fmt: skip


def test_each_component_gets_its_tail_with_the_model_and_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calibrate, "InProcessClient", lambda _path: FakeClient())
    monkeypatch.setattr(calibrate, "load_encoder", lambda _folder: encoder())
    prior = Prior({"default": KindPrior(value_mean=0.0, value_within_var=0.25, gap_mean=8.0)})
    with registered():
        settings = settings_of(
            "event.value_transform=identity", "event.value_min=-100",
            'event.entities={user = "/user", device = "/device"}', "detection.silence_kinds=user",
            "detection.components.user=step", "state.max_entities=1000",
        )  # fmt: skip
        fitted = fit_calibration([lambda: steady(1)], settings, Path(), prior)
    user, device = fitted.of("user"), fitted.of("device")
    assert set(user.tails) == set(user.degraded_tails) == {*FUSED, "silence", "step.size"}
    assert set(device.tails) == {*FUSED, "silence"}
    tail = user.tails["step.size"]
    assert tail == user.degraded_tails["step.size"]  # the intensity model has no part in it
    # A step of two normals, in sd: of 200 entities the largest of the week lies near 4 to 5.
    assert tail.slope == 1.0  # lighter than exponential: taken for no more than it says
    p = np.exp(tail.offset - tail.slope * 5.5)
    assert 1e-5 < p < 0.1
