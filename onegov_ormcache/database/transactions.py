"""What becomes of each database transaction, told connection by connection.

A session can't tell: a session over two connections whose second COMMIT fails
reports a rollback, though the first is durable, and an interrupt between
sending a COMMIT and hearing of it looks like a rollback too. So this module
listens to the engine, and looks around the dialect's own COMMIT.

It does nothing with what it hears: a :class:`Scope` gives it a :class:`Listener` for each
transaction that begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary, ref

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExecutionContext

from ..errors import AutocommitError, OutsideScopeError
from ..steps import Step, about_to
from .names import INTERNAL_OPTION, SCOPE_OPTION
from .statements import Statement, StatementAnalyzer

#: The innermost scope that is open; connections that do not name one belong to it,
#: or to the nearest one outside of it that has their session manager.
current_scope: ContextVar[Any] = ContextVar(SCOPE_OPTION, default=None)


class View(Protocol):
    """What a transaction sees of the database."""

    @property
    def lasts(self) -> bool:
        """True if one view serves all its statements (REPEATABLE READ and above)."""

    @property
    def serializable(self) -> bool:
        """True under SERIALIZABLE."""

    @property
    def replica(self) -> bool:
        """True if the database is a replica, and may lag behind."""

    @property
    def triggers(self) -> bool:
        """True if triggers of the database see what is changed, whoever changes it."""


class Written(NamedTuple):
    """What a transaction has written, as the database tells before COMMIT."""

    #: '' if the database has no ids; None if the transaction wrote nothing.
    transaction_id: str | None
    #: The tables that triggers saw change, each with its schema; True if anything but a
    #: statement of the client itself has changed one: a function, a trigger, a cascade.
    tables: Mapping[tuple[str, str], bool]


class Listener(Protocol):
    """Hears of one transaction, from its begin to its end."""

    def begun(self, connection: Connection, view: View) -> None:
        """The view is taken, the tenant's search path set, nothing else was executed."""

    def executing(self, statement: Statement) -> None:
        """A statement is about to be executed."""

    def savepoint_lost(self) -> None:
        """What was done since a savepoint is undone."""

    def triggered(self, tables: Mapping[tuple[str, str], bool]) -> None:
        """Triggers of the database saw these tables change; see :class:`Written`."""

    def committing(self, transaction_id: Callable[[], str | None]) -> None:
        """COMMIT (or PREPARE) is next; an error raised here prevents it.

        :param transaction_id: asks the database for the transaction's id: ''
            if it has none, None if the transaction wrote nothing. Before it
            answers, :meth:`triggered` is called with what triggers saw.
        """

    def committed(self) -> None:
        """COMMIT has returned."""

    def rolled_back(self) -> None:
        """It is known that nothing of the transaction remains."""

    def lost(self) -> None:
        """Whether the transaction was committed is not known."""


class Scope(Protocol):
    """Where transactions belong."""

    schema: str

    def transaction(self) -> Listener:
        """Called before a transaction takes its view."""


class Dialect(Protocol):
    """The part of a database that transactions need; see ``postgres.py`` and ``sqlite.py``."""

    def in_transaction(self, dbapi_connection: Any) -> bool:
        """Whether a transaction is open, whatever SQLAlchemy thinks."""

    def begin(self, connection: Connection, schema: str) -> View:
        """Bind the transaction to the schema, and take its view."""

    def written(self, connection: Connection) -> Written:
        """What the transaction has written."""

    def autocommits(self, connection: Connection) -> bool:
        """Whether each statement of the connection commits itself."""

    def refused(self, error: BaseException) -> bool:
        """Whether this error at COMMIT tells that nothing was committed."""


class ReplacedMethods(NamedTuple):
    """The methods of an engine's dialect that a :class:`Watch` has put its own around."""

    do_commit: Callable[..., None]
    do_begin_twophase: Callable[..., None]
    do_commit_twophase: Callable[..., None]
    do_rollback_twophase: Callable[..., None]


class Watch:
    """Listens to one engine, from its making to its disposal."""

    def __init__(
        self,
        engine: Engine,
        dialect: Dialect,
        analyzer: StatementAnalyzer,
        find_scope: Callable[[], Scope | None],
    ) -> None:
        self._find_scope = find_scope
        self._dialect = dialect
        self._analyzer = analyzer
        self._listeners: WeakKeyDictionary[Connection, Listener] = WeakKeyDictionary()
        # COMMIT is seen with what the pool made for this checkout, and not with the
        # connection; nothing here outlives the checkout, so nothing leaks to the next user
        self._checkouts: WeakKeyDictionary[Any, ref[Connection]] = WeakKeyDictionary()
        event.listen(engine, 'begin', self._begin)
        event.listen(engine, 'before_cursor_execute', self._execute)
        event.listen(engine, 'rollback_savepoint', self._rollback_savepoint)
        event.listen(engine, 'rollback', self._rollback)
        event.listen(engine, 'commit', self._commit)
        event.listen(engine, 'prepare_twophase', self._prepare)
        event.listen(engine, 'rollback_twophase', self._rollback_twophase)
        event.listen(engine, 'reset', self._reset)
        # between the DBAPI's commit and the sessions' after_commit no event fires, and
        # for a two-phase begin none fires late enough: so look around the dialect's own
        names = ReplacedMethods._fields
        self._original = ReplacedMethods(*(getattr(engine.dialect, name) for name in names))
        for name in names:
            setattr(engine.dialect, name, getattr(self, name))

    def _begin(self, connection: Connection) -> None:
        with _closing_on_error(connection):
            if scope := self._scope(connection):
                self._abandon(connection)
                listener = scope.transaction()
                self._watch(connection, scope, listener)

    def do_begin_twophase(self, connection: Connection, xid: Any) -> None:
        with _closing_on_error(connection):
            scope = self._scope(connection)
            listener = scope.transaction() if scope else None
            self._original.do_begin_twophase(connection, xid)
            if scope and listener:
                self._watch(connection, scope, listener)

    def _scope(self, connection: Connection) -> Scope | None:
        """The scope that the connection belongs to; None for the package's own."""
        options = connection.get_execution_options()
        if options.get(INTERNAL_OPTION):
            return None
        scope: Scope | None = options.get(SCOPE_OPTION) or self._find_scope()
        if scope is None:
            raise OutsideScopeError(
                'A connection was used outside of a request scope, so it has no tenant; '
                'open a scope: with app.request_scope(schema): ...'
            )
        if self._dialect.autocommits(connection):
            raise AutocommitError(
                'A connection in AUTOCOMMIT can have no search path of its own, and its '
                'changes are seen before anybody can be told of them; remove the isolation '
                'level AUTOCOMMIT from the engine, connection or session'
            )
        return scope

    def _watch(self, connection: Connection, scope: Scope, listener: Listener) -> None:
        about_to(Step.VIEW)
        view = self._dialect.begin(connection, scope.schema)
        self._listeners[connection] = listener
        self._checkouts[connection.connection] = ref(connection)
        listener.begun(connection, view)

    def _execute(
        self,
        connection: Connection,
        cursor: object,
        statement: str,
        parameters: object,
        context: ExecutionContext | None,
        executemany: bool,
    ) -> None:
        listener = self._listeners.get(connection)
        if listener is None:
            return
        if context is not None and context.execution_options.get(INTERNAL_OPTION):
            return
        listener.executing(self._analyzer.analyze(statement, context))

    def _rollback_savepoint(self, connection: Connection, name: str, context: None) -> None:
        if listener := self._listeners.get(connection):
            listener.savepoint_lost()

    def _commit(self, connection: Connection) -> None:
        if listener := self._listeners.get(connection):
            try:
                listener.committing(lambda: self._transaction_id(connection, listener))
            except BaseException:
                self._abandon(connection)
                raise

    def _transaction_id(self, connection: Connection, listener: Listener) -> str | None:
        written = self._dialect.written(connection)
        if written.tables:
            listener.triggered(written.tables)
        return written.transaction_id

    def _prepare(self, connection: Connection, xid: object) -> None:
        # after an error here, unlike in a commit, SQLAlchemy does roll back
        if listener := self._listeners.get(connection):
            listener.committing(lambda: self._transaction_id(connection, listener))

    def _rollback(self, connection: Connection) -> None:
        # if a COMMIT was sent, its outcome was told already and the listener is gone
        if listener := self._listeners.pop(connection, None):
            listener.rolled_back()

    def _rollback_twophase(self, connection: Connection, xid: object, is_prepared: bool) -> None:
        # there is no connection left to roll back on, and PREPARE may have been sent
        if connection.invalidated and (listener := self._listeners.pop(connection, None)):
            listener.lost()

    def _abandon(self, connection: Connection) -> None:
        """Roll back what SQLAlchemy leaves open when a listener prevents a COMMIT.

        It takes the transaction for ended: the next user of the connection would
        commit it with its own.
        """
        if not connection.invalidated:
            checkout = connection.connection
            try:
                if self._dialect.in_transaction(checkout.dbapi_connection):
                    checkout.rollback()
            except Exception as error:
                connection.invalidate(error)
        if listener := self._listeners.pop(connection, None):
            listener.rolled_back()

    def _reset(self, dbapi_connection: Any, record: object, state: object) -> None:
        """The same, if it was somebody else's listener, when the pool gets it back."""
        # the list of references is safe to walk beside other threads, the items are not
        for checkout in [reference() for reference in self._checkouts.keyrefs()]:
            if checkout is not None and checkout.dbapi_connection is dbapi_connection:
                connection = self._checkouts.pop(checkout)()
                listener = self._listeners.pop(connection, None) if connection else None
                try:
                    if self._dialect.in_transaction(dbapi_connection):
                        dbapi_connection.rollback()
                finally:
                    if listener:
                        listener.rolled_back()

    def do_commit(self, checkout: Any) -> None:
        connection = self._checkouts.pop(checkout, lambda: None)()
        listener = self._listeners.pop(connection, None) if connection else None
        self._tell(listener, lambda: self._original.do_commit(checkout))

    def do_commit_twophase(
        self, connection: Connection, xid: Any, is_prepared: bool = True, recover: bool = False
    ) -> None:
        if recover:
            commit = self._original.do_commit_twophase
            self._recover(connection, lambda: commit(connection, xid, True, True))
            return
        if not is_prepared and (listener := self._listeners.get(connection)):
            try:
                listener.committing(lambda: self._transaction_id(connection, listener))
            except BaseException:
                self.do_rollback_twophase(connection, xid, is_prepared=False)
                raise
        try:
            self._tell(
                self._listeners.pop(connection, None),
                lambda: self._original.do_commit_twophase(connection, xid, is_prepared, False),
                # that there is no such transaction any more tells that another has ended it
                may_be_refused=not is_prepared,
            )
        except BaseException as error:
            connection.invalidate(error)  # its driver does not get out of the transaction
            raise

    def do_rollback_twophase(
        self, connection: Connection, xid: Any, is_prepared: bool = True, recover: bool = False
    ) -> None:
        if recover:
            roll_back = self._original.do_rollback_twophase
            self._recover(connection, lambda: roll_back(connection, xid, True, True))
            return
        listener = self._listeners.pop(connection, None)
        try:
            self._original.do_rollback_twophase(connection, xid, is_prepared, recover)
        except BaseException as error:
            connection.invalidate(error)
            if listener:
                listener.lost()  # what was prepared may still be committed
            raise
        if listener:
            listener.rolled_back()

    def _recover(self, connection: Connection, end: Callable[[], None]) -> None:
        """End what another connection has prepared; the driver first rolls back what this
        one does, and SQLAlchemy goes on without a begin."""
        self._rollback(connection)
        end()
        if connection.in_transaction():
            self._begin(connection)

    def _tell(
        self, listener: Listener | None, commit: Callable[[], None], may_be_refused: bool = True
    ) -> None:
        """Run a COMMIT and tell its outcome."""
        try:
            if listener:
                about_to(Step.COMMIT)
            commit()
        except BaseException as error:
            if listener and may_be_refused and self._dialect.refused(error):
                listener.rolled_back()
            elif listener:
                listener.lost()
            raise
        if listener:
            listener.committed()


@contextmanager
def _closing_on_error(connection: Connection) -> Iterator[None]:
    """Close a connection whose begin failed: SQLAlchemy would use it without another one."""
    try:
        yield
    except BaseException:
        connection.close()
        raise
