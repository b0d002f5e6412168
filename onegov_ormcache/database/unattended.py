"""Notes what a host changes before anybody is interested in its transactions.

Nobody can be told of these changes when they are committed. This module does not know who asks for
the changed schemas later.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import TypeAlias

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from ..forks import OwnLock
from .inquiries import has_failed
from .protocols import Inquiry, Statement, View
from .sessions import RunSession

log = logging.getLogger(__name__)

#: Says which tenant a connection works for; None: for none.
SchemaOf: TypeAlias = Callable[[Connection], str | None]


class Unattended:
    """The scope of all connections and sessions of a host, as long as it has no attendant.

    Made by an observer; used by all threads.

    :param schema_of: says which tenant a connection works for.
    """

    schema = ''
    run_sessions: Sequence[RunSession] = ()
    #: Nothing that is read of the catalog is remembered.
    was_unclear = True

    def __init__(self, schema_of: SchemaOf) -> None:
        self.schema_of = schema_of
        self._changed: set[str | None] = set()
        self._report: Callable[[Collection[str | None]], bool] | None = None
        self._lock = OwnLock()

    def changed(self, schemas: Collection[str | None]) -> None:
        """Note, or report, schemas in which a transaction has committed changes.

        :param schemas: None among them stands for all.
        """
        with self._lock.present:
            self._changed.update(schemas)
        try:
            self._take()
        except Exception:
            # the transaction is committed, so its commit() must not raise any more
            log.warning('Changes are not reported yet', exc_info=True)

    def report_to(self, report: Callable[[Collection[str | None]], bool]) -> None:
        """Call ``report`` with the changed schemas, and again when a transaction has ended that
        began before there was an attendant, or after there was one.

        :param report: returns whether they need not be reported again, to this one or another.
        """
        self._report = report
        self._take()

    def _take(self) -> None:
        if self._report is not None:
            with self._lock.present:
                left, self._changed = self._changed, set()
            try:
                if left and self._report(left):
                    left = set()
            finally:
                with self._lock.present:
                    self._changed |= left

    def transaction(self, connection: Connection) -> UnattendedTransaction:
        return UnattendedTransaction(self)

    def definitions(self) -> Hashable:
        return object()

    # what sessions tell

    def session_used(self) -> None:
        """Do nothing: sessions may be used without attendant."""

    def taint_run(self, reason: str) -> None:
        """Do nothing: there are no runs."""

    def changed_without_objects(self, tables: Collection[str]) -> None:
        """Do nothing: the database tells what was changed."""

    def related(self, tables: Collection[str]) -> None:
        """Do nothing: the database tells what was changed."""

    def last_flush_ended(self, session: object) -> None:
        """Do nothing: nobody is told before the commit."""

    def session_emptied(self) -> None:
        """Do nothing: nobody looks at its objects."""

    def session_ended(self) -> None:
        """Do nothing: there is no snapshot."""


class UnattendedTransaction:
    """The listener of one transaction; see :class:`~.protocols.Listener`."""

    def __init__(self, owner: Unattended) -> None:
        self._owner = owner
        self._schemas: set[str | None] = set()

    def begun(self, connection: Connection, view: View, inquiry: Inquiry) -> None:
        self._connection = connection
        self._inquiry = inquiry

    def executing(self, statement: Statement) -> None:
        if statement.writes or statement.cascades:
            self._schemas.add(self._owner.schema_of(self._connection) or '')

    def committing(self) -> None:
        try:
            changes = self._inquiry.last_changes(is_unclear=True)
        except DBAPIError as error:
            if not has_failed(error):
                raise
            return  # COMMIT rolls it back, as it would if nobody asked
        relations = {str(relation.schema) for relation in changes.relations}
        self._schemas |= relations | changes.redefined | changes.code_schemas

    def committed(self) -> None:
        self._owner.changed(self._schemas)

    def lost(self) -> None:
        self._owner.changed(self._schemas)  # it may have committed

    def executed(self, rows: int | None) -> None:
        """Do nothing: one schema too many is harmless."""

    def set_by(self, setting: str) -> None:
        """Do nothing: all that it does is asked for."""

    def savepoint_lost(self) -> None:
        """Do nothing: one schema too many is harmless."""

    def rolled_back(self) -> None:
        """Do nothing: nothing has changed."""

    def ended_unseen(self) -> None:
        self._owner.changed({None})  # nobody can be asked what it has committed
