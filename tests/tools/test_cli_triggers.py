"""The command line of the triggers: what it says, and its exit codes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy.engine import make_url

from onegov_ormcache.__main__ import main
from tests.support.outside import Ear, libpq_url, outside

ROOT = Path(__file__).parent.parent.parent

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process; gives its exit code and what it printed."""

    def run_command(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(['triggers', *arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run_command


@pytest.fixture
def program(postgres_dsn: str, tenant: str) -> Iterator[psycopg.Connection[Any]]:
    """Another program on the tenant's schema, which has two tables."""
    with outside(postgres_dsn, tenant) as connection:
        connection.execute(f'CREATE SCHEMA {tenant}; CREATE TABLE pages (); CREATE TABLE users ()')
        yield connection


@pytest.fixture
def own_database(postgres_dsn: str) -> Iterator[str]:
    """The URL of a database of the test's own, in which `--all` finds only the test's schemas."""
    name = f'd{uuid4().hex[:12]}'
    with closing(psycopg.connect(libpq_url(postgres_dsn), autocommit=True)) as connection:
        connection.execute(f'CREATE DATABASE {name}')
        yield make_url(postgres_dsn).set(database=name).render_as_string(hide_password=False)
        connection.execute(f'DROP DATABASE {name} WITH (FORCE)')


@pytest.fixture
def role(program: psycopg.Connection[Any], tenant: str) -> Iterator[str]:
    """A role that may change the tenant's tables, and does not own them."""
    name = f'r{uuid4().hex[:12]}'
    program.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'secret'")
    program.execute(f'GRANT ALL ON SCHEMA {tenant} TO {name}')
    program.execute(f'GRANT ALL ON ALL TABLES IN SCHEMA {tenant} TO {name}')
    yield name
    program.execute(f'DROP OWNED BY {name}; DROP ROLE {name}')


def states(tenant: str, pages: str, users: str) -> str:
    return f'{tenant}.pages  {pages}\n{tenant}.users  {users}\n'


def test_install_status_remove(
    run: Run, program: psycopg.Connection[Any], postgres_dsn: str, tenant: str
) -> None:
    """The three commands do what they say, and say what they have done."""
    which = ('--dsn', postgres_dsn, '--schema', tenant)
    assert run('status', *which) == (1, states(tenant, 'missing', 'missing'), '')
    assert run('install', *which) == (0, f'{tenant}: installed on pages, users\n', '')
    assert run('install', *which) == (0, f'{tenant}: nothing to do\n', '')
    assert run('status', *which) == (0, states(tenant, 'installed', 'installed'), '')
    program.execute('ALTER TABLE pages DISABLE TRIGGER orm_cache_notify')
    assert run('status', *which) == (1, states(tenant, 'outdated', 'installed'), '')
    assert run('install', *which) == (0, f'{tenant}: installed on pages\n', '')
    assert run('remove', *which) == (0, f'{tenant}: removed from pages, users\n', '')
    assert run('remove', *which) == (0, f'{tenant}: nothing to do\n', '')


def test_name_of_a_table_controls_no_terminal(
    run: Run, program: psycopg.Connection[Any], postgres_dsn: str, tenant: str
) -> None:
    """A name from the database is shown with its control characters escaped."""
    program.execute('CREATE TABLE "a\x1b[2Jb" ()')
    which = ('--dsn', postgres_dsn, '--schema', tenant)
    for command in 'status', 'install', 'remove':
        _, out, _ = run(command, *which)
        assert '\x1b' not in out
        assert '\\x1b[2Jb' in out


def test_installed_triggers_notify(
    run: Run, program: psycopg.Connection[Any], postgres_dsn: str, tenant: str
) -> None:
    """The command commits the triggers that it installs, and they notify of changes."""
    assert run('install', '--dsn', postgres_dsn, '--schema', tenant, '--table', 'users')[0] == 0
    ear = Ear(postgres_dsn, tenant)
    program.execute('INSERT INTO users DEFAULT VALUES; INSERT INTO pages DEFAULT VALUES')
    assert ear.heard() == ['users']
    ear.close()


def test_rows(
    run: Run, program: psycopg.Connection[Any], postgres_dsn: str, tenant: str
) -> None:
    """With --rows, triggers tell the rows of some tables; a table without a column tells none."""
    program.execute('ALTER TABLE users ADD id integer, ADD name text, ADD weight numeric')
    which = ('--dsn', postgres_dsn, '--schema', tenant)
    rows = ('--rows', 'users.id', '--rows', 'users.name')
    assert run('install', *which, *rows)[0] == 0
    ear = Ear(postgres_dsn, tenant)
    program.execute("INSERT INTO users (id, name) VALUES (1, 'Ada')")
    assert ear.heard() == ['users']
    assert [each.rows for each in ear.rows] == [{'id': {'1'}, 'name': {'Ada'}}]
    ear.close()
    for options in (), rows:
        assert run('status', *which, *options)[0] == 0
        assert run('install', *which, *options) == (0, f'{tenant}: nothing to do\n', '')
    other = (*which, '--rows', 'users.id')
    assert run('status', *other) == (1, states(tenant, 'installed', 'outdated'), '')
    code, _, err = run('install', *which, '--rows', 'users.weight')
    assert code == 2
    assert 'users.weight, which is of type numeric: they tell columns of ' in err
    none = (*which, '--rows', 'users')
    assert run('install', *none) == (0, f'{tenant}: installed on users\n', '')
    assert run('status', *none)[0] == 0


def test_rows_of_a_schema_that_lacks_them(
    run: Run,
    program: psycopg.Connection[Any],
    postgres_dsn: str,
    tenant: str,
    make_tenant: Callable[[str], str],
) -> None:
    """If one of the schemas lacks the column, no schema is changed."""
    program.execute('ALTER TABLE users ADD id integer')
    other = make_tenant('other')
    program.execute(f'CREATE SCHEMA {other}; CREATE TABLE {other}.users ()')
    which = ('--dsn', postgres_dsn, '--schema', tenant, '--schema', other)
    code, out, err = run('install', *which, '--rows', 'users.id')
    assert (code, out) == (2, '')
    assert err == f"error: {other}: the table 'users' has no column 'id'; it has none\n"
    assert 'installed' not in run('status', *which)[1]


def test_several_schemas(
    run: Run,
    program: psycopg.Connection[Any],
    postgres_dsn: str,
    tenant: str,
    make_tenant: Callable[[str], str],
) -> None:
    """A command handles each schema that is named once."""
    other = make_tenant('other')
    program.execute(f'CREATE SCHEMA {other}; CREATE TABLE {other}.users ()')
    named = ('--schema', other, '--schema', tenant, '--schema', other)
    code, out, _ = run('install', '--dsn', postgres_dsn, *named, '--table', 'users')
    assert (code, out) == (0, f'{other}: installed on users\n{tenant}: installed on users\n')


def test_all_schemas(run: Run, own_database: str) -> None:
    """With --all a command handles every schema that may be a tenant's, and no other."""
    assert run('install', '--dsn', own_database, '--all') == (0, '', '')
    with outside(own_database, 'public') as program:
        for schema in ('one', 'two', '"No tenant"', 'public'):
            program.execute(f'CREATE SCHEMA IF NOT EXISTS {schema}; CREATE TABLE {schema}.t ()')
    code, out, _ = run('install', '--dsn', own_database, '--all')
    assert (code, out) == (0, 'one: installed on t\ntwo: installed on t\n')
    assert run('status', '--dsn', own_database, '--all')[:2] == (
        0,
        'one.t  installed\ntwo.t  installed\n',
    )
    assert run('install', '--dsn', own_database, '--schema', 'public')[0] == 0
    assert run('remove', '--dsn', own_database, '--all')[0] == 0


def test_rights_are_missing(
    run: Run,
    program: psycopg.Connection[Any],
    postgres_dsn: str,
    tenant: str,
    make_tenant: Callable[[str], str],
    role: str,
) -> None:
    """A user that does not own the tables is refused in one line, and nothing is changed,
    neither in this schema nor in one named before it."""
    before = make_tenant('before')
    program.execute(f'CREATE SCHEMA {before} AUTHORIZATION {role}')
    dsn = make_url(postgres_dsn).set(username=role, password='secret')
    url = dsn.render_as_string(hide_password=False)
    with outside(url, before) as own:
        own.execute('CREATE TABLE owned ()')
    for action in ('install', 'remove'):
        code, out, err = run(action, '--dsn', url, '--schema', before, '--schema', tenant)
        assert (code, out) == (2, '')
        assert err == (
            f"error: {tenant}: the user of the dsn does not have the table 'pages'; nothing "
            'was changed: use the owner of schema and tables\n'
        )
    status = run('status', '--dsn', url, '--schema', before, '--schema', tenant)
    assert status[0] == 1
    assert 'installed' not in status[1]
    functions = program.execute("SELECT 1 FROM pg_proc WHERE proname = 'orm_cache_notify'")
    assert functions.fetchall() == []


def test_right_to_create_is_missing(
    run: Run, program: psycopg.Connection[Any], postgres_dsn: str, tenant: str, role: str
) -> None:
    """A user that owns the tables, but may not create functions in the schema, is refused as
    well."""
    program.execute(f'ALTER TABLE pages OWNER TO {role}; ALTER TABLE users OWNER TO {role}')
    program.execute(f'REVOKE CREATE ON SCHEMA {tenant} FROM {role}')
    dsn = make_url(postgres_dsn).set(username=role, password='secret')
    url = dsn.render_as_string(hide_password=False)
    code, _, err = run('install', '--dsn', url, '--schema', tenant)
    assert code == 2
    assert 'does not have the right CREATE on the schema; nothing was changed' in err


def test_function_of_another_owner(
    run: Run, program: psycopg.Connection[Any], postgres_dsn: str, tenant: str, role: str
) -> None:
    """A refusal by the server is also reported in one line, and nothing is changed."""
    program.execute(f'ALTER TABLE pages OWNER TO {role}; ALTER TABLE users OWNER TO {role}')
    program.execute(
        'CREATE FUNCTION orm_cache_notify() RETURNS trigger LANGUAGE plpgsql '
        'AS $$ BEGIN RETURN NULL; END $$'
    )
    dsn = make_url(postgres_dsn).set(username=role, password='secret')
    url = dsn.render_as_string(hide_password=False)
    code, out, err = run('install', '--dsn', url, '--schema', tenant)
    assert (code, out) == (2, '')
    assert err == (
        f'error: {tenant}: must be owner of function orm_cache_notify; nothing was changed: use '
        'the owner of schema and tables\n'
    )
    assert run('status', '--dsn', url, '--schema', tenant)[1] == states(
        tenant, 'missing', 'missing'
    )


@pytest.mark.parametrize('action', ['install', 'status', 'remove'])
@pytest.mark.parametrize(
    ('schema', 'expected'),
    [
        ('nowhere', 'error: nowhere: the database has no such schema\n'),
        ('Town', "error: 'Town' can not be the name of a schema: use 1 to 63 lower-case "),
        ('a:b', "error: 'a:b' can not be the name of a schema: use 1 to 63 lower-case "),
        ('', "error: '' can not be the name of a schema: use 1 to 63 lower-case "),
        ('pg_catalog', "error: 'pg_catalog' can not be the name of a schema: use 1 to 63 "),
    ],
)
def test_schemas_that_can_not_be(
    run: Run, postgres_dsn: str, action: str, schema: str, expected: str
) -> None:
    """A schema that does not exist, or whose name is not allowed, is refused in one line."""
    code, out, err = run(action, '--dsn', postgres_dsn, '--schema', schema)
    assert (code, out) == (2, '')
    assert err.startswith(expected)
    assert err.count('\n') == 1


def test_unknown_table(
    run: Run, program: psycopg.Connection[Any], postgres_dsn: str, tenant: str
) -> None:
    """A table that does not exist is refused, and nothing is installed on the others."""
    named = ('--schema', tenant, '--table', 'users', '--table', 'nothing')
    assert run('install', '--dsn', postgres_dsn, *named) == (
        2,
        '',
        f"error: {tenant}: there is no table 'nothing'; it has pages, users\n",
    )
    assert run('status', '--dsn', postgres_dsn, '--schema', tenant)[1] == states(
        tenant, 'missing', 'missing'
    )


@pytest.mark.parametrize(
    ('dsn', 'expected'),
    [
        ('sqlite:///tenants', "dsn 'sqlite:///tenants': triggers need PostgreSQL"),
        ('mysql://localhost/db', 'dsn: '),
        ('postgresql', 'dsn (not shown, it may have a password): it can not be parsed'),
        ('postgresql+psycopg://me:secret@127.0.0.1:1/db', ''),
    ],
)
def test_dsns_that_can_not_be(run: Run, dsn: str, expected: str) -> None:
    """A URL of another database, of none, or of one that can't be reached is refused."""
    code, out, err = run('install', '--dsn', dsn, '--schema', 'main')
    assert (code, out) == (2, '')
    assert err.startswith(f'error: {expected}')
    assert err.count('\n') == 1
    assert 'dsn' in err
    assert 'secret' not in err


@pytest.mark.parametrize(
    'arguments',
    [
        (),
        ('install',),
        ('install', '--dsn', 'x'),
        ('install', '--schema', 'main'),
        ('install', '--dsn', 'x', '--schema', 'main', '--all'),
        ('destroy', '--dsn', 'x', '--schema', 'main'),
    ],
)
def test_wrong_usage(run: Run, arguments: tuple[str, ...]) -> None:
    """Missing or superfluous arguments are answered with the usage."""
    code, out, err = run(*arguments)
    assert (code, out) == (2, '')
    assert err.startswith('Usage: python -m onegov_ormcache triggers')
    assert 'error: ' in err


def test_as_a_program(program: psycopg.Connection[Any], postgres_dsn: str, tenant: str) -> None:
    """``python -m onegov_ormcache triggers`` is the command."""
    command = [sys.executable, '-m', 'onegov_ormcache', 'triggers', 'status']
    done = subprocess.run(
        [*command, '--dsn', postgres_dsn, '--schema', tenant],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, '')
    assert done.stdout == states(tenant, 'missing', 'missing')
