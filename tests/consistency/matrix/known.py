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
        r'^(orm|query|relationship|inheritance):',
        r'',
        r'^scope$',
        'creators share the session of the request, and so the objects that it has loaded',
    ),
    KnownFailure(
        r'^(relationship|inheritance):',
        r'',
        r'',
        'what such an object has loaded is even stored',
    ),
    KnownFailure(
        r'^(schema|path):|tenant',
        r'',
        r'^neighbour$',
        'a read beyond the own schema is not stamped with the tags of the place that it reads',
    ),
    KnownFailure(
        r'^(driver|function|view|child|partition|path|schema|returning|large object):'
        r'|^text: (qualified|view|nested|child|partition|join with another|unicode|name that is'
        r'|other|last value|materialised|percent|row)',
        r'',
        r'^scope$',
        'a value whose dependencies are not known stays in the request tier after a change',
    ),
    KnownFailure(
        r'driver: cursor, then the ORM',
        r'',
        r'',
        'what a cursor of the driver reads is not seen',
    ),
    KnownFailure(
        r'',
        r'^driver: (COPY|cursor|several|pipeline|executemany|connection)|by a cursor|by_cursor'
        r'|, cursor$',
        r'',
        'what a cursor of the driver writes is not seen',
    ),
    KnownFailure(
        r'',
        r'^(function|procedure):|default: that reads',
        r'',
        'what functions of the database write is not seen',
    ),
    KnownFailure(
        r'',
        r'^text: (qualified|other tenant|shared|from another|name that is cut|explain, a comment'
        r'|unicode)|^schema:|^path:',
        r'',
        'names with a schema, and other spellings, are not resolved',
    ),
    KnownFailure(
        r'',
        r'view|rule|trigger|partition|child|^text: truncate|parent|of rooms|^relationship: .*rooms'
        r'|^relationship: (set to None|without cascade|replaced list|passive)'
        r'|all ON DELETE actions|cascade',
        r'',
        'views, rules, triggers, partitions and children of the database are not known',
    ),
    KnownFailure(
        r'',
        r'^definition:|refresh',
        r'',
        'changes of definitions evict nothing',
    ),
    KnownFailure(r'last value', r'', r'', 'sequences are no tables'),
    KnownFailure(r'', r'^end:', r'', 'the driver may end a transaction unseen'),
    KnownFailure(r'row level|secret', r'', r'', 'what a policy of row level security reads'),
)


def is_known(failure: Failure) -> bool:
    """Return whether a failure is one of the known ones."""
    return any(
        re.search(known.reads, failure.read)
        and re.search(known.writes, failure.write)
        and re.search(known.places, failure.place)
        for known in KNOWN_FAILURES
    )
