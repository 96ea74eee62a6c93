"""`eddy evaluate handbook` from files to JSON and page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deploy.cli import main
from deploy.evaluate.handbook_read import read_payments
from flink_jobs.errors import EddyError
from models.evaluation.handbook import DAY_MS, Payments
from tests.models.test_handbook import world


def write(payments: Payments, folder: Path, name: str, **changed: object) -> None:
    columns: dict[str, object] = {
        "TRANSACTION_ID": payments.payment,
        "TX_DATETIME": payments.time_ms.astype("datetime64[ms]"),
        "CUSTOMER_ID": payments.customer,
        "TERMINAL_ID": payments.terminal,
        "TX_AMOUNT": payments.amount,
        "TX_FRAUD": payments.fraud.astype(np.int8),
        "TX_FRAUD_SCENARIO": payments.scenario,
    }
    columns.update(changed)
    (folder / "raw").mkdir(exist_ok=True)
    kept = {key: value for key, value in columns.items() if value is not None}
    pq.write_table(pa.table(kept), folder / "raw" / name)


def part(payments: Payments, at: slice) -> Payments:
    return Payments(*(getattr(payments, name)[at] for name in Payments.__slots__))


def test_files_are_joined_in_the_order_of_time(tmp_path: Path) -> None:
    payments = world(1, days=6)
    shuffled = np.random.default_rng(1).permutation(300)
    write(part(payments, slice(300, None)), tmp_path, "a.parquet")
    first = part(payments, slice(0, 300))
    mixed = {name: getattr(first, name)[shuffled] for name in Payments.__slots__}
    # Payments that are not in order cannot be built, files out of order can be read.
    microseconds = mixed["time_ms"].astype("datetime64[ms]").astype("datetime64[us]")
    write(
        first, tmp_path, "b.parquet",
        TRANSACTION_ID=mixed["payment"], TX_DATETIME=microseconds,
        CUSTOMER_ID=mixed["customer"], TERMINAL_ID=mixed["terminal"], TX_AMOUNT=mixed["amount"],
        TX_FRAUD=mixed["fraud"].astype(np.int8), TX_FRAUD_SCENARIO=mixed["scenario"],
    )  # fmt: skip
    read = read_payments(tmp_path)
    for name in Payments.__slots__:
        np.testing.assert_array_equal(getattr(read, name), getattr(payments, name), err_msg=name)


def test_without_scenarios_frauds_are_of_an_unknown_one(tmp_path: Path) -> None:
    payments = world(2, days=6)
    write(payments, tmp_path, "a.parquet", TX_FRAUD_SCENARIO=None)
    read = read_payments(tmp_path)
    np.testing.assert_array_equal(read.scenario, np.where(payments.fraud, -1, 0))


def test_files_that_are_not_as_expected_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EddyError, match="found no such file"):
        read_payments(tmp_path)
    payments = world(3, days=3)
    n = len(payments)
    for changed, message in (
        ({"TX_AMOUNT": None}, "TX_AMOUNT is missing"),
        ({"TX_AMOUNT": np.full(n, np.nan)}, "finite numbers"),
        ({"TX_AMOUNT": ["much"] * n}, "finite numbers in TX_AMOUNT"),
        ({"CUSTOMER_ID": ["card-1"] * n}, "whole numbers in CUSTOMER_ID"),
        ({"TERMINAL_ID": np.full(n, 1.5)}, "whole numbers in TERMINAL_ID"),
        ({"TRANSACTION_ID": ["x"] * n}, "whole numbers in TRANSACTION_ID"),
        ({"TX_FRAUD_SCENARIO": ["x"] * n}, "whole numbers in TX_FRAUD_SCENARIO"),
        ({"TX_FRAUD": np.full(n, 2)}, "expected 0 or 1 in TX_FRAUD"),
        ({"TX_DATETIME": payments.time_ms}, "expected timestamps"),
        ({"CUSTOMER_ID": pa.array([None] * n, pa.int64())}, "no missing value"),
        ({"TRANSACTION_ID": np.zeros(n, np.int64)}, "each TRANSACTION_ID once"),
    ):
        write(payments, tmp_path, "a.parquet", **changed)
        with pytest.raises(EddyError, match=message):
            read_payments(tmp_path)
    (tmp_path / "raw" / "a.parquet").write_text("no parquet")
    with pytest.raises(EddyError, match="expected a parquet file"):
        read_payments(tmp_path)


def test_ids_may_be_text_of_whole_numbers(tmp_path: Path) -> None:
    payments = world(2, days=6)
    write(payments, tmp_path, "a.parquet", CUSTOMER_ID=payments.customer.astype(str).tolist())
    np.testing.assert_array_equal(read_payments(tmp_path).customer, payments.customer)


def test_the_command_reports_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(world(4, days=50), tmp_path, "a.parquet")
    page = tmp_path / "out" / "page.html"
    arguments = ["evaluate", "handbook", "--data", str(tmp_path), "--test-from", "2018-05-10"]
    assert main([*arguments, "--week", "2018-05-03", "--html", str(page), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for key in ("unlabelled", "late_labels"):
        assert set(found[key]) == {"roc_auc", "average_precision", "card_precision_100"}
        assert all(0.0 <= value <= 1.0 for value in found[key].values())
    assert found["late_labels"]["average_precision"] > found["unlabelled"]["average_precision"]
    assert list(found["weeks"]) == ["2018-05-03"]
    assert page.read_text().count("<img") >= 4
    assert main(arguments) == 0
    assert "average precision" in capsys.readouterr().out


def test_the_command_names_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(world(5, days=3), tmp_path, "a.parquet")
    arguments = ["evaluate", "handbook", "--data", str(tmp_path), "--test-from"]
    for test_from, message in (
        ("soon", "expected a date"),
        ("2018-04-02", "expected payments in the train and the test week"),
        ("2017-04-02", "expected payments before the end"),
    ):
        assert main([*arguments, test_from]) == 1
        assert message in capsys.readouterr().err


def test_the_command_names_the_week_that_cannot_be_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    payments = world(5, days=40)
    begin = np.datetime64("2018-05-05").astype("datetime64[ms]").astype(np.int64)
    hole = (payments.time_ms >= begin) & (payments.time_ms < begin + DAY_MS)
    kept = Payments(*(getattr(payments, name)[~hole] for name in Payments.__slots__))
    write(kept, tmp_path, "a.parquet")
    line = ["evaluate", "handbook", "--data", str(tmp_path), "--test-from", "2018-04-25"]
    for more, message in (
        (["--week", "2018-04-03"], "--week 2018-04-03: expected payments in the train"),
        (["--week", "2017-04-03"], "--week 2017-04-03: expected payments before the end"),
        (["--week", "2018-05-03"], "--week 2018-05-03: expected payments on each day"),
        (["--week", "2018-05-03"], "found none on 2018-05-05"),
        (["--week", "someday"], "--week: expected a date"),
        (["--test-from", "2019-01-01"], "--test-from 2019-01-01: expected payments in the train"),
    ):
        assert main([*line, *more]) == 1
        assert message in " ".join(capsys.readouterr().err.split())
    write(part(payments, slice(0, 0)), tmp_path, "a.parquet")
    assert main(line) == 1
    assert "--test-from 2018-04-25: expected payments" in capsys.readouterr().err
    honest = np.zeros(len(payments), np.int8)
    write(payments, tmp_path, "a.parquet", TX_FRAUD=honest, TX_FRAUD_SCENARIO=honest)
    assert main(line) == 1
    assert "--test-from 2018-04-25: expected frauds" in capsys.readouterr().err
