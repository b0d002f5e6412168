"""What the assertions of the test kit accept, and what they say otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from sqlalchemy import text

from onegov_ormcache.errors import (
    ArgumentError,
    ConfigurationError,
    OutsideScopeError,
    PropertyError,
    StoreUnreachable,
    UnknownSchemaError,
)
from onegov_ormcache.testing import (
    assert_cached,
    assert_evicted_by,
    assert_not_evicted,
    creator_runs,
    db_queries,
    disabled,
    open_app,
)
from tests.core.plain_objects import Names
from tests.hosts.bare import MakeBareHost
from tests.hosts.conftest import make_bare_host, make_host, other_tenant  # noqa: F401
from tests.support.applications import Applications, change
from tests.support.models import Group, User
from tests.support.servers import RedisServer

from .kit_site import Site


@pytest.fixture
def app(applications: Applications, tenant: str) -> Site:
    """An app on each back end in turn, whose tenant has no quarantine any more."""
    app = applications.start(Site)
    change(app, tenant, User(name='Eve'))
    change(app, tenant, User(name='Bob'))
    return app


@contextmanager
def fails(*said: str) -> Iterator[None]:
    """Expect an assertion to fail, with a message that has these texts."""
    with pytest.raises(AssertionError) as raised:
        yield
    for each in said:
        assert each in str(raised.value)


# assert_cached


def test_a_value_that_was_read(app: Site, tenant: str) -> None:
    """A value that a request has stored is cached for the next one, in the process and for all."""
    with fails(f"Site.users of '{tenant}' is not cached: no tier has it: it was never read"):
        assert_cached(app, 'users', schema=tenant)
    with app.request_scope(tenant):
        app.users
        assert_cached(app, 'users')
        for tier in ('request', 'process', 'shared'):
            assert_cached(app, 'users', tier=tier)  # type: ignore[arg-type]
    with creator_runs(app) as runs, db_queries(0):
        assert_cached(app, 'users', schema=tenant)
    assert runs.total == 0
    with fails('is not in the request tier: of those it is only in: process, shared'):
        assert_cached(app, 'users', tier='request', schema=tenant)


def test_a_value_that_another_process_has_stored(
    applications: Applications, app: Site, tenant: str
) -> None:
    """A value of another process is cached in the shared tier, and not in this process."""
    with app.request_scope(tenant):
        app.users
    other = applications.elsewhere(app)
    if other is app:
        return
    assert_cached(other, 'users', schema=tenant)
    assert_cached(other, 'users', schema=tenant, tier='shared')
    with fails('is not in the process tier: of those it is only in: shared'):
        assert_cached(other, 'users', schema=tenant, tier='process')


def test_a_value_that_was_evicted(app: Site, tenant: str) -> None:
    """The message names the tags that have changed."""
    with app.request_scope(tenant):
        app.users
    change(app, tenant, User(name='Ada'))
    with fails('is not cached: it was evicted: table:users changed since it was stored'):
        assert_cached(app, 'users', schema=tenant)
    with app.request_scope(tenant) as scope:
        app.users
        app.evict_all()
        scope.commit()
    with fails('it was evicted: everything (#code) changed'):
        assert_cached(app, 'users', schema=tenant)


def test_a_change_of_the_open_scope(app: Site, tenant: str) -> None:
    """In a scope that has changed a table, also without a flush, what depends on it is not
    cached; in others it is."""
    with app.request_scope(tenant):
        app.users
        app.session().add(User(name='Ada'))
        with fails("this scope's transaction has changed table:users itself"):
            assert_cached(app, 'users')
    assert_cached(app, 'users', schema=tenant)


def test_a_value_that_is_not_stored(app: Site, tenant: str) -> None:
    """The message says why the last run was not stored. The scope itself has kept its value."""
    with app.request_scope(tenant):
        app.untold
        assert_cached(app, 'untold', tier='request')
        with fails('Site.untold', 'is not cached: of those it is only in: request'):
            assert_cached(app, 'untold')
    with fails('no tier has it: its last run was not stored (it read no table)'):
        assert_cached(app, 'untold', schema=tenant)


def test_a_disabled_cache(app: Site, tenant: str) -> None:
    """While the cache is off, nothing is cached."""
    with app.request_scope(tenant):
        app.users
    with disabled(app), fails('is not cached: the cache is disabled'):
        assert_cached(app, 'users', schema=tenant)
    assert_cached(app, 'users', schema=tenant)


@pytest.mark.parametrize('args', [1, (1,)])
def test_values_by_argument(app: Site, tenant: str, args: Any) -> None:
    """The value of these arguments is meant, and no other one."""
    with app.request_scope(tenant):
        assert app.user_name(1) == 'Eve'
    assert_cached(app, 'user_name', args, schema=tenant)
    with fails(f"Site.user_name(2) of '{tenant}' is not cached: no tier has it"):
        assert_cached(app, 'user_name', args=2, schema=tenant)


def test_values_by_role(app: Site, tenant: str) -> None:
    """The value that the target sees is meant: the identity of an app or request counts."""

    class Editor:
        role = 'editor'

    with app.request_scope(tenant):
        app.greeting
    assert_cached(app, 'greeting', schema=tenant)
    app.identity = Editor()  # type: ignore[assignment]
    with fails('Site.greeting', 'no tier has it'):
        assert_cached(app, 'greeting', schema=tenant)


def test_wrong_questions(app: Site, tenant: str) -> None:
    """What can't be asked is an error that says what can, and no failed assertion."""
    with pytest.raises(PropertyError, match=r"no orm-cached property 'user'; it has .*users"):
        assert_cached(app, 'user', schema=tenant)
    with pytest.raises(PropertyError, match="no orm-cached property 'first'"):
        assert_cached(app, 'first', schema=tenant)
    with pytest.raises(ArgumentError, match='is called as'):
        assert_cached(app, 'user_name', schema=tenant)
    with pytest.raises(ArgumentError, match='is called as'):
        assert_cached(app, 'users', 3, schema=tenant)
    with pytest.raises(OutsideScopeError, match=r"assert_cached\(..., schema='main'\)"):
        assert_cached(app, 'users')
    with pytest.raises(UnknownSchemaError):
        assert_cached(app, 'users', schema='unknown')
    with pytest.raises(ConfigurationError, match='expected one of request, process, shared'):
        assert_cached(app, 'users', schema=tenant, tier='redis')  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match='assert_cached: expected an app'):
        assert_cached(Site, 'users', schema=tenant)


# assert_evicted_by and assert_not_evicted


def rename(app: Site, tenant: str, kind: Any, name: str) -> None:
    """Give an object another name, in a transaction of its own."""
    with app.request_scope(tenant) as scope:
        scope.session().query(kind).filter_by(name=name).one().name = f'{name} II'
        scope.commit()


@pytest.mark.parametrize(
    ('name', 'args', 'relevant', 'other'),
    [
        ('users', (), {'kind': User, 'name': 'Ada'}, {'kind': Group, 'name': 'Staff'}),
        ('groups', (), {'kind': Group, 'name': 'Staff'}, {'kind': User, 'name': 'Ada'}),
        ('has_ada', (), {'kind': User, 'name': 'Ada'}, {'kind': User, 'name': 'Tom'}),
        ('user_name', 7, {'kind': User, 'name': 'Ada', 'id': 7}, {'kind': User, 'name': 'Tom'}),
    ],
    ids=['table', 'auto', 'function', 'rows'],
)
def test_policies(
    app: Site, tenant: str, name: str, args: Any, relevant: dict[str, Any], other: dict[str, Any]
) -> None:
    """What a policy of each kind evicts is told from what it leaves, whether the value was stored
    before or not."""

    def made(kind: Any, **columns: Any) -> object:
        return kind(**columns)

    with assert_not_evicted(app, name, args, schema=tenant):
        change(app, tenant, made(**other))
    with fails('was evicted by a change of: ', 'The block has committed: '):
        with assert_not_evicted(app, name, args, schema=tenant):
            change(app, tenant, made(**relevant))
    with assert_evicted_by(app, name, args, schema=tenant):
        rename(app, tenant, relevant['kind'], relevant['name'])
    with fails('was not evicted.', 'It depends on: ', 'The block has committed: '):
        with assert_evicted_by(app, name, args, schema=tenant):
            rename(app, tenant, other['kind'], other['name'])


def test_messages_name_the_tags(app: Site, tenant: str, make_tenant: Callable[[str], str]) -> None:
    """They say what the value depends on, and what the block has committed, for whom."""
    with fails('It depends on: table:users\n', 'The block has committed: table:groups'):
        with assert_evicted_by(app, 'users', schema=tenant):
            change(app, tenant, Group(name='Staff'))
    with fails('The block has committed: nothing; it must commit what it changes'):
        with assert_evicted_by(app, 'users', schema=tenant):
            with app.request_scope(tenant) as scope:
                scope.session().add(User(name='Ada'))
                scope.session().flush()
    other = make_tenant('other')
    with fails(f'The block has committed: {other}: ', 'table:users'):
        with assert_evicted_by(app, 'users', schema=tenant):
            change(app, other, User(name='Ada'))
    with fails('was evicted by a change of: table:users\n'):
        with assert_not_evicted(app, 'users', schema=tenant):
            change(app, tenant, User(name='Ada'))


def test_in_the_open_scope(app: Site, tenant: str) -> None:
    """In a scope the tenant need not be named, and the scope's own commit counts."""
    with app.request_scope(tenant) as scope:
        with assert_evicted_by(app, 'users'):
            app.session().add(User(name='Ada'))
            scope.commit()
        with assert_not_evicted(app, 'users'):
            app.session().add(User(name='Tom'))
            app.session().rollback()
        with assert_evicted_by(app, 'users'):
            app.session().execute(text("UPDATE users SET name = 'Kim' WHERE id = 1"))
            scope.commit()
            app.users  # computed anew, and stored: evicted all the same


def test_evictions_by_hand(app: Site, tenant: str) -> None:
    """An eviction by hand counts, of the arguments that it names."""
    with app.request_scope(tenant) as scope:
        with assert_evicted_by(app, 'user_name', 1), assert_not_evicted(app, 'user_name', 2):
            app.evict('user_name', 1)
            scope.commit()
        with assert_evicted_by(app, 'users'), assert_evicted_by(app, 'user_name', 2):
            app.evict_all()
            scope.commit()


def test_what_is_never_stored_can_not_be_evicted(app: Site, tenant: str) -> None:
    """A value that can't be stored is an error before the block, with the reason."""
    for block in (assert_evicted_by, assert_not_evicted):
        with fails('Site.untold', 'can not be evicted, because it is not stored: no tier has it'):
            with block(app, 'untold', schema=tenant):
                raise ValueError('the block does not run')
        with disabled(app), fails('not stored: the cache is disabled'):
            block(app, 'users', schema=tenant).__enter__()
        with pytest.raises(PropertyError, match=f'{block.__name__}: Site has no'):
            block(app, 'nothing', schema=tenant).__enter__()
        with pytest.raises(ZeroDivisionError):
            block(app, 'failing', schema=tenant).__enter__()


def test_errors_of_the_block(app: Site, tenant: str) -> None:
    """An error of the block is raised as it is."""
    for block in (assert_evicted_by, assert_not_evicted):
        with pytest.raises(KeyError), block(app, 'users', schema=tenant):
            raise KeyError
    assert app.orm_cache.recorder is None


def test_a_lost_redis_tells_nothing(
    on_servers: Applications, own_redis: RedisServer, tenant: str
) -> None:
    """If Redis is lost in the block, nobody knows, and neither assertion passes."""
    app = on_servers.start(Site, redis_url=own_redis.url)
    for name in 'ab':
        change(app, tenant, User(name=name))
    for block in (assert_evicted_by, assert_not_evicted):
        with pytest.raises(StoreUnreachable, match='nobody knows what was evicted'):
            with block(app, 'users', schema=tenant):
                own_redis.pause()
        own_redis.resume()
        with closing(own_redis.client()) as client:
            client.ping()


def test_a_commit_of_which_redis_has_not_heard(
    on_servers: Applications, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a tag is in doubt, the database is asked whether its writer has committed."""
    app = on_servers.start(Site)
    for name in 'ab':
        change(app, tenant, User(name=name))

    def publish(*args: Any) -> None:
        raise StoreUnreachable

    with assert_evicted_by(app, 'users', schema=tenant), monkeypatch.context() as patch:
        patch.setattr(type(app.orm_cache.tags), 'publish', publish)
        change(app, tenant, User(name='c'))
        assert 'table:users' in app.orm_cache.snapshot(tenant).in_doubt


# without Morepath


def test_an_object_without_morepath(tmp_path: Any) -> None:
    """Objects with a cache of their own are asked by the same functions."""
    with open_app(Site, tmp_path) as app:
        names = Names(app.orm_cache)
        with app.request_scope('main'):
            names.users
        assert_cached(names, 'users', schema='main')
        with assert_evicted_by(names, 'users', schema='main'):
            change(app, 'main', User(name='Ada'))


def test_a_host_with_sessions_of_its_own(
    make_bare_host: MakeBareHost, tenant: str  # noqa: F811
) -> None:
    """The tenant of a host is the one that it works for, and its commits count."""
    host = make_bare_host()
    host.cache.enter_scope(tenant)
    for name in ('Ada', 'Bob'):
        host.session.add(User(name=name))
        host.session.commit()
    with fails('is not cached: no tier has it'):
        assert_cached(host, 'names')
    with assert_evicted_by(host, 'names'):
        host.session.add(User(name='Cleo'))
        host.session.commit()
    assert host.names == ['Ada', 'Bob', 'Cleo']
    assert_cached(host, 'names')
    with assert_not_evicted(host, 'names'):
        host.session.add(Group(name='Staff'))
        host.session.commit()
    with fails('was not evicted'), assert_evicted_by(host, 'names'):
        host.session.add(User(name='Dan'))
        host.session.flush()
    host.session.rollback()
