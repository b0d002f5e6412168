"""An automatic policy follows what its creator reads; where that is unknown, nothing is stored."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from onegov_ormcache import OrmCacheApp, orm_cached
from tests.support.applications import Applications, change, committed, value
from tests.support.counting import Runs
from tests.support.models import User


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
            name = 'pg_class' if on_postgres else 'sqlite_master'
            return bool(self.session().execute(text(f'SELECT 1 FROM {name}')).first())

    app = applications.start(App)
    for _ in range(3):
        value(app, tenant, lambda app: (app.nothing, app.strange))
    assert (runs.count('nothing'), runs.count('strange')) == (3, 3)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert 'nothing is not stored: it read no table' in messages[0]
    assert 'no table of the metadata' in messages[1]


#: A function that reads a table; its names are also names of the database or of sqlglot.
READING = """
CREATE FUNCTION {}(wanted int) RETURNS text STABLE LANGUAGE plpgsql AS
    'BEGIN RETURN (SELECT title FROM documents WHERE owner_id = wanted); END'
"""
FUNCTIONS = (
    *map(READING.format, ('title_of', 'users', 'current_title', 'space')),
    "CREATE FUNCTION doubled(n int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT 2 * n'",
    """CREATE FUNCTION add_title(state text, id int) RETURNS text STABLE LANGUAGE sql AS
    'SELECT state || title_of(id)'""",
    'CREATE AGGREGATE titles(int) (SFUNC = add_title, STYPE = text)',
)


@pytest.mark.parametrize(
    ('query', 'is_stored'),
    [
        ('SELECT title_of(id) FROM users', False),
        ('SELECT id FROM users WHERE title_of(id) IS NOT NULL', False),
        ('SELECT id FROM users ORDER BY coalesce(title_of(id), name)', False),
        ('WITH t AS (SELECT {schema}.title_of(id) FROM users) SELECT * FROM t', False),
        ('SELECT users(id) FROM users', False),
        ('SELECT current_title(id), space(id) FROM users', False),
        ('SELECT titles(id) FROM users', False),
        ("SELECT (SELECT count(*) FROM ts_stat('SELECT NULL::tsvector')) FROM users", False),
        ('SELECT doubled(id) FROM users', True),
        ('SELECT width_bucket(id, 0, 9, 3), num_nonnulls(name) FROM users', True),
        ('SELECT count(*), max(id), min(CAST(id AS text)) FROM users', True),
    ],
)
def test_auto_that_calls_functions(
    on_servers: Applications, tenant: str, runs: Runs, caplog: Any, query: str, is_stored: bool
) -> None:
    """A run that calls a function which may read tables is not stored, wherever in the
    statement the function is called."""

    class App(OrmCacheApp):
        @orm_cached(policy='auto')
        def found(self) -> Any:
            runs('found')
            return self.session().execute(text(query.format(schema=tenant))).all()

    app = on_servers.start(App)
    with committed(app, tenant) as scope:
        scope.session().add(User(id=1, name='a'))
        for function in FUNCTIONS:
            scope.session().connection().exec_driver_sql(function)
    for _ in range(3):
        value(app, tenant, lambda app: app.found)
    assert runs.count('found') == (1 if is_stored else 3)
    messages = [record.getMessage() for record in caplog.records if 'found' in record.getMessage()]
    assert len(messages) == (0 if is_stored else 1)
    assert is_stored or ('which may read any table' in messages[0] or 'ts_stat' in messages[0])


def test_auto_that_calls_a_function_that_is_replaced(
    on_servers: Applications, tenant: str, runs: Runs
) -> None:
    """If a function is replaced by one that may read, runs that call it are not stored."""

    class App(OrmCacheApp):
        @orm_cached(policy='auto')
        def found(self) -> Any:
            runs('found')
            return self.session().scalars(text('SELECT changing(id) FROM users')).all()

    app = on_servers.start(App)
    immutable = "CREATE FUNCTION changing(int) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT $1'"
    for name, function in (('a', immutable), ('b', READING.format('changing'))):
        with committed(app, tenant) as scope:
            connection = scope.session().connection()
            connection.exec_driver_sql('DROP FUNCTION IF EXISTS changing(int)')
            connection.exec_driver_sql(function)
            scope.session().add(User(name=name))
        for _ in range(2):
            value(app, tenant, lambda app: app.found)
    assert runs.count('found') == 1 + 2


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
