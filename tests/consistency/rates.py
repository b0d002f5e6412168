"""The bound on the true rate of violations, from trials with no violation or with a few."""

from __future__ import annotations

import math
from bisect import bisect_left


def upper_bound(violations: int, trials: int, confidence: float = 0.95) -> float:
    """Return an upper bound on the true rate of violations, with this confidence.

    The one-sided bound of Clopper and Pearson (1934); for no violations it is about
    3 / trials, the rule of three.
    """
    if trials == 0 or violations >= trials:
        return 1.0

    def chance(rate: float) -> float:
        """The chance of so few violations at this rate."""
        logs = [
            math.lgamma(trials + 1)
            - math.lgamma(k + 1)
            - math.lgamma(trials - k + 1)
            + k * math.log(rate)
            + (trials - k) * math.log1p(-rate)
            for k in range(violations + 1)
        ]
        return math.fsum(math.exp(log) for log in logs)

    steps = range(1, 10**9)
    number = bisect_left(steps, confidence - 1, key=lambda step: -chance(step / 1e9))
    return min(1.0, steps[min(number, len(steps) - 1)] / 1e9)
