"""Pyramid with pyramid_tm and zope.sqlalchemy on PostgreSQL and Redis, as docs/pyramid.rst shows
them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyramid_tm
import pytest
import webtest
import zope.sqlalchemy
from pyramid.config import Configurator
from pyramid.events import NewRequest
from sqlalchemy import Connection, create_engine, event, insert, select, text
from sqlalchemy.orm import Session, sessionmaker

from onegov_ormcache import OrmCache, RetryableConflict, observe, orm_cached, request_cached
from onegov_ormcache.zope import integrate
from tests.support.backends import Backend
from tests.support.models import Base, Document, User

from .web_towns import WebTown


def add_by_text(session: Session, name: str) -> None:
    session.execute(text('INSERT INTO users (name) VALUES (:name)'), {'name': name})
    zope.sqlalchemy.mark_changed(session)


def add_by_driver(session: Session, name: str) -> None:
    cursor: Any = session.connection().connection.cursor()
    cursor.execute('INSERT INTO users (name) VALUES (%s)', (name,))
    zope.sqlalchemy.mark_changed(session)


#: The ways to add a name.
WAYS: dict[str, Callable[[Any, str], object]] = {
    'orm': lambda session, name: session.add(User(name=name)),
    'core': lambda session, name: session.execute(insert(User).values(name=name)),
    'text': add_by_text,
    'driver': add_by_driver,
}


class Town:
    """What the application shows."""

    def __init__(self, cache: OrmCache) -> None:
        self.orm_cache = cache
        #: The request that the creator of `sessions` looks at.
        self.request: Any = None
        #: The number of requests that have read `requests`.
        self.number = 0

    @orm_cached(policy=User)
    def names(self) -> list[str]:
        return list(self.orm_cache.session().scalars(select(User.name).order_by(User.id)))

    @orm_cached(policy=Document)
    def titles(self) -> list[str]:
        return list(self.orm_cache.session().scalars(select(Document.title)))

    @orm_cached(policy=User)
    def sessions(self) -> list[bool]:
        session = self.orm_cache.session()
        users = session.scalars(select(User)).all()
        own = self.request.dbsession
        return [session is own, any(user in own for user in users), bool(own.identity_map)]

    @request_cached
    def requests(self) -> int:
        self.number += 1
        return self.number

    @orm_cached(policy=User)
    def written(self) -> int:
        session = self.orm_cache.session()
        session.add(User(name='written'))
        session.flush()
        return session.query(User).count()


class PyramidTown(WebTown):
    """An application, which may stand for a process.

    :param attempts: how often pyramid_retry makes an attempt; None without it.
    :param options: of the engine.
    """

    def __init__(
        self,
        backend: Backend,
        attempts: int | None = None,
        twophase: bool = False,
        **options: Any,
    ) -> None:
        settings = backend.settings
        self.engine = create_engine(settings['dsn'], **options)
        if twophase:  # there is no event after the begin of such a transaction
            event.listen(self.engine, 'before_cursor_execute', self._set_search_path_again)
        else:
            event.listen(self.engine, 'begin', self._set_search_path)
        self.session_factory = sessionmaker(twophase=twophase)
        observer = observe(
            engine=self.engine,
            sessions=self.session_factory,
            metadata=Base,
            schema_of=lambda connection: connection.get_execution_options()['tenant'],
        )
        self.cache = OrmCache(
            observer=observer,
            redis_url=settings['redis_url'],
            namespace=settings['namespace'],
        )
        self.integration = integrate(self.cache)
        self.town = Town(self.cache)
        #: Called by the view that adds a name, with the request, at its end.
        self.at_end: Callable[[Any], object] = lambda request: None
        self.attempts = 0
        self.application = self._application(attempts)

    def _application(self, attempts: int | None) -> Any:
        with Configurator(settings={'tm.manager_hook': pyramid_tm.explicit_manager}) as config:
            config.include('pyramid_tm')
            if attempts is not None:
                config.add_settings({'retry.attempts': attempts})
                config.include('pyramid_retry')
            config.add_request_method(self.dbsession, 'dbsession', reify=True)
            config.add_subscriber(self.begin_request, NewRequest)
            config.add_route('property', '/{name}')
            for view, method in (self.show, 'GET'), (self.add, 'POST'):
                config.add_view(
                    view, route_name='property', request_method=method, renderer='json'
                )
            return config.make_wsgi_app()

    def _set_search_path(self, connection: Connection) -> None:
        tenant = connection.get_execution_options()['tenant']
        connection.exec_driver_sql(f'SET LOCAL search_path TO "{tenant}"')

    def _set_search_path_again(
        self, connection: Connection, cursor: Any, *arguments: Any
    ) -> None:
        tenant = connection.get_execution_options()['tenant']
        cursor.execute(f'SET LOCAL search_path TO "{tenant}"')

    def session(self, tenant: str) -> Session:
        """A new session of a tenant."""
        return self.session_factory(bind=self.engine.execution_options(tenant=tenant))

    def dbsession(self, request: Any) -> Session:
        session = self.session(request.headers['X-Tenant'])
        zope.sqlalchemy.register(session, transaction_manager=request.tm)
        return session

    def begin_request(self, event: Any) -> None:
        request = event.request
        self.cache.begin_request()
        self.integration.follow(request.tm)
        self.cache.enter_scope(request.headers['X-Tenant'], session=request.dbsession)

    # its views

    def show(self, request: Any) -> Any:
        self.town.request = request
        return getattr(self.town, request.matchdict['name'])

    def add(self, request: Any) -> Any:
        self.attempts += 1
        assert self.town.names is not None
        WAYS[request.matchdict['name']](request.dbsession, request.params['name'])
        names = self.town.names
        self.at_end(request)
        return names

    # its clients

    def get(self, tenant: str, name: str = 'names') -> Any:
        client = webtest.TestApp(self.application)
        return client.get(f'/{name}', headers={'X-Tenant': tenant}).json

    def post(self, tenant: str, name: str, way: str = 'orm') -> Any:
        client = webtest.TestApp(self.application)
        return client.post(f'/{way}', {'name': name}, headers={'X-Tenant': tenant}).json


#: The application that `make_town` makes.
TOWN = PyramidTown


def test_pyramid_processes_share_values(
    town: PyramidTown, other_town: PyramidTown, tenant: str
) -> None:
    """What one process has computed, the other one gets from the shared tier."""
    town.post(tenant, 'Ada')
    other_town.get(tenant)  # its first transaction finds out which database it is
    town.post(tenant, 'Grace')
    assert town.tiers(tenant) == ['creator']
    assert other_town.tiers(tenant) == ['shared']
    assert town.tiers(tenant) == other_town.tiers(tenant) == ['process']


@pytest.mark.parametrize('way', WAYS)
def test_pyramid_sees_every_kind_of_change(
    town: PyramidTown, other_town: PyramidTown, tenant: str, way: str
) -> None:
    """A request sees its own change at once, and the next request of every process after it."""
    assert town.get(tenant) == other_town.get(tenant) == []
    assert town.post(tenant, 'Ada', way) == ['Ada']
    assert other_town.get(tenant) == town.get(tenant) == ['Ada']


def test_pyramid_shows_nothing_uncommitted(
    town: PyramidTown, other_town: PyramidTown, tenant: str
) -> None:
    """A request of another process, or of another thread, sees nothing of an open transaction."""
    seen: list[Any] = []

    def look(request: Any) -> None:
        with ThreadPoolExecutor(1) as thread:
            seen.append(thread.submit(town.get, tenant).result())
        seen.append(other_town.get(tenant))

    town.at_end = look
    assert town.post(tenant, 'Ada') == ['Ada']
    assert seen == [[], []]
    assert town.get(tenant) == other_town.get(tenant) == ['Ada']


@pytest.mark.parametrize('end', ['error', 'abort', 'doom'])
@pytest.mark.parametrize('way', WAYS)
def test_pyramid_keeps_nothing_of_an_abort(
    town: PyramidTown, other_town: PyramidTown, tenant: str, way: str, end: str
) -> None:
    """Of a transaction that was aborted, nothing is left."""
    town.post(tenant, 'Ada')

    def abort(request: Any) -> None:
        if end == 'error':
            raise LookupError
        if end == 'doom':
            request.tm.doom()
        else:
            request.tm.abort()
            request.tm.begin()
            assert town.town.names == ['Ada']

    town.at_end = abort
    try:
        assert town.post(tenant, 'Grace', way) == ['Ada', 'Grace']
    except LookupError:
        assert end == 'error'
    assert town.get(tenant) == other_town.get(tenant) == ['Ada']


def test_pyramid_two_transactions(town: PyramidTown, other_town: PyramidTown, tenant: str) -> None:
    """A view that commits itself reads on in the next transaction."""
    seen: list[Any] = []

    def commit(request: Any) -> None:
        request.tm.commit()
        seen.append(other_town.get(tenant))
        other_town.post(tenant, 'Grace')
        request.tm.begin()
        seen.append(town.town.names)

    town.at_end = commit
    town.post(tenant, 'Ada')
    assert seen == [['Ada'], ['Ada', 'Grace']]


def test_pyramid_creator_has_a_session_of_its_own(town: PyramidTown, tenant: str) -> None:
    """While a creator runs, `cache.session()` is a session without the objects of the view."""
    town.post(tenant, 'Ada')
    assert town.get(tenant, 'sessions') == [False, False, False]


def test_pyramid_forgets_request_cached_values(town: PyramidTown, tenant: str) -> None:
    """A request-cached value belongs to one request."""
    assert [town.get(tenant, 'requests') for _ in range(3)] == [1, 2, 3]


def test_pyramid_commits_what_a_creator_writes(
    town: PyramidTown, other_town: PyramidTown, tenant: str
) -> None:
    """What a creator has written is committed, though its session has not joined."""
    assert town.get(tenant) == other_town.get(tenant) == []
    assert town.get(tenant, 'written') == 1
    assert other_town.get(tenant) == town.get(tenant) == ['written']


def test_pyramid_tenants(
    town: PyramidTown, other_town: PyramidTown, tenant: str, other_tenant: str
) -> None:
    """Each request reads and changes its own tenant, and a change evicts there alone."""
    for name in tenant, other_tenant:
        assert town.get(name) == other_town.get(name) == []
    town.post(tenant, 'Ada')
    assert other_town.get(other_tenant) == town.get(other_tenant) == []
    assert other_town.get(tenant) == town.get(tenant) == ['Ada']
    other_town.post(other_tenant, 'Olga')
    assert town.get(other_tenant) == ['Olga']
    assert town.tiers(tenant) == ['process']
    assert town.tiers(other_tenant) == ['process']


def test_pyramid_savepoint(town: PyramidTown, other_town: PyramidTown, tenant: str) -> None:
    """Nothing is left of what was rolled back to a savepoint of the transaction."""
    seen: list[Any] = []

    def roll_back(request: Any) -> None:
        savepoint = request.tm.savepoint()
        request.dbsession.add(User(name='Bob'))
        seen.append(town.town.names)
        savepoint.rollback()
        seen.append(town.town.names)

    town.at_end = roll_back
    town.post(tenant, 'Ada')
    assert seen == [['Ada', 'Bob'], ['Ada']]
    assert town.get(tenant) == other_town.get(tenant) == ['Ada']


def test_pyramid_after_commit_hook(
    town: PyramidTown, other_town: PyramidTown, tenant: str
) -> None:
    """A hook after the commit reads the new value, with a session of its own."""
    seen: list[Any] = []

    def hook(success: bool) -> None:
        with town.session(tenant) as session:
            town.cache.enter_scope(tenant, session=session)
            seen.append(town.town.names)
        seen.append(other_town.get(tenant))

    town.at_end = lambda request: request.tm.get().addAfterCommitHook(hook)
    town.get(tenant)
    town.post(tenant, 'Ada')
    assert seen == [['Ada'], ['Ada']]
    assert town.tiers(tenant) == other_town.tiers(tenant) == ['process']


@pytest.mark.parametrize('attempts', [None, 3])
def test_pyramid_retries_conflicts(
    make_town: Callable[..., PyramidTown], tenant: str, attempts: int | None
) -> None:
    """pyramid_retry makes another attempt after a conflict; without it, the conflict is raised."""
    town = make_town(attempts=attempts)

    def conflict(request: Any) -> None:
        if town.attempts == 1:
            raise RetryableConflict('somebody else was first')

    town.at_end = conflict
    if attempts is None:
        with pytest.raises(RetryableConflict):
            town.post(tenant, 'Ada')
        assert town.get(tenant) == []
    else:
        assert town.post(tenant, 'Ada') == ['Ada']
        assert town.attempts == 2
        assert town.get(tenant) == ['Ada']


@pytest.mark.parametrize('twophase', [False, True])
def test_pyramid_retries_conflicts_at_the_commit(
    make_town: Callable[..., PyramidTown], tenant: str, twophase: bool
) -> None:
    """So it does if the cache refuses the commit, because a value that was read has changed."""
    options = {'isolation_level': 'SERIALIZABLE', 'twophase': twophase}
    town, other_town = make_town(attempts=3, **options), make_town(**options)
    for each in town, other_town:
        for _ in range(3):
            assert each.get(tenant) == each.get(tenant, 'titles') == []
    read: list[Any] = []

    def read_what_changes(request: Any) -> None:
        read.append(town.town.titles)
        if town.attempts == 1:
            with other_town.session(tenant) as session:
                session.add(Document(kind='document', title='new'))
                session.commit()

    town.at_end = read_what_changes
    assert town.post(tenant, 'Ada') == ['Ada']
    assert read == [[], ['new']]
    assert town.get(tenant) == other_town.get(tenant) == ['Ada']


def test_pyramid_threads(town: PyramidTown, other_town: PyramidTown, tenant: str) -> None:
    """Threads of two processes that add names each see what was committed before."""

    def add(number: int) -> bool:
        one, two = (town, other_town) if number % 2 else (other_town, town)
        name = f'name {number}'
        return name in one.post(tenant, name) and name in two.get(tenant)

    with ThreadPoolExecutor(6) as threads:
        assert all(threads.map(add, range(48)))
    assert len(town.get(tenant)) == 48
    assert town.get(tenant) == other_town.get(tenant)
