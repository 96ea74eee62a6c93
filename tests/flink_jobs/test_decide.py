"""Decide: thresholds, incidents, predictions, silences."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special, stats

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
from models.tpp.mixture import log_pdfs, log_survivals
from state.table import NEVER_MS, Table
from tests.flink_jobs.score_cases import START_MS

ALPHA = 1e-4
TAIL = Tail(0.0, 1.0)
PRIOR = KindPrior(
    tails=dict.fromkeys((*FUSED, "silence"), TAIL),
    degraded_tails={name: Tail(0.0, 0.5) for name in (*FUSED, "silence")},
)
# One normal with mean 0.2 and sd exp(-0.5), four times; marks 0 and 1 usual, the others not; two
# amounts usual, one 4 sd above the level.
ANSWER = np.array(
    [
        [-1.4] * 4 + [0.2] * 4 + [-0.5] * 4 + [-0.7, -0.7] + [-12.0] * 6
        + [-0.7, -0.7, -30.0, -30.0] + [0.0, 4.0, 0.0, 0.0] + [-1.0] * 4
    ],
    np.float32,
)  # fmt: skip
AMOUNT_PARAMS = ANSWER[:, 20:].astype(np.float64)


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


def packed(answer: NDArray[np.float32] = ANSWER, **columns: object) -> NDArray[np.void]:
    """Return what `answer` predicts; it is asked of no amount unless `columns` have a value."""
    return pack(answer, told_of(len(answer), **{"value": math.nan, **columns}))


def with_prediction(table: Table) -> Table:
    prediction = packed()[0]
    table.rows["predicted"][0] = 1
    table.rows["mixture"][0] = prediction["mixture"]
    table.rows["mark_surprise"][0] = prediction["mark_surprise"]
    return table


# -- predictions -----------------------------------------------------------------------------------


def test_answers_are_rounded_to_their_units() -> None:
    found = packed(value=10.0)
    assert found.dtype == PREDICTION
    np.testing.assert_allclose(found["mixture"][0] / 1024.0, ANSWER[0, :12], atol=0.5 / 1024)
    np.testing.assert_allclose(found["mark_surprise"][0] / 16.0, -ANSWER[0, 12:20], atol=1 / 32)
    (surprise,) = two_sided([3.0])
    assert found["amount_surprise"][0] / 1024.0 == pytest.approx(surprise, abs=0.5 / 1024)


def test_answers_out_of_range_are_cut() -> None:
    far = np.concatenate([[1e6] * 6 + [-1e6] * 6 + [5.0] * 4 + [-1e6] * 4, ANSWER[0, 20:]])
    found = packed(far[None].astype(np.float32), value=1e6)
    assert (found["mixture"][0] / 1024.0).tolist() == [31.0] * 6 + [-31.0] * 6
    assert found["mark_surprise"][0].tolist() == [0] * 4 + [254] * 4
    assert found["amount_surprise"][0] == round(63.9 * 1024)


def test_the_compensator_is_that_of_the_prediction() -> None:
    table = with_prediction(table_of())
    told = told_of(log_gap=math.log(200.0))
    decided = decide(table, told, packed(), model())[0]
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
        decided = decide(table, told_of(mark=mark), packed(), model())[0]
        assert decided["surprise"][at] == pytest.approx(wanted, abs=1 / 32)


def test_the_answer_is_kept_for_the_next_event() -> None:
    table = table_of()
    decide(table, told_of(), packed(), model())
    assert table.rows["predicted"][0] == 1
    assert table.rows["mixture"][0].tolist() == np.rint(ANSWER[0, :12] * 1024).astype(int).tolist()
    decide(table, told_of(time_ms=START_MS + 60_000), None, model())
    assert table.rows["predicted"][0] == 0


# -- alerts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["amount", "amount_up", "amount_down", "rhythm", "partners"])
def test_each_baseline_alone_can_alert(column: str) -> None:
    at = FUSED.index({"rhythm": "regularity"}.get(column, column))
    decided = decide(with_prediction(table_of()), told_of(1, **{column: 30.0}), packed(), model())[
        0
    ]
    assert decided["verdict"] == ALERT
    assert decided["surprise"][at] == 30.0
    # No answer judged the amount, which is then calibrated as without the model.
    slope = 0.5 if column == "amount" else 1.0
    assert decided["log_p"] == pytest.approx(math.log(len(FUSED)) - slope * 30.0, abs=1e-4)


def test_what_is_usual_is_quiet() -> None:
    decided = decide(table_of(), told_of(50), None, model())
    assert (decided["verdict"] == QUIET).all()
    assert (decided["log_p"] == 0.0).all()  # no detector near its bar: nothing was fused


def test_the_threshold_is_the_fused_p_value() -> None:
    bar = -math.log(ALPHA) + math.log(len(FUSED))
    for surprise, verdict in ((bar - 0.01, QUIET), (bar + 0.01, ALERT)):
        table = with_prediction(table_of())
        told = told_of(partners=surprise, log_gap=math.log(60.0))
        assert decide(table, told, packed(), model())[0]["verdict"] == verdict


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


# -- amounts ---------------------------------------------------------------------------------------


def two_sided(innovation: list[float]) -> NDArray[np.float64]:
    """Return -log of twice the smaller tail of ANSWER's amount, by scipy."""
    weight, mean, log_sd = (part[0] for part in np.split(AMOUNT_PARAMS, 3, axis=1))
    weight = np.exp(weight) / np.exp(weight).sum()
    z = (np.array(innovation)[:, None] - mean) / np.exp(log_sd)
    below, above = (
        special.logsumexp(tail(z), b=weight, axis=1)
        for tail in (stats.norm.logcdf, stats.norm.logsf)
    )
    return np.asarray(np.maximum(-np.minimum(below, above) - math.log(2.0), 0.0))


def amounts(table: Table, innovation: list[float], **arguments: Any) -> NDArray[np.void]:
    """Decide events of these amounts, in sd from the level, each answered by ANSWER."""
    n = len(innovation)
    told = told_of(n, value=7.0 + 2.0 * np.array(innovation), spread=2.0)
    answers = np.repeat(ANSWER, n, 0)
    return decide(table, told, pack(answers, told), model(min_events=1_000), **arguments)


def test_an_amount_is_judged_by_the_answer_about_its_own_event() -> None:
    innovation = [-30.0, -9.0, -2.0, 0.0, 1.0, 2.0, 4.0, 5.5, 9.0]
    decided = amounts(table_of(), innovation)
    wanted = np.minimum(two_sided([-20.0, *innovation[1:]]), 63.9)
    np.testing.assert_allclose(decided["surprise"][:, 0], wanted, atol=1e-3)
    assert (decided["amount_slot"] == 1).all()
    # Between the two usual amounts the median lies, where nothing is less surprising.
    assert decided["surprise"][5, 0] == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("log_sd", [-800.0, 800.0])
def test_an_amount_that_a_server_puts_out_of_range_is_still_judged(log_sd: float) -> None:
    answer = ANSWER.copy()
    answer[0, 28:] = log_sd
    told = told_of(value=16.0)
    prediction = pack(answer, told, nats := np.zeros(1, np.float32))
    assert np.isfinite(nats[0])
    surprise = prediction["amount_surprise"][0] / 1024.0
    assert surprise == pytest.approx(63.9 if log_sd < 0 else 0.0, abs=0.01)


def test_without_an_answer_or_an_amount_the_baseline_judges() -> None:
    told = told_of(amount=3.5)
    for predictions in (None, packed()):
        decided = decide(table_of(), told, predictions, model())[0]
        assert decided["surprise"][0] == 3.5
        assert decided["amount_slot"] == 0


def test_the_likelihood_counts_gap_mark_and_amount() -> None:
    told = told_of(value=8.5, log_gap=math.log(90.0), mark=1)
    measured = np.zeros(1, np.float32)
    prediction = pack(ANSWER, told, measured)
    assert measured[0] == pytest.approx(-log_pdfs(AMOUNT_PARAMS, np.array([1.5]))[0], rel=1e-5)
    decided = decide(
        with_prediction(table_of()), told, prediction, model(), measured=measured
    )[0]  # fmt: skip
    params = np.rint(ANSWER[:, :12] * 1024) / 1024
    gap = -log_pdfs(params, told["log_gap"] - math.log(60.0))[0]
    assert decided["nats"] == pytest.approx(gap + 11 / 16 + measured[0], rel=1e-5)
    pack(ANSWER, told_of(value=math.nan), missing := np.zeros(1, np.float32))
    assert missing[0] == 0.0


def test_an_amount_is_calibrated_by_the_model_that_answers_now() -> None:
    """Gap and mark were predicted by the model before; the amount is judged by the one after."""
    later = KindPrior(tails={**PRIOR.tails, "amount": Tail(0.0, 0.01)})
    chosen = model().serving({2: later})
    told = told_of(value=7.0 - 12.0)
    (surprise,) = two_sided([-12.0])
    verdicts = {}
    for slot in (1, 2):
        table = with_prediction(table_of())
        decided = decide(table, told, pack(ANSWER, told), chosen, slot=slot)[0]
        assert (decided["slot"], decided["amount_slot"]) == (1, slot)
        verdicts[slot] = decided["verdict"]
        offset, slope = chosen.tails(1, slot)
        assert slope[0] == (1.0 if slot == 1 else 0.01)
        assert (slope[1:] == 1.0).all()
        assert (offset == 0.0).all()
    assert surprise > 30.0
    assert verdicts == {1: ALERT, 2: QUIET}


def test_an_unknown_detector_is_refused() -> None:
    with pytest.raises(ValueError, match="expected detectors of .*, found .'magic'"):
        model(detectors=["amount", "magic"])


def test_degraded_scores_take_their_own_calibration() -> None:
    told = told_of(partners=15.0)
    aided = decide(with_prediction(table_of()), told, packed(), model())[0]
    unaided = decide(table_of(), told, None, model())[0]
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
    decide(table, told, packed() if answered else None, chosen)
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
    decide(table, told_of(events=20), packed(answer), chosen)
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
        decide(table, told_of(events=20), packed(), chosen)
    ((_, due_ms),) = sweep(tables[0], 1 << 60, chosen)
    after = told_of(
        time_ms=due_ms + 5000,
        last_ms=START_MS,
        events=21,
        log_gap=math.log((due_ms + 5000 - START_MS) / 1000),
    )
    assert decide(tables[0], after, packed(), chosen)[0]["silence_ms"] == NEVER_MS
    assert decide(tables[1], after, packed(), chosen)[0]["silence_ms"] == due_ms
    assert tables[0].deadline_ms[0] == tables[1].deadline_ms[0] > due_ms


def test_an_event_in_time_ends_the_wait() -> None:
    table = table_of()
    chosen = model()
    decide(table, told_of(events=20), packed(), chosen)
    deadline = int(table.deadline_ms[0])
    later = told_of(time_ms=START_MS + 50_000, last_ms=START_MS, events=21, log_gap=math.log(50.0))
    assert decide(table, later, packed(), chosen)[0]["silence_ms"] == NEVER_MS
    assert table.deadline_ms[0] == pytest.approx(deadline + 50_000, abs=2)


@pytest.mark.parametrize(
    "changes",
    [{"silence_alpha": None}, {"detectors": ["amount"]}, {"silence_min_events": 1000}],
)
def test_where_silence_is_not_told_nothing_is_awaited(changes: dict[str, object]) -> None:
    table = table_of()
    chosen = model(**changes)
    decide(table, told_of(events=20), packed(), chosen)
    assert table.deadline_ms[0] == NEVER_MS
    assert sweep(table, 1 << 60, chosen) == []


def test_silences_are_told_earliest_first() -> None:
    table = Table.empty(1, 10, 1 << 60)
    table.used = 3
    chosen = model()
    for row, minute in enumerate((30, 10, 20)):
        told = told_of(events=20, row=row, time_ms=START_MS + 60_000 * minute, timed=False)
        decide(table, told, packed(), chosen)
    assert [row for row, _ in sweep(table, 1 << 60, chosen)] == [1, 2, 0]


@pytest.mark.parametrize("surprise", [1e-6, 0.5, 3.0, 50.0, 599.0])
def test_the_normal_quantile(surprise: float) -> None:
    assert stats.norm.logsf(_normal_upper_quantile(surprise)) == pytest.approx(-surprise, rel=1e-6)


def test_the_normal_quantile_beyond_float64_is_near_enough() -> None:
    z = _normal_upper_quantile(2000.0)
    assert stats.norm.logsf(z) == pytest.approx(-2000.0, rel=0.01)
