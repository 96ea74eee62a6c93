"""The command line: what it prints, its exit codes, and that errors carry no traceback."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy import alerts, simulate, submit
from deploy.bench import run as bench_run
from deploy.bench.plan import FULL, SHORT, Plan
from deploy.cli import app
from deploy.commands import options, train
from deploy.demo import run as demo_run
from deploy.stack import kafka, stack
from deploy.stack.options import ServiceStatus, StackError, StackOptions
from deploy.stack.record import StackState
from flink_jobs.errors import EddyError
from flink_jobs.settings import MASK, Settings
from models.prior import KindPrior, Prior, save_prior
from models.simulation.config import SimulationConfig
from tests.deploy.command_line import Run
from tests.flink_jobs.component_cases import registered

# ---- the whole ----


def test_help_names_every_command() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    commands = (
        "up",
        "down",
        "status",
        "run",
        "simulate",
        "alerts",
        "demo",
        "bench",
        "config",
        "train",
        "fit",
    )
    for command in commands:
        assert f"\n  {command} " in result.stdout


@pytest.mark.parametrize("group", ["", "bench", "config", "evaluate"])
def test_no_summary_of_a_command_is_cut_off(group: str) -> None:
    result = CliRunner().invoke(app, [*group.split(), "--help"], env={"COLUMNS": "80"})
    commands = result.stdout.partition("Commands:")[2].splitlines()
    cut = [line for line in commands if line.endswith("...")]
    assert cut == []


@pytest.mark.parametrize(
    "command",
    [
        *("up", "down", "status", "run", "simulate", "alerts", "demo", "train", "fit"),
        *("bench throughput", "bench latency", "bench state", "config show", "config check"),
    ],
)
def test_every_command_explains_its_options(eddy: Run, command: str) -> None:
    result = eddy(*command.split(), "--help")
    assert result.code == 0
    assert f"Usage: eddy {command} [OPTIONS]" in result.out


def test_version(eddy: Run) -> None:
    result = eddy("--version")
    assert result.code == 0
    assert result.out.startswith("eddy")


def test_unknown_command_is_wrong_usage(eddy: Run) -> None:
    result = eddy("statsu")
    assert result.code == 2
    assert "No such command 'statsu'" in result.err
    assert "status" in result.err


def test_completion_can_be_shown() -> None:
    result = CliRunner().invoke(app, ["--show-completion", "bash"], env={"SHELL": "/bin/bash"})
    assert "_EDDY_COMPLETE" in result.stdout or "complete" in result.stdout


def test_importing_the_command_line_is_light() -> None:
    """Each command imports what it needs: help must not wait for Kafka's or Flink's clients."""
    import subprocess

    code = (
        "import sys; import deploy.cli; print(sorted(set(sys.modules) &"
        " {'confluent_kafka', 'pyflink', 'numpy', 'numba', 'tritonclient', 'torch', 'psutil'}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_ctrl_c_ends_with_130(eddy: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_root: Path) -> list[ServiceStatus]:
        raise KeyboardInterrupt

    monkeypatch.setattr(stack, "status", interrupt)
    assert eddy("status").code == 130


# ---- config ----


def test_config_check(eddy: Run, tmp_path: Path) -> None:
    assert eddy("config", "check").out.startswith("the defaults: fine (settings ")
    path = tmp_path / "mine.toml"
    path.write_text("[triton]\ntimeout_ms = 5\n")
    assert eddy("config", "check", "--config", str(path)).out.startswith(f"{path}: fine")
    path.write_text("[triton]\ntimeout = 5\n")
    result = eddy("config", "check", "-c", str(path))
    assert result.code == 1
    assert result.err == (
        "eddy: 1 mistake in the settings:\n"
        f"  {path}: unknown key triton.timeout; did you mean triton.timeout_ms?\n"
    )


def test_config_check_reckons_memory(eddy: Run) -> None:
    result = eddy("config", "check", "--entities", "300000", "--set", "flink.shards=2")
    lines = result.out.splitlines()
    # Tables of 4,096 rows double up to 262,144 in each of two shards; a row has 4 slots.
    assert lines[1] == (
        "user: 528 bytes per entity (row 232, memory 256, index 40); "
        "264 MiB for 300,000 (524,288 rows)"
    )
    assert [line.partition(":")[0] for line in lines[1:]] == [
        "user", "merchant", "device", "all kinds"
    ]  # fmt: skip
    assert lines[4] == "all kinds: 792 MiB in 2 shards"
    with registered():
        result = eddy("config", "check", "--json", "--set", "detection.components.user=step")
    found = json.loads(result.out)
    assert found["entities"] == 100_000
    user = found["kinds"]["user"]
    assert user["bytes_by_part"]["step"] == 25
    assert user["bytes_per_entity"] == sum(user["bytes_by_part"].values()) == 553
    assert user["stored_bytes_per_entity"] == 496 + 25
    assert user["memory_bytes"] == user["rows"] * user["bytes_per_entity"]
    assert found["kinds"]["device"]["stored_bytes_per_entity"] == 496


def test_config_check_builds_the_components_from_the_prior(eddy: Run, tmp_path: Path) -> None:
    level = ("--set", "detection.components.user=level", "--set")
    path = tmp_path / "prior.json"
    assert "level 57" in eddy("config", "check", *level, "detection.prior=").out
    result = eddy("config", "check", *level, f"detection.prior={path}")
    assert result.code == 1
    assert f"detection.prior: {path} cannot be read" in result.err
    save_prior(Prior({"user": KindPrior(level_noise=-1.0)}), path)
    result = eddy("config", "check", *level, f"detection.prior={path}")
    assert result.code == 1
    assert result.err == (
        "eddy: detection.components.user: the prior of user does not serve level: level.noise_var:"
        " expected a finite number at least 0, found -1.0; leave the component out, or fit the"
        " prior again with `eddy fit`\n"
    )
    result = eddy("config", "check", *level, "triton.model_version=77")
    assert result.code == 1
    assert "model repository: expected intensity/77" in result.err


def test_config_show_masks_secrets_and_says_where_from(eddy: Run) -> None:
    result = eddy("config", "show", "--changed", "--set", "source.kafka.sasl.password=hush")
    assert result.code == 0
    assert "hush" not in result.out
    assert (
        f'kafka = {{"sasl.password" = "{MASK}"}}  # --set source.kafka.sasl.password' in result.out
    )
    assert "timeout_ms" not in result.out
    nothing = eddy("config", "show", "--changed").out.splitlines()
    assert nothing[1:] == ["# all are the defaults: no file, variable or --set changes one"]


def test_config_show_json_and_toml_hold_every_key(eddy: Run) -> None:
    import tomllib

    shown = json.loads(eddy("config", "show", "--json").out)
    assert shown["settings"]["triton"]["timeout_ms"] == 500
    assert len(shown["hash"]) == 16
    assert tomllib.loads(eddy("config", "show").out) == shown["settings"]


def test_a_file_in_the_folder_and_the_environment_are_read(
    eddy: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "eddy.toml").write_text("[triton]\ntimeout_ms = 5\n")
    monkeypatch.setenv("EDDY_TRITON__MAX_ROWS", "7")
    out = eddy("config", "show", "--changed").out
    assert "timeout_ms = 5  # eddy.toml" in out
    assert "max_rows = 7  # EDDY_TRITON__MAX_ROWS" in out


# ---- the stack ----


def test_settings_take_the_addresses_of_the_running_stack(
    eddy: Run, running: StackState, tmp_path: Path
) -> None:
    del eddy
    root = running.root
    settings = options.read_settings(None, [], root)
    assert settings.source.bootstrap_servers == "127.0.0.1:9102"
    assert settings.triton.endpoint == "127.0.0.1:8011"
    assert settings.flink.rest == "http://127.0.0.1:8091"
    named = options.read_settings(None, ["triton.endpoint=other:1"], root)
    assert named.triton.endpoint == "other:1"
    without = options.read_settings(None, [], tmp_path / "none")
    assert without.source.bootstrap_servers == "127.0.0.1:9092"


def test_up_passes_the_users_servers_and_their_security(
    eddy: Run, monkeypatch: pytest.MonkeyPatch, running: StackState
) -> None:
    asked: list[StackOptions] = []

    def up(wanted: StackOptions, report: Callable[[str], None]) -> StackState:
        asked.append(wanted)
        report("kafka: ready")
        return running

    monkeypatch.setattr(stack, "up", up)
    result = eddy(
        *("up", "--kafka", "k:1", "--triton", "t:2", "--flink", "https://f:3", "--json"),
        *("--set", "source.kafka.security.protocol=SSL", "--set", "triton.tls=true"),
        *("--set", "triton.tls_root_certificates=/ca.pem", "--set", "flink.shards=2"),
        *("--set", "flink.parallelism=2", "--start-timeout-s", "7"),
    )
    assert result.code == 0
    assert json.loads(result.out) == {
        "kafka": "127.0.0.1:9102",
        "triton": "127.0.0.1:8011",
        "flink": "http://127.0.0.1:8091",
        "logs": str(running.logs),
    }
    assert "kafka: ready" in result.err
    (wanted,) = asked
    assert (wanted.kafka, wanted.triton, wanted.flink) == ("k:1", "t:2", "https://f:3")
    assert wanted.kafka_config == {"security.protocol": "SSL"}
    assert wanted.triton_tls.enabled
    assert wanted.triton_tls.root_certificates == "/ca.pem"
    assert wanted.task_slots == 2
    assert wanted.start_timeout_s == 7.0
    assert wanted.root == running.root


def test_a_server_that_fails_is_told_without_a_traceback(
    eddy: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def up(_options: StackOptions, _report: object) -> StackState:
        raise StackError("kafka died while starting\nlast line of its log")

    monkeypatch.setattr(stack, "up", up)
    result = eddy("up")
    assert result.code == 1
    assert result.err.endswith("eddy: kafka died while starting\nlast line of its log\n")
    assert "Traceback" not in result.err


def test_down_without_a_stack_does_nothing(eddy: Run) -> None:
    result = eddy("down", "--purge")
    assert result.code == 0
    assert result.err == "all servers of .eddy are stopped; its data is removed\n"


# ---- run, demo, bench, train ----


def test_run_needs_a_stack(eddy: Run) -> None:
    result = eddy("run")
    assert result.code == 1
    assert "start one with `eddy up`" in result.err


def test_run_submits_with_the_stacks_addresses(
    eddy: Run, running: StackState, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None]] = []

    def fake(settings: Settings, state: StackState, savepoint: str | None) -> str:
        assert state == running
        asked.append((settings.source.bootstrap_servers, savepoint))
        return "ab" * 16

    monkeypatch.setattr(submit, "submit", fake)
    result = eddy("run", "--savepoint", "/sp", "--json")
    assert result.code == 0
    assert json.loads(result.out)["page"] == f"http://127.0.0.1:8091/#/job/running/{'ab' * 16}"
    assert asked == [("127.0.0.1:9102", "/sp")]
    assert f"job      {'ab' * 16}" in eddy("run").out


def test_demo_passes_its_options_and_exit_code(eddy: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    def run_demo(_settings: Settings, **given: object) -> int:
        asked.append(given)
        return 130

    monkeypatch.setattr(demo_run, "run_demo", run_demo)
    assert eddy("demo", "--seed", "7", "--keep").code == 130
    assert asked == [{"seed": 7, "keep": True, "root": Path(".eddy")}]


def test_bench_writes_json_or_a_table(
    eddy: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[str, Plan, StackOptions]] = []

    def run_bench(
        name: str, settings: Settings, plan: Plan, options: StackOptions, progress: object
    ) -> dict[str, object]:
        del settings, progress
        asked.append((name, plan, options))
        return {
            "systems": {"eddy": {"payments_per_s": 60_000}, "naive": {"payments_per_s": 900}},
            "ratios": {"eddy / naive": 66},
        }

    monkeypatch.setattr(bench_run, "run_bench", run_bench)
    for name in ("throughput", "latency", "state"):
        assert json.loads(eddy("bench", name, "--json").out)["ratios"] == {"eddy / naive": 66}
    assert [(name, plan) for name, plan, _ in asked] == [
        ("throughput", FULL),
        ("latency", FULL),
        ("state", FULL),
    ]
    assert asked[0][2].root == tmp_path / ".eddy" / "bench"
    out = eddy("bench", "throughput", "--short", "--seconds", "5", "--systems", "eddy").out
    assert "naive" in out
    assert "eddy / naive: 66" in out
    plan = asked[-1][1]
    assert (plan.live_s, plan.systems, plan.warm_s) == (5, ("eddy",), SHORT.warm_s)


def test_bench_without_a_result_says_why(eddy: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_bench(*_: object) -> dict[str, object]:
        raise ValueError("too little went through")

    monkeypatch.setattr(bench_run, "run_bench", run_bench)
    result = eddy("bench", "latency")
    assert result.code == 1
    assert result.err == "eddy: nothing to report: too little went through\n"
    result = eddy("bench", "latency", "--systems", "other")
    assert result.code == 1
    assert result.err.startswith("eddy: --systems: expected systems of eddy")


def test_a_missing_part_is_named() -> None:
    with pytest.raises(EddyError, match="needs deploy.nothing, which is not installed"):
        options.module("deploy.nothing")


def test_train_asks_for_its_environment(
    eddy: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(train, "REPOSITORY", tmp_path)
    result = eddy("train", "--seed", "3")
    assert result.code == 1
    assert "run `make .venv-train/.ready`" in result.err
    python = tmp_path / ".venv-train" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    called: list[list[str]] = []
    monkeypatch.setattr("os.execve", lambda _path, command, _env: called.append(command))
    assert eddy("train", "--seed", "3").code == 0
    out = ["--out", "triton_repo/intensity/1"]
    assert called == [[str(python), "-m", "deploy.train", "--seed", "3", *out]]
    line = ("--worlds", "2", "--steps", "9", "--resume", "--calibrate-only", "--out", "m/1")
    assert eddy("train", *line).code == 0
    assert called[1][3:] == [
        "--seed", "7", "--out", "m/1", "--worlds", "2", "--steps", "9", "--resume",
        "--calibrate-only",
    ]  # fmt: skip


def test_train_explains_itself_without_its_environment(
    eddy: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(train, "REPOSITORY", tmp_path)
    assert "--keep-encoder" in eddy("train", "--help").out


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (("--compress",), "--compress goes with --from FILE|TOPIC"),
        (("--prior", "p.json"), "--prior goes with --from FILE|TOPIC"),
        (("--from", "e.jsonl", "--worlds", "2"), "--worlds and --calibrate-only go without --from"),
        (("--from", "e.jsonl", "--device", "tpu"), "'tpu' is not one of"),
    ],
)
def test_train_refuses_what_does_not_go_together(
    eddy: Run, line: tuple[str, ...], expected: str
) -> None:
    result = eddy("train", *line)
    assert result.code == 2
    assert expected in " ".join(result.err.split())


# ---- simulate ----


def test_simulate_to_a_file_is_reproducible(eddy: Run, tmp_path: Path) -> None:
    line = [
        "simulate",
        "--payments",
        "200",
        "--days",
        "2",
        "--users",
        "40",
        "--merchants",
        "8",
        "--anomalies",
        "2",
        "--seed",
        "5",
    ]
    result = eddy(*line, "--out", "a.jsonl", "--truth", "truth.jsonl")
    assert result.code == 0
    assert "payments in a.jsonl" in result.err
    eddy(*line, "--out", "b.jsonl")
    first = (tmp_path / "a.jsonl").read_bytes()
    assert first == (tmp_path / "b.jsonl").read_bytes()
    assert {"payment_id", "event_time", "amount"} <= json.loads(first.splitlines()[0]).keys()
    assert len((tmp_path / "truth.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate", "1", "--speed-up", "2"], "give --rate or --speed-up, not both"),
        (["--out", "x", "--rate", "1"], "a file is written at once"),
        (["--users", "1"], "simulation.users: expected 2 to 1e8, found 1"),
        (["--start", "soon"], "--start: expected RFC 3339, found soon"),
        (["--anomalies", "-1"], "must be at least 0"),
    ],
)
def test_simulate_refuses_what_makes_no_sense(
    eddy: Run, arguments: list[str], message: str
) -> None:
    result = eddy("simulate", *arguments)
    assert result.code == 2
    assert message in result.err


def test_simulate_sends_to_the_running_stack(
    eddy: Run, running: StackState, monkeypatch: pytest.MonkeyPatch
) -> None:
    created: list[dict[str, int]] = []
    sent: list[tuple[str, str, float | None, int]] = []

    def produce(
        config: SimulationConfig, servers: str, topic: str, *, rate_per_s: float, **_: object
    ) -> int:
        sent.append((servers, topic, rate_per_s, config.seed))
        return 12_345

    monkeypatch.setattr(kafka, "create_topics", lambda _state, topics: created.append(topics))
    monkeypatch.setattr(simulate, "produce", produce)
    result = eddy("simulate", "--seed", "9", "--rate", "500", "--set", "source.topic=mine")
    assert result.code == 0
    assert "12,345 payments to mine" in result.err
    assert sent == [(running.bootstrap_servers, "mine", 500.0, 9)]
    assert created == [{"mine": 1}]


def test_payments_that_were_not_delivered_are_an_error(
    eddy: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def produce(*_: object, **__: object) -> int:
        raise simulate.DeliveryError(5, 2, "no such topic")

    monkeypatch.setattr(simulate, "produce", produce)
    result = eddy("simulate", "--payments", "10")
    assert result.code == 1
    assert "eddy: 2 of 5 payments were not delivered" in result.err


# ---- alerts ----

ALERT = {
    "id": "1f",
    "subject": "user/u-1",
    "time": "2026-01-05T08:00:00.000Z",
    "data": {
        "event_time": "2026-01-05T08:00:00.123Z",
        "score": 4.567,
        "detector": "amount",
        "reasons": [{"text": "amount 12 times typical"}, {"text": ""}, {"text": "new device"}],
        "degraded": True,
    },
}


@pytest.fixture
def alert_topic(monkeypatch: pytest.MonkeyPatch) -> list[tuple[alerts.AlertTopic, bool, bool]]:
    """Put three alerts on the topic; the list tells how it was read."""
    read: list[tuple[alerts.AlertTopic, bool, bool]] = []

    def follow(
        source: alerts.AlertTopic, from_beginning: bool, to_end: bool, _stop: object
    ) -> Iterator[alerts.Alert]:
        read.append((source, from_beginning, to_end))
        yield from (ALERT, {**ALERT, "subject": "merchant/m-1"}, ALERT)

    monkeypatch.setattr(alerts, "follow", follow)
    return read


def test_alerts_are_lines_for_people(
    eddy: Run, alert_topic: list[tuple[alerts.AlertTopic, bool, bool]]
) -> None:
    result = eddy("alerts", "--set", "sink.kafka.security.protocol=SSL", "--limit", "1")
    assert result.code == 0
    assert result.out.split(maxsplit=4)[:4] == [
        "2026-01-05T08:00:00.123Z",
        "user/u-1",
        "4.57",
        "amount",
    ]
    assert result.out.endswith("amount 12 times typical; new device  [without Triton]\n")
    ((source, from_beginning, to_end),) = alert_topic
    assert source.topic == "eddy.alerts"
    assert source.properties == {"security.protocol": "SSL"}
    assert not from_beginning
    assert not to_end


def test_alerts_as_json_of_one_entity(
    eddy: Run, alert_topic: list[tuple[alerts.AlertTopic, bool, bool]]
) -> None:
    result = eddy("alerts", "--once", "--json", "--entity", "user/u-1")
    assert [json.loads(line) for line in result.out.splitlines()] == [ALERT, ALERT]
    assert alert_topic[0][1:] == (True, True)


@pytest.mark.parametrize("alert", [{}, {"data": None}, {"data": {"reasons": 3, "score": "x"}}])
def test_a_strange_alert_is_still_a_line(alert: alerts.Alert) -> None:
    assert "\n" not in alerts.to_text(alert).plain


def test_bytes_that_are_no_alert_are_shown_as_such() -> None:
    for value in (b"", None, b"[1]", b"{"):
        assert "no JSON object" in alerts.to_text(alerts.read_alert(value)).plain
    assert alerts.read_alert(json.dumps(ALERT).encode()) == ALERT


def test_alerts_without_a_broker_say_so(eddy: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    # librdkafka would wait for longer than a test may, and say it in other words.
    monkeypatch.setattr(alerts, "METADATA_TIMEOUT_S", 600.0)
    result = eddy("alerts", "--set", "source.bootstrap_servers=127.0.0.1:1,127.0.0.1:2")
    assert result.code == 1
    assert result.err == (
        "eddy: no Kafka broker answers at 127.0.0.1:1,127.0.0.1:2: Connection refused; start the"
        " local stack with `eddy up`, or name yours in source.bootstrap_servers\n"
    )


def test_what_listens_and_is_no_broker_is_left_to_kafkas_client(
    eddy: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    monkeypatch.setattr(alerts, "METADATA_TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listens:
        address = f"127.0.0.1:1,127.0.0.1:{listens.getsockname()[1]}"
        result = eddy("alerts", "--set", f"source.bootstrap_servers={address}")
    assert result.code == 1
    assert result.err.startswith(f"eddy: no Kafka broker answers at {address}: ")
    assert "refused" not in result.err


def test_a_broken_record_of_the_stack_says_what_to_do(eddy: Run, running: StackState) -> None:
    (running.root / "state.json").write_text("{")
    result = eddy("alerts")
    assert result.code == 1
    assert "run `eddy down`, then `eddy up`" in result.err


def test_a_named_prior_is_found_by_workers_that_run_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EDDY_CONFIG", raising=False)
    named = ["detection.prior=mine/prior.json"]
    whole = str(tmp_path / "mine" / "prior.json")
    assert options.configured_settings(None, named).detection.prior == whole
    assert options.read_settings(None, named, Path(".eddy")).detection.prior == whole
    assert options.configured_settings(None, []).detection.prior == ""
    assert options.configured_settings(None, [f"detection.prior={whole}"]).detection.prior == whole
