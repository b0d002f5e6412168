"""Morepath applications that keep their own session manager, schema and caches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Thread
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session
from webtest import TestApp as Client

from onegov_ormcache import OrmCacheApp, OrmCacheMiddleware, orm_cached
from onegov_ormcache.errors import (
    ConfigurationError,
    OrmCacheError,
    StoreUnreachable,
)
from tests.support.applications import Applications
from tests.support.models import Base, Document, Group, User

from .host import Host


class HostApp(OrmCacheApp):
    """An application on a host."""

    host: Host

    #: Nothing that the package could use.
    cache = object()

    @property
    def session_manager(self) -> Any:  # type: ignore[override]
        return self.host

    @property
    def schema(self) -> Any:  # type: ignore[override]
        return self.host.schema

    def session(self) -> Session:  # type: ignore[override]
        return self.host.session()

    @orm_cached(policy=User)
    def names(self) -> list[str]:
        return list(self.session().scalars(select(User.name).order_by(User.id)))

    @orm_cached(policy=lambda obj: isinstance(obj, User))
    def number(self) -> int:
        return self.session().query(User).count()


@HostApp.path(path='')
class Root:
    """The root of the application."""


@HostApp.json(model=Root)
def view(self: Root, request: Any) -> Any:
    return request.app.names


@HostApp.json(model=Root, request_method='POST')
def add(self: Root, request: Any) -> Any:
    request.app.session().add(User(name=request.POST['name']))
    return request.app.names


@pytest.fixture
def make_app(make_host: Callable[..., Host]) -> Iterator[Callable[..., HostApp]]:
    """Makes applications, each on a host of its own whose cache is the app's."""
    apps: list[HostApp] = []

    def make(app_class: type[HostApp] = HostApp, **settings: Any) -> HostApp:
        host = make_host()
        host.cache.close()
        app = app_class()
        app.host = host
        backend = {key: host.backend[key] for key in ('redis_url', 'namespace')}
        app.orm_cache_settings = {**backend, **settings}
        apps.append(app)
        return app

    yield make
    for app in apps:
        app.close_orm_cache()


@pytest.fixture
def app(make_app: Callable[..., HostApp]) -> HostApp:
    """An application that is set up."""
    made = make_app()
    made.setup_orm_cache()
    return made


def test_properties_of_an_app(app: HostApp, make_app: Callable[..., HostApp]) -> None:
    """The properties of an app are read without a block, and evicted in another process."""
    other = make_app()
    other.enter_scope()
    assert app.names == other.names == []
    app.session().add(User(name='Ada'))
    assert app.names == ['Ada']
    app.session().commit()
    other.session().rollback()
    assert app.names == other.names == ['Ada']
    assert app.number == other.number == 1


def test_mapping_of_the_host(make_app: Callable[..., HostApp], other_tenant: str) -> None:
    """A mapping of the host, the same for all tenants, is shown values; none is read from it."""
    shown: dict[Any, Any] = {}

    class Showing(HostApp):
        """With mappings for all tenants at once."""

        request_cache = shown
        schema_cache = shown

    app = make_app(Showing)
    app.setup_orm_cache()
    app.session().add(User(name='Ada'))
    app.session().commit()
    assert app.names == ['Ada']
    assert list(shown.values()) == [['Ada']]
    for key in list(shown):
        shown[key] = ['Mallory']
    assert app.names == ['Ada']
    with app.host.at(other_tenant):
        assert app.names == []
        app.session().rollback()
    shown.clear()
    assert app.names == ['Ada']
    app.session().commit()
    assert shown == {}


def test_request_has_no_transaction_of_the_package(app: HostApp) -> None:
    """The tween leaves the request alone: the host commits, or does not."""
    client = Client(app)
    assert client.post('/', {'name': 'Ada'}).json == ['Ada']
    app.session().rollback()
    assert client.get('/').json == []
    client.post('/', {'name': 'Ada'})
    app.session().commit()
    assert client.get('/').json == ['Ada']


def test_middleware_is_not_needed(app: HostApp) -> None:
    """An app with transactions of its own is told what to do instead."""
    with pytest.raises(ConfigurationError, match='begin_request'):
        OrmCacheMiddleware(app)


def test_unobserved_session_manager(applications: Applications) -> None:
    """A session manager that nobody observes is an error when the app is set up."""

    class Unobserved(OrmCacheApp):
        session_manager = object()

    with pytest.raises(ConfigurationError, match=r'observe\(engine='):
        applications.start(Unobserved)


def test_settings_of_an_instance(make_app: Callable[..., HostApp]) -> None:
    """Settings of one app come before those of its class, and are checked alike."""

    class Strict(HostApp):
        """With settings of the class."""

    Strict.setting_section(section='orm_cache')(lambda: {'audit': 'error', 'release': '1'})
    first, second = make_app(Strict), make_app(Strict, release='2')
    first.setup_orm_cache()
    second.setup_orm_cache()
    assert (first.orm_cache.settings.audit, first.orm_cache.settings.release) == ('error', '1')
    assert (second.orm_cache.settings.audit, second.orm_cache.settings.release) == ('error', '2')
    with pytest.raises(ConfigurationError, match='unknown setting'):
        make_app(Strict, colour='red').setup_orm_cache()


def test_settings_of_an_instance_without_host(applications: Applications) -> None:
    """An app that uses the package's own sessions has settings of its own, too."""

    class Own(OrmCacheApp):
        """A plain app."""

    app = applications.configure(Own)()
    app.orm_cache_settings = {'attempts': 3}
    app.setup_orm_cache()
    try:
        assert app.orm_cache.settings.attempts == 3
    finally:
        app.close_orm_cache()


@pytest.mark.parametrize(('tween', 'counts'), [(False, [1, 1]), (True, [1, 2])])
def test_tween_that_is_switched_off(
    applications: Applications, tenant: str, tween: bool, counts: list[int]
) -> None:
    """Without the tween, nothing commits what a view has changed."""

    class App(OrmCacheApp):
        """An app with a view that changes something."""

    @App.path(path='')
    class Index:
        """The only page."""

    @App.json(model=Index)
    def change(self: Index, request: Any) -> int:
        request.app.session().add(Group(name='Council'))
        return int(request.app.session().query(Group).count())

    client = Client(OrmCacheMiddleware(applications.start(App, tween=tween), schema=tenant))
    assert [client.get('/').json for _ in range(2)] == counts


def test_redis_is_looked_for_at_the_first_request(
    make_app: Callable[..., HostApp], caplog: pytest.LogCaptureFixture
) -> None:
    """A lazy app is set up without Redis, and its first request treats it as an outage."""
    unreachable = 'redis://127.0.0.1:1/0'
    with pytest.raises(StoreUnreachable):
        make_app(redis_url=unreachable, require_servers=True).setup_orm_cache()
    lazy = make_app(redis_url=unreachable, lazy=True, on_outage='refuse')
    lazy.setup_orm_cache()
    caplog.clear()
    lazy.enter_scope()
    assert caplog.text.count('Redis is lost') == 1
    assert lazy.names == []
    lazy.session().add(User(name='Ada'))
    with pytest.raises(StoreUnreachable):
        lazy.session().commit()
    lazy.session().rollback()


def test_lazy_app_of_the_package(applications: Applications, tenant: str) -> None:
    """An app with the package's own sessions can be lazy, too."""
    app = applications.configure(HostlessApp, lazy=True)()
    app.setup_orm_cache()
    try:
        with app.request_scope(tenant):
            assert app.number == 0
    finally:
        app.close_orm_cache()


class HostlessApp(OrmCacheApp):
    """An app with the package's own sessions."""

    @orm_cached(policy=User)
    def number(self) -> int:
        return int(self.session().query(User).count())


def test_threads_that_set_up_at_once(make_app: Callable[..., HostApp]) -> None:
    """One of several threads sets the app up, the others wait; a later call is an error."""
    app = make_app()
    barrier = Barrier(4)
    schema = app.host.schema

    def work() -> Any:
        app.host.schema = schema
        barrier.wait()
        if not app.is_orm_cache_setup:
            app.setup_orm_cache()
        try:
            return app.enter_scope(), app.names
        finally:
            app.host.sessions.remove()

    with ThreadPoolExecutor(4) as pool:
        done = [pool.submit(work) for _ in range(4)]
        assert [future.result()[1] for future in done] == [[]] * 4
    with pytest.raises(OrmCacheError, match='set up already'):
        app.setup_orm_cache()


# handlers for the host's own signals


def test_handler_takes_what_signals_send(app: HostApp, make_app: Callable[..., HostApp]) -> None:
    """A handler for one property takes `session=` and more, and evicts at the commit."""
    other = make_app()
    other.enter_scope()
    assert other.names == []
    other.session().rollback()
    handler = app.descriptor_bound_orm_change_handler(HostApp.names)
    document = Document(kind='document', title='x')
    app.session().add(document)
    app.session().flush()
    # of another table: the handler evicts nothing
    handler(app.schema, obj=document, session=app.session(), connection=None)
    user = User(name='Ada')
    app.session().add(user)
    app.session().flush()
    handler(app.schema, obj=user, session=app.session(), reason='import')
    app.session().commit()
    assert other.names == ['Ada']


def test_handler_in_another_thread(app: HostApp) -> None:
    """A handler that runs in another thread belongs to the transaction of the object's session."""
    handler = app.descriptor_bound_orm_change_handler(HostApp.number)
    session, schema = app.session(), app.schema
    user = User(name='Ada')
    session.add(user)
    session.flush()
    thread = Thread(target=handler, args=(schema, user), kwargs={'session': session})
    thread.start()
    thread.join()
    (path,) = app.enter_scope().transactions
    assert 'property::tests.hosts.test_apps.HostApp.number' in path.tags
    session.rollback()


def test_handler_of_an_object_that_nobody_observes(app: HostApp) -> None:
    """An object of a session that nobody observes is an error, and no silent nothing."""
    handler = app.descriptor_bound_orm_change_handler(HostApp.names)
    user = User(name='Ada')
    with Session(app.host.engine.execution_options(schema=app.schema)) as session:
        session.add(user)
        with pytest.raises(ConfigurationError, match='nobody observes'):
            handler(app.schema, obj=user)
        with pytest.raises(ConfigurationError, match='nobody observes'):
            handler(app.schema, obj=user, session=session)


def test_base_is_the_hosts(app: HostApp) -> None:
    """The tables are those of the host's metadata, whatever the setting `base` says."""
    assert app.orm_cache.observer.tables == frozenset(Base.metadata.tables)
