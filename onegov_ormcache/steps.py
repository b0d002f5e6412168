"""The steps of the read and write path, by name.

The code says when it takes one; nobody listens but tests, which put other work
between two steps, or end the process there. The model of the protocol names its
steps after these, and a test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum


class Step(StrEnum):
    """A step that is about to be taken."""

    #: The transaction's snapshot is taken, before its view.
    SNAPSHOT = 'snapshot'
    #: A transaction takes its view.
    VIEW = 'view'
    #: The second snapshot is taken, after a view that lasts.
    SECOND_SNAPSHOT = 'second snapshot'
    #: A value is looked for in the process tier.
    PROCESS_TIER = 'process tier'
    #: A value is looked for in the shared tier.
    SHARED_TIER = 'shared tier'
    #: A creator runs.
    CREATOR = 'creator'
    #: A value is stored, if its stamp still holds.
    FILL = 'fill'
    #: A transaction's tags are put in doubt.
    DOUBT = 'doubt'
    #: COMMIT is sent.
    COMMIT = 'commit'
    #: COMMIT has returned: the tags get new versions.
    PUBLISH = 'publish'
    #: The transaction is known not to be committed: its doubt ends.
    END_DOUBT = 'end doubt'
    #: Nobody knows what became of the transaction: its doubt is left.
    LEAVE_DOUBT = 'leave doubt'
    #: A doubt that was left is settled.
    SETTLE = 'settle'
    #: A quarantine after a birth ends, with a new birth.
    END_QUARANTINE = 'end quarantine'
    #: What was done since a savepoint is undone.
    SAVEPOINT = 'savepoint'


#: Called with each step, if it is set.
listener: Callable[[Step], None] | None = None


def about_to(step: Step) -> None:
    """Say that a step is about to be taken."""
    if listener is not None:
        listener(step)
