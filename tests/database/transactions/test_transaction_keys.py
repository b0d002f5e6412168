"""A transaction is known by the key that its begin has locked, until its outcome is visible."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Connection, Engine, create_engine, delete, insert, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from onegov_ormcache.database.oracle import PostgresOracle
from onegov_ormcache.database.session_manager import SessionManager
from tests.database.fakes import FakeScope, Item
from tests.database.transactions.outcomes import terminate


@pytest.fixture
def engine(postgres_dsn: str) -> Iterator[Engine]:
    """An engine that nobody watches."""
    made = create_engine(postgres_dsn, poolclass=NullPool)
    yield made
    made.dispose()


@pytest.fixture
def asking(engine: Engine) -> Iterator[Connection]:
    """The connection that asks."""
    with engine.connect() as made:
        yield made


@pytest.fixture
def oracle(asking: Connection) -> PostgresOracle:
    return PostgresOracle(asking)


@pytest.fixture
def writer(postgres: SessionManager, postgres_scope: FakeScope) -> Iterator[Connection]:
    """The connection of the transaction that is asked about."""
    with postgres.engine.connect() as made:
        yield made


def key_of(scope: FakeScope) -> str:
    inquiry = scope.listeners[-1].inquiry
    assert inquiry is not None
    return inquiry.key


def test_each_transaction_has_its_own(writer: Connection, postgres_scope: FakeScope) -> None:
    """No two transactions have the same key."""
    keys = set()
    for _ in range(3):
        writer.execute(insert(Item).values(name='a'))
        keys.add(key_of(postgres_scope))
        writer.rollback()
    assert len(keys) == 3


def rolled_back(dsn: str, writer: Connection) -> None:
    writer.rollback()


def committed(dsn: str, writer: Connection) -> None:
    writer.commit()


def cut(dsn: str, writer: Connection) -> None:
    """The client is gone without a word."""
    writer.connection.dbapi_connection.pgconn.finish()  # type: ignore[union-attr]
    writer.invalidate()


def terminated(dsn: str, writer: Connection) -> None:
    terminate(dsn, writer)
    writer.invalidate()


ENDS: list[Callable[[str, Connection], None]] = [rolled_back, committed, terminated, cut]


@pytest.mark.parametrize('end', ENDS, ids=lambda end: end.__name__)
def test_open_until_it_ends(
    writer: Connection,
    postgres_scope: FakeScope,
    oracle: PostgresOracle,
    postgres_dsn: str,
    end: Callable[[str, Connection], None],
) -> None:
    """It is open from its begin to its end, however it ends, and whoever asks how often."""
    writer.execute(text('SELECT 1'))
    key = key_of(postgres_scope)
    assert [oracle.is_open(key) for _ in range(3)] == [True] * 3
    end(postgres_dsn, writer)
    while oracle.is_open(key):  # the server has to notice the cut
        pass
    assert not oracle.is_open(key)


@pytest.mark.parametrize('end', ['COMMIT', 'ROLLBACK'])
def test_prepared_and_left(
    writer: Connection,
    postgres_scope: FakeScope,
    oracle: PostgresOracle,
    engine: Engine,
    namespace: str,
    end: str,
) -> None:
    """A prepared transaction is open, also after its client has gone, until somebody ends it."""
    writer.begin_twophase(namespace).prepare()
    key = key_of(postgres_scope)
    cut('', writer)
    assert oracle.is_open(key)
    with engine.connect().execution_options(isolation_level='AUTOCOMMIT') as connection:
        connection.exec_driver_sql(f"{end} PREPARED '{namespace}'")
    assert not oracle.is_open(key)


def test_locks_of_the_session_given_back(
    writer: Connection, postgres_scope: FakeScope, oracle: PostgresOracle
) -> None:
    """What a connection pooler or an application does to free locks leaves the key alone."""
    writer.execute(text('SELECT pg_advisory_unlock_all()'))
    writer.execute(text('SAVEPOINT a'))
    writer.execute(text('ROLLBACK TO a'))
    assert oracle.is_open(key_of(postgres_scope))


def test_a_role_without_rights(
    writer: Connection, postgres_scope: FakeScope, asking: Connection, namespace: str
) -> None:
    """A role that may see nothing of others, with `track_activities` off, knows it as well."""
    writer.execute(text('SET track_activities = off'))
    key = key_of(postgres_scope)
    pid = writer.scalar(text('SELECT pg_backend_pid()'))
    asking.execute(text(f'CREATE ROLE "{namespace}"'))
    asking.execute(text(f'SET LOCAL ROLE "{namespace}"'))
    query = text('SELECT xact_start FROM pg_stat_activity WHERE pid = :pid')
    assert asking.scalar(query, {'pid': pid}) is None, 'it sees nothing of others'
    oracle = PostgresOracle(asking)
    assert oracle.is_open(key)
    writer.rollback()
    assert not oracle.is_open(key)


@pytest.mark.parametrize('key', ['0', str(2**63 - 1), str(2**63), 'nonsense', ''])
def test_unknown_keys(asking: Connection, oracle: PostgresOracle, key: str) -> None:
    """A key that nobody has locked, or that is none, is that of a transaction that has ended.

    It may be from before a restore. The asking connection keeps its transaction.
    """
    asking.execute(text('CREATE TEMPORARY TABLE kept (id int) ON COMMIT DROP'))
    assert not oracle.is_open(key)
    assert asking.scalar(text('SELECT count(*) FROM kept')) == 0


def test_a_question_that_fails(
    writer: Connection, postgres_scope: FakeScope, asking: Connection, oracle: PostgresOracle
) -> None:
    """In a failed transaction nothing is known: it counts as open."""
    key = key_of(postgres_scope) if postgres_scope.listeners else '1'
    with pytest.raises(DBAPIError):
        asking.execute(text('SELECT nonsense'))
    assert oracle.is_open(key)


def test_asked_by_itself(
    writer: Connection, postgres_scope: FakeScope, asking: Connection, oracle: PostgresOracle
) -> None:
    """A transaction knows that it has not ended itself, although it would get its own lock."""
    writer.execute(text('SELECT 1'))
    key = key_of(postgres_scope)
    own = PostgresOracle(writer)
    assert [own.is_open(key), oracle.is_open(key), own.is_open(key)] == [True] * 3
    writer.rollback()
    assert not own.is_open(key)


def test_lost_while_asked(
    writer: Connection, asking: Connection, oracle: PostgresOracle, postgres_dsn: str
) -> None:
    """If its connection is lost, the oracle raises an error instead of answering."""
    assert not oracle.is_open('1')
    terminate(postgres_dsn, asking)
    with pytest.raises(DBAPIError) as raised:
        oracle.is_open('1')
    assert raised.value.connection_invalidated


def test_changed_rows(
    writer: Connection, postgres_scope: FakeScope, postgres: SessionManager
) -> None:
    """A listener hears how many rows each statement has changed, if that is known."""
    writer.execute(insert(Item), [{'name': 'a'}, {'name': 'b'}, {'name': 'c'}])
    writer.execute(update(Item).values(name=Item.name + '!'))
    writer.execute(update(Item).where(Item.name == 'a').values(name='e'))
    writer.execute(delete(Item).where(Item.name == 'f'))
    gone = delete(Item).where(Item.name == 'a!').returning(Item.name).cte()
    writer.execute(insert(Item).from_select(['name'], gone.select().where(gone.c.name == 'g!')))
    writer.execute(gone.select())
    writer.execute(text('DELETE FROM items'))
    assert postgres_scope.listeners[-1].rows == [3, 3, 0, 0, None, None, None]
