"""`eddy evaluate handbook`: the Fraud Detection Handbook's payments, event by event."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from deploy.commands.options import AsJson, module, write_json
from deploy.evaluate.progress import progress
from flink_jobs.errors import EddyError

if TYPE_CHECKING:
    from models.evaluation.handbook import Payments

DEFAULT_TEST_FROM = "2018-08-08"


def handbook(
    data: Annotated[Path, typer.Option(metavar="DIR", help="Folder that holds raw/*.parquet.")],
    test_from: Annotated[
        str, typer.Option(metavar="DATE", help="First day of the test week.")
    ] = DEFAULT_TEST_FROM,
    week: Annotated[
        list[str] | None,
        typer.Option(metavar="DATE", help="Another test week to report; may be repeated."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with pictures.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score the Handbook's card payments (1 min).

    Without labels, and with labels that come seven days late.

    Payments and labels pass in the order of time through the kernels of the baselines; a payment is
    scored with what was known when it came. The figures are those of the handbook's test week.
    """
    reading = module("deploy.evaluate.handbook_read")
    from models.evaluation.handbook import DAY_MS, TEST_DAYS
    from models.evaluation.handbook_detector import score_payments
    from models.evaluation.handbook_report import report

    begin = _midnight_ms(test_from, "--test-from")
    others = {each: _midnight_ms(each, "--week") for each in week or []}
    started = time.perf_counter()
    payments = reading.read_payments(data)
    payments = payments.until(max([begin, *others.values()]) + TEST_DAYS * DAY_MS)
    read_s = time.perf_counter() - started
    _check_week(payments, begin, f"--test-from {test_from}")
    for each, week_ms in others.items():
        _check_week(payments, week_ms, f"--week {each}")
    started = time.perf_counter()
    with progress("payments", len(payments)) as show:
        scores = score_payments(payments, progress=lambda done, _: show(done))
    score_s = time.perf_counter() - started
    found = {"test_from": test_from, **report(payments, scores, begin, others)}
    found["payments"] = len(payments)
    found["seconds"] = {"read": round(read_s, 2), "score": round(score_s, 2)}
    if html is not None:
        module("deploy.evaluate.handbook_page").write_page(html, payments, scores, begin, found)
    if as_json:
        write_json(_rounded(found))
        return
    _print(found)


def _check_week(payments: Payments, begin_ms: int, option: str) -> None:
    """Refuse a test week that cannot be judged, before a minute is spent on scores.

    Raises:
        EddyError: A day of its train or test week has no payments, or its test week no fraud.
    """
    from models.evaluation.handbook import DAY_MS, DELAY_DAYS, TEST_DAYS, TRAIN_DAYS, split

    if payments.until(begin_ms + TEST_DAYS * DAY_MS).time_ms.size == 0:
        raise EddyError(
            f"{option}: expected payments before the end of the test week, found none; choose a"
            " later one"
        )
    try:
        chosen = split(payments, begin_ms)
    except ValueError as error:
        raise EddyError(f"{option}: {error}") from None
    first = begin_ms // DAY_MS
    train = first - DELAY_DAYS - TRAIN_DAYS
    wanted = [*range(train, train + TRAIN_DAYS), *range(first, first + TEST_DAYS)]
    missing = sorted(set(wanted) - set(payments.day.tolist()))
    if missing:
        days = ", ".join(str(date(1970, 1, 1) + timedelta(days=day)) for day in missing)
        raise EddyError(
            f"{option}: expected payments on each day of the train and the test week, found none"
            f" on {days}; add their files or choose another week"
        )
    if not payments.fraud[chosen.test].any():
        raise EddyError(f"{option}: expected frauds in the test week, found none; choose another")


def _midnight_ms(text: str, option: str) -> int:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise EddyError(f"{option}: expected a date such as 2018-08-08, found {text!r}") from None
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def _print(found: Mapping[str, Any]) -> None:
    console = Console(highlight=False)
    rows = found["rows"]
    console.print(
        f"test week from {found['test_from']}: {rows['test']:,} payments, "
        f"{rows['test_fraud']} frauds; {found['payments']:,} scored in "
        f"{found['seconds']['score']:.1f} s"
    )
    table = Table("", "ROC AUC", "average precision", "card precision@100")
    named = {
        "unlabelled": found["unlabelled"],
        "  at most, without labels": found["ceilings"]["traces"],
        "late labels": found["late_labels"],
        "  at most": found["ceilings"]["all"],
        **{f"part: {name}": part for name, part in found["parts"].items()},
    }
    for name, part in named.items():
        table.add_row(name, *(f"{value:.3f}" for value in part.values()))
    for name, each in found["weeks"].items():
        table.add_row(f"{name} unlabelled", *(f"{v:.3f}" for v in each["unlabelled"].values()))
        table.add_row(f"{name} late labels", *(f"{v:.3f}" for v in each["late_labels"].values()))
    console.print(table)
