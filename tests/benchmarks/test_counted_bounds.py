"""Counted costs, such as Redis commands, stay within their bounds. No time is measured here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

from onegov_ormcache import OrmCacheApp
from tests.support.counting import FileRuns, RedisCommands, SqlStatements

from . import schema as tables
from .case_herd import herd_of
from .case_scale import bytes_left, idle
from .contestants import OrmCache, Plain, cached_app, changed

#: The counted costs, and the most that each may be.
BOUNDS = {
    'Redis commands of a warm request': 1,
    'SQL statements of a warm request': 0,
    'Redis commands of a commit': 2,
    'waits for Redis in a commit': 1,
    'Redis commands of a cold value': 3,
    'SQL statements that a writing transaction has more than without a cache': 0,
    'creator runs of a cold herd': 1,
    'bytes that an idle tenant leaves in the process': 1023,
}

CountRedis = Callable[[], RedisCommands]
CountSql = Callable[[], AbstractContextManager[SqlStatements]]


def check(what: str, counted: float) -> None:
    """Fail if a counted cost is more than its bound."""
    assert counted <= BOUNDS[what], f'{what}: {counted:,.0f}, the bound is {BOUNDS[what]:,}'


@pytest.fixture
def filled(postgres_dsn: str, tenant: str) -> str:
    """A schema with the rows of the benchmarks."""
    tables.create(postgres_dsn, tenant)
    return tenant


@contextmanager
def application(
    dsn: str, redis_url: str, namespace: str, properties: int
) -> Iterator[OrmCacheApp]:
    app = cached_app(properties, dsn=dsn, redis_url=redis_url, namespace=namespace)
    try:
        yield app
    finally:
        app.close_orm_cache()


def read(app: Any, schema: str, properties: int) -> None:
    """Make one request that reads so many properties."""
    with app.request_scope(schema):
        for number in range(properties):
            assert len(getattr(app, f'p{number}')) == tables.ITEMS // tables.CATEGORIES


@pytest.mark.parametrize('properties', [1, 50, 200])
def test_warm_request(
    filled: str,
    postgres_dsn: str,
    redis_url: str,
    redis_commands: CountRedis,
    sql_statements: CountSql,
    properties: int,
) -> None:
    """A warm request takes one Redis command and no SQL, however many values it reads."""
    with application(postgres_dsn, redis_url, filled, properties) as app:
        read(app, filled, properties)
        with redis_commands() as redis, sql_statements() as sql:
            read(app, filled, properties)
        check('Redis commands of a warm request', redis.count)
        check('SQL statements of a warm request', sql.count + sql.checkouts)


@pytest.mark.parametrize(('objects', 'properties', 'roles'), [(1, 1, 0), (1000, 10, 20)])
def test_commit(
    filled: str,
    postgres_dsn: str,
    redis_url: str,
    redis_commands: CountRedis,
    objects: int,
    properties: int,
    roles: int,
) -> None:
    """A commit takes two Redis commands, however many objects, properties and roles."""
    contestant = OrmCache(postgres_dsn, redis_url, filled)
    try:
        contestant.change(1)  # the first one loads the scripts into the server
        contestant.requests(properties, 1, roles)
        with contestant.app.request_scope(filled) as scope:
            scope.session().connection()  # the transaction's snapshot is no part of its commit
            with redis_commands() as redis:
                changed(scope.session(), objects)
        check('Redis commands of a commit', redis.count)
    finally:
        contestant.close()


@pytest.mark.parametrize('objects', [1, 100, 1000])
def test_sql_of_a_transaction(
    filled: str, postgres_dsn: str, redis_url: str, sql_statements: CountSql, objects: int
) -> None:
    """A transaction that writes has no SQL statement more than it has without a cache."""
    counted = []
    for contestant in (Plain(postgres_dsn, filled), OrmCache(postgres_dsn, redis_url, filled)):
        contestant.change(1)  # the first one looks whether the tenant has its tables
        with sql_statements() as sql:
            contestant.change(objects)
        counted.append(sql.count)
        contestant.close()
    without, cached = counted
    check(
        'SQL statements that a writing transaction has more than without a cache',
        cached - without,
    )


@pytest.mark.parametrize('objects', [1, 100, 1000])
def test_waits_of_a_commit(
    filled: str,
    postgres_dsn: str,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
    objects: int,
) -> None:
    """A commit waits for one reply of Redis, however many objects it changes."""
    contestant = OrmCache(postgres_dsn, redis_url, filled)
    try:
        contestant.change(1)  # the first one loads the scripts into the server
        connection_class = contestant.app.orm_cache.tags.client.connection_pool.connection_class
        read_response = connection_class.read_response
        waits: list[object] = []

        def wait(connection: Any, *arguments: Any, **options: Any) -> Any:
            waits.append(connection)
            return read_response(connection, *arguments, **options)

        with contestant.app.request_scope(filled) as scope:
            scope.session().connection()
            monkeypatch.setattr(connection_class, 'read_response', wait)
            changed(scope.session(), objects)
        check('waits for Redis in a commit', len(waits))
    finally:
        contestant.close()


def test_cold_value(
    filled: str, postgres_dsn: str, redis_url: str, redis_commands: CountRedis
) -> None:
    """A value that no tier has takes the command of the snapshot, and two of its own."""
    with application(postgres_dsn, redis_url, filled, 2) as app:
        read(app, filled, 1)
        while app.orm_cache.snapshot(filled).quarantine is not None:
            read(app, filled, 1)
        with app.request_scope(filled) as scope, redis_commands() as redis:
            assert scope.schema == filled
            assert len(app.p1) == tables.ITEMS // tables.CATEGORIES
        check('Redis commands of a cold value', redis.count)


def test_cold_herd(filled: str, postgres_dsn: str, redis_url: str, file_runs: FileRuns) -> None:
    """If eight threads in two processes read a cold value, one of them runs the creator."""
    herd_of(postgres_dsn, redis_url, filled, 'onegov_ormcache', file_runs)
    assert file_runs.total > 0
    check('creator runs of a cold herd', file_runs.total)


def test_idle_tenant(postgres_dsn: str, redis_url: str, namespace: str) -> None:
    """A tenant that had a request once leaves less than a kilobyte in the process."""
    with application(postgres_dsn, redis_url, namespace, 10) as app:
        idle(app.orm_cache, 'first')
        left = bytes_left(app.orm_cache, [f'{namespace}-{at}' for at in range(300)])
    check('bytes that an idle tenant leaves in the process', left)
