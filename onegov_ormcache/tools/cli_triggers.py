"""The part of the command line that is about triggers: ``python -m onegov_ormcache triggers``.

Each schema is a transaction of its own, so that a database of many tenants is never
locked as a whole; whether it can be done is found out for all of them before the first.
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

#: Exit code of `status`, if not all triggers are there.
INCOMPLETE = 1

#: No tenant, but tables that tenants share may lie there.
PUBLIC = 'public'


def add_parser(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of the package."""
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


def install(arguments: argparse.Namespace) -> int:
    """Put triggers on the tables.

    :raises OrmCacheError: if it can't be done, with what to do about it.
    """
    with connected(arguments.dsn) as (manager, connection):
        schemas = checked(arguments, manager, connection)
        for schema in schemas:
            with connection.begin():
                done = triggers.install(connection, schema, arguments.table)
            report(schema, 'installed on', done)
    return 0


def status(arguments: argparse.Namespace) -> int:
    """Say which tables have triggers.

    :raises OrmCacheError: if that can't be found out.
    """
    states: dict[str, triggers.State] = {}
    with connected(arguments.dsn) as (manager, connection), connection.begin():
        for schema in named(arguments, manager):
            found = triggers.status(connection, schema, arguments.table)
            states.update({f'{schema}.{table}': state for table, state in found.items()})
    width = max(map(len, states), default=0)
    for table, state in states.items():
        print(f'{table:{width}}  {state}')
    return 0 if set(states.values()) <= {triggers.State.INSTALLED} else INCOMPLETE


def remove(arguments: argparse.Namespace) -> int:
    """Take triggers off the tables.

    :raises OrmCacheError: if it can't be done, with what to do about it.
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
    """A manager of the database's tenants, and a connection that no tenant has."""
    manager = SessionManager(dsn, MetaData(), {'poolclass': NullPool})
    if not isinstance(manager.database, Postgres):
        raise TriggerError(f'dsn {dsn!r}: triggers need PostgreSQL: postgresql+psycopg://...')
    manager.database.check()
    try:
        with manager.database.engine('').connect() as connection:
            yield manager, connection.execution_options(**INTERNAL)
    except SQLAlchemyError as error:
        raise TriggerError(f'The connection to the database was lost: {error}') from error


def named(arguments: argparse.Namespace, manager: SessionManager) -> Sequence[str]:
    """The schemas that are meant, each once.

    :raises InvalidSchemaError: if no tenant may have the name.
    """
    if arguments.all:
        return manager.list_schemas()
    for schema in arguments.schema:
        if schema != PUBLIC:
            manager.check_schema(schema)
    return list(dict.fromkeys(arguments.schema))


def checked(
    arguments: argparse.Namespace, manager: SessionManager, connection: Connection
) -> Sequence[str]:
    """The schemas that are meant, in all of which triggers may be changed.

    :raises OrmCacheError: if not.
    """
    schemas = named(arguments, manager)
    with connection.begin():
        for schema in schemas:
            triggers.check(connection, schema, arguments.table)
    return schemas


def report(schema: str, done: str, tables: Sequence[str]) -> None:
    """Say what was done in a schema."""
    print(f'{schema}:', f'{done} {", ".join(tables)}' if tables else 'nothing to do')
