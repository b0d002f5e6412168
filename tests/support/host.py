"""A host without a framework: its engine, its registry of sessions, and its current schema."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from psycopg import ServerCursor
from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from onegov_ormcache import OrmCache, observe


class Host:
    """A program of its own, which may stand for a process.

    :param engine: an engine of PostgreSQL that was not used yet.
    :param metadata: what :func:`.observe` takes.
    :param session_options: of the sessions.
    :param sets_path_at_begin: set the search path once for each transaction, and not before each
        statement.
    :param cache_options: of the cache.
    """

    def __init__(
        self,
        engine: Engine,
        metadata: Any,
        session_options: dict[str, Any] | None = None,
        sets_path_at_begin: bool = False,
        **cache_options: Any,
    ) -> None:
        self._here = threading.local()
        self.engine = engine
        if sets_path_at_begin:
            event.listen(engine, 'begin', set_path_of_transaction)
        else:
            event.listen(engine, 'before_cursor_execute', set_path)
        self.factory = sessionmaker(**(session_options or {}))
        self.sessions = scoped_session(
            self.factory, scopefunc=lambda: (threading.get_ident(), self.schema)
        )
        self.observer = observe(
            engine=engine,
            sessions=self.sessions,
            metadata=metadata,
            schema_of=schema_option,
            session=self.session,
            schema=lambda: self.schema,
        )
        self.cache = OrmCache(observer=self.observer, **cache_options)

    @property
    def schema(self) -> str | None:
        """The tenant that this thread works for."""
        found: str | None = getattr(self._here, 'schema', None)
        return found

    @schema.setter
    def schema(self, schema: str | None) -> None:
        self._here.schema = schema

    def session(self) -> Session:
        """This thread's session of the tenant; made as the host makes it, by the option."""
        if not self.sessions.registry.has():
            self.sessions(bind=self.engine.execution_options(schema=self.schema))
        session: Session = self.sessions()
        return session

    @contextmanager
    def at(self, schema: str) -> Iterator[None]:
        """Work for another tenant while the block runs."""
        before, self.schema = self.schema, schema
        try:
            yield
        finally:
            self.schema = before

    def close(self) -> None:
        self.cache.close()
        self.sessions.remove()
        self.engine.dispose()


def schema_option(connection: Connection) -> Any:
    """The tenant of a connection: an execution option, as a host has it."""
    return connection.get_execution_options().get('schema')


def set_path(connection: Connection, cursor: Any, statement: str, *arguments: Any) -> None:
    """Set the search path before a statement; listens to a host's engine."""
    schema = schema_option(connection)
    # after an error, nothing else can be executed before the rollback
    if schema is not None and not statement.startswith('ROLLBACK TO SAVEPOINT'):
        if isinstance(cursor, ServerCursor):  # can only declare its query
            cursor = connection.connection.cursor()
        cursor.execute(f'SET search_path TO "{schema}", extensions')


def set_path_of_transaction(connection: Connection) -> None:
    """Set the search path of a transaction; listens to a host's engine."""
    schema = schema_option(connection)
    if schema is not None:
        connection.exec_driver_sql(f'SET LOCAL search_path TO "{schema}", extensions')
