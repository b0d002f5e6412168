"""Counts the runs of creators, and what becomes of the values that they compute.

This module does not know where the numbers go.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..statistics.results import LastRun
from .properties import Property
from .protocols import ComputingScope
from .story import of_property


@dataclass
class TimedRun:
    """How long a run has taken."""

    #: Seconds; 0 until it has ended.
    seconds: float = 0.0


@contextmanager
def counted_run(scope: ComputingScope, prop: Property) -> Iterator[TimedRun]:
    """Count the block as one run of a property's creator, and measure it.

    It is no run if it is interrupted, or ends because the request leads to another view.
    """
    timed, begun = TimedRun(), time.perf_counter()
    try:
        with of_property(scope.story, 'creator', prop.where):
            yield timed
    except Exception:
        _count_run(scope, prop, timed, begun)
        scope.counts[prop.counted.failed_runs] += 1
        raise
    _count_run(scope, prop, timed, begun)


def _count_run(scope: ComputingScope, prop: Property, timed: TimedRun, begun: float) -> None:
    timed.seconds = time.perf_counter() - begun
    scope.counts[prop.counted.runs] += 1
    scope.counts[prop.counted.run_seconds] += timed.seconds


def count_computed(scope: ComputingScope, prop: Property, run: LastRun, refused: str) -> None:
    """Count a value that was computed.

    :param run: the run that has computed it.
    :param refused: why it was not stored, in a word or two; '' if it was.
    """
    if not scope.is_counted:
        return
    counts, counted = scope.counts, prop.counted
    if refused:
        counts[counted.refused(refused)] += 1
    else:
        counts[counted.stored] += 1
        counts[counted.stored_bytes] += run.size
    scope.cache.statistics.ran(scope.schema, prop.where, run)
