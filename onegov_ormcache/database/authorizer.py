"""Lets SQLite tell what each statement reads and changes.

SQLite calls its authorizer when it prepares a statement, for each table that it reads or
changes, also through views, triggers and foreign keys, whoever prepares it. So nothing that a
connection does is unclear. The authorizer is also asked before a transaction ends, and denies
that unless SQLAlchemy ends it. This module does not know what is done with what it tells.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import AttachError, OrmCacheError, TextualControlError
from .notes import Notes, Relation
from .protocols import Changes, Reads, Statement
from .sqlite_columns import SQLiteColumns
from .statements import CONTROL_REFUSED

#: Functions whose results differ each time.
UNREPEATABLE = frozenset(('changes', 'last_insert_rowid', 'random', 'randomblob', 'total_changes'))

#: The begin of the names of SQLite's own tables.
OWN_PREFIX = 'sqlite_'

CHANGING = {sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE}

#: Changes of definitions, with the position of the table's name in the arguments.
REDEFINING = {
    sqlite3.SQLITE_CREATE_TABLE: 0,
    sqlite3.SQLITE_DROP_TABLE: 0,
    sqlite3.SQLITE_CREATE_VIEW: 0,
    sqlite3.SQLITE_DROP_VIEW: 0,
    sqlite3.SQLITE_CREATE_VTABLE: 0,
    sqlite3.SQLITE_DROP_VTABLE: 0,
    sqlite3.SQLITE_ALTER_TABLE: 1,
    sqlite3.SQLITE_CREATE_TRIGGER: 1,
    sqlite3.SQLITE_DROP_TRIGGER: 1,
}

#: The name that SQLite has for temporary tables.
TEMPORARY = 'temp'

NamesOf = Callable[[Relation, str], frozenset[str]]


class Authorizer:
    """Notes what one connection does; made when the driver connects, lives as long.

    :param schema: the tenant, whose file the connection has opened.
    :param names_of: returns the metadata's names of a relation in the eyes of a tenant.
    """

    def __init__(self, schema: str, names_of: NamesOf) -> None:
        self.schema = schema
        self._names_of = names_of
        #: The columns of the connection's tables.
        self.columns = SQLiteColumns()
        #: True while SQLAlchemy begins or ends a transaction.
        self.may_end = False
        #: True while SQLAlchemy executes a statement.
        self.announced = False
        #: True if cursors of the driver's own had changed something before that, and nobody had
        #: taken it.
        self.is_mixed = False
        #: Called when a cursor of the driver's own changes something; None: call nothing.
        self.report: Callable[[], None] | None = None
        #: The error that says why the last denied statement was denied; None if none was.
        self.denied: OrmCacheError | None = None
        # temporary tables stay until the connection is closed
        self._temporary: set[str] = set()
        #: True if the connection was rolled back to a savepoint since the last look.
        self.lost_savepoint = False
        self._forget()

    def _forget(self) -> None:
        self._reads: set[Relation] = set()
        self._writes: set[Relation] = set()
        self._functions: set[str] = set()
        self._read_temporary = False
        # each change that SQLite has asked for: its action, table, column and trigger
        self._asked: set[tuple[int, str, str, str | None]] = set()
        # the tables of those that it has asked for again
        self._repeated: set[str] = set()

    def authorize(
        self, action: int, first: str | None, second: str | None, database: str | None, by: Any
    ) -> int:
        """Note one action, and return whether it is allowed; SQLite calls it."""
        if action == sqlite3.SQLITE_READ:
            self._note(self._reads, first, database)
        elif action in CHANGING:
            self._note(self._writes, first, database)
            change = action, str(first), str(second), by
            if change in self._asked:
                self._repeated.add(str(first))
            self._asked.add(change)
            if self.report is not None and not self.announced:
                self.report()
        elif action in REDEFINING:
            # ALTER TABLE has the database's name at another place than the others
            altered = action == sqlite3.SQLITE_ALTER_TABLE
            self._note(
                self._writes, (first, second)[REDEFINING[action]], first if altered else database
            )
        elif action == sqlite3.SQLITE_CREATE_TEMP_TABLE:
            self._temporary.add(str(first).lower())
        elif action == sqlite3.SQLITE_FUNCTION:
            self._functions.add(str(second).lower())
        elif action == sqlite3.SQLITE_SAVEPOINT:
            if first == 'ROLLBACK':
                self.lost_savepoint = True
                if self.report is not None and not self.announced:
                    self.report()
        elif action == sqlite3.SQLITE_TRANSACTION and not self.may_end:
            self.denied = TextualControlError(CONTROL_REFUSED)
            return sqlite3.SQLITE_DENY
        elif action == sqlite3.SQLITE_ATTACH:
            self.denied = AttachError(
                "A statement attaches another database file; a tenant's connections work with "
                "the tenant's own file alone: open a scope of the other tenant"
            )
            return sqlite3.SQLITE_DENY
        return sqlite3.SQLITE_OK

    def _note(self, relations: set[Relation], name: str | None, database: str | None) -> None:
        name = str(name)
        # for count(*), SQLite does not tell the database
        if database == TEMPORARY or (database is None and name.lower() in self._temporary):
            self._read_temporary = self._read_temporary or relations is self._reads
        elif not name.lower().startswith(OWN_PREFIX):
            relations.add(Relation(self.schema, name))

    def announce(self) -> None:
        """Tell that SQLAlchemy is about to execute a statement."""
        self.announced = True
        self.is_mixed = bool(self._writes)

    def take(self, notes: Notes | None = None, of_objects: bool = False) -> Statement | None:
        """Return what was noted since the last call; None if it was nothing.

        :param notes: those of the compiler, if one statement was executed since the last call.
        :param of_objects: see :attr:`.Statement.of_objects`.
        """
        if not (self._reads or self._writes or self._functions or self._read_temporary):
            return None
        own = self._named(notes.writes if notes is not None else ())
        writes = self._named(self._writes)
        further = self._further(notes)
        unrepeatable = None
        if called := self._functions & UNREPEATABLE:
            unrepeatable = f'it called {min(called)}(), whose result differs each time'
        elif self._read_temporary:
            unrepeatable = 'it read a temporary table'
        statement = Statement(
            reads=self._named(self._reads),
            writes=writes & own,
            cascades=(writes - own) | (writes & self._named(further)) if further else writes - own,
            unrepeatable=unrepeatable,
            of_objects=of_objects,
        )
        self._forget()
        return statement

    def _further(self, notes: Notes | None) -> set[Relation]:
        """Return the relations, among those that the statement itself changes, of which the
        database has changed further rows.

        SQLite does not say that a foreign key makes a change. But it asks once for each kind of
        change that the statement makes by itself, so any other question is for a foreign key.
        """
        found = set(self._repeated)
        if notes is not None and (len(self._asked) > 1 or any(by for *_, by in self._asked)):
            deletes = {each.name.lower() for each in notes.deletes}
            updates = {(each.name.lower(), column.lower()) for each, column in notes.updates}
            for action, table, column, by in self._asked:
                name = table.lower()
                is_own = by is None and (
                    (action == sqlite3.SQLITE_DELETE and name in deletes)
                    or (action == sqlite3.SQLITE_UPDATE and (name, column.lower()) in updates)
                    or action == sqlite3.SQLITE_INSERT
                )
                if not is_own:
                    found.add(table)
        return {Relation(None, name) for name in found}

    def _named(self, relations: Iterable[Relation]) -> frozenset[str]:
        tenant = self.schema
        placed = (Relation(tenant, relation.name) for relation in relations)
        return frozenset().union(*(self._names_of(relation, tenant) for relation in placed))


class SQLiteInquiry:
    """Asks the authorizer of a transaction's connection; see :class:`~.protocols.Inquiry`."""

    key = ''
    has_failed = False

    def __init__(self, authorizer: Authorizer) -> None:
        self._authorizer = authorizer

    def take(self) -> Statement | None:
        return self._authorizer.take()

    def identity(self, place: str) -> None:
        return None

    def follow(self, setting: str) -> None:
        return None

    def changes(self) -> Changes:
        return Changes('')

    def last_changes(self, is_unclear: bool) -> Changes:
        return Changes('')

    def watch_reads(self) -> None:
        pass

    def reads(self, since: object) -> Reads:
        return Reads()


class AuthorizedCursor(sqlite3.Cursor):
    """A cursor that says why its authorizer has denied a statement."""

    connection: AuthorizedConnection

    def execute(self, *arguments: Any) -> Any:
        with self.connection.explained():
            return super().execute(*arguments)

    def executemany(self, *arguments: Any) -> Any:
        with self.connection.explained():
            return super().executemany(*arguments)

    def executescript(self, *arguments: Any) -> Any:
        with self.connection.explained():
            return super().executescript(*arguments)


class AuthorizedConnection(sqlite3.Connection):
    """A connection of the driver that has an authorizer; engines make their connections so."""

    authorizer: Authorizer | None = None

    def cursor(self, *arguments: Any, **options: Any) -> Any:
        if arguments or options:
            return super().cursor(*arguments, **options)
        return super().cursor(AuthorizedCursor)

    def commit(self) -> None:
        with self.explained():
            super().commit()

    def rollback(self) -> None:
        with self.explained():
            super().rollback()

    def blobopen(self, table: str, *arguments: Any, **options: Any) -> Any:
        # SQLite does not ask the authorizer about these
        if self.authorizer is not None:
            database = options.get('name', 'main')
            self.authorizer.authorize(sqlite3.SQLITE_READ, table, None, database, None)
            if not options.get('readonly'):
                self.authorizer.authorize(sqlite3.SQLITE_UPDATE, table, None, database, None)
        return super().blobopen(table, *arguments, **options)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Raise the package's own error in the block, if the authorizer denies a statement."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            denied = self.authorizer.denied if self.authorizer is not None else None
            if denied is None or error.sqlite_errorcode != sqlite3.SQLITE_AUTH:
                raise
            raise denied from error


def authorize(connection: AuthorizedConnection, schema: str, names_of: NamesOf) -> None:
    """Give a new connection an authorizer."""
    connection.authorizer = Authorizer(schema, names_of)
    connection.set_authorizer(connection.authorizer.authorize)


def authorizer_of(connection: Any) -> Authorizer:
    """Return the authorizer of a driver's connection."""
    authorizer: Authorizer = connection.authorizer
    return authorizer


@contextmanager
def ending(connection: Any) -> Iterator[None]:
    """Let the connection begin or end a transaction while the block runs."""
    authorizer = connection.authorizer
    if authorizer is None:  # SQLAlchemy's first connection is rolled back before it is ready
        yield
        return
    authorizer.may_end = True
    try:
        yield
    finally:
        authorizer.may_end = False
