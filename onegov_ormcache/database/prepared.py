"""Keeps the statements that psycopg has prepared apart: by tenant, and by server.

psycopg prepares a statement that a connection has executed several times, and finds it again
by its text. PostgreSQL then holds on to the types of its parameters and of its result. The
connection may serve another tenant next, in whose schema the same text has other types: an
enum, domain, composite or range type is made for each schema, and a migration changes one
tenant after the other. PostgreSQL refuses to execute the statement then.

A pooler may give each transaction another process of the server, to which other clients have sent
other statements by the same names. The statement is refused then, or, which is worse, that of
another client is executed. This module knows psycopg's connections. It does not know what is
executed on them.
"""

from __future__ import annotations

import logging
from functools import cache, partial
from typing import Any

from sqlalchemy import Connection

log = logging.getLogger(__name__)

#: After how many executions psycopg prepares a statement, if nobody has said anything else.
DEFAULT_THRESHOLD = 5

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


def prepare_nothing_behind_poolers(driver_connection: Any) -> None:
    """Let psycopg prepare no statements on this connection, if it goes through a pooler.

    Does nothing if the application has set ``prepare_threshold`` to another number than psycopg's
    default: it then knows a pooler that tells the statements of its clients apart.

    :param driver_connection: a connection of psycopg, whose transaction has not failed.
    :raises psycopg.Error: if the server does not answer.
    """
    if driver_connection.prepare_threshold == DEFAULT_THRESHOLD and is_pooled(driver_connection):
        driver_connection.prepare_threshold = None
        _tell()


def is_pooled(driver_connection: Any) -> bool:
    """Return whether a connection of psycopg goes through a pooler.

    A server tells its clients the number of the process that works for them. A pooler tells each
    of them a number of its own, by which it knows whose statement is to be cancelled. Asked in
    AUTOCOMMIT, if there is no transaction, so that none begins.

    :raises psycopg.Error: if the server does not answer.
    """
    is_idle = not driver_connection.info.transaction_status
    autocommit = driver_connection.autocommit
    if is_idle:
        driver_connection.autocommit = True
    try:
        with driver_connection.cursor() as cursor:
            cursor.execute('SELECT pg_backend_pid()', prepare=False)
            # not by `fetchone()`: the application may have rows of its own making
            pid = int(cursor.pgresult.get_value(0, 0))
    finally:
        if is_idle and not driver_connection.closed:
            driver_connection.autocommit = autocommit
    return pid != int(driver_connection.info.backend_pid)


@cache
def _tell() -> None:
    """Log, once in a process, why statements are not prepared."""
    log.info(
        'psycopg prepares no statements, because its connections go through a pooler; if the '
        'pooler keeps prepared statements apart by client, set {"prepare_threshold": N} in '
        'connect_args of engine_options, with another number N than %s',
        DEFAULT_THRESHOLD,
    )
