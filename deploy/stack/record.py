"""What is written down of a running stack, so that any later eddy finds it: `state.json`."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from deploy.stack import java
from deploy.stack.options import Service, StackError, StackOptions, TritonTls
from deploy.stack.processes import HOST

VERSION = 1
PATHS = ("root", "triton_repo", "triton_venv", "jars_dir", "java_home", "python")
# The ports that users expect; any free one is taken in place of one that is not free.
USUAL_PORTS: dict[str, int] = {
    "kafka": 9092,
    "kafka_controller": 9093,
    "triton_http": 8000,
    "triton_grpc": 8001,
    "triton_metrics": 8002,
    "flink_rest": 8081,
    "flink_rpc": 6123,
}


@dataclass(frozen=True)
class Recorded:
    """A process that was started.

    Attributes:
        pid: process id.
        created: when it started, epoch seconds.
    """

    pid: int
    created: float


@dataclass(frozen=True)
class StackState:
    """A stack as it was started: where to reach it, and by which processes it runs.

    Attributes:
        options: what `up` was asked for.
        ports: chosen ports, by the keys of USUAL_PORTS; none for servers of the user's own.
        processes: started processes, by service.
    """

    options: StackOptions
    ports: Mapping[str, int]
    processes: Mapping[Service, Recorded] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """The stack's folder."""
        return self.options.root

    @property
    def logs(self) -> Path:
        """Folder of the logs."""
        return self.root / "logs"

    @property
    def bootstrap_servers(self) -> str:
        """HOST:PORT[,HOST:PORT...] of Kafka."""
        return self.options.kafka or f"{HOST}:{self.ports['kafka']}"

    @property
    def kafka_config(self) -> dict[str, str]:
        """Say to librdkafka how to reach Kafka, security included."""
        return {**self.options.kafka_config, "bootstrap.servers": self.bootstrap_servers}

    @property
    def triton_endpoint(self) -> str:
        """HOST:PORT of Triton's gRPC."""
        return self.options.triton or f"{HOST}:{self.ports['triton_grpc']}"

    @property
    def triton_metrics_url(self) -> str | None:
        """Page of Triton's metrics; None where Triton is the user's own."""
        port = self.ports.get("triton_metrics")
        return None if port is None else f"http://{HOST}:{port}/metrics"

    @property
    def flink_url(self) -> str:
        """Address of Flink's REST API and web page."""
        own = self.options.flink
        if own is None:
            return f"http://{HOST}:{self.ports['flink_rest']}"
        return (own if "://" in own else f"http://{own}").rstrip("/")

    @property
    def connector_jar(self) -> Path:
        """Flink's Kafka connector, for `submit_job(..., jars=[...])`."""
        return java.connector_jar(self.options.jars_dir)

    @property
    def java_home(self) -> Path:
        """The Java that runs the servers."""
        return java.java_home(self.options.java_home)

    def log(self, service: str) -> Path:
        """Give the log of a service."""
        return self.logs / f"{service}.log"

    def output(self, service: str) -> Path:
        """Give the file with a service's standard output and error."""
        return self.logs / f"{service}.out"

    def with_process(self, service: Service, process: Recorded | None) -> "StackState":
        """Record the process of a service, or that it has none."""
        others = {name: one for name, one in self.processes.items() if name != service}
        if process is not None:
            others[service] = process
        return replace(self, processes=others)


def save(state: StackState) -> None:
    """Write the state in one step, readable by its owner alone (it may hold Kafka's password)."""
    document = {
        "version": VERSION,
        "options": {
            **asdict(state.options),
            **{
                name: None
                if getattr(state.options, name) is None
                else str(getattr(state.options, name))
                for name in PATHS
            },
        },
        "ports": dict(state.ports),
        "processes": {name: asdict(one) for name, one in state.processes.items()},
        # For readers who are no program of ours.
        "addresses": {
            "kafka": state.bootstrap_servers,
            "triton_grpc": state.triton_endpoint,
            "flink": state.flink_url,
        },
    }
    path = state.root / "state.json"
    partial = path.with_suffix(".json.partial")
    state.root.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as sink:
        json.dump(document, sink, indent=2)
    partial.replace(path)


def load(root: Path) -> StackState | None:
    """Read the state of the stack in a folder; None where there is none.

    Raises:
        StackError: the file is broken or of another version of eddy.
    """
    path = root.absolute() / "state.json"
    try:
        document = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StackError(
            f"{path} cannot be read ({error}); run `eddy down`, then `eddy up`"
        ) from error
    found = document.get("version") if isinstance(document, dict) else None
    if found != VERSION:
        raise StackError(
            f"{path} has version {found}, expected {VERSION}; run `eddy down`, then `eddy up`"
        )
    try:
        return StackState(
            options=_options(document["options"]),
            ports={str(name): int(port) for name, port in document["ports"].items()},
            processes={
                name: Recorded(int(one["pid"]), float(one["created"]))
                for name, one in document["processes"].items()
            },
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StackError(
            f"{path} is incomplete ({error!r}); run `eddy down`, then `eddy up`"
        ) from error


def _options(document: dict[str, Any]) -> StackOptions:
    known = {item.name for item in fields(StackOptions)}
    values = {name: value for name, value in document.items() if name in known}
    for name in PATHS:
        if values.get(name) is not None:
            values[name] = Path(values[name])
    values["triton_tls"] = TritonTls(**values["triton_tls"])
    return StackOptions(**values)
