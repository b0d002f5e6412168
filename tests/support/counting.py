"""Counters of what really happened: Redis commands, SQL statements, creator runs.

They count as far from the package as they can: the commands that the Redis server says it
received, and the statements that are handed to the database driver. A counter of the
package's own calls would have to trust the package.
"""

from __future__ import annotations

import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import redis
from redis.backoff import NoBackoff
from redis.connection import Connection
from redis.retry import Retry
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.pool import Pool

from onegov_ormcache.database.catalog import MARK

Command = tuple[str, ...]

# Commands that a client sends only to connect; of CLIENT, the subcommands
SETUP_COMMANDS = {'AUTH', 'HELLO', 'PING', 'SELECT'}
SETUP_CLIENT_COMMANDS = {'MAINT_NOTIFICATIONS', 'SETINFO', 'SETNAME'}

#: What the keys of statistics contain.
STATISTICS = '}:statistics'

MONITOR_LINE = re.compile(rb'[\d.]+ \[\d+ (?P<client>[^\]]*)\] (?P<command>.*)', re.DOTALL)
MONITOR_ARGUMENT = re.compile(rb'"((?:[^"\\]|\\.)*)"', re.DOTALL)
MONITOR_ESCAPE = re.compile(rb'\\(x[0-9a-f]{2}|.)', re.DOTALL)
MONITOR_ESCAPES = {b'n': b'\n', b'r': b'\r', b't': b'\t', b'a': b'\a', b'b': b'\b'}


class RedisCommands:
    """The commands that a Redis server received from its clients during a with block.

    Made by a test for one server, or for none (`url` is None: the embedded backend),
    and then it counts nothing. Commands that Lua scripts run are part of their script
    and not counted. Commands that MONITOR does not show are not counted either:
    administrative ones such as CONFIG and DEBUG, AUTH and HELLO.

    Begin and end are exact for commands of the same thread, and of other threads that have
    finished: at both ends the counter sends a marker, and waits for it in the server's stream.
    """

    def __init__(self, url: str | None) -> None:
        self._url = url
        self._stack = ExitStack()
        self._monitor: Connection | None = None
        self._client: redis.Redis | None = None
        self._commands: list[Command] = []
        self._setup: list[Command] = []

    def __enter__(self) -> Self:
        if self._url is None:
            return self
        with ExitStack() as stack:
            client = stack.enter_context(
                closing(
                    redis.Redis.from_url(self._url, retry=Retry(NoBackoff(), 0), socket_timeout=30)
                )
            )
            monitor = client.connection_pool.get_connection()
            stack.callback(client.connection_pool.release, monitor)
            stack.callback(monitor.disconnect)
            # Connect before the stream begins, so that this client's set-up is not in it
            client.ping()
            monitor.send_command('MONITOR')  # type: ignore[no-untyped-call]
            monitor.read_response()

            self._client, self._monitor = client, monitor
            # Drop the commands that other clients sent before the block began
            self._read_to_marker()
            self._commands.clear()
            self._setup.clear()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        with self._stack:
            try:
                self._read_to_marker()
            finally:
                self._monitor = self._client = None

    @property
    def commands(self) -> list[Command]:
        """The commands so far, each with its arguments, in the order of the server."""

        self._read_to_marker()
        return list(self._commands)

    @property
    def setup(self) -> list[Command]:
        """The commands by which clients prepared new connections; they do not count."""

        self._read_to_marker()
        return list(self._setup)

    @property
    def count(self) -> int:
        """How many commands there were so far, connection set-up aside."""

        return len(self.commands)

    def _read_to_marker(self) -> None:
        """Read the stream up to this moment."""

        if self._monitor is None or self._client is None:
            return
        marker = f'marker-{uuid4().hex}'
        self._client.echo(marker)
        while True:
            by_client, command = parse_monitor_line(self._monitor.read_response())
            if command == ('ECHO', marker):
                return
            if by_client:
                (self._setup if is_setup(command) else self._commands).append(command)


def bytes_sent(client: redis.Redis, call: Callable[[], object]) -> int:
    """Return how many bytes the server of this client has sent in reply to what `call` does."""

    def total() -> int:
        return int(client.info('stats')['total_net_output_bytes'])

    first, second = total(), total()
    call()
    return total() - second - (second - first)


def parse_monitor_line(line: str | bytes) -> tuple[bool, Command]:
    """Take one line of MONITOR's stream apart.

    :return: True if a client sent the command, False if a Lua script did; and the command
        with its arguments, its name in capitals.
    """

    raw = line.encode('utf-8', 'surrogateescape') if isinstance(line, str) else line
    match = MONITOR_LINE.fullmatch(raw)
    if match is None:
        raise ValueError(f'This is no line of MONITOR: {line!r}')
    name, *arguments = (
        MONITOR_ESCAPE.sub(unescape, argument).decode('utf-8', 'backslashreplace')
        for argument in MONITOR_ARGUMENT.findall(match['command'])
    )
    return match['client'] != b'lua', (name.upper(), *arguments)


def unescape(match: re.Match[bytes]) -> bytes:
    """Give the bytes that an escape in MONITOR's stream stands for."""

    code: bytes = match[1]
    if len(code) == 3:
        return bytes.fromhex(code[1:].decode())
    return MONITOR_ESCAPES.get(code, code)


def is_setup(command: Command) -> bool:
    """Tell if a command only prepares a connection, or sends statistics, which a thread does now
    and then."""

    if any(STATISTICS in argument for argument in command):
        return True
    if command[0] == 'CLIENT':
        return command[1].upper() in SETUP_CLIENT_COMMANDS
    return command[0] in SETUP_COMMANDS


@dataclass
class SqlStatements:
    """The statements, checkouts, commits and rollbacks of all SQLAlchemy engines of this process.

    Made by `sql_statements`. A call of a cursor's `execute` or `executemany` is one
    statement, however many rows it carries. Statements that go past SQLAlchemy's connections,
    to a driver's own cursor, are not seen; neither are the BEGIN that drivers send
    by themselves and the rollback of a connection that returns to its pool. Queries by which
    the process learns the definitions of tables, once per tenant and again after some seconds,
    are counted apart.
    """

    #: The text of each statement, in order.
    statements: list[str] = field(default_factory=list)
    #: The text of each query for definitions, in order.
    definitions: list[str] = field(default_factory=list)
    #: How often a connection was taken from a pool.
    checkouts: int = 0
    #: How many COMMIT were sent, those of prepared transactions included.
    commits: int = 0
    #: How many ROLLBACK were sent, those of prepared transactions included.
    rollbacks: int = 0

    @property
    def count(self) -> int:
        """How many statements there were so far."""

        return len(self.statements)


@contextmanager
def sql_statements() -> Iterator[SqlStatements]:
    """Count what engines do during a with block, in all threads of this process."""

    seen = SqlStatements()
    lock = threading.Lock()

    def on_execute(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith(MARK):
            seen.definitions.append(statement)
        else:
            seen.statements.append(statement)

    def on_checkout(*_: Any) -> None:
        with lock:
            seen.checkouts += 1

    def on_commit(*_: Any) -> None:
        with lock:
            seen.commits += 1

    def on_rollback(*_: Any) -> None:
        with lock:
            seen.rollbacks += 1

    # SQLAlchemy looks at how many arguments a listener takes, so each has its own
    listeners: list[tuple[Any, str, Callable[..., None]]] = [
        (Engine, 'before_cursor_execute', on_execute),
        (Engine, 'commit', on_commit),
        (Engine, 'commit_twophase', on_commit),
        (Engine, 'rollback', on_rollback),
        (Engine, 'rollback_twophase', on_rollback),
        (Pool, 'checkout', on_checkout),
    ]
    with ExitStack() as stack:
        for target, name, listener in listeners:
            event.listen(target, name, listener)
            stack.callback(event.remove, target, name, listener)
        yield seen


@contextmanager
def redis_ops(url: str | None, expected: int) -> Iterator[RedisCommands]:
    """Assert that a block costs the Redis server so many commands, no more and no less."""

    with RedisCommands(url) as seen:
        yield seen
    assert_count('Redis commands', expected, [' '.join(command) for command in seen.commands])


@contextmanager
def db_queries(expected: int) -> Iterator[SqlStatements]:
    """Assert that a block executes so many SQL statements, no more and no less."""

    with sql_statements() as seen:
        yield seen
    assert_count('SQL statements', expected, seen.statements)


def assert_count(what: str, expected: int, seen: list[str]) -> None:
    """Fail with a list of what was seen, if its length is not the expected number."""

    if len(seen) != expected:
        lines = [f'  {number}. {one}' for number, one in enumerate(seen, 1)] or ['  none']
        message = '\n'.join([f'expected {expected} {what}, seen {len(seen)}:', *lines])
        raise AssertionError(message)


class Runs:
    """Counts the runs of creators, in all threads of this process.

    A creator calls it with its name: `runs('users')`.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, name: str) -> None:
        """Count one run."""

        with self._lock:
            self._counts[name] += 1

    def count(self, name: str) -> int:
        """How many runs this creator had."""

        with self._lock:
            return self._counts[name]

    @property
    def total(self) -> int:
        """How many runs all creators had."""

        with self._lock:
            return self._counts.total()


@dataclass(frozen=True)
class FileRuns:
    """Counts the runs of creators over all processes that were given the same file.

    Used like `Runs`. It can be pickled, and each run is one line that one write
    appends, so that the processes need no lock among them.
    """

    path: Path

    def __call__(self, name: str) -> None:
        """Count one run."""

        if '\n' in name:
            raise ValueError(f'A name must be one line: {name!r}')
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, f'{name}\n'.encode())
        finally:
            os.close(descriptor)

    def count(self, name: str) -> int:
        """How many runs this creator had."""

        return self._names().count(name)

    @property
    def total(self) -> int:
        """How many runs all creators had."""

        return len(self._names())

    def _names(self) -> list[str]:
        if not self.path.exists():
            return []
        return self.path.read_text().removesuffix('\n').split('\n')
