"""Student-t tails against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from models.baselines.student_t import (
    SQUARE_LIMIT,
    cut_off,
    normal_score,
    radial_surprise,
    robust_weight,
    two_sided_surprise,
)

P_VALUES = (0.9, 0.5, 0.1, 0.01, 1e-3, 1e-4)


@pytest.mark.parametrize(("dof", "off"), [(1, 0.15), (2, 0.21), (4, 0.14), (10, 0.025), (50, 2e-3)])
def test_p_values_are_those_of_a_student_t(dof: float, off: float) -> None:
    """In log p down to .001; never too small by more than 1%."""
    for p in P_VALUES[:5]:
        z = float(stats.t.isf(p / 2, dof))
        found = -two_sided_surprise(normal_score(z, dof))
        assert -0.01 <= found - math.log(p) <= off


def test_many_degrees_of_freedom_are_a_normal() -> None:
    for z in (-30.0, -3.0, 0.0, 1e-9, 2.0, 12.0):
        assert normal_score(z, 1e9) == z
        assert normal_score(z, 9e5) == pytest.approx(z, rel=1e-3)
        assert two_sided_surprise(z) == pytest.approx(
            -math.log(2) - float(stats.norm.logsf(abs(z))), rel=1e-9, abs=1e-12
        )


@given(st.floats(-1e100, 1e100), st.floats(1.0, 1e7))
@settings(derandomize=True, deadline=None)
def test_the_score_is_finite_odd_and_no_farther_out(z: float, dof: float) -> None:
    score = normal_score(z, dof)
    assert math.isfinite(score)
    assert score == -normal_score(-z, dof)
    assert abs(score) <= abs(z) * (1 + 1e-9)
    assert math.isfinite(two_sided_surprise(score))


def test_the_score_rises() -> None:
    z = np.geomspace(1e-8, 1e12, 400)
    for dof in (1.0, 3.0, 30.0, 1e4):
        assert (np.diff([normal_score(v, dof) for v in z]) > 0).all()


def test_the_weight_bounds_the_pull() -> None:
    assert robust_weight(5.0, 0.0) == 1.0
    assert robust_weight(2.0, 4.0) == pytest.approx(5 / 8)
    for dof in (1.0, 4.0, 30.0):
        pulls = [s * robust_weight(s, dof) for s in np.geomspace(1e-3, 1e6, 500)]
        assert max(pulls) <= (dof + 1) / (2 * math.sqrt(dof)) + 1e-12


@pytest.mark.parametrize("values", [2, 3, 4])
@pytest.mark.parametrize("dof", [8.0, 40.0, 300.0, 1e9])
def test_the_distance_of_several_values_is_an_f(values: int, dof: float) -> None:
    for p in P_VALUES:
        distance = values * float(stats.f.isf(p, values, dof))
        off = 0.05 if values == 3 and dof < 20 else 2e-3 if values == 3 else 1e-6
        assert radial_surprise(distance, dof, values) == pytest.approx(-math.log(p), abs=off)
    assert radial_surprise(0.0, dof, values) == 0.0
    assert math.isfinite(radial_surprise(1e30, dof, values))


def test_the_distance_of_one_value_is_its_square() -> None:
    assert radial_surprise(9.0, 12.0, 1) == two_sided_surprise(normal_score(3.0, 12.0))


def test_the_cut_off_is_where_the_score_passes() -> None:
    for dof in (4.0, 10.0, 100.0):
        assert normal_score(math.sqrt(cut_off(9.0, dof)), dof) == pytest.approx(3.0, abs=0.06)
    assert cut_off(9.0, 1e9) == pytest.approx(9.0, rel=1e-6)
    assert cut_off(9.0, 1.0) == SQUARE_LIMIT
