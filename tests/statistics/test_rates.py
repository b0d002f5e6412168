"""The bound on a rate, against known values and the definition."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onegov_ormcache.statistics.rates import upper_bound


@pytest.mark.parametrize(
    ('failures', 'trials', 'bound'),
    [
        # the upper ends of the two-sided 90 % intervals of Clopper and Pearson (1934)
        (0, 10, 0.2589), (1, 10, 0.3942), (2, 10, 0.5069), (5, 10, 0.7776), (9, 10, 0.9949),
        (0, 59, 0.0495), (5, 100, 0.1023), (0, 14_700, 2.0377e-4), (3, 1_000_000, 7.7537e-6),
    ],
)  # fmt: skip
def test_known_values(failures: int, trials: int, bound: float) -> None:
    """The bound is that of the tables."""
    assert upper_bound(failures, trials) == pytest.approx(bound, rel=1e-3)


def test_nothing_is_known() -> None:
    """Without a trial, or if all have failed, the bound is 1."""
    assert upper_bound(0, 0) == upper_bound(10, 10) == 1.0


@given(st.integers(0, 30), st.integers(31, 400), st.floats(0.5, 0.999))
def test_definition(failures: int, trials: int, confidence: float) -> None:
    """At the bound, the chance of so few failures is just what the confidence leaves."""
    rate = upper_bound(failures, trials, confidence)
    chance = math.fsum(
        math.comb(trials, number) * rate**number * (1 - rate) ** (trials - number)
        for number in range(failures + 1)
    )
    assert chance == pytest.approx(1 - confidence, rel=1e-6)


def test_large_numbers() -> None:
    """Counters of years are no burden, and have a bound just above the rate that was seen."""
    assert 0.01 < upper_bound(10**7, 10**9) < 0.010006
    assert upper_bound(0, 10**12) == pytest.approx(3e-12, rel=2e-3)
