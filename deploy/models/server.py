"""What the commands ask of Triton: which versions it serves, to load anew, and sample answers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import grpc  # type: ignore[import-untyped]  # ships no types
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc

from flink_jobs import triton_wire as wire
from flink_jobs.errors import EddyError
from flink_jobs.settings import TritonSettings

ASK_TIMEOUT_S = 5.0
LOAD_TIMEOUT_S = 120.0  # every version of a repository may have to load, one after another
UNLOAD_WAIT_S = 20.0
READY = "READY"


class ServerAwayError(EddyError):
    """Triton does not answer."""


class ServerRefusedError(EddyError):
    """Triton answers and refuses; the message holds its own words."""


class ModelServer(Protocol):
    """A server of models, as far as their life needs one."""

    def served(self) -> dict[int, str]:
        """Return the state of each version that the server knows: READY, UNAVAILABLE, ...

        Raises:
            ServerAwayError: it does not answer.
        """

    def keeps_all_versions(self) -> bool:
        """Return True where loading a new version leaves the others, in the model's config."""

    def load(self) -> None:
        """Let the server look at the model's folder again: new versions come, missing ones go.

        Raises:
            ServerRefusedError: a version does not load.
            ServerAwayError: it does not answer.
        """

    def ask(self, version: int, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the answers y of a version to x.

        Raises:
            ServerRefusedError: it refuses, or its answer has another form.
            ServerAwayError: it does not answer in time.
        """


@dataclass(slots=True)
class TritonServer:
    """A Triton Inference Server in explicit mode, by gRPC.

    Attributes:
        settings: endpoint, TLS and model name.
    """

    settings: TritonSettings
    _stub: service_pb2_grpc.GRPCInferenceServiceStub | None = None

    def _connected(self) -> service_pb2_grpc.GRPCInferenceServiceStub:
        if self._stub is None:
            s = self.settings
            if s.tls:
                names = (s.tls_root_certificates, s.tls_private_key, s.tls_certificate_chain)
                pem = [Path(name).read_bytes() if name else None for name in names]
                credentials = grpc.ssl_channel_credentials(*pem)
                channel = grpc.secure_channel(s.endpoint, credentials, wire.CHANNEL_OPTIONS)
            else:
                channel = grpc.insecure_channel(s.endpoint, wire.CHANNEL_OPTIONS)
            self._stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        return self._stub

    def _call(self, method: str, request: object, timeout_s: float = ASK_TIMEOUT_S) -> Any:
        try:
            return getattr(self._connected(), method)(request, timeout=timeout_s)
        except grpc.RpcError as error:
            code, words = error.code(), error.details() or ""
            away = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
            # Triton itself says UNAVAILABLE of a version that is not loaded.
            if code in away and not words.startswith("Request for unknown model"):
                raise ServerAwayError(
                    f"no Triton answers at {self.settings.endpoint} ({code.name}: {words}); start "
                    "it with `eddy up`, or name yours in triton.endpoint"
                ) from None
            raise ServerRefusedError(words or code.name) from None

    def served(self) -> dict[int, str]:
        """Return the state of each version that the server knows."""
        index = self._call("RepositoryIndex", service_pb2.RepositoryIndexRequest())
        mine = [m for m in index.models if m.name == self.settings.model_name]
        return {int(m.version): m.state for m in mine if m.version.isdigit()}

    def keeps_all_versions(self) -> bool:
        """Ask for the model's config; a model that is not loaded yet has none to object to."""
        request = service_pb2.ModelConfigRequest(name=self.settings.model_name)
        try:
            config = self._call("ModelConfig", request).config
        except ServerRefusedError:
            return True
        # "specific" is what the local stack loads with while a broken version is left out.
        return config.version_policy.WhichOneof("policy_choice") in ("all", "specific")

    def load(self) -> None:
        """Load the model anew, in place, so that its versions go on answering meanwhile."""
        request = service_pb2.RepositoryModelLoadRequest(model_name=self.settings.model_name)
        self._call("RepositoryModelLoad", request, LOAD_TIMEOUT_S)

    def ask(self, version: int, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return y [rows, 32], finite or not."""
        template = wire.infer_template(self.settings.model_name, str(version))
        response = self._call("ModelInfer", wire.infer_request(template, x))
        raw, outputs = response.raw_output_contents, response.outputs
        if len(raw) != 1 or len(outputs) != 1 or outputs[0].datatype != "FP32":
            raise ServerRefusedError(
                f"expected one output y FP32, found {[(o.name, o.datatype) for o in outputs]}"
            )
        return np.frombuffer(raw[0], np.float32).reshape(list(outputs[0].shape))


def served_or_none(server: ModelServer) -> Mapping[int, str] | None:
    """Return what the server serves, or None where it does not answer."""
    try:
        return server.served()
    except ServerAwayError:
        return None


def wait_until_gone(server: ModelServer, version: int, limit_s: float = UNLOAD_WAIT_S) -> bool:
    """Wait until the server no longer serves a version; return False if it does after the limit."""
    deadline = time.monotonic() + limit_s
    while server.served().get(version) in (READY, "UNLOADING"):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
