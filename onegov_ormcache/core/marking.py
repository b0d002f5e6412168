"""What an application reports or evicts by hand, because nothing of the package can see why.

This module turns it into tags of the scope's transactions. It does not know how these evict.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TypeAlias

from sqlalchemy import Table, inspect
from sqlalchemy.orm import Mapper, Session

from ..errors import OrmCacheError, UnknownTableError, UnknownTagError
from ..tags.snapshot import CODE_TAG, PROPERTY_TAG, ROWS_TAG, TABLE_TAG, VALUE_TAG
from .policies import table_tags, tables_meant
from .scope import RequestScope

#: The name of a table, a mapped class, or a ``Table``.
TableName: TypeAlias = 'str | type | Table'


def mark_changed(scope: RequestScope, session: Session, tables: Iterable[TableName]) -> None:
    """Treat tables as changed by a session's transaction, and with them the tables that the
    database changes by foreign keys.

    No object stands for such a change, so it concerns all function policies. The values that
    depend on it are evicted when the transaction commits; until then, this scope reads them
    from the database.

    :param session: a session of the scope; its transaction begins, if it has not begun.
    :raises UnknownTableError: if the metadata has no such table.
    :raises OrmCacheError: if the scope is not told of the session's transactions, or if it reads
        from a replica.
    """
    observer = scope.observer
    named = {name for each in tables for name in _names(each)}
    for name in sorted(named):
        if not observer.has_table(name):
            raise UnknownTableError(
                f'mark_changed: the application has no table {name!r}; it has '
                f'{", ".join(sorted(observer.tables)) or "none"}'
            )
    if not named:
        return
    affected = frozenset().union(*map(observer.reached_from, named))
    _mark(scope, session, table_tags(affected), 'mark_changed')
    for path in scope.transactions:
        path.changed_without_objects(affected)
    if observer.on_table_change.receivers:
        observer.on_table_change.send(scope.schema, tables=affected)


def evict(scope: RequestScope, session: Session, tags: Collection[str]) -> None:
    """Evict the values with these tags, as a part of a session's transaction.

    The tag of a table stands for all that depends on it, so also for the values that depend on
    some of its rows, and have the tags of these alone.

    Other transactions go on using the values until it commits; this one computes them anew.

    :param session: a session of the scope; its transaction begins, if it has not begun.
    :raises UnknownTagError: if one is no tag, or that of a table which the metadata does not have.
    :raises OrmCacheError: see :func:`mark_changed`.
    """
    for tag in tags:
        if not isinstance(tag, str):
            raise UnknownTagError(f'evict: {tag!r} is no tag, which is a text')
    tables = {tag.removeprefix(TABLE_TAG) for tag in tags if tag.startswith(TABLE_TAG)}
    for table in sorted(tables):
        if not scope.observer.has_table(table):
            raise UnknownTagError(
                f'evict: the application has no table of the tag {TABLE_TAG + table!r}'
            )
    for tag in tags:
        if not tag.startswith((TABLE_TAG, PROPERTY_TAG, ROWS_TAG, VALUE_TAG)):
            raise UnknownTagError(
                f"evict: {tag!r} is no tag; one of a table is 'table:users', for example"
            )
    registry = scope.cache.registry
    by_rows = {policy.tag for policy in registry.rows.of_tables(tables)}
    _mark(scope, session, registry.spelled_out(tags) | by_rows, 'evict')


def evict_all(scope: RequestScope, session: Session) -> None:
    """Evict all values of the tenant, as a part of a session's transaction; see :func:`evict`."""
    _mark(scope, session, (CODE_TAG,), 'evict_all')


def _mark(scope: RequestScope, session: Session, tags: Collection[str], what: str) -> None:
    """Add tags to those that a session's transaction has changed.

    :param what: the function that was called, for messages.
    """
    observer = scope.observer
    connection = session.connection()  # begins a transaction, if there is none
    if not observer.observes(connection, scope.schema):
        raise OrmCacheError(
            f'{what}: {session!r} does not use an engine that is observed, so its commit would '
            'evict nothing'
        )
    if scope.on_replica:
        raise OrmCacheError(
            f'{what}: {scope.schema} is read from a replica, where no transaction changes '
            'anything; mark the change in a transaction of the primary'
        )
    # a quarantine awaits only transactions that have an id
    observer.database.assign_id(connection)
    for path in scope.transactions:
        if path.works_on((connection,)):
            path.marked(tags)
        else:
            path.changed(tags)


def _names(each: TableName) -> tuple[str, ...]:
    is_mapped = isinstance(each, type) and isinstance(inspect(each, raiseerr=False), Mapper)
    if isinstance(each, (str, Table)) or is_mapped:
        return tuple(tables_meant(each))
    raise UnknownTableError(
        f'mark_changed: {each!r} is no name of a table, mapped class or Table'
    )
