"""The names of the steps of the read path and the write path.

The code announces each step directly before it takes it. Only tests listen: they run other
work between two steps, or end the process there. The model of the protocol, in the tests,
uses the same names, and a test compares the two. This module does not know what a step does.
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
    #: The identity that a transaction has found is told to the tag store: it is not that of the
    #: snapshot.
    IDENTIFY = 'identify'
    #: The second snapshot is taken, after a view that lasts to the end of the transaction.
    SECOND_SNAPSHOT = 'second snapshot'
    #: A value is looked for in the process tier.
    PROCESS_TIER = 'process tier'
    #: A value is looked for in the shared tier.
    SHARED_TIER = 'shared tier'
    #: A reader waits for the run of another one, which computes the same value.
    WAIT = 'wait'
    #: A creator runs.
    CREATOR = 'creator'
    #: A value is stored in the shared tier, if its stamp still holds.
    FILL = 'fill'
    #: The doubt of a transaction's tags is sent.
    DOUBT = 'doubt'
    #: The answer to the doubt is waited for.
    ANSWER = 'answer'
    #: COMMIT is sent.
    COMMIT = 'commit'
    #: COMMIT has returned: the new versions of the tags are sent.
    PUBLISH = 'publish'
    #: The transaction has certainly not committed: its doubt ends.
    END_DOUBT = 'end doubt'
    #: The outcome of the transaction is not known: its doubt stays.
    LEAVE_DOUBT = 'leave doubt'
    #: A reader settles the doubt of another transaction.
    SETTLE = 'settle'
    #: A quarantine after a birth ends, with a new birth.
    END_QUARANTINE = 'end quarantine'
    #: The changes since a savepoint are rolled back.
    SAVEPOINT = 'savepoint'


#: The function that is called with each step; None outside of tests.
listener: Callable[[Step], None] | None = None


def about_to(step: Step) -> None:
    """Tell the listener, if there is one, that a step is about to be taken."""
    if listener is not None:
        listener(step)
