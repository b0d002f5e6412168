"""How time is taken: warm-up, rounds in which all contestants take turns, medians.

In each round every contestant is measured once, and the order rotates, so that noise of
the machine hits all alike. A ratio is the median of the rounds' ratios: both numbers of
such a pair were taken within the same moment.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter

#: Measures once, and gives seconds for one operation.
Measure = Callable[[], float]


@dataclass(frozen=True)
class Timing:
    """The seconds that one contestant needed for one operation, one sample per round."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def low(self) -> float:
        """The lower quartile."""
        return self._quartiles()[0]

    @property
    def high(self) -> float:
        """The upper quartile."""
        return self._quartiles()[2]

    def ratio(self, base: Timing) -> float:
        """Return how many times as long as `base` this took: the median of the rounds' ratios."""
        pairs = zip(self.samples, base.samples, strict=True)
        return statistics.median(mine / theirs for mine, theirs in pairs)

    def _quartiles(self) -> list[float]:
        if len(self.samples) < 2:
            return [self.samples[0]] * 3
        return statistics.quantiles(self.samples, n=4, method='inclusive')


def interleaved(
    contestants: Mapping[str, Measure], rounds: int, warm_up: int = 1
) -> dict[str, Timing]:
    """Measure all contestants in each round; the first rounds are thrown away."""
    names = list(contestants)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for number in range(warm_up + rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            gc.collect()
            seconds = contestants[name]()
            if number >= warm_up:
                samples[name].append(seconds)
    return {name: Timing(tuple(taken)) for name, taken in samples.items()}


def per_call(function: Callable[[], object], repeat: int) -> float:
    """Return the mean seconds of a call, over so many calls; the loop's own time is included."""
    calls = range(repeat)
    start = perf_counter()
    for _ in calls:
        function()
    return (perf_counter() - start) / repeat
