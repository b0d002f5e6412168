"""The command ``python -m onegov_ormcache triggers``.

Each schema is changed in a transaction of its own, so that a database of many tenants is
never locked as a whole. All schemas are checked before the first is changed. This module
does not know the triggers' SQL: :mod:`onegov_ormcache.database.triggers` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import click
from sqlalchemy import Connection, MetaData
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from ..database import triggers as database_triggers
from ..database.names import INTERNAL
from ..database.postgres import Postgres
from ..database.session_manager import SessionManager
from ..errors import TriggerError
from .cli_site import DSN
from .secrets import printable

C = TypeVar('C', bound=Callable[..., Any])

#: Exit code of ``status`` if a trigger is missing or outdated.
INCOMPLETE = 1

#: This schema is no tenant, but it may contain tables that tenants share.
PUBLIC = 'public'


@click.group(no_args_is_help=False)
def triggers() -> None:
    """Have the database tell of outside changes.

    Puts triggers on the tables of tenants, which tell an application with the setting listen of
    changes by other programs. PostgreSQL only.
    """


class Which(NamedTuple):
    """The schemas and tables that a command is about."""

    dsn: str
    schemas: Sequence[str]
    #: None: all.
    tables: Sequence[str] | None
    #: By table, the columns of which changed rows are told.
    rows: database_triggers.Rows


def which_options(command: C) -> C:
    """Add the options that say which schemas and tables a command is about."""
    for option in (
        click.option('--table', 'tables', metavar='NAME', multiple=True,
                     help='Only this one; may be repeated.'),
        click.option('--all', 'every', is_flag=True, help='All tenants of the database.'),
        click.option('--schema', 'schemas', metavar='NAME', multiple=True,
                     help='A tenant; may be repeated.'),
        click.option('--dsn', metavar='URL', required=True, envvar=DSN, show_envvar=True,
                     help='postgresql+psycopg://...'),
    ):  # fmt: skip
        command = option(command)
    return command


rows_option = click.option(
    '--rows', metavar='TABLE.COLUMN', multiple=True,
    help='Tell of changed rows which values they have in this column; may be repeated. '
    'TABLE alone: tell no rows any more.',
)  # fmt: skip


def which(
    dsn: str,
    schemas: Sequence[str],
    every: bool,
    tables: Sequence[str],
    rows: Sequence[str] = (),
) -> Which:
    """Return what the options say.

    :raises UsageError: if they name no schema, or schemas and all.
    """
    if bool(schemas) == every:
        raise click.UsageError(
            'Name the tenants by --schema, or give --all.', click.get_current_context()
        )
    return Which(dsn, () if every else schemas, tables or None, rows_of(rows))


@triggers.command()
@which_options
@rows_option
def install(**options: Any) -> int:
    """Put triggers on all tables that lack them, or have old ones."""
    asked = which(**options)
    with connected(asked.dsn) as (manager, connection):
        schemas = checked(asked, manager, connection)
        for schema in schemas:
            with connection.begin():
                done = database_triggers.install(connection, schema, asked.tables, asked.rows)
            report(schema, 'installed on', done)
    return 0


@triggers.command()
@which_options
@rows_option
def status(**options: Any) -> int:
    """Say which tables have them; exit code 1 if any lacks one."""
    asked = which(**options)
    states: dict[str, database_triggers.State] = {}
    with connected(asked.dsn) as (manager, connection), connection.begin():
        for schema in named(asked, manager):
            found = database_triggers.status(connection, schema, asked.tables, asked.rows)
            states.update(
                {printable(f'{schema}.{table}'): state for table, state in found.items()}
            )
    width = max(map(len, states), default=0)
    for table, state in states.items():
        print(f'{table:{width}}  {state}')
    return 0 if set(states.values()) <= {database_triggers.State.INSTALLED} else INCOMPLETE


@triggers.command()
@which_options
def remove(**options: Any) -> int:
    """Take them off again, with the function that they call."""
    asked = which(**options)
    with connected(asked.dsn) as (manager, connection):
        schemas = checked(asked, manager, connection)
        for schema in schemas:
            with connection.begin():
                done = database_triggers.remove(connection, schema, asked.tables)
            report(schema, 'removed from', done)
    return 0


@contextmanager
def connected(dsn: str) -> Iterator[tuple[SessionManager, Connection]]:
    """Connect to the database for the time of a ``with`` block.

    :return: a context manager; ``as`` gives a manager of the database's tenants, and a
        connection that belongs to no tenant.
    :raises TriggerError: if the database is not PostgreSQL, or if the connection is lost.
    :raises DatabaseUnreachable: if the database can't be reached.
    """
    manager = SessionManager(dsn, MetaData(), {'poolclass': NullPool})
    if not isinstance(manager.database, Postgres):
        raise TriggerError(
            f'dsn {manager.database.address!r}: triggers need PostgreSQL: postgresql+psycopg://...'
        )
    manager.database.check()
    try:
        with manager.database.engine('').connect() as connection:
            yield manager, connection.execution_options(**INTERNAL)
    except SQLAlchemyError as error:
        raise TriggerError(f'The connection to the database was lost: {error}') from error


def named(asked: Which, manager: SessionManager) -> Sequence[str]:
    """Return the schemas that a command is about, each once.

    :raises InvalidSchemaError: if a tenant can't have one of the names.
    """
    if not asked.schemas:
        return manager.list_schemas()
    for schema in asked.schemas:
        if schema != PUBLIC:
            manager.check_schema(schema)
    return list(dict.fromkeys(asked.schemas))


def rows_of(names: Sequence[str]) -> database_triggers.Rows:
    """Return the columns that an option names, by table; a table without a dot has none."""
    found: dict[str, list[str]] = {}
    for name in names:
        table, _, column = name.rpartition('.')
        found.setdefault(table or column, []).extend([column] if table else [])
    return found


def checked(asked: Which, manager: SessionManager, connection: Connection) -> Sequence[str]:
    """Return the schemas that a command is about, after a check of each.

    :raises OrmCacheError: if the triggers of one of them can't be changed.
    """
    schemas = named(asked, manager)
    with connection.begin():
        for schema in schemas:
            database_triggers.check(connection, schema, asked.tables, asked.rows)
    return schemas


def report(schema: str, done: str, tables: Sequence[str]) -> None:
    """Print what was done in a schema.

    :param done: what was done, as text before the names of the tables.
    :param tables: the tables to which it was done; none if there was nothing to do.
    """
    told = f'{done} {", ".join(tables)}' if tables else 'nothing to do'
    print(printable(f'{schema}: {told}'))
