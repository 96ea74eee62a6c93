"""The report of a benchmark: its JSON form, and the same as a table."""

from __future__ import annotations

import json
import math
import os
import platform
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypedDict

import psutil
from rich.table import Table

from deploy.bench.measure import Result
from deploy.bench.plan import Plan
from deploy.stack.java import read_lock
from deploy.stack.options import StackError
from deploy.stack.record import StackState
from flink_jobs.settings import Settings

PACKAGES = ("eddy-streams", "apache-flink", "confluent-kafka", "numba", "numpy", "tritonclient")
TRITON_TIMEOUT_S = 5.0
CPU_INFO = Path("/proc/cpuinfo")

Json = dict[str, object]
Number = float | int | None


class Report(TypedDict):
    """What a benchmark writes; keys may be added, never changed."""

    benchmark: str
    machine: Json
    versions: dict[str, str]
    input: Json
    systems: dict[str, dict[str, Number]]
    ratios: dict[str, Number]


def document(
    name: str, plan: Plan, settings: Settings, found: Result, versions: Mapping[str, str]
) -> Report:
    """Put a report together; every number in it is finite or null."""
    return {
        "benchmark": name,
        "machine": machine(),
        "versions": dict(versions),
        "input": {
            "payments": "models.simulation.throughput: string ids, no cycles, no anomalies",
            "plan": asdict(plan),
            "settings_hash": settings.settings_hash(),
            "batch_ms": settings.source.batch_ms,
            "checkpoint_interval_ms": settings.flink.checkpoint_interval_ms,
            "parallelism": settings.flink.parallelism,
            "shards": settings.flink.shards,
            "state_backend": "rocksdb, incremental",
            "latency_from": "LogAppendTime of the payment",
            "latency_to": "a read_committed consumer has the first alert of the payment",
        },
        "systems": {
            name: {figure: _finite(value) for figure, value in figures.items()}
            for name, figures in found.systems.items()
        },
        "ratios": {name: _finite(value) for name, value in found.ratios.items()},
    }


def _finite(value: float | None) -> Number:
    """Write counts as integers, drop digits that mean nothing; JSON knows no NaN."""
    if value is None or not math.isfinite(value):
        return None
    return int(value) if value == int(value) else float(f"{value:.5g}")


def machine() -> Json:
    """Describe this machine, without its name."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "os": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
    }


def _cpu_model() -> str:
    try:
        lines = CPU_INFO.read_text("utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or "unknown"


def versions(state: StackState) -> dict[str, str]:
    """Name the versions of all that takes part."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    with_jars = {"kafka_2.13": "kafka", "flink-sql-connector-kafka": "flink-kafka-connector"}
    try:
        jars = {jar.artifact: jar.version for jar in read_lock()}
    except StackError:
        jars = {}
    for artifact, shown in with_jars.items():
        found[shown] = jars.get(artifact, "unknown")
    found["triton"] = _triton_version(state)
    return found


def _triton_version(state: StackState) -> str:
    port = state.ports.get("triton_http")
    if port is None:
        return "unknown"
    handler = urllib.request.ProxyHandler({})
    address = f"http://127.0.0.1:{port}/v2"
    try:
        with urllib.request.build_opener(handler).open(address, timeout=TRITON_TIMEOUT_S) as reply:
            return str(json.load(reply).get("version", "unknown"))
    except (OSError, ValueError):
        return "unknown"


def table(systems: Mapping[str, Mapping[str, Number]]) -> Table:
    """Show the figures, one row each, the systems side by side."""
    names = list(systems)
    shown = Table("", box=None)
    for name in names:
        shown.add_column(name, justify="right")
    for figure in dict.fromkeys(key for figures in systems.values() for key in figures):
        shown.add_row(figure, *(text(systems[name].get(figure)) for name in names))
    return shown


def text(value: Number) -> str:
    """Write a figure for people.

    >>> text(65800.12), text(0.8123), text(None)
    ('65,800', '0.812', '')
    """
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.3g}"
    return ""
