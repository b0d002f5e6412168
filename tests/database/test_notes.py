"""The compiler notes exactly what a statement touches, or says why it does not know."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Engine,
    Integer,
    MetaData,
    Table,
    create_engine,
    event,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import (
    Session,
    defaultload,
    immediateload,
    joinedload,
    lazyload,
    raiseload,
    selectin_polymorphic,
    selectinload,
    subqueryload,
)
from sqlalchemy.pool import NullPool, StaticPool
from sqlalchemy.schema import CreateSchema, CreateTable
from sqlalchemy.sql.elements import quoted_name

from onegov_ormcache.database.notes import Notes, notes_of, stored_name, take_notes
from tests.database.noting import CASES, UNCLEAR, Case, relations
from tests.support.models import Base, Document, Group, Letter, User


def noted(statement: Any, dialect: str) -> Notes:
    """Compile a statement, and return the notes on it."""
    made = {'postgresql': postgresql, 'sqlite': sqlite}[dialect].dialect()
    take_notes(made)
    notes: Notes = statement.compile(dialect=made).notes
    return notes


@pytest.mark.parametrize(
    ('case', 'dialect'),
    [
        pytest.param(case, dialect, id=f'{case.name}, {dialect}')
        for case in CASES
        for dialect in case.dialects
    ],
)
def test_notes(case: Case, dialect: str) -> None:
    """The notes have exactly the statement's tables, columns, functions and locks."""
    assert noted(case.statement(), dialect) == case.notes


@pytest.mark.parametrize('name', UNCLEAR)
@pytest.mark.parametrize('dialect', ['postgresql', 'sqlite'])
def test_unclear(name: str, dialect: str) -> None:
    """A statement with a part that the compiler does not see says which."""
    make, reason = UNCLEAR[name]
    notes = noted(make(), dialect)
    assert notes.unclear is not None
    assert reason in notes.unclear


def test_ordered_update() -> None:
    """An update with ordered values notes the columns that it sets."""
    notes = noted(update(User).ordered_values((User.name, 'a')), 'sqlite')
    assert {column for _, column in notes.updates} == {'name'}


class Noted:
    """An engine's statements, and the notes on each; None for those that have none."""

    def __init__(self, engine: Engine) -> None:
        self.notes: list[Notes | None] = []
        event.listen(engine, 'before_cursor_execute', self._note)

    def _note(self, connection: Any, cursor: Any, sql: str, parameters: Any, context: Any,
              executemany: bool) -> None:  # fmt: skip
        self.notes.append(notes_of(context))

    def take(self) -> tuple[set[str], set[str]]:
        """Return the names of the tables that were read and written since the last call."""
        notes, self.notes = self.notes, []
        known = [each for each in notes if each is not None]
        assert len(known) == len(notes)
        assert [each.unclear for each in known if each.unclear] == []
        reads = {relation.name for each in known for relation in each.reads}
        return reads, {relation.name for each in known for relation in each.writes}


@pytest.fixture(params=['sqlite', 'postgresql'])
def engine(request: pytest.FixtureRequest, tenant: str) -> Iterator[Engine]:
    """An engine of each database in turn, with the tables and some rows."""
    if request.param == 'sqlite':
        made = create_engine('sqlite://', poolclass=StaticPool)
    else:
        dsn = request.getfixturevalue('postgres_dsn')
        with create_engine(dsn).begin() as connection:
            connection.execute(CreateSchema(tenant))
        options = {'options': f'-csearch_path={tenant}'}
        made = create_engine(dsn, connect_args=options, poolclass=NullPool)
    take_notes(made.dialect)
    Base.metadata.create_all(made)
    with Session(made) as session:
        user = User(name='a', groups=[Group(name='g')])
        session.add_all([user, Letter(title='l', address='x', owner=user), Document(title='d')])
        session.commit()
    yield made
    made.dispose()


GROUPS = {'users', 'membership', 'groups'}


@pytest.mark.parametrize(
    ('options', 'reads'),
    [
        ([lazyload(User.groups)], GROUPS),
        ([joinedload(User.groups)], GROUPS),
        ([selectinload(User.groups)], GROUPS),
        ([subqueryload(User.groups)], GROUPS),
        ([immediateload(User.groups)], GROUPS),
        ([raiseload(User.documents)], GROUPS),
        ([defaultload(User.groups)], GROUPS),
        ([selectinload(User.documents.of_type(Letter))], {*GROUPS, 'documents', 'letters'}),
        ([joinedload(User.documents).selectinload(Document.owner)], {*GROUPS, 'documents'}),
    ],
)
def test_loader_strategies(engine: Engine, options: Any, reads: set[str]) -> None:
    """Whatever way relationships are loaded, the notes name each table that is read."""
    noted = Noted(engine)
    with Session(engine) as session:
        for user in session.scalars(select(User).options(*options)).unique():
            assert [group.name for group in user.groups] == ['g']
    assert noted.take() == (reads, set())


def test_loads_of_inheritance(engine: Engine) -> None:
    """The notes name the tables of subclasses, also if they are loaded later."""
    noted = Noted(engine)
    with Session(engine) as session:
        assert len(session.scalars(select(Document)).all()) == 2
        assert noted.take() == ({'documents'}, set())
        assert [each.address for each in session.query(Document) if each.kind == 'letter'] == ['x']
        assert noted.take() == ({'documents', 'letters'}, set())
        session.expire_all()
        session.scalars(select(Document).options(selectin_polymorphic(Document, [Letter]))).all()
        assert noted.take() == ({'documents', 'letters'}, set())
        assert session.get(Letter, 4711) is None
        assert noted.take() == ({'documents', 'letters'}, set())
        assert [letter.owner.name for letter in session.query(Letter)] == ['a']
        assert noted.take() == ({'documents', 'letters', 'users'}, set())


def test_flushes(engine: Engine) -> None:
    """The notes name each table that a flush writes, secondary and inherited ones included."""
    noted = Noted(engine)
    with Session(engine) as session:
        user = User(name='b', groups=[Group(name='h')])
        letter = Letter(title='t', address='y', owner=user)
        session.add_all([user, letter])
        session.flush()
        assert noted.take()[1] == {*GROUPS, 'documents', 'letters'}
        letter.address = 'z'
        session.flush()
        assert noted.take() == (set(), {'letters'})
        user.groups = []
        session.flush()
        assert noted.take()[1] == {'membership'}
        session.delete(letter)
        session.flush()
        assert noted.take()[1] == {'documents', 'letters'}


def test_bulk_operations(engine: Engine) -> None:
    """Bulk operations of a session are noted like the others."""
    noted = Noted(engine)
    with Session(engine) as session:
        session.bulk_save_objects([User(name='c'), User(name='d')])
        assert noted.take() == (set(), {'users'})
        session.bulk_insert_mappings(Letter, [{'title': 'm', 'address': 'n'}])  # type: ignore[arg-type]
        assert noted.take() == (set(), {'documents', 'letters'})
        session.execute(insert(User), [{'name': 'e'}, {'name': 'f'}])
        assert noted.take() == (set(), {'users'})
        session.execute(insert(User).returning(User), [{'name': 'g'}]).all()
        assert noted.take() == (set(), {'users'})
        session.execute(update(Group), [{'id': 1, 'name': 'bulk'}])
        assert noted.take() == (set(), {'groups'})
        session.query(Group).filter(Group.users.any()).update(
            {'name': 'u'}, synchronize_session='fetch'
        )
        reads, writes = noted.take()
        assert (reads - {'groups'}, writes) == ({'users', 'membership'}, {'groups'})
        session.query(User).filter_by(name='c').delete()
        assert noted.take()[1] == {'users'}


def test_cached_compilation(engine: Engine) -> None:
    """A statement from SQLAlchemy's cache has the notes of its first compilation, whatever its
    parameters are."""
    noted = Noted(engine)
    with engine.connect() as connection:
        for name in 'abc':
            connection.execute(select(User.id).where(User.name == name, User.groups.any()))
    first, *others = noted.notes
    assert first is not None
    assert first.reads == relations(*GROUPS)
    assert [each is first for each in others] == [True, True]


def test_compilation_before_notes() -> None:
    """A statement that was compiled before notes were taken has none, so it is not taken for
    understood."""
    engine = create_engine('sqlite://', poolclass=StaticPool)
    Base.metadata.create_all(engine)
    with engine.connect() as connection:
        connection.execute(select(User.id))
    take_notes(engine.dialect)
    noted = Noted(engine)
    with engine.connect() as connection:
        connection.execute(select(User.id))
    assert noted.notes == [None]


@pytest.mark.parametrize('sql', ['SELECT 1', 'DELETE FROM membership'])
def test_sql_for_the_driver(engine: Engine, sql: str) -> None:
    """There are no notes on SQL that the compiler does not see."""
    noted = Noted(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql(sql)
    assert noted.notes == [None]


def test_definitions_have_no_notes(engine: Engine) -> None:
    """There are no notes on DDL."""
    noted = Noted(engine)
    with engine.begin() as connection:
        connection.execute(CreateTable(Table('new', MetaData(), Column('id', Integer))))
    assert noted.notes == [None]


def test_queries_of_defaults(engine: Engine) -> None:
    """The query of a column's default is not taken for the INSERT that it is made for."""
    metadata = MetaData()
    made = Table(
        'made', metadata, Column('id', Integer, primary_key=True),
        Column('n', Integer, default=select(func.count(User.id)).scalar_subquery()),
        Column('m', Integer, default=lambda context: context.connection.scalar(
            select(func.max(Group.id)))),
    )  # fmt: skip
    metadata.create_all(engine)
    noted = Noted(engine)
    with engine.begin() as connection:
        connection.execute(insert(made).values(id=1))
    assert noted.take() == ({'users', 'groups'}, {'made'})


def test_default_that_runs_first(engine: Engine) -> None:
    """A default that is executed before its INSERT has no notes."""
    metadata = MetaData()
    made = Table(
        'made', metadata,
        Column('id', Integer, primary_key=True,
               default=select(func.count(text('1'))).scalar_subquery()),
    )  # fmt: skip
    metadata.create_all(engine)
    noted = Noted(engine)
    with engine.begin() as connection:
        connection.execute(insert(made))
    # either it is a statement of its own, without notes, or a part of the INSERT
    notes = noted.notes
    assert None in notes or any(each is not None and each.unclear for each in notes)


@pytest.mark.parametrize(
    ('name', 'stored'),
    [
        ('users', 'users'),
        ('Users', 'Users'),
        (quoted_name('Users', False), 'users'),
        (quoted_name('ÄPFEL', False), 'Äpfel'),
        (quoted_name('Users', True), 'Users'),
        ('a,b', 'a,b'),
        (' lead', ' lead'),
        ('%(x)s', '%(x)s'),
        ('x' * 63, 'x' * 63),
        ('x' * 70, 'x' * 63),
        ('x' * 62 + 'ä', 'x' * 62),
        ('x' * 61 + 'ä', 'x' * 61 + 'ä'),
        ('\N{PILE OF POO}' * 16, '\N{PILE OF POO}' * 15),
    ],
)
def test_stored_names(postgres_dsn: str, tenant: str, name: str, stored: str) -> None:
    """A name is folded and truncated as PostgreSQL does it."""
    assert stored_name(name) == stored
    metadata = MetaData(schema=tenant)
    with create_engine(postgres_dsn, poolclass=NullPool).connect() as connection:
        # SQLAlchemy refuses names that are too long; the server truncates them
        connection.dialect.max_identifier_length = 1000
        connection.execute(CreateSchema(tenant))
        Table(name, metadata, Column('id', Integer)).create(connection)
        found = connection.scalars(
            text('SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace(:tenant)'),
            {'tenant': tenant},
        )
        assert found.all() == [stored]
