"""Installs and removes triggers that report changes, also those made by other programs.

Each table of a tenant gets a trigger. After each statement that changes the table, the trigger
calls a function in the tenant's schema (``sql/notify.sql``). In a transaction of the package,
the function notes the table in a setting, which the package reads before COMMIT. In all other
transactions, it sends a notification on the channel :data:`~.names.CHANNEL`.

A table may have triggers that also tell which rows were changed, by the values of some columns.
They need the changed rows, which PostgreSQL gives to triggers of one kind of statement only: such
a table has four. This module does not know who listens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from functools import cache
from importlib.resources import files
from typing import NamedTuple, TypeAlias

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from ..errors import TriggerError
from .names import BODY_QUOTE, CHANNEL, NOTIFY_FUNCTION, quote
from .table_triggers import NAMES, Trigger, triggers_for

#: How long to wait for a lock on a table: everybody who needs the table later waits behind.
LOCK_TIMEOUT = '10s'

#: The types of columns whose values a trigger tells; ``sql/notify.sql`` repeats them.
TOLD_TYPES = (
    'smallint', 'integer', 'bigint', 'text', 'character varying', 'uuid', 'boolean', 'date',
)  # fmt: skip

#: SQLSTATEs of errors that get an explanation.
LACKS_PRIVILEGE = '42501'
LOCK_NOT_AVAILABLE = '55P03'

#: Selects the tables of a schema.
TABLES = """
SELECT oid, relname, pg_has_role(relowner, 'USAGE') AS is_owned
FROM pg_class WHERE relnamespace = :namespace AND relkind IN ('r', 'p') ORDER BY relname
"""

#: Selects the triggers of these names on the tenant's tables. The arguments of a trigger are text
#: in the database's encoding, each with a zero byte at its end.
OF_TABLES = """
SELECT tgrelid, tgname, tgtype,
    coalesce(proname = :function AND pronamespace = relnamespace AND prosrc = :body, false)
        AND tgenabled = 'A' AND tgqual IS NULL AND tgattr::text = '' AS is_current,
    ARRAY(
        SELECT convert_from(decode(argument, 'escape'), getdatabaseencoding())
        FROM unnest(string_to_array(encode(tgargs, 'escape'), '\\000'))
            WITH ORDINALITY AS given(argument, n)
        WHERE n <= tgnargs ORDER BY n
    ) AS arguments, tgoldtable, tgnewtable
FROM pg_trigger
JOIN pg_class c ON c.oid = tgrelid
LEFT JOIN pg_proc f ON f.oid = tgfoid
WHERE relnamespace = :namespace AND tgname = ANY(:triggers)
"""

#: Selects columns, each with its type and whether triggers can tell its values.
COLUMNS = """
SELECT attname, format_type(atttypid, atttypmod) AS type,
    atttypid = ANY(CAST(:types AS regtype[])) AND attgenerated <> 'v' AND NOT EXISTS (
        SELECT FROM pg_collation WHERE oid = attcollation AND NOT collisdeterministic
    ) AS is_told
FROM pg_attribute WHERE attrelid = :table AND attnum > 0 AND NOT attisdropped
"""

#: Selects a foreign table among a table's partitions and children: PostgreSQL refuses statements
#: on the table if a trigger needs their rows.
FOREIGN = """
WITH RECURSIVE children(id) AS (
    SELECT inhrelid FROM pg_inherits WHERE inhparent = :table
    UNION SELECT inhrelid FROM pg_inherits JOIN children ON inhparent = id
)
SELECT oid::regclass::text FROM pg_class JOIN children ON oid = id WHERE relkind = 'f'
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
    OR (relnamespace = :namespace AND tgname = ANY(:triggers))
)
ORDER BY nspname, relname, tgname
"""

#: Selects the schemas that have the trigger function: triggers report their changes.
WATCHED_SCHEMAS = f"""
SELECT nspname FROM pg_namespace n JOIN pg_proc f ON f.pronamespace = n.oid
WHERE proname = '{NOTIFY_FUNCTION}' ORDER BY nspname
"""


#: The columns whose values triggers tell, by table. A table that is not named keeps those that its
#: triggers tell already; one without columns tells none.
Rows: TypeAlias = Mapping[str, Sequence[str]]


class State(StrEnum):
    """The state of one table's triggers."""

    INSTALLED = 'installed'
    MISSING = 'missing'
    #: The function has another text, a trigger was altered or switched off, or others are wanted.
    OUTDATED = 'outdated'


class _Table(NamedTuple):
    oid: int
    name: str
    is_owned: bool
    #: Its triggers, by name.
    found: Mapping[str, Trigger]

    def columns(self, rows: Rows | None) -> tuple[str, ...]:
        """Return the columns whose values its triggers should tell."""
        if rows is not None and self.name in rows:
            return tuple(dict.fromkeys(rows[self.name]))
        return next((trigger.columns for trigger in self.found.values()), ())

    def state(self, rows: Rows | None) -> State:
        """Return the state of its triggers."""
        if not self.found:
            return State.MISSING
        is_installed = self.found == triggers_for(self.columns(rows))
        return State.INSTALLED if is_installed else State.OUTDATED


@cache
def body() -> str:
    """Return the body of the trigger function."""
    return (files(__package__) / 'sql' / 'notify.sql').read_text(encoding='utf-8')


def check(
    connection: Connection,
    schema: str,
    tables: Collection[str] | None = None,
    rows: Rows | None = None,
) -> None:
    """Check that triggers can be installed and removed; change nothing.

    :param connection: with a transaction, which the caller ends.
    :param tables: only these; None: all of the schema.
    :param rows: see :func:`install`.
    :raises TriggerError: if there is no such schema, table or column, if the values of a column
        can't be told, or the right is missing.
    """
    with _explained(schema):
        found = _tables(connection, schema, tables, rows)
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
    connection: Connection,
    schema: str,
    tables: Collection[str] | None = None,
    rows: Rows | None = None,
) -> dict[str, State]:
    """Return the state of each table's triggers.

    :param connection: with a transaction, which the caller ends.
    :param tables: only these; None: all of the schema.
    :param rows: the columns whose values they should tell, see :func:`install`.
    :return: the states by table, sorted.
    :raises TriggerError: if there is no such schema, table or column, or if the values of a column
        can't be told.
    """
    with _explained(schema):
        found = _tables(connection, schema, tables, rows)
        return {table.name: table.state(rows) for table in found}


def install(
    connection: Connection,
    schema: str,
    tables: Collection[str] | None = None,
    rows: Rows | None = None,
) -> list[str]:
    """Put the triggers on the tenant's tables where they are missing or outdated.

    If there are such tables, also notify that every table of the schema may have changed:
    earlier changes were not reported.

    :param connection: with a transaction, which the caller commits.
    :param tables: only these; None: all of the schema.
    :param rows: the columns whose values the triggers tell of changed rows, by table:
        ``{'books': ['id']}``. A table that is not named keeps those that its triggers tell; with
        an empty list they tell none.
    :return: the tables whose triggers were missing or outdated, sorted.
    :raises TriggerError: if there is no such schema, table or column, if the values of a column
        can't be told, or the right is missing.
    """
    with _explained(schema):
        _lock(connection, schema)
        found = _tables(connection, schema, tables, rows)
        wanted = [table for table in found if table.state(rows) != State.INSTALLED]
        if not wanted:
            return []
        function = f'{quote(schema)}.{NOTIFY_FUNCTION}'
        _execute(
            connection,
            f'CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql '
            # its queries are small: planning them anew each time takes longer than they do
            f'SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan '
            f'AS {BODY_QUOTE}{body()}{BODY_QUOTE}',
        )
        # a trigger of which only the function was outdated is installed by now
        names = [table.name for table in wanted]
        for table in _tables(connection, schema, names):
            if table.state(rows) != State.INSTALLED:
                _put(connection, schema, table, function, table.columns(rows))
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
        names = {(place, table): table for place, table, _ in found}
        return list(names.values())


def _put(
    connection: Connection, schema: str, table: _Table, function: str, columns: Sequence[str]
) -> None:
    relation = f'{quote(schema)}.{quote(table.name)}'
    for name in table.found:
        _execute(connection, f'DROP TRIGGER {name} ON {relation}')
    for name, trigger in triggers_for(columns).items():
        _execute(connection, trigger.sql(name, relation, function))
        # ALWAYS, so that it also fires in sessions that switch ordinary triggers off
        _execute(connection, f'ALTER TABLE {relation} ENABLE ALWAYS TRIGGER {name}')


def _lock(connection: Connection, schema: str) -> None:
    """Wait for other installations and removals in the schema, and limit waiting for locks."""
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
    connection.execute(
        text('SELECT pg_advisory_xact_lock(hashtext(:name))'), {'name': f'triggers {schema}'}
    )


def _tables(
    connection: Connection,
    schema: str,
    names: Collection[str] | None,
    rows: Rows | None = None,
) -> Sequence[_Table]:
    parameters = _parameters(connection, schema)
    of_tables: defaultdict[int, dict[str, Trigger]] = defaultdict(dict)
    for row in connection.execute(text(OF_TABLES), parameters):
        table, name, kinds, is_current, columns, old, new = row
        of_tables[table][name] = Trigger(kinds, tuple(columns), old, new, is_current)
    found = [
        _Table(oid, name, is_owned, of_tables[oid])
        for oid, name, is_owned in connection.execute(text(TABLES), parameters)
    ]
    if names is not None:
        _check_known(schema, names, found)
        found = [table for table in found if table.name in names]
    if rows is not None:
        _check_known(schema, rows, found)
        for table in found:
            _check_columns(connection, schema, table, rows.get(table.name, ()))
    return found


def _check_known(schema: str, names: Collection[str], tables: Sequence[_Table]) -> None:
    if unknown := sorted(set(names) - {table.name for table in tables}):
        has = ', '.join(table.name for table in tables) or 'none'
        raise TriggerError(f'{schema}: there is no table {unknown[0]!r}; it has {has}')


def _check_columns(
    connection: Connection, schema: str, table: _Table, columns: Collection[str]
) -> None:
    """Raise an error unless the values of these columns can be told."""
    if not columns:
        return
    parameters = {'table': table.oid, 'types': list(TOLD_TYPES)}
    if foreign := connection.scalar(text(FOREIGN), parameters):
        raise TriggerError(
            f'{schema}: triggers can not tell the rows of {table.name}, which has the foreign '
            f'table {foreign} as a partition or child: let them name the table alone'
        )
    found = {row[0]: row for row in connection.execute(text(COLUMNS), parameters)}
    for name in columns:
        if name not in found:
            has = ', '.join(found) or 'none'
            raise TriggerError(
                f'{schema}: the table {table.name!r} has no column {name!r}; it has {has}'
            )
        if not found[name].is_told:
            raise TriggerError(
                f'{schema}: triggers can not tell the values of {table.name}.{name}, which is of '
                f'type {found[name].type}: they tell columns of {", ".join(TOLD_TYPES)}, that '
                'are not virtual and whose collation is deterministic'
            )


def _parameters(connection: Connection, schema: str) -> dict[str, object]:
    namespace = connection.scalar(
        text('SELECT oid FROM pg_namespace WHERE nspname = :schema'), {'schema': schema}
    )
    if namespace is None:
        raise TriggerError(f'{schema}: the database has no such schema')
    return {
        'namespace': namespace,
        'function': NOTIFY_FUNCTION,
        'triggers': NAMES,
        'body': body(),
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
