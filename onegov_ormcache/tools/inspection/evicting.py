"""Evicts values by hand, at once and outside of any transaction.

The tags get new versions in one step, as those that lie in an outbox do. No transaction can roll
that back, and no database is asked. This module prints nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...core.properties import Property
from ...tags.snapshot import CODE_TAG, TABLE_TAG
from .sites import Site, chosen


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
    if site.cache is not None:
        site.cache.versions.tell(tenant, (CODE_TAG,))


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
        if cache is not None:
            cache.versions.tell(place, changed)
    return tags
