"""A host whose cached properties are computed by its own sessions."""

from __future__ import annotations

from typing import Any

from sqlalchemy import create_engine, event, func, select

from onegov_ormcache import SessionManager, orm_cached, request_cached
from tests.support import host
from tests.support.counting import Runs
from tests.support.models import Base, Document, User


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


class Host(host.Host):
    """A program of its own, which may stand for a process.

    :param backend: the settings of PostgreSQL and Redis.
    :param sets_path_at_begin: set the search path once for each transaction, and not before each
        statement.
    :param options: of the engine.
    """

    def __init__(
        self,
        backend: dict[str, Any],
        runs: Runs,
        session_options: dict[str, Any] | None = None,
        cache_options: dict[str, Any] | None = None,
        sets_path_at_begin: bool = False,
        **options: Any,
    ) -> None:
        self.backend = backend
        engine = create_engine(backend['dsn'], **options)
        #: What the host's listeners have seen.
        self.seen: list[str] = []
        event.listen(engine, 'connect', lambda *arguments: self.seen.append('connect'))
        event.listen(engine, 'begin', lambda connection: self.seen.append('begin'))
        super().__init__(
            engine,
            lambda: Base,
            session_options,
            sets_path_at_begin,
            redis_url=backend['redis_url'],
            namespace=backend['namespace'],
            **(cache_options or {}),
        )
        self.cache.bind(Board)
        self.board = Board(self, runs)

    def add(self, *objects: object) -> None:
        """Add objects in a transaction of their own."""
        self.session().add_all(objects)
        self.session().commit()


def make_tenants(dsn: str, *schemas: str) -> None:
    """Create tenants with their tables."""
    manager = SessionManager(dsn, Base)
    for schema in schemas:
        manager.ensure_schema_exists(schema)
    manager.dispose()
