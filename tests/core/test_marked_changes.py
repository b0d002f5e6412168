"""A change that is reported by hand evicts like any other change of its transaction."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session
from webtest import TestApp as Client

from onegov_ormcache import OrmCacheApp, OrmCacheMiddleware, orm_cached, rows
from onegov_ormcache.errors import OrmCacheError, OutsideScopeError, UnknownTableError
from onegov_ormcache.steps import Step
from tests.consistency.interleaving import before
from tests.support.applications import Applications, value
from tests.support.counting import Runs
from tests.support.creators import user_count
from tests.support.models import Base, Document, Group, Letter, User, membership


class Hall(OrmCacheApp):
    """A property of each kind of policy, whose creators count their runs."""

    def __init__(self) -> None:
        self.runs = Runs()

    @orm_cached(policy='on-table-change:users')
    def users(self) -> int:
        self.runs('users')
        return user_count(self)

    @orm_cached(policy=Group)
    def groups(self) -> int:
        self.runs('groups')
        return int(self.session().query(Group).count())

    @orm_cached(policy='auto')
    def letters(self) -> int:
        self.runs('letters')
        return int(self.session().query(Letter).count())

    @orm_cached(policy=lambda obj: isinstance(obj, Group) and obj.name == 'a')
    def chosen(self) -> int:
        self.runs('chosen')
        return int(self.session().query(Group).filter_by(name='a').count())


NAMES = ('users', 'groups', 'letters', 'chosen')


class Root:
    """The model at /."""


Hall.path(path='')(Root)


@Hall.view(model=Root)
def mark(self: Root, request: Any) -> str:
    request.app.mark_changed('users')
    return 'marked'


def read(app: Any) -> tuple[int, ...]:
    return tuple(getattr(app, name) for name in NAMES)


def computed(app: Any, tenant: str) -> set[str]:
    """Read all properties in a scope of their own; return those whose creators ran."""
    before = [app.runs.count(name) for name in NAMES]
    value(app, tenant, read)
    return {
        name for name, count in zip(NAMES, before, strict=True) if app.runs.count(name) > count
    }


@pytest.mark.parametrize(
    ('tables', 'evicted'),
    [
        (['users'], {'users', 'letters'}),  # documents may be deleted with their owners
        ([User], {'users', 'letters'}),
        ([Group.__table__], {'groups'}),
        ([Letter], {'letters'}),
        (['groups', 'letters'], {'groups', 'letters'}),
        ([membership], set()),
    ],
)
@pytest.mark.parametrize('begins', ['before', 'with it'])
def test_marked_tables_evict_at_the_commit(
    applications: Applications, tenant: str, tables: list[Any], evicted: set[str], begins: str
) -> None:
    """The values that depend on the tables, and those with function policies, are evicted in all
    processes by the commit, and not before, though the transaction has written nothing."""
    app = applications.start(Hall)
    other = applications.elsewhere(app)
    for each in (app, other):
        computed(each, tenant)
    with app.request_scope(tenant) as scope:
        if begins == 'before':
            scope.session().execute(text('SELECT 1'))
        app.mark_changed(*tables)
        assert computed(other, tenant) == set()
        scope.commit()
    assert computed(other, tenant) == evicted | {'chosen'}
    assert computed(app, tenant) <= evicted | {'chosen'}


class Names(OrmCacheApp):
    """A property with a policy for rows, whose creator counts its runs."""

    def __init__(self) -> None:
        self.runs = Runs()

    @orm_cached(policy=rows(User.id))
    def name_of(self, id: int) -> Any:
        self.runs('name_of')
        return self.session().query(User.name).filter_by(id=id).scalar()


@pytest.mark.parametrize('by', ['evict', 'mark_changed'])
def test_table_stands_for_its_rows(applications: Applications, tenant: str, by: str) -> None:
    """Whoever evicts by the tag of a table, or marks it, evicts the values that depend on any of
    its rows in all processes: at once in this scope, and in others by the commit."""
    app = applications.start(Names)
    other = applications.elsewhere(app)

    def names(app: Any) -> int:
        """How many of three values have to be computed."""
        before = int(app.runs.count('name_of'))
        app.name_of.many([1, 2, 3])
        return int(app.runs.count('name_of')) - before

    assert value(app, tenant, names) == 3
    value(other, tenant, names)
    with app.request_scope(tenant) as scope:
        assert names(app) == 0
        if by == 'evict':
            app.evict(tags=['table:users'])
        else:
            app.mark_changed('users')
        assert names(app) == 3
        assert value(other, tenant, names) == 0
        scope.commit()
    assert value(other, tenant, names) == 3


def test_marked_change_that_nothing_has_seen(
    applications: Applications, tenant: str
) -> None:
    """A row that another program has inserted is read after its table was marked, at once by the
    same scope and after the commit by others."""
    app = applications.start(Hall)
    assert value(app, tenant, read) == (0, 0, 0, 0)
    on_postgres = app.session_manager.dsn.startswith('postgresql')
    engine = app.session_manager.database.engine(tenant)
    with engine.pool.recreate().connect() as driver:  # type: ignore[attr-defined]
        table = f'"{tenant}".users' if on_postgres else 'users'
        driver.cursor().execute(f"INSERT INTO {table} (name) VALUES ('a')")
        if on_postgres:
            psycopg.Connection.commit(driver.dbapi_connection)
        else:
            driver.commit()
    assert value(app, tenant, read) == (0, 0, 0, 0)
    with app.request_scope(tenant) as scope:
        assert app.users == 0
        app.mark_changed('users')
        assert app.users == 1
        scope.commit()
    assert value(app, tenant, read) == (1, 0, 0, 0)


def test_marked_change_below_the_driver(applications: Applications, tenant: str) -> None:
    """What psycopg's ``pgconn`` executes is seen by nobody, and evicts if its table is marked."""
    app = applications.start(Hall)
    if not app.session_manager.dsn.startswith('postgresql'):
        pytest.skip('SQLite tells of each statement, whoever executes it')
    assert value(app, tenant, read) == (0, 0, 0, 0)
    with app.request_scope(tenant) as scope:
        driver: Any = scope.session().connection().connection.dbapi_connection
        driver.pgconn.exec_(b"INSERT INTO users (name) VALUES ('a')")
        assert app.users == 0
        app.mark_changed('users')
        assert app.users == 1
        scope.commit()
    assert value(app, tenant, read) == (1, 0, 0, 0)


def test_marked_change_that_is_rolled_back(applications: Applications, tenant: str) -> None:
    """After a rollback nothing is evicted; after one to a savepoint the mark stays."""
    app = applications.start(Hall)
    computed(app, tenant)
    with app.request_scope(tenant) as scope:
        app.mark_changed('users')
        scope.session().rollback()
        scope.commit()
    assert computed(app, tenant) == set()
    with app.request_scope(tenant) as scope:
        with scope.session().begin_nested() as savepoint:
            app.mark_changed('users')
            savepoint.rollback()
        scope.commit()
    assert computed(app, tenant) == {'users', 'letters', 'chosen'}


def test_marked_tables_are_in_doubt(applications: Applications, tenant: str) -> None:
    """While the transaction commits, no value that depends on the tables is stored."""
    app = applications.start(Hall)
    other = applications.elsewhere(app)
    seen: list[Any] = []

    def read_meanwhile() -> None:
        seen.append(computed(other, tenant))

    for each in (app, other):
        computed(each, tenant)
    with app.request_scope(tenant) as scope, before(Step.COMMIT, read_meanwhile):
        app.mark_changed('groups')
        scope.commit()
    assert seen == [{'groups', 'chosen'}]
    assert computed(other, tenant) == {'groups', 'chosen'}


def test_marked_change_of_a_request(applications: Applications, tenant: str) -> None:
    """The tween commits what a view has marked."""
    app = applications.start(Hall)
    computed(app, tenant)
    assert Client(OrmCacheMiddleware(app, schema=tenant)).get('/').text == 'marked'
    assert computed(app, tenant) == {'users', 'letters', 'chosen'}


def test_marked_change_beside_others(applications: Applications, tenant: str) -> None:
    """It is told to handlers of changed tables, and recorded with the transaction's changes."""
    app = applications.start(Hall)
    seen: list[Any] = []

    def heard(schema: str, tables: Any) -> None:
        seen.append((schema, set(tables)))

    app.session_manager.on_table_change.connect(heard)
    with app.recording() as events, app.request_scope(tenant) as scope:
        scope.session().add(Group(name='b'))
        scope.session().flush()
        app.orm_cache.mark_changed(Document)
        scope.commit()
    assert seen == [(tenant, {'groups'}), (tenant, {'documents'})]
    (event,) = events
    assert {'table:groups', 'table:documents'} <= event.tags


def test_marks_that_are_errors(applications: Applications, tenant: str) -> None:
    """A table that the application does not have, another object, and a mark outside of a scope
    are errors, and nothing begins."""
    app = applications.start(Hall)
    with pytest.raises(OutsideScopeError):
        app.mark_changed('users')
    with app.request_scope(tenant) as scope:
        for wrong in ('user', 'users ', '', Base, int, None, User.name, user_count):
            with pytest.raises(UnknownTableError, match='mark_changed'):
                app.mark_changed('users', wrong)  # type: ignore[arg-type]
        app.mark_changed()
        assert not scope.transactions
        with pytest.raises(OutsideScopeError):
            applications.configure(Hall)().mark_changed('users')


def test_mark_by_a_session_that_nobody_watches(
    embedded: Applications, tenant: str
) -> None:
    """If the session is that of a host, and its transactions are not seen, the mark is refused."""

    class Host(Hall):
        def session(self) -> Session:  # type: ignore[override]
            return Session(bind=self.elsewhere)

    app: Any = embedded.start(Host)
    app.elsewhere = create_engine('sqlite://')
    for begin in (lambda scope: None, lambda scope: scope.session().connection()):
        with app.request_scope(tenant) as scope:
            begin(scope)
            with pytest.raises(OrmCacheError, match='evict nothing'):
                app.mark_changed('users')
