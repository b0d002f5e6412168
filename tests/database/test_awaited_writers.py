"""A schema waits for the transactions that may concern it, and for no others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

from onegov_ormcache.database.oracle import PostgresOracle, key_of, new_key
from tests.support.outside import libpq_url


@pytest.fixture
def other(make_tenant: Callable[[str], str]) -> str:
    """The name of another schema."""
    return make_tenant('other')


@pytest.fixture
def outside(postgres_dsn: str, tenant: str, other: str) -> Iterator[psycopg.Connection[Any]]:
    """The connection that is asked about; both schemas have a table."""
    with closing(psycopg.connect(libpq_url(postgres_dsn))) as connection:
        for schema in (tenant, other):
            connection.execute(f'CREATE SCHEMA "{schema}"')
            connection.execute(f'CREATE TABLE "{schema}".things (id int)')
            connection.execute(f"""
                CREATE FUNCTION "{schema}".one() RETURNS int LANGUAGE sql AS 'SELECT 1'
            """)
        connection.commit()
        yield connection


@pytest.fixture
def asking(postgres_dsn: str) -> Iterator[Connection]:
    """The connection that asks."""
    engine = create_engine(postgres_dsn, poolclass=NullPool)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@pytest.fixture
def oracle(asking: Connection) -> PostgresOracle:
    return PostgresOracle(asking, ['shared'])


def execute(connection: psycopg.Connection[Any], statement: str) -> str:
    """Execute a statement; return the id of its transaction."""
    connection.execute(statement)
    row = connection.execute('SELECT pg_current_xact_id()::text').fetchone()
    assert row is not None
    return str(row[0])


def lock(key: int, how: str = '') -> str:
    return f'SELECT pg_advisory_xact_lock{how}({key})'


#: What a prepared transaction of this database has done, and whether the schema T waits for it.
#: O is another schema.
PREPARED: dict[str, tuple[Callable[[str, str], str], bool]] = {
    'nothing': (lambda t, o: 'SELECT 1', False),
    'changed T': (lambda t, o: f'INSERT INTO "{t}".things VALUES (1)', True),
    'changed O': (lambda t, o: f'INSERT INTO "{o}".things VALUES (1)', False),
    'changed T in a savepoint': (
        lambda t, o: f'SAVEPOINT a; INSERT INTO "{t}".things VALUES (1)', True
    ),
    'read T': (lambda t, o: f'SELECT FROM "{t}".things FOR UPDATE', False),
    'made a table of T': (lambda t, o: f'CREATE TABLE "{t}".new (id int)', True),
    'worked for T': (lambda t, o: lock(new_key(t)), True),
    'worked for O': (lambda t, o: lock(new_key(o)), False),
    'worked for O, and concerned T': (
        lambda t, o: f'{lock(new_key(o))}; {lock(key_of(t), "_shared")}', True
    ),
}  # fmt: skip


@pytest.mark.parametrize('done', PREPARED)
def test_a_prepared_transaction(
    outside: psycopg.Connection[Any], oracle: PostgresOracle, tenant: str, other: str, done: str
) -> None:
    """A prepared transaction is awaited by a schema that it may concern, until it ends; and by
    shared schemas, of which it says nothing."""
    statement, is_awaited = PREPARED[done]
    outside.tpc_begin(tenant)
    number = execute(outside, statement(tenant, other))
    assert number in oracle.writers_in_progress(tenant), 'anything may follow'
    outside.tpc_prepare()
    try:
        assert (number in oracle.writers_in_progress(tenant)) is is_awaited
        assert bool(oracle.writers_in_progress(tenant, [number])) is is_awaited
        assert number in oracle.writers_in_progress('shared')
    finally:
        outside.tpc_rollback()
    assert number not in oracle.writers_in_progress(tenant)
    assert not oracle.writers_in_progress('shared', [number])


@pytest.fixture
def elsewhere(postgres_dsn: str, tenant: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection to another database of the server."""
    with closing(psycopg.connect(libpq_url(postgres_dsn), autocommit=True)) as connection:
        connection.execute(f'CREATE DATABASE {tenant}')
        try:
            url = make_url(postgres_dsn).set(database=tenant).render_as_string(False)
            with closing(psycopg.connect(libpq_url(url))) as there:
                yield there
        finally:
            connection.execute(f'DROP DATABASE {tenant} WITH (FORCE)')


def as_anybody(asking: Connection, name: str) -> None:
    """Take a role without any right."""
    asking.execute(text(f'CREATE ROLE "{name}"'))
    asking.execute(text(f'SET ROLE "{name}"'))


@pytest.mark.parametrize('activities', ['on', 'off'])
def test_a_writer_of_another_database(
    elsewhere: psycopg.Connection[Any],
    asking: Connection,
    oracle: PostgresOracle,
    tenant: str,
    activities: str,
) -> None:
    """A writer in another database is not awaited, whoever asks and whatever it tells others;
    nor when it was awaited first, as it was by earlier releases, nor when it is prepared."""
    elsewhere.execute(f'SET track_activities = {activities}')
    elsewhere.commit()
    as_anybody(asking, tenant)
    asking.execute(text('SELECT count(*) FROM pg_stat_activity'))  # what it tells is kept
    elsewhere.tpc_begin(tenant)
    number = execute(elsewhere, f'CREATE SCHEMA "{tenant}"; {lock(new_key(tenant))}')
    assert number not in oracle.writers_in_progress(tenant)
    assert not oracle.writers_in_progress(tenant, [number])
    elsewhere.tpc_prepare()
    try:
        for schema in (tenant, 'shared'):
            assert number not in oracle.writers_in_progress(schema)
    finally:
        elsewhere.tpc_rollback()


def test_a_writer_that_others_know_nothing_of(
    outside: psycopg.Connection[Any], asking: Connection, oracle: PostgresOracle, tenant: str
) -> None:
    """A writer of this database is awaited, also by a role that may not see what it does, and if
    it began after the role has looked at all activities."""
    as_anybody(asking, tenant)
    asking.execute(text('SELECT count(*) FROM pg_stat_activity'))
    with closing(psycopg.connect(outside.info.dsn, host=outside.info.host)) as late:
        number = execute(late, 'SET LOCAL track_activities = off')
        assert number in oracle.writers_in_progress(tenant)


def test_each_key_names_its_schema(tenant: str, other: str) -> None:
    """The keys of a schema end alike, whatever else they are, and fit into a bigint."""
    keys = {new_key(tenant) for _ in range(1000)} | {key_of(tenant)}
    assert len(keys) == 1001
    assert {key & 0xFFFF for key in keys} == {key_of(tenant) & 0xFFFF}
    assert min(keys) >= 0
    assert max(keys) < 1 << 63
