"""What the driver does by itself on PostgreSQL is reported, and what SQLAlchemy does is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import insert, select

from onegov_ormcache.database.session_manager import SessionManager
from onegov_ormcache.errors import TextualControlError
from tests.database.fakes import FakeScope, Item, open_scope
from tests.database.transactions.outcomes import make_manager


@pytest.fixture
def scope(postgres_dsn: str, tenant: str) -> Iterator[FakeScope]:
    """An open scope with a transaction."""
    manager: SessionManager = make_manager(postgres_dsn, tenant)
    with open_scope(manager, tenant) as opened:
        opened.session().connection()
        yield opened
    manager.dispose()


def driver(scope: FakeScope) -> Any:
    """Return the driver's connection."""
    return scope.session().connection().connection.dbapi_connection


def reported(scope: FakeScope) -> list[str | None]:
    """Return why each statement that the listener was told of is unclear."""
    return [statement.unclear for statement in scope.listeners[-1].statements]


def copy(connection: Any) -> None:
    with connection.cursor().copy('COPY items (name) FROM STDIN') as copying:
        copying.write_row(('a',))


def server_side(connection: Any) -> None:
    with connection.cursor(name='named') as cursor:
        cursor.execute('SELECT 1')
        cursor.fetchall()


#: The ways in which the driver executes something by itself.
WAYS: dict[str, Callable[[Any], object]] = {
    'execute': lambda connection: connection.cursor().execute('SELECT 1'),
    'connection': lambda connection: connection.execute('SELECT 1'),
    'executemany': lambda connection: connection.cursor().executemany(
        'INSERT INTO items (name) VALUES (%s)', [('a',), ('b',)]
    ),
    'stream': lambda connection: list(connection.cursor().stream('SELECT 1')),
    'copy': copy,
    'server-side cursor': server_side,
}


@pytest.mark.parametrize('way', WAYS)
def test_cursors(scope: FakeScope, way: str) -> None:
    """Each cursor of the driver's own is reported, before it has executed anything."""
    WAYS[way](driver(scope))
    found = reported(scope)
    assert found
    assert all(reason is not None and "driver's own" in reason for reason in found)


@pytest.mark.parametrize(
    'options', [{}, {'stream_results': True}, {'yield_per': 1}], ids=['plain', 'stream', 'yield']
)
def test_statements_of_sqlalchemy(scope: FakeScope, options: dict[str, Any]) -> None:
    """What SQLAlchemy executes, also by a server-side cursor, is told once, and as what it is."""
    connection = scope.session().connection()
    connection.execute(insert(Item), [{'name': 'a'}, {'name': 'b'}])
    connection.execute(select(Item.id), execution_options=options).all()
    assert reported(scope) == [None, None]


def test_cursor_that_is_used_again(scope: FakeScope) -> None:
    """A cursor that SQLAlchemy has used is reported when others use it after that."""
    result = scope.session().connection().execute(select(Item.id))
    cursor: Any = result.cursor
    cursor.execute('SELECT 1')
    first, second = reported(scope)
    assert first is None
    assert second is not None


def test_blocks(scope: FakeScope) -> None:
    """Begin and end of a block are reported, because the end may be a rollback."""
    with driver(scope).transaction():
        assert len(reported(scope)) == 1
    assert len(reported(scope)) == 2


@pytest.mark.parametrize('method', ['commit', 'rollback'])
def test_ends(scope: FakeScope, method: str) -> None:
    """The driver's own commit() and rollback() are refused, within a transaction of a scope."""
    with pytest.raises(TextualControlError, match=method):
        getattr(driver(scope), method)()
    scope.session().add(Item(name='a'))
    scope.session().commit()
    assert scope.heard == [['begun', 'committing', 'committed']]
