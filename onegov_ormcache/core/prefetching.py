"""Fetches several values that the process does not have in one round trip."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from ..errors import PropertyError, StoreUnreachable
from .descriptors import OrmCacheDescriptor, scope_of
from .reading import Lookup
from .scope import RequestScope


def prefetch(instances: Iterable[Any], names: Iterable[str]) -> None:
    """Fetch what the shared tier has of these properties, and this request and process do
    not; nothing is computed.

    :param instances: the objects on which the names are looked for, all of one cache.
    :param names: names of orm-cached properties.
    :raises PropertyError: if there is no such property.
    :raises OutsideScopeError: outside of a request scope.
    """
    instances = tuple(instances)
    scope = scope_of(instances[0])
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
        entry = missing[key].taken(stored)
        if entry is not None:
            scope.keep(key, entry)


def _lookup(scope: RequestScope, instances: tuple[Any, ...], name: str) -> Lookup:
    for instance in instances:
        found = scope.cache.find(instance, name)
        if isinstance(found, OrmCacheDescriptor):
            declared, owner = scope.cache.resolve(found, instance)
            prop = scope.cache.property_of(declared, owner)
            variant = cast('OrmCacheDescriptor[Any]', declared).variant(instance)
            return Lookup(scope, prop, prop.key + variant)
    where = ' nor '.join(type(instance).__qualname__ for instance in instances)
    raise PropertyError(f'prefetch: {where} has no orm-cached property {name!r}')
