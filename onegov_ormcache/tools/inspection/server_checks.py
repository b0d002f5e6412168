"""Checks the servers of an application: whether they answer, what they are not fit for, and their
clocks.

This module prints nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from ...core.cache import OrmCache
from ...database import triggers
from ...database.names import INTERNAL
from ...database.postgres import Postgres
from ...errors import DatabaseUnreachable, OrmCacheError, StoreUnreachable, TriggerError
from ...redis_client.client import Client
from ...redis_client.inspection import faults
from ...tiers.shared import RedisTier
from .findings import Finding, error, note, warning
from .outboxes import outboxes_of
from .sites import Site

#: Seconds by which two clocks may differ.
CLOCKS = 1.0

#: Seconds after which what lies in an outbox should have been delivered.
LATE = 60.0

#: The most tenants whose triggers are looked at.
MOST_TENANTS = 20

#: The present time of PostgreSQL, in seconds since 1970.
NOW = text('SELECT extract(epoch FROM clock_timestamp())')


def check_servers(site: Site) -> list[Finding]:
    """Return what is wrong with the servers of a cache."""
    if site.cache is None:
        return []
    return [*_check_redis(site), *_check_database(site.cache)]


def _check_redis(site: Site) -> Iterator[Finding]:
    if not isinstance(site.values, RedisTier) or site.cache is None:
        yield note(
            'redis_url', 'the setting is None: versions and values live in the memory of one '
            'process, and a second process is refused'
        )  # fmt: skip
        return
    client = site.values.client
    try:
        site.cache.tags.check(insists=True)
    except StoreUnreachable as failure:
        yield error('redis_url', str(failure))
        return
    for server in client.servers():
        for fault in faults(server):
            severity = error if fault.is_wrong_setting else warning
            yield severity('redis_url', f'Redis: {fault.text}')
        yield from _check_memory(server)
        with suppress(OrmCacheError):
            yield from _check_clock('Redis', lambda: _redis_time(server))  # noqa: B023


def _check_memory(server: Client) -> Iterator[Finding]:
    """Yield what is to be said of the memory of a Redis, if it tells."""
    try:
        info: Any = server.ask(lambda: server.info('memory'))
    except StoreUnreachable:
        return
    if not info.get('maxmemory') and info.get('maxmemory_policy') == 'noeviction':
        yield note(
            'redis_url', 'Redis has no maxmemory: it may take all memory of its host, and is '
            'ended then; set maxmemory, and maxmemory-policy to allkeys-lru'
        )  # fmt: skip


def _check_database(cache: OrmCache) -> Iterator[Finding]:
    database = cache.observer.database
    try:
        database.check()
    except DatabaseUnreachable as failure:
        yield error('dsn', str(failure))
        return
    for engine in database.engines():
        if engine.dialect.name != 'postgresql':
            continue  # its clock is that of this host, and it has no triggers
        try:
            with engine.connect() as connection:
                asked = connection.execution_options(**INTERNAL)
                yield from _check_clock(
                    'the database', lambda: float(asked.execute(NOW).scalar_one())  # noqa: B023
                )  # fmt: skip
                yield from _check_triggers(cache, asked)
        except SQLAlchemyError as failure:
            yield error('dsn', f'the database can not be asked: {failure}')
    yield from _check_outboxes(cache)


def _check_clock(whose: str, ask: Callable[[], float]) -> Iterator[Finding]:
    """Yield a finding if the clock of a server differs from that of this host."""
    before = time.time()
    there = ask()
    after = time.time()
    # the answer was made at some time between the two
    difference = max(there - after, before - there, 0.0)
    if difference > CLOCKS:
        ahead = 'behind' if there < before else 'ahead of'
        yield warning(
            'clocks', f'the clock of {whose} is {difference:.1f} s {ahead} that of this host: '
            'let NTP set both. Nothing is stale by it, but values with expires= and the times '
            'that are shown are wrong by as much'
        )  # fmt: skip


def _redis_time(server: Client) -> float:
    seconds: Any = server.ask(server.time)
    return float(seconds[0]) + float(seconds[1]) / 1e6


def _check_triggers(cache: OrmCache, connection: Connection) -> Iterator[Finding]:
    """Yield the tenants whose triggers are missing, if the application listens for them."""
    if not cache.settings.listen or not isinstance(cache.observer.database, Postgres):
        return
    for tenant in cache.observer.list_schemas()[:MOST_TENANTS]:
        try:
            with connection.begin_nested() if connection.in_transaction() else connection.begin():
                states = triggers.status(connection, tenant)
        except TriggerError as failure:
            yield warning('listen', str(failure))
            continue
        lacking = sorted(
            table for table, state in states.items()
            if state is not triggers.State.INSTALLED and cache.observer.has_table(table)
        )  # fmt: skip
        if lacking:
            yield warning(
                'listen', f'{tenant}: no current triggers on {", ".join(lacking)}, so changes '
                'by other programs are not heard: run `triggers install`'
            )  # fmt: skip


def _check_outboxes(cache: OrmCache) -> Iterator[Finding]:
    try:
        found = outboxes_of(cache)
    except OrmCacheError as failure:
        yield warning('outbox', str(failure))
        return
    for each in found:
        if each.problem:
            yield warning('outbox', f'{each.tenant}: it can not be read: {each.problem}')
        elif each.age is not None and each.age > LATE:
            yield warning(
                'outbox', f'{each.tenant}: {each.messages} commits have lain there for '
                f'{each.age:.0f} s, and no process has delivered them: does one run that reaches '
                'Redis?'
            )  # fmt: skip
