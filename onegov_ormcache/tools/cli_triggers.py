"""The command ``python -m onegov_ormcache triggers``.

Each schema is changed in a transaction of its own, so that a database of many tenants is
never locked as a whole. All schemas are checked before the first is changed. This module
does not know the triggers' SQL: :mod:`onegov_ormcache.database.triggers` does.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy import Connection, MetaData
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from ..database import triggers
from ..database.names import INTERNAL
from ..database.postgres import Postgres
from ..database.session_manager import SessionManager
from ..errors import TriggerError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

#: Exit code of ``status`` if a trigger is missing or outdated.
INCOMPLETE = 1

#: This schema is no tenant, but it may contain tables that tenants share.
PUBLIC = 'public'


def add_parser(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command ``triggers`` to the commands of the package."""
    parser = commands.add_parser(
        'triggers',
        help='have the database tell of changes that go around the package',
        description='Puts triggers on the tables of tenants, which tell an application with '
        'the setting listen of changes by other programs. PostgreSQL only.',
    )
    actions = parser.add_subparsers(required=True, metavar='ACTION')
    for name, run, about in (
        ('install', install, 'put triggers on all tables that lack them, or have old ones'),
        ('status', status, 'say which tables have them; exit code 1 if any lacks one'),
        ('remove', remove, 'take them off again, with the function that they call'),
    ):
        action = actions.add_parser(name, help=about, description=about.capitalize() + '.')
        action.set_defaults(run=run)
        action.add_argument(
            '--dsn', metavar='URL', required=True, help='postgresql+psycopg://...'
        )
        which = action.add_mutually_exclusive_group(required=True)
        which.add_argument(
            '--schema', metavar='NAME', action='append', help='a tenant; may be repeated'
        )
        which.add_argument('--all', action='store_true', help='all tenants of the database')
        action.add_argument(
            '--table', metavar='NAME', action='append', help='only this one; may be repeated'
        )
        if run is not remove:
            action.add_argument(
                '--rows', metavar='TABLE.COLUMN', action='append', default=[],
                help='tell of changed rows which values they have in this column; may be '
                'repeated. TABLE alone: tell no rows any more',
            )  # fmt: skip


def install(arguments: argparse.Namespace) -> int:
    """Put triggers on the tables, and print which tables got one.

    :return: the exit code.
    :raises OrmCacheError: if it can't be done; the message says what to do about it.
    """
    with connected(arguments.dsn) as (manager, connection):
        schemas = checked(arguments, manager, connection)
        for schema in schemas:
            with connection.begin():
                done = triggers.install(connection, schema, arguments.table, rows(arguments))
            report(schema, 'installed on', done)
    return 0


def status(arguments: argparse.Namespace) -> int:
    """Print the state of each table's trigger.

    :return: the exit code: 0 if all triggers are there and current, else
        :data:`INCOMPLETE`.
    :raises OrmCacheError: if the state can't be found out.
    """
    states: dict[str, triggers.State] = {}
    with connected(arguments.dsn) as (manager, connection), connection.begin():
        for schema in named(arguments, manager):
            found = triggers.status(connection, schema, arguments.table, rows(arguments))
            states.update({f'{schema}.{table}': state for table, state in found.items()})
    width = max(map(len, states), default=0)
    for table, state in states.items():
        print(f'{table:{width}}  {state}')
    return 0 if set(states.values()) <= {triggers.State.INSTALLED} else INCOMPLETE


def remove(arguments: argparse.Namespace) -> int:
    """Take triggers off the tables, and print which tables had one.

    :return: the exit code.
    :raises OrmCacheError: if it can't be done; the message says what to do about it.
    """
    with connected(arguments.dsn) as (manager, connection):
        schemas = checked(arguments, manager, connection)
        for schema in schemas:
            with connection.begin():
                done = triggers.remove(connection, schema, arguments.table)
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


def named(arguments: argparse.Namespace, manager: SessionManager) -> Sequence[str]:
    """Return the schemas that the arguments name, each once.

    :raises InvalidSchemaError: if a tenant can't have one of the names.
    """
    if arguments.all:
        return manager.list_schemas()
    for schema in arguments.schema:
        if schema != PUBLIC:
            manager.check_schema(schema)
    return list(dict.fromkeys(arguments.schema))


def rows(arguments: argparse.Namespace) -> triggers.Rows:
    """Return the columns that the arguments name, by table; a table without a dot has none."""
    found: dict[str, list[str]] = {}
    for name in getattr(arguments, 'rows', ()):
        table, _, column = name.rpartition('.')
        found.setdefault(table or column, []).extend([column] if table else [])
    return found


def checked(
    arguments: argparse.Namespace, manager: SessionManager, connection: Connection
) -> Sequence[str]:
    """Return the schemas that the arguments name, after a check of each.

    :raises OrmCacheError: if the triggers of one of them can't be changed.
    """
    schemas = named(arguments, manager)
    with connection.begin():
        for schema in schemas:
            triggers.check(connection, schema, arguments.table, rows(arguments))
    return schemas


def report(schema: str, done: str, tables: Sequence[str]) -> None:
    """Print what was done in a schema.

    :param done: what was done, as text before the names of the tables.
    :param tables: the tables to which it was done; none if there was nothing to do.
    """
    print(f'{schema}:', f'{done} {", ".join(tables)}' if tables else 'nothing to do')
