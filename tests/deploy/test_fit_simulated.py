"""A prior fitted to one simulated world, judged on another: false alerts, and the misfit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from deploy import simulate
from deploy.fit.run import FitOptions, run_fit
from deploy.fit.source import read_stream
from flink_jobs.alerts import ALERT
from flink_jobs.calibrate import DictStore
from flink_jobs.intensity_protocol import NullClient
from flink_jobs.model_files import load_models
from flink_jobs.scorer import ShardScorer
from flink_jobs.settings import Settings, load
from models.prior_check import MISFIT
from models.simulation.config import SimulationConfig
from state.events import EventBatch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PER_MILLION = 100.0
WORLD = SimulationConfig(users=1_200, merchants=120, payments=200_000)
ALONE = (
    "triton.enabled=false",
    "detection.detectors=amount,amount_shift,burst,regularity,partners,mark,surge",
    f"detection.false_alerts_per_million={PER_MILLION}",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fit a prior to one world, and write another."""
    folder = tmp_path_factory.mktemp("fit")
    for seed, name in ((900, "known"), (901, "fresh")):
        simulate.write_file(replace(WORLD, seed=seed), folder / f"{name}.jsonl")
    options = FitOptions(str(folder / "known.jsonl"), folder / "prior.json", sample=30)
    run_fit(load(None, {}, list(ALONE)), options, lambda *_: None)
    return folder


def settings_of(folder: Path) -> Settings:
    return load(None, {}, [*ALONE, f"detection.prior={folder / 'prior.json'}"])


def play(
    folder: Path, change: Callable[[EventBatch], EventBatch] = lambda batch: batch
) -> tuple[ShardScorer, list[int], NDArray[np.float64]]:
    """Score the fresh world; return the alerts by kind, and the worst misfits while it went on."""
    settings = settings_of(folder)
    events = change(
        read_stream(str(folder / "fresh.jsonl"), settings, 10**7, lambda _: None).events
    )
    scorer = ShardScorer(settings, load_models(settings), DictStore(), NullClient())
    kinds = [kind for kind, _ in settings.event.entities]
    alerts = [0] * len(kinds)
    worst = np.zeros((len(kinds), 2))

    def batches() -> Iterator[EventBatch]:
        for start in range(0, len(events), 2_048):
            yield events.part(start, start + 2_048)

    for batch in batches():
        for output in scorer.on_batch(batch):
            if output.kind == ALERT:
                alerts[kinds.index(output.key.partition("/")[0])] += 1
        for k, check in enumerate(scorer.checks):
            worst[k] = np.fmax(worst[k], check.misfit())
    return scorer, alerts, worst


def test_false_alerts_on_a_fresh_world_are_those_promised_within_a_factor_of_two(
    folder: Path,
) -> None:
    scorer, alerts, worst = play(folder)
    promised = PER_MILLION * 1e-6 * scorer.counters["decided"]
    print(f"alerts {alerts}, promised {promised:.0f}, worst misfits {worst.round(3).tolist()}")
    assert promised / 2.0 < sum(alerts) < promised * 2.0
    assert worst.max() < MISFIT


def test_doubled_amounts_are_a_misfit_of_values_alone(folder: Path) -> None:
    scorer, _, _ = play(folder, lambda batch: replace(batch, value=2.0 * batch.value))
    for check in scorer.checks:
        assert check.misfit().value > MISFIT
        assert check.misfit().gap < MISFIT


def thinned(batch: EventBatch) -> EventBatch:
    keep = np.arange(len(batch)) % 6 == 0
    return EventBatch(
        batch.topic, batch.time_ms[keep], batch.value[keep], batch.mark[keep], batch.owned[keep],
        batch.partition[keep], batch.offset[keep], batch.ingest_ms[keep],
        batch.event_id.only(keep), tuple(ids.only(keep) for ids in batch.ids),
        batch.hashes[:, keep],
    )  # fmt: skip


def test_a_sixth_of_the_events_is_a_misfit_of_gaps_alone(folder: Path) -> None:
    scorer, _, _ = play(folder, thinned)
    for check in scorer.checks:
        assert check.misfit().gap > MISFIT
        assert check.misfit().value < MISFIT
