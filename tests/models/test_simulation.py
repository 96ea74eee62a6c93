"""The simulated stream: reproducible, as lively as asked for, and anomalous where it says so."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
import pytest
from numpy.typing import NDArray

from models.simulation.behaviour import expected_by_step, merchant_demand
from models.simulation.config import (
    ANOMALY_KINDS,
    DAY_S,
    AnomalyCounts,
    SimulationConfig,
    demo,
    training,
)
from models.simulation.cycle import day_of_month, pay_day_factor, weekly_profile
from models.simulation.encode import encode_lines, encode_payments, user_key
from models.simulation.payments import (
    CHANNELS,
    CURRENCIES,
    RECURRING,
    Payments,
    SimulatedChunk,
    device_name,
    merchant_name,
    user_name,
)
from models.simulation.stream import Simulation, ground_truth, simulate
from models.simulation.throughput import throughput
from models.simulation.truth import Anomaly, rfc3339

LABELLED = SimulationConfig(
    seed=11,
    users=800,
    merchants=120,
    payments=120_000,
    duration_s=14 * DAY_S,
    anomalies=AnomalyCounts.balanced(24),
)
KEYS = ["payment_id", "event_time", "user_id", "merchant_id"]
KEYS += ["device_id", "amount", "currency", "channel"]


@dataclass(frozen=True)
class Run:
    """A played simulation: its payments, their ids and its truth."""

    config: SimulationConfig
    people: Simulation
    payments: Payments
    index_of: dict[str, int]
    truth: list[Anomaly]

    def of_kind(self, kind: str) -> list[Anomaly]:
        return [one for one in self.truth if one.kind == kind]

    def payments_of(self, anomaly: Anomaly) -> Payments:
        return self.payments.take(
            np.array([self.index_of[one] for one in anomaly.payment_ids], np.int64)
        )


@pytest.fixture(scope="module")
def run() -> Run:
    simulation = Simulation(LABELLED)
    chunks = list(simulation.chunks())
    ids = [one for chunk in chunks for one in chunk.payment_ids()]
    index_of = {one: at for at, one in enumerate(ids)}
    assert len(index_of) == len(ids)
    return Run(LABELLED, simulation, Payments.join(list(chunks)), index_of, simulation.truth())


@pytest.fixture(scope="module")
def normal() -> Payments:
    return Payments.join(list(simulate(replace(LABELLED, anomalies=AnomalyCounts()))))


def _number(name: str) -> int:
    return int(name.split("-")[1])


def _hash(chunks: list[SimulatedChunk], payments: int) -> str:
    lines = b"".join(encode_lines(chunk)[0] for chunk in chunks)
    return hashlib.sha256(b"\n".join(lines.split(b"\n")[:payments])).hexdigest()


# --- reproducible ---------------------------------------------------------------------------


@pytest.mark.compiled
def test_same_seed_gives_the_same_bytes_whatever_the_chunks() -> None:
    hashes = {
        _hash(list(simulate(LABELLED, chunk_payments)), 10_000)
        for chunk_payments in (997, 8_192, 8_192, 1_000_000)
    }
    assert len(hashes) == 1


@pytest.mark.compiled
def test_another_process_gives_the_same_bytes() -> None:
    program = (
        "import sys; from models.simulation.config import demo;"
        "from models.simulation.encode import encode_lines;"
        "from models.simulation.stream import simulate;"
        "sys.stdout.buffer.write(encode_lines(next(simulate(demo(9), 10_000)))[0])"
    )
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout
    assert found == encode_lines(next(simulate(demo(9), 10_000)))[0]


def test_chunks_have_the_size_asked_for_and_their_place() -> None:
    chunks = list(simulate(LABELLED, 1_000))
    assert {len(chunk) for chunk in chunks[:-1]} == {1_000}
    assert [chunk.first_index for chunk in chunks] == list(range(0, 1_000 * len(chunks), 1_000))


def test_seeds_differ() -> None:
    chunks = [next(simulate(replace(LABELLED, seed=seed))) for seed in (1, 2)]
    assert set(chunks[0].payment_ids()).isdisjoint(chunks[1].payment_ids())
    assert chunks[0].amount.tolist() != chunks[1].amount.tolist()


def test_truth_is_the_same_twice(run: Run) -> None:
    assert ground_truth(LABELLED) == run.truth


def test_anomalies_leave_normal_traffic_as_it_is(run: Run, normal: Payments) -> None:
    """Injected payments come on top, outages take away, drifts change amounts: no more."""

    def rows(payments: Payments) -> set[tuple[int, ...]]:
        columns = (payments.time_ms, payments.user, payments.merchant, payments.device)
        return set(zip(*(column.tolist() for column in columns), strict=True))

    out = {_number(one.entity): one for one in run.of_kind("outage")}
    without = rows(run.payments.take(run.payments.anomaly < 0))
    for time_ms, _, merchant, _ in rows(normal) ^ without:
        assert out[merchant].start_ms <= time_ms <= out[merchant].end_ms


# --- lively ---------------------------------------------------------------------------------


def test_payments_come_in_event_time_order_within_the_span(run: Run) -> None:
    time_ms = run.payments.time_ms
    assert (np.diff(time_ms) >= 0).all()
    assert time_ms[0] >= LABELLED.start_ms
    assert time_ms[-1] < LABELLED.end_ms


@pytest.mark.parametrize(
    "config",
    [
        replace(LABELLED, anomalies=AnomalyCounts()),
        replace(LABELLED, anomalies=AnomalyCounts(), branching=0.0, newcomers=0.5),
        SimulationConfig(seed=4, users=500, duration_s=6 * 3_600, mean_rate_per_s=8.0),
        SimulationConfig(seed=5, users=20_000, payments=50_000),
        SimulationConfig(seed=6, start=datetime(2026, 1, 24, 15, tzinfo=UTC), duration_s=5 * DAY_S),
    ],
)
def test_number_of_payments_is_near_what_was_asked(config: SimulationConfig) -> None:
    payments = sum(len(chunk) for chunk in simulate(config))
    assert payments == pytest.approx(config.rate_per_s * config.duration_s, rel=0.06)


def test_rates_follow_the_day_and_the_week(normal: Payments) -> None:
    hours = np.bincount((normal.time_ms - LABELLED.start_ms) // 3_600_000, minlength=14 * 24)
    found = hours.reshape(2, 168).sum(axis=0) / hours.mean() / 2
    expected = weekly_profile().reshape(168, -1).mean(axis=1)
    assert np.corrcoef(found, expected)[0, 1] > 0.97
    by_hour = found.reshape(7, 24).mean(axis=0)
    assert by_hour[2:5].mean() < 0.35 < 1.4 < by_hour[16:20].mean()


def test_profile_has_mean_one_and_no_jumps() -> None:
    profile = weekly_profile()
    assert profile.mean() == pytest.approx(1.0)
    assert (profile > 0).all()
    assert np.abs(np.diff(np.append(profile, profile[0]))).max() < 0.12


def test_pay_days_are_busier() -> None:
    days = np.array([np.datetime64("2026-02-24") + day for day in range(6)]).astype(np.int64)
    assert day_of_month(days).tolist() == [24, 25, 26, 27, 28, 1]
    assert (pay_day_factor(days * 86_400_000) > 1).tolist() == [False] + 4 * [True] + [False]
    assert len(pay_day_factor(np.zeros(0, np.int64))) == 0


def test_activity_and_amounts_have_heavy_tails(normal: Payments) -> None:
    by_user = np.sort(np.bincount(normal.user, minlength=LABELLED.users))[::-1]
    assert by_user[: LABELLED.users // 10].sum() > 0.35 * len(normal)
    by_merchant = np.sort(np.bincount(normal.merchant, minlength=LABELLED.merchants))[::-1]
    assert by_merchant[0] > 5 * np.median(by_merchant)
    amount = normal.amount
    assert amount.mean() > 1.25 * np.median(amount)
    assert np.quantile(amount, 0.999) > 8 * np.median(amount)
    assert amount.min() >= 50


def test_users_burst_and_without_branching_they_do_not() -> None:
    """Counts of one user in half an hour vary more than Poisson counts of the same rate."""
    dispersion = []
    for branching in (0.3, 0.0):
        config = replace(
            training(3), users=300, payments=200_000, branching=branching, newcomers=0.0
        )
        payments = Payments.join(list(simulate(config)))
        ratios = []
        for user in np.argsort(np.bincount(payments.user))[-40:]:
            at = (payments.time_ms[payments.user == user] - config.start_ms) // 1_800_000
            # One half-hour of the week only with itself: the cycle is no burst.
            counts = np.bincount(at, minlength=3 * 336).reshape(3, 336)
            ratios.append(counts.var(axis=0, ddof=1).sum() / counts.mean(axis=0).sum())
        dispersion.append(np.mean(ratios))
    assert dispersion[0] > 1.3
    assert dispersion[1] == pytest.approx(1.0, abs=0.15)


def test_newcomers_appear_in_the_stream(normal: Payments) -> None:
    first = np.full(LABELLED.users, LABELLED.end_ms)
    np.minimum.at(first, normal.user, normal.time_ms)
    late = first > LABELLED.start_ms + 7 * 86_400_000
    assert 0.04 < late.mean() < 0.2


def test_devices_have_one_or_two_users_and_users_few_devices(normal: Payments) -> None:
    pairs = np.unique(np.stack([normal.device, normal.user]), axis=1)
    users_of_a_device = np.unique(pairs[0], return_counts=True)[1]
    assert users_of_a_device.max() == 2
    assert (users_of_a_device == 2).mean() < 0.1
    assert np.unique(pairs[1], return_counts=True)[1].max() <= 4


def test_subscriptions_recur_on_their_day_with_the_same_amount() -> None:
    config = SimulationConfig(seed=2, users=200, payments=40_000, duration_s=65 * DAY_S)
    payments = Payments.join(list(simulate(config)))
    recurring = payments.take(payments.channel == RECURRING)
    day = day_of_month(recurring.time_ms // 86_400_000)
    series = np.stack([recurring.user, recurring.merchant, recurring.amount, day])
    _, times = np.unique(series, axis=1, return_counts=True)
    assert (times >= 2).sum() > 50
    assert len(recurring) < 0.05 * len(payments)


def test_sales_lift_a_merchant_for_hours() -> None:
    config = replace(training(5), users=500, merchants=30, payments=150_000, branching=0.0)
    simulation = Simulation(config)
    payments = Payments.join(list(simulation.chunks()))
    sales, lifts = simulation.sales, []
    demand = merchant_demand(simulation.people, settled=False)
    for merchant, begin_ms, length_ms in zip(
        sales.merchant.tolist(), sales.begin_ms.tolist(), sales.length_ms.tolist(), strict=True
    ):
        here = payments.time_ms[payments.merchant == merchant]
        found = ((here >= begin_ms) & (here < begin_ms + length_ms)).sum()
        usual = expected_by_step(config, simulation.people, demand[merchant], 3_600)
        at = (begin_ms - config.start_ms) // 3_600_000
        if at < len(usual):
            lifts.append(found / (usual[at] * length_ms / 3_600_000))
    assert len(lifts) > 20
    assert 1.5 < np.median(lifts) < 4.5


# --- the payload ----------------------------------------------------------------------------


def test_payments_are_the_json_of_the_contract() -> None:
    chunk = next(Simulation(LABELLED).chunks(5_000))
    encoded = encode_payments(chunk)
    ids = chunk.payment_ids()
    for at, payment in enumerate(encoded):
        found = json.loads(payment)
        assert list(found) == KEYS
        assert payment == json.dumps(found, separators=(",", ":")).encode()
        assert found == {
            "payment_id": ids[at],
            "event_time": rfc3339(int(chunk.time_ms[at])),
            "user_id": user_name(int(chunk.user[at])),
            "merchant_id": merchant_name(int(chunk.merchant[at])),
            "device_id": device_name(int(chunk.device[at])),
            "amount": int(chunk.amount[at]),
            "currency": CURRENCIES[chunk.currency[at]],
            "channel": CHANNELS[chunk.channel[at]],
        }
        assert user_key(payment) == found["user_id"].encode()


def test_encoder_takes_wide_numbers_and_any_date() -> None:
    dates = ["1970-01-01", "2000-02-29", "2024-12-31", "2026-03-01", "2100-02-28", "9999-12-31"]
    time_ms = np.array(dates, "datetime64[ms]").astype(np.int64) + 86_399_999
    n = len(time_ms)
    chunk = SimulatedChunk(
        time_ms=time_ms,
        user=np.full(n, 2**31 - 1, np.int32),
        merchant=np.full(n, 2**31 - 1, np.int32),
        device=np.full(n, (2**31 - 1) * 256 + 255, np.int64),
        amount=np.full(n, 2**63 - 1, np.int64),
        currency=np.zeros(n, np.uint8),
        channel=np.full(n, RECURRING, np.uint8),
        anomaly=np.full(n, 3, np.int32),
        first_index=2**40,
        id_key=2**64 - 1,
    )
    for date, payment in zip(dates, encode_payments(chunk), strict=True):
        found = json.loads(payment)
        assert found["event_time"] == f"{date}T23:59:59.999Z"
        assert found["amount"] == 2**63 - 1
        assert found["device_id"] == "d-2147483647-255"
        assert user_key(payment) == b"u-2147483647"
    assert encode_payments(chunk)[0][:33].decode().endswith(chunk.payment_ids()[0][2:])


def test_nothing_to_encode() -> None:
    empty = next(throughput(10, 5)).take(slice(0, 0))
    columns = {name: getattr(empty, name) for name in Payments.__slots__}
    chunk = SimulatedChunk(**columns, first_index=0, id_key=1)
    assert encode_payments(chunk) == []
    assert encode_lines(chunk)[0] == b""


@pytest.mark.compiled
def test_truth_is_not_in_the_payload() -> None:
    """An anomalous payment has the keys of any other, and ids of the same form and range."""
    lines = b"".join(encode_lines(chunk)[0] for chunk in simulate(LABELLED))
    for word in (*ANOMALY_KINDS, "anomaly", "label", "truth", "normal"):
        assert word.encode() not in lines
    lengths = {len(json.loads(line)["payment_id"]) for line in lines.split(b"\n")[:1000] if line}
    assert lengths == {18}


# --- the anomalies --------------------------------------------------------------------------


def test_counts_times_and_entities_of_the_truth(run: Run) -> None:
    assert {kind: len(run.of_kind(kind)) for kind in ANOMALY_KINDS} == LABELLED.anomalies.by_kind()
    first = LABELLED.start_ms + LABELLED.duration_s * 1_000 / 3
    for one in run.truth:
        assert first <= one.start_ms < one.end_ms <= LABELLED.end_ms
        assert all(run.index_of[payment] >= 0 for payment in one.payment_ids)
        if one.payment_ids:
            time_ms = run.payments_of(one).time_ms
            assert one.start_ms <= time_ms[0] <= time_ms[-1] <= one.end_ms
        assert Anomaly.from_json(one.to_json()) == one
    assert len({(one.entity_kind, one.entity) for one in run.truth}) == len(run.truth)
    assert [one.start_ms for one in run.of_kind("drift")] == sorted(
        one.start_ms for one in run.of_kind("drift")
    )


def test_injected_payments_are_the_labelled_ones(run: Run) -> None:
    injected = {
        payment
        for one in run.truth
        if one.kind not in ("drift", "outage")
        for payment in one.payment_ids
    }
    assert len(injected) == int((run.payments.anomaly >= 0).sum())


def _hit_merchants(payments: Payments) -> tuple[tuple[str, str], ...]:
    merchants, counts = np.unique(payments.merchant, return_counts=True)
    return tuple(("merchant", merchant_name(int(one))) for one in merchants[counts >= 3])


def test_takeover(run: Run) -> None:
    people, logs = run.people.people, []
    for one in run.of_kind("takeover"):
        payments = run.payments_of(one)
        assert one.entity_kind == "user"
        assert 8 <= len(payments) <= 40
        assert one.end_ms - one.start_ms <= 90 * 60_000
        user = _number(one.entity)
        assert set(payments.user.tolist()) == {user}
        device = ("device", device_name(int(payments.device[0])))
        assert one.involved == (device, *_hit_merchants(payments))
        (device,) = set(payments.device.tolist())
        assert int((run.payments.device == device).sum()) == len(payments)
        assert not np.isin(payments.merchant, people.favourites[user]).any()
        usual = people.merchant_log_amount[payments.merchant] + people.log_level[user]
        logs.append(float(np.mean(np.log(payments.amount) - usual)))
    assert np.log(5) - 0.5 < min(logs) <= max(logs) < np.log(20) + 0.5


def test_card_testing(run: Run) -> None:
    for one in run.of_kind("card_testing"):
        payments = run.payments_of(one)
        assert one.entity_kind == "merchant"
        assert 60 <= len(payments) <= 300
        assert one.end_ms - one.start_ms <= 30 * 60_000
        assert 50 <= payments.amount.min() <= payments.amount.max() <= 300
        assert set(payments.merchant.tolist()) == {_number(one.entity)}
        users, devices = np.unique(payments.user), np.unique(payments.device)
        assert len(users) >= 0.6 * len(payments)
        assert 1 <= len(devices) <= 6
        assert (users >= LABELLED.users).mean() > 0.5
        named = {("user", user_name(int(user))) for user in users}
        named |= {("device", device_name(int(device))) for device in devices}
        assert set(one.involved) == named


def test_outage(run: Run, normal: Payments) -> None:
    missed = []
    for one in run.of_kind("outage"):
        merchant = _number(one.entity)
        assert one.payment_ids == ()
        for payments, expected in ((run.payments, False), (normal, True)):
            here = payments.time_ms[payments.merchant == merchant]
            inside = (here >= one.start_ms) & (here <= one.end_ms)
            assert inside.any() == expected
            if expected:
                missed.append(int(inside.sum()))
            else:
                assert (here > one.end_ms).any()
                assert (here < one.start_ms).sum() > 50
    assert np.mean(missed) > 25


def test_bot_timing(run: Run) -> None:
    for one in run.of_kind("bot_timing"):
        payments = run.payments_of(one)
        assert 40 <= len(payments) <= 150
        gap_s = np.diff(payments.time_ms) / 1_000
        assert 4.9 < gap_s.mean() < 122
        assert 0.005 < gap_s.std() / gap_s.mean() < 0.04
        assert set(payments.user.tolist()) == {_number(one.entity)}
        device = ("device", device_name(int(payments.device[0])))
        assert one.involved == (device, *_hit_merchants(payments))
        user, merchant = _number(one.entity), payments.merchant
        people = run.people.people
        usual = people.merchant_log_amount[merchant] + people.log_level[user]
        assert abs(float(np.mean(np.log(payments.amount) - usual))) < 0.4


def test_shared_device(run: Run) -> None:
    for one in run.of_kind("shared_device"):
        payments = run.payments_of(one)
        assert {device_name(int(device)) for device in payments.device} == {one.entity}
        users = np.unique(payments.user)
        assert 12 <= len(users) <= 40
        assert one.end_ms - one.start_ms <= 6 * 3_600_000
        named = tuple(("user", user_name(int(user))) for user in users)
        assert one.involved == named + _hit_merchants(payments)


def test_drift(run: Run, normal: Payments) -> None:
    amount_of: dict[tuple[int, int, int], int] = dict(
        zip(
            zip(normal.time_ms.tolist(), normal.user.tolist(), normal.merchant.tolist(),
                strict=True),
            normal.amount.tolist(),
            strict=True,
        )
    )  # fmt: skip
    kinds = [one.entity_kind for one in run.of_kind("drift")]
    assert set(kinds) == {"user", "merchant"}
    for one in run.of_kind("drift"):
        payments = run.payments_of(one)
        assert len(payments) >= 60
        factor: NDArray[np.float64] = np.array(
            [
                amount / amount_of[key]
                for amount, key in zip(
                    payments.amount.tolist(),
                    zip(
                        payments.time_ms.tolist(),
                        payments.user.tolist(),
                        payments.merchant.tolist(),
                        strict=True,
                    ),
                    strict=True,
                )
            ]
        )
        assert factor[0] < 1.3
        assert 2.4 < factor[-1] < 8.1
        assert np.corrcoef(payments.time_ms, np.log(factor))[0, 1] > 0.99
        column = run.payments.user if one.entity_kind == "user" else run.payments.merchant
        own = (column == _number(one.entity)) & (run.payments.time_ms >= one.start_ms)
        own &= run.payments.time_ms <= one.end_ms
        assert int(own.sum()) == len(payments)


def test_a_run_cut_short_has_the_truth_of_what_was_sent(run: Run) -> None:
    simulation = Simulation(LABELLED)
    for _ in simulation.chunks():
        pass
    sent = len(run.payments) * 2 // 3
    until_ms = int(run.payments.time_ms[sent - 1])
    cut = simulation.truth(sent, until_ms)
    assert 0 < len(cut) < len(run.truth)
    for one in cut:
        assert one.start_ms <= until_ms
        assert one.end_ms <= until_ms
        assert all(run.index_of[payment] < sent for payment in one.payment_ids)


# --- settings and presets -------------------------------------------------------------------


def test_the_demo_holds_what_it_promises() -> None:
    config = demo(7)
    simulation = Simulation(config)
    payments = Payments.join(list(simulation.chunks()))
    assert len(payments) == pytest.approx(600_000, rel=0.02)
    assert len(np.unique(payments.merchant)) == 300
    assert len(np.unique(payments.user[payments.anomaly < 0])) > 2_900
    truth = simulation.truth()
    assert [sum(one.kind == kind for one in truth) for kind in ANOMALY_KINDS] == [10] * 6
    assert min(one.start_ms for one in truth) >= config.start_ms + 7 * 86_400_000
    assert int((payments.anomaly >= 0).sum()) < 0.015 * len(payments)


def test_training_has_no_anomalies() -> None:
    assert training(3).anomalies.total == 0
    assert replace(demo(3), anomalies=AnomalyCounts()) == training(3)


@pytest.mark.compiled
def test_throughput_reaches_every_entity_and_stops_at_the_number() -> None:
    chunks = list(throughput(entities=1_000, payments=70_001, seed=3, chunk_payments=4_096))
    payments = Payments.join(list(chunks))
    assert len(payments) == 70_001
    assert (np.diff(payments.time_ms) >= 0).all()
    for column in (payments.user, payments.merchant, payments.device):
        assert len(np.unique(column)) == 1_000
    span_s = (payments.time_ms[-1] - payments.time_ms[0]) / 1_000
    assert span_s == pytest.approx(70_001 / 5_000, rel=0.01)
    assert (payments.anomaly == -1).all()
    longer = list(throughput(entities=1_000, payments=90_000, seed=3, chunk_payments=10_000))
    assert _hash(chunks, 70_000) == _hash(longer, 70_000)
    assert list(throughput(10, 0)) == []


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"seed": -1}, "seed"),
        ({"users": 1}, "users"),
        ({"merchants": 3}, "merchants"),
        ({"devices_per_user": 4}, "devices_per_user"),
        ({"start": datetime(2026, 1, 5)}, "start"),
        ({"duration_s": 0, "mean_rate_per_s": 1.0}, "duration_s"),
        ({"payments": 0}, "payments"),
        ({"warm_up": 1.0}, "warm_up"),
        ({"newcomers": -0.1}, "newcomers"),
        ({"branching": 0.9}, "branching"),
        ({"duration_s": 3_600}, "duration_s"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(change: dict[str, object], name: str) -> None:
    with pytest.raises(ValueError, match=f"simulation.{name}"):
        replace(LABELLED, **change)  # type: ignore[arg-type]


def test_negative_counts_and_bad_loads_are_refused() -> None:
    with pytest.raises(ValueError, match=r"anomalies\.drift"):
        AnomalyCounts(drift=-1)
    with pytest.raises(ValueError, match="entities"):
        throughput(entities=0)
    with pytest.raises(ValueError, match="rate_per_s"):
        throughput(rate_per_s=0)


def test_a_world_too_small_for_its_anomalies_is_refused() -> None:
    with pytest.raises(ValueError, match=r"simulation\.anomalies\.outage: expected 50"):
        Simulation(
            SimulationConfig(
                users=50, merchants=20, payments=2_000, anomalies=AnomalyCounts(outage=50)
            )
        )
