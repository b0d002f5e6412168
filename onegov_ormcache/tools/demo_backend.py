"""What the demo runs on: a temporary folder and memory, or servers that it is given.

Whatever is made there is removed at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import redis
from sqlalchemy import MetaData, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.schema import DropSchema

from fixtures.townhall import make_application

from ..database.names import INTERNAL
from ..database.session_manager import SessionManager
from ..web.middleware import OrmCacheMiddleware


@dataclass(frozen=True)
class Backend:
    """Database and Redis, and the names under which everything is kept there."""

    settings: dict[str, Any]
    #: What the schemas' names begin with.
    prefix: str

    @property
    def description(self) -> str:
        """What data and cached values are kept in."""
        is_sqlite = self.settings['dsn'].startswith('sqlite')
        tier = 'memory' if self.settings['redis_url'] is None else 'Redis'
        return f'{"SQLite" if is_sqlite else "PostgreSQL"} and {tier}'

    @contextmanager
    def application(self) -> Iterator[OrmCacheMiddleware]:
        """The town halls, until the block ends."""
        application = make_application(self.settings, prefix=self.prefix)
        try:
            yield application
        finally:
            application.app.close_orm_cache()


@contextmanager
def temporary(dsn: str | None, redis_url: str | None) -> Iterator[Backend]:
    """A back end of which nothing is left when the block ends."""
    name = f'demo-{uuid4().hex[:8]}'
    prefix = f'{name}_'.replace('-', '_')
    with ExitStack() as stack:
        if dsn is None:
            folder = stack.enter_context(TemporaryDirectory(prefix=name))
            used = f'sqlite:///{folder}'
        else:
            used = dsn
        settings = {'dsn': used, 'redis_url': redis_url, 'namespace': name}
        backend = Backend(settings, prefix)
        with backend.application():
            pass  # a server that does not answer is an error while nothing has to be removed
        if redis_url is not None:
            stack.callback(remove_keys, redis_url, name)
        if dsn is not None:
            stack.callback(remove_schemas, dsn, prefix)
        yield backend


def remove_schemas(dsn: str, prefix: str) -> None:
    """Remove the tenants whose schemas have this prefix, as far as the database answers."""
    if dsn.startswith('sqlite'):
        for file in Path(make_url(dsn).database or '').glob(f'{prefix}*'):
            file.unlink()
        return
    manager = SessionManager(dsn, MetaData())
    with suppress(SQLAlchemyError), manager.database.engines()[0].connect() as connection:
        connection = connection.execution_options(**INTERNAL)
        for schema in manager.list_schemas(prefix):
            # one after the other: each takes a lock for each of its tables
            with connection.begin():
                connection.execute(DropSchema(schema, cascade=True))
    manager.dispose()


def remove_keys(redis_url: str, namespace: str) -> None:
    """Remove what was kept under the namespace, as far as Redis answers."""
    with suppress(redis.RedisError), redis.Redis.from_url(redis_url) as client:
        for key in client.scan_iter(f'*{namespace}*', count=1000):
            client.unlink(key)
