"""A change evicts where the changed table lies: the tenant, another tenant, or a shared schema."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import insert, select, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from onegov_ormcache import OrmCacheApp, orm_cached
from onegov_ormcache.tiers.process import StoredValue
from onegov_ormcache.tiers.serializer import Encoded
from onegov_ormcache.tiers.shared import Fill
from onegov_ormcache.tools.inspection.sites import Site
from onegov_ormcache.tools.inspection.tags import tags_of
from tests.support.applications import Applications, committed, value
from tests.support.counting import RedisCommands, Runs


class Base(DeclarativeBase):
    """A table of each tenant, and one that they share."""


class Own(Base):
    """A row of a tenant."""

    __tablename__ = 'own'

    id: Mapped[int] = mapped_column(primary_key=True)


class Common(Base):
    """A row that all tenants share."""

    __tablename__ = 'common'
    __table_args__ = {'schema': 'shared_by_places'}

    id: Mapped[int] = mapped_column(primary_key=True)


class App(OrmCacheApp):
    """Counts rows."""

    runs: Runs

    @orm_cached(policy='on-table-change:own')
    def own(self) -> int:
        self.runs(f'own {self.schema}')
        return self.session().query(Own).count()

    @orm_cached(policy='auto')
    def automatic(self) -> int:
        self.runs(f'automatic {self.schema}')
        return self.session().query(Own).count()

    @orm_cached(policy='on-table-change:shared_by_places.common')
    def common(self) -> int:
        self.runs(f'common {self.schema}')
        return self.session().query(Common).count()


NAMES = ('own', 'automatic', 'common')


def translated(schema: str) -> dict[str, Any]:
    return {'schema_translate_map': {None: schema}}


def by_name(session: Session, schema: str) -> None:
    session.execute(text(f'INSERT INTO {schema}.own DEFAULT VALUES'))


def by_quoted_name(session: Session, schema: str) -> None:
    session.execute(text(f'INSERT INTO "{schema}" . "own" DEFAULT VALUES'))


def by_translation(session: Session, schema: str) -> None:
    session.execute(insert(Own), execution_options=translated(schema))


def by_translated_connection(session: Session, schema: str) -> None:
    session.connection(execution_options=translated(schema)).execute(insert(Own.__table__))


def by_search_path(session: Session, schema: str) -> None:
    session.execute(text(f'SET LOCAL search_path = {schema}'))
    session.add(Own())
    session.flush()


def by_function(session: Session, schema: str) -> None:
    session.execute(text(f'DO $$ BEGIN INSERT INTO {schema}.own DEFAULT VALUES; END $$'))


def by_cursor(session: Session, schema: str) -> None:
    connection: Any = session.connection().connection
    connection.cursor().execute(f'INSERT INTO {schema}.own DEFAULT VALUES')


def by_copy(session: Session, schema: str) -> None:
    connection: Any = session.connection().connection
    with connection.cursor().copy(f'COPY {schema}.own (id) FROM STDIN') as copy:
        copy.write_row((77,))


def by_savepoint(session: Session, schema: str) -> None:
    with session.begin_nested():
        by_translation(session, schema)


CHANGES = (
    by_name, by_quoted_name, by_translation, by_translated_connection, by_search_path,
    by_function, by_cursor, by_copy, by_savepoint,
)  # fmt: skip


@pytest.fixture
def app(on_servers: Applications, runs: Runs) -> App:
    """An app on PostgreSQL."""
    app = on_servers.start(App, base=Base)
    app.runs = runs
    return app


def read(app: App, tenant: str) -> dict[str, int]:
    """Return the values of a tenant."""
    with app.request_scope(tenant):
        return {name: getattr(app, name) for name in NAMES}


@pytest.mark.parametrize('change', CHANGES)
@pytest.mark.parametrize('where', ['own', 'other'])
def test_places(
    app: App,
    runs: Runs,
    make_tenant: Callable[[str], str],
    change: Callable[[Session, str], None],
    where: str,
) -> None:
    """A change evicts the values of the tenant whose table it changes, and no other's."""
    tenants = {'own': make_tenant('own'), 'other': make_tenant('other'),
               'third': make_tenant('third')}  # fmt: skip
    before = {name: read(app, tenant) for name, tenant in tenants.items()}
    with committed(app, tenants['own']) as scope:
        change(scope.session(), tenants[where])
    counts = {name: runs.count(f'own {tenant}') for name, tenant in tenants.items()}
    after = {name: read(app, tenant) for name, tenant in tenants.items()}
    expected = {name: dict(values) for name, values in before.items()}
    expected[where] |= {'own': before[where]['own'] + 1, 'automatic': before[where]['own'] + 1}
    assert after == expected
    grown = {name for name, tenant in tenants.items()
             if runs.count(f'own {tenant}') > counts[name]}  # fmt: skip
    if change is by_search_path:  # the flush seems to change the tenant's own table, too
        grown -= {'own'} - {where}
    assert grown == {where}


@pytest.mark.parametrize('change', CHANGES)
def test_rolled_back_elsewhere(
    app: App, make_tenant: Callable[[str], str], change: Callable[[Session, str], None]
) -> None:
    """Nobody sees a change of another tenant before it is committed, or after a rollback."""
    own, other = make_tenant('own'), make_tenant('other')
    before = read(app, own), read(app, other)
    with app.request_scope(own) as scope:
        change(scope.session(), other)
        assert read(app, other) == before[1]
    assert (read(app, own), read(app, other)) == before


@pytest.mark.parametrize(
    'statement',
    [
        insert(Common),
        text('INSERT INTO shared_by_places.common DEFAULT VALUES'),
        text('DO $$ BEGIN INSERT INTO shared_by_places.common DEFAULT VALUES; END $$'),
    ],
)
def test_shared_schema(app: App, make_tenant: Callable[[str], str], statement: Any) -> None:
    """A change of a shared table evicts the values of all tenants, and no tenant's own."""
    tenants = make_tenant('own'), make_tenant('other')
    before = [read(app, tenant) for tenant in tenants]
    with committed(app, tenants[0]) as scope:
        scope.session().execute(statement)
    after = [read(app, tenant) for tenant in tenants]
    assert [each['common'] for each in after] == [each['common'] + 1 for each in before]
    assert [each['own'] for each in after] == [each['own'] for each in before]


def test_statistics_of_shared_tables(app: App, make_tenant: Callable[[str], str]) -> None:
    """A tenant is told who has changed what it shares: once, and as no commit of its own."""
    writer, reader = make_tenant('own'), make_tenant('other')
    with committed(app, writer) as scope:
        scope.session().add_all([Common(), Own()])
    statistics, tag = app.orm_cache.statistics, 'table:shared_by_places.common'
    written, read = statistics.of(writer), statistics.of(reader)
    assert written.last_commits[0].tags == ('table:own', tag)
    assert read.last_commits[0].tags == (tag,)
    assert read.last_commits[0].at == written.last_commits[0].at
    assert read.tags[tag] == written.tags[tag]
    assert sum(tag in commit.tags for commit in written.last_commits) == read.tags[tag].changes
    assert (written.commits, read.commits) == (1, 0)
    assert 'shared_by_places' not in statistics.tenants()
    site = Site.of(app.orm_cache)
    listed = {place: tags_of(site, place) for place in (writer, 'shared_by_places')}
    names = {place: {fact.name for fact in found.tags} for place, found in listed.items() if found}
    assert tag in names['shared_by_places']
    assert tag not in names[writer], 'its version is that of the shared schema'


@pytest.mark.parametrize('way', ['text', 'translated', 'path', 'connection'])
def test_reads_of_another_tenant(
    on_servers: Applications, make_tenant: Callable[[str], str], runs: Runs, way: str
) -> None:
    """A value that shows another tenant's table is not stored, so it is never stale."""
    own, other = make_tenant('own'), make_tenant('other')

    class Reading(OrmCacheApp):
        @orm_cached(policy=['auto', 'on-table-change:own'])
        def theirs(self) -> Any:
            runs('theirs')
            session = self.session()
            query = select(Own.id)
            if way == 'text':
                return session.scalars(text(f'SELECT id FROM {other}.own')).all()
            if way == 'translated':
                return session.scalars(query, execution_options=translated(other)).all()
            if way == 'path':
                session.execute(text(f'SET LOCAL search_path = {other}'))
            return session.connection().scalars(query).all() if way != 'connection' else (
                session.connection().execute(query.execution_options(**translated(other)))
                .scalars().all()
            )  # fmt: skip

    app = on_servers.start(Reading, base=Base)
    for schema in (own, other):
        with app.request_scope(schema):
            pass
    with app.request_scope(own):
        assert app.theirs == []
    with committed(app, other) as scope:
        scope.session().execute(insert(Own))
    with app.request_scope(own):
        assert app.theirs == [1]
    with app.request_scope(own):
        assert app.theirs == [1]
    assert runs.count('theirs') == 3


def test_translation_of_one_statement(app: App, make_tenant: Callable[[str], str]) -> None:
    """The same cached compilation counts at the place that each execution gives it."""
    own, other = make_tenant('own'), make_tenant('other')
    before = {tenant: read(app, tenant)['own'] for tenant in (own, other)}
    for tenant in (own, other, own, other):
        with committed(app, own) as scope:
            statement = update(Own).values(id=Own.id + 100)
            scope.session().execute(statement, execution_options=translated(tenant))
            scope.session().execute(insert(Own.__table__), execution_options=translated(tenant))
        before[tenant] += 1
        assert {each: read(app, each)['own'] for each in (own, other)} == before


def test_temporary_table(app: App, tenant: str) -> None:
    """A temporary table does not hide the tenant's, and its changes evict nothing."""
    before = read(app, tenant)
    with committed(app, tenant) as scope:
        scope.session().execute(text('CREATE TEMPORARY TABLE own (id int)'))
        scope.session().execute(text('INSERT INTO pg_temp.own VALUES (1)'))
        scope.session().execute(text('INSERT INTO own DEFAULT VALUES'))
    assert read(app, tenant)['own'] == before['own'] + 1
    with app.request_scope(tenant) as scope:
        assert scope.session().query(Own).count() == before['own'] + 1


@pytest.mark.parametrize('way', ['renamed', 'dropped'])
def test_tenant_that_is_restored(app: App, make_tenant: Callable[[str], str], way: str) -> None:
    """A tenant whose schema was replaced by another one is not served the values of before."""
    own, other, third = make_tenant('own'), make_tenant('other'), make_tenant('third')
    assert read(app, other)['own'] == 0
    with committed(app, third) as scope:
        scope.session().add(Own())
    with committed(app, own) as scope:
        if way == 'renamed':
            scope.session().execute(text(f'ALTER SCHEMA {other} RENAME TO {other}_old'))
        else:
            scope.session().execute(text(f'DROP SCHEMA {other} CASCADE'))
        scope.session().execute(text(f'ALTER SCHEMA {third} RENAME TO {other}'))
    assert read(app, other)['own'] == 1


FUNCTION = "CREATE OR REPLACE FUNCTION {}.label() RETURNS text LANGUAGE sql AS $$ SELECT '{}' $$"


@pytest.mark.parametrize('place', ['own', 'other', 'extensions'])
def test_function_that_is_replaced(on_servers: Applications, make_tenant: Any, place: str) -> None:
    """A function that is replaced, in whichever schema, evicts the values that may call it."""

    class App(OrmCacheApp):
        @orm_cached(policy='on-table-change:users')
        def label(self) -> Any:
            return self.session().scalar(text('SELECT label()'))

    app = on_servers.start(App)
    own, other = make_tenant('own'), make_tenant('other')
    schema = {'own': own, 'other': other, 'extensions': 'extensions'}[place]
    reader = own if place == 'own' else other
    with app.request_scope(other):
        pass
    with committed(app, own) as scope:
        scope.session().execute(text('CREATE SCHEMA IF NOT EXISTS extensions'))
        scope.session().execute(text(FUNCTION.format(f'"{schema}"', 'old')))
    try:
        assert value(app, reader, lambda app: app.label) == 'old'
        with committed(app, own) as scope:
            scope.session().execute(text(FUNCTION.format(f'"{schema}"', 'new')))
        assert value(app, reader, lambda app: app.label) == 'new'
    finally:
        with committed(app, own) as scope:
            scope.session().execute(text(f'DROP FUNCTION "{schema}".label()'))


def test_fills_of_several_values(
    app: App, tenant: str, redis_commands: Callable[[], RedisCommands]
) -> None:
    """Each of several values is stored if its tags hold at their places; a place is asked once."""
    read(app, tenant)
    cache = app.orm_cache
    own, common = 'table:own', 'table:shared_by_places.common'
    stamp = dict(cache.snapshot(tenant).stamp([own, common]))
    assert len(cache.by_place(tenant, [own, common])) == 2
    stamps = {
        'both': stamp,
        'own alone': {own: stamp[own]},
        'old of the shared': {**stamp, common: 'old'},
        'old of its own': {**stamp, own: 'old'},
        'again': stamp,
    }
    fills = [
        Fill(name, StoredValue(each, Encoded(name.encode(), True), None))
        for name, each in stamps.items()
    ]
    with redis_commands() as seen:
        stored = cache.fill_many(tenant, fills, {})
    assert stored == [True, True, False, False, True]
    assert seen.count == 2
    found = cache.shared_tier.get_many(tenant, list(stamps))
    assert found.keys() == {'both', 'own alone', 'again'}
    assert cache.fill_many(tenant, fills, {common: 'old'}) == [False] * 5
