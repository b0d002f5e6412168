"""Evicts values by hand, at once and outside of any transaction.

The tags get new versions in one step, as those that lie in an outbox do. No transaction can roll
that back, and no database is asked. This module prints nothing.
"""

from __future__ import annotations

import ast
import datetime
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from itertools import zip_longest
from types import MappingProxyType
from typing import Any, get_type_hints

from ...core.properties import Property
from ...errors import ArgumentError, StoreUnreachable
from ...tags.snapshot import CODE_TAG, TABLE_TAG
from .sites import Site, chosen

#: By type: the function that reads an argument of this type from a text.
READERS: Mapping[type, Callable[[str], Any]] = MappingProxyType({
    int: int, float: float, Decimal: Decimal, uuid.UUID: uuid.UUID,
    datetime.date: datetime.date.fromisoformat,
    datetime.datetime: datetime.datetime.fromisoformat,
})  # fmt: skip


def evict_property(
    site: Site, tenant: str, prop: Property, args: Sequence[Any] | None = None
) -> frozenset[str]:
    """Evict the values of a property, for all variants and releases.

    :param args: the arguments of one value, for a property that takes arguments; None: all its
        values. Values with other arguments may be evicted with it: one in 256.
    :return: the tags that have new versions.
    :raises ArgumentError: if the arguments do not fit.
    :raises StoreUnreachable: if Redis can't be reached.
    """
    arguments = None if args is None else prop.declaration.parameters.bind(args, {})
    return _evict(site, tenant, prop.value_tags(arguments))


def evict_table(site: Site, tenant: str, table: str) -> frozenset[str]:
    """Evict all values that depend on a table, as if it had changed unseen.

    With an application, also those that depend on tables which the database changes with it, by
    foreign keys. Without one, all values of policies that are functions or name rows.

    :return: the tags that have new versions, those of functions and rows left out.
    :raises NothingThere: if the application has no such table.
    :raises StoreUnreachable: if Redis can't be reached.
    """
    if site.cache is None:
        return _evict(site, tenant, frozenset((TABLE_TAG + table,)), frozenset())
    observer, registry = site.cache.observer, site.cache.registry
    chosen(table, sorted(observer.tables), 'table', 'the application has no tables')
    reached = {table, *observer.reached_from(table)}
    tags = frozenset(TABLE_TAG + name for name in reached)
    by_rows = {policy.tag for policy in registry.rows.of_tables(reached)}
    # no object tells a function whether it is concerned
    known = registry.known_tags - registry.function_tags - by_rows
    return _evict(site, tenant, tags, known)


def evict_tenant(site: Site, tenant: str) -> None:
    """Evict all values of a tenant: it gets a new birth.

    :raises StoreUnreachable: if Redis can't be reached.
    """
    site.tags.renew(tenant)
    _tell(site, tenant, (CODE_TAG,))


def _evict(
    site: Site, tenant: str, tags: frozenset[str], known: frozenset[str] | None = None
) -> frozenset[str]:
    """Give a tenant's tags new versions.

    :param known: the tags of properties that are not concerned; None: no others are.
    """
    cache = site.cache
    places = {tenant: list(tags)} if cache is None else cache.by_place(tenant, tags)
    for place, changed in places.items():
        site.tags.evict(place, changed, known)
        _tell(site, place, changed)
    return tags


def _tell(site: Site, place: str, tags: Collection[str]) -> None:
    """Tell whoever keeps values elsewhere, and count it as a change that is no commit."""
    if site.cache is not None:
        site.cache.versions.tell(place, tags)  # counts it, too
    else:
        site.statistics.told(place, tags)
    with suppress(StoreUnreachable):
        site.statistics.flush()


def arguments_of(prop: Property, texts: Sequence[str]) -> tuple[Any, ...]:
    """Return the arguments that texts stand for, by the types of the creator's parameters.

    A parameter without a type, or with another one than numbers, texts, dates and UUIDs, gets what
    Python takes the text for (``3``, ``'a'``, ``None``, ``(1, 2)``); the text itself if that is
    nothing.

    :raises ArgumentError: if a text is none of its parameter's type.
    """
    try:
        types = get_type_hints(prop.declaration.creator)
    except (NameError, TypeError):
        types = {}  # some names are known to type checkers alone
    pairs = zip_longest(texts, prop.declaration.parameters.names[: len(texts)], fillvalue='')
    return tuple(_argument(text, types.get(name), name) for text, name in pairs)


def _argument(text: str, kind: Any, name: str) -> Any:
    """Return the argument that a text stands for."""
    if kind is str:
        return text
    read = READERS.get(kind) if isinstance(kind, type) else None
    try:
        return ast.literal_eval(text) if read is None else read(text)
    except (ValueError, SyntaxError, ArithmeticError, MemoryError, RecursionError):
        if read is None:
            return text
    raise ArgumentError(f'{text!r} is no {kind.__qualname__}, which the argument {name} is')
