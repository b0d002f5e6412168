"""An automatic policy follows what its creator reads; where that is unknown, nothing is stored."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import literal_column, select, text
from sqlalchemy.exc import DBAPIError

from onegov_ormcache import OrmCacheApp, orm_cached
from tests.support.applications import Applications, change, committed, value
from tests.support.counting import Runs
from tests.support.models import Document, User


def test_auto_that_can_not_be_known_is_not_stored(
    applications: Applications, tenant: str, runs: Runs, caplog: Any
) -> None:
    """A run that read no table, or an unknown relation, is not stored; that is logged once,
    with the reason."""

    class App(OrmCacheApp):
        @orm_cached(policy='auto')
        def nothing(self) -> int:
            runs('nothing')
            return 1

        @orm_cached(policy='auto')
        def strange(self) -> Any:
            runs('strange')
            on_postgres = self.session().get_bind().name == 'postgresql'
            name = 'pg_tables' if on_postgres else 'sqlite_master'
            return bool(self.session().execute(text(f'SELECT 1 FROM {name}')).first())

    app = applications.start(App)
    for _ in range(3):
        value(app, tenant, lambda app: (app.nothing, app.strange))
    assert (runs.count('nothing'), runs.count('strange')) == (3, 3)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert 'nothing is not stored: it read no table' in messages[0]
    assert ("a table of PostgreSQL's own" in messages[1]) or ('read no table' in messages[1])


#: A function that reads a table; some of its names are also names of the database.
READING = """
CREATE FUNCTION {}(wanted int) RETURNS text STABLE LANGUAGE plpgsql AS
    'BEGIN RETURN (SELECT title FROM documents WHERE owner_id = wanted); END'
"""
FUNCTIONS = (
    *map(READING.format, ('title_of', 'users', 'current_title', 'space')),
    "CREATE FUNCTION doubled(n int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT 2 * n'",
    """CREATE FUNCTION add_title(state text, id int) RETURNS text STABLE LANGUAGE sql AS
    'SELECT state || title_of(id)'""",
    "CREATE AGGREGATE titles(int) (SFUNC = add_title, STYPE = text, INITCOND = '')",
)


@pytest.mark.parametrize(
    ('query', 'reads'),
    [
        ('SELECT title_of(id) FROM users', True),
        ('SELECT id FROM users WHERE title_of(id) IS NOT NULL', True),
        ('SELECT id FROM users ORDER BY coalesce(title_of(id), name)', True),
        ('WITH t AS (SELECT {schema}.title_of(id) FROM users) SELECT * FROM t', True),
        ('SELECT users(id) FROM users', True),
        ('SELECT current_title(id), space(id) FROM users', True),
        ('SELECT titles(id) FROM users', True),
        ("SELECT word FROM ts_stat('SELECT to_tsvector(title) FROM documents')", True),
        ('SELECT doubled(id) FROM users', False),
        ('SELECT width_bucket(id, 0, 9, 3), num_nonnulls(name) FROM users', False),
        ('SELECT count(*), max(id), min(CAST(id AS text)) FROM users', False),
    ],
)
@pytest.mark.parametrize('is_text', [True, False], ids=['text', 'literal'])
def test_auto_that_calls_functions(
    on_servers: Applications, tenant: str, runs: Runs, query: str, reads: bool, is_text: bool
) -> None:
    """What a database function reads is a dependency, wherever in the statement it is called."""

    class App(OrmCacheApp):
        @orm_cached(policy='auto')
        def found(self) -> Any:
            runs('found')
            statement = query.format(schema=tenant)
            if is_text:
                return self.session().execute(text(statement)).all()
            return self.session().execute(select(literal_column(f'({statement} LIMIT 1)'))).all()

    if not is_text and ('*' in query or ',' in query):
        pytest.skip('a scalar subquery has one column')
    app = on_servers.start(App)
    with committed(app, tenant) as scope:
        scope.session().add(User(id=1, name='a'))
        scope.session().add(Document(id=1, kind='document', title='a', owner_id=1))
        for function in FUNCTIONS:
            scope.session().connection().exec_driver_sql(function)
    for _ in range(3):
        value(app, tenant, lambda app: app.found)
    assert runs.count('found') == 1
    change(app, tenant, Document(id=2, kind='document', title='b'))
    value(app, tenant, lambda app: app.found)
    assert runs.count('found') == (2 if reads else 1)


def test_auto_that_calls_a_function_that_is_replaced(
    on_servers: Applications, tenant: str, runs: Runs
) -> None:
    """A new definition of a function evicts, and what it reads is a dependency from then on."""

    class App(OrmCacheApp):
        @orm_cached(policy='auto')
        def found(self) -> Any:
            runs('found')
            return self.session().scalars(text('SELECT changing(id) FROM users')).all()

    app = on_servers.start(App)
    change(app, tenant, User(id=1, name='a'))
    immutable = "CREATE FUNCTION changing(int) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT $1'"
    for function, expected in ((immutable, ['1']), (READING.format('changing'), [None])):
        with committed(app, tenant) as scope:
            connection = scope.session().connection()
            connection.exec_driver_sql('DROP FUNCTION IF EXISTS changing(int)')
            connection.exec_driver_sql(function)
        for _ in range(2):
            assert value(app, tenant, lambda app: app.found) == expected
    assert runs.count('found') == 2
    change(app, tenant, Document(id=2, kind='document', title='b', owner_id=1))
    assert value(app, tenant, lambda app: app.found) == ['b']


def test_auto_that_catches_a_failed_query(
    on_servers: Applications, tenant: str, runs: Runs
) -> None:
    """A creator may catch the error of a query and return another value, which is not stored."""

    class App(OrmCacheApp):
        @orm_cached(policy='auto')
        def found(self) -> Any:
            runs('found')
            try:
                return self.session().scalars(text('SELECT no_such(id) FROM users')).all()
            except DBAPIError:
                return 'nothing'

    app = on_servers.start(App)
    change(app, tenant, User(name='a'))
    for _ in range(2):
        assert value(app, tenant, lambda app: app.found) == 'nothing'
    assert runs.count('found') == 2


def test_auto_knows_what_was_in_memory(applications: Applications, tenant: str) -> None:
    """An automatic property depends on the table of an object that was already in memory."""

    class App(OrmCacheApp):
        @orm_cached(policy='auto')
        def name(self) -> Any:
            return self.session().get(User, 1).name

    app = applications.start(App)
    change(app, tenant, User(id=1, name='a'))
    with app.request_scope(tenant) as scope:
        user = scope.session().get(User, 1)  # kept in memory by this reference
        assert user is not None
        assert app.name == 'a'
    with committed(app, tenant) as scope:
        scope.session().get(User, 1).name = 'b'
    assert value(app, tenant, lambda app: app.name) == 'b'
