"""Less usual ways to use scopes and properties, each of which once went wrong."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import event, insert, select
from webtest import TestApp as Client

from onegov_ormcache import OrmCacheApp, OrmCacheMiddleware, orm_cached, request_cached
from onegov_ormcache.errors import OutsideScopeError, StoreUnreachable
from tests.support.applications import Applications, change, committed, value
from tests.support.counting import Runs
from tests.support.models import Document, Group, User


class Root:
    """The model at /."""


class App(OrmCacheApp):
    @orm_cached(policy=User)
    def names(self) -> Any:
        return [user.name for user in self.session().query(User).order_by(User.id)]

    @orm_cached(policy=lambda obj: isinstance(obj, Document))
    def documents(self) -> int:
        return self.session().query(Document).count()


def test_objects_in_memory_outlive_another_connection(
    on_servers: Applications, tenant: str
) -> None:
    """A scope whose session has objects in memory gets no newer snapshot when one of its Core
    connections ends. A creator sees the database, and not these objects; what it reads then is
    newer than the snapshot, so it is not stored."""
    app = on_servers.start(App)
    other = on_servers.elsewhere(app)
    change(app, tenant, User(id=1, name='old'))
    with app.request_scope(tenant) as scope:
        kept = scope.session().query(User).all()
        with committed(other, tenant) as writing:
            writing.session().get_one(User, 1).name = 'new'
        number = scope.snapshot_number
        with app.session_manager.engine.connect() as connection:
            connection.execute(select(Group.id)).all()
        assert scope.snapshot_number == number
        assert [user.name for user in kept] == ['old']
        assert app.names == ['new']
    for reader in app, other:
        assert value(reader, tenant, lambda app: app.names) == ['new']


def test_enclosing_scope_made_current_within_another(
    on_servers: Applications, tenant: str
) -> None:
    """Each application finds its own scope or none, in whatever order scopes are made current."""
    app = on_servers.start(App)
    other = on_servers.elsewhere(app)
    change(app, tenant, User(name='a'))
    with app.request_scope(tenant) as scope:
        with other.request_scope(tenant):
            with scope.active():
                assert app.names == ['a']
                with pytest.raises(OutsideScopeError):
                    other.names
            assert other.names == app.names == ['a']
        assert app.names == ['a']
        with pytest.raises(OutsideScopeError):
            other.names
    with pytest.raises(OutsideScopeError):
        app.names


def test_commit_of_a_scope_without_a_session(applications: Applications, tenant: str) -> None:
    """After `commit()` a scope reads nothing older than this commit, also if it only reads."""
    app = applications.start(App)
    other = applications.elsewhere(app)
    assert value(app, tenant, lambda app: app.names) == []
    with app.request_scope(tenant) as scope:
        assert app.names == []
        change(other, tenant, User(name='a'))
        assert app.names == []
        scope.commit()
        assert app.names == ['a']


def test_super_is_another_property(applications: Applications, tenant: str, runs: Runs) -> None:
    """A property that reads the one it overrides has a value of its own, and does not wait for
    its own lock."""

    class Derived(App):
        @orm_cached(policy=User)
        def names(self) -> Any:
            runs('derived')
            return [*super().names, 'more']

    app = applications.start(Derived, lock_timeout=60)
    change(app, tenant, User(name='a'))
    for _ in range(2):
        assert value(app, tenant, lambda app: app.names) == ['a', 'more']
    assert runs.count('derived') == 1


def test_super_of_a_request(applications: Applications, tenant: str) -> None:
    """In a request class, too, an overridden property is another property, and to read it by
    `super()` is no cycle."""

    class Request(OrmCacheApp.request_class):  # type: ignore[misc, name-defined]
        @orm_cached(policy=User)
        def names(self) -> Any:
            return [user.name for user in self.app.session().query(User)]

    class Derived(Request):
        @orm_cached(policy=User)
        def names(self) -> Any:
            return [*super().names, 'more']

    class Town(OrmCacheApp):
        request_class = Derived

    app = applications.start(Town)
    change(app, tenant, User(name='a'))
    for _ in range(2):
        with app.request_scope(tenant):
            request = app.request({'PATH_INFO': '/', 'REQUEST_METHOD': 'GET'})
            assert request.names == ['a', 'more']


def mounted(policy: Any, runs: Runs) -> Any:
    """Return the outermost of three apps, each mounted in the one before; the second one's
    requests have a property, which the third one's requests find, too."""

    class Outer(OrmCacheApp):
        pass

    class Middle(OrmCacheApp):
        pass

    class Inner(OrmCacheApp):
        pass

    Outer.mount(path='middle', app=Middle)(lambda: Middle())
    Middle.mount(path='inner', app=Inner)(lambda: Inner())

    @Middle.orm_cached(policy=policy, target='request')
    def names(request: Any) -> Any:
        runs('names')
        return [user.name for user in request.app.session().query(User).order_by(User.id)]

    for app_class in Middle, Inner:
        model = type('Model', (), {})
        app_class.path(path='')(model)
        app_class.json(model=model)(lambda self, request: request.names)
    return Outer


def test_request_property_of_an_app_in_between(
    applications: Applications, tenant: str, runs: Runs
) -> None:
    """A request property of an app has one value, also for the apps mounted below that app."""
    app = applications.start(mounted(User, runs))
    client = Client(OrmCacheMiddleware(app, schema=tenant))
    change(app, tenant, User(name='a'))
    assert client.get('/middle').json == client.get('/middle/inner').json == ['a']
    assert runs.count('names') == 1


def in_another_thread(do: Callable[[], object]) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(do).result()


def test_property_that_is_read_first_after_a_flush(
    applications: Applications, tenant: str, runs: Runs
) -> None:
    """A commit evicts a function policy that was not yet known when its objects were flushed."""
    app = applications.start(mounted(lambda obj: True, runs))
    client = Client(OrmCacheMiddleware(app, schema=tenant))
    change(app, tenant, User(name='a'))
    with committed(app, tenant) as scope:
        scope.session().add(User(name='b'))
        scope.session().flush()
        in_another_thread(lambda: client.get('/middle/inner'))
    assert client.get('/middle/inner').json == ['a', 'b']


def test_super_that_is_read_first_after_a_flush(applications: Applications, tenant: str) -> None:
    """A commit evicts such a policy, too, if only `super()` reads its property."""

    class WithFunction(OrmCacheApp):
        @orm_cached(policy=lambda obj: True)
        def names(self) -> Any:
            return [user.name for user in self.session().query(User).order_by(User.id)]

    class Derived(WithFunction):
        @property
        def names(self) -> Any:
            return super().names

    app = applications.start(Derived)
    change(app, tenant, User(name='a'))
    with committed(app, tenant) as scope:
        scope.session().add(User(name='b'))
        scope.session().flush()
        in_another_thread(lambda: value(app, tenant, lambda app: app.names))
    assert value(app, tenant, lambda app: app.names) == ['a', 'b']


def test_renewal_follows_the_last_commit(applications: Applications, tenant: str) -> None:
    """If a renewal fails while an earlier one of the same tenant is running, the next snapshot
    makes up for it."""
    app = applications.start(App)
    change(app, tenant, User(name='a'))
    cache = app.orm_cache
    renew, renewed = cache.tags.renew, []

    def renew_and_lose(schema: str) -> None:
        renewed.append(schema)
        if len(renewed) == 1:
            renew(schema)
            cache.renew_later(schema)  # as another thread may do meanwhile
        elif len(renewed) == 2:
            raise StoreUnreachable
        else:
            renew(schema)

    cache.tags.renew = renew_and_lose
    cache.renew_later(tenant)
    assert renewed == [tenant] * 2
    for _ in range(2):
        cache.snapshot(tenant)
    assert renewed == [tenant] * 3


def test_app_and_request_have_values_of_their_own(
    applications: Applications, tenant: str
) -> None:
    """One name on the app and on its requests is two properties."""

    class Two(OrmCacheApp):
        pass

    Two.orm_cached(policy=User, name='same')(lambda app: 'app')
    Two.orm_cached(policy=User, name='same', target='request')(lambda request: 'request')
    app = applications.start(Two)
    for _ in range(2):
        with app.request_scope(tenant):
            request = app.request({'PATH_INFO': '/', 'REQUEST_METHOD': 'GET'})
            assert (app.same, request.same) == ('app', 'request')


def test_request_cached_values_of_short_lived_apps(
    applications: Applications, tenant: str
) -> None:
    """An app that is mounted anew each time never sees the value of one that is gone."""

    class Inner(OrmCacheApp):
        def __init__(self, name: str) -> None:
            self.name = name

        @request_cached
        def mine(self) -> str:
            return self.name

    class Outer(OrmCacheApp):
        pass

    Outer.mount(app=Inner, path='/{name}')(lambda name: Inner(name))
    app = applications.start(Outer)
    with app.request_scope(tenant):
        for number in range(300):
            child: Any = app.child(Inner, name=str(number))
            assert child.mine == str(number)
            del child


def test_cascade_in_a_flush_of_the_same_table(applications: Applications, tenant: str) -> None:
    """Rows that the database deletes by a cascade evict function policies, even if the flush
    has another object of the same table, for which the policy returns false."""

    class WithFunction(OrmCacheApp):
        @orm_cached(policy=lambda obj: isinstance(obj, Document) and obj.title == 't')
        def count(self) -> int:
            return self.session().query(Document).filter_by(title='t').count()

    app = applications.start(WithFunction)
    user = User(name='a')
    change(app, tenant, user, Document(kind='document', title='t', owner=user))
    assert value(app, tenant, lambda app: app.count) == 1
    with committed(app, tenant) as scope:
        scope.session().delete(scope.session().query(User).one())
        scope.session().add(Document(kind='document', title='unrelated'))
    assert value(app, tenant, lambda app: app.count) == 0


def test_creator_that_commits(applications: Applications, tenant: str) -> None:
    """A value whose creator ended the transaction is not kept for the next transaction."""

    class Committing(OrmCacheApp):
        @orm_cached(policy=User)
        def count(self) -> int:
            found = self.session().query(User).count()
            self.session().commit()
            return found

    app = applications.start(Committing)
    with app.request_scope(tenant) as scope:
        seen = [app.count]
        scope.session().add(User(name='a'))
        seen += [app.count, app.count]
    assert seen == [0, 1, 1]


def test_flush_that_a_listener_refuses(applications: Applications, tenant: str) -> None:
    """A flush that a listener refuses leaves nothing behind: later statements evict as usual."""
    app = applications.start(App)
    assert value(app, tenant, lambda app: app.documents) == 0
    with committed(app, tenant) as scope:
        session = scope.session()

        def refuse(*arguments: Any) -> None:
            raise ValueError('refused')

        event.listen(session, 'before_flush', refuse)
        user = User(name='a')
        session.add(user)
        with pytest.raises(ValueError, match='refused'):
            session.flush()
        event.remove(session, 'before_flush', refuse)
        session.expunge(user)
        session.execute(insert(Document).values(kind='document', title='t', state='x'))
        assert app.documents == 1
    assert value(app, tenant, lambda app: app.documents) == 1


def test_prefetch_in_a_mounted_app(applications: Applications, tenant: str) -> None:
    """A mounted app's view can name the request properties of its app."""

    class Town(OrmCacheApp):
        pass

    class Wiki(OrmCacheApp):
        pass

    Town.mount(app=Wiki, path='/wiki')(lambda: Wiki())
    Wiki.orm_cached(policy=User, name='tree', target='request')(lambda request: ['tree'])
    Wiki.path(path='')(Root)

    @Wiki.json(model=Root, prefetch=['tree'])
    def view(self: Root, request: Any) -> Any:
        return request.tree

    client = Client(OrmCacheMiddleware(applications.start(Town), schema=tenant))
    for _ in range(2):
        assert client.get('/wiki').json == ['tree']


def test_a_hosts_own_values_in_the_request_cache(
    applications: Applications, tenant: str
) -> None:
    """A value that a host keeps in `request_cache` stays there, and does no harm."""
    app = applications.start(App)
    with app.request_scope(tenant) as scope:
        app.request_cache['mine'] = 1
        scope.session().add(User(name='a'))
        scope.session().commit()
        assert app.names == ['a']
        assert app.request_cache['mine'] == 1
