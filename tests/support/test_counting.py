"""The counters see all that happens, once, and nothing else."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing

import pytest
import redis
from sqlalchemy import Column, Engine, Integer, MetaData, Table, create_engine, insert, text
from sqlalchemy.pool import NullPool, StaticPool

from tests.support.backends import Backend
from tests.support.counting import (
    FileRuns,
    RedisCommands,
    Runs,
    SqlStatements,
    parse_monitor_line,
)

CountCommands = Callable[[], RedisCommands]
CountStatements = Callable[[], AbstractContextManager[SqlStatements]]
AssertCommands = Callable[[int], AbstractContextManager[RedisCommands]]
AssertStatements = Callable[[int], AbstractContextManager[SqlStatements]]

numbers = Table('numbers', MetaData(), Column('number', Integer, primary_key=True))


@pytest.fixture
def client(redis_url: str, namespace: str) -> Iterator[redis.Redis]:
    with closing(redis.Redis.from_url(redis_url)) as client:
        yield client
        client.delete(namespace)


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = create_engine('sqlite://', poolclass=StaticPool)
    numbers.create(engine)
    yield engine
    engine.dispose()


def test_commands_are_counted_once_each(
    client: redis.Redis, namespace: str, redis_commands: CountCommands
) -> None:
    """Commands within the block are listed in order; those before and after are not."""
    client.set(namespace, 'before')
    with redis_commands() as seen:
        client.set(namespace, 'during')
        client.get(namespace)
    client.set(namespace, 'after')
    assert seen.commands == [('SET', namespace, 'during'), ('GET', namespace)]
    assert seen.count == 2


def test_count_can_be_read_within_the_block(
    client: redis.Redis, namespace: str, redis_commands: CountCommands
) -> None:
    """The count is exact while the block still runs, and reading it does not count."""
    with redis_commands() as seen:
        assert seen.count == 0
        client.get(namespace)
        assert seen.count == 1
        client.get(namespace)
        assert seen.count == 2


def test_commands_of_all_clients_are_counted(
    client: redis.Redis, redis_url: str, namespace: str, redis_commands: CountCommands
) -> None:
    """It does not matter which client or thread sent a command."""

    def increment(_: int) -> None:
        with closing(redis.Redis.from_url(redis_url)) as other:
            other.incr(namespace)

    with redis_commands() as seen:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(increment, range(20)))
    assert seen.commands == [('INCRBY', namespace, '1')] * 20
    assert client.get(namespace) == b'20'


def test_a_script_is_one_command(
    client: redis.Redis, namespace: str, redis_commands: CountCommands
) -> None:
    """Commands that a Lua script runs are part of the script and not counted."""
    source = "redis.call('SET', KEYS[1], 1) return redis.call('GET', KEYS[1])"
    script = client.register_script(source)
    script(keys=[namespace])
    with redis_commands() as seen:
        assert script(keys=[namespace]) == b'1'
    assert [command[0] for command in seen.commands] == ['EVALSHA']


def test_a_transaction_is_all_its_commands(
    client: redis.Redis, namespace: str, redis_commands: CountCommands
) -> None:
    """MULTI, EXEC and the commands between them count once each."""
    with redis_commands() as seen:
        pipeline = client.pipeline(transaction=True)
        pipeline.set(namespace, 1)
        pipeline.get(namespace)
        pipeline.execute()
    assert sorted(command[0] for command in seen.commands) == ['EXEC', 'GET', 'MULTI', 'SET']


def test_connection_setup_is_listed_apart(
    redis_url: str, namespace: str, redis_commands: CountCommands
) -> None:
    """Commands that a client sends only to connect do not count."""
    with redis_commands() as seen:
        with closing(redis.Redis.from_url(redis_url, client_name='me')) as client:
            client.ping()
            client.get(namespace)
    assert seen.commands == [('GET', namespace)]
    assert ('CLIENT', 'SETNAME', 'me') in seen.setup
    assert ('PING',) in seen.setup


def test_other_client_commands_count(client: redis.Redis, redis_commands: CountCommands) -> None:
    """CLIENT counts, unless its subcommand only sets up the connection."""
    with redis_commands() as seen:
        client.client_id()
    assert seen.commands == [('CLIENT', 'ID')]


@pytest.mark.parametrize(
    'value', ['', 'two words', 'a "quote"', 'back\\', '\\" "', 'l\ni\rn\te\a\b', 'größe', '\\x41']
)
def test_arguments_are_what_was_sent(
    client: redis.Redis, namespace: str, redis_commands: CountCommands, value: str
) -> None:
    """Arguments are listed as they were sent, whatever is in them."""
    with redis_commands() as seen:
        client.set(namespace, value)
    assert seen.commands == [('SET', namespace, value)]


def test_bytes_that_are_no_text_can_be_listed(
    client: redis.Redis, namespace: str, redis_commands: CountCommands
) -> None:
    """Binary arguments show as escapes."""
    with redis_commands() as seen:
        client.set(namespace, b'\x00\xff')
    assert seen.commands == [('SET', namespace, '\x00\\xff')]


def test_a_strange_line_is_refused() -> None:
    """A line that is not understood is an error, so that no command is missed."""
    with pytest.raises(ValueError, match='no line of MONITOR'):
        parse_monitor_line(b'something else')


def test_the_embedded_backend_has_no_commands(
    embedded_backend: Backend, redis_commands: CountCommands, redis_ops: AssertCommands
) -> None:
    """Without a Redis server nothing is counted, and `redis_ops` accepts every number."""
    with redis_commands() as seen:
        pass
    assert (seen.count, seen.commands, seen.setup) == (0, [], [])
    with redis_ops(7):
        pass


def test_commands_of_the_backend_are_counted(
    backend: Backend, namespace: str, redis_commands: CountCommands
) -> None:
    """The counters look at the Redis server of the backend that the test uses."""
    with redis_commands() as seen:
        if url := backend.settings['redis_url']:
            with closing(redis.Redis.from_url(url)) as client:
                client.get(namespace)
    assert seen.count == (0 if backend.name == 'embedded' else 1)


def test_redis_ops_passes_on_the_exact_number(
    client: redis.Redis, namespace: str, redis_ops: AssertCommands
) -> None:
    """The exact number passes, also if it is 0."""
    with redis_ops(2):
        client.get(namespace)
        client.get(namespace)
    with redis_ops(0):
        pass


@pytest.mark.parametrize('expected', [0, 1, 3])
def test_redis_ops_fails_on_any_other(
    client: redis.Redis, namespace: str, redis_ops: AssertCommands, expected: int
) -> None:
    """One too few or too many fails, and the message lists what was seen."""
    message = rf'(?s){expected} Redis commands, seen 2.*1\. GET {namespace}.*2\. GET {namespace}'
    with pytest.raises(AssertionError, match=message), redis_ops(expected):
        client.get(namespace)
        client.get(namespace)


def test_an_error_in_the_block_is_not_hidden(
    client: redis.Redis, namespace: str, redis_ops: AssertCommands, db_queries: AssertStatements
) -> None:
    """An error in a block is raised, not the failed assertion of a count that it made wrong."""
    with pytest.raises(ZeroDivisionError), redis_ops(5), db_queries(5):
        1 / 0
    with redis_ops(1):
        client.get(namespace)


def test_statements_are_counted(engine: Engine, sql_statements: CountStatements) -> None:
    """Statements within the block are listed; those before and after are not."""
    with engine.connect() as connection:
        connection.execute(text('SELECT 1'))
        with sql_statements() as seen:
            connection.execute(text('SELECT 2'))
            connection.execute(text('SELECT 3'))
        connection.execute(text('SELECT 4'))
    assert seen.statements == ['SELECT 2', 'SELECT 3']
    assert seen.count == 2


def test_statements_of_any_engine_are_counted(
    postgres_dsn: str, engine: Engine, sql_statements: CountStatements
) -> None:
    """Engines of any database are seen, also those that are made within the block."""
    with sql_statements() as seen:
        for each in (engine, create_engine(postgres_dsn, poolclass=NullPool)):
            with each.connect() as connection:
                connection.execute(text('SELECT 1'))
    assert seen.statements == ['SELECT 1', 'SELECT 1']
    assert seen.checkouts == 2


def test_many_rows_are_one_statement(engine: Engine, sql_statements: CountStatements) -> None:
    """A statement counts once however many rows it carries."""
    with sql_statements() as seen, engine.begin() as connection:
        connection.execute(insert(numbers), [{'number': number} for number in range(50)])
    assert seen.count == 1


def test_connections_without_statements_are_seen(
    engine: Engine, sql_statements: CountStatements
) -> None:
    """Taking a connection from its pool is counted, also if it then has nothing to do."""
    with sql_statements() as seen:
        engine.connect().close()
        engine.connect().close()
    assert (seen.checkouts, seen.count) == (2, 0)


def test_ends_of_transactions_are_counted(engine: Engine, sql_statements: CountStatements) -> None:
    """Commits and rollbacks are counted, and are no statements."""
    with sql_statements() as seen, engine.connect() as connection:
        for end in (connection.commit, connection.commit, connection.rollback):
            connection.execute(text('SELECT 1'))
            end()
    assert (seen.commits, seen.rollbacks, seen.count) == (2, 1, 3)


@pytest.mark.parametrize('end', ['commit', 'rollback'])
def test_ends_of_prepared_transactions_are_counted(
    postgres_dsn: str, sql_statements: CountStatements, end: str
) -> None:
    """The end of a two-phase transaction counts once; PREPARE does not count as an end."""
    engine = create_engine(postgres_dsn, poolclass=NullPool)
    with engine.connect() as connection, sql_statements() as seen:
        transaction = connection.begin_twophase()
        connection.execute(text('SELECT pg_current_xact_id()'))
        transaction.prepare()
        assert (seen.commits, seen.rollbacks) == (0, 0)
        getattr(transaction, end)()
    assert {'commit': seen.commits, 'rollback': seen.rollbacks}[end] == 1
    assert seen.commits + seen.rollbacks == 1


def test_counters_nest(engine: Engine, sql_statements: CountStatements) -> None:
    """An inner counter takes nothing away from the outer one."""
    with engine.connect() as connection, sql_statements() as outer:
        with sql_statements() as inner:
            connection.execute(text('SELECT 1'))
        connection.execute(text('SELECT 2'))
    assert (inner.count, outer.count) == (1, 2)


@pytest.mark.parametrize('expected', [0, 1, 3])
def test_db_queries_fails_on_any_other_number(
    engine: Engine, db_queries: AssertStatements, expected: int
) -> None:
    """Only the exact number passes; the message lists what was seen."""
    with engine.connect() as connection:
        with db_queries(2):
            connection.execute(text('SELECT 1'))
            connection.execute(text('SELECT 2'))
        message = rf'(?s){expected} SQL statements, seen 2.*1\. SELECT 1.*2\. SELECT 2'
        with pytest.raises(AssertionError, match=message), db_queries(expected):
            connection.execute(text('SELECT 1'))
            connection.execute(text('SELECT 2'))


def test_runs_of_many_threads_are_counted(runs: Runs) -> None:
    """No run is lost among threads, and each name has its own count."""

    def work(number: int) -> None:
        runs('users' if number % 2 else 'pages')

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(1000)))
    assert (runs.count('users'), runs.count('pages'), runs.total) == (500, 500, 1000)
    assert runs.count('never') == 0


def run_often(runs: FileRuns) -> None:
    for _ in range(100):
        runs('users')
    runs('pages')


def test_runs_of_many_processes_are_counted(file_runs: FileRuns) -> None:
    """No run is lost among processes."""
    assert (file_runs.total, file_runs.count('users')) == (0, 0)
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(3, mp_context=context) as processes:
        list(processes.map(run_often, [file_runs] * 3))
    assert file_runs.count('users') == 300
    assert file_runs.count('pages') == 3
    assert file_runs.total == 303


def test_a_name_of_two_lines_is_refused(file_runs: FileRuns) -> None:
    """A name that would count as two runs is an error."""
    with pytest.raises(ValueError, match='one line'):
        file_runs('two\nlines')
    assert file_runs.total == 0
