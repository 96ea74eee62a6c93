"""The intensity client against a gRPC server that can be made to fail in every way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import replace
from pathlib import Path

import grpc  # type: ignore[import-untyped]  # ships no types
import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from flink_jobs import triton_wire as wire
from flink_jobs.breaker import Breaker
from flink_jobs.intensity import (
    IncompatibleModelError,
    InProcessClient,
    ModelUnavailableError,
    NullClient,
    TritonClient,
)
from flink_jobs.intensity_protocol import IntensityCounters
from flink_jobs.settings import TritonSettings, load
from models.tpp import spec

MODEL = Path(__file__).parents[2] / "triton_repo" / "intensity" / "1"


def _rows(count: int, seed: int = 0) -> NDArray[np.float32]:
    x = np.random.default_rng(seed).normal(0, 2, (count, spec.INPUT)).astype(np.float32)
    x[:, 64:] = (0.0, 1.0, 0.0, 1.0, 2.0)
    return x


def _answer(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.repeat(x[:, :1], spec.OUTPUT, axis=1)


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers y[:, j] = x[:, 0]; its attributes say how it fails."""

    def __init__(self) -> None:
        self.reply: Callable[[NDArray[np.float32]], NDArray[np.float32]] = _answer
        self.code: grpc.StatusCode | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.feature_version = spec.FEATURE_VERSION
        self.model_version = "tpp-a"
        self.width = spec.INPUT
        self.sizes: list[int] = []
        self.arrived = 0

    def ModelConfig(  # noqa: N802 (gRPC's name)
        self,
        request: service_pb2.ModelConfigRequest,
        context: grpc.ServicerContext,  # noqa: ARG002
    ) -> service_pb2.ModelConfigResponse:
        config = model_config_pb2.ModelConfig(name=request.name)
        config.input.add(name="x", data_type="TYPE_FP32", dims=[-1, self.width])
        config.output.add(name="y", data_type="TYPE_FP32", dims=[-1, spec.OUTPUT])
        config.parameters["feature_version"].string_value = self.feature_version
        config.parameters["model_version"].string_value = self.model_version
        return service_pb2.ModelConfigResponse(config=config)

    def ModelInfer(  # noqa: N802
        self, request: service_pb2.ModelInferRequest, context: grpc.ServicerContext
    ) -> service_pb2.ModelInferResponse:
        self.arrived += 1
        self.gate.wait(5)
        if self.code is not None:
            context.abort(self.code, "as told")
        x = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(-1, spec.INPUT)
        assert list(request.inputs[0].shape) == list(x.shape)
        self.sizes.append(len(x))
        y = self.reply(x).astype(np.float32)
        response = service_pb2.ModelInferResponse(model_name="intensity", model_version="1")
        response.outputs.add(name="y", datatype="FP32", shape=list(y.shape))
        response.raw_output_contents.append(y.tobytes())
        return response


def _serve(fake: FakeTriton, port: int = 0) -> tuple[grpc.Server, int]:
    server = grpc.server(
        futures.ThreadPoolExecutor(16), options=(("grpc.so_reuseport", 0),)
    )  # fmt: skip
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(fake, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server, port


@pytest.fixture
def fake() -> FakeTriton:
    return FakeTriton()


@pytest.fixture
def port(fake: FakeTriton) -> Iterator[int]:
    server, port = _serve(fake)
    yield port
    fake.gate.set()
    server.stop(0).wait()


@pytest.fixture
def settings(port: int) -> TritonSettings:
    triton = load(None, {}, []).triton
    return replace(
        triton, endpoint=f"127.0.0.1:{port}", timeout_ms=1_000, max_rows=100, max_in_flight=4,
        breaker_failures=3, breaker_open_ms=50,
    )  # fmt: skip


@pytest.fixture
def client(settings: TritonSettings) -> Iterator[TritonClient]:
    client = TritonClient(settings)
    yield client
    client.close()


def _state(of: TritonClient | Breaker | InProcessClient | NullClient) -> str:
    """Read the state anew: a type checker takes it for unchanged between two looks."""
    return of.state


def _until(condition: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_a_batch_is_split_and_comes_back_in_order(client: TritonClient, fake: FakeTriton) -> None:
    client.check_model()
    fake.sizes.clear()
    x = _rows(350)
    y = client.submit(x).result(5)
    assert y is not None
    np.testing.assert_array_equal(y, _answer(x))
    assert sorted(fake.sizes) == [50, 100, 100, 100]
    assert client.counters.requests == 4
    assert client.counters.answered_rows == client.counters.rows == 350
    assert sum(client.counters.latency_counts) == 4
    assert client.in_flight == 0


def test_no_rows_need_no_request(client: TritonClient) -> None:
    y = client.submit(np.empty((0, spec.INPUT), np.float32)).result(0)
    assert y is not None
    assert y.shape == (0, spec.OUTPUT)


@pytest.mark.parametrize(
    "x", [np.zeros((2, 68), np.float32), np.zeros((2, 69)), np.zeros(69, np.float32)]
)
def test_a_wrong_input_is_the_callers_error(client: TritonClient, x: NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match=r"expected float32 \[rows, 69\]"):
        client.submit(x)


def test_check_model_tells_versions_and_closes_the_breaker(client: TritonClient) -> None:
    assert _state(client) == "open"
    info = client.check_model()
    assert (info.name, info.version, info.feature_version) == ("intensity", "1", "3")
    assert info.model_version == client.model_version == "tpp-a"
    assert _state(client) == "closed"
    assert client.health()


def test_another_feature_version_is_refused(client: TritonClient, fake: FakeTriton) -> None:
    fake.feature_version = "2"
    with pytest.raises(IncompatibleModelError, match="expected feature version 3, found 2"):
        client.check_model()
    assert _state(client) == "open"
    assert client.submit(_rows(1)).result(1) is None


def test_another_input_width_is_refused(client: TritonClient, fake: FakeTriton) -> None:
    fake.width = 70
    with pytest.raises(IncompatibleModelError, match=r"expected one input 'x'.*\[-1, 69\]"):
        client.check_model()


def test_another_output_width_is_refused(client: TritonClient, fake: FakeTriton) -> None:
    fake.reply = lambda x: _answer(x)[:, :19]
    with pytest.raises(IncompatibleModelError, match="found wrong shape"):
        client.check_model()


def test_no_server_is_unavailable() -> None:
    settings = replace(load(None, {}, []).triton, endpoint="127.0.0.1:1")
    client = TritonClient(settings)
    with pytest.raises(ModelUnavailableError, match=r"intensity.*127\.0\.0\.1:1"):
        client.check_model(timeout_s=0.2)
    assert not client.health()
    client.close()


def test_a_rejected_request_says_nothing_about_health(
    client: TritonClient, fake: FakeTriton
) -> None:
    client.check_model()
    fake.code = grpc.StatusCode.INVALID_ARGUMENT
    for _ in range(10):
        assert client.submit(_rows(1)).result(5) is None
    assert _state(client) == "closed"
    assert client.counters.failures == {"rejected": 10}


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (lambda x: _answer(x)[:, :19], "wrong_shape"),
        (lambda x: _answer(x)[:-1], "wrong_shape"),
        (lambda x: _answer(x) * np.nan, "not_finite"),
    ],
)
def test_a_senseless_answer_is_none_and_opens_the_breaker(
    client: TritonClient,
    fake: FakeTriton,
    reply: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    reason: str,
) -> None:
    client.check_model()
    fake.reply = reply
    for _ in range(3):
        assert client.submit(_rows(2)).result(5) is None
    assert client.counters.failures == {reason: 3}
    assert _until(lambda: client.state != "closed")


def test_one_failed_part_fails_the_batch(client: TritonClient, fake: FakeTriton) -> None:
    client.check_model()
    fake.reply = lambda x: _answer(x) if len(x) == 100 else _answer(x)[:0]
    assert client.submit(_rows(130)).result(5) is None
    assert client.counters.answered_rows == 100


def test_the_breaker_opens_and_a_probe_closes_it(client: TritonClient, fake: FakeTriton) -> None:
    client.check_model()
    fake.code = grpc.StatusCode.INTERNAL  # a dead backend behind a server that says it is ready
    for _ in range(3):
        assert client.submit(_rows(1)).result(5) is None
    assert _state(client) == "open"
    assert client.counters.opened == 1
    assert client.submit(_rows(1)).done(), "while open nothing is sent and nothing waits"
    assert client.counters.failures["breaker_open"] == 1
    time.sleep(0.1)
    client.poll()
    assert _until(lambda: client.counters.probes == 1 and client.state == "open")
    fake.code = None
    fake.model_version = "tpp-b"
    assert _until(lambda: client.submit(_rows(1)).result(1) is not None)
    assert _state(client) == "closed"
    assert client.model_version == "tpp-b", "the server that came back has another model"


def test_a_probe_does_not_close_on_an_incompatible_model(
    client: TritonClient, fake: FakeTriton
) -> None:
    fake.feature_version = "9"
    client.poll()
    assert _until(lambda: "feature version" in client.last_error)
    assert _state(client) == "open"


def test_a_server_that_comes_back_is_used_again(
    settings: TritonSettings,
) -> None:
    other = FakeTriton()
    server, elsewhere = _serve(other)
    client = TritonClient(replace(settings, endpoint=f"127.0.0.1:{elsewhere}", timeout_ms=300))
    client.check_model()
    server.stop(0).wait()
    assert _until(lambda: client.submit(_rows(1)).result(1) is None and client.state == "open")
    server, _ = _serve(other, elsewhere)
    begun = time.monotonic()
    assert _until(lambda: client.submit(_rows(1)).result(1) is not None)
    assert time.monotonic() - begun < 10, "full service within 10 s is part of the contract"
    client.close()
    server.stop(0).wait()


def test_a_slow_server_meets_the_deadline(settings: TritonSettings, fake: FakeTriton) -> None:
    client = TritonClient(replace(settings, timeout_ms=200))
    client.check_model()
    fake.gate.clear()
    begun = time.monotonic()
    assert client.submit(_rows(1)).result(5) is None
    assert time.monotonic() - begun < 3
    assert client.counters.failures == {"deadline": 1}
    client.close()


def test_result_gives_up_when_told(client: TritonClient, fake: FakeTriton) -> None:
    client.check_model()
    fake.gate.clear()
    arrived = fake.arrived
    ticket = client.submit(_rows(1))
    assert _until(lambda: fake.arrived > arrived)
    assert not ticket.done()
    assert ticket.result(0.05) is None
    assert _until(lambda: client.in_flight == 0)
    assert client.counters.failures == {"cancelled": 1}


def test_a_ticket_ends_though_sending_fails(
    client: TritonClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.check_model()

    def fail(*_: object) -> None:
        raise RuntimeError("no buffer")

    monkeypatch.setattr("flink_jobs.triton_wire.infer_request", fail)
    assert client.submit(_rows(1)).result(5) is None
    assert client.in_flight == 0
    assert client.counters.failures == {"send_failed": 1}
    assert "no buffer" in client.last_error


def test_what_is_given_up_before_it_is_sent_is_not_sent(
    client: TritonClient, fake: FakeTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.check_model()
    arrived, held = len(fake.sizes), threading.Event()
    write = wire.infer_request
    template = client._template

    def slow(_: object, rows: NDArray[np.float32]) -> object:
        held.wait(5)
        return write(template, rows)

    monkeypatch.setattr("flink_jobs.triton_wire.infer_request", slow)
    tickets = [client.submit(_rows(1)) for _ in range(2)]
    assert tickets[1].result(0.01) is None
    held.set()
    assert tickets[0].result(5) is not None
    assert _until(lambda: client.in_flight == 0)
    assert client.counters.failures == {"not_sent": 1}
    assert len(fake.sizes) == arrived + 1
    assert _state(client) == "closed"


def test_requests_in_flight_are_bounded(client: TritonClient, fake: FakeTriton) -> None:
    client.check_model()
    fake.gate.clear()
    first = client.submit(_rows(300))
    assert client.has_room(100)
    assert not client.has_room(101)
    refused = client.submit(_rows(101))
    assert refused.done()
    assert refused.result(0) is None
    assert client.counters.failures == {"in_flight_limit": 2}
    fake.gate.set()
    assert first.result(5) is not None
    assert _state(client) == "closed", "a full queue is no fault of the server"


def test_a_batch_beyond_the_limit_is_sent_when_nothing_is_under_way(client: TritonClient) -> None:
    client.check_model()
    assert client.has_room(1_000)
    y = client.submit(_rows(1_000)).result(5)
    assert y is not None
    assert len(y) == 1_000


def test_a_closed_client_answers_nothing(client: TritonClient) -> None:
    client.check_model()
    client.close()
    assert client.submit(_rows(5)).result(1) is None
    assert not client.health()
    assert client.counters.failures == {"closed": 1}


def test_threads_may_submit_at_once(settings: TritonSettings) -> None:
    client = TritonClient(replace(settings, max_in_flight=64))
    client.check_model()

    def work(seed: int) -> bool:
        x = _rows(150, seed)
        y = client.submit(x).result(5)
        return y is not None and bool((y == _answer(x)).all())

    with futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(80)))
    assert client.in_flight == 0
    assert client.counters.answered_rows == 80 * 150
    client.close()


def test_breaker_by_its_own_clock() -> None:
    breaker = Breaker(failures_to_open=2, open_s=1.0)
    assert not breaker.fail(0.0)
    breaker.succeed()
    assert not breaker.fail(1.0), "a success in between starts the count anew"
    assert breaker.fail(2.0)
    assert not breaker.fail(2.1), "it opens once"
    assert not breaker.take_probe(2.9)
    assert breaker.take_probe(3.0)
    assert _state(breaker) == "half_open"
    assert not breaker.take_probe(9.0), "one probe at a time"
    breaker.end_probe(False, 3.5)
    assert _state(breaker) == "open"
    assert not breaker.take_probe(4.4)
    assert breaker.take_probe(4.5)
    breaker.end_probe(True, 4.6)
    assert (_state(breaker), breaker.failures) == ("closed", 0)


def test_latencies_fall_into_their_bounds() -> None:
    counters = IntensityCounters()
    for latency_s in (0.0005, 0.001, 0.0011, 2.0):
        counters.answer(1, latency_s)
    assert counters.latency_counts[:2] == [2, 1]
    assert counters.latency_counts[-1] == 1


def test_in_process_client_equals_the_record_of_the_export() -> None:
    with np.load(MODEL / "check.npz") as check:
        x, y = check["x"], check["y"]
    client = InProcessClient(MODEL / "decoder.onnx")
    answer = client.submit(x).result(0)
    assert answer is not None
    np.testing.assert_allclose(answer, y, atol=1e-5)
    assert client.model_version.startswith("tpp-")
    assert _state(client) == "closed"
    client.close()


def test_null_client_never_answers() -> None:
    client = NullClient()
    ticket = client.submit(_rows(3))
    assert ticket.done()
    assert ticket.result(1.0) is None
    assert _state(client) == "open"
    client.close()
