"""A host that commits by its sessions alone: its listeners after the commit, and its retries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from onegov_ormcache import RetryableConflict
from tests.support.models import Document, User

from .host import Host


@pytest.mark.parametrize('twophase', [False, True])
def test_listener_after_the_commit(make_host: Callable[..., Host], twophase: bool) -> None:
    """What listens to a session's commit sees the new versions, in this process and in others."""
    host, elsewhere = make_host(session_options={'twophase': twophase}), make_host()
    for each in host, elsewhere:
        assert each.board.names == []
        each.session().rollback()
    seen: list[Any] = []
    event.listen(
        host.factory, 'after_commit', lambda session: seen.append(elsewhere.board.names)
    )
    host.add(User(name='Ada'))
    assert seen == [['Ada']]
    assert host.board.names == ['Ada']


def attempts(host: Host, work: Callable[[int], object], number: int = 3) -> int:
    """Work in a transaction, again after a conflict; as a host would; return the attempts."""
    for attempt in range(1, number + 1):
        try:
            work(attempt)
            host.session().commit()
        except Exception as error:
            host.session().rollback()
            if attempt == number or not host.cache.is_conflict(error):
                raise
        else:
            return attempt
    raise AssertionError('unreachable')


def test_write_skew(make_host: Callable[..., Host]) -> None:
    """Of two writers that each read through the cache what the other changes, one tries again."""
    first, second = (make_host(isolation_level='SERIALIZABLE') for _ in range(2))
    for each in first, second:
        assert (each.board.names, each.board.titles) == ([], [])
        each.session().rollback()
    seen: list[Any] = []

    def work(attempt: int) -> None:
        seen.append(first.board.names)
        first.session().add(Document(kind='document', title=str(attempt)))
        first.session().flush()
        if attempt == 1:
            assert second.board.titles == []
            second.add(User(name='Ada'))

    assert attempts(first, work) == 2
    assert seen == [[], ['Ada']]
    assert first.board.titles == second.board.titles == ['2']


def test_conflict_of_the_database(make_host: Callable[..., Host]) -> None:
    """A conflict that the database finds is one for the host, too."""
    first, second = (make_host(isolation_level='REPEATABLE READ') for _ in range(2))
    first.add(User(id=1, name='Ada'))

    def work(attempt: int) -> None:
        user = first.session().get(User, 1)
        assert user is not None
        assert first.board.names == [user.name]
        if attempt == 1:
            other = second.session().get(User, 1)
            assert other is not None
            other.name = 'Bob'
            second.session().commit()
        user.name += '!'

    assert attempts(first, work) == 2
    assert first.board.names == second.board.names == ['Bob!']


def test_conflict_at_the_begin(make_host: Callable[..., Host]) -> None:
    """A value that was read before a view that lasts, and has changed meanwhile, is a conflict."""
    host, elsewhere = make_host(isolation_level='REPEATABLE READ'), make_host()
    host.board.names
    host.session().rollback()
    assert host.board.names == []
    elsewhere.add(User(name='Ada'))
    with pytest.raises(RetryableConflict):
        host.session().connection()
    host.session().rollback()
    assert host.session().query(User).count() == len(host.board.names) == 1


def test_other_errors_are_no_conflicts(host: Host) -> None:
    """A lost connection is the host's own affair."""
    error = OperationalError('SELECT 1', {}, Exception('gone'))
    assert not host.cache.is_conflict(error)
