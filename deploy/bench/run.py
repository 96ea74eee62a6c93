"""Run one benchmark from start to report, on a stack of its own that leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable

from deploy.bench import measure, report, switches
from deploy.bench.measure import Result
from deploy.bench.plan import Plan
from deploy.bench.session import Session, session
from deploy.stack.options import StackOptions
from flink_jobs.settings import Settings

BENCHMARKS: dict[str, Callable[[Session], Result]] = {
    "throughput": measure.throughput,
    "latency": measure.latency,
    "state": measure.state,
    "switches": switches.switches,
}


def run_bench(
    name: str,
    settings: Settings,
    plan: Plan,
    options: StackOptions,
    progress: Callable[[str], None],
) -> report.Report:
    """Measure and return the report.

    Args:
        name: one of `BENCHMARKS`.
        settings: of the job; addresses and topics are those of the benchmark's own stack.
        plan: durations, sizes and rates.
        options: of that stack; its folder is removed at the end.
        progress: told of each step, one line each.

    Raises:
        StackError: a server or a job does not run.
        ValueError: too little went through to say anything.
    """
    if name == "switches":
        options, settings = switches.prepare(options, settings)
    with session(options, settings, plan, progress) as running:
        versions = report.versions(running.state)
        found = BENCHMARKS[name](running)
    return report.document(name, plan, settings, found, versions)
