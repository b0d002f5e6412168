"""The worlds in which an example runs: SQLite and memory with one application, or PostgreSQL
and Redis with two, which stand for two processes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from tests.consistency.town import Row, State, Town
from tests.support.servers import RedisServer, libpq_url

from .open_scopes import Open

LEVELS = ('READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE')


class World:
    """The world of an example: its applications, its database, and a store that can be lost."""

    def __init__(self, tenants: list[str], apps: dict[str, list[Town]]) -> None:
        self.tenants = tenants
        self.apps = apps
        self.level = next(iter(apps))

    @property
    def servers(self) -> bool:
        return len(self.apps) > 1

    @property
    def lasts(self) -> bool:
        return self.level != 'READ COMMITTED'

    def all_apps(self) -> list[Town]:
        return [app for apps in self.apps.values() for app in apps]

    def truth(self, tenant: str) -> State:
        """Return the committed rows, read from the database itself."""
        users = self.query(tenant, 'SELECT id, name FROM users')
        documents = self.query(tenant, 'SELECT owner_id, title, state FROM documents')
        found = {owner: (title, state == 'public') for owner, title, state in documents}
        members = {user for (user,) in self.query(tenant, 'SELECT user_id FROM membership')}
        return {
            user: Row(name, *found.get(user, (None, False)), user in members)
            for user, name in users
        }

    def query(self, tenant: str, statement: str) -> list[Any]:
        raise NotImplementedError

    def empty(self, tenant: str) -> None:
        """Begin an example with no rows, and nothing cached."""
        for table in ('membership', 'documents', 'users', 'groups'):
            self.query(tenant, f'DELETE FROM {table}')
        self.query(tenant, "INSERT INTO groups (id, name) VALUES (1, 'all')")
        for app in self.all_apps():
            app.orm_cache.tags.renew(tenant)

    def connection_ender(self, opened: Open) -> Callable[[], object]:
        """Return a function that ends the connection that the scope has now.

        The function does nothing if there is no connection that can be ended.
        """
        return lambda: None

    def lose_store(self, how: int) -> None:
        """Let the store lose something, in the way that `how` says; memory loses nothing."""


class Embedded(World):
    """SQLite and memory: one application, a view per transaction."""

    def __init__(self, folder: Path, tenants: list[str], app: Town) -> None:
        super().__init__(tenants, {'SQLite': [app]})
        self._folder = folder

    def query(self, tenant: str, statement: str) -> list[Any]:
        file = self._folder / f'{tenant}.sqlite'
        with closing(sqlite3.connect(file, isolation_level=None)) as connection:
            return connection.execute(statement).fetchall()


class OnServers(World):
    """PostgreSQL and a Redis of its own: two applications, which stand for two processes."""

    def __init__(
        self, dsn: str, redis: RedisServer, tenants: list[str], apps: dict[str, list[Town]]
    ) -> None:
        super().__init__(tenants, apps)
        self.connection = psycopg.connect(libpq_url(dsn), autocommit=True)
        self._redis = redis
        self._client = redis.client()

    def query(self, tenant: str, statement: str) -> list[Any]:
        path = sql.SQL('SET search_path TO {}').format(sql.Identifier(tenant))
        self.connection.execute(path)
        cursor = self.connection.execute(statement)  # type: ignore[arg-type]
        return cursor.fetchall() if cursor.description else []

    def empty(self, tenant: str) -> None:
        self._client.flushall()
        super().empty(tenant)

    def connection_ender(self, opened: Open) -> Callable[[], object]:
        session = opened.scope.opened_session
        if opened.closed or session is None or not session.in_transaction():
            return lambda: None
        with opened.scope.active():
            driver: Any = session.connection().connection.dbapi_connection
        pid = driver.info.backend_pid
        return lambda: self.connection.execute('SELECT pg_terminate_backend(%s, 5000)', [pid])

    def lose_store(self, how: int) -> None:
        if how == 0:
            self._client.flushall()
        elif how == 1:
            self._redis.save()
        elif how == 2:
            self._redis.kill()
            self._redis.start()
        elif how < 6:
            keys = sorted(self._client.keys('*'))
            if keys:
                self._client.delete(keys[how % len(keys)])
