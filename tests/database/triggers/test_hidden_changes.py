"""A commit evicts what functions and triggers changed in its transaction, unseen by the ORM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from sqlalchemy import text

from tests.database.triggers.triggered_town import APPLICATION_TRIGGER, FUNCTION, Town
from tests.support.applications import change, committed, value
from tests.support.models import Group, User
from tests.support.outside import Ear

SQL_FUNCTION = """
CREATE FUNCTION rename_all(to_name text) RETURNS integer LANGUAGE sql AS $$
UPDATE users SET name = to_name; SELECT 1 $$
"""

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
    """A commit of the package evicts what functions and triggers changed in its transaction,
    under table policies and function policies; no notification is sent."""
    hide(program, function)
    assert value(app, tenant, lambda app: app.names) == ['Ada']
    assert value(app, tenant, lambda app: app.names_with_a) == ['Ada']
    with committed(app, tenant) as scope:
        scope.session().execute(text(statement))
    assert value(app, tenant, lambda app: app.names) == ['Grace']
    assert value(app, tenant, lambda app: app.names_with_a) == []
    assert ear.heard() == []


@pytest.mark.parametrize('statement', HIDDEN)
def test_hidden_changes_without_the_packages_triggers(
    program: psycopg.Connection[Any], app: Town, tenant: str, statement: str
) -> None:
    """Such a change evicts without the triggers, too, which report changes from outside."""
    hide(program)
    assert value(app, tenant, lambda app: app.names) == ['Ada']
    with committed(app, tenant) as scope:
        scope.session().execute(text(statement))
    assert value(app, tenant, lambda app: app.names) == ['Grace']


def test_hidden_change_is_shown_to_nobody_before_its_commit(
    ear: Ear, program: psycopg.Connection[Any], app: Town, tenant: str
) -> None:
    """A value that a transaction reads after a change that only triggers saw is not stored."""
    hide(program)
    with app.request_scope(tenant) as scope:
        scope.session().execute(text(HIDDEN[0]))
        assert app.names == ['Grace']
        assert value(app, tenant, lambda app: app.names) == ['Ada']
    assert value(app, tenant, lambda app: app.names) == ['Ada']


def test_driver_level_changes_evict_with_the_commit(ear: Ear, app: Town, tenant: str) -> None:
    """A change by the driver's own cursor in a session's transaction evicts, too."""
    assert value(app, tenant, lambda app: app.names) == ['Ada']
    with committed(app, tenant) as scope:
        driver = scope.session().connection().connection.dbapi_connection
        driver.execute("UPDATE users SET name = 'Grace'")
    assert value(app, tenant, lambda app: app.names) == ['Grace']
    assert ear.heard() == []


def test_rolled_back_hidden_change_evicts_nothing(
    ear: Ear, program: psycopg.Connection[Any], app: Town, tenant: str
) -> None:
    """If a savepoint is rolled back, the notes that triggers made in it are gone, too."""
    hide(program)
    with app.recording() as events:
        value(app, tenant, lambda app: app.names)
        with committed(app, tenant) as scope, scope.session().begin_nested() as savepoint:
            scope.session().execute(text(HIDDEN[1]))
            savepoint.rollback()
        value(app, tenant, lambda app: app.names)
    assert [event.tier for event in events if event.kind == 'read'] == ['creator', 'process']
    assert ear.heard() == []


def test_two_phase_commit_with_hidden_changes(
    ear: Ear, program: psycopg.Connection[Any], app: Town, tenant: str
) -> None:
    """A transaction of the package can be prepared, as its triggers send no notification:
    PostgreSQL refuses to prepare a transaction that has sent one."""
    hide(program)
    assert value(app, tenant, lambda app: app.names) == ['Ada']
    with app.request_scope(tenant) as scope, scope.session_manager.engine.connect() as connection:
        transaction = connection.begin_twophase()
        connection.execute(text(HIDDEN[1]))
        transaction.prepare()
        transaction.commit()
    assert value(app, tenant, lambda app: app.names) == ['Grace']
    assert ear.heard() == []


def test_functions_are_still_asked_about_objects(ear: Ear, app: Town, tenant: str) -> None:
    """With triggers installed, function policies are still asked about each changed object."""
    assert value(app, tenant, lambda app: app.names_with_a) == ['Ada']
    with app.recording() as events:
        change(app, tenant, User(id=2, name='Grace'))
        value(app, tenant, lambda app: app.names_with_a)
        change(app, tenant, User(id=3, name='Alan'))
        assert value(app, tenant, lambda app: app.names_with_a) == ['Ada', 'Alan']
    assert [event.tier for event in events if event.kind == 'read'] == ['process', 'creator']


def test_hidden_changes_beside_visible_ones(
    ear: Ear, program: psycopg.Connection[Any], app: Town, tenant: str
) -> None:
    """A hidden change of a table evicts a function policy, even if the policy was asked about
    other objects of the table."""
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
    """Begin and commit of a change take one statement each, with or without triggers; a
    transaction that only reads takes one more, to ask the triggers if it changed anything."""
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
