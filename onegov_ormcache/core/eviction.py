"""The write path: how the changes of a transaction evict what depends on them.

One :class:`WritePath` accompanies each database transaction:

1. its statements, and the session manager's signals, give the tags changed;
2. directly before COMMIT the tags are put in doubt;
3. the database commits;
4. the tags get new versions and the doubt ends, or, if the server refused, only
   the doubt ends; if nobody knows, the doubt stays;
5. a doubt that stays is settled by the next reader that meets it (``tags/settling.py``).

Why it must be so: Ports et al., "Transactional Consistency and Automatic
Management in an Application Data Cache" (OSDI 2010), and the model in the tests.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from ..database.postgres import FAILED_TRANSACTION
from ..database.statements import Statement
from ..database.transactions import View
from ..errors import SnapshotConflict, StoreUnreachable, TextualControlError
from ..steps import Step, about_to
from ..tags.snapshot import new_token
from .policies import table_tags
from .protocols import WritingScope
from .recording import CacheEvent

log = logging.getLogger('onegov_ormcache')


class WritePath:
    """One database transaction of a request scope, from its begin to its end."""

    def __init__(self, scope: WritingScope) -> None:
        self._scope = scope
        self._cache = scope.cache
        self._writer = new_token()
        # a property that is bound later may have missed objects that were changed before
        self._asked_functions = self._cache.function_tags
        self._in_doubt: frozenset[str] | None = None
        self._must_renew = False
        self._view: View | None = None
        #: What the transaction has changed so far.
        self.tags: set[str] = set()

    def __repr__(self) -> str:
        state = 'committing' if self._in_doubt else 'open'
        return f'<WritePath {state} {self._scope.schema} {sorted(self.tags)}>'

    @property
    def keeps_view(self) -> bool:
        """Whether the transaction has one view for all its statements."""
        return self._view is not None and self._view.lasts

    @property
    def on_replica(self) -> bool:
        """Whether the transaction reads from a replica."""
        return self._view is not None and self._view.replica

    # how a transaction begins

    def begun(self, connection: Connection, view: View) -> None:
        scope = self._scope
        self._view = view
        scope.transaction_begun(self)
        if view.lasts:
            # the view was taken between the scope's snapshot and this one
            try:
                scope.take_second_snapshot()
            except SnapshotConflict:
                self._end()
                raise
        elif not view.replica and scope.snapshot().quarantine is not None:
            # nothing was read yet, so a snapshot from after its end will do
            scope.end_quarantine(connection, self)

    # step 1

    def executing(self, statement: Statement) -> None:
        scope = self._scope
        if statement.control == 'transaction':
            raise TextualControlError(
                'A statement begins or ends the transaction by its text, and nobody would know '
                'what became of it: use commit(), rollback() or begin() of the session or '
                'connection'
            )
        if statement.control == 'savepoint':
            self.savepoint_lost()
        scope.record(statement)
        if statement.unknown is not None:
            log.warning('%s; it counts as a change of every table', statement.unknown)
            self.changed(self._cache.all_tags)
        elif statement.writes:
            manager = self._cache.session_manager
            tables = manager.cascades.affected(statement)
            self.changed(table_tags(tables))
            if manager.on_table_change.receivers:
                manager.on_table_change.send(scope.schema, tables=tables)
            if scope.flushed_tables is None:
                # no object stands for this change, so no function policy can be asked
                self.changed(self._cache.function_tags)
            else:
                scope.flushed_tables |= tables
                # rows that the database changes by itself have no objects
                scope.changed_without_objects(tables - statement.writes)

    def triggered(self, tables: Mapping[tuple[str, str], bool]) -> None:
        """Triggers of the database saw these tables change.

        What a function, a trigger or a cascade did counts like a statement without objects;
        so does a change that the statements did not show.
        """
        manager = self._cache.session_manager
        unseen: set[str] = set()
        for (schema, table), hidden in tables.items():
            names = manager.names_of(schema, table, self._scope.schema)
            if hidden or self.tags.isdisjoint(table_tags(names)):
                unseen |= names
        if known := frozenset(filter(manager.has_table, unseen)):
            self.executing(Statement(writes=known))
        self.changed(table_tags(unseen))

    def changed(self, tags: Collection[str]) -> None:
        """Collect the tags, and drop what the request tier has of them."""
        self.tags.update(tags)
        self._scope.drop(tags)

    def savepoint_lost(self) -> None:
        about_to(Step.SAVEPOINT)
        # the tags stay: one eviction too many is harmless
        self._scope.drop(self.tags)

    # step 2

    def committing(self, transaction_id: Callable[[], str | None]) -> None:
        if not self.tags and not self.may_have_changes():
            return
        try:
            identity = transaction_id()
        except DBAPIError as error:
            if self.tags or getattr(error.orig, 'sqlstate', None) != FAILED_TRANSACTION:
                raise
            return  # COMMIT will roll it back
        if identity is None or not self.tags:
            return  # it wrote nothing, or nothing that anybody depends on
        about_to(Step.DOUBT)
        try:
            self._in_doubt = self._cache.tags.doubt(
                self._scope.schema,
                self._writer,
                self.tags,
                self._asked_functions,
                identity,
                self._must_hold(),
            )
        except StoreUnreachable:
            if self._cache.settings.on_outage == 'refuse':
                raise
            log.warning('%s: committing while the tag store is unreachable', self._scope.schema)
            self._must_renew = True

    def may_have_changes(self) -> bool:
        """Whether triggers may know of changes that the statements do not show."""
        return self._view is not None and self._view.triggers

    def _must_hold(self) -> dict[str, str]:
        """What a SERIALIZABLE writer has read through the cache."""
        if self._view is None or not self._view.serializable:
            return {}
        if not self._cache.settings.check_write_skew:
            return {}
        return {**self._scope.computed, **self._scope.returned}

    # step 4

    def committed(self) -> None:
        schema, recorder = self._scope.schema, self._cache.recorder
        if recorder is not None and self.tags:
            recorder(CacheEvent.commit(schema, self._in_doubt or self.tags))
        if self._in_doubt:
            about_to(Step.PUBLISH)
            try:
                self._cache.tags.publish(schema, self._writer, self._in_doubt)
            except StoreUnreachable:
                # the doubt stays, and the next reader that meets it settles it
                log.warning('%s: committed, but the tag store is lost', schema)
        self._renew_later()
        self._end()

    def rolled_back(self) -> None:
        if self._in_doubt:
            about_to(Step.END_DOUBT)
            try:
                self._cache.tags.end_doubt(self._scope.schema, self._writer)
            except StoreUnreachable:
                log.warning('%s: rolled back, but the tag store is lost', self._scope.schema)
        self._end()

    def lost(self) -> None:
        has_ids = self._cache.session_manager.database.has_transaction_ids
        if self._in_doubt and not has_ids:
            # SQLite commits in this very process: what was sent has ended by now
            self.committed()
        else:
            about_to(Step.LEAVE_DOUBT)
            self._renew_later()
            self._end()

    def _renew_later(self) -> None:
        if self._must_renew:
            self._cache.renew_later(*self._cache.places(self._scope.schema))

    def _end(self) -> None:
        self._in_doubt = None
        self._scope.transaction_ended(self)

