"""What is said of a fit, and that nothing is said of a good one."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from models.level_fit import cross_check, fit_level, standardised_innovations
from models.prior import Tail
from models.prior_diagnosis import (
    LAGS,
    em_agreement,
    level_warnings,
    pit_warning,
    pooled_acf,
    tail_warning,
)

RNG = np.random.default_rng(1)
SERIES = [RNG.normal(5.0, 1.0, 60) for _ in range(12)]
FITS = [fit_level(y) for y in SERIES]
INNOVATIONS = [standardised_innovations(y, fit) for y, fit in zip(SERIES, FITS, strict=True)]


def test_the_autocorrelation_is_that_of_the_process() -> None:
    rng = np.random.default_rng(2)
    series = []
    for _ in range(40):
        z = rng.normal(size=300)
        for i in range(1, 300):
            z[i] = 0.5 * z[i - 1] + math.sqrt(0.75) * z[i]
        series.append(z)
    acf = pooled_acf(series)
    assert acf[0] == pytest.approx(0.5, abs=0.03)
    assert acf[1] == pytest.approx(0.25, abs=0.04)
    assert abs(acf[LAGS - 1]) < 0.04
    assert pooled_acf([]).tolist() == [0.0] * LAGS
    assert pooled_acf([np.ones(2)])[5] == 0.0
    warned = level_warnings(FITS, series)
    assert len(warned) == 1
    assert "autocorrelation +0.5" in warned[0]
    assert warned[0].endswith("at lag 1")


def test_nothing_is_said_of_a_good_fit() -> None:
    assert level_warnings(FITS, INNOVATIONS) == []
    assert level_warnings([], []) == []
    assert pit_warning("gaps", "log-normal", 0.05) == []
    assert pit_warning("gaps", "log-normal", math.nan) == []


def test_heavy_tails_and_doubtful_fits_are_said() -> None:
    heavy = [np.random.default_rng(3).standard_t(3, 5_000)]
    (text,) = level_warnings(FITS, heavy)
    assert text.startswith("values have heavier tails than a normal: ")
    doubtful = [
        replace(FITS[0], how="moments"),
        replace(FITS[1], em_log_likelihood=FITS[1].log_likelihood + 3.0, em_noise_var=1.0),
    ]
    moments, em = level_warnings(doubtful, [])
    assert moments == "1 of 2 fits did not converge and are those of moments"
    assert em.startswith("EM found a log likelihood 3.0 nats better")


def test_em_is_held_against_maximum_likelihood() -> None:
    count, ratio, gain = em_agreement([cross_check(SERIES[0], FITS[0]), *FITS[1:]])
    assert count == 1
    assert ratio == pytest.approx(1.0, abs=0.2)
    assert gain < 1e-3
    assert em_agreement(FITS)[0] == 0


def test_a_wrong_distribution_is_said_with_its_distance() -> None:
    assert pit_warning("gaps", "log-normal", 0.214) == ["gaps are not log-normal here: PIT KS 0.21"]


def test_tails_that_were_not_calibrated_or_do_not_fit() -> None:
    maxima = np.array([9.0, 8.0], np.float32)
    line = Tail(-2.0, 1.0)
    assert tail_warning("burst", line, maxima[:0], 0, 0) == []
    (few,) = tail_warning("burst", line, maxima, 500, 2)
    assert few.startswith("burst: 500 scored events, fewer than 20,000: not calibrated, taken at h")
    (clusters,) = tail_warning("burst", line, maxima, 50_000, 20)
    assert clusters.endswith("20 entity-weeks, no more than 200: not calibrated, taken at its word")
    assert tail_warning("burst", line, maxima, 50_000, 900) == []
    far = np.array([40.0, 9.0], np.float32)
    (beyond,) = tail_warning("burst", line, far, 50_000, 900)
    assert beyond.startswith("burst: 1 entity-weeks lie beyond the fitted tail (up to 40 nats, ")
