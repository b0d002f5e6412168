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


# triggers that tell rows

ROWS = {'users': ['id', 'name'], 'documents': ['owner_id']}


def columns(program: psycopg.Connection[Any], schema: str) -> dict[str, set[str]]:
    """What the triggers of each table of a schema say: how each would be created again."""
    found: dict[str, set[str]] = {}
    for table, definition in program.execute(
        'SELECT relname, pg_get_triggerdef(t.oid) FROM pg_trigger t '
        'JOIN pg_class c ON c.oid = tgrelid WHERE relnamespace = %s::regnamespace '
        'AND NOT tgisinternal',
        [schema],
    ):
        found.setdefault(table, set()).add(definition.rpartition('(')[2])
    return found


def test_install_with_rows(
    database: Connection, program: psycopg.Connection[Any], tenant: str
) -> None:
    """`install` with rows is idempotent; without them, it leaves to each table what it has, also
    when a trigger must be mended."""
    assert triggers.install(database, tenant, rows=ROWS) == TABLES
    database.commit()
    before = everything(program, tenant)
    for rows in ROWS, None, {}:
        assert triggers.install(database, tenant, rows=rows) == []
        assert set(triggers.status(database, tenant, rows=rows).values()) == {State.INSTALLED}
    database.commit()
    assert everything(program, tenant) == before
    program.execute('DROP TRIGGER orm_cache_notify_update ON users')
    assert triggers.status(database, tenant)['users'] == State.OUTDATED
    assert triggers.install(database, tenant) == ['users']
    database.commit()
    assert everything(program, tenant) == before
    assert columns(program, tenant)['users'] == {"'id', 'name')"}


def test_other_rows_are_outdated(
    database: Connection, program: psycopg.Connection[Any], tenant: str
) -> None:
    """A table whose triggers tell other rows than wanted is outdated; with no columns, it gets the
    one trigger that tells none."""
    triggers.install(database, tenant)
    assert triggers.status(database, tenant, rows=ROWS)['users'] == State.OUTDATED
    assert triggers.install(database, tenant, rows=ROWS) == ['documents', 'users']
    other = {'users': ['id']}
    assert triggers.status(database, tenant, ['users', 'documents'], other) == {
        'documents': State.INSTALLED,
        'users': State.OUTDATED,
    }
    assert triggers.install(database, tenant, rows={'users': []}) == ['users']
    database.commit()
    assert columns(program, tenant)['users'] == {')'}
    assert columns(program, tenant)['documents'] == {"'owner_id')"}


ALTERATIONS_OF_ROWS = {
    'function': ALTERATIONS['function'],
    'disabled': 'ALTER TABLE users DISABLE TRIGGER orm_cache_notify_insert',
    'dropped': 'DROP TRIGGER orm_cache_notify_delete ON users',
    'truncate': 'DROP TRIGGER orm_cache_notify ON users',
    'kind': """
        CREATE OR REPLACE TRIGGER orm_cache_notify_update
        AFTER UPDATE OF id ON users FOR EACH STATEMENT EXECUTE FUNCTION orm_cache_notify('id')
    """,
    'columns': """
        CREATE OR REPLACE TRIGGER orm_cache_notify_delete
        AFTER DELETE ON users REFERENCING OLD TABLE AS old_rows
        FOR EACH STATEMENT EXECUTE FUNCTION orm_cache_notify('name')
    """,
}


@pytest.mark.parametrize('alteration', ALTERATIONS_OF_ROWS.values(), ids=ALTERATIONS_OF_ROWS)
def test_outdated_triggers_for_rows(
    database: Connection, program: psycopg.Connection[Any], tenant: str, alteration: str
) -> None:
    """Each of a table's triggers counts: if one is altered, `install` brings what is wanted."""
    triggers.install(database, tenant, rows=ROWS)
    database.commit()
    program.execute(alteration)
    assert triggers.status(database, tenant, rows=ROWS)['users'] == State.OUTDATED
    assert 'users' in triggers.install(database, tenant, rows=ROWS)
    assert set(triggers.status(database, tenant, rows=ROWS).values()) == {State.INSTALLED}


def test_remove_takes_all_triggers_for_rows(
    database: Connection, program: psycopg.Connection[Any], tenant: str
) -> None:
    """`remove` drops all triggers of a table, and names the table once."""
    before = everything(program, tenant)
    triggers.install(database, tenant, rows=ROWS)
    assert triggers.remove(database, tenant, ['users']) == ['users']
    assert triggers.status(database, tenant)['users'] == State.MISSING
    assert triggers.remove(database, tenant) == [name for name in TABLES if name != 'users']
    database.commit()
    assert everything(program, tenant) == before


def test_rows_of_foreign_partitions(
    database: Connection, program: psycopg.Connection[Any], tenant: str
) -> None:
    """Rows of a table with a foreign partition can't be told, since PostgreSQL would refuse the
    statements that change it; the table alone can."""
    name = f'nowhere_{tenant}'
    program.execute(f"""
        CREATE TABLE parts (id integer) PARTITION BY RANGE (id);
        CREATE TABLE nearer PARTITION OF parts FOR VALUES FROM (1) TO (9) PARTITION BY RANGE (id);
        CREATE FOREIGN DATA WRAPPER {name};
        CREATE SERVER {name} FOREIGN DATA WRAPPER {name};
        CREATE FOREIGN TABLE far PARTITION OF nearer FOR VALUES FROM (1) TO (9) SERVER {name}
    """)
    try:
        with pytest.raises(TriggerError, match=r'rows of parts, .* the foreign table .*far'):
            triggers.install(database, tenant, rows={'parts': ['id']})
        database.rollback()
        assert 'parts' in triggers.install(database, tenant)
    finally:
        database.rollback()
        program.execute(f'DROP FOREIGN DATA WRAPPER {name} CASCADE')


@pytest.mark.parametrize(
    ('rows', 'message'),
    [
        ({'nothing': ['id']}, "there is no table 'nothing'; it has documents, groups, "),
        ({'users': ['title']}, "the table 'users' has no column 'title'; it has id, name"),
        ({'users': ['price']}, r'users\.price, which is of type numeric\(8,2\): they tell '),
        ({'users': ['folded']}, r'users\.folded, which is of type text: .* deterministic'),
        ({'users': ['twice']}, r'users\.twice, which is of type integer: .* virtual'),
        ({'users': ['short']}, r'users\.short, which is of type character\(3\): '),
    ],
)
@pytest.mark.parametrize('action', [triggers.check, triggers.install, triggers.status])
def test_rows_that_can_not_be_told(
    database: Connection,
    program: psycopg.Connection[Any],
    tenant: str,
    action: Callable[..., object],
    rows: dict[str, list[str]],
    message: str,
) -> None:
    """A table or column that does not exist, and one whose values have no text that is the same
    for equal ones, is an error, and nothing is changed."""
    program.execute(
        # a server without ICU makes no such collation
        'CREATE COLLATION folding FROM "C"; UPDATE pg_collation SET collisdeterministic = false '
        "WHERE oid = 'folding'::regcollation; ALTER TABLE users ADD folded text COLLATE folding, "
        'ADD price numeric(8, 2), ADD short char(3), ADD twice integer'
    )
    version = program.info.server_version
    if version >= 180000:
        program.execute(
            'ALTER TABLE users DROP twice, '
            'ADD twice integer GENERATED ALWAYS AS (id * 2) VIRTUAL'
        )
    elif rows == {'users': ['twice']}:
        pytest.skip('this server has no virtual columns')
    with pytest.raises(TriggerError, match=rf'^{tenant}: .*{message}'):
        action(database, tenant, rows=rows)
    database.rollback()
    assert set(triggers.status(database, tenant).values()) == {State.MISSING}
