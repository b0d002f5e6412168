"""Tells whether the values of an object were read or written in the present transaction.

An object whose values are older says nothing of its row: others may have changed that row since.
That is so for an object that was attached to the session with its values, and for all objects of a
session that does not expire them at a commit. This module does not know who asks.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

from sqlalchemy.orm import InstanceState, Session


class Attached:
    """The objects of one session that have values of elsewhere.

    Made with the session, and lives as long.
    """

    def __init__(self) -> None:
        self._states: WeakSet[InstanceState[Any]] = WeakSet()
        self._keeps_values = False

    def add(self, state: InstanceState[Any]) -> None:
        """Note an object that was attached: one that was detached, or merged without loading."""
        self._states.add(state)

    def transaction_ended(self, session: Session) -> None:
        """Note the end of the session's transaction, with which all objects expire.

        They do not if the session is told so. It may be told otherwise later, but that expires
        nothing: so this is noted for good.
        """
        self._states.clear()
        self._keeps_values = self._keeps_values or not session.expire_on_commit

    def has(self, state: InstanceState[Any]) -> bool:
        """Return whether the object may have values of elsewhere, or of another transaction."""
        return self._keeps_values or state in self._states


def is_loaded_here(state: InstanceState[Any]) -> bool:
    """Return whether an object's values were loaded or flushed in its session's transaction.

    A changed attribute is judged by the value that it had before. Under READ COMMITTED, the row
    may still have other values by now: another transaction may have committed since they were
    loaded. Values that a program has put in by hand (``set_committed_value()``) are not noticed.

    :return: False for an object that is new, or in no session that is observed; for one that was
        attached to the session in this transaction, by ``add()`` or ``merge(load=False)``, even if
        it was refreshed since; and for all objects of a session with ``expire_on_commit=False``.
    """
    session: Any = state.session
    attached: Attached | None = getattr(session, 'attached_states', None)
    if attached is None or state.key is None or not session.expire_on_commit:
        return False
    return not attached.has(state)
