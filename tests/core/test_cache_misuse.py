"""The cache of a program without Morepath: wrong use is an error, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onegov_ormcache import OrmCache, OrmCacheApp, SessionManager, orm_cached
from onegov_ormcache.errors import (
    CacheClosedError,
    ConfigurationError,
    InvalidSchemaError,
    OutsideScopeError,
    PolicyError,
    PropertyConflictError,
    PropertyError,
    SecondProcessError,
    UnknownSchemaError,
)
from tests.core.plain_objects import Names
from tests.support.applications import Applications
from tests.support.backends import Backend
from tests.support.models import Base, User


def test_outside_of_a_scope(cache: OrmCache) -> None:
    """A read without a scope says how to open one."""
    with pytest.raises(OutsideScopeError, match=r'users .*with cache\.scope\(schema\)'):
        Names(cache).users
    with pytest.raises(OutsideScopeError, match=r'with cache\.scope\(schema\)'):
        cache.session()


def test_object_that_does_not_say_whose_it_is(cache: OrmCache, tenant: str) -> None:
    """An object that belongs to no cache is told what it lacks."""

    class Lost:
        @orm_cached(policy=User)
        def users(self) -> int:
            return 0

    lost: Any = Lost()
    with pytest.raises(OutsideScopeError) as outside:
        lost.users
    assert 'attribute' not in str(outside.value)
    with cache.scope(tenant):
        with pytest.raises(OutsideScopeError, match=r"Lost has no attribute 'orm_cache'"):
            lost.users
        lost.orm_cache = OrmCache
        with pytest.raises(OutsideScopeError):
            lost.users
        lost.orm_cache = cache
        assert lost.users == 0


def test_bind_finds_wrong_policies(cache: OrmCache) -> None:
    """A policy that names no table is an error when the class is bound."""

    class Wrong:
        orm_cache = cache

        @orm_cached(policy='on-table-change:typo')
        def users(self) -> int:
            return 0

    with pytest.raises(PolicyError, match=r"Wrong\.users .*test_cache_misuse\.py:\d+.*'typo'"):
        cache.bind(Wrong)
    for nothing in (type('Empty', (), {}), Names(cache), 'Names', None):
        with pytest.raises(PropertyError, match='is no class with cached properties'):
            cache.bind(nothing)  # type: ignore[arg-type]
    cache.bind(Names)


def test_two_classes_of_one_name(cache: OrmCache, tenant: str) -> None:
    """Two classes that have the same module and name would share their values: the second is
    refused, in whichever way it is bound."""

    def make(value: int) -> Any:
        class Twin:
            orm_cache = cache

            @orm_cached(policy=User)
            def number(self) -> int:
                return value

        return Twin

    first, second = make(1), make(2)
    with cache.scope(tenant):
        assert first().number == 1
        with pytest.raises(PropertyConflictError, match=r'Twin\.number .*misuse\.py:\d+'):
            second().number
        with pytest.raises(PropertyConflictError):
            cache.bind(second)
        assert first().number == 1
        for value in (5, 6):  # not declared in the class body: both are called '<lambda>'
            setattr(first, f'late{value}', orm_cached(policy=User)(lambda self: 5))
        assert first().late5 == 5
        with pytest.raises(PropertyConflictError):
            first().late6

        class Heir(first):  # type: ignore[misc]
            """Of another name, with the same property."""

        assert Heir().number == 1


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


def test_failed_cache_leaves_a_running_one_alone(embedded_backend: Backend) -> None:
    """A second cache on the session manager of a running one is refused, and does not take the
    claim on the database away from it."""
    with OrmCache(base=Base, **embedded_backend.settings) as running:
        for _ in range(2):
            with pytest.raises(SecondProcessError):
                OrmCache(session_manager=running.session_manager)
            with pytest.raises(SecondProcessError):
                OrmCache(base=Base, **embedded_backend.settings)
        with running.scope('main'):
            assert Names(running).users == ()


def test_cache_that_can_not_be_bound_gives_everything_back(
    embedded: Applications, embedded_backend: Backend
) -> None:
    """A policy that is found wrong when the app is set up leaves no claim on the database."""

    class Wrong(OrmCacheApp):
        def __init__(self) -> None:
            # the app does not know the tables when it is committed
            self.session_manager = SessionManager(embedded_backend.settings['dsn'], Base)

        @orm_cached(policy='on-table-change:typo')
        def users(self) -> int:
            return 0

    with pytest.raises(PolicyError, match='typo'):
        embedded.start(Wrong, base=None)
    OrmCache(base=Base, **embedded_backend.settings).close()


def test_cache_that_is_closed_gives_everything_back(embedded_backend: Backend) -> None:
    """Of two caches in memory on one database the second is refused until the first ends."""
    with OrmCache(base=Base, **embedded_backend.settings) as first:
        with pytest.raises(SecondProcessError):
            OrmCache(base=Base, **embedded_backend.settings)
        with first.scope('main'):
            assert Names(first).users == ()
    first.close()  # once more
    for create in (True, False):
        with pytest.raises(CacheClosedError), first.scope('main', create=create):
            pass
    with OrmCache(base=Base, **embedded_backend.settings) as second, second.scope('main'):
        assert Names(second).users == ()
