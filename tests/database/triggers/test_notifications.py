"""Triggers notify of each change that another program makes, and of none of the package's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine, delete, insert, text, update
from sqlalchemy.pool import NullPool

from onegov_ormcache.database import triggers
from tests.database.triggers.triggered_town import APPLICATION_TRIGGER, FUNCTION, Town
from tests.support.applications import change, committed, value
from tests.support.models import Group, User
from tests.support.outside import Ear, install

DEFERRED_TRIGGER = """
CREATE FUNCTION rename_by_group() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN UPDATE users SET name = NEW.name; RETURN NEW; END $$;
CREATE CONSTRAINT TRIGGER rename_by_group AFTER INSERT ON groups
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION rename_by_group()
"""


def copy(program: psycopg.Connection[Any]) -> None:
    with program.cursor().copy('COPY users (id, name) FROM STDIN') as rows:
        rows.write_row((2, 'Grace'))


def merge(program: psycopg.Connection[Any]) -> None:
    program.execute(
        "MERGE INTO users USING (SELECT 2 AS id, 'Grace' AS name) AS new ON users.id = new.id "
        'WHEN NOT MATCHED THEN INSERT (id, name) VALUES (new.id, new.name)'
    )


def by_function(program: psycopg.Connection[Any]) -> None:
    program.execute(FUNCTION)
    program.execute("SELECT rename_all('Grace')")


def by_trigger(program: psycopg.Connection[Any]) -> None:
    program.execute(APPLICATION_TRIGGER)
    program.execute("INSERT INTO groups (id, name) VALUES (2, 'Guests')")


def by_view(program: psycopg.Connection[Any]) -> None:
    program.execute('CREATE VIEW people AS SELECT * FROM users')
    program.execute("UPDATE people SET name = 'Grace'")


def as_replica(program: psycopg.Connection[Any]) -> None:
    program.execute("SET session_replication_role = 'replica'")
    program.execute('DELETE FROM users')


def sql(statement: str) -> Callable[[psycopg.Connection[Any]], None]:
    def run(program: psycopg.Connection[Any]) -> None:
        program.execute(statement)

    return run


@pytest.mark.parametrize(
    ('act', 'tables'),
    [
        (sql("INSERT INTO users (id, name) VALUES (2, 'Grace')"), {'users'}),
        (sql("UPDATE users SET name = 'Grace'"), {'users'}),
        (sql('DELETE FROM users'), {'users', 'documents', 'membership'}),
        (sql('TRUNCATE membership'), {'membership'}),
        (sql('TRUNCATE users CASCADE'), {'users', 'documents', 'membership', 'letters'}),
        (sql('WITH gone AS (DELETE FROM groups RETURNING id) SELECT * FROM gone'), None),
        (copy, {'users'}),
        (merge, {'users'}),
        (by_function, {'users'}),
        (by_trigger, {'groups', 'users'}),
        (by_view, {'users'}),
        (as_replica, {'users'}),
    ],
    ids=[
        'insert', 'update', 'delete', 'truncate', 'truncate-cascade', 'cte', 'copy', 'merge',
        'function', 'trigger', 'view', 'replica',
    ],
)  # fmt: skip
def test_every_kind_of_outside_change_notifies(
    ear: Ear,
    program: psycopg.Connection[Any],
    act: Callable[[psycopg.Connection[Any]], None],
    tables: set[str] | None,
) -> None:
    """Triggers notify of each table that another program's statement changes, also by cascade."""
    act(program)
    assert set(ear.heard()) == (tables or {'groups', 'membership'})


def test_rolled_back_outside_change_notifies_nothing(
    ear: Ear, program: psycopg.Connection[Any]
) -> None:
    """A change that is rolled back, also to a savepoint, notifies nothing; each other changed
    table notifies once."""
    with program.transaction(force_rollback=True):
        program.execute('DELETE FROM users')
    assert ear.heard() == []
    with program.transaction():
        with program.transaction(force_rollback=True):
            program.execute('DELETE FROM users')
        program.execute("INSERT INTO groups (id, name) VALUES (2, 'Guests')")
        program.execute("INSERT INTO groups (id, name) VALUES (3, 'Others')")
        assert ear.heard() == []
    assert ear.heard() == ['groups']


def test_own_transactions_notify_nothing(ear: Ear, app: Town, tenant: str) -> None:
    """The package evicts what its own transactions change, and nobody is notified."""
    with committed(app, tenant) as scope:
        session = scope.session()
        session.add(User(id=2, name='Grace', groups=[Group(id=2, name='Guests')]))
        session.flush()
        session.get_one(User, 1).name = 'Ada Lovelace'
    with committed(app, tenant) as scope:
        session = scope.session()
        session.execute(insert(User), [{'id': 3, 'name': 'Edsger'}, {'id': 4, 'name': 'Alan'}])
        session.execute(update(User).values(name=User.name + '!'))
        session.execute(text("INSERT INTO documents VALUES (1, 'document', 'Plan', 'open', 1)"))
        session.execute(delete(User).where(User.id == 1))
        session.execute(text('TRUNCATE documents CASCADE'))
    with committed(app, tenant) as scope:
        scope.session().delete(scope.session().get_one(User, 2))
    assert value(app, tenant, lambda app: app.names) == ['Edsger!', 'Alan!']
    assert ear.heard() == []


def test_changes_while_commit_runs_notify(
    ear: Ear, program: psycopg.Connection[Any], app: Town, tenant: str
) -> None:
    """A change by a deferred trigger, which runs in COMMIT after the package has asked for the
    changes, sends a notification."""
    program.execute(DEFERRED_TRIGGER)
    change(app, tenant, Group(id=2, name='Grace'))
    assert ear.heard() == ['users']


def test_changes_of_another_tenant_notify(
    ear: Ear, app: Town, make_tenant: Callable[[str], str], tenant: str
) -> None:
    """A transaction of one tenant that changes another tenant's table sends a notification."""
    with committed(app, make_tenant('other')) as scope:
        scope.session().execute(text(f"UPDATE {tenant}.users SET name = 'Grace'"))
    assert ear.heard() == ['users']


def test_partitions_and_parents(
    app: Town, program: psycopg.Connection[Any], postgres_dsn: str, tenant: str
) -> None:
    """A change of a partition notifies of its parent, too, and the other way round."""
    program.execute('CREATE TABLE events (id integer) PARTITION BY RANGE (id)')
    program.execute('CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (1) TO (10)')
    install(postgres_dsn, tenant)
    ear = Ear(postgres_dsn, tenant)
    program.execute('INSERT INTO events VALUES (1)')
    assert set(ear.heard()) == {'events', 'events_1'}
    program.execute('DELETE FROM events_1')
    assert set(ear.heard()) == {'events', 'events_1'}
    ear.close()


def test_names_of_any_kind(
    app: Town, program: psycopg.Connection[Any], postgres_dsn: str, tenant: str
) -> None:
    """A table may have any name."""
    name = 'Odd: "quoted" %s \' ü'
    program.execute(psycopg.sql.SQL('CREATE TABLE {} ()').format(psycopg.sql.Identifier(name)))
    assert name in install(postgres_dsn, tenant)
    ear = Ear(postgres_dsn, tenant)
    program.execute(
        psycopg.sql.SQL('INSERT INTO {} DEFAULT VALUES').format(psycopg.sql.Identifier(name))
    )
    assert ear.heard() == [name]
    ear.close()
    with create_engine(postgres_dsn, poolclass=NullPool).begin() as connection:
        assert name in triggers.remove(connection, tenant)
