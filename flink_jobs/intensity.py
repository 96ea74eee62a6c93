"""Ask the intensity model: whole batches in the background, with a deadline and a breaker.

A client never blocks in `submit` and a ticket never raises: where there is no answer its result is
None, and the job goes on with what it has.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]  # ships no types
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc

from flink_jobs import triton_wire as wire
from flink_jobs.breaker import Breaker, BreakerState
from flink_jobs.intensity_in_process import InProcessClient
from flink_jobs.intensity_protocol import (
    IncompatibleModelError,
    IntensityClient,
    IntensityCounters,
    ModelUnavailableError,
    NullClient,
    ReadyTicket,
    Ticket,
)
from flink_jobs.settings import TritonSettings
from flink_jobs.triton_wire import ModelInfo
from models.tpp import spec

__all__ = [
    "InProcessClient",
    "IncompatibleModelError",
    "IntensityClient",
    "IntensityCounters",
    "ModelInfo",
    "ModelUnavailableError",
    "NullClient",
    "Ticket",
    "TritonClient",
]


class _TritonTicket:
    """Collects the answers of one batch's requests; they come on gRPC's threads."""

    def __init__(self, requests: int) -> None:
        self._parts: list[NDArray[np.float32] | None] = [None] * requests
        self._left = requests
        self._lock = threading.Lock()
        self._event = threading.Event()
        self.calls: list[Any] = []  # gRPC futures, which are not typed
        self.given_up = threading.Event()

    def put(self, part: int, y: NDArray[np.float32] | None) -> None:
        """Take the answer of request number `part`."""
        with self._lock:
            self._parts[part] = y
            self._left -= 1
            last = self._left == 0
        if last:
            self._event.set()

    def done(self) -> bool:
        """Return True once every request has ended."""
        return self._event.is_set()

    def result(self, timeout_s: float) -> NDArray[np.float32] | None:
        """Wait up to `timeout_s`; give up what is then still under way."""
        if not self._event.wait(max(timeout_s, 0.0)):
            self.given_up.set()
            for call in list(self.calls):
                call.cancel()
            return None
        parts = [part for part in self._parts if part is not None]
        if len(parts) != len(self._parts):
            return None
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


class TritonClient:
    """Asks a Triton Inference Server by gRPC.

    It begins open: `check_model`, or the first probe, closes it. A probe asks for the model's
    configuration and a canary inference, since a server whose backend has died still says that it
    is ready, and one that comes back may serve another model.
    """

    def __init__(
        self, settings: TritonSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Make a client; nothing is sent yet.

        Args:
            settings: endpoint, deadline and limits.
            clock: seconds, monotonic.
        """
        self._settings = settings
        self._clock = clock
        self._timeout_s = settings.timeout_ms / 1e3
        self._template = wire.infer_template(settings.model_name, settings.model_version)
        self._lock = threading.RLock()
        open_s = settings.breaker_open_ms / 1e3
        self._breaker = Breaker(settings.breaker_failures, open_s, "open", 0, clock() - open_s)
        self._in_flight = 0
        self._info: ModelInfo | None = None
        self._closed = False
        # Writing a request and handing it to gRPC took a seventh of the score step's time; here it
        # runs beside the kernels.
        self._sender = ThreadPoolExecutor(1, "triton-sender")
        self.counters = IntensityCounters()
        self.last_error = ""
        self._connect()

    @property
    def state(self) -> BreakerState:
        """State of the breaker."""
        return self._breaker.state

    @property
    def model_version(self) -> str:
        """Name of the weights; empty before the first contact."""
        return self._info.model_version if self._info else ""

    @property
    def in_flight(self) -> int:
        """Requests under way."""
        return self._in_flight

    def has_room(self, rows: int) -> bool:
        """Return True if `rows` would be sent now rather than refused for the in-flight limit.

        With nothing under way there is always room: a batch of more requests than the limit would
        else never be answered.
        """
        in_flight = self._in_flight
        return not in_flight or in_flight + self._requests(rows) <= self._settings.max_in_flight

    def _requests(self, rows: int) -> int:
        return -(-rows // self._settings.max_rows)

    def _connect(self) -> None:
        settings = self._settings
        if settings.tls:
            pem = [
                Path(name).read_bytes() if name else None
                for name in (
                    settings.tls_root_certificates,
                    settings.tls_private_key,
                    settings.tls_certificate_chain,
                )
            ]
            self._channel = grpc.secure_channel(
                settings.endpoint, grpc.ssl_channel_credentials(*pem), wire.CHANNEL_OPTIONS
            )
        else:
            self._channel = grpc.insecure_channel(settings.endpoint, wire.CHANNEL_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def submit(self, x: NDArray[np.float32]) -> Ticket:
        """Send x float32 [rows, 69] in requests of at most `max_rows`; never blocks.

        A batch that finds the breaker open, or no room for all its requests among those in
        flight, is not sent: its ticket is done and its result None.

        Raises:
            ValueError: x has another shape or type.
        """
        if x.ndim != 2 or x.shape[1] != spec.INPUT or x.dtype != np.float32:
            raise ValueError(
                f"x: expected float32 [rows, {spec.INPUT}], found {x.dtype} {list(x.shape)}"
            )
        rows = len(x)
        if rows == 0:
            return ReadyTicket(np.empty((0, spec.OUTPUT), np.float32))
        requests = self._requests(rows)
        ticket = _TritonTicket(requests)
        with self._lock:
            self.counters.rows += rows
            refusal = self._refusal(rows)
            if refusal:
                self.counters.failures[refusal] += requests
            else:
                self._in_flight += requests
                self.counters.requests += requests
                for part in range(requests):
                    start = part * self._settings.max_rows
                    mine = x[start : start + self._settings.max_rows]
                    self._sender.submit(self._send, ticket, part, mine)
        if refusal == "breaker_open":
            self.poll()
        return ReadyTicket(None) if refusal else ticket

    def poll(self) -> None:
        """Send a probe if one is due; `submit` does so too, timers may where nothing is sent."""
        with self._lock:
            due = not self._closed and self._breaker.take_probe(self._clock())
            self.counters.probes += due
        if due:
            self._probe()

    def _refusal(self, rows: int) -> str:
        if self._closed:
            return "closed"
        if self._breaker.state != "closed":
            return "breaker_open"
        if not self.has_room(rows):
            return "in_flight_limit"
        return ""

    def _send(self, ticket: _TritonTicket, part: int, rows: NDArray[np.float32]) -> None:
        """Send one request; on the sender's thread."""
        count = len(rows)
        if ticket.given_up.is_set():
            self._note(count, 0.0, "not_sent")
            ticket.put(part, None)
            return
        sent_s = self._clock()

        def finish(call: Any) -> None:
            y, fault = self._read(call, count)
            self._note(count, self._clock() - sent_s, fault)
            ticket.put(part, y)

        try:
            request = wire.infer_request(self._template, rows)
            call = self._stub.ModelInfer.future(request, timeout=self._timeout_s)
        except Exception as error:  # noqa: BLE001 - a ticket must end, whatever gRPC says
            # ValueError: the channel was closed meanwhile.
            self.last_error = _text(error)
            fault = "closed" if isinstance(error, ValueError) else "send_failed"
            self._note(count, 0.0, fault)
            ticket.put(part, None)
            return
        ticket.calls.append(call)
        call.add_done_callback(finish)
        if ticket.given_up.is_set():  # meanwhile
            call.cancel()

    def _read(self, call: Any, rows: int) -> tuple[NDArray[np.float32] | None, str]:
        try:
            response = call.result()
        except grpc.FutureCancelledError:
            return None, "cancelled"
        except grpc.RpcError as error:
            self.last_error = f"{error.code().name}: {error.details()}"
            return None, wire.failure_reason(error.code())
        return wire.read_answer(response, rows)

    def _note(self, rows: int, latency_s: float, fault: str) -> None:
        with self._lock:
            self._in_flight -= 1
            if not fault:
                self.counters.answer(rows, latency_s)
                self._breaker.succeed()
                return
            self.counters.failures[fault] += 1
            # Neither a request that the model refuses nor one that was never sent says anything
            # about the server's health.
            if fault not in ("rejected", "closed", "not_sent") and self._breaker.fail(
                self._clock()
            ):
                self.counters.opened += 1

    # --- probes and checks -------------------------------------------------------------------

    def _probe(self) -> None:
        """Ask for the configuration, then a canary, in the background; close if both are good."""
        # A channel that has failed goes on refusing for up to 5 s after the server is back, and one
        # to a host that vanished looks alive: each probe connects anew.
        with self._lock:
            if self._closed:
                return
            failed = self._channel
            self._connect()
            stub = self._stub
        failed.close()

        def checked(call: Any) -> None:
            try:
                info = wire.check_config(call.result(), "")
                canary = stub.ModelInfer.future(self._canary(), timeout=self._timeout_s)
            except (grpc.RpcError, grpc.FutureCancelledError, ValueError) as error:
                self._end_probe(None, _text(error))
                return
            canary.add_done_callback(lambda call: answered(call, info))

        def answered(call: Any, info: ModelInfo) -> None:
            try:
                response = call.result()
            except (grpc.RpcError, grpc.FutureCancelledError) as error:
                self._end_probe(None, _text(error))
                return
            fault = wire.read_answer(response, 1)[1]
            served = dataclasses.replace(info, version=response.model_version)
            self._end_probe(None if fault else served, fault)

        try:
            call = stub.ModelConfig.future(
                self._config_request(), timeout=self._timeout_s, wait_for_ready=True
            )
        except ValueError as error:
            self._end_probe(None, _text(error))
            return
        call.add_done_callback(checked)

    def _end_probe(self, info: ModelInfo | None, error: str) -> None:
        with self._lock:
            self.last_error = error
            if info is not None:
                self._info = info
            if self._breaker.state != "closed":
                self._breaker.end_probe(info is not None, self._clock())

    def _canary(self) -> service_pb2.ModelInferRequest:
        return wire.infer_request(self._template, wire.canary_rows())

    def _config_request(self) -> service_pb2.ModelConfigRequest:
        return service_pb2.ModelConfigRequest(
            name=self._settings.model_name, version=self._settings.model_version
        )

    def health(self) -> bool:
        """Return True if the model answers a canary within the deadline; waits for it."""
        try:
            response = self._stub.ModelInfer(self._canary(), timeout=self._timeout_s)
        except (grpc.RpcError, ValueError) as error:
            self.last_error = _text(error)
            return False
        return wire.read_answer(response, 1)[0] is not None

    def check_model(self, timeout_s: float = 5.0) -> ModelInfo:
        """Ask which model is served and whether this job can use it; closes the breaker.

        Raises:
            IncompatibleModelError: it has other shapes or another feature version, or answers
                a canary with another shape or numbers that are not finite.
            ModelUnavailableError: the server or the model does not answer; the job may go on
                without it, and a probe closes the breaker once it does.
        """
        name = self._settings.model_name
        try:
            config = self._stub.ModelConfig(
                self._config_request(), timeout=timeout_s, wait_for_ready=True
            )
            wire.check_config(config, "")
            canary = self._stub.ModelInfer(self._canary(), timeout=timeout_s)
        except grpc.RpcError as error:
            raise ModelUnavailableError(
                f"model {name!r} at {self._settings.endpoint} does not answer: {_text(error)}"
            ) from error
        fault = wire.read_answer(canary, 1)[1]
        if fault:
            raise IncompatibleModelError(
                f"model {name!r}: expected a finite y [1, {spec.OUTPUT}] for a canary, "
                f"found {fault.replace('_', ' ')}"
            )
        info = wire.check_config(config, canary.model_version)
        self._end_probe(info, "")
        return info

    def close(self) -> None:
        """Cancel what is under way and close the channel."""
        with self._lock:
            self._closed = True
            channel = self._channel
        self._sender.shutdown(wait=False)
        channel.close()


def _text(error: Exception) -> str:
    if isinstance(error, grpc.RpcError) and hasattr(error, "code"):
        return f"{error.code().name}: {error.details()}"
    return f"{type(error).__name__}: {error}"
