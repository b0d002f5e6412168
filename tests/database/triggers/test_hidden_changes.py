"""The triggers: whom they tell of which change, how they come and how they go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, create_engine, delete, insert, text, update
from sqlalchemy.pool import NullPool

from onegov_ormcache import OrmCacheApp, orm_cached
from onegov_ormcache.database import triggers
from onegov_ormcache.database.triggers import State
from onegov_ormcache.errors import TriggerError
from tests.support.applications import Applications, change, committed, value
from tests.support.models import Group, User
from tests.support.outside import Ear, install, outside

TABLES = ['documents', 'groups', 'letters', 'membership', 'users']

FUNCTION = """
CREATE FUNCTION rename_all(to_name text) RETURNS integer LANGUAGE plpgsql AS $$
BEGIN UPDATE users SET name = to_name; RETURN 1; END $$
"""

SQL_FUNCTION = """
CREATE FUNCTION rename_all(to_name text) RETURNS integer LANGUAGE sql AS $$
UPDATE users SET name = to_name; SELECT 1 $$
"""

APPLICATION_TRIGGER = """
CREATE FUNCTION rename_by_group() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN UPDATE users SET name = NEW.name; RETURN NEW; END $$;
CREATE TRIGGER rename_by_group AFTER INSERT ON groups
FOR EACH ROW EXECUTE FUNCTION rename_by_group()
"""

DEFERRED_TRIGGER = """
CREATE FUNCTION rename_by_group() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN UPDATE users SET name = NEW.name; RETURN NEW; END $$;
CREATE CONSTRAINT TRIGGER rename_by_group AFTER INSERT ON groups
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION rename_by_group()
"""


class Town(OrmCacheApp):
    """Properties by tables, and one by a function."""

    @orm_cached(policy='on-table-change:users')
    def names(self) -> list[str]:
        return [name for (name,) in self.session().query(User.name).order_by(User.id)]

    @orm_cached(policy=lambda obj: isinstance(obj, User) and obj.name.startswith('A'))
    def names_with_a(self) -> list[str]:
        query = self.session().query(User.name).order_by(User.id)
        return [name for (name,) in query if name.startswith('A')]


@pytest.fixture
def app(on_servers: Applications, tenant: str) -> Town:
    """An app that does not listen, with a user in its tenant."""
    started = on_servers.start(Town)
    change(started, tenant, User(id=1, name='Ada'), Group(id=1, name='Staff'))
    return started


@pytest.fixture
def ear(app: Town, postgres_dsn: str, tenant: str) -> Iterator[Ear]:
    """Hears what the triggers of the tenant notify; they are installed."""
    install(postgres_dsn, tenant)
    listening = Ear(postgres_dsn, tenant)
    yield listening
    listening.close()


@pytest.fixture
def program(app: Town, postgres_dsn: str, tenant: str) -> Iterator[psycopg.Connection[Any]]:
    """Another program on the tenant's schema."""
    with outside(postgres_dsn, tenant) as connection:
        yield connection


@pytest.fixture
def database(app: Town, postgres_dsn: str) -> Iterator[Connection]:
    """A connection for the functions under test, with a transaction."""
    with create_engine(postgres_dsn, poolclass=NullPool).connect() as connection:
        yield connection


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
    """Each table that another program's statement changes is told, cascades as well."""
    act(program)
    assert set(ear.heard()) == (tables or {'groups', 'membership'})


def test_rolled_back_outside_change_notifies_nothing(
    ear: Ear, program: psycopg.Connection[Any]
) -> None:
    """What is rolled back, or rolled back to a savepoint, is not told; the rest is, once."""
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


HIDDEN = [
    "SELECT rename_all('Grace')",
    "SELECT rename_all('Grace') FROM groups",
    "SELECT 1 FROM groups WHERE rename_all('Grace') = 1",
    "DO $$ BEGIN UPDATE users SET name = 'Grace'; END $$",
    "INSERT INTO groups (id, name) VALUES (2, 'Grace')",
]


def hide(program: psycopg.Connection[Any], function: str = FUNCTION) -> None:
    program.execute(function)
    program.execute(APPLICATION_TRIGGER)


@pytest.mark.parametrize('statement', HIDDEN)
@pytest.mark.parametrize('function', [FUNCTION, SQL_FUNCTION], ids=['plpgsql', 'sql'])
def test_hidden_own_changes_evict_with_the_commit(
    ear: Ear,
    program: psycopg.Connection[Any],
    app: Town,
    tenant: str,
    statement: str,
    function: str,
) -> None:
    """What functions and triggers change in a transaction of the package is evicted by its
    commit: tables, and policies that are functions; nobody is notified."""
    hide(program, function)
    assert value(app, tenant, lambda app: app.names) == ['Ada']
    assert value(app, tenant, lambda app: app.names_with_a) == ['Ada']
    with committed(app, tenant) as scope:
        scope.session().execute(text(statement))
    assert value(app, tenant, lambda app: app.names) == ['Grace']
    assert value(app, tenant, lambda app: app.names_with_a) == []
    assert ear.heard() == []


def test_hidden_changes_are_stale_without_triggers(
    program: psycopg.Connection[Any], app: Town, tenant: str
) -> None:
    """The test above shows something: what it does goes unseen without triggers."""
    hide(program)
    assert value(app, tenant, lambda app: app.names) == ['Ada']
    with committed(app, tenant) as scope:
        scope.session().execute(text(HIDDEN[1]))
    assert value(app, tenant, lambda app: app.names) == ['Ada']


def test_hidden_change_is_shown_to_nobody_before_its_commit(
    ear: Ear, program: psycopg.Connection[Any], app: Town, tenant: str
) -> None:
    """What a transaction reads after a change that only triggers saw is not stored."""
    hide(program)
    with app.request_scope(tenant) as scope:
        scope.session().execute(text(HIDDEN[0]))
        assert app.names == ['Grace']
        assert value(app, tenant, lambda app: app.names) == ['Ada']
    assert value(app, tenant, lambda app: app.names) == ['Ada']


def test_driver_level_changes_evict_with_the_commit(ear: Ear, app: Town, tenant: str) -> None:
    """What a session's transaction changes by the driver's own cursor is seen, too."""
    assert value(app, tenant, lambda app: app.names) == ['Ada']
    with committed(app, tenant) as scope:
        driver = scope.session().connection().connection.dbapi_connection
        driver.execute("UPDATE users SET name = 'Grace'")
    assert value(app, tenant, lambda app: app.names) == ['Grace']
    assert ear.heard() == []


def test_rolled_back_hidden_change_evicts_nothing(
    ear: Ear, program: psycopg.Connection[Any], app: Town, tenant: str
) -> None:
    """A savepoint that is rolled back takes what triggers have written down with it."""
    hide(program)
    with app.recording() as events:
        value(app, tenant, lambda app: app.names)
        with committed(app, tenant) as scope, scope.session().begin_nested() as savepoint:
            scope.session().execute(text(HIDDEN[1]))
            savepoint.rollback()
        value(app, tenant, lambda app: app.names)
    assert [event.tier for event in events if event.kind == 'read'] == ['creator', 'process']
    assert ear.heard() == []


def test_changes_while_commit_runs_notify(
    ear: Ear, program: psycopg.Connection[Any], app: Town, tenant: str
) -> None:
    """What a deferred trigger changes after the package has asked is told to everybody."""
    program.execute(DEFERRED_TRIGGER)
    change(app, tenant, Group(id=2, name='Grace'))
    assert ear.heard() == ['users']


def test_changes_of_another_tenant_notify(
    ear: Ear, app: Town, make_tenant: Callable[[str], str], tenant: str
) -> None:
    """A transaction of one tenant that changes another one's table does not own the change."""
    with committed(app, make_tenant('other')) as scope:
        scope.session().execute(text(f"UPDATE {tenant}.users SET name = 'Grace'"))
    assert ear.heard() == ['users']


def test_two_phase_commit_with_hidden_changes(
    ear: Ear, program: psycopg.Connection[Any], app: Town, tenant: str
) -> None:
    """PostgreSQL prepares nothing that has notified; a transaction of the package has not."""
    hide(program)
    assert value(app, tenant, lambda app: app.names) == ['Ada']
    with app.request_scope(tenant) as scope, scope.session_manager.engine.connect() as connection:
        transaction = connection.begin_twophase()
        connection.execute(text(HIDDEN[1]))
        transaction.prepare()
        transaction.commit()
    assert value(app, tenant, lambda app: app.names) == ['Grace']
    assert ear.heard() == []


def test_functions_still_judge_objects(ear: Ear, app: Town, tenant: str) -> None:
    """Triggers do not make every change one that functions can't judge."""
    assert value(app, tenant, lambda app: app.names_with_a) == ['Ada']
    with app.recording() as events:
        change(app, tenant, User(id=2, name='Grace'))
        value(app, tenant, lambda app: app.names_with_a)
        change(app, tenant, User(id=3, name='Alan'))
        assert value(app, tenant, lambda app: app.names_with_a) == ['Ada', 'Alan']
    assert [event.tier for event in events if event.kind == 'read'] == ['process', 'creator']


def test_hidden_changes_beside_judged_ones(
    ear: Ear, program: psycopg.Connection[Any], app: Town, tenant: str
) -> None:
    """That objects of a table were judged does not hide what a function did to it."""
    program.execute(
        'CREATE FUNCTION forget(integer) RETURNS void LANGUAGE sql AS '
        "$$ UPDATE users SET name = '' WHERE id = $1 $$"
    )
    assert value(app, tenant, lambda app: app.names_with_a) == ['Ada']
    with committed(app, tenant) as scope:
        scope.session().add(User(id=2, name='Grace'))
        scope.session().flush()
        scope.session().execute(text('SELECT forget(id) FROM groups'))
    assert value(app, tenant, lambda app: app.names_with_a) == []


def test_commits_cost_no_statement_more(
    ear: Ear, app: Town, tenant: str, db_queries: Callable[[int], Any]
) -> None:
    """Begin and commit of a change take one statement each, with triggers as without; a
    transaction that only reads takes one more, as only triggers know that it does."""
    with db_queries(3):
        change(app, tenant, Group(id=2, name='Guests'))
    with db_queries(3), committed(app, tenant) as scope:
        scope.session().query(Group.id).all()


def test_commit_of_a_failed_transaction_stays_silent(ear: Ear, app: Town, tenant: str) -> None:
    """COMMIT of a failed transaction that changed nothing rolls back, without an error."""
    with committed(app, tenant) as scope:
        connection = scope.session().connection()
        with pytest.raises(psycopg.errors.UndefinedTable):
            connection.connection.dbapi_connection.execute('SELECT * FROM nowhere')
    assert value(app, tenant, lambda app: app.names) == ['Ada']


def test_partitions_and_parents(
    app: Town, program: psycopg.Connection[Any], postgres_dsn: str, tenant: str
) -> None:
    """A change of a partition is one of its parent, and the other way round."""
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
    """A table may be called as it likes."""
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


# how they come and go


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
    """A second time installs nothing; after a new table, the trigger of that one."""
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
    """Only the tables that are named get a trigger, and lose it."""
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
    """Another version of function or trigger is outdated; install brings the present one."""
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
    """Function and triggers go; what is the application's own stays."""
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
    """Nobody told of changes before: who listens must take all for changed; once."""
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
    """Who holds a table for long makes the installation fail, and nobody wait behind it."""
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
    """What does not exist is named."""
    with pytest.raises(TriggerError, match=r'^nowhere: the database has no such schema$'):
        action(database, 'nowhere')
    with pytest.raises(TriggerError, match=r"no table 'nothing'; it has documents, groups, "):
        action(database, tenant, ['users', 'nothing'])
