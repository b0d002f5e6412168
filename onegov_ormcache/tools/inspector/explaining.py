"""What the words mean by which reads and values are counted: sentences for people."""

from __future__ import annotations

from typing import NamedTuple

from ...statistics.results import PropertyStatistics

#: Why a value was not stored, or the cache was passed by.
MEANINGS = {
    'tainted': 'The creator did something that is not repeatable, or that no tag stands for: the '
    'page says what, if its last value was concerned.',
    'too large': 'The value is larger than the setting max_value_size allows.',
    'expired': 'The value had ended before it could be stored, by its own expires.',
    'own change': 'The transaction had changed a table that the value depends on. Others must not '
    'see that before its commit.',
    'doubt': 'Another transaction was about to commit a change, or its outcome was not known yet.',
    'replica': 'It was read from a replica of the database, which may lag behind.',
    'changed meanwhile': 'A commit has changed a table that it depends on, while it was computed.',
    'outage': 'Redis could not be reached.',
    'quarantine': 'The versions of this tenant were lost, and a transaction from before is open.',
}


class Reason(NamedTuple):
    """A reason, and how often it was one."""

    reason: str
    meaning: str
    times: int


def reasons(counted: PropertyStatistics) -> list[Reason]:
    """Return why values were not stored and the cache was passed by, the most frequent first."""
    times: dict[str, int] = {}
    for counts in counted.refused, counted.bypasses:
        for reason, number in counts.items():
            times[reason] = times.get(reason, 0) + number
    return [
        Reason(reason, MEANINGS.get(reason, ''), number)
        for reason, number in sorted(times.items(), key=lambda item: (-item[1], item[0]))
    ]


def answers(counted: PropertyStatistics) -> list[tuple[str, int]]:
    """Return what has answered the reads, and how often."""
    return [
        ('The same request, again', counted.request_hits),
        ('The process', counted.process_hits),
        ('Redis, or memory where there is none', counted.shared_hits),
        ('The creator', counted.misses),
    ]
