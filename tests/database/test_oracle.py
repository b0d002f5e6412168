"""The oracle knows the writers whose changes a transaction does not see."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.pool import NullPool

from onegov_ormcache.database.oracle import PostgresOracle


@pytest.fixture
def engine(postgres_dsn: str, tenant: str) -> Iterator[Engine]:
    """An engine without a pool, on a schema with one table."""
    made = create_engine(postgres_dsn, poolclass=NullPool)
    with made.begin() as connection:
        connection.execute(text(f'CREATE SCHEMA "{tenant}"'))
        connection.execute(text(f'CREATE TABLE "{tenant}".things (id int)'))
    yield made
    with made.begin() as connection:
        connection.execute(text(f'DROP SCHEMA "{tenant}" CASCADE'))
    made.dispose()


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    """The connection that asks, with one view for the whole transaction."""
    with engine.connect().execution_options(isolation_level='SERIALIZABLE') as made:
        yield made


@pytest.fixture
def oracle(connection: Connection) -> PostgresOracle:
    """An oracle that asks through `connection`."""
    return PostgresOracle(connection)


@pytest.fixture
def writer(engine: Engine) -> Iterator[Connection]:
    """The connection that is asked about."""
    with engine.connect() as made:
        yield made


def begin(writer: Connection) -> str:
    """Begin a writing transaction that has changed nothing yet; return its id."""
    found: str = writer.scalar(text('SELECT pg_current_xact_id()::text'))
    return found


def change(writer: Connection, schema: str) -> None:
    writer.execute(text(f'INSERT INTO "{schema}".things VALUES (1)'))


def take_view(connection: Connection) -> None:
    connection.execute(text('SELECT 1'))


def test_a_writer_that_has_changed_the_schema(
    writer: Connection, connection: Connection, oracle: PostgresOracle, tenant: str
) -> None:
    """A writer in progress is unseen if it has changed a table of one of the schemas."""
    number = begin(writer)
    assert oracle.unseen_writers([number], [tenant]) == []
    change(writer, tenant)
    assert oracle.unseen_writers([number], [tenant]) == [number]
    assert oracle.unseen_writers([number], ['other', tenant]) == [number]
    assert oracle.unseen_writers([number], ['other']) == []
    assert oracle.unseen_writers([], [tenant]) == []


def test_a_writer_that_only_reads_the_schema(
    writer: Connection, oracle: PostgresOracle, tenant: str
) -> None:
    """Locks of reads, and of rows that are locked for an update, are no changes."""
    number = begin(writer)
    writer.execute(text(f'SELECT * FROM "{tenant}".things FOR UPDATE'))
    assert oracle.unseen_writers([number], [tenant]) == []


def test_a_writer_that_committed_before_the_view(
    writer: Connection, oracle: PostgresOracle, tenant: str
) -> None:
    """The view shows the changes of a writer that had committed before."""
    number = begin(writer)
    change(writer, tenant)
    writer.commit()
    assert oracle.unseen_writers([number], [tenant]) == []


@pytest.mark.parametrize('changed', [True, False])
def test_a_writer_that_committed_after_the_view(
    writer: Connection, connection: Connection, oracle: PostgresOracle, tenant: str, changed: bool
) -> None:
    """What a writer has changed that ended after the view is not known any more."""
    number = begin(writer)
    if changed:
        change(writer, tenant)
    take_view(connection)
    writer.commit()
    assert oracle.unseen_writers([number], [tenant]) == [number]


def test_a_writer_that_was_rolled_back(
    writer: Connection, connection: Connection, oracle: PostgresOracle, tenant: str
) -> None:
    """A writer that was rolled back has not committed, whether it counts as unseen or not."""
    number = begin(writer)
    change(writer, tenant)
    take_view(connection)
    writer.rollback()
    assert not oracle.has_committed(oracle.unseen_writers([number], [tenant]))


@pytest.mark.parametrize('number', ['18446744073709551615', '99999999999', '18446744073709551616'])
def test_ids_that_the_database_has_not_given(
    engine: Engine, connection: Connection, oracle: PostgresOracle, tenant: str, number: str
) -> None:
    """An id from the future, or a text that is none, fails no question, and hides no writer."""
    take_view(connection)
    with engine.connect() as other:
        real = begin(other)
        change(other, tenant)
        numbers = [number, 'nonsense', '', '-1', real]
        assert real in oracle.unseen_writers(numbers, [tenant])
        assert not oracle.has_committed(numbers)
        assert list(oracle.writers_in_progress(tenant, numbers)) == [real]
        other.commit()
    assert oracle.has_committed(numbers)
    assert not oracle.writers_in_progress(tenant, numbers)


def test_a_prepared_writer(
    writer: Connection, oracle: PostgresOracle, tenant: str
) -> None:
    """A prepared transaction is in progress, and has changed what it had changed."""
    transaction = writer.begin_twophase(tenant)
    number = begin(writer)
    change(writer, tenant)
    transaction.prepare()
    try:
        assert oracle.unseen_writers([number], [tenant]) == [number]
        assert not oracle.has_committed([number])
    finally:
        transaction.commit()
    assert oracle.unseen_writers([number], [tenant]) == [number]
    assert oracle.has_committed([number])


def test_whether_a_writer_has_committed(
    engine: Engine, connection: Connection, oracle: PostgresOracle, tenant: str
) -> None:
    """A writer in progress or rolled back has not committed; the answer is the present one, and
    not that of the view."""
    take_view(connection)
    with engine.connect() as one, engine.connect() as two:
        numbers = [begin(one), begin(two)]
        assert not oracle.has_committed(numbers)
        one.rollback()
        assert not oracle.has_committed(numbers)
        two.commit()
        assert oracle.has_committed(numbers)
    assert not oracle.has_committed([])
