"""Paired statistics: against counting, published values, and exact coverage."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multinomial

import tiledse as ts
from tiledse.evaluate.statistics import drop_interval, mcnemar_p_value


@given(lost=st.integers(0, 80), gained=st.integers(0, 80))
def test_p_value_counts_the_splits_as_uneven(lost, gained):
    n = lost + gained
    as_uneven = [k for k in range(n + 1) if abs(2 * k - n) >= abs(lost - gained)]
    assert mcnemar_p_value(lost, gained) == pytest.approx(
        float(Fraction(sum(comb(n, k) for k in as_uneven), 2**n))
    )


@pytest.mark.parametrize(
    ("lost", "gained", "n", "low", "high"),
    [
        # R package statpsych, ci.prop.ps(.05, 12, 4, 26, 6), in its documentation.
        (26, 4, 48, 0.2548067, 0.6251933),
        # Fagerland et al. 2014, table V: 1 and 7 of 21.
        (1, 7, 21, -0.508, -0.013),
    ],
)
def test_interval_equals_published_values(lost, gained, n, low, high):
    digits = len(str(high).partition(".")[2])
    assert drop_interval(lost, gained, n) == pytest.approx((low, high), abs=0.5001 * 10**-digits)


@given(data=st.data(), n=st.integers(1, 3000))
def test_interval_holds_the_drop_and_turns_round(data, n):
    lost = data.draw(st.integers(0, n))
    gained = data.draw(st.integers(0, n - lost))
    low, high = drop_interval(lost, gained, n)
    assert -1 <= low <= (lost - gained) / n <= high <= 1
    assert low < high
    assert drop_interval(gained, lost, n) == pytest.approx((-high, -low))
    wide = drop_interval(lost, gained, n, confidence=0.99)
    assert wide[0] <= low
    assert high <= wide[1]


@pytest.mark.parametrize("n", [20, 50, 120])
def test_interval_holds_the_true_drop_as_often_as_it_says(n):
    """Exact coverage: every outcome of n images, weighted by its probability."""
    outcomes = [(lost, gained) for lost in range(n + 1) for gained in range(n + 1 - lost)]
    bounds = np.array([drop_interval(lost, gained, n) for lost, gained in outcomes])
    counts = np.array([(lost, gained, n - lost - gained) for lost, gained in outcomes])
    coverage = []
    for p in (0.005, 0.02, 0.05, 0.1, 0.2, 0.4):
        for q in (0.005, 0.02, 0.05, 0.1, 0.2, 0.4):
            held = (bounds[:, 0] <= p - q) & (p - q <= bounds[:, 1])
            coverage.append(multinomial.pmf(counts, n, [p, q, 1 - p - q])[held].sum())
    assert min(coverage) > 0.92
    assert 0.95 < np.mean(coverage) < 0.99


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mcnemar_p_value(-1, 0), "counts of at least 0, got lost -1"),
        (lambda: drop_interval(2, 2, 3), "together at most n, got 2, 2, 3"),
        (lambda: drop_interval(0, 0, 0), "got 0, 0, 0"),
        (lambda: drop_interval(0, 0, 5, confidence=95), "between 0 and 1, got 95"),
    ],
)
def test_wrong_counts(call, message):
    with pytest.raises(ts.TiledSEError, match=message):
        call()
