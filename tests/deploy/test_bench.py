"""The benchmarks: figures from samples, the form of the report, and one short real run."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from deploy.bench import measure, plan, report, run, statistics, workload
from deploy.bench.jobs_under_test import settings_of, system
from deploy.bench.statistics import Arrival, Sample
from deploy.stack import processes
from deploy.stack.options import REPOSITORY, StackOptions
from deploy.stack.record import StackState
from flink_jobs.settings import Settings, load
from models.simulation.throughput import throughput


@pytest.fixture
def settings() -> Settings:
    return load(None, {}, [])


def steady(rates: list[tuple[float, float]], step_s: float = 0.5) -> list[Sample]:
    """Sample a run with a second of silence, then (seconds, payments per second) one by one."""
    samples = [Sample(100.0, 0.0, {"jvm": 5.0}), Sample(101.0, 0.0, {"jvm": 6.0})]
    for seconds, rate in rates:
        for _ in range(round(seconds / step_s)):
            last = samples[-1]
            samples.append(
                Sample(
                    last.at_s + step_s,
                    last.payments + rate * step_s,
                    {"jvm": last.cpu_s["jvm"] + 0.8 * step_s},
                )
            )
    return samples


# --- throughput ----------------------------------------------------------------------------------


def test_the_cold_and_the_warm_part_are_told_apart() -> None:
    found = statistics.throughput(steady([(10, 1_000), (20, 4_000)]), 10, 30, 10**9)
    assert found.cold_payments_per_s == pytest.approx(1_000)
    assert found.payments_per_s == pytest.approx(4_000)
    assert found.window_s == pytest.approx((10, 30))
    assert found.cpu_us_per_payment == {"jvm": pytest.approx(200.0)}


def test_the_time_before_the_first_payment_does_not_count() -> None:
    samples = steady([(4, 100)])
    assert statistics.begin_s(samples) == 101.0
    with pytest.raises(ValueError, match="no payment went through"):
        statistics.begin_s(samples[:2])


def test_the_window_ends_with_the_backlog() -> None:
    samples = steady([(10, 1_000), (10, 4_000), (20, 0)])
    found = statistics.throughput(samples, 10, 40, 50_000)
    assert found.payments_per_s == pytest.approx(4_000)
    assert found.window_s == pytest.approx((10, 19.5))


def test_a_backlog_that_did_not_last_is_said() -> None:
    samples = steady([(10, 1_000), (20, 0)])
    with pytest.raises(ValueError, match="the backlog of 10000 payments did not last beyond"):
        statistics.throughput(samples, 10, 30, 10_000)


def test_samples_after_the_end_do_not_count() -> None:
    samples = steady([(10, 1_000), (10, 4_000), (20, 9_000)])
    assert statistics.throughput(samples, 10, 20, 10**9).payments_per_s == pytest.approx(4_000)


def test_the_slope_is_that_of_least_squares() -> None:
    x = [0.0, 1.0, 2.0, 4.0]
    y = [1.0, 2.0, 2.0, 5.0]
    assert statistics.slope(x, y) == pytest.approx(np.polyfit(x, y, 1)[0])
    assert statistics.slope([3.0, 3.0], [1.0, 2.0]) == 0.0


# --- latency -------------------------------------------------------------------------------------


def test_a_payment_is_timed_by_its_first_output() -> None:
    arrivals = [Arrival(1.25, 11), Arrival(1.05, 10), Arrival(1.30, 10), Arrival(1.20, 11)]
    sent_ms = np.array([1_000, 1_100, 1_200], np.int64)
    found = statistics.latencies_ms(arrivals, 10, sent_ms)
    assert found == pytest.approx([50.0, 100.0])


def test_payments_outside_the_measured_seconds_are_left_out() -> None:
    arrivals = [Arrival(1.0, 9), Arrival(1.5, 10), Arrival(2.0, 12)]
    found = statistics.latencies_ms(arrivals, 10, np.array([1_000, 1_000], np.int64))
    assert found == pytest.approx([500.0])
    assert len(statistics.latencies_ms([], 10, np.zeros(2, np.int64))) == 0


def test_percentiles() -> None:
    found = statistics.percentiles(np.arange(101, dtype=np.float64))
    assert found == {"p50_ms": 50.0, "p99_ms": 99.0}
    with pytest.raises(ValueError, match="no output arrived"):
        statistics.percentiles(np.zeros(0))


def test_the_longest_gap_has_both_ends_in_it() -> None:
    assert statistics.longest_gap_s([3.0, 1.0, 2.0, 99.0], 0.5, 4.5) == 1.5
    assert statistics.longest_gap_s([], 1.0, 4.0) == 3.0


@pytest.mark.parametrize(
    ("above", "below", "expected"), [(6.0, 2.0, 3.0), (None, 2.0, None), (1.0, None, None),
                                     (1.0, 0.0, None), (0.0, 2.0, 0.0)]
)  # fmt: skip
def test_a_ratio_needs_both(
    above: float | None, below: float | None, expected: float | None
) -> None:
    assert statistics.ratio(above, below) == expected


# --- the plan and its payments -------------------------------------------------------------------


def test_a_plan_refuses_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="0 < warm_s < until_s"):
        replace(plan.FULL, warm_s=120.0)
    with pytest.raises(ValueError, match=r"found \['flink'\]"):
        replace(plan.FULL, systems=("eddy", "flink"))


def test_the_measured_seconds_come_after_the_warm_up() -> None:
    chosen = plan.FULL.measured_for(30)
    assert (chosen.warm_s, chosen.until_s, chosen.live_s) == (45, 75, 30)
    assert chosen.backlog == 75 * plan.FULL.backlog_per_s


def test_every_so_manieth_payment_is_a_marker() -> None:
    plain = list(throughput(entities=50, payments=230, chunk_payments=100))
    chunks = list(workload.marked(plain, 50))
    factor = np.concatenate([m.amount / p.amount for m, p in zip(chunks, plain, strict=True)])
    assert np.flatnonzero(factor > 1).tolist() == [0, 50, 100, 150, 200]
    assert factor.max() == workload.MARKER_FACTOR


def test_a_live_run_continues_its_history_in_event_time() -> None:
    chosen = replace(plan.SHORT, history_events=3)
    now = datetime(2026, 3, 2, 12, tzinfo=UTC)
    history, steady_chunks = workload.live(chosen, entities=1_500, payments=2_500, now=now)
    follow = list(steady_chunks)
    assert sum(map(len, history)) == workload.history_payments(chosen, 1_500) == 5_000
    assert sum(map(len, follow)) == 2_500
    now_ms = int(now.timestamp() * 1_000)
    assert abs(int(follow[0].time_ms[0]) - now_ms) <= 2
    assert int(history[-1].time_ms[-1]) <= int(follow[0].time_ms[0])
    assert follow[0].first_index == 5_000


# --- systems -------------------------------------------------------------------------------------


def test_each_system_has_topics_and_a_name_of_its_own(settings: Settings, tmp_path: Path) -> None:
    ports = {"kafka": 1234, "triton_grpc": 2345, "flink_rest": 3456}
    state = StackState(StackOptions(root=tmp_path), ports)
    found = {
        name: settings_of(system(name, settings), settings, state, "bench.backlog", "exactly_once")
        for name in plan.SYSTEMS
    }
    assert len({one.sink.alerts_topic for one in found.values()}) == len(found)
    assert len({one.source.group_id for one in found.values()}) == len(found)
    assert {one.source.bootstrap_servers for one in found.values()} == {"127.0.0.1:1234"}
    assert {name for name, one in found.items() if not one.triton.enabled} == {"no_triton"}
    # All else is as the user has it: the job under test is the job that runs.
    assert found["eddy"].detection == settings.detection
    assert found["eddy"].flink == settings.flink


def test_scores_are_counted_by_entity(settings: Settings) -> None:
    assert system("eddy", settings).scores == 3
    assert system("naive", settings).per_payment == 3
    assert system("pass_through", settings).scores == 0


# --- the report ----------------------------------------------------------------------------------


def a_report(settings: Settings) -> report.Report:
    found = measure.Result(
        systems={
            "eddy": {"payments_per_s": 65_812.345, "entities": 300_000.0},
            "pass_through": {"payments_per_s": 130_000.0, "entities": None},
            "naive": {"payments_per_s": math.nan, "entities": math.inf},
        },
        ratios={"eddy_over_pass_through": 0.5062488, "eddy_over_naive": None},
    )
    return report.document("throughput", plan.FULL, settings, found, {"python": "3.11"})


def test_the_report_is_json_that_any_reader_takes(settings: Settings) -> None:
    text = json.dumps(a_report(settings), allow_nan=False)
    read = json.loads(text)
    assert {"machine", "versions", "input", "systems", "ratios"} <= set(read)
    assert read["systems"]["eddy"] == {"payments_per_s": 65_812, "entities": 300_000}
    assert read["systems"]["naive"] == {"payments_per_s": None, "entities": None}
    assert read["ratios"] == {"eddy_over_pass_through": 0.50625, "eddy_over_naive": None}
    assert read["input"]["plan"]["warm_s"] == 45
    assert read["machine"]["cores"] >= 1
    assert os.uname().nodename not in text


def test_ratios_are_eddys_over_the_others() -> None:
    systems: dict[str, measure.Figures] = {
        "eddy": {"payments_per_s": 60_000.0},
        "pass_through": {"payments_per_s": 120_000.0},
        "naive": {"payments_per_s": None},
    }
    found = measure._over("payments_per_s", systems)
    assert found == {"eddy_over_pass_through": 0.5, "eddy_over_naive": None}
    assert measure._over("payments_per_s", {"naive": {"payments_per_s": 1.0}}) == {}


def test_the_table_shows_every_figure(settings: Settings) -> None:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(report.table(a_report(settings)["systems"]))
    shown = captured.get()
    assert "65,812" in shown
    assert "pass_through" in shown


# --- a real run ----------------------------------------------------------------------------------


@pytest.mark.bench
@pytest.mark.timeout(1_200)
def test_a_short_run_of_each_system_on_real_servers(settings: Settings, tmp_path: Path) -> None:
    venv = Path(os.environ.get("EDDY_TEST_TRITON_VENV", REPOSITORY / ".venv-triton"))
    options = StackOptions(root=tmp_path / "bench", triton_venv=venv, start_timeout_s=240.0)
    lines: list[str] = []
    brief = replace(plan.SHORT, warm_s=8.0, until_s=16.0)
    found = run.run_bench("throughput", settings, brief, options, lines.append)
    systems = found["systems"]
    assert list(systems) == list(plan.SYSTEMS)
    for name, figures in systems.items():
        print(name, figures)
        assert (figures["payments_per_s"] or 0) > 0
        assert (figures["cpu_us_per_payment_python"] or 0) > 0
    assert lines
    assert processes.find_marked(options.root) == []
    assert not options.root.exists()


def test_a_wrong_system_is_refused_before_anything_starts(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deploy.cli", "bench", "throughput", "--systems", "eddy,x",
         "--root", str(tmp_path)],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "found ['x']" in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []
