"""What the cache costs a host, counted."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy import event

from tests.support.counting import RedisCommands, SqlStatements
from tests.support.models import User

from .host import Host

CountRedis = Callable[[], RedisCommands]
CountSql = Callable[[], AbstractContextManager[SqlStatements]]


def test_warm_request(
    host: Host, redis_commands: CountRedis, sql_statements: CountSql
) -> None:
    """A request whose values are all cached takes one Redis command and no SQL."""
    host.board.counts
    host.session().rollback()
    with redis_commands() as redis, sql_statements() as sql:
        host.cache.begin_request()
        assert host.board.counts == host.board.counts == [0, 0]
        assert host.board.names == []
    assert redis.count == 1
    assert sql.count + sql.checkouts == 0


def test_commit(host: Host, redis_commands: CountRedis) -> None:
    """A commit takes two Redis commands, beside the one of the snapshot, however many values
    depend on it; and no statement of the package but the one at the begin."""
    host.board.counts
    host.add(User(name='Eve'))  # the first commit of a process has questions of its own
    host.session().rollback()
    statements: list[str] = []
    listener = lambda *arguments: statements.append(arguments[2].split()[0])  # noqa: E731
    event.listen(host.engine, 'before_cursor_execute', listener)
    with redis_commands() as redis:
        host.add(User(name='Ada'), User(name='Bob'))
    assert redis.count == 3
    # the first at the begin
    assert statements == ['SELECT', 'INSERT']


def test_search_path_of_each_statement(host: Host) -> None:
    """A host that sets its search path before each statement is not asked for it each time."""
    host.board.counts
    host.session().rollback()
    asked: list[Any] = []
    questions = host.observer.database.settings  # type: ignore[union-attr]
    known = len(questions)
    event.listen(
        host.engine, 'before_cursor_execute', lambda *arguments: asked.append(arguments[2])
    )
    for number in range(3):
        host.add(User(name=f'Ada {number}'))
        host.board.names
        host.session().rollback()
    assert len(questions) == known
    assert not [sql for sql in asked if 'orm_cache' in sql and 'SAVEPOINT' in sql]
