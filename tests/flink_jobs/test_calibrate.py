"""Calibration by the job's own steps: what is kept, trimmed maxima, and predictive PITs."""

from __future__ import annotations

import numpy as np
import pytest

from flink_jobs import calibrate
from flink_jobs.advance import ADVANCED
from flink_jobs.calibrate import Surprises, observe
from flink_jobs.decide import DECIDED
from flink_jobs.misfit import register_misfits, thousandths
from flink_jobs.pit import BINS, PitCounts, kolmogorov
from models.fusion import FUSED
from models.prior import KindPrior
from models.prior_check import CheckModel, Misfit
from models.prior_fit import fit_tail
from tests.flink_jobs.score_cases import COMPILED, FakeClient, models_of, settings_of, split, stream

N = 30_000 if COMPILED else 21_000


def told(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    rng = np.random.default_rng(seed)
    advanced, decided = np.zeros(n, ADVANCED), np.zeros(n, DECIDED)
    advanced["row"] = rng.integers(0, 900, n)
    advanced["time_ms"] = rng.integers(0, 3 * calibrate.CLUSTER_MS, n)
    advanced["events"] = 50
    advanced["timed"] = True
    decided["surprise"] = rng.exponential(2.0, (n, len(FUSED)))
    decided["compensator"] = rng.exponential(1.0, n)
    return advanced, decided


def test_tails_are_those_of_all_surprises_however_they_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    advanced, decided = told(N, 1)
    kept = Surprises(settings_of())
    monkeypatch.setattr(calibrate, "_COMPACT_EVENTS", 5_000)
    for start in range(0, N, 2_000):
        kept(0, advanced[start : start + 2_000], decided[start : start + 2_000])
    found = kept.tails(0)
    cluster = advanced["row"].astype(np.int64) * 100_000
    cluster += advanced["time_ms"] // calibrate.CLUSTER_MS
    for d, name in enumerate(FUSED):
        assert found[name].tail == fit_tail(decided["surprise"][:, d], cluster)
        assert found[name].events == N
        assert found[name].clusters == len(np.unique(cluster))
        assert found[name].maxima[0] == decided["surprise"][:, d].max()
    assert found["silence"].tail.slope <= calibrate.SILENCE_STEEPEST


def test_young_entities_and_untimed_events_do_not_count() -> None:
    advanced, decided = told(100, 2)
    advanced["events"][:60] = 1
    advanced["timed"][60:70] = False
    kept = Surprises(settings_of())
    kept(0, advanced, decided)
    assert kept.tails(0)["burst"].events == 40
    assert kept.tails(0)["silence"].events == 30
    assert kept.tails(1)["burst"].events == 0


def test_entities_of_two_streams_are_kept_apart() -> None:
    advanced, decided = told(500, 3)
    kept = Surprises(settings_of())
    for _ in range(2):
        kept.begin_stream()
        kept(0, advanced, decided)
    cluster = advanced["row"] * 10 + advanced["time_ms"] // calibrate.CLUSTER_MS
    assert kept.tails(0)["mark"].clusters == 2 * len(np.unique(cluster))


def test_predictive_pits_are_flat_where_predictions_are_right() -> None:
    advanced, decided = told(N, 4)
    rng = np.random.default_rng(5)
    advanced["typical"], advanced["spread"] = 3.0, 2.0
    advanced["value"] = 3.0 + 2.0 * rng.normal(size=N)
    advanced["value"][::10] = np.nan
    pits = PitCounts([CheckModel.of(KindPrior())], min_events=8)
    pits(0, advanced, decided)
    assert pits.value[0].sum() == N - len(advanced[::10])
    assert pits.gap[0].sum() == N
    assert kolmogorov(pits.value[0]) < 0.015
    assert kolmogorov(pits.gap[0]) < 0.015
    decided["compensator"] *= 2.0
    wide = PitCounts([CheckModel.of(KindPrior())], min_events=8)
    wide(0, advanced, decided)
    # 1 - exp(-2 c) is farthest from 1 - exp(-c) at c = log 2: one quarter.
    assert kolmogorov(wide.gap[0]) == pytest.approx(0.25, abs=0.02)
    assert np.isnan(kolmogorov(np.zeros(BINS)))


def test_streams_are_played_whole_and_heard_by_all() -> None:
    settings = settings_of()
    batches = list(split(stream(200, 7), [33]))
    heard: list[tuple[int, int]] = []

    def hear(kind: int, advanced: np.ndarray, decided: np.ndarray) -> None:  # type: ignore[type-arg]
        assert len(advanced) == len(decided)
        heard.append((kind, len(advanced)))

    kept = Surprises(settings)
    models = models_of(settings)
    observe([lambda: batches] * 2, settings, models, FakeClient(), kept, [hear])
    merchants = [count for kind, count in heard if kind == 1]
    # Late events aside, each stream is played from unknown entities on.
    assert sum(merchants) % 2 == 0
    assert 250 < sum(merchants) <= 400


# -- the metric ------------------------------------------------------------------------------------


class Metrics:
    """Keeps gauges as Flink's metric group does."""

    def __init__(self, gauges: dict[str, object] | None = None, prefix: str = "") -> None:
        self.gauges: dict[str, object] = {} if gauges is None else gauges
        self.prefix = prefix

    def add_group(self, name: str) -> Metrics:
        return Metrics(self.gauges, f"{self.prefix}{name}.")

    def gauge(self, name: str, read: object) -> None:
        self.gauges[self.prefix + name] = read


class Shard:
    def __init__(self, *misfits: Misfit) -> None:
        self.checks = [type("Check", (), {"misfit": lambda _, m=m: m})() for m in misfits]


def test_the_worst_shard_is_told_in_thousandths() -> None:
    metrics = Metrics()
    nothing = Misfit(float("nan"), float("nan"))
    shards = [Shard(Misfit(0.021, 0.3), nothing), Shard(Misfit(0.1234, float("nan")), nothing)]
    register_misfits(metrics, ["user", "shop"], lambda: shards)  # type: ignore[arg-type,return-value]
    read = {name: gauge() for name, gauge in metrics.gauges.items()}  # type: ignore[operator]
    assert read == {
        "prior_misfit.user": 300, "prior_misfit_value.user": 123, "prior_misfit_gap.user": 300,
        "prior_misfit.shop": -1, "prior_misfit_value.shop": -1, "prior_misfit_gap.shop": -1,
    }  # fmt: skip
    shards.clear()
    assert metrics.gauges["prior_misfit.user"]() == -1  # type: ignore[operator]
    assert thousandths(Misfit(0.5, 0.25), "gap") == 250
