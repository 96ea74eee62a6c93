"""Decide: thresholds, incidents, predictions, silences."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from flink_jobs.advance import ADVANCED
from flink_jobs.decide import (
    ALERT,
    PREDICTION,
    QUIET,
    DecideModel,
    _normal_upper_quantile,
    decide,
    pack,
    sweep,
)
from models.baselines.renewal import log_normal_log_survival
from models.fusion import DETECTORS, FUSED
from models.prior import KindPrior, Tail
from models.tpp.mixture import log_survivals
from state.table import NEVER_MS, Table
from tests.flink_jobs.score_cases import START_MS

ALPHA = 1e-4
TAIL = Tail(0.0, 1.0)
PRIOR = KindPrior(
    tails=dict.fromkeys((*FUSED, "silence"), TAIL),
    degraded_tails={name: Tail(0.0, 0.5) for name in (*FUSED, "silence")},
)
# One normal with mean 0.2 and sd exp(-0.5), four times; marks 0 and 1 usual, the others not.
ANSWER = np.array([[-1.4] * 4 + [0.2] * 4 + [-0.5] * 4 + [-0.7, -0.7] + [-12.0] * 6], np.float32)


def model(**changes: object) -> DecideModel:
    arguments = {
        "alpha": ALPHA, "detectors": DETECTORS, "min_events": 3, "quiet_ms": 60_000,
        "silence_alpha": 1e-3, "silence_min_events": 3,
    } | changes  # fmt: skip
    return DecideModel.of(PRIOR, **arguments)  # type: ignore[arg-type]


def told_of(n: int = 1, **columns: object) -> NDArray[np.void]:
    """Return n uneventful events of row 0, one a minute, with `columns` set."""
    told = np.zeros(n, ADVANCED)
    told["event"] = np.arange(n)
    told["time_ms"] = START_MS + 60_000 * np.arange(n)
    told["last_ms"] = told["time_ms"] - 60_000
    told["first_ms"] = START_MS
    told["events"] = 10 + np.arange(n)
    told["timed"] = True
    told["log_gap"] = math.log(60.0)
    told["gap_mean"] = math.log(60.0)
    told["gap_sd"] = 1.0
    told["value"], told["typical"], told["spread"] = 7.0, 7.0, 1.0
    for name, column in columns.items():
        told[name] = column
    return told


def table_of(scale: float = math.log(60.0)) -> Table:
    """Return one known entity that awaits its next event, without a prediction."""
    table = Table.empty(1, 10, 1 << 60)
    table.used = 1
    row = table.rows[0]
    row["incident_ms"] = -(1 << 60)
    row["decided_ms"] = START_MS - 60_000
    row["scale"], row["spread"] = scale, 1.0
    row["decided_events"] = 9
    return table


def with_prediction(table: Table) -> Table:
    packed = pack(ANSWER)[0]
    table.rows["predicted"][0] = 1
    table.rows["mixture"][0] = packed["mixture"]
    table.rows["mark_surprise"][0] = packed["mark_surprise"]
    return table


# -- predictions -----------------------------------------------------------------------------------


def test_answers_are_rounded_to_their_units() -> None:
    packed = pack(ANSWER)
    assert packed.dtype == PREDICTION
    np.testing.assert_allclose(packed["mixture"][0] / 1024.0, ANSWER[0, :12], atol=0.5 / 1024)
    np.testing.assert_allclose(packed["mark_surprise"][0] / 16.0, -ANSWER[0, 12:], atol=1 / 32)


def test_answers_out_of_range_are_cut() -> None:
    packed = pack(np.array([[1e6] * 6 + [-1e6] * 6 + [5.0] * 4 + [-1e6] * 4], np.float32))
    assert (packed["mixture"][0] / 1024.0).tolist() == [31.0] * 6 + [-31.0] * 6
    assert packed["mark_surprise"][0].tolist() == [0] * 4 + [254] * 4


def test_the_compensator_is_that_of_the_prediction() -> None:
    table = with_prediction(table_of())
    told = told_of(log_gap=math.log(200.0))
    decided = decide(table, told, pack(ANSWER), model())[0]
    params = np.rint(ANSWER[:, :12] * 1024) / 1024
    wanted = -log_survivals(params, np.array([float(told["log_gap"][0]) - math.log(60.0)]))[0]
    assert decided["compensator"] == pytest.approx(wanted, rel=1e-5)
    assert not decided["unaided"]
    assert decided["usual"] == pytest.approx(math.log(60.0))


def test_without_a_prediction_the_gap_baseline_stands_in() -> None:
    table = table_of()
    told = told_of(log_gap=math.log(200.0), gap_sd=0.8)
    decided = decide(table, told, None, model())[0]
    z = (math.log(200.0) - math.log(60.0)) / 0.8
    assert decided["compensator"] == pytest.approx(-log_normal_log_survival(z), rel=1e-5)
    assert decided["unaided"]
    assert decided["surprise"][FUSED.index("mark")] == 0.0
    assert table.rows["predicted"][0] == 0


def test_a_mark_that_was_not_expected() -> None:
    at = FUSED.index("mark")
    for mark, wanted in ((0, 0.7), (5, 12.0), (255, 0.0)):
        table = with_prediction(table_of())
        decided = decide(table, told_of(mark=mark), pack(ANSWER), model())[0]
        assert decided["surprise"][at] == pytest.approx(wanted, abs=1 / 32)


def test_the_answer_is_kept_for_the_next_event() -> None:
    table = table_of()
    decide(table, told_of(), pack(ANSWER), model())
    assert table.rows["predicted"][0] == 1
    assert table.rows["mixture"][0].tolist() == np.rint(ANSWER[0, :12] * 1024).astype(int).tolist()
    decide(table, told_of(time_ms=START_MS + 60_000), None, model())
    assert table.rows["predicted"][0] == 0


# -- alerts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["amount", "amount_up", "amount_down", "rhythm", "partners"])
def test_each_baseline_alone_can_alert(column: str) -> None:
    at = FUSED.index({"rhythm": "regularity"}.get(column, column))
    decided = decide(
        with_prediction(table_of()), told_of(1, **{column: 30.0}), pack(ANSWER), model()
    )[0]
    assert decided["verdict"] == ALERT
    assert decided["surprise"][at] == 30.0
    assert decided["log_p"] == pytest.approx(math.log(len(FUSED)) - 30.0, abs=1e-4)


def test_what_is_usual_is_quiet() -> None:
    decided = decide(table_of(), told_of(50), None, model())
    assert (decided["verdict"] == QUIET).all()
    assert (decided["log_p"] == 0.0).all()  # no detector near its bar: nothing was fused


def test_the_threshold_is_the_fused_p_value() -> None:
    bar = -math.log(ALPHA) + math.log(len(FUSED))
    for surprise, verdict in ((bar - 0.01, QUIET), (bar + 0.01, ALERT)):
        table = with_prediction(table_of())
        told = told_of(amount=surprise, log_gap=math.log(60.0))
        assert decide(table, told, pack(ANSWER), model())[0]["verdict"] == verdict


def test_an_entity_is_not_alerted_on_before_min_events() -> None:
    told = told_of(4, amount=50.0, events=[1, 2, 3, 4])
    decided = decide(table_of(), told, None, model(min_events=3))
    assert decided["verdict"].tolist() == [QUIET, QUIET, ALERT, QUIET]
    assert decided["log_p"][:2].tolist() == [0.0, 0.0]


def test_an_incident_alerts_once_until_it_was_quiet_for_long_enough() -> None:
    amount = [50.0, 50.0, 0.0, 50.0, 0.0, 0.0, 50.0]
    decided = decide(table_of(), told_of(7, amount=amount), None, model(quiet_ms=120_000))
    assert np.flatnonzero(decided["verdict"] == ALERT).tolist() == [0, 6]
    assert (decided["log_p"] < math.log(ALPHA)).tolist() == [a > 0 for a in amount]


def test_a_detector_switched_off_is_not_heard() -> None:
    for off in ("amount", "amount_shift"):
        others = [name for name in DETECTORS if name != off]
        told = told_of(amount=50.0 * (off == "amount"), amount_up=50.0 * (off != "amount"))
        assert decide(table_of(), told, None, model(detectors=others))[0]["verdict"] == QUIET
        assert decide(table_of(), told, None, model())[0]["verdict"] == ALERT


def test_an_unknown_detector_is_refused() -> None:
    with pytest.raises(ValueError, match="expected detectors of .*, found .'magic'"):
        model(detectors=["amount", "magic"])


def test_degraded_scores_take_their_own_calibration() -> None:
    aided = decide(with_prediction(table_of()), told_of(amount=15.0), pack(ANSWER), model())[0]
    unaided = decide(table_of(), told_of(amount=15.0), None, model())[0]
    assert (aided["verdict"], unaided["verdict"]) == (ALERT, QUIET)  # slope 1 against slope 0.5


def test_bursts_and_surges() -> None:
    told = told_of(12, log_gap=math.log(1.0), value=8.0)
    decided = decide(table_of(), told, None, model(min_events=100))
    burst = decided["surprise"][:, FUSED.index("burst")]
    surge = decided["surprise"][:, FUSED.index("surge")]
    assert (np.diff(burst) > 0).all()
    assert surge[-1] > burst[-1] > 20.0
    lull = decide(table_of(), told_of(log_gap=math.log(60.0) + 3.0), None, model())[0]
    assert lull["surprise"][FUSED.index("burst")] == 0.0


def test_without_a_value_there_is_no_surge() -> None:
    told = told_of(5, log_gap=0.0, value=float("nan"))
    decided = decide(table_of(), told, None, model(min_events=100))
    assert not decided["surprise"][:, FUSED.index("surge")].any()
    assert decided["surprise"][-1, FUSED.index("burst")] > 5.0


def test_an_untimed_event_scores_no_gap() -> None:
    decided = decide(table_of(), told_of(timed=False, log_gap=-5.0, amount=50.0), None, model())[0]
    assert decided["compensator"] == 0.0
    assert decided["surprise"][FUSED.index("burst")] == 0.0
    assert decided["verdict"] == ALERT


def test_a_row_that_begins_anew() -> None:
    table = with_prediction(table_of())
    table.rows["burst"][0] = 30.0
    table.rows["incident_ms"][0] = START_MS
    table.deadline_ms[0] = START_MS - 10
    told = told_of(fresh=True, timed=False, events=5, amount=50.0)
    decided = decide(table, told, None, model(silence_alpha=None))[0]
    assert decided["verdict"] == ALERT
    assert decided["unaided"]
    assert decided["silence_ms"] == NEVER_MS
    assert table.deadline_ms[0] == NEVER_MS
    assert table.rows["burst"][0] == 0.0


# -- silence ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("answered", [True, False])
def test_a_silence_is_due_where_its_survival_falls_below_alpha(answered: bool) -> None:
    table = table_of()
    chosen = model(silence_alpha=1e-3)
    told = told_of(events=20)
    decide(table, told, pack(ANSWER) if answered else None, chosen)
    assert sweep(table, int(table.deadline_ms[0]), chosen) == []
    ((row, due_ms),) = sweep(table, 1 << 60, chosen)
    assert row == 0
    gap = math.log((due_ms - START_MS) / 1000) - math.log(60.0)
    if answered:
        params = np.rint(ANSWER[:, :12] * 1024) / 1024
        survival = math.exp(log_survivals(params, np.array([gap]))[0])
        assert survival == pytest.approx(1e-3, rel=1e-3)
    else:
        # The degraded tail takes half of the surprise: survival is alpha squared.
        assert stats.norm.sf(gap) == pytest.approx(1e-6, rel=1e-3)
    assert sweep(table, 1 << 60, chosen) == []
    assert table.deadline_ms[0] == NEVER_MS


def test_the_first_look_at_a_deadline_is_a_lower_bound() -> None:
    """The kernel stores the cheap bound; a sweep replaces it by the exact time."""
    answer = ANSWER.copy()
    answer[0, 4:8] = [-1.0, 0.0, 1.0, 2.0]
    table = table_of()
    chosen = model()
    decide(table, told_of(events=20), pack(answer), chosen)
    bound = int(table.deadline_ms[0])
    assert sweep(table, bound + 1, chosen) == []
    due = int(table.deadline_ms[0])
    assert due > bound
    assert sweep(table, due, chosen) == []
    assert sweep(table, due + 1, chosen) == [(0, due)]


def test_the_event_that_ends_a_silence_tells_it_as_the_sweep_would() -> None:
    tables = [table_of(), table_of()]
    chosen = model()
    for table in tables:
        decide(table, told_of(events=20), pack(ANSWER), chosen)
    ((_, due_ms),) = sweep(tables[0], 1 << 60, chosen)
    after = told_of(
        time_ms=due_ms + 5000,
        last_ms=START_MS,
        events=21,
        log_gap=math.log((due_ms + 5000 - START_MS) / 1000),
    )
    assert decide(tables[0], after, pack(ANSWER), chosen)[0]["silence_ms"] == NEVER_MS
    assert decide(tables[1], after, pack(ANSWER), chosen)[0]["silence_ms"] == due_ms
    assert tables[0].deadline_ms[0] == tables[1].deadline_ms[0] > due_ms


def test_an_event_in_time_ends_the_wait() -> None:
    table = table_of()
    chosen = model()
    decide(table, told_of(events=20), pack(ANSWER), chosen)
    deadline = int(table.deadline_ms[0])
    later = told_of(time_ms=START_MS + 50_000, last_ms=START_MS, events=21, log_gap=math.log(50.0))
    assert decide(table, later, pack(ANSWER), chosen)[0]["silence_ms"] == NEVER_MS
    assert table.deadline_ms[0] == pytest.approx(deadline + 50_000, abs=2)


@pytest.mark.parametrize(
    "changes",
    [{"silence_alpha": None}, {"detectors": ["amount"]}, {"silence_min_events": 1000}],
)
def test_where_silence_is_not_told_nothing_is_awaited(changes: dict[str, object]) -> None:
    table = table_of()
    chosen = model(**changes)
    decide(table, told_of(events=20), pack(ANSWER), chosen)
    assert table.deadline_ms[0] == NEVER_MS
    assert sweep(table, 1 << 60, chosen) == []


def test_silences_are_told_earliest_first() -> None:
    table = Table.empty(1, 10, 1 << 60)
    table.used = 3
    chosen = model()
    for row, minute in enumerate((30, 10, 20)):
        told = told_of(events=20, row=row, time_ms=START_MS + 60_000 * minute, timed=False)
        decide(table, told, pack(ANSWER), chosen)
    assert [row for row, _ in sweep(table, 1 << 60, chosen)] == [1, 2, 0]


@pytest.mark.parametrize("surprise", [1e-6, 0.5, 3.0, 50.0, 599.0])
def test_the_normal_quantile(surprise: float) -> None:
    assert stats.norm.logsf(_normal_upper_quantile(surprise)) == pytest.approx(-surprise, rel=1e-6)


def test_the_normal_quantile_beyond_float64_is_near_enough() -> None:
    z = _normal_upper_quantile(2000.0)
    assert stats.norm.logsf(z) == pytest.approx(-2000.0, rel=0.01)
