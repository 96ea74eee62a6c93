"""The combined p-value against the Cauchy test's formula, and beyond where that underflows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from models.fusion import DETECTORS, FUSED, calibrated_p, fuse

ON = np.zeros(len(FUSED))
ONE = np.ones(len(FUSED))


def cauchy(p: list[float]) -> float:
    """Liu and Xie (2020), equation 1, with equal weights."""
    return float(stats.cauchy.sf(np.mean([math.tan((0.5 - one) * math.pi) for one in p])))


@given(st.lists(st.floats(9.0, 30.0), min_size=len(FUSED), max_size=len(FUSED)))
@settings(derandomize=True, deadline=None)
def test_equals_the_cauchy_combination_in_the_tail(surprise: list[float]) -> None:
    wanted = cauchy([math.exp(-s) for s in surprise])
    assert math.exp(fuse(np.array(surprise), ON, ONE)) == pytest.approx(wanted, rel=1e-6)


def test_one_small_p_value_among_usual_ones() -> None:
    """Where the others are near one half they add nothing but the count."""
    surprise = np.full(len(FUSED), math.log(2.0))
    surprise[3] = 20.0
    log_p = fuse(surprise, ON, ONE)
    assert log_p == pytest.approx(math.log(len(FUSED)) - 20.0, abs=1e-6)
    assert math.exp(log_p) == pytest.approx(cauchy(np.exp(-surprise).tolist()), rel=1e-5)


def test_calibration_moves_the_surprises() -> None:
    offset = np.array([0.5, -1.0, 0.0, 2.0, 0.0, -3.0, 1.0, 0.0])
    slope = np.array([0.5, 1.0, 0.9, 0.3, 0.7, 1.0, 0.6, 0.8])
    surprise = np.array([40.0, 12.0, 15.0, 60.0, 20.0, 14.0, 30.0, 18.0])
    p = [calibrated_p(*one) for one in zip(surprise, offset, slope, strict=True)]
    assert p == pytest.approx(np.exp(offset - slope * surprise).tolist())
    assert math.exp(fuse(surprise, offset, slope)) == pytest.approx(cauchy(p), rel=1e-5)


def test_a_detector_switched_off_has_no_vote() -> None:
    offset = ON.copy()
    offset[1:] = math.inf
    slope = ONE.copy()
    slope[1:] = 0.0
    surprise = np.array([11.0, 99.0, 99.0, 99.0, 99.0, 99.0, 99.0, 99.0])
    assert fuse(surprise, offset, slope) == pytest.approx(-11.0)


def test_far_in_the_tail_nothing_vanishes() -> None:
    surprise = np.zeros(len(FUSED))
    surprise[0], surprise[5] = 5000.0, 4999.0
    wanted = math.log(len(FUSED)) - 5000.0 - math.log1p(math.exp(-1.0))
    assert fuse(surprise, ON, ONE) == pytest.approx(wanted, abs=1e-9)


def test_the_order_of_detectors_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    surprise = rng.exponential(20.0, len(FUSED))
    wanted = fuse(surprise, ON, ONE)
    for _ in range(20):
        assert fuse(rng.permutation(surprise), ON, ONE) == pytest.approx(wanted, abs=1e-12)


def test_nothing_is_more_usual_than_usual() -> None:
    assert fuse(np.zeros(len(FUSED)), ON, ONE) == 0.0
    assert calibrated_p(0.0, 3.0, 1.0) == 1.0
    assert calibrated_p(1e9, 0.0, 1.0) == 0.0


def test_the_combination_keeps_its_level() -> None:
    """Independent exponential surprises are exact p-values: at 1e-3 about 1 in 1000 falls below."""
    surprise = np.random.default_rng(4).exponential(size=(20_000, len(FUSED)))
    below = sum(fuse(row, ON, ONE) < math.log(1e-3) for row in surprise)
    assert 5 <= below <= 40


def test_the_names_in_the_settings_cover_what_is_fused() -> None:
    votes = {name.replace("_up", "_shift").replace("_down", "_shift") for name in FUSED}
    assert set(DETECTORS) == votes | {"silence"}
