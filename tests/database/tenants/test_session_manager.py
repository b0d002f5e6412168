"""Many tenants, a schema each: none sees another's rows, and nothing leaks between them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, MetaData, create_engine, insert, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.pool import NullPool

from onegov_ormcache.database.names import INTERNAL
from onegov_ormcache.database.session_manager import SessionManager, metadatas_of
from onegov_ormcache.errors import (
    ConfigurationError,
    DatabaseUnreachable,
    InvalidSchemaError,
    OutsideScopeError,
)
from tests.database.fakes import (
    Base,
    Item,
    claim_database,
    create_tenant,
    files,
    names,
    open_scope,
)

ONE_CONNECTION = {'pool_size': 1, 'max_overflow': 0, 'pool_timeout': 5}

PROCESSES = 4

spawn = multiprocessing.get_context('spawn')


@pytest.fixture(params=['sqlite', 'postgresql'])
def dsn(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Each database in turn."""
    if request.param == 'sqlite':
        return f'sqlite:///{tmp_path}/tenants'
    found: str = request.getfixturevalue('postgres_dsn')
    return found


@pytest.fixture
def manager(dsn: str) -> Iterator[SessionManager]:
    """A session manager with one connection per engine, and without tenants."""
    made = SessionManager(dsn, Base, engine_options=ONE_CONNECTION)
    yield made
    made.dispose()


@pytest.fixture
def postgres(postgres_dsn: str) -> Iterator[SessionManager]:
    """The same, on PostgreSQL only."""
    made = SessionManager(postgres_dsn, Base, engine_options=ONE_CONNECTION)
    yield made
    made.dispose()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where SQLite keeps its tenants."""
    return tmp_path / 'tenants'


@pytest.fixture
def sqlite(folder: Path) -> Iterator[SessionManager]:
    """The same, on SQLite only."""
    made = SessionManager(f'sqlite:///{folder}', Base)
    yield made
    made.dispose()


def add(manager: SessionManager, schema: str, name: str) -> None:
    with open_scope(manager, schema) as scope:
        scope.session().add(Item(name=name))
        scope.session().commit()


def search_path(engine: Engine) -> str:
    """The search path that the pool's next user has before a transaction binds it."""
    with engine.connect().execution_options(**INTERNAL) as connection:
        found: str = connection.scalar(text('SHOW search_path'))
        return found


# tenants are apart


def test_tenants_see_their_own_rows(
    manager: SessionManager, make_tenant: Callable[[str], str]
) -> None:
    """The same table of two tenants is two tables, on one connection in turn."""
    tenants = [make_tenant('a'), make_tenant('b')]
    for tenant in tenants:
        manager.ensure_schema_exists(tenant)
        add(manager, tenant, f'{tenant} 1')
    for tenant in tenants:
        add(manager, tenant, f'{tenant} 2')
    for tenant in tenants:
        assert names(manager, tenant) == {f'{tenant} 1', f'{tenant} 2'}


def test_nested_scopes_are_apart(
    dsn: str, make_tenant: Callable[[str], str]
) -> None:
    """Two scopes at once, one inside of the other, each have their own tenant."""
    manager = SessionManager(dsn, Base)
    one, two = make_tenant('a'), make_tenant('b')
    for tenant in (one, two):
        manager.ensure_schema_exists(tenant)
    with open_scope(manager, one) as outer:
        outer.session().add(Item(name='outer'))
        outer.session().flush()
        with open_scope(manager, two) as inner:
            assert manager.session() is inner.session()
            inner.session().add(Item(name='inner'))
            inner.session().commit()
            assert outer.session().query(Item.name).all() == [('outer',)]
        assert manager.session() is outer.session()
        outer.session().commit()
    assert (names(manager, one), names(manager, two)) == ({'outer'}, {'inner'})
    manager.dispose()


def test_threads_are_apart(dsn: str, make_tenant: Callable[[str], str]) -> None:
    """Many threads that work for many tenants at once do not meet."""
    manager = SessionManager(dsn, Base, engine_options={'pool_size': 2, 'max_overflow': 0})
    tenants = [make_tenant(name) for name in 'abc']
    for tenant in tenants:
        manager.ensure_schema_exists(tenant)

    def work(number: int) -> None:
        tenant = tenants[number % 3]
        with open_scope(manager, tenant) as scope:
            found = scope.session().query(Item.name).all()
            assert all(name.startswith(tenant) for (name,) in found)
            scope.session().rollback()
            # who writes on SQLite after reading may meet another writer
            scope.session().add(Item(name=f'{tenant} {number}'))
            scope.session().commit()

    with ThreadPoolExecutor(6 if 'postgresql' in dsn else 1) as pool:
        list(pool.map(work, range(60)))
    for number, tenant in enumerate(tenants):
        assert names(manager, tenant) == {f'{tenant} {n}' for n in range(number, 60, 3)}
    manager.dispose()


def test_search_path_of_a_transaction(
    postgres: SessionManager, tenant: str
) -> None:
    """A transaction sees its tenant's tables and the extensions, not what is public."""
    postgres.ensure_schema_exists(tenant)
    with open_scope(postgres, tenant) as scope:
        path = scope.session().scalar(text('SHOW search_path'))
        assert path == f'"{tenant}", extensions'
        assert scope.session().scalar(text('SELECT current_schema()')) == tenant


def test_one_statement_per_transaction(
    postgres: SessionManager, tenant: str, db_queries: Callable[[int], Any]
) -> None:
    """The search path costs one statement per transaction, and none for the others in it."""
    postgres.ensure_schema_exists(tenant)
    with open_scope(postgres, tenant) as scope:
        for _ in range(2):
            with db_queries(1 + 3):
                for _ in range(3):
                    scope.session().query(Item).all()
                scope.session().rollback()


def leave_by_commit(connection: Connection) -> None:
    connection.execute(insert(Item).values(name='a'))
    connection.commit()


def leave_by_rollback(connection: Connection) -> None:
    connection.execute(insert(Item).values(name='a'))
    connection.rollback()


def leave_by_close(connection: Connection) -> None:
    connection.execute(insert(Item).values(name='a'))


def leave_by_error(connection: Connection) -> None:
    connection.execute(text('SELECT nonsense'))


def leave_by_lost_connection(connection: Connection) -> None:
    connection.execute(text('SELECT 1'))
    pid = connection.connection.dbapi_connection.info.backend_pid  # type: ignore[union-attr]
    engine = create_engine(connection.engine.url, poolclass=NullPool)
    with engine.connect() as other:
        assert other.scalar(text('SELECT pg_terminate_backend(:pid, 10000)'), {'pid': pid})
    connection.execute(text('SELECT 1'))


@pytest.mark.parametrize(
    'leave',
    [
        leave_by_commit,
        leave_by_rollback,
        leave_by_close,
        leave_by_error,
        leave_by_lost_connection,
    ],
)
def test_search_path_never_leaks(
    postgres: SessionManager,
    make_tenant: Callable[[str], str],
    leave: Callable[[Connection], None],
) -> None:
    """However a transaction ends, the connection's next user has no tenant but its own."""
    one, two = make_tenant('a'), make_tenant('b')
    for tenant in (one, two):
        postgres.ensure_schema_exists(tenant)
    before = search_path(postgres.database.engine(one))
    assert one not in before
    with open_scope(postgres, one):
        try:
            with postgres.engine.connect() as connection:
                leave(connection)
        except DBAPIError:
            assert leave in (leave_by_error, leave_by_lost_connection)
        else:
            assert leave not in (leave_by_error, leave_by_lost_connection)
    assert search_path(postgres.database.engine(one)) == before
    assert names(postgres, two) == set()


def test_outside_of_a_scope(manager: SessionManager) -> None:
    """There is no session and no engine without a scope, and the error says how to open one."""
    with pytest.raises(OutsideScopeError, match='request_scope'):
        manager.session()
    with pytest.raises(OutsideScopeError, match='request_scope'):
        manager.engine


# schemas


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
    """Lower-case letters, digits, underscores and single hyphens, up to 63 of them."""
    assert sqlite.is_valid_schema(name)
    sqlite.check_schema(name)


@pytest.mark.parametrize('name', BAD_NAMES, ids=lambda name: ascii(name)[:20])
def test_bad_names(sqlite: SessionManager, folder: Path, name: Any) -> None:
    """No tenant has such a name: nothing is created, and the error says what would do."""
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
    """A server is not even asked for such a name."""
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
    """All tenants are listed, sorted, or those with a prefix; what is no tenant is not."""
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
    """What else lies in SQLite's folder is left alone."""
    sqlite.ensure_schema_exists(tenant)
    for name in ('notes.txt', 'Town.sqlite', '.hidden.sqlite', 'public.sqlite'):
        (folder / name).touch()
    assert sqlite.list_schemas() == [tenant]


def test_many_threads_make_a_tenant(dsn: str, tenant: str) -> None:
    """Threads that all need a new tenant get it, and it is new to one of them at least."""
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


# settings


def test_bases() -> None:
    """A base is a declarative base, a MetaData, or several of these."""
    metadata = MetaData()
    assert metadatas_of(Base) == [Base.metadata]
    assert metadatas_of(metadata) == [metadata]
    assert metadatas_of((Base, metadata)) == [Base.metadata, metadata]
    for wrong in (None, object, [], [Base, None], 'base', 7):
        with pytest.raises(ConfigurationError, match='base'):
            metadatas_of(wrong)


@pytest.mark.parametrize(
    'wrong',
    [
        '',
        'nonsense',
        'mysql://localhost/x',
        'postgresql+nonsense://localhost/x',
        'sqlite://',
        'sqlite:///:memory:',
        'sqlite:///folder?mode=ro',
    ],
)
def test_wrong_dsn(wrong: str) -> None:
    """A URL that can not be used is told before anybody connects."""
    with pytest.raises(DatabaseUnreachable, match='dsn'):
        SessionManager(wrong, Base)


def test_nobody_listens(tmp_path: Path) -> None:
    """A database that can't be reached is told by the first look, without its password."""
    manager = SessionManager(f'postgresql+psycopg://u:secret@/x?host={tmp_path}', Base)
    with pytest.raises(DatabaseUnreachable) as raised:
        manager.database.check()
    assert 'secret' not in str(raised.value)
    (tmp_path / 'file').touch()
    with pytest.raises(DatabaseUnreachable):
        SessionManager(f'sqlite:///{tmp_path}/file', Base).database.check()


# SQLite


def test_concurrent_writers_on_sqlite(folder: Path, tenant: str) -> None:
    """Of two transactions that have read and now write, the second can be tried again."""
    manager = SessionManager(
        f'sqlite:///{folder}', Base, engine_options={'connect_args': {'timeout': 0}}
    )
    manager.ensure_schema_exists(tenant)
    with open_scope(manager, tenant) as one, open_scope(manager, tenant) as two:
        for scope in (one, two):
            assert scope.session().query(Item).all() == []
        one.session().add(Item(name='one'))
        one.session().flush()
        two.session().add(Item(name='two'))
        with pytest.raises(OperationalError) as locked:
            two.session().flush()
        assert manager.database.is_conflict(locked.value)
        two.session().rollback()
        two.session().query(Item).all()
        one.session().commit()
        two.session().add(Item(name='two'))
        with pytest.raises(OperationalError) as stale:
            two.session().flush()
        assert manager.database.is_conflict(stale.value), 'its view is older'
        two.session().rollback()
        two.session().add(Item(name='two'))
        two.session().commit()
    assert names(manager, tenant) == {'one', 'two'}
    manager.dispose()


def test_conflicts(postgres: SessionManager, sqlite: SessionManager) -> None:
    """Only what a new attempt may resolve is a conflict."""

    class Error(Exception):
        def __init__(self, sqlstate: str | None, code: int | None) -> None:
            self.sqlstate = sqlstate
            self.sqlite_errorcode = code

    def wrapped(sqlstate: str | None = None, code: int | None = None) -> DBAPIError:
        return DBAPIError('SELECT', {}, Error(sqlstate, code))

    for state in ('40001', '40P01'):
        assert postgres.database.is_conflict(wrapped(state))
    for unlike in ('23505', None):
        assert not postgres.database.is_conflict(wrapped(unlike))
    for code in (5, 5 | 2 << 8):
        assert sqlite.database.is_conflict(wrapped(code=code))
    for other in (19, None):
        assert not sqlite.database.is_conflict(wrapped(code=other))
    for database in (postgres.database, sqlite.database):
        assert not database.is_conflict(ZeroDivisionError())


def test_outcomes_at_commit(postgres: SessionManager, sqlite: SessionManager) -> None:
    """Only an answer of the server tells that nothing was committed."""

    class Error(Exception):
        sqlstate: str | None = None
        sqlite_errorcode: int | None = None

    def error(**attributes: object) -> Error:
        made = Error()
        vars(made).update(attributes)
        return made

    for state in ('23503', '40001', '40P01', '25P02', 'P0001'):
        assert postgres.database.refused(error(sqlstate=state))
    for open_state in ('08006', '08P01', '57P01', '57014', '40003', None):
        assert not postgres.database.refused(error(sqlstate=open_state))
    assert not postgres.database.refused(KeyboardInterrupt())
    for code in (5, 13, 19, 787):
        assert sqlite.database.refused(error(sqlite_errorcode=code))
    for unclear in (10, 11, None):
        assert not sqlite.database.refused(error(sqlite_errorcode=unclear))
    assert not sqlite.database.refused(KeyboardInterrupt())


# the embedded tag store's claim


def claim_elsewhere(dsn: str) -> bool:
    """What another process is told when it tries to take the database."""
    results = spawn.Queue()
    process = spawn.Process(target=claim_database, args=(dsn, results))
    process.start()
    try:
        found: bool = results.get(timeout=60)
        return found
    finally:
        process.join(timeout=10)
        process.kill()


def test_claim(dsn: str) -> None:
    """A database is of one process alone, from its claim to its end."""
    manager = SessionManager(dsn, Base)
    manager.database.check()
    assert manager.database.claim()
    assert not claim_elsewhere(dsn)
    second = SessionManager(dsn, Base)
    assert not second.database.claim(), 'not even another manager of this process'
    manager.dispose()
    assert claim_elsewhere(dsn)
    assert second.database.claim(), 'the other process has ended'
    second.dispose()
