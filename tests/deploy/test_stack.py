"""The parts of the local stack: ports, state file, processes, configuration, jars, jobs."""

import json
import os
import re
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import psutil
import pytest

from deploy.stack import flink, java, jobs, kafka, misfits, processes, record, rest, triton
from deploy.stack.options import (
    StackError,
    StackOptions,
    TritonTls,
    differences,
)
from deploy.stack.record import USUAL_PORTS, Recorded, StackState

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def options(tmp_path: Path) -> StackOptions:
    return StackOptions(root=tmp_path / "stack", start_timeout_s=20.0)


@pytest.fixture
def state(options: StackOptions) -> StackState:
    return StackState(options, USUAL_PORTS)


def start_marked(root: Path, service: str, script: str) -> psutil.Process:
    return processes.start_process(
        root,
        service,
        ["/bin/sh", "-c", script],
        output=root / "logs" / f"{service}.out",
        environment={"PATH": os.environ["PATH"]},
        folder=root,
    )


# --- ports -------------------------------------------------------------------------------------


def test_a_port_with_a_listener_is_not_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not processes.port_is_free(port)
        assert processes.port_answers("127.0.0.1", port)
    assert processes.port_is_free(port)
    assert not processes.port_answers("127.0.0.1", port)


def test_the_usual_ports_are_taken_where_they_are_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("", 0)) as other:
        free = processes.pick_ports([0])[0]
        busy = [taken.getsockname()[1], other.getsockname()[1]]
        chosen = processes.pick_ports([free, *busy, 0])
    assert chosen[0] == free
    assert not set(chosen) & set(busy)
    assert len(set(chosen)) == 4


def test_the_same_port_is_not_given_twice() -> None:
    free = processes.pick_ports([0])[0]
    assert len(set(processes.pick_ports([free, free]))) == 2


# --- options and state file --------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ["localhost", "host:", ":9092", "host:port", "a:1,b"])
def test_an_endpoint_needs_host_and_port(tmp_path: Path, endpoint: str) -> None:
    with pytest.raises(StackError, match="kafka must be HOST:PORT"):
        StackOptions(root=tmp_path, kafka=endpoint)


def test_servers_of_the_user_are_not_ours(tmp_path: Path) -> None:
    options = StackOptions(root=tmp_path, kafka="a:1,b:2", flink="https://f:8443")
    assert options.owned() == ("triton",)
    state = StackState(options, {"triton_grpc": 7})
    assert state.bootstrap_servers == "a:1,b:2"
    assert state.flink_url == "https://f:8443"
    assert state.triton_endpoint == "127.0.0.1:7"


def test_differences_name_the_changed_options(options: StackOptions) -> None:
    other = replace(options, task_slots=2, start_timeout_s=1.0, flink_config={"a": "b"})
    assert differences(options, other) == ["task_slots", "flink_config"]


def test_the_state_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    options = StackOptions(
        root=tmp_path,
        kafka="k:9092",
        kafka_config={"security.protocol": "SASL_SSL", "sasl.password": "secret"},
        triton="t:8001",
        triton_tls=TritonTls(enabled=True, root_certificates="ca.pem"),
        java_home=tmp_path / "java",
        flink_config={"taskmanager.numberOfTaskSlots": "2"},
    )
    state = StackState(options, {"flink_rest": 8081, "flink_rpc": 6123})
    state = state.with_process("jobmanager", Recorded(42, 1.5))
    record.save(state)
    assert record.load(tmp_path) == state
    assert state.with_process("jobmanager", None).processes == {}
    # It holds a password.
    assert stat.S_IMODE((tmp_path / "state.json").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "cannot be read"), ('{"version": 99}', "version 99"), ('{"version": 1}', "incomplete")],
)
def test_a_broken_state_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    assert record.load(tmp_path) is None
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(StackError, match=message):
        record.load(tmp_path)


# --- processes ---------------------------------------------------------------------------------


def test_a_pid_in_other_hands_is_not_ours(tmp_path: Path) -> None:
    me = psutil.Process()
    assert processes.find_process(tmp_path, "kafka", me.pid, me.create_time()) is None


def test_a_process_is_found_by_pid_and_marks(tmp_path: Path) -> None:
    child = start_marked(tmp_path, "kafka", "exec sleep 300")
    created = child.create_time()
    found = processes.find_process(tmp_path, "kafka", child.pid, created)
    assert found == child
    assert processes.find_process(tmp_path, "triton", child.pid, created) is None
    assert processes.find_process(tmp_path / "other", "kafka", child.pid, created) is None
    processes.stop_processes([child], grace_s=5.0)
    assert processes.find_process(tmp_path, "kafka", child.pid, created) is None


def test_orphans_of_a_killed_server_are_found_and_ended(tmp_path: Path) -> None:
    parent = start_marked(tmp_path, "triton", "sleep 300 & sleep 300 & wait")
    deadline = time.monotonic() + 5.0
    while len(processes.find_marked(tmp_path, "triton")) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    parent.kill()
    processes.reap(parent.pid)
    orphans = processes.find_marked(tmp_path, "triton")
    assert len([one for one in orphans if one.pid != parent.pid]) == 2
    assert processes.find_marked(tmp_path, "kafka") == []
    processes.stop_processes(orphans, grace_s=5.0)
    assert processes.find_marked(tmp_path) == []


def test_a_process_that_ignores_the_request_is_killed(tmp_path: Path) -> None:
    child = start_marked(tmp_path, "kafka", "trap '' TERM; while :; do sleep 0.1; done")
    time.sleep(0.3)
    processes.stop_processes([child], grace_s=0.3)
    assert processes.find_process(tmp_path, "kafka", child.pid, 0.0) is None
    processes.stop_processes(processes.find_marked(tmp_path), 0.0)


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="kafka cannot be started: /no/such"):
        processes.start_process(
            tmp_path, "kafka", ["/no/such"], output=tmp_path / "o", environment={}, folder=tmp_path
        )


def test_the_lock_excludes_others_and_dies_with_its_holder(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from deploy.stack.processes import exclusive\n"
        "with exclusive(Path(sys.argv[1]), 5.0):\n"
        "    print('held', flush=True); time.sleep(300)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(StackError, match=rf"another eddy \(pid {holder.pid}\)"),
            processes.exclusive(tmp_path, 0.2),
        ):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with processes.exclusive(tmp_path, 1.0):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    assert not (tmp_path / "lock").exists()


def test_the_tail_shows_the_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("\n".join(f"line {number}" for number in range(100)))
    text = processes.tail(log, tmp_path / "missing", lines=2)
    assert text.endswith("line 98\nline 99")
    assert "line 97" not in text
    assert "empty" in processes.tail(tmp_path / "missing")


# --- configuration -----------------------------------------------------------------------------


def test_the_broker_listens_on_this_machine_only(state: StackState) -> None:
    options = replace(state.options, kafka_server_config={"num.io.threads": "1"})
    text = kafka.render_server_properties(replace(state, options=options))
    settings = dict(line.split("=", 1) for line in text.splitlines() if not line.startswith("#"))
    assert settings["listeners"] == "PLAINTEXT://127.0.0.1:9092,CONTROLLER://127.0.0.1:9093"
    assert settings["controller.quorum.voters"] == "1@127.0.0.1:9093"
    assert settings["num.io.threads"] == "1"
    assert settings["transaction.state.log.replication.factor"] == "1"
    assert "0.0.0.0" not in text


def test_flink_is_configured_for_this_machine(state: StackState) -> None:
    options = replace(
        state.options, task_slots=2, flink_config={"web.timeout": "1", "x.y": 'a "b": #c'}
    )
    settings = flink.configuration(replace(state, options=options))
    assert settings["taskmanager.numberOfTaskSlots"] == "2"
    assert settings["state.backend.type"] == "rocksdb"
    assert settings["execution.checkpointing.incremental"] == "true"
    assert settings["execution.checkpointing.dir"].startswith(f"file://{options.root}")
    assert settings["python.executable"] == sys.executable
    assert {settings[key] for key in settings if key.endswith(("bind-host", "bind-address"))} == {
        "127.0.0.1"
    }
    assert settings["web.timeout"] == "1"
    lines = [line for line in flink.render_config(settings).splitlines() if line[0] != "#"]
    read = {line.partition(": ")[0]: json.loads(line.partition(": ")[2]) for line in lines}
    assert read == settings


def test_javas_memory_follows_from_flinks(state: StackState) -> None:
    settings = flink.configuration(state) | {"taskmanager.memory.task.heap.size": "1 gb"}
    command = flink.java_command(state, "taskmanager", settings)
    assert f"-Xmx{(1024 + 128) * 2**20}" in command
    assert f"-XX:MaxDirectMemorySize={(128 + 256 + 192) * 2**20}" in command
    assert not any("jdk.compiler" in part for part in command)
    assert command[-1].rpartition(os.pathsep)[2].rpartition("/")[2].startswith("flink-dist")


def test_a_key_without_effect_is_refused(state: StackState) -> None:
    options = replace(state.options, flink_config={"taskmanager.memory.process.size": "4g"})
    with pytest.raises(StackError, match=r"process\.size has no effect"):
        flink.configuration(replace(state, options=options))


def test_memory_sizes() -> None:
    assert [flink.size(text) for text in ("1", "2k", "3 MB", "4g")] == [
        1,
        2 * 2**10,
        3 * 2**20,
        4 * 2**30,
    ]
    with pytest.raises(StackError, match="memory size"):
        flink.size("much")


def test_regions_belong_to_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "SHARED_MEMORY", tmp_path)
    mine = tmp_path / f"{triton.region_prefix(tmp_path / 'a')}17"
    other = tmp_path / f"{triton.region_prefix(tmp_path / 'b')}17"
    mine.touch()
    other.touch()
    triton.clean(StackState(StackOptions(root=tmp_path / "a"), {}))
    assert not mine.exists()
    assert other.exists()


def test_a_repository_without_the_model_is_seen(tmp_path: Path) -> None:
    options = StackOptions(root=tmp_path, triton_repo=tmp_path, model_name="m")
    state = StackState(options, {})
    assert not triton._has_model(state)
    (tmp_path / "m" / "configs").mkdir(parents=True)
    (tmp_path / "m" / "configs" / "python-cpu.pbtxt").touch()
    assert not triton._has_model(state)
    (tmp_path / "m" / "1").mkdir()
    assert triton._has_model(state)


# --- jars --------------------------------------------------------------------------------------


def test_each_locked_jar_has_a_digest_and_no_address() -> None:
    locked = java.read_lock()
    names = [jar.artifact for jar in locked]
    assert len(names) == len(set(names))
    assert {"kafka_2.13", "log4j-slf4j-impl", "flink-sql-connector-kafka"} <= set(names)
    assert all(re.fullmatch("[0-9a-f]{64}", jar.sha256) for jar in locked)
    assert "://" not in java.LOCK.read_text()
    assert "flink-sql-connector-kafka" not in java.class_path(Path("jars"))
    assert java.connector_jar(Path("jars")).name == "flink-sql-connector-kafka-5.0.0-2.2.jar"


def test_what_is_cached_needs_no_network_and_what_is_wrong_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "downloaded"

    class Maven:
        """Gives the same file for each artifact, and counts."""

        asked = 0

        def __getattr__(self, _name: str) -> Callable[..., object]:
            return lambda *_: self

        def resolve(self) -> Path:
            type(self).asked += 1
            source.write_bytes(b"a jar")
            return source

    monkeypatch.setattr(java, "maven_context", lambda _cache: Maven())
    source.write_bytes(b"a jar")
    digest = java.sha256_of(source)
    lock = tmp_path / "jars.lock"
    lock.write_text(f"# made\ng:a:1 sha256:{digest}\n")
    jars_dir = tmp_path / "jars"
    assert java.prepare(jars_dir, lock) == [jars_dir / "a-1.jar"]
    java.prepare(jars_dir, lock)
    assert Maven.asked == 1
    (jars_dir / "a-1.jar").write_bytes(b"broken")
    java.prepare(jars_dir, lock)
    assert Maven.asked == 2
    lock.write_text(f"g:b:1 sha256:{'0' * 64}\n")
    with pytest.raises(StackError, match=r"b-1\.jar: expected sha256 0000"):
        java.prepare(jars_dir, lock)
    assert not (jars_dir / "b-1.jar").exists()
    lock.write_text("g:b sha256:12\n")
    with pytest.raises(StackError, match=r"jars\.lock:1"):
        java.prepare(jars_dir, lock)


# --- jobs --------------------------------------------------------------------------------------

ANSWERS: dict[str, object] = {
    "/jobs/overview": {
        "jobs": [
            {
                "jid": "a" * 32,
                "name": "eddy",
                "state": "RUNNING",
                "start-time": 5,
                "duration": 7,
                "tasks": {"running": 2, "total": 2},
            }
        ]
    },
    f"/jobs/{'a' * 32}": {"vertices": [{"id": "v", "name": "score"}]},
    f"/jobs/{'a' * 32}/vertices/v/subtasks/metrics": [
        {"id": "numRecordsIn"},
        {"id": "0.score.numRecordsIn"},
        {"id": "numBytesIn"},
    ],
    f"/jobs/{'a' * 32}/vertices/v/subtasks/metrics?get=numRecordsIn,0.score.numRecordsIn&agg=sum": [
        {"id": "numRecordsIn", "sum": 3.0},
        {"id": "0.score.numRecordsIn", "sum": 4.0},
    ],
    f"/jobs/{'a' * 32}/checkpoints": {"latest": {"completed": {"external_path": "file:/c"}}},
    f"/jobs/{'a' * 32}/savepoints": {"request-id": "r"},
    f"/jobs/{'a' * 32}/savepoints/r": {
        "status": {"id": "COMPLETED"},
        "operation": {"failure-cause": {"class": "NoRoom", "stack-trace": "disk full"}},
    },
}


class FakeFlink(BaseHTTPRequestHandler):
    """Answers as Flink's REST API does."""

    def do_GET(self) -> None:
        answer = ANSWERS.get(self.path)
        text = json.dumps({"errors": ["not found"]} if answer is None else answer).encode()
        self.send_response(404 if answer is None else 200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_POST = do_GET  # noqa: N815 - the name that http.server looks for

    def log_message(self, *_arguments: object) -> None:
        pass


def test_jobs_are_followed_by_the_rest_api(options: StackOptions) -> None:
    with HTTPServer(("127.0.0.1", 0), FakeFlink) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        state = StackState(replace(options, flink=f"127.0.0.1:{server.server_port}"), {})
        job_id = "a" * 32
        assert jobs.jobs(state) == [jobs.JobInfo(job_id, "eddy", "RUNNING", 5, 7, 2, 2)]
        assert jobs.wait_until_running(state, job_id).name == "eddy"
        assert jobs.job_metrics(state, job_id, ["numRecordsIn"]) == {
            "score": {"numRecordsIn": 3.0, "0.score.numRecordsIn": 4.0}
        }
        assert jobs.latest_checkpoint(state, job_id) == "file:/c"
        with pytest.raises(StackError, match=r"(?s)NoRoom.*disk full"):
            jobs.savepoint(state, job_id)
        with pytest.raises(StackError, match="knows no job b"):
            jobs.job(state, "b")
        with pytest.raises(rest.RestError, match="answers 404"):
            rest.get(state, "/nothing")
        server.shutdown()
    with pytest.raises(rest.RestError, match="does not answer"):
        jobs.jobs(state)


def test_a_failed_submission_shows_the_python_error() -> None:
    output = (
        "noise\nTraceback (most recent call last):\n  File x\nValueError: no topic\nCaused by: y"
    )
    assert jobs._why(output).splitlines()[0].startswith("Traceback")
    assert "ValueError: no topic" in jobs._why(output)


def test_misfits_of_priors_are_read_from_the_jobs_metrics(
    options: StackOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = "a" * 32
    base = f"/jobs/{job_id}/vertices/v2/subtasks/metrics"
    names = ["numRecordsIn", "0.score.eddy.prior_misfit.user"]
    names += [f"0.score.eddy.prior_misfit_{w}.{k}" for w in ("value", "gap") for k in ("user", "m")]
    told = dict(zip(names[2:], (290.0, -1.0, 31.0, -1.0), strict=True))
    entries = [{"id": name, "max": value} for name, value in told.items()]
    answers = {
        f"/jobs/{job_id}": {"vertices": [{"id": "v2", "name": "score"}]},
        base: [{"id": name} for name in names],
        f"{base}?get={','.join(told)}&agg=max": entries,
        "/jobs/overview": ANSWERS["/jobs/overview"],
    }
    for path, answer in answers.items():
        monkeypatch.setitem(ANSWERS, path, answer)
    with HTTPServer(("127.0.0.1", 0), FakeFlink) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        state = StackState(replace(options, flink=f"127.0.0.1:{server.server_port}"), {})
        found = misfits.prior_misfits(state)
        server.shutdown()
    assert found == [
        misfits.PriorMisfit("eddy", "user", 0.29, 0.031),
        misfits.PriorMisfit("eddy", "m", None, None),
    ]
    assert [one.condition for one in found] == ["misfit", "unknown"]
    assert found[0].detail == (
        "values 0.29, gaps 0.03 from what it was fitted on, more than 0.2: fit it again with "
        "`eddy fit`"
    )
    assert found[1].detail == "too few events yet: some 16,000 of a kind are needed"
    fine = misfits.PriorMisfit("eddy", "user", 0.05)
    assert (fine.condition, fine.detail) == (
        "fits", "values 0.05, gaps – from what it was fitted on"
    )  # fmt: skip
    assert misfits.prior_misfits(state) == []  # Flink is gone
