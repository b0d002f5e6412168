"""What transactions have left in the outboxes of a database, for the time when Redis is back.

This module prints nothing.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import MetaData
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from ...core.cache import OrmCache
from ...database.outbox import Outbox
from ...database.session_manager import SessionManager
from ...errors import DatabaseUnreachable


@dataclass(frozen=True)
class OutboxFacts:
    """What lies in the outbox of one tenant for the processes of one namespace."""

    tenant: str
    namespace: str
    #: The number of messages: one for each transaction.
    messages: int
    #: Seconds since the oldest was left; None if the table does not tell.
    age: float | None
    #: The tags that they say have changed; None if they can't be read: then all is evicted.
    tags: tuple[str, ...] | None
    #: Why it can't be read; '' if it can. Then the rest is not known.
    problem: str = ''


def outboxes_of(cache: OrmCache) -> list[OutboxFacts]:
    """Return what lies in the outboxes of a cache's databases, for its namespace.

    :raises DatabaseUnreachable: if a database can't be asked.
    """
    database = cache.observer.database
    found = _read(database.outboxes(), database.address)
    return [each for each in found if each.namespace in ('', cache.settings.namespace)]


def outboxes_at(dsn: str, namespace: str | None) -> list[OutboxFacts]:
    """Return what lies in the outboxes of a database, without an application.

    :param namespace: None for all.
    :raises DatabaseUnreachable: if the database can't be reached, or has no outboxes.
    """
    manager = SessionManager(dsn, MetaData(), {'poolclass': NullPool})
    try:
        database = manager.database
        if not database.outboxes():
            raise DatabaseUnreachable(
                f'dsn {database.address!r}: there are outboxes on PostgreSQL only'
            )
        database.check()
        found = _read(database.outboxes(), database.address)
    finally:
        manager.dispose()
    return [each for each in found if namespace is None or each.namespace in ('', namespace)]


def _read(outboxes: Sequence[Outbox], address: str) -> list[OutboxFacts]:
    failure: Exception | None = None
    found = []
    for outbox in outboxes:
        try:
            found += outbox.waiting()
        except (outbox.error, SQLAlchemyError) as error:
            failure = error
    if failure is not None:
        raise DatabaseUnreachable(f'dsn {address!r}: the outboxes can not be read: {failure}')
    return [
        OutboxFacts(
            each.schema, each.namespace, each.number, each.age, _tags(each.messages), each.problem
        )
        for each in found
    ]  # fmt: skip


def _tags(messages: Collection[str] | None) -> tuple[str, ...] | None:
    """Return the tags that messages name; None if they can't be read."""
    try:
        changes = [json.loads(message)['tags'] for message in messages or ()]
        found = {str(tag) for tags in changes for tag in tags}
    except (ValueError, TypeError, KeyError):
        return None
    return None if messages is None else tuple(sorted(found))
