"""Distinct partners: bits, linear counting within its known error, and the Poisson ratio."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from models.baselines.partners import BITS, count_bits, distinct, partner_surprise


@given(st.integers(0, 2**64 - 1))
@settings(derandomize=True, max_examples=200, deadline=None)
def test_bits_are_counted(bits: int) -> None:
    assert count_bits(np.uint64(bits)) == bits.bit_count()


@pytest.mark.parametrize("bits", [0, 1, 2**63, 2**64 - 1])
def test_bits_at_the_ends(bits: int) -> None:
    assert count_bits(np.uint64(bits)) == bits.bit_count()


@pytest.mark.parametrize("partners", [1, 2, 5, 10, 20, 40, 80, 130])
def test_linear_counting_is_within_its_known_error(partners: int) -> None:
    """Whang et al., theorem 1: sd of n-hat / n is sqrt(m (e^t - t - 1)) / n, t = n / m."""
    rng = np.random.default_rng(partners)
    found = []
    for _ in range(400):
        bits = 0
        for bit in rng.integers(0, 64, partners):
            bits |= 1 << int(bit)
        found.append(distinct(np.uint64(bits)))
    t = partners / BITS
    sd = math.sqrt(BITS * (math.exp(t) - t - 1.0))
    bias = 0.5 * (math.exp(t) - t - 1.0)
    assert np.mean(found) == pytest.approx(partners + bias, abs=0.3 + 4 * sd / 20)
    assert np.std(found) == pytest.approx(sd, rel=0.25, abs=0.15)


def test_nothing_and_everything() -> None:
    assert distinct(np.uint64(0)) == 0.0
    assert distinct(np.uint64(2**64 - 1)) == pytest.approx(64 * math.log(64))  # about 266


@pytest.mark.parametrize(("count", "expected"), [(4, 3.0), (10, 3.0), (60, 3.0), (4, 0.5)])
def test_surprise_is_the_poisson_log_likelihood_ratio(count: int, expected: float) -> None:
    wanted = stats.poisson.logpmf(count, count) - stats.poisson.logpmf(count, expected)
    assert partner_surprise(float(count), expected) == pytest.approx(wanted, rel=1e-9)


def test_fewer_partners_are_no_surprise() -> None:
    assert partner_surprise(2.0, 3.0) == 0.0
    assert partner_surprise(3.0, 3.0) == 0.0
