"""The straightforward PyFlink job: what one would write first, event by event.

    KafkaSource -> json.loads -> one element per entity -> key_by entity
        -> KeyedProcessFunction with a ValueState and one Triton call per event -> KafkaSink

It is no straw man: it has eddy's compiled kernels for the filter, the gaps and the encoder, one
ValueState of bytes per entity in place of several pickled ones, eddy's wire code on an open gRPC
channel, and the same Flink configuration. What it lacks is batches.

    flink run -pym deploy.bench.naive -- SETTINGS.json
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import flink_jobs.worker  # noqa: F401  isort: skip

import grpc  # type: ignore[import-untyped]  # ships no types
import numpy as np
from numpy.typing import NDArray
from pyflink.common import Types, WatermarkStrategy
from pyflink.common.serialization import SimpleStringSchema
from pyflink.datastream import (
    DataStream,
    KeyedProcessFunction,
    RuntimeContext,
    StreamExecutionEnvironment,
)
from pyflink.datastream.connectors.base import DeliveryGuarantee
from pyflink.datastream.connectors.kafka import (
    KafkaOffsetsInitializer,
    KafkaRecordSerializationSchema,
    KafkaSink,
    KafkaSource,
)
from pyflink.datastream.state import ValueStateDescriptor
from tritonclient.grpc import service_pb2_grpc

from flink_jobs import triton_wire as wire
from flink_jobs.detect import configuration
from flink_jobs.model_files import load_encoder, model_folder
from flink_jobs.settings import Settings
from models.baselines.local_level import local_level_step, noise_var_step
from models.baselines.renewal import GAP_PRIOR_EVENTS, MIN_GAP_S, gap_step
from models.prior import KindPrior, load_prior
from models.tpp import spec
from models.tpp.encoder import SCRATCH, encoder_step, gap_features
from models.tpp.mixture import mixture_log_survival

LEVEL, LEVEL_VAR, NOISE_VAR, GAP_MEAN, GAP_VAR, EVENTS, LAST_MS, MIXTURE = range(8)
STATISTICS = MIXTURE + 3 * spec.COMPONENTS  # float64, before the memory of float32[64]
VALUE_DOF = 4.0
LEVEL_NOISE_VAR = 0.001
NOISE_LEARNING_RATE = 0.05
Z_THRESHOLD = 6.0
LOG_P_THRESHOLD = math.log(1e-6)


def entity_events(payment: str, entities: list[tuple[str, str]]) -> Iterator[tuple[str, Any]]:
    """Yield (entity, event) for each entity of a payment."""
    event = json.loads(payment)
    time_ms = round(datetime.fromisoformat(event["event_time"]).timestamp() * 1_000)
    for kind, field in entities:
        entity = f"{kind}/{event[field]}"
        yield entity, (kind, time_ms, float(event["amount"]), event["channel"])


class Detector(KeyedProcessFunction):  # type: ignore[misc]  # pyflink has no types
    """Scores one event of one entity."""

    def __init__(self, settings_json: str) -> None:
        self._settings_json = settings_json

    def open(self, context: RuntimeContext) -> None:
        """Read the model, connect to Triton, declare the state."""
        settings = Settings.from_json(self._settings_json)
        folder = model_folder(settings)
        self._encoder = load_encoder(folder)
        self._prior = load_prior(folder / "prior.json")
        self._marks = {mark: i for i, mark in enumerate(settings.event.marks)}
        self._hidden = np.empty(SCRATCH, np.float32)
        triton = settings.triton
        self._timeout_s = triton.timeout_ms / 1e3
        self._template = wire.infer_template(triton.model_name, triton.model_version)
        self._channel = grpc.insecure_channel(triton.endpoint, wire.CHANNEL_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        bytes_type = Types.PRIMITIVE_ARRAY(Types.BYTE())
        self._state = context.get_state(ValueStateDescriptor("entity", bytes_type))
        self._decided = context.get_metrics_group().add_group("eddy").counter("decided")

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Iterator[str]:
        """Score one event, update the entity, ask for the prediction of its next gap."""
        kind, time_ms, amount, channel = value[1]
        prior = self._prior.of(kind)
        stored = self._state.value()
        known, memory = _unpack(bytes(stored)) if stored else _first(prior)
        z, log_p, x = self._advance(known, memory, prior, time_ms, amount, channel)
        answer = self._ask(x)
        if answer is not None:
            known[MIXTURE:] = answer[0, spec.GAP]
        self._state.update(known.tobytes() + memory.tobytes())
        self._decided.inc()
        if abs(z) > Z_THRESHOLD or log_p < LOG_P_THRESHOLD:
            alert = {"entity": ctx.get_current_key(), "time_ms": time_ms, "z": z, "log_p": log_p}
            yield json.dumps(alert)

    def _advance(
        self,
        known: NDArray[np.float64],
        memory: NDArray[np.float32],
        prior: KindPrior,
        time_ms: int,
        amount: float,
        channel: str,
    ) -> tuple[float, float, NDArray[np.float32]]:
        """Update an entity in place; return its scores (z, log p of the gap) and x [1, 69]."""
        level, level_var, z, _ = local_level_step(
            math.log(max(amount, 1.0)),
            known[LEVEL],
            known[LEVEL_VAR],
            known[NOISE_VAR],
            LEVEL_NOISE_VAR * known[NOISE_VAR],
            VALUE_DOF,
        )
        known[LEVEL], known[LEVEL_VAR] = level, level_var
        known[NOISE_VAR] = noise_var_step(known[NOISE_VAR], z, NOISE_LEARNING_RATE)
        elapsed, zgap, ratio, is_first, log_p = 0.0, 0.0, 1.0, 1.0, 0.0
        if known[EVENTS] > 0:
            gap_s = max((time_ms - known[LAST_MS]) / 1e3, MIN_GAP_S)
            log_gap, is_first = math.log(gap_s), 0.0
            elapsed, zgap, ratio = gap_features(
                gap_s, known[GAP_MEAN], math.sqrt(prior.gap_within_var)
            )
            log_p = mixture_log_survival(known[MIXTURE:], log_gap - known[GAP_MEAN])
            known[GAP_MEAN], known[GAP_VAR] = gap_step(
                log_gap, known[GAP_MEAN], known[GAP_VAR], known[EVENTS], GAP_PRIOR_EVENTS
            )
        known[EVENTS] += 1
        known[LAST_MS] = time_ms
        encoder = self._encoder
        mark = self._marks.get(channel, spec.NO_MARK)
        encoder_step(
            memory, elapsed, zgap, ratio, is_first, mark,
            encoder.w1, encoder.b1, encoder.w2, encoder.b2, self._hidden,
        )  # fmt: skip
        x = np.empty((1, spec.INPUT), np.float32)
        x[0, : spec.MEMORY] = memory
        count = math.log1p(known[EVENTS]) / spec.LOG_COUNT_DIVISOR
        x[0, spec.MEMORY :] = zgap, ratio, is_first, count, min(mark, spec.MARKS)
        return float(z), float(log_p), x

    def _ask(self, x: NDArray[np.float32]) -> NDArray[np.float32] | None:
        try:
            response = self._stub.ModelInfer(
                wire.infer_request(self._template, x), timeout=self._timeout_s
            )
        except grpc.RpcError:
            return None
        return wire.read_answer(response, 1)[0]


def _first(prior: KindPrior) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Return what is known of an entity before its first event."""
    known = np.zeros(STATISTICS)
    known[LEVEL], known[LEVEL_VAR] = prior.value_mean, prior.value_between_var
    known[NOISE_VAR] = prior.value_within_var
    known[GAP_MEAN], known[GAP_VAR] = prior.gap_mean, prior.gap_within_var
    return known, np.zeros(spec.MEMORY, np.float32)


def _unpack(stored: bytes) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    known = np.frombuffer(stored, np.float64, STATISTICS).copy()
    return known, np.frombuffer(stored, np.float32, spec.MEMORY, 8 * STATISTICS).copy()


def source(env: StreamExecutionEnvironment, settings: Settings) -> DataStream:
    """Read payments as text."""
    kafka = (
        KafkaSource.builder()
        .set_bootstrap_servers(settings.source.bootstrap_servers)
        .set_topics(settings.source.topic)
        .set_group_id(settings.source.group_id)
        .set_starting_offsets(KafkaOffsetsInitializer.earliest())
        .set_value_only_deserializer(SimpleStringSchema())
        .build()
    )
    return env.from_source(kafka, WatermarkStrategy.no_watermarks(), "payments")


def sink(settings: Settings) -> KafkaSink:
    """Write alerts as text."""
    serializer = (
        KafkaRecordSerializationSchema.builder()
        .set_topic(settings.sink.alerts_topic)
        .set_value_serialization_schema(SimpleStringSchema())
        .build()
    )
    builder = (
        KafkaSink.builder()
        .set_bootstrap_servers(settings.source.bootstrap_servers)
        .set_record_serializer(serializer)
        .set_property("transaction.timeout.ms", str(settings.sink.transaction_timeout_ms))
    )
    if settings.sink.delivery == "exactly_once":
        builder = builder.set_delivery_guarantee(DeliveryGuarantee.EXACTLY_ONCE)
        builder = builder.set_transactional_id_prefix(f"eddy-{settings.job.name}")
    else:
        builder = builder.set_delivery_guarantee(DeliveryGuarantee.AT_LEAST_ONCE)
    return builder.build()


def main(arguments: list[str]) -> None:
    """Run the job with the settings in the file that is named."""
    settings = Settings.from_json(Path(arguments[0]).read_text())
    env = StreamExecutionEnvironment.get_execution_environment(configuration(settings))
    entities = [(kind, pointer.lstrip("/")) for kind, pointer in settings.event.entities]
    (
        source(env, settings)
        .flat_map(lambda payment: entity_events(payment, entities))
        .key_by(lambda event: event[0], key_type=Types.STRING())
        .process(Detector(settings.to_json()), Types.STRING())
        .name("detect")
        .sink_to(sink(settings))
    )
    env.execute(settings.job.name)


if __name__ == "__main__":
    # By its name: operators of `__main__` would be sent to the workers by value.
    from deploy.bench import naive

    naive.main(sys.argv[1:])
