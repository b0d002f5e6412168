"""The back end of the demo: a temporary folder and memory, or the servers that it is given.

All that is made there is removed at the end. This module does not know what is kept there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import redis
from sqlalchemy import MetaData, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.schema import DropSchema

from ..database.names import INTERNAL
from ..database.session_manager import SessionManager
from ..errors import StoreUnreachable
from ..redis_client.client import connect
from ..web.middleware import OrmCacheMiddleware
from .townhall import make_application

#: The path of the page that the demo shows as one that is cached as a whole.
PAGE = '/users'

#: Seconds that the removal of keys waits for each answer of Redis.
REMOVAL_SECONDS = 5.0


@dataclass(frozen=True)
class Backend:
    """A database and a Redis or memory, and the names under which data is kept there.

    :func:`temporary` makes it for one run of the demo.
    """

    #: Settings of the section ``orm_cache``: ``dsn``, ``redis_url``, ``namespace`` and others.
    settings: dict[str, Any]
    #: The beginning of all schemas' names.
    prefix: str

    @property
    def description(self) -> str:
        """The kinds of database and shared tier, as text."""
        is_sqlite = self.settings['dsn'].startswith('sqlite')
        tier = 'memory' if self.settings['redis_url'] is None else 'Redis'
        return f'{"SQLite" if is_sqlite else "PostgreSQL"} and {tier}'

    @contextmanager
    def application(self) -> Iterator[OrmCacheMiddleware]:
        """Make the town hall application; close its cache when the ``with`` block ends."""
        application = make_application(self.settings, prefix=self.prefix)
        try:
            yield application
        finally:
            application.app.close_orm_cache()


@contextmanager
def temporary(dsn: str | None, redis_url: str | None) -> Iterator[Backend]:
    """Make a back end, and remove everything from it when the ``with`` block ends.

    :param dsn: URL of the database; None for SQLite in a temporary folder.
    :param redis_url: URL of Redis; None for memory.
    :raises OrmCacheError: if a server can't be reached.
    """
    name = f'demo-{uuid4().hex[:8]}'
    prefix = f'{name}_'.replace('-', '_')
    with ExitStack() as stack:
        if dsn is None:
            folder = stack.enter_context(TemporaryDirectory(prefix=name))
            used = f'sqlite:///{folder}'
        else:
            used = dsn
        settings = {
            'dsn': used, 'redis_url': redis_url, 'namespace': name, 'require_servers': True,
            # of all other pages, the demo shows the properties
            'cached_responses': lambda request: request.path_info == PAGE,
        }  # fmt: skip
        backend = Backend(settings, prefix)
        with silent(), backend.application():
            pass  # an unreachable server is an error here, before there is anything to remove
        if redis_url is not None:
            stack.callback(remove_keys, redis_url, name)
        if dsn is not None:
            stack.callback(remove_schemas, dsn, prefix)
        yield backend


@contextmanager
def silent() -> Iterator[None]:
    """Log nothing in the block, whose error says all."""
    log, handler = logging.getLogger('onegov_ormcache'), logging.NullHandler()
    propagates = log.propagate
    log.addHandler(handler)
    log.propagate = False
    try:
        yield
    finally:
        log.propagate = propagates
        log.removeHandler(handler)


def remove_schemas(dsn: str, prefix: str) -> None:
    """Remove the tenants whose schemas' names begin with this prefix.

    Errors of the database are ignored.
    """
    if dsn.startswith('sqlite'):
        for file in Path(make_url(dsn).database or '').glob(f'{prefix}*'):
            file.unlink()
        return
    manager = SessionManager(dsn, MetaData())
    with suppress(SQLAlchemyError), manager.database.engines()[0].connect() as connection:
        connection = connection.execution_options(**INTERNAL)
        for schema in manager.list_schemas(prefix):
            # a transaction for each schema: DROP SCHEMA locks each of its tables until the
            # commit, and the server has room for a limited number of locks
            with connection.begin():
                connection.execute(DropSchema(schema, cascade=True))
    manager.dispose()


def remove_keys(redis_url: str, namespace: str) -> None:
    """Remove all keys whose names contain the namespace. Errors of Redis are ignored."""
    with closing(connect(redis_url, REMOVAL_SECONDS)) as client:
        with suppress(redis.RedisError, StoreUnreachable):
            for server in client.servers():
                for key in server.scan_iter(f'*{namespace}*', count=1000):
                    server.unlink(key)
