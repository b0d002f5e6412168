"""Counted costs, such as Redis commands, stay within their bounds. No time is measured here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from itertools import islice, permutations
from typing import Any

import pytest
import redis
from sqlalchemy import select, update
from sqlalchemy.orm import Session
from webtest import TestApp as Client

from onegov_ormcache import OrmCacheApp, OrmCacheMiddleware, rows
from onegov_ormcache.tags.snapshot import BUCKETS
from tests.support.counting import FileRuns, RedisCommands, SqlStatements, bytes_sent
from tests.support.servers import RedisServer
from tests.tags.conformance import put_in_doubt

from . import schema as tables
from .books import BOOKS, WAYS, book_app, rename
from .case_herd import herd_of
from .case_policies import WithPolicy, policy_app
from .case_scale import bytes_left, idle
from .contestants import OrmCache, Plain, cached_app, changed
from .pages import NODES, site_class
from .schema import Item

#: The counted costs, and the most that each may be.
BOUNDS = {
    'Redis commands of a warm request': 1,
    'SQL statements of a warm request': 0,
    'Redis commands of a cached page': 1,
    'Redis commands of a cached page in a new process': 2,
    'SQL statements of a cached page': 0,
    'Redis commands of a commit': 2,
    'waits for Redis in a commit': 1,
    'Redis commands of a cold value': 3,
    'SQL statements that a writing transaction has more than without a cache': 0,
    'creator runs of a cold herd': 1,
    'bytes that an idle tenant leaves in the process': 1023,
    'Redis commands of warm books in a new process': 2,
    'Redis commands of cold books': 3,
    'queries of cold books': 1,
    'bytes of a snapshot for each policy for rows after one commit': 200,
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


def count_waits(contestant: OrmCache, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return a list that grows by one each time that the contestant waits for a reply of Redis."""
    connection_class = contestant.app.orm_cache.tags.client.connection_pool.connection_class
    read_response = connection_class.read_response
    waits: list[object] = []

    def wait(connection: Any, *arguments: Any, **options: Any) -> Any:
        waits.append(connection)
        return read_response(connection, *arguments, **options)

    monkeypatch.setattr(connection_class, 'read_response', wait)
    return waits


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
        with contestant.app.request_scope(filled) as scope:
            scope.session().connection()
            waits = count_waits(contestant, monkeypatch)
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


# responses


@pytest.fixture
def sites(
    postgres_dsn: str, redis_url: str, make_tenant: Callable[[str], str]
) -> Iterator[list[Client]]:
    """Clients of two processes that serve one site of pages. Both know the tenant, and neither has
    served a page."""
    schema = make_tenant('pages')
    tables.create(postgres_dsn, schema, NODES)
    settings = {'dsn': postgres_dsn, 'redis_url': redis_url, 'namespace': schema}
    with ExitStack() as stack:
        clients = []
        for _ in range(2):
            app = site_class(settings)()
            client = Client(OrmCacheMiddleware(app, schema=schema))
            stack.callback(app.close_orm_cache)
            with app.request_scope(schema) as scope:
                scope.session().execute(select(Item.id)).first()
            clients.append(client)
        yield clients


def test_cached_page(
    sites: list[Client], redis_commands: CountRedis, sql_statements: CountSql
) -> None:
    """A cached page, and a 304 for it, take one Redis command, no SQL and no connection."""
    client = sites[0]
    page = client.get('/pages/1')
    for headers, status in (({}, 200), ({'If-None-Match': page.headers['ETag']}, 304)):
        with redis_commands() as redis, sql_statements() as sql:
            again = client.get('/pages/1', headers=headers, status=status)
        assert again.body == (page.body if status == 200 else b'')
        check('Redis commands of a cached page', redis.count)
        check('SQL statements of a cached page', sql.count + sql.checkouts)


def test_cached_page_of_a_new_process(
    sites: list[Client], redis_commands: CountRedis, sql_statements: CountSql
) -> None:
    """A new process gets a page that others have stored by one command beside the snapshot's, and
    confirms a copy for the same."""
    client, other = sites
    page = client.get('/pages/1')
    tag = {'If-None-Match': client.get('/pages/2').headers['ETag']}
    for url, headers, status in (('/pages/1', {}, 200), ('/pages/2', tag, 304)):
        with redis_commands() as redis, sql_statements() as sql:
            found = other.get(url, headers=headers, status=status)
        assert found.body == (page.body if status == 200 else b'')
        check('Redis commands of a cached page in a new process', redis.count)
        check('SQL statements of a cached page', sql.count + sql.checkouts)


# rows


@contextmanager
def processes(dsn: str, redis_url: str, schema: str, number: int) -> Iterator[list[Any]]:
    """Make applications with books, each as a process of its own would have it, with the scripts
    loaded and the tenant known."""
    with ExitStack() as stack:
        apps = [book_app(dsn, redis_url, schema) for _ in range(number)]
        for app in apps:
            stack.callback(app.close_orm_cache)
            with app.request_scope(schema) as scope:
                app.book(tables.ITEMS - 1)
                app.book.many([tables.ITEMS - 2])
                scope.session().execute(select(Item.id)).first()
        yield apps


def read_books(app: Any, schema: str, way: str) -> None:
    with app.request_scope(schema):
        assert len(WAYS[way](app)) == len(BOOKS)


@pytest.mark.parametrize('way', WAYS)
def test_warm_books(
    filled: str,
    postgres_dsn: str,
    redis_url: str,
    redis_commands: CountRedis,
    sql_statements: CountSql,
    way: str,
) -> None:
    """A request that reads fifty warm books takes one Redis command and no SQL."""
    with processes(postgres_dsn, redis_url, filled, 1) as (app,):
        read_books(app, filled, way)
        with redis_commands() as redis, sql_statements() as sql:
            read_books(app, filled, way)
        check('Redis commands of a warm request', redis.count)
        check('SQL statements of a warm request', sql.count + sql.checkouts)


@pytest.mark.parametrize('way', [way for way in WAYS if way != 'one by one'])
def test_books_of_a_new_process(
    filled: str,
    postgres_dsn: str,
    redis_url: str,
    redis_commands: CountRedis,
    sql_statements: CountSql,
    way: str,
) -> None:
    """A new process gets fifty books that others have stored by one command beside the
    snapshot's."""
    with processes(postgres_dsn, redis_url, filled, 2) as (app, other):
        read_books(app, filled, way)
        with redis_commands() as redis, sql_statements() as sql:
            read_books(other, filled, way)
        check('Redis commands of warm books in a new process', redis.count)
        check('SQL statements of a warm request', sql.count + sql.checkouts)


def test_cold_books(
    filled: str,
    postgres_dsn: str,
    redis_url: str,
    redis_commands: CountRedis,
    sql_statements: CountSql,
) -> None:
    """Fifty cold books that ``many=`` computes take the command of the snapshot, one to look and
    claim, and one to store; and one query."""
    with processes(postgres_dsn, redis_url, filled, 1) as (app,):
        with redis_commands() as redis, sql_statements() as sql:
            read_books(app, filled, 'many() and many=')
        check('Redis commands of cold books', redis.count)
        check('queries of cold books', sum('FROM items' in each for each in sql.statements))
        assert app.runs.count('books') == 1


@pytest.mark.parametrize('way', WAYS)
def test_renamed_book(
    filled: str, postgres_dsn: str, redis_url: str, redis_commands: CountRedis, way: str
) -> None:
    """After one of fifty books is renamed, its creator alone runs again."""
    with processes(postgres_dsn, redis_url, filled, 1) as (app,):
        read_books(app, filled, way)
        with app.request_scope(filled) as scope:
            rename(scope.session())
        before = app.runs.total
        with redis_commands() as redis:
            read_books(app, filled, way)
        assert app.runs.total == before + 1
        check('Redis commands of cold books', redis.count)


def change_objects(session: Session) -> None:
    changed(session, tables.ITEMS)


def change_by_keys(session: Session) -> None:
    """Change all items by one statement that is executed for each key."""
    ids = [{'id': id, 'value': 1} for id in range(tables.ITEMS)]
    session.execute(update(Item), ids)
    session.commit()


@pytest.mark.parametrize('name', ['rows, primary key', 'rows, other column', 'rows, both'])
@pytest.mark.parametrize('change', [change_objects, change_by_keys])
def test_commit_of_rows(
    filled: str,
    postgres_dsn: str,
    redis_url: str,
    redis_commands: CountRedis,
    sql_statements: CountSql,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    change: Callable[[Session], None],
) -> None:
    """A commit of a thousand rows costs two Redis commands, one wait, and no SQL with policies for
    rows as with others."""
    plain = Plain(postgres_dsn, filled)
    with plain.request() as session, sql_statements() as without:
        change(session)
    plain.close()
    contestant = WithPolicy(name, postgres_dsn, redis_url, filled)
    try:
        contestant.change(1)  # the first one loads the scripts into the server
        with contestant.app.request_scope(filled):
            contestant.app.shown(1)
        with contestant.app.request_scope(filled) as scope:
            scope.session().connection()  # the transaction's snapshot is no part of its commit
            with redis_commands() as commands, sql_statements() as sql:
                with monkeypatch.context() as patched:
                    waits = count_waits(contestant, patched)
                    change(scope.session())
        check('Redis commands of a commit', commands.count)
        check('waits for Redis in a commit', len(waits))
        check(
            'SQL statements that a writing transaction has more than without a cache',
            sql.count - without.count,
        )
    finally:
        contestant.close()


def test_snapshot_of_many_tags(filled: str, postgres_dsn: str, own_redis: RedisServer) -> None:
    """With 10,000 tags of rows, a snapshot after a commit is as large as what that has changed."""
    columns = Item.id, Item.category, Item.level, Item.name, Item.value
    some = islice(permutations(columns, 3), 40)
    policies = [rows(*each, argument=['key'] * 3) for each in some]
    with ExitStack() as stack:
        writer, reader = [
            policy_app(policies, postgres_dsn, own_redis.url, filled) for _ in range(2)
        ]
        for app in (writer, reader):
            stack.callback(app.close_orm_cache)
            with app.request_scope(filled) as scope:
                app.shown(1)
                scope.session().connection()
        cache = writer.orm_cache
        bound = cache.registry.rows.of_table(Item.__tablename__)
        tags = [policy.bucket_tag(at) for policy in bound for at in range(BUCKETS)]
        assert len(tags) > 10_000
        for first in range(0, len(tags), 1000):
            part = tags[first : first + 1000]
            put_in_doubt(cache.tags, filled, 'writer', *part)
            cache.tags.publish(filled, 'writer', part)
        reader.orm_cache.snapshot(filled)
        with writer.request_scope(filled) as scope:
            rename(scope.session())
        client = stack.enter_context(closing(redis.Redis.from_url(own_redis.url)))
        sent = bytes_sent(client, lambda: reader.orm_cache.snapshot(filled))
        assert len(reader.orm_cache.snapshot(filled).versions) > 10_000
        check(
            'bytes of a snapshot for each policy for rows after one commit', sent / len(policies)
        )
