"""Connections of other programs to the database, and a listener for what its triggers notify."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from typing import Any
from uuid import uuid4

import psycopg
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

from onegov_ormcache.database import triggers
from onegov_ormcache.database.trigger_reports import ToldRows


def libpq_url(dsn: str) -> str:
    """A SQLAlchemy URL as libpq wants it."""
    return make_url(dsn).set(drivername='postgresql').render_as_string(hide_password=False)


@contextmanager
def outside(dsn: str, schema: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection of another program, on the tenant's schema; each statement commits."""
    with closing(psycopg.connect(libpq_url(dsn), autocommit=True)) as connection:
        connection.execute(f'SET search_path = "{schema}"')
        yield connection


def install(
    dsn: str,
    schema: str,
    tables: Collection[str] | None = None,
    rows: triggers.Rows | None = None,
) -> list[str]:
    """Install the triggers of a tenant, in a transaction of their own."""
    with create_engine(dsn, poolclass=NullPool).begin() as connection:
        return triggers.install(connection, schema, tables, rows)


class Ear:
    """Listens for the notifications about one schema; ends with `close`."""

    def __init__(self, dsn: str, schema: str) -> None:
        self._schema = schema
        self._listener = psycopg.connect(libpq_url(dsn), autocommit=True)
        self._marker = psycopg.connect(libpq_url(dsn), autocommit=True)
        self._listener.execute('LISTEN orm_cache; LISTEN orm_cache_rows')
        #: What notifications have told of rows, since the ear was made.
        self.rows: list[ToldRows] = []

    def heard(self) -> list[str]:
        """Return the tables of which was notified since the last call, by transactions that have
        ended."""
        marker = f'marker-{uuid4().hex}'
        self._marker.execute("SELECT pg_notify('orm_cache', %s)", [marker])
        heard: list[str] = []
        for notify in self._listener.notifies(timeout=20):
            if notify.payload == marker:
                return heard
            if notify.channel == 'orm_cache_rows':
                told = ToldRows.parse(notify.payload)
                if told.schema == self._schema:
                    self.rows.append(told)
            elif notify.payload.startswith(f'{self._schema}:'):
                heard.append(notify.payload.partition(':')[2])
        raise TimeoutError('The marker was not heard')

    def close(self) -> None:
        """Close both connections."""
        self._listener.close()
        self._marker.close()


def until(condition: Callable[[], object], seconds: float) -> float:
    """Wait until a condition holds.

    :return: the seconds that it took.
    :raises TimeoutError: if it does not hold in time.
    """
    begin = time.perf_counter()
    while not condition():
        if time.perf_counter() - begin > seconds:
            raise TimeoutError(f'not within {seconds} s')
        time.sleep(0.002)
    return time.perf_counter() - begin
