"""The combinations that are known to fail, each with its reason.

The sample of the tests leaves them out; the command line shows them. The aim is an empty list.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from .results import Failure


class KnownFailure(NamedTuple):
    """Combinations that fail for one reason."""

    #: What the names of the reads contain, as a regular expression; so of the writes and places.
    reads: str
    writes: str
    places: str
    reason: str


KNOWN_FAILURES: tuple[KnownFailure, ...] = (
    KnownFailure(
        r'last value',
        r'sequence',
        r'',
        'a sequence takes no part in transactions, so others see it at once; never stored',
    ),
    KnownFailure(
        r'all of entries',
        r'deferred|ON DELETE|rooms|rule|trigger|set to None',
        r'^scope$',
        'the rows have ids of a sequence, which the run without a cache has advanced',
    ),
)


def is_known(failure: Failure) -> bool:
    """Return whether a failure is one of the known ones."""
    return any(
        re.search(known.reads, failure.read)
        and re.search(known.writes, failure.write)
        and re.search(known.places, failure.place)
        for known in KNOWN_FAILURES
    )
