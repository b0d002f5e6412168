"""A tenant's schema and tables are made on first use, under safe names only."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import MetaData, create_engine, text
from sqlalchemy.pool import NullPool

from onegov_ormcache.database.session_manager import SessionManager
from onegov_ormcache.errors import InvalidSchemaError
from tests.database.fakes import Base, Item, create_tenant, files, names, open_scope
from tests.database.tenants.work import add, spawn

PROCESSES = 4

GOOD_NAMES = ['a', '1', 'main', 'town-2024', 'a_b', 'a-', 'x' * 63, 'pg', 'pgx_', '0_']

BAD_NAMES: list[object] = [
    '',
    'information_schema',
    'public',
    'extensions',
    'pg_catalog',
    'pg_',
    'pg_town',
    'x' * 64,
    'x' * 10_000,
    'a"b',
    "a'b",
    'a`b',
    'a--b',
    '--',
    '-a',
    '_a',
    'Town',
    'TOWN',
    'a b',
    ' a',
    'a ',
    'a\n',
    '\na',
    'a\0b',
    '\0',
    'a.b',
    '.',
    '..',
    '../x',
    '/etc/passwd',
    'a/b',
    'a\\b',
    'a;drop schema b',
    'a%s',
    ':a',
    '${a}',
    'größe',
    'tοwn',  # noqa: RUF001 - a Greek omicron
    'аbc',  # noqa: RUF001 - a Cyrillic a
    'town\u200b',
    'ｔown',  # noqa: RUF001 - a full-width t
    'ﬁle',
    'a²',
    '١',  # noqa: RUF001 - an Arabic one
    'İ'.lower(),
    '\ud800',
    None,
    0,
    1.5,
    True,
    b'main',
    ['main'],
    ('main',),
    {'main': 1},
    object(),
]


@pytest.mark.parametrize('name', GOOD_NAMES)
def test_good_names(sqlite: SessionManager, name: str) -> None:
    """A name has 1 to 63 lower-case letters, digits, underscores and single hyphens."""
    assert sqlite.is_valid_schema(name)
    sqlite.check_schema(name)


@pytest.mark.parametrize('name', BAD_NAMES, ids=lambda name: ascii(name)[:20])
def test_bad_names(sqlite: SessionManager, folder: Path, name: Any) -> None:
    """A bad name is refused: nothing is created, and the error says which names are allowed."""
    before = files(folder)
    assert not sqlite.is_valid_schema(name)
    with pytest.raises(InvalidSchemaError, match='lower-case'):
        sqlite.check_schema(name)
    with pytest.raises(InvalidSchemaError):
        sqlite.ensure_schema_exists(name)
    if isinstance(name, str):
        assert not sqlite.has_schema(name)
    assert files(folder) == before


@pytest.mark.parametrize('name', ['a"; DROP SCHEMA public; --', 'a\0b', '\ud800', 'public', ''])
def test_bad_names_reach_no_server(
    postgres: SessionManager, name: str, db_queries: Callable[[int], Any]
) -> None:
    """A bad name is refused without a query to the server."""
    with db_queries(0):
        assert not postgres.has_schema(name)
        with pytest.raises(InvalidSchemaError):
            postgres.ensure_schema_exists(name)


def test_schemas_are_made_on_first_use(
    manager: SessionManager, tenant: str, db_queries: Callable[[int], Any]
) -> None:
    """A tenant and its tables are made once; from then on that is known without asking."""
    assert not manager.has_schema(tenant)
    assert manager.ensure_schema_exists(tenant) is True
    with db_queries(0):
        assert manager.ensure_schema_exists(tenant) is False
        assert manager.has_schema(tenant)
    assert names(manager, tenant) == set()


def test_missing_tables_are_made(dsn: str, tenant: str) -> None:
    """A tenant that an earlier release made gets the tables that were added since."""
    earlier = SessionManager(dsn, MetaData())
    assert earlier.ensure_schema_exists(tenant) is True
    earlier.dispose()
    manager = SessionManager(dsn, [Base, MetaData()])
    assert manager.ensure_schema_exists(tenant) is False
    add(manager, tenant, 'a')
    manager.dispose()


def test_has_schema_creates_nothing(
    manager: SessionManager, tenant: str, folder: Path
) -> None:
    """Looking for a tenant makes none."""
    before = files(folder)
    for _ in range(2):
        assert not manager.has_schema(tenant)
    assert tenant not in manager.list_schemas()
    assert files(folder) == before


def test_has_schema_sees_what_others_made(dsn: str, tenant: str) -> None:
    """A tenant that another process makes later is found."""
    manager, other = SessionManager(dsn, Base), SessionManager(dsn, Base)
    assert not manager.has_schema(tenant)
    other.ensure_schema_exists(tenant)
    assert manager.has_schema(tenant)
    manager.dispose()
    other.dispose()


def test_list_schemas(manager: SessionManager, make_tenant: Callable[[str], str]) -> None:
    """All tenants are listed, or those with a prefix, sorted; other schemas are not listed."""
    tenants = sorted(make_tenant(name) for name in ('b', 'a', 'c'))
    prefix = make_tenant('')
    for tenant in tenants:
        manager.ensure_schema_exists(tenant)
    assert manager.list_schemas(prefix) == tenants
    assert set(tenants) <= set(manager.list_schemas())
    assert manager.list_schemas() == sorted(manager.list_schemas())
    assert all(map(manager.is_valid_schema, manager.list_schemas()))
    assert manager.list_schemas('nobody') == []


def test_other_files_are_no_tenants(sqlite: SessionManager, folder: Path, tenant: str) -> None:
    """Other files in SQLite's folder are not listed as tenants."""
    sqlite.ensure_schema_exists(tenant)
    for name in ('notes.txt', 'Town.sqlite', '.hidden.sqlite', 'public.sqlite'):
        (folder / name).touch()
    assert sqlite.list_schemas() == [tenant]


def test_many_threads_make_a_tenant(dsn: str, tenant: str) -> None:
    """Threads that all need a new tenant at once get it, and it is new to one of them."""
    manager = SessionManager(dsn, Base)
    barrier = Barrier(8)

    def create(number: int) -> bool:
        barrier.wait()
        is_new = manager.ensure_schema_exists(tenant)
        assert names(manager, tenant) == set()
        return is_new

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(create, range(8))) == 1
    manager.dispose()


def test_many_threads_make_a_tenant_under_serializable(postgres_dsn: str, tenant: str) -> None:
    """A view that lasts does not hide the schema that another caller makes at the same time."""
    level = {'isolation_level': 'SERIALIZABLE'}
    managers = [SessionManager(postgres_dsn, Base, engine_options=level) for _ in range(4)]
    together = Barrier(len(managers))

    def make(manager: SessionManager) -> bool:
        together.wait(30)
        return manager.ensure_schema_exists(tenant)

    with ThreadPoolExecutor(len(managers)) as pool:
        made = list(pool.map(make, managers))
    for manager in managers:
        manager.dispose()
    assert sorted(made) == [False, False, False, True]


def test_signal_before_others_see_the_schema(dsn: str, tenant: str) -> None:
    """``on_schema_created`` is sent before anybody else can use the schema."""
    manager, other = SessionManager(dsn, Base), SessionManager(dsn, Base)
    seen = []

    def created(schema: str) -> None:
        seen.append((schema, other.has_schema(schema)))

    manager.on_schema_created.connect(created)
    assert manager.ensure_schema_exists(tenant)
    assert other.has_schema(tenant)
    assert seen == [(tenant, False)]
    for made in manager, other:
        made.dispose()


def test_many_processes_make_a_tenant(dsn: str, tenant: str) -> None:
    """Processes that all need a new tenant at once get it, and it is new to one of them."""
    meeting, results = spawn.Barrier(PROCESSES), spawn.Queue()
    processes = [
        spawn.Process(target=create_tenant, args=(dsn, tenant, meeting, results))
        for _ in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    try:
        told = [results.get(timeout=60) for _ in processes]
    finally:
        for process in processes:
            process.join(timeout=10)
            process.kill()
    assert sorted(told, key=str) == [False] * (PROCESSES - 1) + [True]
    manager = SessionManager(dsn, Base)
    assert names(manager, tenant) == set()
    manager.dispose()


def test_dispose_and_use_again(manager: SessionManager, tenant: str) -> None:
    """A manager that was disposed of connects anew, and looks at schemas anew."""
    manager.ensure_schema_exists(tenant)
    add(manager, tenant, 'a')
    manager.dispose()
    assert names(manager, tenant) == {'a'}
    assert manager.has_schema(tenant)
    assert manager.ensure_schema_exists(tenant) is False
    with open_scope(manager, tenant) as scope:
        scope.session().query(Item).all()
        scope.session().commit()
        assert scope.heard == [['begun', 'committing', 'committed']]
    manager.dispose()
    manager.dispose()


def test_dropped_schema_is_noticed_after_dispose(
    postgres: SessionManager, postgres_dsn: str, tenant: str
) -> None:
    """A schema that was dropped is made again."""
    postgres.ensure_schema_exists(tenant)
    with create_engine(postgres_dsn, poolclass=NullPool).begin() as connection:
        connection.execute(text(f'DROP SCHEMA {tenant} CASCADE'))
    postgres.dispose()
    assert not postgres.has_schema(tenant)
    assert postgres.ensure_schema_exists(tenant) is True
