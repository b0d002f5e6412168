"""A scope that does nothing but write down what it hears, and tables to work on.

Nothing of a cache is in here: the database layer is tested without one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from onegov_ormcache.database.protocols import Changes, Inquiry, Statement, View
from onegov_ormcache.database.session_manager import SessionManager
from onegov_ormcache.database.sessions import RunSession, TenantSession
from onegov_ormcache.database.transactions import Watch, current_scope


class Base(DeclarativeBase):
    """The tables of these tests."""


class Item(Base):
    """Anything with a name of its own."""

    __tablename__ = 'items'

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)


class Part(Base):
    """Refers to an item; the database checks at COMMIT that the item exists."""

    __tablename__ = 'parts'

    id: Mapped[int] = mapped_column(primary_key=True)
    item_id: Mapped[int] = mapped_column(
        ForeignKey('items.id', deferrable=True, initially='DEFERRED')
    )


class FakeListener:
    """Writes down what it hears of one transaction."""

    def __init__(self, scope: FakeScope) -> None:
        self._scope = scope
        self.calls: list[str] = []
        self.statements: list[Statement] = []
        self.rows: list[int | None] = []
        self.transaction_ids: list[str | None] = []
        self.changes: list[Changes] = []
        self.view: View | None = None
        self.inquiry: Inquiry | None = None

    def _hear(self, call: str) -> None:
        self.calls.append(call)
        if hook := self._scope.hooks.get(call):
            hook()

    def begun(self, connection: Connection, view: View, inquiry: Inquiry) -> None:
        self.view = view
        self.inquiry = inquiry
        self._scope.connections.append(connection)
        self._hear('begun')

    def executing(self, statement: Statement) -> None:
        self.statements.append(statement)
        self._hear('executing')

    def executed(self, rows: int | None) -> None:
        self.rows.append(rows)

    def set_by(self, setting: str) -> None:
        self._hear('set')

    def savepoint_lost(self) -> None:
        self._hear('savepoint_lost')

    def committing(self) -> None:
        assert self.inquiry is not None
        is_unclear = any(statement.unclear for statement in self.statements)
        self.changes.append(self.inquiry.last_changes(is_unclear))
        self.transaction_ids.append(self.changes[-1].transaction_id)
        self._hear('committing')

    def committed(self) -> None:
        self._hear('committed')

    def rolled_back(self) -> None:
        self._hear('rolled_back')

    def lost(self) -> None:
        self._hear('lost')

    def ended_unseen(self) -> None:
        self._hear('ended_unseen')


class FakeScope:
    """A scope with a session, as the session manager wants one.

    `hooks` maps the name of a listener's method to a function, which is called when a
    listener of this scope hears that call; an error that it raises is not caught.
    """

    def __init__(self, manager: SessionManager, schema: str) -> None:
        self.session_manager = manager
        self.observer = manager.observer
        self.schema = schema
        self.outer: Any = None
        self.was_unclear = False
        self.hooks: dict[str, Callable[[], object]] = {}
        self.listeners: list[FakeListener] = []
        self.connections: list[Connection] = []
        self.tables_without_objects: list[set[str]] = []
        self.ends = 0
        self.last_flushes = 0
        self.run_sessions: list[RunSession] = []
        self.taints: list[str] = []
        self.uses = 0
        self._session: TenantSession | None = None

    @property
    def flushed_tables(self) -> set[str] | None:
        """The tables that the present flush of the innermost session has changed."""
        session = self.run_sessions[-1] if self.run_sessions else self._session
        return None if session is None else session.flushed_tables

    @property
    def heard(self) -> list[list[str]]:
        """The calls that each transaction's listener heard, without the statements."""
        return [[c for c in one.calls if c != 'executing'] for one in self.listeners]

    @property
    def has_session(self) -> bool:
        return self._session is not None

    def session(self) -> TenantSession:
        if self._session is None:
            self._session = self.session_manager.create_session(self)
        return self._session

    @contextmanager
    def run(self) -> Iterator[RunSession]:
        """Open a run session while the block runs."""
        session = self.session_manager.observer.create_run_session(self.session())
        self.run_sessions.append(session)
        try:
            yield session
        finally:
            self.run_sessions.remove(session)
            session.close()

    def transaction(self, connection: Connection) -> FakeListener:
        listener = FakeListener(self)
        self.listeners.append(listener)
        return listener

    def changed_without_objects(self, tables: Collection[str]) -> None:
        self.tables_without_objects.append(set(tables))

    def related(self, tables: Collection[str]) -> None:
        """A flush has changed relationships."""

    def definitions(self) -> str:
        """Nobody else changes definitions."""
        return ''
    def session_used(self) -> None:
        self.uses += 1

    def taint_run(self, reason: str) -> None:
        self.taints.append(reason)

    def last_flush_ended(self, session: object) -> None:
        """The session has flushed what it commits."""
        self.last_flushes += 1

    def session_emptied(self) -> None:
        """The session has dropped all objects."""

    def session_ended(self) -> None:
        self.ends += 1


@contextmanager
def open_scope(manager: SessionManager, schema: str) -> Iterator[FakeScope]:
    """Make a scope of this tenant current while the block runs, then close its session."""
    scope = FakeScope(manager, schema)
    scope.outer = current_scope.get()
    token = current_scope.set(scope)
    try:
        yield scope
    finally:
        current_scope.reset(token)
        if scope.has_session:
            scope.session().close()


def names(manager: SessionManager, schema: str) -> set[str]:
    """The names of the tenant's items, as a new transaction sees them."""
    with open_scope(manager, schema) as scope:
        return {name for (name,) in scope.session().query(Item.name)}


def watch_of(engine: Engine) -> Watch:
    """Return the Watch of the engine."""
    watch: Watch = engine.dialect.do_commit.__self__  # type: ignore[attr-defined]
    return watch


# functions that other processes run


def create_tenant(dsn: str, schema: str, meeting: Any, results: Any) -> None:
    """Create the tenant as soon as all others are ready to, and use it."""
    manager = SessionManager(dsn, Base)
    try:
        meeting.wait()
        is_new = manager.ensure_schema_exists(schema)
        with open_scope(manager, schema) as scope:
            scope.session().query(Item).all()
        results.put(is_new)
    except BaseException as error:
        results.put(repr(error))
    finally:
        manager.dispose()


def claim_database(dsn: str, results: Any) -> None:
    """Try to take the database for this process."""
    manager = SessionManager(dsn, Base)
    try:
        results.put(manager.database.claim())
    finally:
        manager.dispose()


def files(folder: Path) -> set[str]:
    """Return the names of all files in the folder, at any depth, and in its parent folder."""
    return {path.name for path in folder.parent.iterdir()} | {
        path.name for path in folder.glob('**/*')
    }
