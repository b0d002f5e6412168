"""Keeps the statements that psycopg has prepared apart by tenant.

psycopg prepares a statement that a connection has executed several times, and finds it again
by its text. PostgreSQL then holds on to the types of its parameters and of its result. The
connection may serve another tenant next, in whose schema the same text has other types: an
enum, domain, composite or range type is made for each schema, and a migration changes one
tenant after the other. PostgreSQL refuses to execute the statement then. This module knows
psycopg's connections. It does not know what is executed on them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from sqlalchemy import Connection

#: Stands for a tenant where a statement's types are the same for all of them.
ANY_TENANT = ''


def keep_apart(connection: Connection, tenant: str) -> None:
    """Let a connection use only statements that were prepared for this tenant, from now on.

    Other drivers do not prepare statements by themselves, so nothing is done for them.

    :param connection: a connection that is in use.
    :param tenant: the schema whose types the next statements mean, or :data:`ANY_TENANT`.
    """
    driver_connection: Any = connection.connection.dbapi_connection
    # psycopg has no public way to tell apart two statements of one text; not to prepare at
    # all would make a transaction take between a quarter longer and twice as long
    statements: Any = getattr(driver_connection, '_prepared', None)
    if callable(getattr(statements, 'key', None)):
        statements.key = partial(_key, tenant)
    elif hasattr(driver_connection, 'prepare_threshold'):
        driver_connection.prepare_threshold = None


def _key(tenant: str, query: Any) -> tuple[str, bytes, tuple[int, ...]]:
    return tenant, query.query, query.types
