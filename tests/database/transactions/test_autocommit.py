"""AUTOCOMMIT is refused, wherever it is set."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Connection, event, insert, text
from sqlalchemy.orm import Session

from onegov_ormcache.database.session_manager import SessionManager
from onegov_ormcache.errors import AutocommitError
from tests.database.fakes import Base, FakeScope, Item, names, open_scope
from tests.database.transactions.outcomes import assert_nothing_left


def set_by_hand(connection: Connection) -> None:
    connection.connection.dbapi_connection.autocommit = True  # type: ignore[union-attr]


@pytest.mark.parametrize('level', ['AUTOCOMMIT', 'autocommit'])
def test_autocommit_engine_option(dsn: str, level: str) -> None:
    """An engine in AUTOCOMMIT is refused when it is made."""
    with pytest.raises(AutocommitError):
        SessionManager(dsn, Base, engine_options={'isolation_level': level})


@pytest.mark.parametrize('level', ['AUTOCOMMIT', 'autocommit'])
def test_autocommit_execution_options(
    scope: FakeScope, manager: SessionManager, tenant: str, level: str
) -> None:
    """Set as an execution option, at whatever place, AUTOCOMMIT is refused at first use."""
    option: Any = {'isolation_level': level}
    with pytest.raises(AutocommitError), manager.engine.connect() as connection:
        connection.execution_options(**option).execute(insert(Item).values(name='a'))
    with pytest.raises(AutocommitError), manager.engine.execution_options(**option).begin():
        pass
    with pytest.raises(AutocommitError):
        scope.session().connection(execution_options=option)
    scope.session().rollback()
    with Session(manager.engine.execution_options(**option)) as session:
        with pytest.raises(AutocommitError):
            session.execute(insert(Item).values(name='a'))
    assert_nothing_left(scope)
    assert names(manager, tenant) == set()


@pytest.mark.parametrize('level', ['AUTOCOMMIT', 'autocommit'])
def test_autocommit_of_all_executions(dsn: str, tenant: str, level: str) -> None:
    """Execution options of the engine are no way around, either."""
    manager = SessionManager(
        dsn, Base, engine_options={'execution_options': {'isolation_level': level}}
    )
    manager.database.check()
    with open_scope(manager, tenant) as scope, pytest.raises(AutocommitError):
        scope.session().execute(text('SELECT 1'))
    manager.dispose()


def test_autocommit_set_by_hand(
    postgres_scope: FakeScope, postgres: SessionManager, tenant: str
) -> None:
    """AUTOCOMMIT that a program has set on the driver's own connection is refused."""
    with pytest.raises(AutocommitError), postgres.engine.connect() as connection:
        set_by_hand(connection)
        connection.execute(insert(Item).values(name='a'))
    with postgres.engine.connect() as connection:
        connection.invalidate()
    assert names(postgres, tenant) == set()


def test_autocommit_of_the_driver(postgres_dsn: str, tenant: str) -> None:
    """AUTOCOMMIT as an argument of the driver is refused."""
    manager = SessionManager(
        postgres_dsn, Base, engine_options={'connect_args': {'autocommit': True}}
    )
    with open_scope(manager, tenant) as scope, pytest.raises(AutocommitError):
        scope.session().execute(text('SELECT 1'))
    manager.dispose()


def test_autocommit_in_an_event(postgres_dsn: str, tenant: str) -> None:
    """AUTOCOMMIT that an application sets on every new connection is refused."""
    manager = SessionManager(postgres_dsn, Base)
    with open_scope(manager, tenant) as scope:

        @event.listens_for(manager.engine, 'connect')
        def connect(connection: Any, record: Any) -> None:
            connection.autocommit = True

        with pytest.raises(AutocommitError):
            scope.session().execute(text('SELECT 1'))
    manager.dispose()
