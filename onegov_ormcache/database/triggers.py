"""Triggers that tell of changes which no session of the package has made.

Each table of a tenant gets a trigger that calls, after each statement, one function
in the tenant's schema (``sql/notify.sql``). In a transaction of the package it writes
down which tables were changed, for the statement that asks for the transaction's id;
for everybody else it notifies the channel :data:`~.names.CHANNEL`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from ..errors import TriggerError
from .names import BODY_QUOTE, CHANNEL, NOTIFY_FUNCTION
from .postgres import quote

#: Name of the trigger on each table.
TRIGGER = NOTIFY_FUNCTION

#: How long to wait for others who hold a lock on a table: all who come later wait behind.
LOCK_TIMEOUT = '10s'

#: pg_trigger.tgtype of: after, for each statement, insert or update or delete or truncate.
KIND = 4 + 8 + 16 + 32

#: SQLSTATEs that get an explanation.
LACKS_PRIVILEGE = '42501'
LOCK_NOT_AVAILABLE = '55P03'

TABLES = """
SELECT relname, pg_has_role(relowner, 'USAGE') AS is_owned, t.oid IS NOT NULL AS has_trigger,
    coalesce(proname = :function AND pronamespace = relnamespace AND prosrc = :body
        AND tgtype = :kind AND tgenabled = 'A' AND tgqual IS NULL AND tgattr::text = '',
        false) AS is_current
FROM pg_class c
LEFT JOIN pg_trigger t ON t.tgrelid = c.oid AND t.tgname = :trigger
LEFT JOIN pg_proc f ON f.oid = t.tgfoid
WHERE relnamespace = :namespace AND relkind IN ('r', 'p')
ORDER BY relname
"""

#: All triggers that call the tenant's function, and what is called like them in its schema.
TRIGGERS = """
SELECT nspname, relname, tgname
FROM pg_trigger t
JOIN pg_class c ON c.oid = t.tgrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_proc f ON f.oid = t.tgfoid
WHERE NOT tgisinternal AND (
    (proname = :function AND pronamespace = :namespace)
    OR (relnamespace = :namespace AND tgname = :trigger)
)
ORDER BY nspname, relname
"""

#: The tenants of which triggers tell.
WATCHED_SCHEMAS = f"""
SELECT nspname FROM pg_namespace n JOIN pg_proc f ON f.pronamespace = n.oid
WHERE proname = '{NOTIFY_FUNCTION}' ORDER BY nspname
"""


class State(StrEnum):
    """What a table has of its trigger."""

    INSTALLED = 'installed'
    MISSING = 'missing'
    #: Another version of the function, or a trigger that was altered or switched off.
    OUTDATED = 'outdated'


class _Table(NamedTuple):
    name: str
    is_owned: bool
    state: State


@cache
def body() -> str:
    """The body of the trigger function."""
    return (files(__package__) / 'sql' / 'notify.sql').read_text(encoding='utf-8')


def check(connection: Connection, schema: str, tables: Collection[str] | None = None) -> None:
    """Find out whether triggers may be installed and removed, before any is.

    :raises TriggerError: if not: no such schema or table, or no right to it.
    """
    with _explained(schema):
        found = _tables(connection, schema, tables)
        may_create = connection.scalar(
            text("SELECT has_schema_privilege(:schema, 'CREATE')"), {'schema': schema}
        )
    foreign = [table.name for table in found if not table.is_owned]
    if foreign or not may_create:
        what = f'the table {foreign[0]!r}' if foreign else 'the right CREATE on the schema'
        raise TriggerError(
            f'{schema}: the user of the dsn does not have {what}; nothing was changed: use the '
            'owner of schema and tables'
        )


def status(
    connection: Connection, schema: str, tables: Collection[str] | None = None
) -> dict[str, State]:
    """What each table of the tenant has of its trigger.

    :param connection: with a transaction, which the caller ends.
    :param tables: only these; None: all of the schema.
    :return: by table, sorted.
    :raises TriggerError: if there is no such schema or table.
    """
    with _explained(schema):
        return {table.name: table.state for table in _tables(connection, schema, tables)}


def install(
    connection: Connection, schema: str, tables: Collection[str] | None = None
) -> list[str]:
    """Put the triggers on the tenant's tables, as far as they are missing or outdated.

    Everything in the schema counts as changed by it: nobody told of changes before.

    :param connection: with a transaction, which the caller commits.
    :param tables: only these; None: all of the schema.
    :return: the tables that got a trigger, sorted.
    :raises TriggerError: if there is no such schema or table, or the right is missing.
    """
    with _explained(schema):
        _lock(connection, schema)
        wanted = [t for t in _tables(connection, schema, tables) if t.state != State.INSTALLED]
        if not wanted:
            return []
        function = f'{quote(schema)}.{NOTIFY_FUNCTION}()'
        _execute(
            connection,
            f'CREATE OR REPLACE FUNCTION {function} RETURNS trigger LANGUAGE plpgsql '
            f'SET search_path = pg_catalog, pg_temp AS {BODY_QUOTE}{body()}{BODY_QUOTE}',
        )
        # the function alone may have been outdated
        names = [table.name for table in wanted]
        for table in _tables(connection, schema, names):
            if table.state != State.INSTALLED:
                _put(connection, schema, table, function)
        connection.execute(
            text('SELECT pg_notify(:channel, :payload)'),
            {'channel': CHANNEL, 'payload': f'{schema}:'},
        )
        return names


def remove(
    connection: Connection, schema: str, tables: Collection[str] | None = None
) -> list[str]:
    """Take the triggers off the tenant's tables, and the function with the last of them.

    :param connection: with a transaction, which the caller commits.
    :param tables: only these; None: all that call the tenant's function.
    :return: the tables that had a trigger, sorted.
    :raises TriggerError: if there is no such schema or table, or the right is missing.
    """
    with _explained(schema):
        _lock(connection, schema)
        _tables(connection, schema, tables)
        parameters = _parameters(connection, schema)
        found = connection.execute(text(TRIGGERS), parameters).all()
        if tables is not None:
            found = [row for row in found if row[0] == schema and row[1] in tables]
        for place, table, trigger in found:
            relation = f'{quote(place)}.{quote(table)}'
            _execute(connection, f'DROP TRIGGER {quote(trigger)} ON {relation}')
        if not connection.execute(text(TRIGGERS), parameters).all():
            _execute(connection, f'DROP FUNCTION IF EXISTS {quote(schema)}.{NOTIFY_FUNCTION}()')
        return [table for _, table, _ in found]


def _put(connection: Connection, schema: str, table: _Table, function: str) -> None:
    relation = f'{quote(schema)}.{quote(table.name)}'
    if table.state == State.OUTDATED:
        _execute(connection, f'DROP TRIGGER {TRIGGER} ON {relation}')
    _execute(
        connection,
        f'CREATE TRIGGER {TRIGGER} AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON {relation} '
        f'FOR EACH STATEMENT EXECUTE FUNCTION {function}',
    )
    # so that it fires in sessions that switch ordinary triggers off, too
    _execute(connection, f'ALTER TABLE {relation} ENABLE ALWAYS TRIGGER {TRIGGER}')


def _lock(connection: Connection, schema: str) -> None:
    """Keep two from doing it at once, and nobody waiting for long."""
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
    connection.execute(
        text('SELECT pg_advisory_xact_lock(hashtext(:name))'), {'name': f'triggers {schema}'}
    )


def _tables(
    connection: Connection, schema: str, names: Collection[str] | None
) -> Sequence[_Table]:
    rows = connection.execute(text(TABLES), _parameters(connection, schema)).all()
    found = [_Table(row[0], row[1], _state(row[2], row[3])) for row in rows]
    if names is None:
        return found
    if unknown := sorted(set(names) - {table.name for table in found}):
        has = ', '.join(table.name for table in found) or 'none'
        raise TriggerError(f'{schema}: there is no table {unknown[0]!r}; it has {has}')
    return [table for table in found if table.name in names]


def _state(has_trigger: bool, is_current: bool) -> State:
    if not has_trigger:
        return State.MISSING
    return State.INSTALLED if is_current else State.OUTDATED


def _parameters(connection: Connection, schema: str) -> dict[str, object]:
    namespace = connection.scalar(
        text('SELECT oid FROM pg_namespace WHERE nspname = :schema'), {'schema': schema}
    )
    if namespace is None:
        raise TriggerError(f'{schema}: the database has no such schema')
    return {
        'namespace': namespace,
        'function': NOTIFY_FUNCTION,
        'trigger': TRIGGER,
        'body': body(),
        'kind': KIND,
    }


def _execute(connection: Connection, statement: str) -> None:
    # names may contain what the driver takes for a placeholder
    connection.exec_driver_sql(statement, execution_options={'no_parameters': True})


@contextmanager
def _explained(schema: str) -> Iterator[None]:
    """Turn the database's errors into :class:`TriggerError`."""
    try:
        yield
    except DBAPIError as error:
        reason = str(error.orig).strip().partition('\n')[0]
        state = getattr(error.orig, 'sqlstate', None)
        if state == LACKS_PRIVILEGE:
            reason += '; nothing was changed: use the owner of schema and tables'
        elif state == LOCK_NOT_AVAILABLE:
            reason += '; nothing was changed: a transaction holds a table, try again later'
        raise TriggerError(f'{schema}: {reason}') from error
