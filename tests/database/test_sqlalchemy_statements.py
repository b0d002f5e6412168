"""The analyzer understands each statement that SQLAlchemy makes, and parses it once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from gc import collect
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Connection,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    delete,
    event,
    exists,
    func,
    insert,
    lateral,
    literal,
    select,
    text,
    tuple_,
    union,
    update,
    values,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import psycopg
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    joinedload,
    mapped_column,
    relationship,
    selectinload,
    subqueryload,
    with_polymorphic,
)
from sqlalchemy.pool import StaticPool

from onegov_ormcache.database.statements import Statement, StatementAnalyzer
from tests.database.analysis import POSTGRESQL, SQLITE, Parsers, touching, without_calls


class Base(DeclarativeBase):
    pass


members = Table(
    'members',
    Base.metadata,
    Column('user_id', ForeignKey('users.id'), primary_key=True),
    Column('group_id', ForeignKey('groups.id'), primary_key=True),
)


class User(Base):
    __tablename__ = 'users'
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String)
    kind: Mapped[str] = mapped_column(default='user')
    groups: Mapped[list[Group]] = relationship(secondary=members, back_populates='users')
    mails: Mapped[list[Mail]] = relationship(cascade='all, delete-orphan')
    __mapper_args__ = {'polymorphic_on': 'kind', 'polymorphic_identity': 'user'}


class Admin(User):
    __tablename__ = 'admins'
    id: Mapped[int] = mapped_column(ForeignKey('users.id'), primary_key=True)
    level: Mapped[int] = mapped_column(default=1)
    __mapper_args__ = {'polymorphic_identity': 'admin'}


class Group(Base):
    __tablename__ = 'groups'
    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey('groups.id'))
    users: Mapped[list[User]] = relationship(secondary=members, back_populates='groups')


class Mail(Base):
    __tablename__ = 'mails'
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey('users.id'))


numbered = Table(
    'numbered',
    Base.metadata,
    Column('id', Integer, primary_key=True, default=select(func.max(Mail.id)).scalar_subquery()),
    Column('count', Integer, default=select(func.count(Group.id)).scalar_subquery()),
    # Executes the primary key's default on its own.
    implicit_returning=False,
)


class Seen(list[Statement]):
    """The statements that an engine executed."""

    @property
    def union(self) -> Statement:
        """All that these statements touched, as one statement."""
        assert not [each.unknown for each in self if each.unknown]
        reads, writes, deletes, updates, *_ = zip(*self, strict=True)
        empty: frozenset[Any] = frozenset()
        return Statement(
            empty.union(*reads),
            empty.union(*writes),
            empty.union(*deletes),
            empty.union(*updates),
        )


class Sqlite:
    """An engine on a database in memory, whose statements are analyzed."""

    def __init__(self) -> None:
        self.engine = create_engine('sqlite://', poolclass=StaticPool)
        self.analyzer = StatementAnalyzer(SQLITE, Base.metadata.tables)
        self.seen = Seen()
        Base.metadata.create_all(self.engine)
        event.listen(self.engine, 'before_cursor_execute', self._before)

    def _before(self, conn: Connection, cursor: Any, statement: str, *args: Any) -> None:
        self.seen.append(self.analyzer.analyze(statement, args[1]))

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Open a session and forget what was seen before."""
        with Session(self.engine) as session:
            self.seen.clear()
            yield session


@pytest.fixture
def db() -> Iterator[Sqlite]:
    db = Sqlite()
    with Session(db.engine) as session:
        mails = [Mail(), Mail()]
        session.add(User(name='u', groups=[Group(), Group()], mails=mails))
        session.add(Admin(name='a', groups=[Group()]))
        session.commit()
    db.seen.clear()
    yield db
    db.engine.dispose()


def test_flush_of_new_objects(db: Sqlite) -> None:
    """A flush writes the tables of inheritance and the secondary tables."""
    with db.session() as session:
        session.add(Admin(name='x', groups=[Group()], mails=[Mail()]))
        session.flush()
    assert db.seen.union == touching('', 'users admins groups members mails')


def test_flush_of_changed_objects(db: Sqlite) -> None:
    """An update names its table and columns, a removal from a collection its table."""
    with db.session() as session:
        admin = session.scalars(select(Admin)).one()
        admin.groups.clear()
        admin.level = 3
        db.seen.clear()
        session.flush()
    assert db.seen.union == touching('', 'admins members', 'members', 'admins.level')


def test_flush_of_deleted_objects(db: Sqlite) -> None:
    """A delete of an object deletes from all that the ORM cascades to."""
    with db.session() as session:
        user = session.scalars(select(User).where(User.kind == 'user')).one()
        session.delete(user)
        db.seen.clear()
        session.flush()
    assert db.seen.union.deletes == {'users', 'members', 'mails'}


@pytest.mark.parametrize('load', [joinedload, selectinload, subqueryload])
def test_eager_loads(db: Sqlite, load: Any) -> None:
    """An eager load reads the tables of all it loads, whatever the technique."""
    with db.session() as session:
        query = select(User).options(load(User.groups), load(User.mails)).limit(2)
        assert session.scalars(query).unique().all()
    assert db.seen.union == touching('users members groups mails')


def test_polymorphic_loads(db: Sqlite) -> None:
    """A polymorphic load reads the tables of the subclasses."""
    with db.session() as session:
        session.scalars(select(with_polymorphic(User, '*', aliased=True))).all()
    assert db.seen.union == touching('users admins')


def test_aliases_and_subqueries(db: Sqlite) -> None:
    """Aliases and anonymous subqueries are no tables."""
    other = aliased(User)
    inner = select(Group.id).where(Group.id.in_([1, 2, 3])).subquery()
    query = (
        select(User, select(func.count(Mail.id)).scalar_subquery())
        .join(other, other.id == User.id)
        .join(inner, inner.c.id == User.id)
        .where(exists().where(members.c.user_id == User.id))
        .where(tuple_(User.id, User.name).in_([(1, 'u'), (2, 'a')]))
    )
    with db.session() as session:
        session.execute(query).all()
        session.execute(union(select(User.id), select(Admin.id))).all()
    assert db.seen.union == touching('users groups mails members admins')


def test_recursive_query(db: Sqlite) -> None:
    """A recursive CTE reads the tables in it, not itself."""
    tree = select(Group.id).where(Group.parent_id.is_(None)).cte('users', recursive=True)
    tree = tree.union_all(select(Group.id).join(tree, Group.parent_id == tree.c.id))
    with db.session() as session:
        session.execute(select(tree)).all()
    assert db.seen.union == touching('groups')


def test_bulk_statements(db: Sqlite) -> None:
    """Bulk inserts, updates and deletes are seen as what they are."""
    with db.session() as session:
        rows = [{'id': i, 'name': f'n{i}'} for i in range(10, 2000)]
        session.execute(insert(User).returning(User.id), rows).all()
        session.execute(update(User), [{'id': 10, 'name': 'y'}, {'id': 11, 'name': 'z'}])
        session.execute(update(User).where(User.id > 99).values(name=User.kind))
        session.execute(delete(Mail).where(Mail.user_id.in_(select(Admin.id))))
    assert db.seen.union == touching('admins users', 'users mails', 'mails', 'users.name')


def test_upsert_and_insert_from_select(db: Sqlite) -> None:
    """An upsert updates, an INSERT from SELECT reads."""
    upsert = sqlite.insert(User).values(id=1, name='x')
    upsert = upsert.on_conflict_do_update(index_elements=['id'], set_={'name': 'y'})
    copy = insert(Mail).from_select(['user_id'], select(Admin.id))
    with db.session() as session:
        session.execute(upsert)
        session.execute(copy)
    assert db.seen == [
        touching('', 'users', updates='users.name'),
        touching('admins users', 'mails'),
    ]


def test_defaults_that_select(db: Sqlite) -> None:
    """A column's default that selects is a read, within the INSERT or before it."""
    with db.engine.begin() as connection:
        connection.execute(insert(numbered))
    assert db.seen == [touching('mails'), touching('groups', 'numbered')]


def test_text_and_driver_sql(db: Sqlite) -> None:
    """Textual SQL is analyzed, with its bound parameters."""
    with db.engine.begin() as connection:
        connection.execute(
            text('UPDATE users SET name = :name WHERE id IN (:a)'), {'name': 'x', 'a': 1}
        )
        connection.exec_driver_sql('DELETE FROM mails WHERE id = ?', (1,))
    assert db.seen == [
        touching('', 'users', updates='users.name'),
        touching('', 'mails', 'mails'),
    ]


def test_savepoints_touch_nothing(db: Sqlite) -> None:
    """A nested transaction is no change."""
    with db.session() as session:
        with session.begin_nested():
            session.execute(select(literal(1)))
    assert db.seen == [touching()] * 3


def test_definitions(db: Sqlite) -> None:
    """Creating all tables changes nothing, dropping them changes all."""
    metadata = MetaData()
    Table(
        'one', metadata, Column('id', Integer, primary_key=True), Column('x', Integer, index=True)
    )
    metadata.create_all(db.engine)
    assert not db.seen.union.writes
    metadata.drop_all(db.engine)
    assert db.seen.union.writes == db.seen.union.deletes == {'one'}


def compiled(statement: Any, **options: Any) -> StatementAnalyzer | Any:
    """Analyze a statement as the psycopg dialect compiles it."""
    result = statement.compile(dialect=psycopg.dialect(), **options)  # type: ignore[no-untyped-call]
    context: Any = SimpleNamespace(compiled=result, statement='is not looked at')
    return without_calls(StatementAnalyzer(POSTGRESQL).analyze('is not looked at', context))


def postgres_upsert() -> Any:
    statement = postgresql.insert(User).values([{'id': 1, 'name': 'x'}, {'id': 2, 'name': 'y'}])
    return statement.on_conflict_do_update(
        index_elements=['id'], set_={'name': statement.excluded.name, 'kind': 'z'}
    )


def dml_in_ctes() -> Any:
    gone = delete(Mail).where(Mail.id.in_([1, 2])).returning(Mail.user_id).cte('gone')
    moved = update(Group).values(parent_id=None).returning(Group.id).cte('moved')
    return insert(members).from_select(['user_id', 'group_id'], select(gone.c.user_id, moved.c.id))


def laterals() -> Any:
    newest = lateral(select(Mail.id).where(Mail.user_id == User.id).limit(1))
    numbers = func.generate_series(1, User.id).table_valued('value').render_derived()
    rows = values(Column('n', Integer), name='rows').data([(1,), (2,)])
    return select(User.name, newest.c.id, numbers.c.value, rows.c.n)


@pytest.mark.parametrize(
    ('statement', 'expected'),
    [
        (insert(User), touching('', 'users')),
        (insert(User).values(name='x').returning(User), touching('', 'users')),
        (
            update(User).values(name='x').where(User.id == 1),
            touching('', 'users', '', 'users.name'),
        ),
        (
            update(User).values(name=Mail.id).where(User.id == Mail.user_id),
            touching('mails', 'users', '', 'users.name'),
        ),
        (delete(User).where(User.id == Mail.user_id), touching('mails', 'users', 'users')),
        (postgres_upsert(), touching('', 'users', '', 'users.name users.kind')),
        (dml_in_ctes(), touching('', 'mails groups members', 'mails', 'groups.parent_id')),
        (laterals(), touching('users mails')),
        (select(User).where(User.id.in_([1, 2])).with_for_update(of=User), touching('users')),
        (select(User).where(User.name.icontains('x%', autoescape=True)), touching('users')),
        (select(aliased(Admin, flat=True)).limit(3), touching('users admins')),
        (select(func.archive(1)), touching('archive()')),
        (text('SELECT * FROM users WHERE name LIKE :x AND id % 2 = 1'), touching('users')),
    ],
)
def test_compiled_for_postgresql(statement: Any, expected: Statement) -> None:
    """Statements that SQLAlchemy compiles for psycopg are understood."""
    assert compiled(statement) == expected


def test_compiled_with_schema_translate_map() -> None:
    """A translated schema is named as in the metadata."""
    found = compiled(
        select(User), schema_translate_map={None: 'town'}, render_schema_translate=False
    )
    assert found == touching('users')


def test_compiled_statements_are_parsed_once(db: Sqlite, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repeated statement is not parsed again, whatever its parameters and number of rows."""
    parsers = Parsers(db.analyzer, monkeypatch)
    for size in (1, 2, 3, 500):
        with db.session() as session:
            session.scalars(select(User).where(User.id.in_(range(size)))).all()
            session.execute(insert(Mail), [{'user_id': i} for i in range(size)])
    assert parsers.count == 2


def test_compiled_statements_are_forgotten() -> None:
    """The analyzer forgets a compiled statement that is garbage-collected."""
    analyzer = StatementAnalyzer(SQLITE)
    context: Any = SimpleNamespace(compiled=select(User).compile(), statement='')
    analyzer.analyze('', context)
    assert len(analyzer._compiled) == 1
    del context
    collect()
    assert not analyzer._compiled
