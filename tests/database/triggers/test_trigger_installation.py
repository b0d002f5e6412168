"""Triggers can be installed again and again, tell their state, and leave nothing when removed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection

from onegov_ormcache.database import triggers
from onegov_ormcache.database.triggers import State
from onegov_ormcache.errors import TriggerError
from tests.database.triggers.triggered_town import APPLICATION_TRIGGER, Town
from tests.support.outside import Ear, install

TABLES = ['documents', 'groups', 'letters', 'membership', 'users']


def everything(program: psycopg.Connection[Any], schema: str) -> list[Any]:
    """All functions and triggers of a schema."""
    return program.execute(
        """
        SELECT 'function', proname, prosrc FROM pg_proc
        WHERE pronamespace = %(schema)s::regnamespace
        UNION ALL
        SELECT 'trigger', relname, tgname FROM pg_trigger JOIN pg_class c ON c.oid = tgrelid
        WHERE relnamespace = %(schema)s::regnamespace AND NOT tgisinternal
        ORDER BY 1, 2, 3
        """,
        {'schema': schema},
    ).fetchall()


def test_install_is_idempotent(
    database: Connection, program: psycopg.Connection[Any], tenant: str
) -> None:
    """A second `install` does nothing; after a table was added, it installs only its trigger."""
    assert triggers.install(database, tenant) == TABLES
    database.commit()
    before = everything(program, tenant)
    assert triggers.install(database, tenant) == []
    database.commit()
    assert everything(program, tenant) == before
    program.execute('CREATE TABLE added ()')
    assert triggers.status(database, tenant)['added'] == State.MISSING
    assert triggers.install(database, tenant) == ['added']
    assert set(triggers.status(database, tenant).values()) == {State.INSTALLED}


def test_install_on_some_tables(database: Connection, tenant: str) -> None:
    """`install` and `remove` act only on the tables that are named."""
    assert triggers.install(database, tenant, ['users', 'groups']) == ['groups', 'users']
    assert triggers.status(database, tenant, ['users', 'letters']) == {
        'letters': State.MISSING,
        'users': State.INSTALLED,
    }
    assert triggers.remove(database, tenant, ['users']) == ['users']
    assert triggers.status(database, tenant, ['users', 'groups']) == {
        'groups': State.INSTALLED,
        'users': State.MISSING,
    }


ALTERATIONS = {
    'function': """
        CREATE OR REPLACE FUNCTION orm_cache_notify() RETURNS trigger LANGUAGE plpgsql
        AS $$ BEGIN RETURN NULL; END $$
    """,
    'disabled': 'ALTER TABLE users DISABLE TRIGGER orm_cache_notify',
    'restored': 'ALTER TABLE users DISABLE TRIGGER ALL; ALTER TABLE users ENABLE TRIGGER ALL',
    'kind': """
        CREATE OR REPLACE TRIGGER orm_cache_notify AFTER INSERT ON users
        FOR EACH STATEMENT EXECUTE FUNCTION orm_cache_notify()
    """,
    'column': """
        CREATE OR REPLACE TRIGGER orm_cache_notify
        AFTER INSERT OR DELETE OR TRUNCATE OR UPDATE OF id ON users
        FOR EACH STATEMENT EXECUTE FUNCTION orm_cache_notify()
    """,
}


@pytest.mark.parametrize('alteration', ALTERATIONS.values(), ids=ALTERATIONS.keys())
def test_outdated_is_told_and_mended(
    ear: Ear,
    database: Connection,
    program: psycopg.Connection[Any],
    tenant: str,
    alteration: str,
) -> None:
    """A function or trigger of another version is outdated; `install` brings the present one."""
    program.execute(alteration)
    assert triggers.status(database, tenant)['users'] == State.OUTDATED
    assert 'users' in triggers.install(database, tenant)
    database.commit()
    assert set(triggers.status(database, tenant).values()) == {State.INSTALLED}
    ear.heard()
    program.execute("UPDATE users SET name = 'Grace'")
    assert ear.heard() == ['users']


def test_remove_leaves_nothing(
    database: Connection, program: psycopg.Connection[Any], tenant: str
) -> None:
    """`remove` drops the function and the triggers, and leaves those of the application."""
    program.execute(APPLICATION_TRIGGER)
    before = everything(program, tenant)
    triggers.install(database, tenant)
    database.commit()
    assert len(everything(program, tenant)) == len(before) + 1 + len(TABLES)
    assert triggers.remove(database, tenant) == TABLES
    database.commit()
    assert everything(program, tenant) == before
    assert triggers.remove(database, tenant) == []


def test_remove_finds_tables_that_were_moved(
    database: Connection,
    program: psycopg.Connection[Any],
    make_tenant: Callable[[str], str],
    tenant: str,
) -> None:
    """A table that has moved to another schema loses its trigger with the function."""
    triggers.install(database, tenant)
    database.commit()
    other = make_tenant('other')
    program.execute(f'CREATE SCHEMA {other}; ALTER TABLE letters SET SCHEMA {other}')
    assert triggers.status(database, other) == {'letters': State.OUTDATED}
    assert 'letters' in triggers.remove(database, tenant)
    database.commit()
    assert everything(program, other) == []


def test_install_says_that_everything_may_have_changed(
    app: Town, postgres_dsn: str, tenant: str
) -> None:
    """The first installation notifies that everything may have changed, as no trigger notified
    of earlier changes; a second one does not."""
    ear = Ear(postgres_dsn, tenant)
    install(postgres_dsn, tenant)
    assert ear.heard() == ['']
    install(postgres_dsn, tenant)
    assert ear.heard() == []
    ear.close()


def test_a_transaction_that_holds_a_table(
    database: Connection,
    program: psycopg.Connection[Any],
    tenant: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If a transaction holds a table for long, the installation fails, so that nobody waits
    behind it."""
    monkeypatch.setattr(triggers, 'LOCK_TIMEOUT', '50ms')
    with program.transaction():
        program.execute("UPDATE users SET name = 'Grace'")
        with pytest.raises(TriggerError, match=rf'^{tenant}: .*lock timeout.*try again later'):
            triggers.install(database, tenant)
        database.rollback()
    assert everything(program, tenant) == []


@pytest.mark.parametrize('action', [triggers.install, triggers.status, triggers.remove])
def test_unknown_schemas_and_tables(
    database: Connection, tenant: str, action: Callable[..., object]
) -> None:
    """The error names the schema or table that does not exist."""
    with pytest.raises(TriggerError, match=r'^nowhere: the database has no such schema$'):
        action(database, 'nowhere')
    with pytest.raises(TriggerError, match=r"no table 'nothing'; it has documents, groups, "):
        action(database, tenant, ['users', 'nothing'])
