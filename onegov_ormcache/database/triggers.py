"""Installs and removes triggers that report changes, also those made by other programs.

Each table of a tenant gets a trigger. After each statement that changes the table, the trigger
calls a function in the tenant's schema (``sql/notify.sql``). In a transaction of the package,
the function notes the table in a setting, which the package reads before COMMIT. In all other
transactions, it sends a notification on the channel :data:`~.names.CHANNEL`. This module does not
know who listens there.
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
from .names import BODY_QUOTE, CHANNEL, NOTIFY_FUNCTION, quote

#: Name of the trigger on each table.
TRIGGER = NOTIFY_FUNCTION

#: How long to wait for a lock on a table: everybody who needs the table later waits behind.
LOCK_TIMEOUT = '10s'

#: ``pg_trigger.tgtype`` of AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE, FOR EACH STATEMENT.
KIND = 4 + 8 + 16 + 32

#: SQLSTATEs of errors that get an explanation.
LACKS_PRIVILEGE = '42501'
LOCK_NOT_AVAILABLE = '55P03'

#: Selects the tables of a schema, each with the state of its trigger.
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

#: Selects the triggers, in any schema, that call the tenant's function, and the triggers of the
#: same name on the tenant's tables.
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

#: Selects the schemas that have the trigger function: triggers report their changes.
WATCHED_SCHEMAS = f"""
SELECT nspname FROM pg_namespace n JOIN pg_proc f ON f.pronamespace = n.oid
WHERE proname = '{NOTIFY_FUNCTION}' ORDER BY nspname
"""


class State(StrEnum):
    """The state of one table's trigger."""

    INSTALLED = 'installed'
    MISSING = 'missing'
    #: The function has another text, or the trigger was altered or switched off.
    OUTDATED = 'outdated'


class _Table(NamedTuple):
    name: str
    is_owned: bool
    state: State


@cache
def body() -> str:
    """Return the body of the trigger function."""
    return (files(__package__) / 'sql' / 'notify.sql').read_text(encoding='utf-8')


def check(connection: Connection, schema: str, tables: Collection[str] | None = None) -> None:
    """Check that triggers can be installed and removed; change nothing.

    :param connection: with a transaction, which the caller ends.
    :param tables: only these; None: all of the schema.
    :raises TriggerError: if there is no such schema or table, or the right is missing.
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
    """Return the state of each table's trigger.

    :param connection: with a transaction, which the caller ends.
    :param tables: only these; None: all of the schema.
    :return: the states by table, sorted.
    :raises TriggerError: if there is no such schema or table.
    """
    with _explained(schema):
        return {table.name: table.state for table in _tables(connection, schema, tables)}


def install(
    connection: Connection, schema: str, tables: Collection[str] | None = None
) -> list[str]:
    """Put the triggers on the tenant's tables where they are missing or outdated.

    If there are such tables, also notify that every table of the schema may have changed:
    earlier changes were not reported.

    :param connection: with a transaction, which the caller commits.
    :param tables: only these; None: all of the schema.
    :return: the tables whose trigger was missing or outdated, sorted.
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
        # a trigger of which only the function was outdated is installed by now
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
    """Drop the triggers of the tenant's tables, and the function if no trigger is left.

    :param connection: with a transaction, which the caller commits.
    :param tables: only these; None: all of the schema, and tables of other schemas whose
        triggers call the tenant's function.
    :return: the tables that had a trigger, sorted by schema and name.
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
    # ALWAYS, so that it also fires in sessions that switch ordinary triggers off
    _execute(connection, f'ALTER TABLE {relation} ENABLE ALWAYS TRIGGER {TRIGGER}')


def _lock(connection: Connection, schema: str) -> None:
    """Wait for other installations and removals in the schema, and limit waiting for locks."""
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
    # a name may contain a "%", which the driver would take for a placeholder
    connection.exec_driver_sql(statement, execution_options={'no_parameters': True})


@contextmanager
def _explained(schema: str) -> Iterator[None]:
    """Turn the database's errors into :class:`TriggerError`, the usual ones with advice."""
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
