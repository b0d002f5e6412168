"""A row for each way in which a table changes: what must be evicted ran again, and what
must not did not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection, Table, delete, func, insert, literal, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from onegov_ormcache import OrmCacheApp
from tests.functional.change_tables import (
    TABLES,
    Base,
    Employee,
    Guest,
    Note,
    Person,
    Remark,
    Room,
    Team,
    data,
    rows_of,
)
from tests.support.applications import Applications, committed, value
from tests.support.counting import Runs


class App(OrmCacheApp):
    """A property for each table, by its name, and by what was read of it."""

    runs = Runs()


def declare(name: str, table: Table) -> None:
    @App.orm_cached(policy=f'on-table-change:{name}', name=name)
    def by_name(app: Any) -> Any:
        app.runs(name)
        return rows_of(app, table)

    @App.orm_cached(policy='auto', name=f'auto_{name}')
    def automatic(app: Any) -> Any:
        app.runs(f'auto_{name}')
        return rows_of(app, table)


for _name, _table in TABLES.items():
    declare(_name, _table)


@App.orm_cached(policy=lambda obj: isinstance(obj, Note) and obj.text == 'shown')
def shown_notes(app: Any) -> Any:
    app.runs('shown_notes')
    return [row.id for row in app.session().execute(select(Note.id).where(Note.text == 'shown'))]


PROPERTIES = [*TABLES, *(f'auto_{name}' for name in TABLES), 'shown_notes']


def connection(session: Session) -> Connection:
    return session.connection()


def upsert(session: Session, name: str) -> Any:
    module: Any = postgresql if session.get_bind().dialect.name == 'postgresql' else sqlite
    statement = module.insert(Note).values(id=1, text=name)
    return statement.on_conflict_do_update(index_elements=['id'], set_={'text': name})


CASCADE = {'teams', 'notes', 'remarks', 'rooms', 'desks', 'membership', 'labels'}
FUNCTION = {'shown_notes'}

#: The change, and the tables of which the properties must run again; those of function
#: policies by name.
ROWS: dict[str, tuple[Callable[[Session], Any], set[str]]] = {
    'nothing': (lambda s: s.query(Note).all(), set()),
    'flush: insert': (lambda s: s.add(Note(id=2, text='hidden')), {'notes'}),
    'flush: insert, asked': (lambda s: s.add(Note(id=2, text='shown')), {'notes', *FUNCTION}),
    'flush: update': (lambda s: setattr(s.get_one(Note, 1), 'text', 'x'), {'notes'}),
    'flush: update, asked': (
        lambda s: setattr(s.get_one(Note, 1), 'text', 'shown'),
        {'notes', *FUNCTION},
    ),
    'flush: delete': (lambda s: s.delete(s.get_one(Room, 1)), {'rooms'}),
    'flush: unmodified': (lambda s: setattr(s.get_one(Note, 1), 'text', 'hidden'), set()),
    'Query.update': (lambda s: s.query(Room).update({'team_id': 1}), {'rooms', *FUNCTION}),
    'Query.delete': (lambda s: s.query(Room).delete(), {'rooms', *FUNCTION}),
    'ORM insert': (lambda s: s.execute(insert(Room).values(id=2)), {'rooms', *FUNCTION}),
    'ORM insert, many': (
        lambda s: s.execute(insert(Room), [{'id': 2}, {'id': 3}]),
        {'rooms', *FUNCTION},
    ),
    'ORM update': (lambda s: s.execute(update(Room).values(team_id=1)), {'rooms', *FUNCTION}),
    'ORM update by keys': (
        lambda s: s.execute(update(Room), [{'id': 1, 'team_id': 1}]),
        {'rooms', *FUNCTION},
    ),
    'ORM delete': (lambda s: s.execute(delete(Room)), {'rooms', *FUNCTION}),
    'bulk_save_objects': (lambda s: s.bulk_save_objects([Room(id=2)]), {'rooms', *FUNCTION}),
    'bulk_insert_mappings': (
        lambda s: s.bulk_insert_mappings(Room.__mapper__, [{'id': 2}]),
        {'rooms', *FUNCTION},
    ),
    'bulk_update_mappings': (
        lambda s: s.bulk_update_mappings(Room.__mapper__, [{'id': 1, 'team_id': 1}]),
        {'rooms', *FUNCTION},
    ),
    'Core on the connection': (
        lambda s: connection(s).execute(TABLES['rooms'].insert().values(id=2)),
        {'rooms', *FUNCTION},
    ),
    'executemany': (
        lambda s: connection(s).execute(TABLES['rooms'].insert(), [{'id': 2}, {'id': 3}]),
        {'rooms', *FUNCTION},
    ),
    'driver SQL': (
        lambda s: connection(s).exec_driver_sql('INSERT INTO rooms (id) VALUES (2)'),
        {'rooms', *FUNCTION},
    ),
    'upsert': (lambda s: s.execute(upsert(s, 'shown')), {'notes', *FUNCTION}),
    'INSERT FROM SELECT': (
        lambda s: s.execute(
            insert(Room).from_select(['id', 'team_id'], select(Note.id + 10, Note.team_id))
        ),
        {'rooms', *FUNCTION},
    ),
    'UPDATE with a subquery': (
        lambda s: s.execute(
            update(Room).values(team_id=select(func.min(Team.id)).scalar_subquery())
        ),
        {'rooms', *FUNCTION},
    ),
    'secondary table': (
        lambda s: joined(s.get_one(Person, 1), s.get_one(Team, 1)),
        # a function policy can't be asked about the rows of a secondary table
        {'membership', 'persons', 'teams', *FUNCTION},
    ),
    'joined inheritance: insert': (
        lambda s: s.add(Employee(id=4, name='new', salary=2)),
        {'persons', 'employees'},
    ),
    'joined inheritance: base column': (
        lambda s: setattr(s.get_one(Employee, 2), 'name', 'x'),
        {'persons'},
    ),
    'joined inheritance: own column': (
        lambda s: setattr(s.get_one(Employee, 2), 'salary', 3),
        {'employees'},
    ),
    'joined inheritance: delete': (
        lambda s: s.delete(s.get_one(Employee, 2)),
        {'persons', 'employees'},
    ),
    'single-table inheritance': (lambda s: setattr(s.get_one(Guest, 3), 'name', 'x'), {'persons'}),
    'cascades of a delete, transitively': (
        lambda s: s.execute(delete(Team).where(Team.id == 2)),
        CASCADE | FUNCTION,
    ),
    'cascades of an update': (
        lambda s: s.execute(update(Team).where(Team.id == 2).values(code='three')),
        {'teams', 'labels', *FUNCTION},
    ),
    'text': (lambda s: s.execute(text('UPDATE rooms SET team_id = 1')), {'rooms', *FUNCTION}),
    'text, several': (
        lambda s: [s.execute(text(sql)) for sql in ('DELETE FROM rooms', 'DELETE FROM remarks')],
        {'rooms', 'remarks', *FUNCTION},
    ),
    'text that only reads': (lambda s: s.execute(text('SELECT * FROM rooms')).all(), set()),
    'savepoint that is kept': (lambda s: within(s, kept=True), {'rooms'}),
}

ON_POSTGRESQL: dict[str, tuple[Callable[[Session], Any], set[str]]] = {
    'CTE with DML': (
        lambda s: s.execute(
            text('WITH gone AS (DELETE FROM remarks RETURNING id) SELECT count(*) FROM gone')
        ),
        {'remarks', *FUNCTION},
    ),
    'CTE with DML in Core': (
        lambda s: s.execute(
            select(delete(Remark).returning(Remark.id).cte('gone').c.id).add_columns(literal(1))
        ),
        {'remarks', *FUNCTION},
    ),
    'TRUNCATE': (
        lambda s: s.execute(text('TRUNCATE rooms, remarks')),
        {'rooms', 'remarks', *FUNCTION},
    ),
    'MERGE': (
        lambda s: s.execute(
            text(
                'MERGE INTO rooms USING notes ON rooms.id = notes.id '
                'WHEN MATCHED THEN UPDATE SET team_id = 1'
            )
        ),
        {'rooms', *FUNCTION},
    ),
    'code of the database': (
        lambda s: s.execute(text('DO $$ BEGIN DELETE FROM rooms; END $$')),
        {'rooms', *FUNCTION},
    ),
}


def joined(person: Person, team: Team) -> None:
    person.teams.append(team)


def within(session: Session, kept: bool) -> None:
    with session.begin_nested() as savepoint:
        session.add(Room(id=5))
        session.flush()
        if not kept:
            savepoint.rollback()


@pytest.mark.filterwarnings('ignore::sqlalchemy.exc.SAWarning')
@pytest.mark.parametrize('kind', [*ROWS, *ON_POSTGRESQL])
def test_change(applications: Applications, tenant: str, kind: str) -> None:
    """Just what depends on the changed tables runs again, elsewhere and here, and shows it."""
    if kind in ON_POSTGRESQL and applications.backend.name == 'embedded':
        pytest.skip('PostgreSQL alone has such statements')
    change, tables = {**ROWS, **ON_POSTGRESQL}[kind]
    evicted = {name for name in PROPERTIES if name.removeprefix('auto_') in tables}
    app = applications.start(App, base=Base)
    other = applications.elsewhere(app)
    with committed(app, tenant) as scope:
        for obj in data():
            scope.session().add(obj)
            scope.session().flush()
    read = lambda app: {name: getattr(app, name) for name in PROPERTIES}  # noqa: E731
    before = value(other, tenant, read)
    App.runs = Runs()
    with committed(app, tenant) as scope:
        change(scope.session())
        scope.session().flush()
        within_it = read(app)
    App.runs = Runs()
    after = value(other, tenant, read)
    assert after == within_it
    assert {name for name in PROPERTIES if App.runs.count(name)} == evicted
    assert {name for name in PROPERTIES if before[name] != after[name]} <= evicted
    with app.request_scope(tenant) as scope:
        for name, table in TABLES.items():
            assert after[name] == rows_of(app, table)
