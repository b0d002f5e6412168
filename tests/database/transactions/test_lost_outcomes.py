"""A connection lost before its commit has rolled back; lost within it, its outcome is unknown."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from onegov_ormcache.database.session_manager import SessionManager
from tests.database.fakes import FakeScope, Item, names, watch_of
from tests.database.transactions.outcomes import LOST, ROLLED_BACK, assert_nothing_left, terminate


@pytest.mark.parametrize('noticed', ['execute', 'commit'])
def test_connection_lost_before_commit(
    postgres_scope: FakeScope, postgres: SessionManager, tenant: str, noticed: str
) -> None:
    """A connection lost before COMMIT was sent has committed nothing."""
    session = postgres_scope.session()
    session.add(Item(name='a'))
    session.flush()
    terminate(postgres.dsn, session.connection())
    with pytest.raises(DBAPIError) as raised:
        session.execute(text('SELECT 1')) if noticed == 'execute' else session.commit()
    assert raised.value.connection_invalidated
    session.rollback()
    assert postgres_scope.heard == [ROLLED_BACK]
    assert_nothing_left(postgres_scope, tracebacks=True)
    assert names(postgres, tenant) == set()


@pytest.mark.parametrize('end', ['rollback', 'close'])
def test_connection_lost_in_commit(
    postgres_scope: FakeScope, postgres: SessionManager, tenant: str, end: str
) -> None:
    """A connection lost while COMMIT is under way tells nothing of its outcome."""
    session = postgres_scope.session()
    session.add(Item(name='a'))
    session.flush()
    connection = session.connection()
    postgres_scope.hooks['committing'] = partial(terminate, postgres.dsn, connection)
    with pytest.raises(DBAPIError):
        session.commit()
    getattr(session, end)()
    assert postgres_scope.heard == [LOST]
    postgres_scope.hooks.clear()
    assert_nothing_left(postgres_scope)
    assert names(postgres, tenant) == set()


@pytest.mark.parametrize('end', ['rollback', 'close'])
def test_interrupt_after_commit(
    scope: FakeScope, manager: SessionManager, tenant: str, end: str
) -> None:
    """An interrupt after the server has committed is no rollback, whatever SQLAlchemy says."""
    watch = watch_of(manager.engine)
    original: Any = watch._original

    def interrupted(checkout: Any) -> None:
        original.do_commit(checkout)
        raise KeyboardInterrupt

    watch._original = original._replace(do_commit=interrupted)
    scope.session().add(Item(name='a'))
    with pytest.raises(KeyboardInterrupt):
        scope.session().commit()
    watch._original = original
    getattr(scope.session(), end)()
    assert scope.heard == [LOST]
    assert_nothing_left(scope)
    assert names(manager, tenant) == {'a'}
