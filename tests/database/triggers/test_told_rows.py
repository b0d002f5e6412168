"""Triggers that tell rows report the values that the changed rows have, and had before."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from onegov_ormcache.database.session_manager import SessionManager
from onegov_ormcache.database.trigger_reports import ToldRows
from tests.database.asked import Asked, transaction
from tests.database.triggers.triggered_town import Town
from tests.support.models import Base
from tests.support.outside import Ear, install, outside

Rows = dict[str, set[str | None]]
Program = psycopg.Connection[Any]

TABLES = """
CREATE TABLE books (id integer PRIMARY KEY, shelf text, price numeric);
CREATE TABLE loans (book_id integer REFERENCES books ON DELETE CASCADE ON UPDATE CASCADE);
INSERT INTO books SELECT n, CASE WHEN n <> 2 THEN chr(64 + n) END, n FROM generate_series(1, 3) n;
INSERT INTO loans VALUES (1), (1), (3);
CREATE FUNCTION sell(book integer) RETURNS integer LANGUAGE sql AS
$$ DELETE FROM books WHERE id = book; SELECT 1 $$;
"""

ROWS = {'books': ['id', 'shelf'], 'loans': ['book_id']}


@pytest.fixture
def shop(app: Town, program: Program, postgres_dsn: str, tenant: str) -> Iterator[Ear]:
    """Books on shelves, and loans of them; hears what their triggers tell."""
    program.execute(TABLES)
    install(postgres_dsn, tenant, rows=ROWS)
    ear = Ear(postgres_dsn, tenant)
    yield ear
    ear.close()


def told(ear: Ear) -> dict[str, list[Rows]]:
    """Return what was told since the last call, by table: the values by column."""
    del ear.rows[:]
    tables = ear.heard()
    found: dict[str, list[Rows]] = {}
    for each in ear.rows:
        found.setdefault(each.table, []).append({c: set(v) for c, v in each.rows.items()})
    # whoever knows nothing of rows hears of each table, too
    assert found.keys() <= set(tables)
    return found


def copy(program: Program) -> None:
    with program.cursor().copy('COPY books (id, shelf) FROM STDIN') as rows:
        rows.write_row((7, 'G'))
        rows.write_row((8, None))


def sql(statement: str) -> Callable[[Program], None]:
    def run(program: Program) -> None:
        program.execute(statement)

    return run


@pytest.mark.parametrize(
    ('act', 'books', 'loans'),
    [
        (sql("INSERT INTO books VALUES (4, 'D'), (5, 'D')"), ('45', 'D'), None),
        (sql("UPDATE books SET shelf = 'X' WHERE id = 1"), ('1', 'AX'), None),
        (sql('UPDATE books SET price = 0 WHERE id < 3'), ('12', ['A', None]), None),
        (sql('UPDATE books SET price = 0 WHERE id > 3'), ('', ''), None),
        (sql('UPDATE books SET id = 9 WHERE id = 1'), ('19', 'A'), '19'),
        (sql('DELETE FROM books WHERE id = 3'), ('3', 'C'), '3'),
        (sql("INSERT INTO books VALUES (1, 'Y'), (6, 'F') ON CONFLICT (id) "
             'DO UPDATE SET shelf = excluded.shelf'), ('16', 'AFY'), None),
        (sql("MERGE INTO books USING (VALUES (2, 'M'), (6, 'F')) AS new (id, shelf) "
             'ON books.id = new.id WHEN MATCHED THEN DELETE '
             'WHEN NOT MATCHED THEN INSERT (id, shelf) VALUES (new.id, new.shelf)'),
         ('26', ['F', None]), ''),
        (sql('WITH gone AS (DELETE FROM books WHERE id = 3 RETURNING id) SELECT * FROM gone'),
         ('3', 'C'), '3'),
        (copy, ('78', ['G', None]), None),
        (sql('SELECT sell(3)'), ('3', 'C'), '3'),
    ],
    ids=['insert', 'update', 'other-column', 'nothing', 'key', 'delete', 'upsert', 'merge', 'cte',
         'copy', 'function'],
)  # fmt: skip
def test_every_kind_of_change_tells_rows(
    shop: Ear, program: Program, act: Callable[[Program], None], books: Any, loans: Any
) -> None:
    """A statement tells the values that its rows have, and had before, and those of the rows that
    it changes by a cascade."""
    act(program)
    found = told(shop)
    # one statement may be several for the triggers, of which the last tells all
    assert found['books'][-1] == {'id': set(books[0]), 'shelf': set(books[1])}
    assert found.get('loans', [None])[-1] == (None if loans is None else {'book_id': set(loans)})


@pytest.mark.parametrize(('count', 'is_told'), [(64, True), (65, False)])
def test_many_rows(shop: Ear, program: Program, count: int, is_told: bool) -> None:
    """At most 64 values of a column are told, and those of another one all the same."""
    program.execute(
        'INSERT INTO books SELECT n, %s FROM generate_series(11, 10 + %s) n', ('S', count)
    )
    (rows,) = told(shop)['books']
    assert rows['shelf'] == {'S'}
    assert rows.get('id') == ({str(n) for n in range(11, 11 + count)} if is_told else None)


def test_many_columns(app: Town, program: Program, postgres_dsn: str, tenant: str) -> None:
    """The values of any number of columns are told."""
    names = [f'c{number}' for number in range(120)]
    program.execute(f'CREATE TABLE wide ({", ".join(f"{name} integer" for name in names)})')
    install(postgres_dsn, tenant, rows={'wide': names})
    ear = Ear(postgres_dsn, tenant)
    program.execute('INSERT INTO wide (c7) VALUES (7)')
    assert told(ear) == {'wide': [{**{name: {None} for name in names}, 'c7': {'7'}}]}
    ear.close()


def test_long_values(shop: Ear, program: Program) -> None:
    """Values that a notification has no room for are not told."""
    program.execute('INSERT INTO books VALUES (4, %s)', ['ü' * 4000])
    shop.rows.clear()
    assert shop.heard() == ['books']
    assert shop.rows == []


def test_several_statements_tell_together(shop: Ear, program: Program) -> None:
    """What a transaction tells holds for all its statements so far; nothing is told twice."""
    with program.transaction():
        for book in 1, 1, 2:
            program.execute('UPDATE books SET price = 0 WHERE id = %s', [book])
    assert told(shop)['books'] == [
        {'id': {'1'}, 'shelf': {'A'}},
        {'id': {'1', '2'}, 'shelf': {'A', None}},
    ]
    with program.transaction():
        for book in range(11, 100):
            program.execute('INSERT INTO books VALUES (%s)', [book])
    found = told(shop)['books']
    assert len(found) == 65
    assert found[-1] == {'shelf': {None}}


def test_rolled_back_rows(shop: Ear, program: Program) -> None:
    """What is rolled back to a savepoint is told neither by itself nor later."""
    with program.transaction():
        with program.transaction(force_rollback=True):
            program.execute('DELETE FROM books WHERE id = 1')
        program.execute('DELETE FROM books WHERE id = 3')
    assert told(shop)['books'] == [{'id': {'3'}, 'shelf': {'C'}}]


@pytest.mark.parametrize('first', [True, False])
def test_truncate_tells_no_rows(shop: Ear, program: Program, first: bool) -> None:
    """A TRUNCATE leaves nothing known of the rows of its transaction, whatever else is told."""
    statements = ['TRUNCATE loans', 'INSERT INTO loans VALUES (2)']
    with program.transaction():
        for statement in statements if first else reversed(statements):
            program.execute(statement)
    shop.rows.clear()
    heard = shop.heard()
    assert heard == ['loans']
    # a transaction tells no rows of a table that it has named before
    assert [each.rows for each in shop.rows] == ([] if first else [{'book_id': {'2'}}, {}])


def test_order_of_notifications(
    shop: Ear, program: Program, postgres_dsn: str, tenant: str
) -> None:
    """The rows come before the table's name, with the id of their transaction, so that it is known
    of a name whether it tells more."""
    with outside(postgres_dsn, tenant) as listener:
        listener.execute('LISTEN orm_cache; LISTEN orm_cache_rows')
        with program.transaction():
            program.execute('DELETE FROM loans WHERE book_id = 1')
            program.execute('DELETE FROM loans WHERE book_id = 3')
        with program.transaction():
            program.execute('TRUNCATE loans')
            program.execute('INSERT INTO loans VALUES (2)')
        notifies = list(listener.notifies(timeout=20, stop_after=4))
    kinds = [
        each.payload if each.channel == 'orm_cache' else ToldRows.parse(each.payload)
        for each in notifies
    ]
    name = f'{tenant}:loans'
    first, second = (each for each in kinds if isinstance(each, ToldRows))
    assert kinds == [first, name, second, name]
    assert first.transaction == second.transaction


VALUES = {
    'smallint': ['-1', '0'],
    'integer': ['-2147483648', '7'],
    'bigint': ['9223372036854775807'],
    'text': ['', "O'Hara", 'a"b\\c', 'ü%s:', ' x '],
    'varchar(20)': ['abc', 'A'],
    'uuid': ['a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'],
    'boolean': ['true', 'false'],
    'date': ['2026-12-24', 'infinity', '0044-03-15 BC'],
}


@pytest.mark.parametrize('kind', VALUES)
def test_types(
    app: Town, program: Program, postgres_dsn: str, tenant: str, kind: str
) -> None:
    """The values of each type are texts that no setting changes."""
    program.execute(f'CREATE TABLE things ("the ""id""" {kind})')
    install(postgres_dsn, tenant, rows={'things': ['the "id"']})
    ear = Ear(postgres_dsn, tenant)
    program.execute("SET DateStyle = 'German, DMY'")
    for value in VALUES[kind]:
        spelled = value.upper() if kind == 'uuid' else value
        spelled = '15.03.0044 BC' if value.endswith('BC') else spelled
        program.execute('INSERT INTO things VALUES (%s)', [spelled])
        assert told(ear) == {'things': [{'the "id"': {value}}]}
    program.execute('INSERT INTO things VALUES (NULL)')
    assert told(ear) == {'things': [{'the "id"': {None}}]}
    ear.close()


@pytest.mark.parametrize(
    'change',
    [
        'ALTER TABLE loans ALTER book_id TYPE numeric',
        'ALTER TABLE loans RENAME book_id TO book',
        'ALTER TABLE loans DROP book_id; ALTER TABLE loans ADD other integer',
        'ALTER TABLE loans DROP book_id; ALTER TABLE loans ADD book_id date[]',
    ],
)
def test_columns_that_change(shop: Ear, program: Program, change: str) -> None:
    """A column that is gone, or has another type by now, is not known; its table is named."""
    program.execute('ALTER TABLE loans DROP CONSTRAINT loans_book_id_fkey')
    program.execute(change)
    program.execute('INSERT INTO loans VALUES (NULL)')
    del shop.rows[:]
    assert shop.heard() == ['loans']
    assert [each.rows for each in shop.rows] in ([], [{}])


PARTITIONS = """
CREATE TABLE events (id integer, kind text) PARTITION BY RANGE (id);
CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (0) TO (10);
CREATE TABLE events_2 PARTITION OF events FOR VALUES FROM (10) TO (20);
CREATE TABLE animals (id integer);
CREATE TABLE dogs (name text) INHERITS (animals);
"""


def test_partitions_tell_rows(
    app: Town, program: Program, postgres_dsn: str, tenant: str
) -> None:
    """A change of a partition tells the rows of its parent, too, and the other way round; of a row
    that moves, the values before and after. A child's own columns are not known by its parent."""
    program.execute(PARTITIONS)
    columns = {name: ['id'] for name in ('events', 'events_1', 'events_2', 'animals')}
    install(postgres_dsn, tenant, rows={**columns, 'dogs': ['id', 'name']})
    ear = Ear(postgres_dsn, tenant)
    program.execute("INSERT INTO events VALUES (1, 'a'), (11, 'b')")
    every = [{'id': {'1', '11'}}]
    assert told(ear) == {'events': every, 'events_1': every, 'events_2': every}
    program.execute('UPDATE events SET id = 12 WHERE id = 1')
    every = [{'id': {'1', '12'}}]
    assert told(ear) == {'events': every, 'events_1': every, 'events_2': every}
    program.execute('UPDATE events_2 SET id = 13 WHERE id = 12')
    every = [{'id': {'12', '13'}}]
    assert told(ear) == {'events': every, 'events_2': every}
    program.execute("INSERT INTO dogs VALUES (1, 'Rex')")
    every = [{'id': {'1'}, 'name': {'Rex'}}]
    assert told(ear) == {'animals': every, 'dogs': every}
    program.execute('UPDATE animals SET id = 2')
    assert told(ear) == {'animals': [{'id': {'1', '2'}}], 'dogs': [{'id': {'1', '2'}}]}
    ear.close()


# in transactions of the package


@pytest.fixture
def asked(shop: Ear, postgres_dsn: str, tenant: str) -> Iterator[Asked]:
    """A transaction of the package, in which statements are executed and asked about."""
    manager = SessionManager(postgres_dsn, Base)
    try:
        with transaction(manager, tenant, 'other') as found:
            yield found
    finally:
        manager.dispose()


def noted(asked: Asked) -> dict[str, Rows]:
    """Return the rows that the triggers have noted, by table."""
    found = asked.inquiry.changes()
    return {
        table: {column: set(values) for column, values in rows.items()}
        for (_, table), rows in found.triggered_rows.items()
    }


def test_own_transactions_note_rows(shop: Ear, asked: Asked) -> None:
    """A transaction of the package finds the rows of all its statements; nobody is notified."""
    assert noted(asked) == {}
    asked.do('UPDATE books SET price = 0 WHERE id = 1')
    assert noted(asked) == {'books': {'id': {'1'}, 'shelf': {'A'}}}
    asked.do('SELECT sell(3)')
    assert noted(asked) == {
        'books': {'id': {'1', '3'}, 'shelf': {'A', 'C'}},
        'loans': {'book_id': {'3'}},
    }
    for book in range(11, 80):
        asked.do(f"INSERT INTO books VALUES ({book}, 'A')")
    assert noted(asked)['books'] == {'shelf': {'A', 'C'}}
    assert asked.last_changes().triggered_rows == asked.inquiry.changes().triggered_rows
    asked.inquiry.last_changes(is_unclear=False)
    asked.connection.commit()
    assert shop.heard() == shop.rows == []


def test_own_altered_triggers(asked: Asked, program: Program) -> None:
    """If one of a table's triggers is switched off, its rows are not known from the others."""
    program.execute('ALTER TABLE loans DISABLE TRIGGER orm_cache_notify_update')
    asked.do('UPDATE loans SET book_id = 2', 'DELETE FROM loans WHERE book_id = 3')
    assert noted(asked) == {}


@pytest.mark.parametrize('first', [True, False])
def test_own_truncate_notes_no_rows(asked: Asked, first: bool) -> None:
    """After a TRUNCATE nothing is known of the rows, nor if it comes before what is known."""
    statements = ['TRUNCATE loans', 'INSERT INTO loans VALUES (2)']
    asked.do(*(statements if first else reversed(statements)))
    assert noted(asked) == {}
    asked.do('INSERT INTO loans VALUES (2)')
    assert noted(asked) == {}
    setting = asked.connection.exec_driver_sql("SELECT current_setting('orm_cache.rows', true)")
    assert json.loads(setting.scalar_one())[f'{asked.names["tenant"]}:loans'] is None


def test_own_rollback_to_a_savepoint(asked: Asked) -> None:
    """A rollback to a savepoint takes back what was noted in it."""
    asked.do('INSERT INTO loans VALUES (2)')
    with asked.connection.begin_nested() as savepoint:
        asked.do('TRUNCATE loans')
        savepoint.rollback()
    asked.do('DELETE FROM loans WHERE book_id = 3')
    assert noted(asked) == {'loans': {'book_id': {'2', '3'}}}


def test_own_changes_while_commit_runs(shop: Ear, asked: Asked, program: Program) -> None:
    """What a deferred trigger changes while COMMIT runs is notified with all its rows, also if the
    transaction has noted the same before."""
    program.execute(
        'CREATE FUNCTION lend() RETURNS trigger LANGUAGE plpgsql AS '
        '$$ BEGIN INSERT INTO loans VALUES (2); RETURN NULL; END $$;'
        'CREATE CONSTRAINT TRIGGER lend AFTER INSERT ON books DEFERRABLE INITIALLY DEFERRED '
        'FOR EACH ROW EXECUTE FUNCTION lend()'
    )
    asked.do('INSERT INTO loans VALUES (2)', 'INSERT INTO books VALUES (4)')
    asked.inquiry.last_changes(is_unclear=False)
    asked.connection.commit()
    assert told(shop) == {'loans': [{'book_id': {'2'}}]}
