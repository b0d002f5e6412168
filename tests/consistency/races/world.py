"""The world of the races: an application in two processes, on one PostgreSQL and one Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import psycopg

from onegov_ormcache import OrmCacheApp, orm_cached, request_cached, rows
from onegov_ormcache.redis_client.client import connect
from onegov_ormcache.tags.redis import RedisTagStore
from tests.support.applications import Applications, change, value
from tests.support.counting import Runs
from tests.support.models import Document, User
from tests.support.outside import until
from tests.support.servers import RedisServer


class App(OrmCacheApp):
    """The application that the scenarios read."""

    runs = Runs()
    #: The creator of `names` calls it once, between its read of the database and its end.
    meanwhile: Callable[[], Any] | None = None

    @orm_cached(policy='on-table-change:users')
    def names(self) -> Any:
        self.runs('names')
        rows = [row.name for row in self.session().query(User.name).order_by(User.name)]
        do, self.meanwhile = self.meanwhile, None
        if do is not None:
            do()
        return rows

    @orm_cached(policy='on-table-change:documents')
    def titles(self) -> Any:
        return [row.title for row in self.session().query(Document.title)]

    @orm_cached(policy='on-table-change:users')
    def outer(self) -> Any:
        return {'names': self.names}

    @orm_cached(policy=rows(Document.owner_id))
    def owned(self, user: int) -> Any:
        self.runs('owned')
        query = self.session().query(Document.title).filter(Document.owner_id == user)
        return [row.title for row in query.order_by(Document.id)]

    @request_cached
    def kept(self) -> Any:
        return [row.name for row in self.session().query(User.name).order_by(User.name)]

    #: A session of another scope, that a creator uses in place of its own.
    lender: Any = None

    @orm_cached(policy='on-table-change:users')
    def borrowed(self) -> Any:
        session = self.lender or self.session()
        return [row.name for row in session.query(User.name).order_by(User.name)]

    @orm_cached(policy='on-table-change:users')
    def from_kept(self) -> Any:
        return list(self.kept)


@dataclass
class World:
    """Two processes on the same servers, and one tenant."""

    applications: Applications
    tenant: str
    redis: RedisServer

    def start(self, level: str = 'READ COMMITTED', **settings: Any) -> tuple[App, App]:
        """Start two apps, which stand for two processes; the tenant has one user, 'old'."""
        settings = {
            'engine_options': {'isolation_level': level},
            'redis_url': self.redis.url,
            'lock_timeout': 0.2,
            **settings,
        }
        one = self.applications.start(App, **settings)
        two = self.applications.again(type(one))
        self.add(one, 'old')
        until(lambda: self.is_quarantine_over(one), 30)
        value(two, self.tenant, lambda app: app.titles)  # it knows the tenant's database now
        App.runs = Runs()
        return one, two

    def is_quarantine_over(self, app: App) -> bool:
        """Return whether the quarantine of the new tenant is over.

        A read comes first: it ends the quarantine, unless other writers on the server are in
        progress.
        """
        value(app, self.tenant, lambda app: app.titles)
        # a new client asks the store, because a mutant may keep the app from ever seeing the end
        with closing(connect(self.redis.url, 10)) as client:
            namespace = app.orm_cache.settings.namespace
            store = RedisTagStore(client, namespace, quarantined=True)
            identity = app.orm_cache.tags.identity(self.tenant)
            assert identity is not None
            listed = store.unidentified(self.tenant).identities
            store.identify(self.tenant, identity, listed)
            return store.snapshot(self.tenant).quarantine is None

    def add(self, app: App, name: str) -> None:
        change(app, self.tenant, User(name=name))

    def names(self, app: App) -> list[str]:
        return list(value(app, self.tenant, lambda app: app.names))

    def rename(self, scope: Any, name: str = 'new') -> None:
        scope.session().query(User).one().name = name
        scope.session().flush()


def driver_connection(scope: Any) -> Any:
    """Return psycopg's connection of a scope."""
    return scope.session().connection().connection.dbapi_connection


def commit_unseen(connection: Any) -> None:
    """Commit as the server does when its answer is lost: neither session nor package know."""
    psycopg.Connection.commit(connection)


Scenario = Callable[[World], Iterator[str]]


def differs(what: str, found: Any, expected: Any) -> Iterator[str]:
    if found != expected:
        yield f'{what}: {found} and not {expected}'
