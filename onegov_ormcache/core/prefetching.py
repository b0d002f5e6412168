"""Prefetching: fetches several values of the shared tier in one round trip.

This module computes no values, and does not know how they are stored.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from ..errors import PropertyError, StoreUnreachable
from .descriptors import OrmCacheDescriptor, scope_of
from .reading import Lookup
from .scope import RequestScope


def prefetch(instances: Iterable[Any], names: Iterable[str]) -> None:
    """Fetch values of properties from the shared tier in one round trip.

    Values that the request tier or the process tier has are not fetched again. Values that
    the shared tier lacks are not computed.

    :param instances: objects of one cache; a property is that of the first one that has it.
    :param names: the names of orm-cached properties.
    :raises PropertyError: if none of the objects has such a property.
    :raises OutsideScopeError: outside of a request scope.
    """
    instances, names = tuple(instances), tuple(names)
    if not names:
        return
    scope = scope_of(instances[0])
    scope.check_open()
    scope.flush()
    lookups = [_lookup(scope, instances, name) for name in names]
    missing = {
        lookup.key: lookup
        for lookup in lookups
        if lookup.key not in scope.tier and lookup.is_missing()
    }
    if not missing:
        return
    try:
        found = scope.cache.shared_tier.get_many(scope.schema, list(missing))
    except StoreUnreachable:
        scope.store_lost()
        return
    for key, stored in found.items():
        entry = missing[key].take(stored)
        if entry is not None:
            scope.keep(key, entry)


def _lookup(scope: RequestScope, instances: tuple[Any, ...], name: str) -> Lookup:
    for instance in instances:
        found = scope.cache.find(instance, name)
        if isinstance(found, OrmCacheDescriptor):
            declared, owner = scope.cache.resolve(found, instance)
            prop = scope.cache.registry.property_of(declared, owner)
            variant = cast('OrmCacheDescriptor[Any]', declared).variant(instance)
            return Lookup(scope, prop, prop.key + scope.cache.context_key(instance) + variant)
    where = ' nor '.join(type(instance).__qualname__ for instance in instances)
    raise PropertyError(f'prefetch: {where} has no orm-cached property {name!r}')
