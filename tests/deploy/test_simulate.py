"""Sending and writing simulated payments: all of them, at the pace asked for, the truth apart."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from deploy import simulate as sender
from deploy.simulate import DeliveryError, Pace, produce, produce_chunks, read_truth, write_file
from models.simulation.config import DAY_S, AnomalyCounts, SimulationConfig
from models.simulation.encode import encode_lines, encode_payments
from models.simulation.stream import Simulation, ground_truth, simulate
from models.simulation.throughput import throughput

SMALL = SimulationConfig(
    seed=3,
    users=400,
    merchants=60,
    payments=20_000,
    duration_s=9 * DAY_S,
    anomalies=AnomalyCounts(takeover=2, card_testing=1, outage=1, bot_timing=1),
)


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    """A broker inside librdkafka; it lives as long as the producer that made it."""
    owner = Producer({"test.mock.num.brokers": 1, "log_level": 2})
    (one,) = owner.list_topics(timeout=10).brokers.values()
    yield f"{one.host}:{one.port}"
    del owner


def _read(broker: str, topic: str, count: int) -> list[tuple[int, bytes, bytes]]:
    """Return (partition, key, value) of `count` messages, each partition in its order."""
    consumer = Consumer({"bootstrap.servers": broker, "group.id": "test", "log_level": 2})
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
    found: list[tuple[int, bytes, bytes]] = []
    empty = 0
    while len(found) < count and empty < 20:
        messages = consumer.consume(1_000, timeout=0.5)
        empty += not messages
        for message in messages:
            partition, key, value = message.partition(), message.key(), message.value()
            assert partition is not None
            assert key is not None
            assert value is not None
            found.append((partition, key, value))
    assert len(found) == count
    consumer.close()
    return found


def test_file_holds_the_stream_and_the_truth_lies_apart(tmp_path: Path) -> None:
    seen: list[int] = []
    path, truth_path = tmp_path / "a" / "payments.jsonl", tmp_path / "b" / "truth.jsonl"
    count = write_file(SMALL, path, truth_path, lambda sent, _: seen.append(sent))
    assert path.read_bytes() == b"".join(encode_lines(chunk)[0] for chunk in simulate(SMALL))
    assert count == seen[-1] == len(path.read_bytes().splitlines())
    assert read_truth(truth_path) == ground_truth(SMALL)
    keys = ["anomaly_id", "kind", "entity_kind", "entity", "start", "end", "involved"]
    for line in truth_path.read_text().splitlines():
        assert list(json.loads(line)) == [*keys, "payment_ids"]
    assert [one.name for one in (tmp_path / "b").iterdir()] == ["truth.jsonl"]


def test_kafka_gets_every_payment_keyed_by_user_in_order(broker: str, tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    count = produce(
        SMALL,
        broker,
        "payments",
        truth_path=tmp_path / "truth.jsonl",
        progress=lambda sent, time_ms: progress.append((sent, time_ms)),
    )
    sent = [payment for chunk in simulate(SMALL) for payment in encode_payments(chunk)]
    found = _read(broker, "payments", count)
    assert sorted(value for _, _, value in found) == sorted(sent)
    place = {payment: at for at, payment in enumerate(sent)}
    partition_of: dict[bytes, int] = {}
    last: dict[int, int] = {}
    for partition, key, value in found:
        assert json.loads(value)["user_id"].encode() == key
        assert partition_of.setdefault(key, partition) == partition
        assert last.get(partition, -1) < place[value]
        last[partition] = place[value]
    assert len(last) > 1
    assert progress[-1][0] == count == len(sent)
    assert read_truth(tmp_path / "truth.jsonl") == ground_truth(SMALL)


def test_a_stopped_run_tells_the_truth_of_what_was_sent(broker: str, tmp_path: Path) -> None:
    stop = threading.Event()

    def halfway(sent: int, _time_ms: int) -> None:
        if sent > 12_000:
            stop.set()

    count = produce(
        SMALL,
        broker,
        "stopped",
        rate_per_s=1e6,
        truth_path=tmp_path / "t",
        progress=halfway,
        stop=stop,
    )
    whole = ground_truth(SMALL)
    assert 12_000 < count < 21_000
    sent = {json.loads(value)["payment_id"] for _, _, value in _read(broker, "stopped", count)}
    cut = read_truth(tmp_path / "t")
    assert 0 < len(cut) < len(whole)
    for one in cut:
        assert sent.issuperset(one.payment_ids)


def test_undelivered_payments_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "FLUSH_TIMEOUT_S", 5.0)
    nowhere = {"delivery.timeout.ms": "300", "linger.ms": "5", "log_level": "0"}
    with pytest.raises(DeliveryError, match=r"100 of 100 payments were not delivered") as found:
        produce_chunks(throughput(10, 100), "127.0.0.1:1", "t", security=nowhere)
    assert (found.value.sent, found.value.lost) == (100, 100)


def test_leaving_in_the_middle_takes_no_time() -> None:
    def interrupted(_sent: int, _time_ms: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        produce_chunks(
            throughput(10, 100),
            "127.0.0.1:1",
            "t",
            security={"log_level": "0"},
            progress=interrupted,
        )


class _Clock:
    """A clock that moves only by waiting."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def wait(self, _stop: threading.Event, seconds: float) -> bool:
        self.now_s += seconds
        return False


def test_rate_is_kept() -> None:
    clock, sent = _Clock(), 0
    pace = Pace(2_000.0, None, clock, clock.wait)
    for payments, _ in pace.paced(throughput(10, 10_000, chunk_payments=700), threading.Event()):
        sent += len(payments)
        assert sent == pytest.approx((clock.now_s - 100) * 2_000, abs=25)
    assert sent == 10_000


def test_rate_below_one_per_second_waits_for_each() -> None:
    clock = _Clock()
    pace = Pace(0.5, None, clock, clock.wait)
    paced = list(pace.paced(throughput(10, 4), threading.Event()))
    assert [len(payments) for payments, _ in paced] == [1, 1, 1, 1]
    assert clock.now_s == pytest.approx(106.0)


def test_speed_up_follows_event_time() -> None:
    clock, sent = _Clock(), 0
    pace = Pace(None, 36_000.0, clock, clock.wait)
    for payments, time_ms in pace.paced(Simulation(SMALL).chunks(), threading.Event()):
        sent += len(payments)
        event_s = (time_ms - SMALL.start_ms) / 1_000
        assert event_s <= (clock.now_s - 100) * 36_000 + 3_600
    assert sent > 19_000
    assert clock.now_s - 100 == pytest.approx(9 * DAY_S / 36_000, rel=0.01)


@pytest.mark.parametrize(("rate", "speed_up"), [(1.0, 1.0), (0.0, None), (None, -1.0)])
def test_senseless_paces_are_refused(rate: float | None, speed_up: float | None) -> None:
    with pytest.raises(ValueError, match=r"rate|speed_up"):
        Pace(rate, speed_up)
