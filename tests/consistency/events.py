"""The events that a process of the history test records: one per operation, one line each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

#: Kinds of events that one transaction consists of; the others are remarks.
OPERATIONS = ('begin', 'read', 'direct', 'write', 'undo', 'commit', 'rolled back')


class Event(NamedTuple):
    """One thing that happened, as the process that did it saw it.

    ==============  ===================================================================
    ``begin``       a transaction of this tenant is about to begin
    ``read``        a property's rows, read between ``at`` and ``until``
    ``direct``      the same, read from the database itself
    ``write``       new values are about to be written
    ``undo``        these values were undone, by the rollback of a savepoint
    ``commit``      COMMIT is about to be sent
    ``committed``   COMMIT has returned
    ``rolled back`` the transaction has ended, and it is known that it did not commit
    ``failed``      an error (``name``) ended it; the outcome is unknown if ``commit`` came
                    before, otherwise it did not commit
    ``error``       an error (``name``) that no transaction may end with
    ``quiet``       a property was found cached when all was quiet
    ``never``       a property was not found cached when all was quiet, in many reads
    ==============  ===================================================================

    Events of other kinds are shown with the violations; the checker makes no use of them.
    """

    kind: str
    transaction: str
    at: int
    tenant: str = ''
    name: str = ''
    #: When the operation had ended.
    until: int = 0
    #: By row: its version and value as they were read, or 0 and the value to write.
    rows: Mapping[str, tuple[int, str]] = {}
    #: True if the value came from a cache: its creator did not run in this transaction.
    cached: bool = False
    #: Rows that should have been in the value and were not.
    missing: Sequence[str] = ()
    #: How many creators ran meanwhile.
    runs: int = 0

    def line(self) -> bytes:
        """The event as a line of a file."""
        default = self._field_defaults
        fields = {k: v for k, v in self._asdict().items() if k not in default or v != default[k]}
        return json.dumps(fields, separators=(',', ':')).encode() + b'\n'


def events_of(lines: Iterable[bytes]) -> Iterable[Event]:
    """Give the events of a file; a last line that was cut off by a kill is left out."""
    for line in lines:
        if line.endswith(b'\n'):
            yield Event(**json.loads(line))
