"""SQLite's authorizer tells what each statement reads and changes, whoever executes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, delete, insert, text, update
from sqlalchemy.dialects import sqlite

from onegov_ormcache.database.protocols import Statement
from onegov_ormcache.database.session_manager import SessionManager
from onegov_ormcache.errors import AttachError, TextualControlError
from tests.database.fakes import FakeScope, Item, open_scope
from tests.database.transactions.outcomes import make_manager

DEFINITIONS = (
    'CREATE TABLE refers (id int REFERENCES items ON DELETE CASCADE)',
    'CREATE TABLE noted (id int)',
    'CREATE VIEW shows AS SELECT id, name FROM items',
    'CREATE VIEW writable AS SELECT id FROM noted',
    'CREATE TRIGGER note AFTER UPDATE ON items BEGIN INSERT INTO noted VALUES (1); END',
    'CREATE TRIGGER instead INSTEAD OF INSERT ON writable BEGIN DELETE FROM refers; END',
)


@pytest.fixture
def manager(tmp_path: Path, tenant: str) -> Iterator[SessionManager]:
    """A session manager whose tenant has more than the metadata knows."""
    made = make_manager(f'sqlite:///{tmp_path}/tenants', tenant)
    with open_scope(made, tenant) as scope:
        for definition in DEFINITIONS:
            scope.session().execute(text(definition))
        scope.session().add(Item(name='a'))
        scope.session().commit()
    yield made
    made.dispose()


@pytest.fixture
def scope(manager: SessionManager, tenant: str) -> Iterator[FakeScope]:
    """An open scope."""
    with open_scope(manager, tenant) as opened:
        yield opened


def last(scope: FakeScope) -> Statement:
    """Return what the listener was told last."""
    return scope.listeners[-1].statements[-1]


@pytest.mark.parametrize(
    ('sql', 'reads', 'changes'),
    [
        ('SELECT name FROM items', {'items'}, set()),
        ('SELECT count(*) FROM ITEMS', {'items'}, set()),
        ('SELECT 1 WHERE EXISTS (SELECT 1 FROM parts)', {'parts'}, set()),
        ('SELECT * FROM shows', {'shows', 'items'}, set()),
        ('WITH t AS (SELECT id FROM items) SELECT * FROM t', {'items'}, set()),
        ("INSERT INTO items (name) VALUES ('b')", set(), {'items'}),
        ('INSERT INTO noted SELECT id FROM items', {'items'}, {'noted'}),
        ("UPDATE items SET name = 'c'", set(), {'items', 'noted'}),
        ('DELETE FROM noted', set(), {'noted'}),
        ('DROP TABLE noted', set(), {'noted'}),
        ('CREATE TABLE new (id int)', set(), {'new'}),
        ('ALTER TABLE noted ADD COLUMN more int', set(), {'noted'}),
        ('SELECT 1', set(), set()),
    ],
)
@pytest.mark.parametrize('way', ['text', 'driver'])
def test_statements(
    scope: FakeScope, sql: str, reads: set[str], changes: set[str], way: str
) -> None:
    """All tables are told that a text touches, through views, triggers and foreign keys."""
    connection = scope.session().connection()
    for _ in range(2 if sql.startswith('SELECT') else 1):
        connection.execute(text(sql)) if way == 'text' else connection.exec_driver_sql(sql)
        found = last(scope)
        assert found.unclear is None
        assert found.reads >= reads
        # the check of a foreign key reads, too
        assert found.reads - reads <= {'shows', 'items', 'parts', *changes}
        assert found.writes | found.cascades == changes


@pytest.mark.parametrize(
    ('sql', 'changed'),
    [('DELETE FROM items', 'refers'), ('INSERT INTO writable VALUES (1)', 'refers')],
)
def test_what_the_database_does(scope: FakeScope, sql: str, changed: str) -> None:
    """What foreign keys and triggers change is told beside what the statement changes."""
    scope.session().connection().exec_driver_sql(sql)
    found = last(scope)
    assert changed in found.writes | found.cascades


NODES = MetaData()
nodes = Table('Nodes', NODES, Column('id', Integer, primary_key=True), Column('up', Integer))


def upsert(**values: int) -> Any:
    made = sqlite.insert(nodes).values(id=1, up=1)
    return made.on_conflict_do_update(index_elements=['id'], set_=values)


@pytest.mark.parametrize(
    ('definition', 'statement', 'changed'),
    [
        ('up int', delete(nodes), False),
        ('up int REFERENCES Nodes ON DELETE CASCADE', delete(nodes), True),
        ('up int REFERENCES Nodes ON DELETE SET NULL', delete(nodes), True),
        ('up int REFERENCES Nodes ON DELETE RESTRICT', delete(nodes), False),
        ('up int REFERENCES Nodes ON DELETE CASCADE', update(nodes).values(id=7), False),
        ('up int REFERENCES Nodes ON DELETE CASCADE', insert(nodes).values(id=7), False),
        ('up int REFERENCES Nodes ON UPDATE CASCADE', update(nodes).values(id=7), True),
        ('up int REFERENCES Nodes ON UPDATE CASCADE', update(nodes).values(id=7, up=7), True),
        ('up int REFERENCES Nodes ON UPDATE CASCADE', update(nodes).values(up=1), False),
        ('up int REFERENCES Nodes ON UPDATE CASCADE', upsert(id=7), True),
        ('up int REFERENCES Nodes ON UPDATE CASCADE', upsert(up=1), False),
    ],
)
def test_changes_of_further_rows(
    scope: FakeScope, definition: str, statement: Any, changed: bool
) -> None:
    """A table is told as one that the database changes if a foreign key refers to itself."""
    scope.session().execute(text(f'CREATE TABLE Nodes (id INTEGER PRIMARY KEY, {definition})'))
    scope.session().execute(insert(nodes).values(id=1))
    scope.session().connection().execute(statement)
    assert last(scope).writes == {'nodes'}
    assert last(scope).cascades == ({'nodes'} if changed else set())


def test_changes_by_way_of_another_table(scope: FakeScope) -> None:
    """A table is told as one that the database changes if foreign keys lead back to it."""
    for definition in (
        'CREATE TABLE Nodes (id INTEGER PRIMARY KEY, up int REFERENCES edges ON DELETE SET NULL)',
        'CREATE TABLE edges (id INTEGER PRIMARY KEY REFERENCES Nodes ON DELETE CASCADE)',
    ):
        scope.session().execute(text(definition))
    scope.session().connection().execute(delete(nodes))
    assert last(scope).cascades == {'nodes', 'edges'}


def test_changes_by_a_trigger(scope: FakeScope) -> None:
    """A table is told as one that the database changes if a trigger changes it, too."""
    session = scope.session()
    session.execute(text('CREATE TABLE Nodes (id INTEGER PRIMARY KEY, up int)'))
    session.connection().execute(update(nodes).values(up=1))
    assert last(scope).cascades == set()
    session.execute(text('CREATE TRIGGER own AFTER UPDATE OF up ON Nodes BEGIN '
                         'UPDATE Nodes SET id = 7 WHERE id = old.id + 1; END'))  # fmt: skip
    session.connection().execute(update(nodes).values(up=1))
    assert last(scope).cascades == {'nodes'}


def test_cursors_of_the_driver(scope: FakeScope) -> None:
    """What a cursor of the driver's own touches is told when somebody asks."""
    dbapi: Any = scope.session().connection().connection.dbapi_connection
    dbapi.execute('SELECT name FROM items').fetchall()
    dbapi.execute('DELETE FROM noted')
    inquiry = scope.listeners[-1].inquiry
    assert inquiry is not None
    found = inquiry.take()
    assert found is not None
    assert found.reads >= {'items'}
    assert found.cascades | found.writes == {'noted'}
    assert inquiry.take() is None


@pytest.mark.parametrize(
    ('sql', 'reason'),
    [
        ('SELECT random() FROM items', 'random'),
        ('SELECT last_insert_rowid() FROM items', 'last_insert_rowid'),
        ('SELECT count(*) FROM temporary', 'temporary'),
        ('SELECT id FROM temporary', 'temporary'),
        ('SELECT upper(name) FROM items', None),
    ],
)
def test_unrepeatable(scope: FakeScope, sql: str, reason: str | None) -> None:
    """What may return something else each time is told, with the reason."""
    scope.session().execute(text('CREATE TEMPORARY TABLE temporary (id int)'))
    scope.session().execute(text(sql))
    found = last(scope).unrepeatable
    assert (found is None) if reason is None else reason in str(found)


@pytest.mark.parametrize('sql', ['/**/ COMMIT', 'ROLLBACK', 'BEGIN', 'END'])
@pytest.mark.parametrize('way', ['text', 'driver'])
def test_control(scope: FakeScope, sql: str, way: str) -> None:
    """No text ends the transaction, whoever executes it."""
    connection = scope.session().connection()
    connection.execute(text("UPDATE items SET name = 'b'"))
    if way == 'text':
        with pytest.raises(TextualControlError):
            connection.execute(text(sql))
    else:
        dbapi: Any = connection.connection.dbapi_connection
        with pytest.raises(Exception, match='authorized'):
            dbapi.execute(sql)
    scope.session().rollback()
    assert [name for (name,) in scope.session().query(Item.name)] == ['a']


def test_attach(scope: FakeScope, tmp_path: Path) -> None:
    """Another file can't be attached, because nobody would know whose it is."""
    scope.session().connection()
    with pytest.raises(AttachError):
        scope.session().execute(text(f"ATTACH '{tmp_path}/other.db' AS other"))
