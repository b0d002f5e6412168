"""The write path: how the changes of a transaction evict the values that depend on them.

One :class:`WritePath` accompanies each database transaction:

1. its statements, and the session manager's signals, give the changed tags; if a statement
   is unclear, the database is asked, at the latest before step 2;
2. before COMMIT these tags are put in doubt: the doubt is sent while the last flush goes on, if
   that tells all of them, and answered before COMMIT is sent (:mod:`.doubts`);
3. the database commits;
4. if COMMIT returned, the tags get new versions and the doubt ends, for which nobody waits; if
   the server refused COMMIT, only the doubt ends; if the outcome is not known, the doubt stays;
5. the next reader that meets a doubt that stays settles it (``tags/settling.py``).

For the reasons see Ports et al., "Transactional Consistency and Automatic Management in an
Application Data Cache" (OSDI 2010), and the model in the tests. This module does not know
which values are cached: it neither looks them up nor deletes them.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from weakref import ref

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from ..database.inquiries import has_failed
from ..database.notes import Relation
from ..database.protocols import Changes, Inquiry, Reads, RowTexts, Statement, View
from ..errors import SnapshotConflict, StoreUnreachable, TextualControlError
from ..steps import Step, about_to
from ..tags.snapshot import CATALOG_TAG, CODE_TAG, PROPERTY_TAG, Stamp
from .changed_rows import NOTHING_TOLD, ChangedRows
from .doubts import Doubts, OwnDoubt
from .policies import table_tags
from .protocols import WritingScope
from .recording import CacheEvent
from .rows import RowPolicy
from .story import of_tags
from .write_skews import Required, WriteSkewCheck

log = logging.getLogger(__name__)


class WritePath:
    """The write path of one database transaction of a request scope.

    Made by the scope before the transaction begins. It ends when the transaction is
    committed, rolled back or lost.
    """

    def __init__(self, scope: WritingScope) -> None:
        self._scope = scope
        self._cache = scope.cache
        self._doubts = Doubts(self._cache.tags, scope.schema)
        self._write_skews = WriteSkewCheck(scope)
        #: The number of the scope's snapshot when the transaction began.
        self.snapshot_number = scope.snapshot_number
        # kept as it is now: a policy that is bound later was not asked about earlier changes, so
        # the transaction evicts it like one that this process does not have
        self._known_tags = self._cache.registry.known_tags
        # True if the tags could not be put in doubt: its places must get a new birth, or the tags
        # lie in the outbox
        self._must_renew = self._has_left = False
        self._connection: ref[Connection] | None = None
        self._view: View | None = None
        self._inquiry: Inquiry | None = None
        # True if an unclear statement was executed since the last question
        self._is_unclear = False
        #: True if an unclear statement was executed since the begin.
        self.was_unclear = False
        # True while an understood statement is executed that may change something
        self._is_changing = False
        # True if an understood statement has changed something, so the transaction has an id;
        # None if that is not known
        self._has_changed: bool | None = False
        # the tables that its statements have changed, and which are locked since; and the number
        # of statements that have changed others
        self._locked: set[str] = set()
        self._steps = 0
        # True if the definitions are not those that the process knows
        self._redefines = False
        #: The tags that the transaction has changed so far.
        self.tags: set[str] = set()
        self._rows = ChangedRows(scope)
        # the tags that it has changed in other tenants, by schema
        self._tags_elsewhere: defaultdict[str, set[str]] = defaultdict(set)
        #: The reason why the transaction may use and store no value; None if it may.
        self.strayed: str | None = None

    def __repr__(self) -> str:
        state = 'committing' if self._doubts.are_sent else 'open'
        return f'<WritePath {state} {self._scope.schema} {sorted(self.tags)}>'

    @property
    def keeps_view(self) -> bool:
        """True if the transaction has one view for all its statements."""
        return self._view is not None and self._view.lasts

    @property
    def on_replica(self) -> bool:
        """True if the transaction reads from a replica."""
        return self._view is not None and self._view.replica

    @property
    def is_gone(self) -> bool:
        """True if the transaction has ended with its connection, and nobody was told."""
        connection = self._open_connection()
        return connection is None or connection.closed or connection.invalidated

    def works_on(self, connections: Collection[Connection]) -> bool:
        return self._open_connection() in connections

    def _open_connection(self) -> Connection | None:
        return self._connection() if self._connection is not None else None

    # how a transaction begins

    def begun(self, connection: Connection, view: View, inquiry: Inquiry) -> None:
        scope = self._scope
        self._connection, self._view = ref(connection), view
        scope.transaction_begun(self)
        try:
            view, self._inquiry = scope.identify(connection, self, view, inquiry)
            self._view, self.strayed = view, view.strayed
            self.snapshot_number = scope.snapshot_number
            if view.lasts:
                # the view was taken between the scope's snapshot and this one
                scope.take_second_snapshot()
            self._write_skews.begun(connection, view)
        except SnapshotConflict:
            self._end()
            raise

    # step 1

    def executing(self, statement: Statement) -> None:
        scope = self._scope
        self.executed(None)  # the last one, if it has failed or was not announced
        if self._redefines and statement.unclear is None:
            statement = Statement(
                unclear='the transaction has changed definitions',
                unrepeatable=statement.unrepeatable,
            )
        if statement.unclear is not None:
            self._is_unclear = self.was_unclear = True
            scope.unclear(self, statement)
            return
        scope.record(statement)
        tables = statement.changes
        self._is_changing = bool(tables or statement.writes_elsewhere)
        if self._is_changing:
            if statement.writes_elsewhere or not tables <= self._locked:
                self._steps += 1
                self._locked |= statement.writes
            self._collect(tables, statement.writes_elsewhere)
            flushed_tables = scope.flushed_on(self._open_connection())
            if flushed_tables is None or not statement.of_objects:
                # no object stands for this change, so no function policy can be asked
                self.changed(self._cache.registry.function_tags)
                self.changed(self._rows.of_statement(statement))
            else:
                flushed_tables.update(tables)
                # no objects stand for the rows that the database changes by itself
                scope.changed_without_objects(statement.cascades)

    def executed(self, rows: int | None) -> None:
        if self._is_changing:
            self._is_changing = False
            if rows:
                self._has_changed = True
                # function policies, and those for rows, are asked at the end of the flush
                registry, scope = self._cache.registry, self._scope
                are_asked = registry.function_tags or registry.rows.of_tables(self._locked)
                if not are_asked and scope.tells_all(self._open_connection()):
                    self.last_flush_ended()
            elif rows is None and not self._has_changed:
                self._has_changed = None

    def set_by(self, setting: str) -> None:
        if self._inquiry is not None and (reason := self._inquiry.follow(setting)) is not None:
            self.strayed = self.strayed or reason
            self._scope.drop_all()

    def take(self) -> None:
        """Take what nobody has announced; on SQLite, what cursors of the driver have done."""
        if self._inquiry is not None and (touched := self._inquiry.take()) is not None:
            self.executing(touched)

    def ask(self) -> None:
        """Ask the database what the unclear statements have changed so far, if there are any.

        :raises TextualControlError: if one of them has ended the transaction.
        """
        if self._inquiry is None:
            return
        self.take()
        if self._is_unclear:
            changes = self._inquiry.changes()
            self._is_unclear = False
            self._learn(changes)
            # one of the statements may have been a rollback to a savepoint
            self._scope.drop(self.tags)

    def _learn(self, changes: Changes) -> None:
        """Collect the tags of what the database has reported."""
        if changes.ended_unseen is not None:
            self.ended_unseen()
            raise TextualControlError(changes.ended_unseen)
        self.strayed = self.strayed or changes.strayed
        told = self._told_rows(changes.triggered_rows)
        if changes.triggered:
            self._triggered(changes.triggered, told)
        if changes.transaction_id is None:
            return
        schema = self._scope.schema
        self._redefines = self._redefines or changes.changed_code or bool(changes.redefined)
        observer = self._cache.observer
        # all tenants read what is known of shared tables, each with its own tag
        redefined = {*changes.redefined, *changes.code_schemas}
        of_all = not redefined.isdisjoint(observer.shared_schemas)
        for place in {*changes.redefined, *(observer.list_schemas() if of_all else ())}:
            self._change_at(place, {CATALOG_TAG})
        if changes.changed_code or changes.renamed_schemas:
            places = {*self._cache.places(schema), *changes.redefined, *changes.code_schemas}
            if of_all or changes.renamed_schemas or not all(map(observer.is_place, places)):
                # which schemas were renamed is not known, and a schema for extensions is in
                # everybody's search path; these are the names before
                places.update(observer.list_schemas())
            for place in places:
                self._change_at(place, {CATALOG_TAG, CODE_TAG})
        if changes.relations:
            tables = {t for each in changes.relations for t in observer.names_of(each, schema)}
            elsewhere = {r for r in changes.relations if not observer.names_of(r, schema)}
            self._collect(tables, elsewhere)
            # no objects stand for these changes
            self.changed_without_objects(tables, told)

    def _told_rows(self, rows: Mapping[Relation, RowTexts]) -> Mapping[str, RowTexts]:
        """Return what triggers tell of changed rows, by the names of the tables."""
        told: dict[str, RowTexts] = {}
        for relation, texts in rows.items():
            for name in self._cache.observer.names_of(relation, self._scope.schema):
                # of two relations of one name, it is not known whose rows these are
                told[name] = {} if name in told else texts
        return told

    def _collect(self, tables: Collection[str], elsewhere: Iterable[Relation]) -> None:
        """Collect the tags of changed tables: the scope's own, shared ones, and others."""
        observer, tags = self._cache.observer, table_tags(tables)
        is_new = not tags <= self.tags
        self.changed(tags)
        for relation in elsewhere:
            place = str(relation.schema)
            self._change_at(place, table_tags(observer.names_of(relation, place)))
        if is_new and observer.on_table_change.receivers:
            observer.on_table_change.send(self._scope.schema, tables=frozenset(tables))

    def _change_at(self, place: str, tags: Collection[str]) -> None:
        """Collect changed tags that belong to a schema."""
        if place == self._scope.schema:
            self.changed(tags)
        else:
            self._tags_elsewhere[place].update(tags)
            self._scope.drop(())  # the scope may have read there

    def _triggered(
        self, tables: Mapping[tuple[str, str], bool], told: Mapping[str, RowTexts]
    ) -> None:
        """Collect the tags of tables that triggers of the database saw change.

        No object stands for a change by a function, a trigger or a cascade, so all function
        policies count as concerned. The same holds for a change that the transaction's
        statements did not show.

        :param tables: by schema and table, True if anything but a statement of the client
            itself has changed the table.
        :param told: what they tell of changed rows, by the table's name.
        """
        observer, schema = self._cache.observer, self._scope.schema
        for (place, table), hidden in tables.items():
            names = observer.names_of(Relation(place, table), schema)
            if hidden or self.tags.isdisjoint(table_tags(names)):
                self._collect(names, () if names else (Relation(place, table),))
                self.changed_without_objects(names, told)

    def changed_without_objects(
        self, tables: Iterable[str], told: Mapping[str, RowTexts] = NOTHING_TOLD
    ) -> None:
        """Collect the tags of all rows of these tables, and those of all function policies, which
        can't be asked.

        :param told: of these rows, by table, which ones triggers saw change.
        """
        self.changed(self._cache.registry.function_tags | self._rows.of_tables(tables, told))

    def rows_changed(
        self, policy: RowPolicy, buckets: Collection[int] | None, loaded: Collection[int] = ()
    ) -> None:
        """Collect the tags of rows that were written for an object; see
        :meth:`.ChangedRows.of_object`."""
        self.changed(self._rows.of_object(policy, buckets, loaded, self.snapshot_number))

    def has_all_rows(self, policy: RowPolicy) -> bool:
        """Return whether all rows of a policy count as changed."""
        return self._rows.has_all(policy)

    def marked(self, tags: Collection[str]) -> None:
        """Collect the tags of changes that are only reported; the transaction has an id."""
        self._has_changed = True
        self.changed(tags)

    def changed(self, tags: Collection[str]) -> None:
        """Collect changed tags, and drop the request tier's values that depend on them."""
        self.tags.update(tags)
        if CODE_TAG in tags:
            self._scope.drop_all()
        else:
            self._scope.drop(tags)

    def has_changed(self, tags: Collection[str]) -> bool:
        """Return whether one of these tags was changed; of a property that was bound since, nobody
        knows."""
        if not self.tags.isdisjoint(tags):
            return True
        if not self.tags or self._known_tags is self._cache.registry.known_tags:
            return False
        return any(tag.startswith(PROPERTY_TAG) and tag not in self._known_tags for tag in tags)

    def watch_reads(self) -> object:
        """Begin to watch what is read; return what :meth:`reads` needs."""
        return self._inquiry.watch_reads() if self._inquiry is not None else None

    def reads(self, since: object) -> Reads:
        """Return what was read since :meth:`watch_reads`, as the database tells it."""
        if self._inquiry is None:
            return Reads(unknowable='its transaction has ended')
        reads = self._inquiry.reads(since)
        if reads.wrote_nothing:
            self._is_unclear = False
        return reads

    def savepoint_lost(self) -> None:
        about_to(Step.SAVEPOINT)
        self._locked.clear()
        # values that were computed since the savepoint may show what is rolled back; the tags
        # stay collected, because one eviction too many is harmless
        self._scope.drop(self.tags)

    # step 2

    def committing(self) -> None:
        if self._inquiry is None:
            raise TextualControlError(
                'The transaction was ended by the text of a statement; there is nothing to commit'
            )
        self.take()
        if not self._has_written(self._inquiry):
            return
        try:
            with of_tags(self._scope.story, 'doubt', self.tags):
                self._doubt(self._inquiry)
        except StoreUnreachable:
            if self._cache.settings.on_outage == 'refuse':
                raise
            self._go_without_store(self._inquiry)

    def _has_written(self, inquiry: Inquiry) -> bool:
        """Return whether the transaction has changed anything that a tag stands for.

        If its statements do not tell, the database is asked.
        """
        has_tags = bool(self.tags or self._tags_elsewhere)
        is_known = self._has_changed is not None and not self._is_changing
        is_hiding = self._may_have_hidden_changes
        if is_hiding or (has_tags and (not is_known or inquiry.has_failed)):
            try:
                changes = inquiry.last_changes(self.was_unclear)
            except DBAPIError as error:
                if self.tags or not has_failed(error):
                    raise  # COMMIT would lose changes without an error
                return False  # the transaction has failed, so COMMIT rolls it back
            self._learn(changes)
            self._has_changed = changes.transaction_id is not None
        return bool(self._has_changed and (self.tags or self._tags_elsewhere))

    def _doubt(self, inquiry: Inquiry) -> None:
        """Put the collected tags in doubt, each at its place.

        If definitions have changed since the snapshot, the statements may have changed more
        than they seemed to when they were executed, so the database is asked. If rows were moved
        after objects were loaded, all rows count as changed.
        """
        known, required = self._definitions(), self._write_skews.required()
        while True:
            try:
                self._doubts.put(self._own_doubt(required, known), inquiry.key)
                break
            except SnapshotConflict as conflict:
                if conflict.tag in required.read or conflict.tag in required.computed:
                    raise
                if moved := self._rows.moved(conflict.tag):
                    self.changed(moved)
                    continue
                if conflict.tag not in known:
                    raise
                self.was_unclear, known = True, {}
                self._learn(inquiry.last_changes(is_unclear=True))
        for place, changed in self._tags_elsewhere.items():
            self._identify(place, inquiry.identity(place))
            self._doubts.put_elsewhere(place, changed, inquiry.key)

    def _go_without_store(self, inquiry: Inquiry) -> None:
        """Let the transaction commit although its tags can't be put in doubt.

        :raises SnapshotConflict: if what it has read from the cache would have to be checked.
        :raises StoreUnreachable: if the tags can't be left in the outbox.
        """
        self._write_skews.refuse_unchecked()
        connection, recovery = self._open_connection(), self._cache.recovery
        assert connection is not None
        assert recovery is not None
        outbox = self._cache.observer.database.outbox_at(connection)
        if self._cache.settings.on_outage == 'outbox' and outbox is not None:
            # the store would have told whether the definitions are still those that the
            # statements were understood by
            self._learn(inquiry.last_changes(is_unclear=True))
            places = self._cache.by_place(self._scope.schema, self.tags)
            recovery.leave(connection, outbox, places, self._known_tags)
            # another tenant's function policies can't be asked about these changes
            recovery.leave(connection, outbox, self._tags_elsewhere, ())
            self._has_left = True
        else:
            self._must_renew = True

    def last_flush_ended(self) -> None:
        """Send the doubt: what the session has flushed is all that it commits.

        It travels while the session ends its flush. What only the database knows is put in doubt
        directly before COMMIT.
        """
        inquiry = self._inquiry
        if inquiry is None or not self._has_changed or not self.tags or inquiry.has_failed:
            return
        if self._may_have_hidden_changes or self._write_skews.must_ask:
            return
        if not self._scope.snapshot().reachable:
            return
        try:
            own = self._own_doubt(self._write_skews.required(), self._definitions())
            self._doubts.send(own, inquiry.key)
        except StoreUnreachable:
            pass  # tried again before COMMIT

    def _identify(self, place: str, identity: str | None) -> None:
        """Find the versions of another tenant, which this process may never have used.

        :param identity: see :meth:`.Inquiry.identity`.
        """
        tags = self._cache.tags
        if identity is not None and tags.identity(place) != identity:
            tags.identify(place, identity, tags.unidentified(place).identities)

    def _definitions(self) -> Stamp:
        """Return the versions of the definitions by which statements were understood."""
        return {} if self.was_unclear else self._scope.snapshot().stamp({CATALOG_TAG})

    def _own_doubt(self, required: Required, known: Stamp) -> OwnDoubt:
        return OwnDoubt(
            frozenset(self.tags),
            self._known_tags,
            {**self._rows.loaded, **known, **required.read},
            required.computed,
            self._steps + self._rows.number_loaded,
        )

    @property
    def _may_have_hidden_changes(self) -> bool:
        """True if the statements may not show all changes."""
        return self.was_unclear or self.may_have_changes()

    def may_have_changes(self) -> bool:
        """Return whether triggers may know of changes that the statements do not show."""
        return self._view is not None and self._view.triggers

    def hold(self, versions: Mapping[str, str]) -> None:
        """Take the versions that the scope has read with a snapshot that ends before this
        transaction."""
        self._write_skews.hold(versions)

    # step 4

    def committed(self) -> None:
        schema, recorder = self._scope.schema, self._cache.recorder
        evicted = self._evicted()
        if recorder is not None and evicted.get(schema):
            recorder(CacheEvent.commit(schema, evicted[schema]))
        if self._scope.story is not None and evicted.get(schema):
            self._scope.story.committed(evicted[schema])
        if self._doubts.tags is not None:
            about_to(Step.PUBLISH)
            try:
                with of_tags(self._scope.story, 'publish', self._doubts.tags):
                    self._doubts.publish()
            except StoreUnreachable:
                # the doubt stays, and the next reader that meets it settles it
                log.warning('%s: committed, but the tag store is lost', schema)
        published = self._published() if self._cache.published.has_receivers else None
        self._recover_later()
        doubted = self._doubts.tags or ()
        self._end()
        # after all that the promise needs: an interrupt in it costs numbers only
        for place, tags in evicted.items():
            own = place == schema
            shared = self._cache.by_place(place, tags) if own else {}
            shared.pop(place, None)
            self._cache.statistics.committed(place, tags, doubted if own else tags, shared)
        if published:
            # last: a receiver may do anything, and take long
            self._cache.published.tell(published)

    def _evicted(self) -> dict[str, Collection[str]]:
        """Return the tags, by tenant, that the commit evicts; none if its statements have changed
        no row."""
        if self._doubts.tags is None and not (self._has_left or self._must_renew):
            return {}
        own = self._doubts.tags or self.tags
        return {**({self._scope.schema: own} if own else {}), **self._tags_elsewhere}

    def _published(self) -> dict[str, Collection[str]]:
        """Return the tags, by place, that have new versions or are still in doubt; those that
        could be neither are told of when they are evicted."""
        if self._doubts.tags is None:
            return {}
        own = self._cache.by_place(self._scope.schema, self._doubts.tags)
        places = {place: frozenset(tags) for place, tags in own.items()}
        for place, tags in self._tags_elsewhere.items():
            places[place] = places.get(place, frozenset()) | tags
        return dict(places)

    def rolled_back(self) -> None:
        if self.tags and self._scope.story is not None:
            self._scope.story.rolled_back(self.tags)
        if self._doubts.are_sent:
            about_to(Step.END_DOUBT)
            try:
                self._doubts.end()
            except StoreUnreachable:
                log.warning('%s: rolled back, but the tag store is lost', self._scope.schema)
        self._end()

    def lost(self) -> None:
        has_ids = self._cache.observer.database.has_transaction_ids
        if self._doubts.tags is not None and not has_ids:
            # SQLite: COMMIT runs in this process and has ended by now; if it committed
            # nothing, the new versions are an eviction too many, which is harmless
            self.committed()
        else:
            about_to(Step.LEAVE_DOUBT)
            self._recover_later()
            self._end()

    def ended_unseen(self) -> None:
        # what it has committed is not known, nor in which schemas
        log.error('%s: a statement has ended the transaction by its text', self._scope.schema)
        observer = self._cache.observer
        places = {*self._cache.places(self._scope.schema), *self._tags_elsewhere}
        try:
            places.update(observer.list_schemas())
            for place, identity in observer.database.identities(places).items():
                self._identify(place, identity)
        except StoreUnreachable:
            pass  # renewed as soon as it can be reached
        except SQLAlchemyError:
            # the database has refused a connection, or is lost
            message = '%s: the tenants are not known, so at most %s are evicted'
            log.exception(message, self._scope.schema, ', '.join(sorted(places)))
        finally:
            self._cache.renew_later(*places)
            self._end()

    def _recover_later(self) -> None:
        """Evict as soon as possible what could not be put in doubt."""
        if self._has_left and self._cache.recovery is not None:
            self._cache.recovery.left()
        if self._must_renew:
            places = self._cache.places(self._scope.schema)
            self._cache.renew_later(*places, *self._tags_elsewhere)

    def _end(self) -> None:
        self._doubts.leave()
        self._inquiry = None
        self._scope.transaction_ended(self)
