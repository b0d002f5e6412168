"""What a statement tells of its rows is true of each row that it really changes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Connection,
    Integer,
    MetaData,
    String,
    Table,
    and_,
    bindparam,
    delete,
    func,
    insert,
    lambda_stmt,
    literal,
    or_,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from onegov_ormcache.database.protocols import Statement
from onegov_ormcache.database.session_manager import SessionManager
from tests.database.fakes import FakeScope, open_scope
from tests.database.selecting import (
    DIALECTS,
    INSERT,
    SET,
    TRANSLATED,
    UPSERTS,
    WATCHED,
    WHERE,
    WITH,
    Author,
    Base,
    Book,
    Case,
    Disc,
    book,
    books,
)

BOOKS = (
    (1, 'a', 10, 'c1', 'r1', 'book', 1), (2, 'b', 10, 'c2', None, 'book', 1),
    (3, 'c', 20, 'c3', 'r1', 'novel', 2), (4, 'A', None, 'c4', 'r2', 'novel', None),
)  # fmt: skip


#: What some upserts need, by their names.
DEFINITIONS = {
    'by an expression': (
        "UPDATE books SET title = 'd' WHERE title = 'A'",
        'CREATE UNIQUE INDEX one_title ON books (lower(title))',
    ),
    'by a constraint that the metadata does not have': (
        'ALTER TABLE books ADD CONSTRAINT unknown UNIQUE (title)',
    ),
}


@pytest.fixture(params=['sqlite', 'postgresql'])
def manager(
    request: pytest.FixtureRequest, tmp_path: Path, tenant: str
) -> Iterator[SessionManager]:
    """A session manager of each database, which is asked for the rows of books and discs."""
    dsn = f'sqlite:///{tmp_path}/tenants'
    if request.param == 'postgresql':
        dsn = request.getfixturevalue('postgres_dsn')
    made = SessionManager(dsn, Base)
    made.ensure_schema_exists(tenant)
    with open_scope(made, tenant) as scope:
        session = scope.session()
        session.add_all([Author(id=1, name='n'), Author(id=2, name='m'), Disc(id=1, length=1)])
        session.flush()
        names = ('id', 'title', 'shelf', 'code', 'place', 'kind', 'author_id')
        old = {'touched': 'no', 'lower': 'x', 'odd': 'X', 'price': 1}
        values = [{**dict(zip(names, each, strict=True)), **old} for each in BOOKS]
        session.execute(insert(books), values)
        if request.param == 'postgresql':
            session.execute(text("SELECT setval('books_id_seq', 10)"))
        session.commit()
    made.observer.watch_rows(WATCHED)
    yield made
    made.dispose()


@pytest.fixture
def scope(manager: SessionManager, tenant: str) -> Iterator[FakeScope]:
    """An open scope."""
    with open_scope(manager, tenant) as opened:
        yield opened


def contents(connection: Connection, name: str) -> list[dict[str, Any]]:
    """Return all rows of a table, as the driver has them."""
    found = connection.exec_driver_sql(f'SELECT * FROM {name}')
    return [dict(row._mapping) for row in found]


def changed(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of one state that the other one does not have."""
    return [row for row in before if row not in after] + [r for r in after if r not in before]


def run(scope: FakeScope, make: Any, parameters: Any = None) -> list[Statement]:
    """Execute a statement with the session, and return what the listener was told of changes."""
    session = scope.session()
    session.connection()
    heard = scope.listeners[-1].statements
    heard.clear()
    if make.__code__.co_argcount:
        make(session)
    elif parameters is None:
        session.execute(make())
    else:
        session.execute(make(), parameters)
    return [each for each in heard if each.changes or each.writes_elsewhere or each.unclear]


def assert_true(
    statements: list[Statement], name: str, before: list[dict[str, Any]],
    after: list[dict[str, Any]],
) -> None:  # fmt: skip
    """Assert that each changed row is in one of the selections, in each column."""
    if any(name not in each.rows and name in each.writes for each in statements):
        return
    if any(each.unclear or name in each.cascades for each in statements):
        return
    found = [selection for each in statements for selection in each.rows.get(name, ())]
    for row in changed(before, after):
        for column in WATCHED[name]:
            if all(column in selection for selection in found):
                assert any(row[column] in selection[column] for selection in found), (row, column)


def dialect_of(scope: FakeScope) -> str:
    """Return the name of the scope's database."""
    return scope.session_manager.database.engine(scope.schema).dialect.name


def check(scope: FakeScope, case: Case) -> None:
    connection = scope.session().connection()
    before = contents(connection, case.table)
    statements = run(scope, case.make, case.parameters)
    assert statements
    assert_true(statements, case.table, before, contents(connection, case.table))
    rows = [selection for each in statements for selection in each.rows.get(case.table, ())]
    assert rows == (case.rows or [])


@pytest.mark.parametrize(
    'case',
    [pytest.param(c, id=f'{kind} {c.name}')
     for kind, cases in (('where', WHERE), ('set', SET), ('insert', INSERT), ('with', WITH))
     for c in cases],
)  # fmt: skip
def test_statement(scope: FakeScope, case: Case) -> None:
    """A statement tells exactly the columns of which its text says all, with their values."""
    if dialect_of(scope) not in case.databases:
        pytest.skip('the database has no such statement')
    check(scope, case)


@pytest.mark.parametrize('upsert', UPSERTS, ids=[each[0] for each in UPSERTS])
def test_upsert(scope: FakeScope, upsert: Any) -> None:
    """An upsert tells the columns by which the row in conflict was found, and no others."""
    name, make, rows, databases = upsert
    dialect = dialect_of(scope)
    if databases and dialect not in databases:
        pytest.skip('the database has no such statement')
    for definition in DEFINITIONS.get(name, ()):
        scope.session().execute(text(definition))
    scope.session().commit()
    check(scope, Case(name, lambda: make(DIALECTS[dialect]), rows))


#: Criteria and new values, of which some say nothing of the rows.
CRITERIA = (
    Book.id == 1, Book.id.in_([1, 2, 4]), literal(2) == Book.id, Book.shelf == 10,
    Book.shelf.in_([10, 20]), Book.shelf.is_(None), Book.title == 'a', Book.isbn == 'c2',
    Book.room == 'r1', Book.id > 1, or_(Book.id == 1, Book.shelf == 20), ~(Book.id == 1),
    and_(Book.shelf == 10, Book.title != 'b'), Book.id == Book.author_id, Book.kind == 'novel',
    Book.odd == 'x', Book.lower == 'X', Book.touched == 'no', Book.made == 11, Book.title < 'c',
)  # fmt: skip
VALUES = (
    {'shelf': 10}, {'shelf': 30}, {'shelf': None}, {'title': 'x'}, {'title': 'a'},
    {'title': func.lower('A')}, {'shelf': Book.shelf + 10}, {'id': Book.id + 100},
    {'place': 'r2'}, {'kind': 'book'}, {'touched': 'x'}, {'lower': 'Y'}, {'author_id': 2},
)  # fmt: skip


@pytest.mark.parametrize('seed', range(3))
def test_statements_at_random(scope: FakeScope, seed: int) -> None:
    """Whatever a statement says, each row that it really changes is among those that it tells."""
    chance = random.Random(seed)
    dialect = DIALECTS[dialect_of(scope)]
    connection = scope.session().connection()
    told = changes = 0
    for _ in range(100):
        where = chance.sample(CRITERIA, chance.choice([1, 1, 2, 3]))
        set_ = {k: v for each in chance.sample(VALUES, chance.choice([1, 2])) for k, v in
                each.items()}  # fmt: skip
        given = book(chance.choice([1, 2, 7]), code=chance.choice(['c1', 'c2', 'c9']))
        kind = chance.choice(['update', 'delete', 'upsert'])
        statement: Any = {
            'update': update(books).values(set_).where(*where),
            'delete': delete(books).where(*where),
            'upsert': dialect.insert(books).values(given).on_conflict_do_update(
                index_elements=[chance.choice(['id', 'code'])],
                set_=chance.choice([{'title': 'z', 'place': 'r1'}, {'shelf': 5}, {'code': 'c7'}]),
            ),
        }[kind]  # fmt: skip
        before = contents(connection, 'books')
        try:
            with connection.begin_nested() as savepoint:
                statements = run(scope, lambda: statement)  # noqa: B023
                after = contents(connection, 'books')
                assert_true(statements, 'books', before, after)
                told += all('books' in each.rows for each in statements)
                changes += before != after
                savepoint.rollback()
        except IntegrityError:
            pass  # the other column is taken
    assert told > 20
    assert changes > 20


def rows_of(scope: FakeScope, make: Any, parameters: Any = None) -> Any:
    """Return what one statement tells of the rows of books."""
    (statement,) = run(scope, make, parameters)
    return statement.rows.get('books')


def test_the_same_statement_again(scope: FakeScope) -> None:
    """The values are those of each execution, also if the statement was compiled before."""

    def by_key(number: int) -> Any:
        return lambda: update(Book).values(title='x', shelf=number).where(
            Book.id == number, Book.shelf.in_([number, 3]), Book.isbn == 'c')

    for number in (1, 2, 1, 4):
        assert rows_of(scope, by_key(number)) == (
            {'id': (number,), 'shelf': (number, 3, number), 'code': ('c',)},
        )
    for shelves in ([1], [], [2, 3], [4]):
        statement = lambda: delete(Book).where(Book.shelf.in_(shelves))  # noqa: B023, E731
        assert rows_of(scope, statement) == ({'shelf': tuple(shelves)},)
    made = update(books).values(title='x').where(books.c.id == bindparam('b'))
    for number in (1, 2):
        assert rows_of(scope, lambda: made, {'b': number}) == ({'id': (number,)},)
    for title in ('t', 'u'):
        found = rows_of(scope, lambda: insert(books).values(title=title, code=title))  # noqa: B023
        assert found == ({'title': (title,), 'code': (title,), 'kind': ('book',)},)


def test_lambdas(scope: FakeScope) -> None:
    """A statement within a lambda has the values of each execution."""
    for number in (1, 2):
        made = lambda_stmt(lambda: update(books).values(title='x').where(books.c.id == number))  # noqa: B023
        assert rows_of(scope, lambda: made) == ({'id': (number,)},)  # noqa: B023


def test_values_that_are_not_certain(scope: FakeScope) -> None:
    """A value that the database may take for another one makes the column unknown, in this
    execution alone."""
    by_title = update(books).values(shelf=1).where(books.c.title == bindparam('b'))
    assert rows_of(scope, lambda: by_title, {'b': 'a'}) == ({'title': ('a',)},)
    assert rows_of(scope, lambda: by_title, {'b': 'a '}) is None
    assert rows_of(scope, lambda: by_title, {'b': 'b'}) == ({'title': ('b',)},)


def test_changes_of_the_driver(scope: FakeScope) -> None:
    """What a cursor of the driver's own has changed before, and nobody was told, is not taken for
    the rows of the statement."""

    def both(session: Session) -> None:
        cursor = session.connection().connection.cursor()
        cursor.execute("INSERT INTO books (id, title, kind) VALUES (20, 'x', 'book')")
        session.execute(update(Book).values(title='x').where(Book.id == 1))
        session.execute(update(Book).values(title='x').where(Book.id == 3))

    by_driver, *others = run(scope, both)
    assert by_driver.unclear
    told = [each.rows.get('books') for each in others]
    first = None if dialect_of(scope) == 'sqlite' else ({'id': (1,)},)
    assert told == [first, ({'id': (3,)},)]


def test_many_values(scope: FakeScope) -> None:
    """A list of more than a thousand values is not told."""
    by_list = update(books).values(title='x').where(books.c.id.in_(bindparam('b', expanding=True)))
    assert rows_of(scope, lambda: by_list, {'b': list(range(1000))}) is not None
    assert rows_of(scope, lambda: by_list, {'b': list(range(1001))}) is None


def test_batches(scope: FakeScope) -> None:
    """If SQLAlchemy inserts rows in batches, each batch tells of all."""
    values = [book(number) for number in (7, 8, 9)]
    options = {'insertmanyvalues_page_size': 2}
    make = insert(books).returning(books.c.id).execution_options(**options)
    for statement in run(scope, lambda: make, values):
        told = [selection['id'] for selection in statement.rows['books']]
        assert told == [(7,), (8,), (9,)]


def test_nothing_is_asked_for(manager: SessionManager, tenant: str) -> None:
    """Only what was asked for is told, from the moment when it was."""
    made = SessionManager(manager.database.address, Base)
    made.ensure_schema_exists(tenant)
    by_shelf = lambda: update(Book).values(title='x').where(Book.id == 1, Book.shelf == 10)  # noqa: E731
    try:
        with open_scope(made, tenant) as scope:
            assert rows_of(scope, by_shelf) is None
            made.observer.watch_rows({'items': frozenset({'id'})})
            assert rows_of(scope, by_shelf) is None
            made.observer.watch_rows({'books': frozenset({'shelf'})})
            assert rows_of(scope, by_shelf) == ({'shelf': (10,)},)
            made.observer.watch_rows({'books': frozenset({'id', 'unknown'})})
            assert rows_of(scope, by_shelf) == ({'shelf': (10,), 'id': (1,)},)
    finally:
        made.dispose()


def test_flush(scope: FakeScope) -> None:
    """The statements of a flush tell no rows, because its objects do."""
    session = scope.session()

    def flush(session: Session) -> None:
        session.add(Book(id=7, title='t'))
        session.get_one(Book, 1).title = 'x'
        session.delete(session.get_one(Book, 2))
        session.flush()

    statements = run(scope, flush)
    assert [each.of_objects for each in statements] == [True, True, True]
    assert all(not each.rows for each in statements)
    assert session.get_one(Book, 7).title == 't'


#: A collation that may find different texts equal. The server under test may be without ICU, which
#: has such; what matters is the mark.
ANY_CASE = (
    "CREATE COLLATION any_case (provider = libc, locale = 'C');"
    "UPDATE pg_collation SET collisdeterministic = false WHERE collname = 'any_case'"
)

#: By database: what makes columns uncertain, and the columns that a statement still tells.
UNCERTAIN = {
    'sqlite': {
        'CREATE TABLE t (id INTEGER, title VARCHAR COLLATE NOCASE)': set(),
        'CREATE TABLE t (id INTEGER PRIMARY KEY, title TEXT UNIQUE ON CONFLICT REPLACE)': set(),
        'CREATE TABLE t (id INTEGER, title STRING)': {'id'},
        "CREATE TABLE t (id INTEGER, title TEXT AS (id || ''))": {'id'},
        'CREATE TABLE t (id REAL, title CLOB)': {'title'},
        'CREATE TABLE t ("ID", Title)': {'id', 'title'},
        'CREATE TABLE t (id INTEGER, title VARCHAR);'
        'CREATE UNIQUE INDEX i ON t (title COLLATE NOCASE)': set(),
    },
    'postgresql': {
        'CREATE TABLE t (id int, title char(20))': {'id'},
        'CREATE TABLE t (id numeric(5, 0), title text)': {'title'},
        'CREATE TABLE t (id int, title varchar)': {'id', 'title'},
        'CREATE TABLE t (id bigint, title name)': {'id'},
        'CREATE TABLE t (id int, title text GENERATED ALWAYS AS (lower(id::text)) STORED)': {'id'},
        'CREATE DOMAIN names AS text;CREATE TABLE t (id int, title names)': {'id'},
        f'{ANY_CASE};CREATE TABLE t (id int, title text COLLATE any_case)': {'id'},
        f'{ANY_CASE};CREATE TABLE t (id int, title text);'
        'CREATE UNIQUE INDEX i ON t (title COLLATE any_case)': {'id'},
    },
}

PLAIN = Table('t', MetaData(), Column('id', Integer), Column('title', String))


@pytest.mark.parametrize(
    ('database', 'definitions'),
    [(database, each) for database, several in UNCERTAIN.items() for each in several],
)
def test_definitions_of_the_database(
    request: pytest.FixtureRequest, tmp_path: Path, tenant: str, database: str, definitions: str
) -> None:
    """What the database may store or compare in another way is not told, whatever the metadata
    says of the column."""
    dsn = f'sqlite:///{tmp_path}/tenants'
    if database == 'postgresql':
        dsn = request.getfixturevalue('postgres_dsn')
    made = SessionManager(dsn, Base)
    made.observer.watch_rows({'t': frozenset({'id', 'title'})})
    made.ensure_schema_exists(tenant)
    try:
        with open_scope(made, tenant) as scope:
            for definition in definitions.split(';'):
                scope.session().execute(text(definition))
            scope.session().commit()
            make = lambda: delete(PLAIN).where(PLAIN.c.id == 1, PLAIN.c.title == 'x')  # noqa: E731
            (statement,) = run(scope, make)
            (selection,) = statement.rows.get('t', ({},))
            assert set(selection) == UNCERTAIN[database][definitions]
    finally:
        made.dispose()


FURTHER = (
    'CREATE TABLE t (id INTEGER PRIMARY KEY, title INTEGER REFERENCES t ON DELETE CASCADE)',
    'CREATE TABLE t (id INTEGER PRIMARY KEY, title INTEGER REFERENCES t ON DELETE SET NULL)',
)


@pytest.mark.parametrize('definition', FURTHER)
def test_further_rows(scope: FakeScope, definition: str) -> None:
    """A table of which the database may delete further rows by itself tells none."""
    scope.observer.watch_rows({'t': frozenset({'id'})})
    scope.session().execute(text(definition))
    scope.session().commit()
    (statement,) = run(scope, lambda: delete(PLAIN).where(PLAIN.c.id == 1))
    assert statement.cascades == {'t'}
    assert not statement.rows
    (statement,) = run(scope, lambda: insert(PLAIN).values(id=1))
    assert statement.rows == {'t': ({'id': (1,)},)}


def test_definitions_that_change(scope: FakeScope) -> None:
    """A change of definitions is known at the next transaction."""
    scope.observer.watch_rows({'t': frozenset({'id', 'title'})})
    make = lambda: delete(PLAIN).where(PLAIN.c.id == 1, PLAIN.c.title == 'x')  # noqa: E731
    scope.session().execute(text('CREATE TABLE t (id INTEGER, title VARCHAR)'))
    scope.session().commit()
    (statement,) = run(scope, make)
    assert statement.rows == {'t': ({'id': (1,), 'title': ('x',)},)}
    if dialect_of(scope) == 'sqlite':
        scope.session().execute(text('DROP TABLE t'))
        scope.session().execute(text('CREATE TABLE t (id INTEGER, title VARCHAR COLLATE NOCASE)'))
        (statement,) = run(scope, make)
        assert not statement.rows


def test_translated_schema(scope: FakeScope, make_tenant: Any) -> None:
    """A translated schema is that of the execution; another tenant's rows are not this one's."""
    if dialect_of(scope) == 'sqlite':
        pytest.skip('SQLite has no schemas')
    make = lambda: update(TRANSLATED).values(title='x').where(TRANSLATED.c.id == 1)  # noqa: E731
    session = scope.session()
    session.connection(execution_options={'schema_translate_map': {'elsewhere': scope.schema}})
    (statement,) = run(scope, make)
    assert statement.rows == {'books': ({'id': (1,)},)}
    session.rollback()
    other = make_tenant('other')
    scope.session_manager.ensure_schema_exists(other)
    session.connection(execution_options={'schema_translate_map': {'elsewhere': other}})
    (statement,) = run(scope, make)
    assert statement.writes == set()
    assert not statement.rows
