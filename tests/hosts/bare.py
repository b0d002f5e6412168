"""A host that has no registry of sessions: it makes each session by hand, and keeps it itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, create_engine, event, select
from sqlalchemy.orm import Session, sessionmaker

from onegov_ormcache import OrmCache, observe, orm_cached, request_cached
from tests.support.host import schema_option
from tests.support.models import Base, User


class BareHost:
    """A program without registry, which may stand for a process.

    :param backend: the settings of PostgreSQL and Redis.
    :param schema: the tenant of all sessions.
    :param knows_session: tell the package which session is the present one.
    :param observed: further arguments of `observe`.
    :param has_cache: make the cache; if not, `open_cache` does.
    """

    cache: OrmCache

    def __init__(
        self,
        backend: dict[str, Any],
        schema: str,
        knows_session: bool = True,
        observed: dict[str, Any] | None = None,
        has_cache: bool = True,
        **options: Any,
    ) -> None:
        self.backend = backend
        self.schema: Any = schema
        self.engine = create_engine(backend['dsn'], **options)
        event.listen(self.engine, 'before_cursor_execute', self._set_path)
        self.factory = sessionmaker()
        #: The present session.
        self.session: Session = self.factory()
        present: dict[str, Any] = {'session': lambda: self.session, 'schema': lambda: self.schema}
        self.observer = observe(
            **{
                'engine': self.engine,
                'sessions': self.factory,
                'metadata': Base,
                'schema_of': schema_option,
                **(present if knows_session else {}),
                **(observed or {}),
            }
        )
        self.session = self.new_session()
        if has_cache:
            self.open_cache()

    def open_cache(self, **options: Any) -> None:
        """Make the cache."""
        self.cache = OrmCache(
            observer=self.observer,
            redis_url=self.backend['redis_url'],
            namespace=self.backend['namespace'],
            **options,
        )

    @property
    def orm_cache(self) -> OrmCache:
        return self.cache

    def new_session(self) -> Session:
        """Make a session, which is not the present one yet."""
        return self.factory(bind=self.engine.execution_options(schema=self.schema))

    @orm_cached(policy=User)
    def names(self) -> list[str]:
        return [user.name for user in self.session.scalars(select(User).order_by(User.id))]

    @orm_cached(policy='auto')
    def number(self) -> int:
        return len(self.session.scalars(select(User.id)).all())

    @request_cached(merge=True)
    def users(self) -> Any:
        return list(self.session.scalars(select(User).order_by(User.id)))

    def close(self) -> None:
        self.session.close()
        if 'cache' in vars(self):
            self.cache.close()
        self.engine.dispose()

    def _set_path(self, connection: Connection, cursor: Any, *arguments: Any) -> None:
        schema = schema_option(connection)
        if schema is not None:
            cursor.execute(f'SET search_path TO "{schema}", extensions')


MakeBareHost = Callable[..., BareHost]
