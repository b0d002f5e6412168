"""The cache of a program without Morepath: its scopes, its properties, its errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from onegov_ormcache import OrmCache, orm_cached, request_cached
from onegov_ormcache.errors import (
    ConfigurationError,
    InvalidSchemaError,
    OutsideScopeError,
    PolicyError,
    PropertyError,
    SecondProcessError,
    UnknownSchemaError,
)
from tests.support.backends import Backend
from tests.support.counting import Runs
from tests.support.models import Base, Group, User


class Names:
    """An object with cached properties, of a class that nobody has prepared."""

    def __init__(self, cache: OrmCache, role: str | None = None) -> None:
        self.orm_cache = cache
        self.identity = type('Identity', (), {'role': role})
        self.runs = Runs()

    @orm_cached(policy='on-table-change:users')
    def users(self) -> Any:
        self.runs('users')
        return self.orm_cache.session().query(User.name).order_by(User.name)

    @orm_cached(policy=lambda obj: isinstance(obj, Group))
    def groups(self) -> int:
        self.runs('groups')
        return self.orm_cache.session().query(Group).count()

    @orm_cached(policy=User, by_role=True)
    def greeting(self) -> str:
        return f'{self.identity.role}: {self.orm_cache.session().query(User).count()}'

    @request_cached
    def first(self) -> User | None:
        return self.orm_cache.session().query(User).first()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes what a test has made."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def cache(backend: Backend, stack: ExitStack) -> OrmCache:
    """A cache on each back end in turn."""
    return stack.enter_context(OrmCache(base=Base, **backend.settings))


def add(cache: OrmCache, tenant: str, *objects: object) -> None:
    """Add the objects in a transaction of their own."""
    with cache.scope(tenant) as scope:
        scope.session().add_all(objects)
        scope.commit()


def test_values_are_shared_by_objects_and_scopes(cache: OrmCache, tenant: str) -> None:
    """A value is computed once for all objects of a class, and anew after a change."""
    one, two = Names(cache), Names(cache)
    for names in (one, two, one):
        with cache.scope(tenant):
            assert names.users == ()
    assert (one.runs.total, two.runs.total) == (1, 0)
    add(cache, tenant, User(name='Ada'))
    with cache.scope(tenant):
        assert two.users == (('Ada',),)
        assert one.users == (('Ada',),)
        assert one.first is one.first
    assert (one.runs.total, two.runs.total) == (1, 1)


def test_function_policy_of_a_class_that_is_not_bound(cache: OrmCache, tenant: str) -> None:
    """A property is bound when it is first read, and its policy is asked from then on."""
    names = Names(cache)
    with cache.scope(tenant):
        assert names.groups == 0
    add(cache, tenant, User(name='Ada'))
    with cache.scope(tenant):
        assert names.groups == 0
    assert names.runs.count('groups') == 1
    add(cache, tenant, Group(name='Staff'))
    with cache.scope(tenant):
        assert names.groups == 1


def test_by_role(cache: OrmCache, tenant: str) -> None:
    """The role is that of the object's identity."""
    with cache.scope(tenant):
        said = [Names(cache, role).greeting for role in ('editor', None, 'editor')]
    assert said == ['editor: 0', 'None: 0', 'editor: 0']


def test_scopes_of_two_caches(backend: Backend, stack: ExitStack, tenant: str) -> None:
    """An object is read in the scope of its own cache, also within one of another."""
    folder = f'{backend.settings["dsn"]}/other' if backend.name == 'embedded' else None
    other_settings = {**backend.settings, 'namespace': f'{backend.settings["namespace"]}-other'}
    if folder:
        other_settings['dsn'] = folder
    mine = stack.enter_context(OrmCache(base=Base, **backend.settings))
    other = stack.enter_context(OrmCache(base=Base, **other_settings))
    add(mine, tenant, User(name='mine'))
    add(other, tenant, User(name='other'))
    with mine.scope(tenant), other.scope(tenant) as inner:
        assert ('mine',) in Names(mine).users
        assert ('other',) in Names(other).users
        assert other.current_scope() is inner
        assert mine.session() is not other.session()
        with mine.scope(tenant) as nested:
            assert mine.current_scope() is nested


def test_outside_of_a_scope(cache: OrmCache) -> None:
    """A read without a scope says how to open one."""
    with pytest.raises(OutsideScopeError, match=r'users .*with cache\.scope\(schema\)'):
        Names(cache).users
    with pytest.raises(OutsideScopeError, match=r'with cache\.scope\(schema\)'):
        cache.session()


def test_object_that_does_not_say_whose_it_is(cache: OrmCache, tenant: str) -> None:
    """An object without a cache says what it lacks."""

    class Lost:
        @orm_cached(policy=User)
        def users(self) -> int:
            return 0

    with cache.scope(tenant), pytest.raises(PropertyError, match=r"Lost has .* no .*'orm_cache'"):
        Lost().users


def test_bind_finds_wrong_policies(cache: OrmCache) -> None:
    """A policy that names no table is an error when the class is bound."""

    class Wrong:
        orm_cache = cache

        @orm_cached(policy='on-table-change:typo')
        def users(self) -> int:
            return 0

    with pytest.raises(PolicyError, match=r"Wrong\.users .*test_cache\.py:\d+.*'typo'"):
        cache.bind(Wrong)
    cache.bind(Names)


def test_schemas_are_created_only_if_the_program_says_so(cache: OrmCache, tenant: str) -> None:
    """`create=False` is for names that come from requests."""
    with pytest.raises(UnknownSchemaError, match=tenant), cache.scope(tenant, create=False):
        pass
    assert not cache.session_manager.has_schema(tenant)
    with cache.scope(tenant):
        pass
    with cache.scope(tenant, create=False) as scope:
        assert scope.schema == tenant
    for hostile in ('', 'public', 'a"b', '../up', 'x' * 64, None, 7):
        for create in (True, False):
            with pytest.raises(InvalidSchemaError), cache.scope(hostile, create=create):  # type: ignore[arg-type]
                pass


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({}, 'base'),
        ({'base': Base, 'attempts': 3}, "unknown setting 'attempts'"),
        ({'base': Base, 'commit_veto': None}, "unknown setting 'commit_veto'"),
        ({'base': Base, 'namespace': 'a b'}, 'namespace'),
        ({'base': Base, 'listen': True}, 'listen is on'),
    ],
    ids=['no base', 'of the tween', 'veto', 'hostile', 'listen on SQLite'],
)
def test_wrong_settings(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    """A wrong setting is an error when the cache is made, and nothing is left behind."""
    dsn = f'sqlite:///{tmp_path}/tenants'
    with pytest.raises(ConfigurationError, match=message):
        OrmCache(dsn=dsn, **settings)
    OrmCache(dsn=dsn, base=Base).close()


def test_cache_that_is_closed_gives_everything_back(embedded_backend: Backend) -> None:
    """Of two caches in memory on one database the second is refused until the first ends."""
    with OrmCache(base=Base, **embedded_backend.settings) as first:
        with pytest.raises(SecondProcessError):
            OrmCache(base=Base, **embedded_backend.settings)
        with first.scope('main'):
            assert Names(first).users == ()
    first.close()  # once more
    with OrmCache(base=Base, **embedded_backend.settings) as second, second.scope('main'):
        assert Names(second).users == ()


def test_prefetch(servers_backend: Backend, stack: ExitStack, tenant: str, redis_ops: Any) -> None:
    """What another process has computed comes in one command, beside the snapshot's."""
    settings = servers_backend.settings
    caches = [stack.enter_context(OrmCache(base=Base, **settings)) for _ in range(2)]
    for cache in caches:
        cache.bind(Names)
    with caches[0].scope(tenant):
        expected = (Names(caches[0]).users, Names(caches[0]).groups)
    names = Names(caches[1])
    with caches[1].scope(tenant), redis_ops(2):
        caches[1].prefetch(names, 'users', 'groups')
        assert (names.users, names.groups) == expected
    assert names.runs.total == 0
    with caches[1].scope(tenant), pytest.raises(PropertyError, match=r"Names has no .*'first'"):
        caches[1].prefetch(names, 'first')


def test_recording(cache: OrmCache, tenant: str) -> None:
    """What the cache does is told with the class's name and the tier."""
    with cache.recording() as events:
        for _ in range(2):
            with cache.scope(tenant):
                Names(cache).users
        add(cache, tenant, User(name='Ada'))
    name = f'{__name__}.Names.users'
    assert [(e.kind, e.name, e.tier) for e in events] == [
        ('read', name, 'creator'),
        ('read', name, 'process'),
        ('commit', '', None),
    ]


def test_representations_say_the_state(cache: OrmCache, tenant: str) -> None:
    """What a debugger shows of a cache, a scope, a snapshot and a transaction."""
    namespace = cache.settings.namespace
    with cache.scope(tenant) as scope:
        assert f"'{namespace}'" in repr(cache)
        assert repr(scope) == f'<RequestScope {tenant} without session, 0 values>'
        assert 'tags' in repr(scope.snapshot())
        scope.session().add(User(name='Ada'))
        scope.session().flush()
        (transaction,) = scope.transactions
        assert repr(transaction) == f"<WritePath open {tenant} ['table:users']>"
        assert repr(scope) == f'<RequestScope {tenant} with session, 0 values>'
