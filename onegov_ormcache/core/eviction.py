"""The write path: how the changes of a transaction evict the values that depend on them.

One :class:`WritePath` accompanies each database transaction:

1. its statements, and the session manager's signals, give the changed tags;
2. directly before COMMIT these tags are put in doubt;
3. the database commits;
4. if COMMIT returned, the tags get new versions and the doubt ends; if the server refused
   COMMIT, only the doubt ends; if the outcome is not known, the doubt stays;
5. the next reader that meets a doubt that stays settles it (``tags/settling.py``).

For the reasons see Ports et al., "Transactional Consistency and Automatic Management in an
Application Data Cache" (OSDI 2010), and the model in the tests. This module does not know
which values are cached: it neither looks them up nor deletes them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from ..database.postgres import FAILED_TRANSACTION
from ..database.protocols import View
from ..database.statements import Statement
from ..errors import SnapshotConflict, StoreUnreachable, TextualControlError
from ..steps import Step, about_to
from ..tags.snapshot import new_token
from .policies import table_tags
from .protocols import WritingScope
from .recording import CacheEvent

log = logging.getLogger('onegov_ormcache')


class WritePath:
    """The write path of one database transaction of a request scope.

    Made by the scope before the transaction begins. It ends when the transaction is
    committed, rolled back or lost.
    """

    def __init__(self, scope: WritingScope) -> None:
        self._scope = scope
        self._cache = scope.cache
        self._writer = new_token()
        # kept as it is now: a function policy that is bound later was not asked about earlier
        # changes, so the transaction evicts it like one that this process does not have
        self._asked_functions = self._cache.registry.function_tags
        self._in_doubt: frozenset[str] | None = None
        self._must_renew = False
        self._view: View | None = None
        #: The tags that the transaction has changed so far.
        self.tags: set[str] = set()

    def __repr__(self) -> str:
        state = 'committing' if self._in_doubt else 'open'
        return f'<WritePath {state} {self._scope.schema} {sorted(self.tags)}>'

    @property
    def keeps_view(self) -> bool:
        """True if the transaction has one view for all its statements."""
        return self._view is not None and self._view.lasts

    @property
    def on_replica(self) -> bool:
        """True if the transaction reads from a replica."""
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
            # the transaction has read nothing yet, so it can use a snapshot that is taken
            # after the end of the quarantine
            scope.end_quarantine(connection, self)

    # step 1

    def executing(self, statement: Statement) -> None:
        scope = self._scope
        if statement.control == 'transaction':
            raise TextualControlError(
                'A statement begins or ends the transaction by its text, and its outcome would '
                'not be known: use commit(), rollback() or begin() of the session or connection'
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
                self.changed(self._cache.registry.function_tags)
            else:
                scope.flushed_tables |= tables
                # no objects stand for the rows that cascades of the database change
                scope.changed_without_objects(tables - statement.writes)

    def triggered(self, tables: Mapping[tuple[str, str], bool]) -> None:
        """Collect the tags of tables that triggers of the database saw change.

        No object stands for a change by a function, a trigger or a cascade, so all function
        policies count as concerned. The same holds for a change that the transaction's
        statements did not show.

        :param tables: by schema and table, True if anything but a statement of the client
            itself has changed the table.
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
        """Collect changed tags, and drop the request tier's values that depend on them."""
        self.tags.update(tags)
        self._scope.drop(tags)

    def savepoint_lost(self) -> None:
        about_to(Step.SAVEPOINT)
        # values that were computed since the savepoint may show what is rolled back; the tags
        # stay collected, because one eviction too many is harmless
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
            return  # the transaction has failed, so COMMIT rolls it back
        if identity is None or not self.tags:
            return  # it wrote nothing, or nothing that a tag stands for
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
        """Return whether triggers may know of changes that the statements do not show."""
        return self._view is not None and self._view.triggers

    def _must_hold(self) -> dict[str, str]:
        """Return the versions, by tag, that must not change before a SERIALIZABLE COMMIT.

        These are the versions of all values that the transaction has read, from the cache or
        by running creators. There are none under other isolation levels, or if the setting
        ``check_write_skew`` is off.
        """
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
            # SQLite: COMMIT runs in this process and has ended by now; if it committed
            # nothing, the new versions are an eviction too many, which is harmless
            self.committed()
        else:
            about_to(Step.LEAVE_DOUBT)
            self._renew_later()
            self._end()

    def _renew_later(self) -> None:
        """Give the tenant a new birth, if its tags could not be put in doubt."""
        if self._must_renew:
            self._cache.renew_later(*self._cache.places(self._scope.schema))

    def _end(self) -> None:
        self._in_doubt = None
        self._scope.transaction_ended(self)

