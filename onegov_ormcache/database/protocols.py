"""The interfaces between transactions, those who listen to them, and the kinds of databases.

:mod:`.transactions` is written against them. Listeners and their scopes are defined elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias

from frozendict import frozendict
from sqlalchemy import Connection
from sqlalchemy.engine import ExecutionContext

from .notes import Relation

NO_NAMES: frozenset[str] = frozenset()
NO_RELATIONS: frozenset[Relation] = frozenset()

#: Rows of a table, by the names of columns in the database: each of these rows has one of the
#: values in the column. A column that is not in it may have any.
Selection: TypeAlias = Mapping[str, tuple[object, ...]]

NO_ROWS: Mapping[str, tuple[Selection, ...]] = frozendict()


class Statement(NamedTuple):
    """What one execution of SQL touches.

    Tables of the scope's own schema, and shared ones, have the names that the metadata gives
    them; a table that the metadata does not have is named as in the database. Relations that
    lie elsewhere are listed apart.
    """

    #: The tables that it reads.
    reads: frozenset[str] = NO_NAMES
    #: The tables in which it inserts, updates or deletes rows by itself.
    writes: frozenset[str] = NO_NAMES
    #: The tables that the database changes beside them, by foreign keys or triggers, and the
    #: relations that show their rows: views and partitioned tables. A table that it writes is
    #: one of them if the database may change further rows of it.
    cascades: frozenset[str] = NO_NAMES
    #: The relations of other schemas that it reads.
    reads_elsewhere: frozenset[Relation] = NO_RELATIONS
    #: The relations of other schemas that it changes, by itself or not.
    writes_elsewhere: frozenset[Relation] = NO_RELATIONS
    #: The reason why nobody knows yet what it touches; the rest is empty then. None if the
    #: rest is all that it touches.
    unclear: str | None = None
    #: The reason why the same statement may return something else the next time although
    #: nothing has changed, or why it must be executed each time; None if there is none.
    unrepeatable: str | None = None
    #: True if a flush executed it for objects of the session. False inside of a flush for
    #: statements of event listeners, and those on secondary tables.
    of_objects: bool = False
    #: The rows that it changes by itself, by table of :attr:`writes`, for what was asked by
    #: :meth:`.Observer.watch_rows`: each is in one of the selections before and after, by the
    #: values that the statement was given. Nothing is known of a table that is not in it. Empty
    #: for statements that a flush executes for objects, which tell more.
    rows: Mapping[str, tuple[Selection, ...]] = NO_ROWS

    @property
    def changes(self) -> frozenset[str]:
        """All tables that it changes, by itself or not."""
        return self.writes | self.cascades if self.cascades else self.writes


#: What triggers tell of changed rows of a table: the values that they have, and had before, by
#: column, as PostgreSQL's texts. Those of a column that is missing are not known.
RowTexts: TypeAlias = Mapping[str, frozenset[str | None]]


class Changes(NamedTuple):
    """What a transaction has changed so far, as the database reports it."""

    #: None if the transaction wrote nothing; '' if the database has no transaction ids.
    transaction_id: str | None
    #: The relations that it may have changed; empty if nobody had to ask for them.
    relations: frozenset[Relation] = NO_RELATIONS
    #: The schemas in which it may have changed the definition of a table.
    redefined: frozenset[str] = NO_NAMES
    #: True if it has changed views, functions, types, row security or the names of schemas.
    changed_code: bool = False
    #: The schemas in which it has made or replaced functions or types.
    code_schemas: frozenset[str] = NO_NAMES
    #: True if it may have renamed schemas.
    renamed_schemas: bool = False
    #: The tables that triggers saw change, by schema and name. True if any of a table's
    #: changes was made by a function, a trigger or a cascade, and not by a statement of the
    #: client itself.
    triggered: Mapping[tuple[str, str], bool] = {}
    #: What triggers tell of the rows of :attr:`relations`, if they tell all.
    triggered_rows: Mapping[Relation, RowTexts] = {}
    #: The reason why the transaction is not the one that began; None if it is.
    ended_unseen: str | None = None
    #: The reason why statements may have another meaning than at the begin (another search
    #: path, time zone or role); None if there is none.
    strayed: str | None = None


class Reads(NamedTuple):
    """What a transaction has read since :meth:`Inquiry.watch_reads`, as the database reports
    it. Relations without counters, such as views, may have been read before."""

    relations: frozenset[Relation] = NO_RELATIONS
    #: The reason why values that depend on it can't be known to be valid; None if there is
    #: none.
    unknowable: str | None = None
    #: True if rows were changed since then.
    wrote: bool = False
    #: True if the transaction has written nothing at all, and is still the one that began.
    wrote_nothing: bool = False


class View(Protocol):
    """A transaction's view of the database, described when the transaction began."""

    @property
    def lasts(self) -> bool:
        """True if all statements have the same view (REPEATABLE READ and SERIALIZABLE)."""

    @property
    def serializable(self) -> bool:
        """True under SERIALIZABLE."""

    @property
    def replica(self) -> bool:
        """True if the database is a replica, and may lag behind."""

    @property
    def triggers(self) -> bool:
        """True if the package's triggers see what the transaction changes, by any means."""

    @property
    def strayed(self) -> str | None:
        """The reason why the transaction's settings are not those of all others; None if they
        are."""

    @property
    def identities(self) -> Mapping[str, str]:
        """The identities of the tenant's schema and of those of shared tables, by schema; see
        :mod:`.identity`."""


class Inquiry(Protocol):
    """Asks the database about one transaction; made when the transaction begins."""

    #: By which the oracle of another transaction tells whether this one has ended; '' if the
    #: database knows no keys.
    key: str

    @property
    def has_failed(self) -> bool:
        """True if a statement has failed, and its COMMIT would roll back. Takes no round trip."""

    def take(self) -> Statement | None:
        """Return what was touched since the last call by statements that nobody announced.

        :return: None if it was nothing, or if only :meth:`changes` can tell.
        """

    def identity(self, place: str) -> str | None:
        """Return the identity of a schema; None if no other schema can be changed."""

    def follow(self, setting: str) -> str | None:
        """Learn what a SET has changed.

        :param setting: its text.
        :return: why the transaction has strayed; None if it has not.
        """

    def changes(self) -> Changes:
        """Return what the transaction has changed so far."""

    def last_changes(self, is_unclear: bool) -> Changes:
        """Return what the transaction has changed; called directly before COMMIT.

        :param is_unclear: True if the transaction has executed an unclear statement; otherwise
            its relations are not asked for.
        """

    def watch_reads(self) -> object:
        """Begin to watch what is read; called before an unclear statement is executed.

        :return: what :meth:`reads` needs.
        """

    def reads(self, since: object) -> Reads:
        """Return what was read since a call of :meth:`watch_reads`.

        :param since: what that call has returned.
        """


class Listener(Protocol):
    """Is told of one transaction, from its begin to its end; made by a :class:`Scope`."""

    def begun(self, connection: Connection, view: View, inquiry: Inquiry) -> None:
        """Called when the transaction has its search path and its view, before anything else
        is executed."""

    def executing(self, statement: Statement) -> None:
        """Called before a statement is executed; on SQLite, after it."""

    def executed(self, rows: int | None) -> None:
        """Called after the statement that :meth:`executing` was last called with.

        Not called after one that has failed, or that the driver's own cursor executed.

        :param rows: the number of rows that it has changed; None if that is not known.
        """

    def set_by(self, setting: str) -> None:
        """Called when a cursor of the driver's own has executed a SET, with its text."""

    def savepoint_lost(self) -> None:
        """Called when the transaction is rolled back to a savepoint."""

    def committing(self) -> None:
        """Called directly before COMMIT (or PREPARE); an error raised here prevents it."""

    def committed(self) -> None:
        """Called when COMMIT has returned."""

    def rolled_back(self) -> None:
        """Called when it is certain that nothing of the transaction was committed."""

    def lost(self) -> None:
        """Called when it is not known whether the transaction was committed."""

    def ended_unseen(self) -> None:
        """Called when a statement or the driver has ended the transaction, nobody knows how."""


class Scope(Protocol):
    """The owner of transactions, which all work in its schema."""

    schema: str

    def transaction(self, connection: Connection) -> Listener:
        """Return a listener for a new transaction of the connection.

        Called before the transaction begins and takes its view. The connection may be used,
        and must be left outside of a transaction.
        """

    @property
    def was_unclear(self) -> bool:
        """True if a transaction may see definitions that it has changed itself."""

    def definitions(self) -> Hashable:
        """Return a token that changes when somebody changes the definitions of tables."""


class Dialect(Protocol):
    """The part of a database that a :class:`Watch` uses; see ``postgres.py``, ``sqlite.py``."""

    #: True if an understood statement that has changed no row, as the driver counts, has changed
    #: nothing at all. SQLite does not count what triggers change, nor rows that were not fetched.
    counts_all: bool

    def in_transaction(self, dbapi_connection: Any) -> bool:
        """Return whether the driver says that its connection is in a transaction."""

    def has_ended(self, dbapi_connection: Any) -> bool:
        """Return whether the transaction that was begun last has ended, by whatever means."""

    def begin(self, connection: Connection, scope: Scope) -> tuple[View, Inquiry]:
        """Bind the transaction to the scope's schema, and take its view."""

    def begin_again(
        self, connection: Connection, scope: Scope
    ) -> tuple[View, Inquiry] | None:
        """Begin a transaction that has done nothing yet a second time, with a new view.

        :return: None if that is not possible.
        """

    def executing(
        self, connection: Connection, scope: Scope, sql: str, context: ExecutionContext | None
    ) -> Statement | None:
        """Return what the statement touches that is about to be executed.

        :return: None if :meth:`executed` will tell.
        :raises TextualControlError: if its text ends the transaction.
        """

    def executed(
        self, connection: Connection, context: ExecutionContext | None
    ) -> Statement | None:
        """Return what the statement touched that was just executed.

        :return: None if :meth:`executing` has told.
        """

    def lost_savepoint(self, dbapi_connection: Any) -> bool:
        """Return whether the driver's connection has been rolled back to a savepoint since the
        last call, and nobody else can tell."""

    def autocommits(self, connection: Connection) -> bool:
        """Return whether each statement of the connection commits itself."""

    def refused(self, error: BaseException) -> bool:
        """Return whether an error at COMMIT proves that nothing was committed."""

    def report_to(
        self,
        dbapi_connection: Any,
        report: Callable[[], None] | None,
        setting: Callable[[str], None] | None = None,
    ) -> None:
        """Call ``report`` before each statement of the driver's own cursors; None: do not.

        :param setting: may be called instead, after a SET, with its text.
        """

    def ending(self, dbapi_connection: Any) -> Any:
        """Return a context manager in which the driver may end its transaction."""
