"""What SQL statements touch, as text and as SQLAlchemy compiles them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from gc import collect
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
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

POSTGRESQL = 'postgresql'
SQLITE = 'sqlite'


def touching(reads: str = '', writes: str = '', deletes: str = '', updates: str = '') -> Statement:
    """Make a statement of names: `touching('users groups', updates='users.name')`."""
    pairs = (name.rpartition('.') for name in updates.split())
    return Statement(
        frozenset(reads.split()),
        frozenset(writes.split()),
        frozenset(deletes.split()),
        frozenset((table, column) for table, _, column in pairs),
    )


def analyzed(dialect: str, sql: str) -> Statement:
    """What a statement touches, without the functions that it calls."""
    return without_calls(StatementAnalyzer(dialect).analyze(sql, None))


def without_calls(statement: Statement) -> Statement:
    return statement._replace(calls=frozenset())


BOTH: list[tuple[str, Statement]] = [
    # Reads
    ('SELECT 1', touching()),
    ('SELECT * FROM users', touching('users')),
    ('SELECT * FROM Users u JOIN "Groups" g ON u.id = g.id', touching('users Groups')),
    ('SELECT * FROM town.users, groups', touching('town.users groups')),
    (
        'SELECT * FROM (users u JOIN b ON u.id = b.id) LEFT JOIN c USING (id)',
        touching('users b c'),
    ),
    ('SELECT (SELECT max(id) FROM a), b.* FROM b', touching('a b')),
    (
        'SELECT * FROM a WHERE EXISTS (SELECT 1 FROM b) OR x NOT IN (SELECT y FROM c)',
        touching('a b c'),
    ),
    ('SELECT * FROM a UNION SELECT * FROM b EXCEPT SELECT * FROM c', touching('a b c')),
    ('SELECT * FROM (SELECT * FROM a) AS b ORDER BY (SELECT x FROM c LIMIT 1)', touching('a c')),
    ('SELECT count(*) FROM a GROUP BY x HAVING count(*) > (SELECT 1 FROM b)', touching('a b')),
    ('SELECT CASE WHEN EXISTS (SELECT 1 FROM a) THEN 1 END', touching('a')),
    ('VALUES (1), ((SELECT 2 FROM a))', touching('a')),
    # What looks like SQL and is none
    ("SELECT 'DELETE FROM b; -- ' FROM users -- ; DELETE FROM c", touching('users')),
    ("SELECT 'it''s; DELETE FROM b' FROM users", touching('users')),
    ('/* DELETE FROM b; */ SELECT "DELETE FROM c" FROM users', touching('users')),
    ('-- DELETE FROM users', touching()),
    ('', touching()),
    (' ; ', touching()),
    # Common table expressions
    ('WITH x AS (SELECT * FROM a) SELECT * FROM x JOIN b ON true', touching('a b')),
    ('WITH x AS (SELECT * FROM a) SELECT * FROM x UNION SELECT * FROM x', touching('a')),
    ('WITH x AS (SELECT * FROM a), y AS (SELECT * FROM x) SELECT * FROM y', touching('a')),
    ('SELECT * FROM (WITH x AS (SELECT * FROM a) SELECT * FROM x) s, x', touching('a x')),
    ('WITH x AS (SELECT 1) SELECT * FROM town.x', touching('town.x')),
    ('WITH town AS (SELECT 1) SELECT * FROM town.x', touching('town.x')),
    ('WITH x AS (SELECT 1) SELECT (SELECT 1 FROM x)', touching()),
    (
        (
            'WITH RECURSIVE t(n) AS (SELECT id FROM a UNION ALL SELECT n FROM t JOIN b ON true) '
            'SELECT * FROM t'
        ),
        touching('a b'),
    ),
    ('WITH x AS (SELECT * FROM a) INSERT INTO x SELECT * FROM x', touching('a', 'x')),
    ('INSERT INTO b WITH x AS (SELECT * FROM a) SELECT * FROM x', touching('a', 'b')),
    ('WITH x AS (SELECT 1) UPDATE x SET y = 2', touching('', 'x', updates='x.y')),
    # Inserts
    ('INSERT INTO users (id, name) VALUES (1, 2), (3, 4)', touching('', 'users')),
    ('INSERT INTO town."Users" DEFAULT VALUES', touching('', 'town.Users')),
    ('INSERT INTO users SELECT * FROM b', touching('b', 'users')),
    ('INSERT INTO users VALUES ((SELECT max(id) FROM b)) RETURNING id', touching('b', 'users')),
    ('INSERT INTO users VALUES (1) ON CONFLICT DO NOTHING', touching('', 'users')),
    (
        (
            'INSERT INTO users AS u (id, a) SELECT * FROM c WHERE true ON CONFLICT (id) '
            'DO UPDATE SET a = excluded.a, b = (SELECT 1 FROM d) WHERE u.a > 1'
        ),
        touching('c d', 'users', updates='users.a users.b'),
    ),
    # Updates
    (
        'UPDATE users SET name = 1, "Mail" = 2',
        touching('', 'users', updates='users.name users.Mail'),
    ),
    (
        (
            'UPDATE town.users AS u SET (x, y) = (SELECT 1, 2 FROM a) FROM b JOIN c ON true '
            'WHERE u.id IN (SELECT id FROM d) RETURNING u.id'
        ),
        touching('a b c d', 'town.users', updates='town.users.x town.users.y'),
    ),
    ('UPDATE users SET x = 1 FROM users AS o', touching('users', 'users', updates='users.x')),
    # Deletes
    ('DELETE FROM users', touching('', 'users', 'users')),
    (
        'DELETE FROM town.users WHERE id IN (SELECT x FROM b)',
        touching('b', 'town.users', 'town.users'),
    ),
    # Definitions
    ('CREATE TABLE users (id int REFERENCES groups (id))', touching()),
    ('CREATE TABLE copied AS SELECT * FROM users', touching('users', 'copied')),
    ('CREATE VIEW v AS SELECT * FROM users', touching('users', 'v')),
    ('CREATE UNIQUE INDEX i ON users (name)', touching()),
    ('DROP TABLE IF EXISTS town.users', touching('', 'town.users', 'town.users')),
    ('DROP VIEW v', touching('', 'v', 'v')),
    ('DROP INDEX i', touching()),
    ('CREATE TABLE users (a int, b int GENERATED ALWAYS AS (a * 2) STORED)', touching()),
    ('ALTER TABLE users ADD COLUMN x int', touching('', 'users', 'users')),
    ('ALTER TABLE "Users" RENAME TO people', touching('', 'Users people', 'Users people')),
    # Nothing
    ('BEGIN', touching()),
    ('COMMIT', touching()),
    ('ROLLBACK', touching()),
    ('SAVEPOINT sa_savepoint_1', touching()),
    ('ROLLBACK TO SAVEPOINT sa_savepoint_1', touching()),
    ('RELEASE SAVEPOINT sa_savepoint_1', touching()),
    ('VACUUM', touching()),
    ('ANALYZE users', touching()),
    ('EXPLAIN DELETE FROM users', touching()),
    # Several
    (
        'DELETE FROM a; INSERT INTO b VALUES (1); SAVEPOINT x; SELECT * FROM c;',
        touching('c', 'a b', 'a'),
    ),
]

ONLY_POSTGRESQL: list[tuple[str, Statement]] = [
    ('SELECT * FROM ONLY users *', touching('users')),
    ('TABLE users', touching('users')),
    ('SELECT * FROM db.town.users', touching('town.users')),
    ('SELECT * FROM users u FOR NO KEY UPDATE OF u SKIP LOCKED', touching('users')),
    ('SELECT * FROM a, LATERAL (SELECT * FROM b WHERE b.id = a.id) x', touching('a b')),
    ('SELECT ARRAY(SELECT id FROM b), x = ANY(SELECT y FROM c) FROM a', touching('a b c')),
    ('SELECT DISTINCT ON (x) x::town.kind FROM a TABLESAMPLE SYSTEM (1)', touching('a')),
    (r"SELECT 'a\'; DELETE FROM users; --'", touching('', 'users', 'users')),
    (r"SELECT E'a\'; DELETE FROM users; --'", touching()),
    ('SELECT $x$; DELETE FROM users; $x$', touching()),
    ('/* /* */ DELETE FROM b; */ SELECT * FROM users', touching('users')),
    ("SELECT a ? 'b', c @> '{}', d #>> '{a}' FROM users", touching('users')),
    # A CTE's name is a table inside of itself, unless it is recursive
    ('WITH users AS (SELECT * FROM users) SELECT * FROM users', touching('users')),
    ('WITH x AS (SELECT * FROM y), y AS (SELECT 1) SELECT * FROM x', touching('y')),
    # Functions
    ('SELECT * FROM generate_series(1, 3) g, unnest(ARRAY[1]), json_each(x)', touching()),
    ("SELECT * FROM jsonb_to_recordset('[]') AS x(a int)", touching()),
    ('SELECT * FROM Found(1), town."Lost"(2)', touching('found() town.Lost()')),
    ('SELECT * FROM a, LATERAL town.found(a.id)', touching('a town.found()')),
    ('SELECT * FROM ROWS FROM (found(1), lost(2))', touching('found() lost()')),
    (
        'SELECT archive(1), town.prune(), now(), pg_catalog.version()',
        touching('archive() town.prune()'),
    ),
    ("SELECT set_config('a', 'b', true), nextval('x'), pg_advisory_xact_lock(1)", touching()),
    # Changes in CTEs
    (
        (
            'WITH x AS (DELETE FROM a RETURNING *), y AS (UPDATE c SET z = 1 RETURNING *) '
            'INSERT INTO b SELECT * FROM x, y'
        ),
        touching('', 'a b c', 'a', 'c.z'),
    ),
    ('DELETE FROM ONLY users u USING b JOIN c ON true', touching('b c', 'users', 'users')),
    ('UPDATE a SET b[1] = 2, c.d = 3, (e) = ROW(4)', touching('', 'a', '', 'a.b a.c a.e')),
    ('SELECT * INTO copied FROM users', touching('users', 'copied')),
    ('TRUNCATE users', touching('', 'users', 'users')),
    (
        'TRUNCATE TABLE ONLY users *, town."B" RESTART IDENTITY',
        touching('', 'users town.B', 'users town.B'),
    ),
    ('DROP TABLE a, temp CASCADE', touching('', 'a temp', 'a temp')),
    ('ALTER TABLE IF EXISTS ONLY users ENABLE ROW LEVEL SECURITY', touching('', 'users', 'users')),
    ('REFRESH MATERIALIZED VIEW CONCURRENTLY town.v', touching('', 'town.v', 'town.v')),
    ('CREATE FUNCTION f() RETURNS int LANGUAGE sql AS $$ DELETE FROM users $$', touching()),
    ('CREATE EXTENSION hstore', touching()),
    # MERGE
    (
        (
            'MERGE INTO users u USING b ON u.id = b.id '
            'WHEN MATCHED AND EXISTS (SELECT 1 FROM c) THEN DELETE '
            'WHEN MATCHED THEN UPDATE SET x = (SELECT 1 FROM d) '
            'WHEN NOT MATCHED THEN INSERT (id) VALUES (b.id)'
        ),
        touching('b c d', 'users', 'users', 'users.x'),
    ),
    (
        (
            'WITH c AS (SELECT * FROM b) MERGE INTO users USING c ON true '
            'WHEN MATCHED THEN UPDATE SET (x, y) = (1, 2) WHEN NOT MATCHED THEN DO NOTHING'
        ),
        touching('b', 'users', '', 'users.x users.y'),
    ),
    # Commands
    ('SET search_path TO town', touching()),
    ('SET LOCAL lock_timeout = 1', touching()),
    ('SHOW search_path', touching()),
    ('LOCK TABLE users IN EXCLUSIVE MODE', touching()),
    ('LISTEN x', touching()),
    ("NOTIFY x, 'y'", touching()),
    ("PREPARE TRANSACTION 'x'", touching()),
    ('EXPLAIN (COSTS off) DELETE FROM users', touching()),
    ('EXPLAIN ANALYZE VERBOSE DELETE FROM users', touching('', 'users', 'users')),
    ('EXPLAIN (COSTS off, ANALYZE) SELECT * FROM users', touching('users')),
    ('DECLARE c CURSOR FOR SELECT * FROM users FOR UPDATE', touching('users')),
    ('FETCH 10 FROM c', touching()),
    ('COPY users (a, b) FROM STDIN WITH (FORMAT csv)', touching('', 'users')),
    ('COPY town.users TO STDOUT', touching('town.users')),
    ('COPY (SELECT * FROM users JOIN b ON true) TO STDOUT', touching('users b')),
]

ONLY_SQLITE: list[tuple[str, Statement]] = [
    ('WITH r(n) AS (SELECT 1 UNION ALL SELECT n FROM r) SELECT * FROM r', touching()),
    ('SELECT * FROM [Users] JOIN `b`', touching('Users b')),
    ('SELECT * FROM a WHERE x IN users', touching('a users')),
    ('SELECT * FROM users INDEXED BY i LIMIT ? OFFSET ?', touching('users')),
    ('SELECT * FROM users, json_each(users.data)', touching('users')),
    ('INSERT INTO users (a, b) VALUES (?1, :name)', touching('', 'users')),
    ('INSERT OR REPLACE INTO users (a) VALUES (?)', touching('', 'users', 'users')),
    ('REPLACE INTO users SELECT * FROM b', touching('b', 'users', 'users')),
    ('UPDATE OR IGNORE users SET a = 1', touching('', 'users', '', 'users.a')),
    ('UPDATE OR REPLACE users SET a = 1', touching('', 'users', 'users', 'users.a')),
    ('PRAGMA main.table_info("users")', touching()),
    ("ATTACH DATABASE 'x' AS y", touching()),
    ('EXPLAIN QUERY PLAN SELECT * FROM users', touching()),
    ('BEGIN IMMEDIATE', touching()),
    ('CREATE VIRTUAL TABLE x USING fts5(a)', touching()),
    ('CREATE TRIGGER t AFTER INSERT ON u BEGIN SELECT 1; END', touching()),
]

UNKNOWN: list[tuple[str, str]] = [
    (POSTGRESQL, 'DO $$ BEGIN DELETE FROM users; END $$'),
    (POSTGRESQL, 'CALL archive(1)'),
    (POSTGRESQL, 'EXECUTE prepared'),
    (POSTGRESQL, 'TRUNCATE users CASCADE'),
    (POSTGRESQL, 'TRUNCATE view'),
    (POSTGRESQL, 'DROP SCHEMA town CASCADE'),
    (POSTGRESQL, "ALTER TYPE kind RENAME VALUE 'a' TO 'b'"),
    (POSTGRESQL, 'CREATE TABLE x AS EXECUTE prepared'),
    (POSTGRESQL, 'WITH x AS (DO $$ a $$) SELECT 1'),
    (POSTGRESQL, 'COPY FROM STDIN'),
    (POSTGRESQL, 'COPY (DELETE FROM users RETURNING *) TO STDOUT'),
    (POSTGRESQL, 'SELECT * FROM users; CALL archive(1)'),
    (POSTGRESQL, 'SELECT * FROM (DELETE FROM users)'),
    (POSTGRESQL, 'IMPORT FOREIGN SCHEMA a FROM SERVER b INTO c'),
    (POSTGRESQL, "SELECT 'unterminated"),
    (POSTGRESQL, 'SELECT ' + '(' * 5000 + '1' + ')' * 5000),
    (POSTGRESQL, 'SELECT 1 -- ' + 'x' * 100_000),
    (SQLITE, 'WITH x AS (SELECT 1) REPLACE INTO users SELECT * FROM x'),
    *(
        (dialect, sql)
        for dialect in (POSTGRESQL, SQLITE)
        for sql in (
            'users',
            'foo bar',
            '1',
            'SELECT FROM WHERE',
            '"SET" x',
            "'SET'",
            '(',
            'DELETE users',
            'EXPLAIN ANALYZE CALL x()',
        )
    ),
]

TEXTS = [
    *((dialect, *case) for case in BOTH for dialect in (POSTGRESQL, SQLITE)),
    *((POSTGRESQL, *case) for case in ONLY_POSTGRESQL),
    *((SQLITE, *case) for case in ONLY_SQLITE),
]


@pytest.mark.parametrize(('dialect', 'sql', 'expected'), TEXTS)
def test_text(dialect: str, sql: str, expected: Statement) -> None:
    """A textual statement touches what its syntax says."""
    assert analyzed(dialect, sql)._replace(control=None) == expected


@pytest.mark.parametrize('dialect', [POSTGRESQL, SQLITE])
@pytest.mark.parametrize(
    ('sql', 'control'),
    [
        ('COMMIT', 'transaction'),
        ('rollback work', 'transaction'),
        ('BEGIN; SELECT 1', 'transaction'),
        ('SELECT 1; -- done\nEND', 'transaction'),
        ("PREPARE TRANSACTION 'x'", 'transaction'),
        ('START TRANSACTION', 'transaction'),
        ('ROLLBACK TO SAVEPOINT a', 'savepoint'),
        ('ROLLBACK TRANSACTION TO a', 'savepoint'),
        ('SAVEPOINT a', None),
        ('RELEASE SAVEPOINT a', None),
        ('PREPARE p AS SELECT 1', None),
        ("SELECT '; COMMIT'", None),
        ('SELECT 1 /* ; COMMIT */', None),
        ('UPDATE users SET name = $$; COMMIT$$', None),
        ('CREATE TRIGGER t AFTER INSERT ON u BEGIN SELECT 1; END', None),
    ],
)
def test_control(dialect: str, sql: str, control: str | None) -> None:
    """A text that begins or ends a transaction, or undoes a savepoint, says so."""
    assert analyzed(dialect, sql).control == control


@pytest.mark.parametrize(('dialect', 'sql'), UNKNOWN)
def test_unknown(dialect: str, sql: str) -> None:
    """What cannot be told is unknown, with a reason that shows the statement."""
    found = analyzed(dialect, sql)
    assert found.unknown is not None
    assert found.unknown.endswith(f': {sql[:80]}')
    assert found == Statement(unknown=found.unknown)


def test_unknown_dialect() -> None:
    """A database that is not supported is refused at once, by name."""
    with pytest.raises(ValueError, match='mysql'):
        StatementAnalyzer('mysql')


@pytest.mark.parametrize(
    'sql',
    [
        'SELECT * FROM users WHERE id IN (__[POSTCOMPILE_id_1]) AND name = %(name)s::VARCHAR',
        "SELECT * FROM users WHERE lower(name) LIKE '%%x%%' ESCAPE '/' AND id %% %(id)s = 1",
        "SELECT '%(a)s' FROM users WHERE x IN (__[POSTCOMPILE_x~~f(~~REPL~~)~~]) LIMIT %s",
        'SELECT * FROM users WHERE (a, b) IN ((%s, %s), (%s, %s)) AND c = $1::VARCHAR',
        'SELECT * FROM __[SCHEMA__none].users WHERE id = ANY(%(ids)s::INTEGER[])',
    ],
)
def test_placeholders(sql: str) -> None:
    """Placeholders of SQLAlchemy and of drivers are none of SQL's syntax."""
    assert analyzed(POSTGRESQL, sql) == touching('users')


def test_schema_translate_map_keeps_the_schema_of_the_metadata() -> None:
    """Schemas that are only known at execution are named as the metadata does."""
    found = analyzed(POSTGRESQL, 'SELECT 1 FROM __[SCHEMA_Town].users, __[SCHEMA__none].groups')
    assert found == touching('Town.users groups')


def test_sqlite_compares_names_without_case() -> None:
    """SQLite's names are given as the application knows them, PostgreSQL's as quoted."""
    tables = {'Users', 'town.Pages'}
    sql = 'SELECT 1 FROM USERS, "uSERS", town.PAGES, Other'
    lite, postgres = (StatementAnalyzer(name, tables) for name in (SQLITE, POSTGRESQL))
    assert lite.analyze(sql, None) == touching('Users town.Pages other')
    assert postgres.analyze(sql, None) == touching('users uSERS town.pages other')


def test_many_rows_are_parsed_once() -> None:
    """A multi-row INSERT with placeholders is as short as one of a single row."""
    rows = ', '.join(f'(%(a_m{i})s::VARCHAR, %(b_m{i})s)' for i in range(50_000))
    found = analyzed(POSTGRESQL, f"INSERT INTO users (a, b) VALUES {rows} RETURNING 'x(), ()'")
    assert found == touching('', 'users')


def test_rows_in_literals_are_left_alone() -> None:
    """Rows that begin or end a literal are none: to drop one would move the literal's end."""
    sql = "SELECT (a, '), (a, '), ('; DELETE FROM users; --')"
    assert analyzed(SQLITE, sql) == touching()


def test_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """sqlglot's warnings are silent during an analysis and heard after it."""
    logger = logging.getLogger('sqlglot')
    assert analyzed(POSTGRESQL, 'WITH x AS (DO $$ a $$) SELECT 1').unknown
    assert not caplog.records
    assert not logger.filters
    logger.warning('heard')
    assert caplog.messages == ['heard']


@given(sql=st.text(max_size=200), dialect=st.sampled_from([POSTGRESQL, SQLITE]))
def test_arbitrary_text_never_raises(sql: str, dialect: str) -> None:
    """Whatever is executed, the analysis gives an answer."""
    assert isinstance(analyzed(dialect, sql), Statement)


WORDS = str.split(
    'SELECT INSERT INTO UPDATE SET DELETE FROM WHERE WITH AS RECURSIVE JOIN ON USING VALUES '
    'MERGE WHEN MATCHED THEN COPY TO DO CONFLICT CREATE DROP ALTER TRUNCATE TABLE EXPLAIN '
    'REPLACE DECLARE REFRESH FOR IN OR NOT RENAME UNION ( ) , ; . * = a b "C" f( \'x\' 1 ? -- /*'
)


@given(
    words=st.lists(st.sampled_from(WORDS), max_size=25),
    dialect=st.sampled_from([POSTGRESQL, SQLITE]),
)
def test_arbitrary_words_of_sql_never_raise(words: list[str], dialect: str) -> None:
    """Nor does what is almost SQL."""
    assert isinstance(analyzed(dialect, ' '.join(words)), Statement)


# What SQLAlchemy makes


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


@pytest.mark.parametrize(
    ('sql', 'calls'),
    [
        ('SELECT title_of(id), upper(name) FROM users', 'title_of upper'),
        ('SELECT town.title_of(id), "Title_Of"(id) FROM users', 'title_of Title_Of'),
        ('SELECT 1 FROM users WHERE lower(title_of(id)) IN (SELECT code_of(1) FROM t)',
         'lower title_of code_of'),
        ('UPDATE users SET name = title_of(id) RETURNING code_of(id)', 'title_of code_of'),
        ('SELECT found(1), jsonb_agg(name), pg_sleep(1) FROM found(1)', 'jsonb_agg pg_sleep'),
        ('SELECT users(id), space(id), current_title(1) FROM users', 'users space current_title'),
    ],
)  # fmt: skip
def test_functions_called_for_a_value(sql: str, calls: str) -> None:
    """Whatever may be a function of the application is told, wherever it is called."""
    assert StatementAnalyzer(POSTGRESQL).analyze(sql).calls >= frozenset(calls.split())
    assert 'found' not in StatementAnalyzer(POSTGRESQL).analyze(sql).calls
    assert not StatementAnalyzer(SQLITE).analyze(sql).calls


class Seen(list[Statement]):
    """The statements that an engine executed."""

    @property
    def union(self) -> Statement:
        """All that they touched."""
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
    """Defaults of columns read, executed inside of the INSERT or before it."""
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
    """What SQLAlchemy compiles for psycopg is understood."""
    assert compiled(statement) == expected


def test_compiled_with_schema_translate_map() -> None:
    """A translated schema is named as in the metadata."""
    found = compiled(
        select(User), schema_translate_map={None: 'town'}, render_schema_translate=False
    )
    assert found == touching('users')


# What is remembered


class Parsers:
    """Counts the parsers that an analyzer makes."""

    def __init__(self, analyzer: StatementAnalyzer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self._make = analyzer._sqlglot.parser
        monkeypatch.setattr(analyzer._sqlglot, 'parser', self._counted)

    def _counted(self, **options: Any) -> Any:
        self.count += 1
        return self._make(**options)


def test_compiled_statements_are_parsed_once(db: Sqlite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the parameters and however many rows, a repeated statement is only looked up."""
    parsers = Parsers(db.analyzer, monkeypatch)
    for size in (1, 2, 3, 500):
        with db.session() as session:
            session.scalars(select(User).where(User.id.in_(range(size)))).all()
            session.execute(insert(Mail), [{'user_id': i} for i in range(size)])
    assert parsers.count == 2


def test_compiled_statements_are_forgotten() -> None:
    """What was compiled and is gone leaves nothing behind."""
    analyzer = StatementAnalyzer(SQLITE)
    context: Any = SimpleNamespace(compiled=select(User).compile(), statement='')
    analyzer.analyze('', context)
    assert len(analyzer._compiled) == 1
    del context
    collect()
    assert not analyzer._compiled


def test_texts_are_parsed_once_unless_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts are remembered, those over 10,000 characters are not."""
    analyzer = StatementAnalyzer(SQLITE)
    parsers = Parsers(analyzer, monkeypatch)
    short, long = 'SELECT * FROM users', f'SELECT * FROM users -- {"x" * 10_000}'
    assert {analyzer.analyze(short, None) for _ in range(3)} == {touching('users')}
    assert parsers.count == 1
    assert {analyzer.analyze(long, None) for _ in range(3)} == {touching('users')}
    assert parsers.count == 4


def test_threads_share_an_analyzer() -> None:
    """Threads that analyze at the same time get the same right answers."""
    analyzer = StatementAnalyzer(POSTGRESQL)
    wrong: list[Statement] = []

    def work() -> None:
        for i in range(100):
            found = analyzer.analyze(f'DELETE FROM t{i} USING u{i}', None)
            if found != touching(f'u{i}', f't{i}', f't{i}'):
                wrong.append(found)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
