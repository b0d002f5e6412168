"""A host without a framework: its engine, its registry of sessions, and its current schema."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, create_engine, event, func, select
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from onegov_ormcache import OrmCache, SessionManager, observe, orm_cached, request_cached
from tests.support.counting import Runs
from tests.support.models import Base, Document, User


def schema_option(connection: Connection) -> Any:
    """The tenant of a connection: an execution option, as a host has it."""
    return connection.get_execution_options().get('schema')


class Board:
    """What the host shows: cached properties that are computed by the host's own session.

    :param runs: counts the runs of creators.
    """

    def __init__(self, host: Host, runs: Runs) -> None:
        self.host = host
        self.runs = runs
        self.orm_cache = host.cache

    @orm_cached(policy=User)
    def names(self) -> list[str]:
        self.runs('names')
        return list(self.host.session().scalars(select(User.name).order_by(User.id)))

    @orm_cached(policy='auto')
    def titles(self) -> list[str]:
        self.runs('titles')
        return list(self.host.session().scalars(select(Document.title).order_by(Document.id)))

    @orm_cached(policy='auto')
    def counts(self) -> list[int]:
        self.runs('counts')
        number = self.host.session().scalar(select(func.count(Document.id)))
        return [len(self.names), number or 0]

    @orm_cached(policy=lambda obj: isinstance(obj, User) and obj.name.startswith('A'))
    def with_a(self) -> list[str]:
        self.runs('with_a')
        query = select(User.name).where(User.name.like('A%')).order_by(User.id)
        return list(self.host.session().scalars(query))

    @request_cached
    def first(self) -> User | None:
        self.runs('first')
        return self.host.session().scalars(select(User).order_by(User.id)).first()

    @request_cached(merge=True)
    def all(self) -> list[User]:
        self.runs('all')
        return list(self.host.session().scalars(select(User).order_by(User.id)))


class Host:
    """A program of its own, which may stand for a process.

    :param backend: the settings of PostgreSQL and Redis.
    :param options: of the engine.
    """

    def __init__(
        self,
        backend: dict[str, Any],
        runs: Runs,
        session_options: dict[str, Any] | None = None,
        cache_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.backend = backend
        self._here = threading.local()
        self.engine = create_engine(backend['dsn'], **options)
        #: What the host's listeners have seen.
        self.seen: list[str] = []
        event.listen(self.engine, 'connect', lambda *arguments: self.seen.append('connect'))
        event.listen(self.engine, 'begin', lambda connection: self.seen.append('begin'))
        event.listen(self.engine, 'before_cursor_execute', self._set_path)
        self.factory = sessionmaker(**(session_options or {}))
        self.sessions = scoped_session(
            self.factory, scopefunc=lambda: (threading.get_ident(), self.schema)
        )
        self.observer = observe(
            engine=self.engine,
            sessions=self.sessions,
            metadata=lambda: Base,
            schema_of=schema_option,
            session=self.session,
            schema=lambda: self.schema,
        )
        self.cache = OrmCache(
            observer=self.observer,
            redis_url=backend['redis_url'],
            namespace=backend['namespace'],
            **(cache_options or {}),
        )
        self.cache.bind(Board)
        self.board = Board(self, runs)

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
        return self.sessions()

    def add(self, *objects: object) -> None:
        """Add objects in a transaction of their own."""
        self.session().add_all(objects)
        self.session().commit()

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

    def _set_path(
        self, connection: Connection, cursor: Any, statement: str, *arguments: Any
    ) -> None:
        schema = schema_option(connection)
        if schema is not None:
            cursor.execute(f'SET search_path TO "{schema}", extensions')


def make_tenants(dsn: str, *schemas: str) -> None:
    """Create tenants with their tables."""
    manager = SessionManager(dsn, Base)
    for schema in schemas:
        manager.ensure_schema_exists(schema)
    manager.dispose()
