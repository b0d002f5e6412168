"""The bound on the true rate of failures, from trials of which none has failed, or a few.

This module does not know what is tried.
"""

from __future__ import annotations

import math

#: Terms of a sum that are smaller than this part of it are left out.
NEGLIGIBLE = 1e-18


def upper_bound(failures: int, trials: int, confidence: float = 0.95) -> float:
    """Return an upper bound on the true rate of failures, with this confidence.

    The one-sided bound of Clopper and Pearson (1934). For no failures it is about 3 / trials, the
    rule of three.

    :param failures: the number of trials that have failed.
    :param trials: the number of independent trials.
    :param confidence: the probability, between 0 and 1, with which the bound holds.
    :return: a rate between 0 and 1; 1 if nothing was tried.
    """
    if failures >= trials:
        return 1.0
    if not failures:
        return -math.expm1(math.log1p(-confidence) / trials)
    low, high = failures / trials, 1.0
    while low < (middle := (low + high) / 2) < high:
        if _chance(failures, trials, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def _chance(failures: int, trials: int, rate: float) -> float:
    """Return the chance of so few failures, or fewer, at a rate above ``failures / trials``."""
    logarithm = (
        math.lgamma(trials + 1)
        - math.lgamma(failures + 1)
        - math.lgamma(trials - failures + 1)
        + failures * math.log(rate)
        + (trials - failures) * math.log1p(-rate)
    )
    # at such a rate, fewer failures are less likely
    term = total = 1.0
    for number in range(failures, 0, -1):
        term *= number * (1 - rate) / ((trials - number + 1) * rate)
        total += term
        if term < total * NEGLIGIBLE:
            break
    return math.exp(logarithm) * total
