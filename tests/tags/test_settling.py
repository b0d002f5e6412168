"""Doubts and quarantines are ended by any reader, not too early, and without asking too often."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator

import pytest
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.pool import NullPool

from onegov_ormcache.database.oracle import PostgresOracle, new_key
from onegov_ormcache.tags.memory import MemoryTagStore
from onegov_ormcache.tags.settling import PATIENCE, Settler
from onegov_ormcache.tags.snapshot import Snapshot
from tests.tags.conformance import PAGES, USERS, put_in_doubt

LEASE = 10.0


class Clock:
    """A clock that goes on only when a test sets it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeOracle:
    """Knows of the transactions it was given, and notes what it is asked."""

    def __init__(self, *in_progress: str) -> None:
        self.open = set(in_progress)
        self.asked: list[str] = []

    def is_open(self, transaction_key: str) -> bool:
        self.asked.append(transaction_key)
        return transaction_key in self.open

    def writers_in_progress(self, schema: str, awaited: Collection[str] = ()) -> Collection[str]:
        self.asked.append(' '.join(awaited) or 'all')
        return sorted(self.open & set(awaited) if awaited else self.open)


class NotedStore(MemoryTagStore):
    """Notes what it is told to settle and to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.settled: list[tuple[str, float | None]] = []
        self.waiting: list[tuple[str, tuple[str, ...]]] = []

    def settle(self, schema: str, writer: str, lease: float | None) -> None:
        self.settled.append((writer, lease))
        super().settle(schema, writer, lease)

    def quarantine(self, schema: str, birth: str, waiting: Collection[str]) -> None:
        self.waiting.append((birth, tuple(waiting)))


@pytest.fixture
def clock() -> Clock:
    """The settler's clock."""
    return Clock()


@pytest.fixture
def store() -> NotedStore:
    """A store that notes what it is told."""
    return NotedStore()


@pytest.fixture
def settler(store: NotedStore, clock: Clock) -> Settler:
    """A settler with that clock."""
    return Settler(store, LEASE, clock)


def quarantined(*waiting: str, birth: str = 'birth') -> Snapshot:
    return Snapshot.of(birth, 'epoch', {}, {}, waiting)


# doubts


def test_waits_for_what_is_in_progress(store: NotedStore, settler: Settler) -> None:
    """A doubt whose transaction is open stays."""
    put_in_doubt(store, 'main', 'w', USERS, transaction_key='7')
    oracle = FakeOracle('7')
    settler.settle('main', store.snapshot('main'), [USERS], oracle)
    assert oracle.asked == ['7']
    assert store.settled == []


def test_settles_what_has_ended(store: NotedStore, settler: Settler) -> None:
    """A doubt whose transaction has ended, one way or another, is settled at once."""
    before = store.snapshot('main')
    put_in_doubt(store, 'main', 'w', USERS, transaction_key='7')
    settler.settle('main', store.snapshot('main'), [USERS], FakeOracle())
    assert store.settled == [('w', None)]
    after = store.snapshot('main')
    assert after.doubts == {}
    assert after.version(USERS) != before.version(USERS)


def test_asks_at_most_every_50_ms(store: NotedStore, settler: Settler, clock: Clock) -> None:
    """However many requests meet a doubt, the database is asked once per 50 ms."""
    assert PATIENCE == 0.05
    put_in_doubt(store, 'main', 'w', USERS, transaction_key='7')
    oracle = FakeOracle('7')
    for _ in range(10):
        settler.settle('main', store.snapshot('main'), [USERS], oracle)
    assert oracle.asked == ['7']
    clock.now += 0.049
    settler.settle('main', store.snapshot('main'), [USERS], oracle)
    assert oracle.asked == ['7']
    clock.now += 0.002
    for _ in range(10):
        settler.settle('main', store.snapshot('main'), [USERS], oracle)
    assert oracle.asked == ['7', '7']


def test_patience_is_per_doubt(store: NotedStore, settler: Settler) -> None:
    """The 50 ms are counted per doubt: a question about one does not delay another."""
    put_in_doubt(store, 'main', 'w', USERS, transaction_key='7')
    settler.settle('main', store.snapshot('main'), [USERS], oracle := FakeOracle('7', '8'))
    put_in_doubt(store, 'main', 'v', USERS, transaction_key='8')
    settler.settle('main', store.snapshot('main'), [USERS], oracle)
    assert oracle.asked == ['7', '8']


def test_leaves_other_tags_alone(store: NotedStore, settler: Settler) -> None:
    """The oracle is not asked about a doubt whose tags are not needed."""
    put_in_doubt(store, 'main', 'w', USERS, transaction_key='7')
    put_in_doubt(store, 'main', 'v', PAGES, transaction_key='8')
    oracle = FakeOracle()
    settler.settle('main', store.snapshot('main'), [PAGES], oracle)
    assert oracle.asked == ['8']
    assert set(store.snapshot('main').doubts) == {'w'}


@pytest.mark.parametrize('has_oracle', [True, False])
def test_lease_where_there_is_no_id(
    store: NotedStore, settler: Settler, has_oracle: bool
) -> None:
    """A doubt without a transaction id is left to its lease, and the oracle is not asked."""
    put_in_doubt(store, 'main', 'w', USERS, transaction_key='')
    oracle = FakeOracle()
    snapshot = store.snapshot('main')
    settler.settle('main', snapshot, [USERS], oracle if has_oracle else None)
    assert oracle.asked == []
    assert store.settled == [('w', LEASE)]
    assert store.snapshot('main') is snapshot


def test_lease_where_nobody_knows_ids(store: NotedStore, settler: Settler) -> None:
    """Without an oracle a transaction id is of no use: the lease decides."""
    put_in_doubt(store, 'main', 'w', USERS, transaction_key='7')
    settler.settle('main', store.snapshot('main'), [USERS], None)
    assert store.settled == [('w', LEASE)]


def test_nothing_to_settle(store: NotedStore, settler: Settler) -> None:
    """A tenant without doubts costs no question."""
    oracle = FakeOracle('7')
    settler.settle('main', store.snapshot('main'), [USERS], oracle)
    settler.end_quarantine('main', store.snapshot('main'), oracle)
    assert oracle.asked == []
    assert store.waiting == []


# quarantines


def test_quarantine_without_writers_ends_at_once(store: NotedStore, settler: Settler) -> None:
    """If no transaction writes, a quarantine ends at once."""
    settler.end_quarantine('main', quarantined(), FakeOracle())
    assert store.waiting == [('birth', ())]


def test_quarantine_waits_for_the_writers_of_its_birth(
    store: NotedStore, settler: Settler, clock: Clock
) -> None:
    """Transactions that were writing at the birth are noted once and awaited; later writers
    are not."""
    oracle = FakeOracle('7', '9')
    settler.end_quarantine('main', quarantined(), oracle)
    assert store.waiting == [('birth', ('7', '9'))]

    clock.now += 1
    oracle.open = {'7', '12'}
    settler.end_quarantine('main', quarantined('7', '9'), oracle)
    assert store.waiting[1:] == [('birth', ('7',))]

    clock.now += 1
    settler.end_quarantine('main', quarantined('7'), oracle)
    assert len(store.waiting) == 2, 'nothing new, so nothing to tell'

    clock.now += 1
    oracle.open = {'12'}
    settler.end_quarantine('main', quarantined('7'), oracle)
    assert store.waiting[2:] == [('birth', ())]
    assert oracle.asked == ['all', '7 9', '7', '7']


def test_quarantine_is_asked_for_every_50_ms(
    store: NotedStore, settler: Settler, clock: Clock
) -> None:
    """However many requests meet a quarantine, the database is asked once per 50 ms."""
    oracle = FakeOracle('7')
    for _ in range(10):
        settler.end_quarantine('main', quarantined('7'), oracle)
    assert oracle.asked == ['7']
    clock.now += 0.051
    settler.end_quarantine('main', quarantined('7'), oracle)
    assert oracle.asked == ['7', '7']
    settler.end_quarantine('main', quarantined('7', birth='another'), oracle)
    assert oracle.asked == ['7', '7', '7']


def test_callers_wait_for_the_one_that_asks(
    store: NotedStore, settler: Settler, clock: Clock
) -> None:
    """A caller that comes while another one asks goes on when the quarantine has ended, and does
    not ask itself, even if the answer took long."""
    oracle = FakeOracle()
    order: list[str] = []

    class Asked(FakeOracle):
        def writers_in_progress(
            self, schema: str, awaited: Collection[str] = ()
        ) -> Collection[str]:
            second.start()
            second.join(0.2)  # it would end at once if it did not wait
            clock.now += 1
            order.append('answered')
            return ()

    def ask_too() -> None:
        settler.end_quarantine('main', quarantined(), oracle)
        order.append('went on')

    second = threading.Thread(target=ask_too)
    settler.end_quarantine('main', quarantined(), Asked())
    second.join()
    assert order == ['answered', 'went on']
    assert store.waiting == [('birth', ())]
    assert oracle.asked == []
    assert not settler._asking, 'nothing is left of the birth'


def test_quarantine_lasts_a_lease_where_there_are_no_ids(
    store: NotedStore, settler: Settler, clock: Clock
) -> None:
    """Without an oracle a quarantine ends one lease after it was first seen."""
    settler.end_quarantine('main', quarantined(), None)
    assert store.waiting == [('birth', ('lease',))]
    clock.now += LEASE - 0.1
    settler.end_quarantine('main', quarantined('lease'), None)
    assert len(store.waiting) == 1
    clock.now += 0.2
    settler.end_quarantine('main', quarantined('lease'), None)
    assert store.waiting[1:] == [('birth', ())]


# PostgreSQL's answers


@pytest.fixture
def engine(postgres_dsn: str) -> Iterator[Engine]:
    """An engine without a pool: each connection is a new one."""
    made = create_engine(postgres_dsn, poolclass=NullPool)
    yield made
    made.dispose()


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    """The connection that asks."""
    with engine.connect() as made:
        yield made


@pytest.fixture
def writer(engine: Engine) -> Iterator[Connection]:
    """The connection that is asked about."""
    with engine.connect() as made:
        yield made


@pytest.fixture
def oracle(connection: Connection) -> PostgresOracle:
    """An oracle that asks through `connection`."""
    return PostgresOracle(connection)


def transaction_id(connection: Connection) -> str:
    found: str = connection.scalar(text('SELECT pg_current_xact_id()::text'))
    return found


def terminate(connection: Connection, other: Connection) -> None:
    """End the other connection's server process, and wait until it has ended."""
    pid = other.connection.dbapi_connection.info.backend_pid  # type: ignore[union-attr]
    assert connection.scalar(text('SELECT pg_terminate_backend(:pid, 10000)'), {'pid': pid})


def test_postgres_knows_open_transactions(writer: Connection, oracle: PostgresOracle) -> None:
    """A transaction of another connection is in progress until it ends."""
    number = transaction_id(writer)
    assert number in oracle.writers_in_progress('main')
    assert list(oracle.writers_in_progress('main', [number, '3'])) == [number]


ENDS: dict[str, Callable[[Connection, Connection], None]] = {
    'commit': lambda writer, connection: writer.commit(),
    'rollback': lambda writer, connection: writer.rollback(),
    'killed': lambda writer, connection: terminate(connection, writer),
}


@pytest.mark.parametrize('end', ENDS)
def test_postgres_knows_ended_transactions(
    writer: Connection, connection: Connection, oracle: PostgresOracle, end: str
) -> None:
    """A transaction that was committed, rolled back or killed is not in progress any more."""
    number = transaction_id(writer)
    ENDS[end](writer, connection)
    assert number not in oracle.writers_in_progress('main')
    assert not oracle.writers_in_progress('main', [number])
    writer.invalidate()


def test_postgres_knows_prepared_transactions(
    writer: Connection, oracle: PostgresOracle, namespace: str
) -> None:
    """A prepared transaction is in progress, whoever has prepared it."""
    transaction = writer.begin_twophase(namespace)
    number = transaction_id(writer)
    writer.execute(text('SELECT pg_advisory_xact_lock(:key)'), {'key': new_key('main')})
    transaction.prepare()
    assert number in oracle.writers_in_progress('main')
    assert list(oracle.writers_in_progress('main', [number])) == [number]
    transaction.rollback()
    assert not oracle.writers_in_progress('main', [number])


def test_postgres_and_readers(writer: Connection, oracle: PostgresOracle) -> None:
    """A transaction that only reads is not awaited, nor is the one of the asking connection,
    unless somebody else awaits it."""
    writer.execute(text('SELECT 1'))
    own = transaction_id(oracle._connection)
    waiting = list(oracle.writers_in_progress('main'))
    assert own not in waiting
    assert list(oracle.writers_in_progress('main', [own])) == [own]
    assert writer.scalar(text('SELECT pg_current_xact_id_if_assigned()')) is None


@pytest.mark.parametrize('number', ['3', '18446744073709551615', 'nonsense'])
def test_postgres_and_unknown_ids(
    connection: Connection, oracle: PostgresOracle, number: str
) -> None:
    """Ids that are too old, from the future or no ids at all are not in progress.

    The asking connection keeps its transaction.
    """
    connection.execute(text('CREATE TEMPORARY TABLE kept (id int) ON COMMIT DROP'))
    assert not oracle.writers_in_progress('main', [number])
    assert not oracle.has_committed([number])
    assert not oracle.is_open(number)
    assert connection.scalar(text('SELECT count(*) FROM kept')) == 0


def test_postgres_lost_while_asked(
    writer: Connection, connection: Connection, oracle: PostgresOracle
) -> None:
    """If its connection is lost, the oracle raises an error instead of answering."""
    oracle.writers_in_progress('main')
    terminate(writer, connection)
    with pytest.raises(Exception, match=r'terminat|closed|lost') as raised:
        oracle.writers_in_progress('main')
    assert getattr(raised.value, 'connection_invalidated', False)


def test_settles_with_postgres(
    writer: Connection, oracle: PostgresOracle, store: NotedStore, settler: Settler, clock: Clock
) -> None:
    """A doubt stays while its transaction is open, and is settled when that has ended."""
    writer.execute(text('SELECT pg_advisory_xact_lock(4711)'))
    put_in_doubt(store, 'main', 'w', USERS, transaction_key='4711')
    settler.settle('main', store.snapshot('main'), [USERS], oracle)
    assert store.snapshot('main').in_doubt == {USERS}
    writer.commit()
    clock.now += 1
    settler.settle('main', store.snapshot('main'), [USERS], oracle)
    assert store.snapshot('main').in_doubt == frozenset()
