"""Classical point processes: closed forms, numerical integration, time rescaling, fits."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numba import config
from numpy.typing import NDArray

from models.tpp import classical_fit
from models.tpp.classical import (
    Clock,
    Hawkes,
    MultivariateHawkes,
    Process,
    Renewal,
    SelfCorrecting,
    best_of,
    draw,
    mean_nll,
    pit,
)
from models.tpp.gamma import log_gamma_tails
from models.tpp.gap_laws import Gamma, GapLaw, LogNormalMixture, Weibull
from models.tpp.optimise import gradient, minimise
from models.tpp.sequences import Sequences, ks_p_value, split

DATA = Path(os.environ.get("EDDY_DATA", Path(__file__).parents[3] / "shared" / "data")) / "tpp"

# `make coverage` interprets the kernels: a hundredth of the speed, so a tenth of the events there.
INTERPRETED = bool(config.DISABLE_JIT)  # type: ignore[attr-defined]

POISSON = Renewal(Weibull(1.0, 2.0))
HAWKES = Hawkes(0.2, (0.4, 0.4), (1.0, 20.0))
CORRECTING = SelfCorrecting(0.1, 0.9, 1.1)
LOG_NORMAL = Renewal(LogNormalMixture((1.0,), (-1.8,), (1.9,)))
MIXTURE = Renewal(LogNormalMixture((0.3, 0.7), (-3.0, 0.5), (0.5, 0.8)))
PERIODIC = Renewal(Weibull(1.0, 1.0), Clock(200.0, 0.8, 0.3))
SWINGING = Renewal(Gamma(2.5, 0.4), Clock(150.0, 0.5, 1.0))
CROSS = MultivariateHawkes(
    np.array([0.3, 0.1]),
    np.array([[0.2, 0.1], [0.5, 0.3]]),
    np.array([[1.0, 2.0], [3.0, 10.0]]),
)
EVERY = [POISSON, HAWKES, CORRECTING, LOG_NORMAL, MIXTURE, PERIODIC, SWINGING, CROSS]


def _intensity(process: Process, data: Sequences, t: float) -> float:
    """The textbook sum over all past events of a single sequence."""
    past = data.time[data.time < t]
    if isinstance(process, Hawkes):
        pairs = zip(process.branching, process.decay, strict=True)
        excited = sum(a * b * np.exp(-b * (t - past)).sum() for a, b in pairs)
        return float(process.base + excited)
    if isinstance(process, SelfCorrecting):
        return math.exp(process.base + process.drift * t - process.drop * len(past))
    assert isinstance(process, MultivariateHawkes)
    assert data.mark is not None
    mark = data.mark[data.time < t]
    kernel = process.branching[:, mark] * process.decay[:, mark]
    fade = np.exp(-process.decay[:, mark] * (t - past))
    return float(process.base.sum() + (kernel * fade).sum())


@pytest.mark.parametrize("process", [HAWKES, CORRECTING, CROSS], ids=lambda p: p.name)
def test_likelihood_is_that_of_the_intensity_summed_over_all_pairs(process: Process) -> None:
    data = draw(process, 60, 1, 4)
    log_density, compensator = process.score(data)
    for n in range(len(data)):
        begin = data.time[n - 1] if n else 0.0
        # Simpson's rule inside the gap, on a grid that is dense after the event before.
        gap = data.time[n] - begin
        u = np.linspace(0.0, 1.0, 401)
        grid = np.maximum(begin + gap * u**3, np.nextafter(begin, np.inf))
        value = np.array([_intensity(process, data, float(t)) for t in grid])
        f = value * gap * 3 * u**2
        mass = (f[0] + 4 * f[1:-1:2].sum() + 2 * f[2:-1:2].sum() + f[-1]) / 1200
        assert compensator[n] == pytest.approx(mass, rel=2e-5, abs=1e-9)
        assert log_density[n] == pytest.approx(math.log(value[-1]) - mass, rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("process", EVERY, ids=lambda p: p.name)
def test_density_of_a_gap_integrates_to_its_distribution(process: Process) -> None:
    history = draw(process, 20, 1, 5)
    every = 20 if INTERPRETED else 400
    gap = np.geomspace(1e-5, 60.0, 50 * every + 1)
    times = [np.append(history.time[:-1], history.time[-2] + g) for g in gap[::every]]
    marks = None if history.mark is None else [history.mark for _ in times]
    _, compensator = process.score(Sequences.join(times, marks))
    tail = np.exp(-compensator[19::20])
    dense = [np.append(history.time[:-1], history.time[-2] + g) for g in gap]
    marks = None if history.mark is None else [history.mark for _ in dense]
    log_density, _ = process.score(Sequences.join(dense, marks))
    density = np.exp(log_density[19::20]) * gap  # of the log gap
    step = math.log(gap[1] / gap[0])
    area = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * step)])
    np.testing.assert_allclose(area[::every], tail[0] - tail, atol=2e-5 * (400 / every) ** 2)


@pytest.mark.parametrize("process", EVERY, ids=lambda p: p.name)
def test_simulations_pass_time_rescaling_and_are_the_seeds(process: Process) -> None:
    data = draw(process, 500, 8, 6)
    assert (data.count, len(data)) == (8, 4_000)
    assert ks_p_value(pit(process, data)) > 0.01
    assert np.array_equal(draw(process, 500, 8, 6).time, data.time)
    other = POISSON if process is not POISSON else MIXTURE
    assert ks_p_value(pit(other, data)) < 1e-6, "another process is refuted"


def test_closed_forms() -> None:
    data = Sequences.join([np.array([1.0, 3.0, 3.5])])
    assert mean_nll(POISSON, data) == pytest.approx(math.log(2.0) + (2.0 + 0.5) / 2 / 2)
    z = (np.log([2.0, 0.5]) + 1.8) / 1.9
    expected = 0.5 * z**2 + math.log(1.9) + 0.5 * math.log(2 * math.pi) + np.log([2.0, 0.5])
    assert mean_nll(LOG_NORMAL, data) == pytest.approx(float(expected.mean()))
    # Hawkes with the two events before: written out.
    excited = 0.4 * math.exp(-2.5) + 0.4 * math.exp(-0.5) + 8 * math.exp(-50) + 8 * math.exp(-10)
    assert HAWKES.score(data)[0][2] + HAWKES.score(data)[1][2] == pytest.approx(
        math.log(0.2 + excited)
    )


def test_gamma_survival_equals_scipys() -> None:
    special = pytest.importorskip("scipy.special", reason="a tool of the tests")
    for shape in (0.05, 0.4, 1.0, 3.0, 50.0):
        for x in (0.0, 1e-8, 0.1, 1.0, 4.0, 30.0, 200.0):
            expected = special.gammaincc(shape, x)
            assert math.exp(log_gamma_tails(shape, x)[1]) == pytest.approx(expected, rel=1e-9)


def test_minimise_finds_rosenbrocks_valley() -> None:
    def rosenbrock(x: NDArray[np.float64]) -> float:
        return float((1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2)

    x, value = minimise(rosenbrock, np.array([-1.2, 1.0]), iterations=500)
    assert x == pytest.approx([1.0, 1.0], abs=1e-3)
    assert value < 1e-6
    assert gradient(rosenbrock, np.array([1.0, 2.0])) == pytest.approx([-400.0, 200.0], rel=1e-6)
    with pytest.raises(ValueError, match="expected a finite value at the start, found inf"):
        minimise(lambda _: math.inf, np.zeros(2))


def _parameters(process: Process) -> list[float]:
    if isinstance(process, Hawkes):
        return [process.base, *process.branching, *process.decay]
    if isinstance(process, SelfCorrecting):
        return [process.base, process.drift, process.drop]
    if isinstance(process, MultivariateHawkes):
        return [*process.base, *process.branching.ravel()]
    assert isinstance(process, Renewal)
    law: GapLaw = process.law
    assert isinstance(law, Weibull | Gamma)
    swing = [process.clock.period, process.clock.depth] if process.clock else []
    return [law.shape, law.scale, *swing]


@pytest.mark.parametrize(
    ("process", "fit", "tolerance"),
    [
        (HAWKES, lambda data: classical_fit.fit_hawkes(data, 2), 0.25),
        (CORRECTING, classical_fit.fit_self_correcting, 0.1),
        (Renewal(Weibull(0.7, 3.0)), classical_fit.fit_weibull, 0.1),
        (Renewal(Gamma(2.5, 0.4)), classical_fit.fit_gamma, 0.1),
        (PERIODIC, lambda data: classical_fit.fit_periodic(data, "poisson"), 0.1),
        (CROSS, classical_fit.fit_multivariate_hawkes, 0.4),
    ],
    ids=["hawkes2", "self_correcting", "weibull", "gamma", "periodic", "multivariate"],
)
def test_fits_recover_what_was_simulated(process, fit, tolerance) -> None:  # type: ignore[no-untyped-def]
    data = draw(process, 60 if INTERPRETED else 1_000, 2 if INTERPRETED else 8, 7)
    found = fit(data)
    if INTERPRETED:
        assert mean_nll(found, data) <= mean_nll(process, data) + 2e-3
        return
    assert mean_nll(found, data) <= mean_nll(process, data) + 2e-3
    assert _parameters(found) == pytest.approx(_parameters(process), rel=tolerance, abs=0.1)


def test_a_mixture_fits_at_least_as_well_as_its_law() -> None:
    data = draw(MIXTURE, 1_000, 5, 8)
    found = classical_fit.fit_log_normal_mixture(data, 4)
    assert mean_nll(found, data) < mean_nll(MIXTURE, data)
    assert mean_nll(found, data) > mean_nll(MIXTURE, data) - 0.01
    assert best_of([POISSON, found, LOG_NORMAL], data) is found
    silent = Hawkes(math.nan, (0.5,), (1.0,))
    assert best_of([silent, found], data) is found


def test_too_little_and_clockwork_are_refused() -> None:
    with pytest.raises(ValueError, match="expected at least 100 gaps, found 9; add sequences"):
        classical_fit.fit_all(Sequences.join([np.arange(10.0)]))
    with pytest.raises(ValueError, match="expected gaps of different lengths"):
        classical_fit.fit_all(Sequences.join([np.arange(200.0)]))
    with pytest.raises(ValueError, match="expected 2 to 8 marks"):
        classical_fit.fit_multivariate_hawkes(draw(POISSON, 200, 1, 1))
    with pytest.raises(ValueError, match="expected marks from 0 to 1, found None"):
        CROSS.score(draw(POISSON, 10, 1, 1))


@pytest.mark.compiled
def test_a_fit_by_marks_needs_marks_that_all_parts_share() -> None:
    data = draw(CROSS, 60, 2, 4)
    assert data.mark is not None
    for mark, fitted in ((data.mark, True), (data.mark + 1, False), (None, False)):
        fits = classical_fit.fit_all(data, replace(data, mark=mark))
        assert ("multivariate_hawkes" in {fit.name for fit in fits}) is fitted
        assert all(math.isfinite(mean_nll(fit, data)) for fit in fits)


def test_a_family_without_a_finite_likelihood_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def overflows(_: Sequences) -> Process:
        raise OverflowError("math range error")

    def infinite(_: Sequences) -> Process:
        return Renewal(Weibull(200.0, 1e-9))

    monkeypatch.setattr(classical_fit, "fit_self_correcting", overflows)
    monkeypatch.setattr(classical_fit, "fit_gamma", infinite)
    names = [fit.name for fit in classical_fit.fit_all(draw(POISSON, 120, 1, 2))]
    assert len(names) == 8
    assert not {"self_correcting", "gamma"} & set(names)
    data = draw(POISSON, 120, 1, 2)
    with pytest.raises(ValueError, match="a start with a finite likelihood, found none"):
        classical_fit._best(lambda _: infinite(data), data, [[0.0]])


@pytest.mark.compiled
def test_the_likeliest_family_is_the_simulated_one() -> None:
    data = draw(CORRECTING, 60 if INTERPRETED else 600, 4, 9)
    fits = classical_fit.fit_all(data)
    assert best_of(fits, draw(CORRECTING, 600, 4, 10)).name == "self_correcting"
    names = {fit.name for fit in fits}
    assert {"poisson", "hawkes1", "hawkes2", "gamma", "weibull", "periodic_log_normal"} <= names


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no benchmark data in {DATA}")
def test_the_true_models_have_the_published_likelihoods() -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(DATA / "synthetic.parquet")
    process, seq, t = (table[c].to_numpy() for c in ("process", "seq", "t"))
    truth: dict[str, tuple[Process, list[float]]] = {
        "hawkes2": (HAWKES, [0.0163, -0.0393, 0.0540]),
        "poisson": (Renewal(Weibull(1.0, 1.0)), [math.nan, math.nan, 0.9800]),
    }
    for name, (model, published) in truth.items():
        for part, expected in zip(split(64), published, strict=True):
            data = Sequences.join([t[(process == name) & (seq == i)] for i in part])
            if not math.isnan(expected):
                assert mean_nll(model, data) == pytest.approx(expected, abs=6e-5)
