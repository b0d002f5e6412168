"""A row for each way in which a table changes: what must be evicted ran again, and what
must not did not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from sqlalchemy import (
    Connection,
    ForeignKey,
    Table,
    delete,
    func,
    insert,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, mapped_column, relationship

from onegov_ormcache import OrmCacheApp
from tests.support.applications import Applications, committed, value
from tests.support.counting import Runs
from tests.support.examples import examples


class Base(DeclarativeBase):
    """The declarative base of these tables."""


class Person(Base):
    """The base of joined inheritance; single-table inheritance as well."""

    __tablename__ = 'persons'
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    teams: Mapped[list[Team]] = relationship(secondary=lambda: membership)
    __mapper_args__ = {'polymorphic_on': 'kind', 'polymorphic_identity': 'person'}


class Employee(Person):
    """Joined."""

    __tablename__ = 'employees'
    id: Mapped[int] = mapped_column(ForeignKey('persons.id'), primary_key=True)
    salary: Mapped[int]
    __mapper_args__ = {'polymorphic_identity': 'employee'}


class Guest(Person):
    """Single-table."""

    __mapper_args__ = {'polymorphic_identity': 'guest'}


class Team(Base):
    """What the others refer to, in each way that a database cascades."""

    __tablename__ = 'teams'
    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(unique=True)


class Note(Base):
    """Deleted with its team."""

    __tablename__ = 'notes'
    id: Mapped[int] = mapped_column(primary_key=True)
    team_id: Mapped[int | None] = mapped_column(ForeignKey('teams.id', ondelete='CASCADE'))
    text: Mapped[str] = mapped_column(default='')


class Remark(Base):
    """Deleted with the note that is deleted with its team."""

    __tablename__ = 'remarks'
    id: Mapped[int] = mapped_column(primary_key=True)
    note_id: Mapped[int] = mapped_column(ForeignKey('notes.id', ondelete='CASCADE'))


class Room(Base):
    """Left empty when its team is deleted."""

    __tablename__ = 'rooms'
    id: Mapped[int] = mapped_column(primary_key=True)
    team_id: Mapped[int | None] = mapped_column(ForeignKey('teams.id', ondelete='SET NULL'))


class Desk(Base):
    """Handed to team 1 when its team is deleted."""

    __tablename__ = 'desks'
    id: Mapped[int] = mapped_column(primary_key=True)
    team_id: Mapped[int] = mapped_column(
        ForeignKey('teams.id', ondelete='SET DEFAULT'), server_default='1'
    )


class Label(Base):
    """Follows its team's code."""

    __tablename__ = 'labels'
    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str | None] = mapped_column(
        ForeignKey('teams.code', onupdate='CASCADE', ondelete='SET NULL')
    )


membership = Table(
    'membership',
    Base.metadata,
    mapped_column('person_id', ForeignKey('persons.id'), primary_key=True).column,
    mapped_column('team_id', ForeignKey('teams.id', ondelete='CASCADE'), primary_key=True).column,
)

TABLES = dict(Base.metadata.tables.items())


def rows_of(app: Any, table: Table) -> list[list[Any]]:
    rows = app.session().execute(select(table).order_by(*table.primary_key))
    return [list(row) for row in rows]


class App(OrmCacheApp):
    """A property for each table, by its name, and by what was read of it."""

    runs = Runs()


for _name, _table in TABLES.items():

    @App.orm_cached(policy=f'on-table-change:{_name}', name=_name)
    def by_name(app: Any, name: str = _name, table: Table = _table) -> Any:
        app.runs(name)
        return rows_of(app, table)

    @App.orm_cached(policy='auto', name=f'auto_{_name}')
    def automatic(app: Any, name: str = _name, table: Table = _table) -> Any:
        app.runs(f'auto_{name}')
        return rows_of(app, table)


@App.orm_cached(policy=lambda obj: isinstance(obj, Note) and obj.text == 'shown')
def shown_notes(app: Any) -> Any:
    app.runs('shown_notes')
    return [row.id for row in app.session().execute(select(Note.id).where(Note.text == 'shown'))]


PROPERTIES = [*TABLES, *(f'auto_{name}' for name in TABLES), 'shown_notes']


def data() -> list[Base]:
    return [
        Team(id=1, code='one'),
        Team(id=2, code='two'),
        Person(id=1, name='person'),
        Employee(id=2, name='employee', salary=1),
        Guest(id=3, name='guest'),
        Note(id=1, team_id=2, text='hidden'),
        Remark(id=1, note_id=1),
        Room(id=1, team_id=2),
        Desk(id=1, team_id=2),
        Label(id=1, code='two'),
    ]


def connection(session: Session) -> Connection:
    return session.connection()


def upsert(session: Session, name: str) -> Any:
    module: Any = postgresql if session.get_bind().dialect.name == 'postgresql' else sqlite
    statement = module.insert(Note).values(id=1, text=name)
    return statement.on_conflict_do_update(index_elements=['id'], set_={'text': name})


CASCADE = {'teams', 'notes', 'remarks', 'rooms', 'desks', 'membership', 'labels'}
JUDGED = {'shown_notes'}

#: The change, and the tables of which the properties must run again; those of function
#: policies by name.
ROWS: dict[str, tuple[Callable[[Session], Any], set[str]]] = {
    'nothing': (lambda s: s.query(Note).all(), set()),
    'flush: insert': (lambda s: s.add(Note(id=2, text='hidden')), {'notes'}),
    'flush: insert, judged': (lambda s: s.add(Note(id=2, text='shown')), {'notes', *JUDGED}),
    'flush: update': (lambda s: setattr(s.get_one(Note, 1), 'text', 'x'), {'notes'}),
    'flush: update, judged': (
        lambda s: setattr(s.get_one(Note, 1), 'text', 'shown'),
        {'notes', *JUDGED},
    ),
    'flush: delete': (lambda s: s.delete(s.get_one(Room, 1)), {'rooms'}),
    'flush: unmodified': (lambda s: setattr(s.get_one(Note, 1), 'text', 'hidden'), set()),
    'Query.update': (lambda s: s.query(Room).update({'team_id': 1}), {'rooms', *JUDGED}),
    'Query.delete': (lambda s: s.query(Room).delete(), {'rooms', *JUDGED}),
    'ORM insert': (lambda s: s.execute(insert(Room).values(id=2)), {'rooms', *JUDGED}),
    'ORM insert, many': (
        lambda s: s.execute(insert(Room), [{'id': 2}, {'id': 3}]),
        {'rooms', *JUDGED},
    ),
    'ORM update': (lambda s: s.execute(update(Room).values(team_id=1)), {'rooms', *JUDGED}),
    'ORM update by keys': (
        lambda s: s.execute(update(Room), [{'id': 1, 'team_id': 1}]),
        {'rooms', *JUDGED},
    ),
    'ORM delete': (lambda s: s.execute(delete(Room)), {'rooms', *JUDGED}),
    'bulk_save_objects': (lambda s: s.bulk_save_objects([Room(id=2)]), {'rooms', *JUDGED}),
    'bulk_insert_mappings': (
        lambda s: s.bulk_insert_mappings(Room.__mapper__, [{'id': 2}]),
        {'rooms', *JUDGED},
    ),
    'bulk_update_mappings': (
        lambda s: s.bulk_update_mappings(Room.__mapper__, [{'id': 1, 'team_id': 1}]),
        {'rooms', *JUDGED},
    ),
    'Core on the connection': (
        lambda s: connection(s).execute(TABLES['rooms'].insert().values(id=2)),
        {'rooms', *JUDGED},
    ),
    'executemany': (
        lambda s: connection(s).execute(TABLES['rooms'].insert(), [{'id': 2}, {'id': 3}]),
        {'rooms', *JUDGED},
    ),
    'driver SQL': (
        lambda s: connection(s).exec_driver_sql('INSERT INTO rooms (id) VALUES (2)'),
        {'rooms', *JUDGED},
    ),
    'upsert': (lambda s: s.execute(upsert(s, 'shown')), {'notes', *JUDGED}),
    'INSERT FROM SELECT': (
        lambda s: s.execute(
            insert(Room).from_select(['id', 'team_id'], select(Note.id + 10, Note.team_id))
        ),
        {'rooms', *JUDGED},
    ),
    'UPDATE with a subquery': (
        lambda s: s.execute(
            update(Room).values(team_id=select(func.min(Team.id)).scalar_subquery())
        ),
        {'rooms', *JUDGED},
    ),
    'secondary table': (
        lambda s: joined(s.get_one(Person, 1), s.get_one(Team, 1)),
        {'membership'},
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
        CASCADE | JUDGED,
    ),
    'cascades of an update': (
        lambda s: s.execute(update(Team).where(Team.id == 2).values(code='three')),
        {'teams', 'labels', *JUDGED},
    ),
    'text': (lambda s: s.execute(text('UPDATE rooms SET team_id = 1')), {'rooms', *JUDGED}),
    'text, several': (
        lambda s: [s.execute(text(sql)) for sql in ('DELETE FROM rooms', 'DELETE FROM remarks')],
        {'rooms', 'remarks', *JUDGED},
    ),
    'text that only reads': (lambda s: s.execute(text('SELECT * FROM rooms')).all(), set()),
    'savepoint that is kept': (lambda s: within(s, kept=True), {'rooms'}),
}

ON_POSTGRESQL: dict[str, tuple[Callable[[Session], Any], set[str]]] = {
    'CTE with DML': (
        lambda s: s.execute(
            text('WITH gone AS (DELETE FROM remarks RETURNING id) SELECT count(*) FROM gone')
        ),
        {'remarks', *JUDGED},
    ),
    'CTE with DML in Core': (
        lambda s: s.execute(
            select(delete(Remark).returning(Remark.id).cte('gone').c.id).add_columns(literal(1))
        ),
        {'remarks', *JUDGED},
    ),
    'TRUNCATE': (
        lambda s: s.execute(text('TRUNCATE rooms, remarks')),
        {'rooms', 'remarks', *JUDGED},
    ),
    'MERGE': (
        lambda s: s.execute(
            text(
                'MERGE INTO rooms USING notes ON rooms.id = notes.id '
                'WHEN MATCHED THEN UPDATE SET team_id = 1'
            )
        ),
        {'rooms', *JUDGED},
    ),
    'what nobody can parse': (
        lambda s: s.execute(text('DO $$ BEGIN DELETE FROM rooms; END $$')),
        {*TABLES, *JUDGED},
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


# any statement against any other


@st.composite
def queries(draw: st.DrawFn) -> Any:
    """A select of one to three tables: joined, in a subquery, in EXISTS, or in a CTE."""
    classes = draw(st.lists(st.sampled_from([Team, Note, Room, Remark]), min_size=1, max_size=3))
    main = aliased(classes[0]) if draw(st.booleans()) else classes[0]
    query: Any = select(func.count()).select_from(main)
    for cls in classes[1:]:
        inner: Any = aliased(cls)
        match draw(st.sampled_from(['exists', 'scalar', 'cte', 'join'])):
            case 'exists':
                query = query.where(select(inner.id).exists())
            case 'scalar':
                counted = select(func.count()).select_from(inner).scalar_subquery()
                query = query.add_columns(counted)
            case 'cte':
                common = select(inner.id).cte()
                counted = select(func.count()).select_from(common).scalar_subquery()
                query = query.add_columns(counted)
            case 'join':
                query = query.join(inner, inner.id == main.id, isouter=True)
    return query


@st.composite
def statements(draw: st.DrawFn) -> Any:
    """A function of a session that changes some table in some way."""
    cls = draw(st.sampled_from([Team, Note, Room, Remark]))
    number = draw(st.integers(1, 3))
    number += cls is Team  # desks fall back on team 1
    condition = cls.id == number
    new: dict[str, Any] = {'id': draw(st.integers(100, 10_000))}
    if cls is Team:
        new['code'] = f'c{new["id"]}'  # no two may have the same
    if cls is Remark:
        new['note_id'] = None
    kinds = ['flush', 'core', 'update', 'delete', 'text', 'from select', 'orm']
    kind = draw(st.sampled_from(kinds))

    def run(session: Session) -> None:
        if kind in ('flush', 'core', 'orm') and cls is not Remark:
            if session.get(cls, new['id']) is None:
                if kind == 'flush':
                    session.add(cls(**new))
                else:
                    session.execute(insert(cls if kind == 'orm' else cls.__table__).values(**new))
        elif kind == 'update' and cls in (Note, Room):
            team = session.scalar(select(func.min(Team.id)))
            session.execute(update(cls).where(condition).values(team_id=team))
        elif kind == 'text':
            sql = f'DELETE FROM {cls.__tablename__} WHERE id = :id'
            session.execute(text(sql), {'id': number})
        elif kind == 'from select' and cls in (Note, Room):
            top = session.scalar(select(func.max(cls.id))) or 0
            columns = ['id', 'text'] if cls is Note else ['id']
            chosen = [Team.id + top, literal('')] if cls is Note else [Team.id + top]
            session.execute(insert(cls).from_select(columns, select(*chosen)))
        else:
            session.execute(delete(cls).where(condition))

    return run


@pytest.mark.filterwarnings('ignore::sqlalchemy.exc.SAWarning')
@examples(
    40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(draws=st.data())
def test_cached_is_uncached(
    applications: Applications, make_tenant: Callable[[str], str], draws: st.DataObject
) -> None:
    """Whatever is read, and whatever changes: what is cached equals what is not."""
    asked = draws.draw(st.lists(queries(), min_size=1, max_size=4))

    class Random(OrmCacheApp):
        pass

    for number, query in enumerate(asked):
        Random.orm_cached(policy='auto', name=f'q{number}')(
            lambda app, query=query: [list(row) for row in app.session().execute(query)]
        )
    app = applications.start(Random, base=Base)
    tenant = make_tenant('random')
    try:
        with committed(app, tenant) as scope:
            for table in reversed(Base.metadata.sorted_tables):
                scope.session().execute(table.delete())
            for obj in data():
                scope.session().add(obj)
                scope.session().flush()
        for _ in range(3):
            changes = draws.draw(st.lists(statements(), min_size=1, max_size=3))
            with committed(app, tenant) as scope:
                for run in changes:
                    run(scope.session())
            with app.request_scope(tenant) as scope:
                for number, query in enumerate(asked):
                    fresh = [list(row) for row in scope.session().execute(query)]
                    assert getattr(app, f'q{number}') == fresh
    finally:
        app.close_orm_cache()
