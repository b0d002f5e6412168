"""What the catalog knows decides which statements are understood, and what they change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import create_engine, delete, func, insert, select, update
from sqlalchemy.pool import NullPool

from onegov_ormcache.database import catalog
from onegov_ormcache.database.protocols import Statement
from onegov_ormcache.database.session_manager import SessionManager
from tests.database.asked import Base, Page, Person, asking
from tests.database.fakes import open_scope
from tests.support.outside import install


@pytest.fixture
def other(make_tenant: Callable[[str], str]) -> str:
    """Another tenant."""
    return make_tenant('other')


@pytest.fixture
def manager(postgres_dsn: str, tenant: str, other: str) -> Iterator[SessionManager]:
    """A session manager whose tenant has tables of every kind."""
    with asking(postgres_dsn, tenant, other) as made:
        yield made


def define(dsn: str, tenant: str, *definitions: str) -> None:
    """Change definitions, as an outsider whom the package does not see."""
    with create_engine(dsn, poolclass=NullPool).begin() as connection:
        connection.exec_driver_sql(f'SET LOCAL search_path = {tenant}')
        for definition in definitions:
            connection.exec_driver_sql(definition)


def told(manager: SessionManager, tenant: str, statement: Any) -> Statement:
    """Return what a listener is told of a statement."""
    with open_scope(manager, tenant) as scope, scope.session().begin_nested():
        scope.session().connection().execute(statement)
        return scope.listeners[-1].statements[-1]


READ = select(Page.id)
WRITE = insert(Page).values(id=77)

TRIGGER = 'CREATE TRIGGER t AFTER INSERT ON pages FOR EACH ROW EXECUTE FUNCTION note()'
OWN = "CREATE FUNCTION own(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT 1'"


def test_understood(manager: SessionManager, tenant: str) -> None:
    """Statements on plain tables are understood, with the views that show them."""
    assert told(manager, tenant, READ) == Statement(reads=frozenset({'pages'}))
    found = told(manager, tenant, WRITE)
    assert found == Statement(
        writes=frozenset({'pages'}), cascades=frozenset({'counts'}), of_objects=False
    )


@pytest.mark.parametrize(
    ('definitions', 'read', 'write'),
    [
        ([TRIGGER], True, False),
        (['CREATE RULE r AS ON INSERT TO pages DO ALSO SELECT 1'], True, False),
        (['ALTER TABLE pages ENABLE ROW LEVEL SECURITY'], False, False),
        (['CREATE TABLE below () INHERITS (pages)'], False, False),
        ([OWN, 'ALTER TABLE pages ADD more int DEFAULT own(1)'], True, False),
        ([OWN, 'ALTER TABLE pages ADD CHECK (own(id) = 1)'], True, False),
        (['ALTER TABLE pages RENAME TO base', 'CREATE VIEW pages AS SELECT * FROM base'],
         False, False),
        (['ALTER TABLE pages RENAME TO base',
          'CREATE TABLE pages (id int, title text) PARTITION BY RANGE (id)',
          'CREATE TABLE first PARTITION OF pages DEFAULT'], False, False),
        (['CREATE INDEX i ON pages (title)'], True, True),
        (['ALTER TABLE pages ADD CHECK (length(title) < 100)'], True, True),
    ],
)  # fmt: skip
def test_definitions(
    manager: SessionManager, postgres_dsn: str, tenant: str, definitions: list[str],
    read: bool, write: bool,
) -> None:  # fmt: skip
    """What may touch more than a statement names makes it unclear."""
    define(postgres_dsn, tenant, *definitions)
    assert (told(manager, tenant, READ).unclear is None) is read
    assert (told(manager, tenant, WRITE).unclear is None) is write


@pytest.mark.parametrize(
    ('function', 'is_clear', 'repeats'),
    [
        (func.count(), True, True),
        (func.lower('A'), True, True),
        (func.coalesce(1, 2), True, True),
        (func.own(1), False, True),
        (func.now(), True, True),
        (func.random(), True, False),
        (func.clock_timestamp(), True, False),
        (func.current_user(), True, False),
        (func.nextval('numbers'), False, False),
        (func.count_pages(), False, True),
        (func.pg_catalog.count(1), False, True),
        (func.pg_relation_size('pages'), False, True),
        (func.log(10), True, True),
    ],
)
def test_functions(
    manager: SessionManager, postgres_dsn: str, tenant: str, function: Any, is_clear: bool,
    repeats: bool,
) -> None:  # fmt: skip
    """Functions that may read anything are unclear; volatile ones do not repeat."""
    define(postgres_dsn, tenant, OWN)
    found = told(manager, tenant, select(function).select_from(Page))
    assert (found.unclear is None) is is_clear
    if is_clear:
        assert (found.unrepeatable is None) is repeats


def test_function_that_hides_another(
    manager: SessionManager, postgres_dsn: str, tenant: str
) -> None:
    """A function of the tenant's with the name of one of PostgreSQL's own is unclear."""
    define(postgres_dsn, tenant, "CREATE FUNCTION lower(int) RETURNS bigint LANGUAGE sql STABLE "
           "AS 'SELECT count(*) FROM pages'")  # fmt: skip
    assert told(manager, tenant, select(func.lower(1))).unclear is not None


@pytest.mark.parametrize(
    ('key', 'statement', 'changed'),
    [
        ('ON DELETE CASCADE', delete(Page), True),
        ('ON DELETE SET NULL', delete(Page), True),
        ('ON DELETE SET DEFAULT', delete(Page), True),
        ('ON DELETE RESTRICT', delete(Page), False),
        ('', delete(Page), False),
        ('ON DELETE CASCADE', update(Page).values(id=Page.id), False),
        ('ON UPDATE CASCADE', update(Page).values(id=Page.id), True),
        ('ON UPDATE SET NULL', update(Page).values(id=Page.id), True),
        ('ON UPDATE CASCADE', update(Page).values(title='a'), False),
        ('ON UPDATE CASCADE', delete(Page), False),
        ('ON DELETE CASCADE', insert(Page).values(id=9), False),
    ],
)
def test_cascades(
    manager: SessionManager, postgres_dsn: str, tenant: str, key: str, statement: Any,
    changed: bool,
) -> None:  # fmt: skip
    """Foreign keys that only the database has are followed, where they act."""
    define(postgres_dsn, tenant, f'CREATE TABLE refers (id int REFERENCES pages {key})',
           'CREATE VIEW shows AS SELECT * FROM refers')  # fmt: skip
    found = told(manager, tenant, statement)
    assert found.unclear is None
    assert found.cascades == {'counts', *(('refers', 'shows') if changed else ())}


@pytest.mark.parametrize(
    ('key', 'statement', 'changed'),
    [
        ('ON DELETE CASCADE', delete(Page), True),
        ('ON DELETE SET NULL', delete(Page), True),
        ('ON DELETE RESTRICT', delete(Page), False),
        ('ON DELETE CASCADE', update(Page).values(id=Page.id), False),
        ('ON UPDATE CASCADE', update(Page).values(id=Page.id), True),
        ('ON UPDATE CASCADE', update(Page).values(title='a'), False),
        ('ON DELETE CASCADE', insert(Page).values(id=9), False),
    ],
)
def test_cascades_into_the_table_itself(
    manager: SessionManager, postgres_dsn: str, tenant: str, key: str, statement: Any,
    changed: bool,
) -> None:  # fmt: skip
    """A table whose foreign key refers to itself is told as one that the database changes."""
    define(postgres_dsn, tenant, f'ALTER TABLE pages ADD parent int REFERENCES pages {key}')
    found = told(manager, tenant, statement)
    assert found.writes == {'pages'}
    assert found.cascades == {'counts', *(('pages',) if changed else ())}


def test_cascades_in_a_circle(manager: SessionManager, postgres_dsn: str, tenant: str) -> None:
    """A table that refers to itself by way of another one is told, too."""
    define(postgres_dsn, tenant,
           'CREATE TABLE second (id int PRIMARY KEY REFERENCES pages ON DELETE CASCADE)',
           'ALTER TABLE pages ADD second int REFERENCES second ON DELETE SET NULL')  # fmt: skip
    assert told(manager, tenant, delete(Page)).cascades == {'counts', 'second', 'pages'}


def test_chain_of_cascades(manager: SessionManager, postgres_dsn: str, tenant: str) -> None:
    """Cascades are followed from table to table, and a trigger on the way is unclear."""
    define(postgres_dsn, tenant,
           'CREATE TABLE second (id int PRIMARY KEY REFERENCES pages ON DELETE CASCADE)',
           'CREATE TABLE third (id int REFERENCES second ON DELETE CASCADE)')  # fmt: skip
    assert told(manager, tenant, delete(Page)).cascades == {'counts', 'second', 'third'}


def test_own_triggers(manager: SessionManager, postgres_dsn: str, tenant: str) -> None:
    """The package's triggers change nothing, whether they tell rows or not."""
    for rows in {}, {'pages': ['id', 'title']}:
        install(postgres_dsn, tenant, rows=rows)
        assert told(SessionManager(postgres_dsn, Base), tenant, WRITE).unclear is None


def test_views_over_views(manager: SessionManager, tenant: str, other: str) -> None:
    """A change shows in views over views, also in those of another tenant."""
    found = told(manager, tenant, insert(Person).values(id=9))
    assert found.cascades == {'simple', 'above', 'counts'}
    assert {(r.schema, r.name) for r in found.writes_elsewhere} == {(other, 'view_of_ours')}


def test_changes_of_an_outsider(
    manager: SessionManager, postgres_dsn: str, tenant: str, monkeypatch: Any
) -> None:
    """A definition that an outsider has changed is known after a while."""
    monkeypatch.setattr(catalog, 'LIFETIME', 0.0)
    assert told(manager, tenant, WRITE).unclear is None
    define(postgres_dsn, tenant, TRIGGER)
    assert told(manager, tenant, WRITE).unclear is not None


def test_token(
    manager: SessionManager, postgres_dsn: str, tenant: str, monkeypatch: Any
) -> None:
    """A definition is known at once if the token of the definitions has changed."""
    assert told(manager, tenant, WRITE).unclear is None
    define(postgres_dsn, tenant, TRIGGER)
    assert told(manager, tenant, WRITE).unclear is None, 'known from before'
    monkeypatch.setattr('tests.database.fakes.FakeScope.definitions', lambda self: 'new')
    assert told(manager, tenant, WRITE).unclear is not None
