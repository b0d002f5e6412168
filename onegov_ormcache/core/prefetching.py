"""Prefetching: fetches several values of the shared tier in one round trip.

This module computes no values, and does not know how they are stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

from ..errors import PropertyError, StoreUnreachable
from .arguments import NO_ARGUMENTS, listed
from .descriptors import OrmCacheDescriptor, scope_of
from .lookup import Lookup
from .scope import RequestScope


def prefetch(
    instances: Iterable[Any], names: Iterable[str], items: Iterable[Any] | None = None
) -> None:
    """Fetch values of properties from the shared tier in one round trip.

    Values that the request tier or the process tier has are not fetched again. Values that
    the shared tier lacks are not computed.

    :param instances: objects of one cache; a property is that of the first one that has it.
    :param names: the names of orm-cached properties.
    :param items: the arguments of the values, if the properties take arguments: see
        :meth:`.BoundFunction.many`.
    :raises PropertyError: if none of the objects has such a property, or if one takes arguments
        and there are no items, or the reverse.
    :raises ArgumentError: if an item does not fit a property.
    :raises OutsideScopeError: outside of a request scope.
    """
    instances, names = tuple(instances), tuple(names)
    if not names:
        return
    # first: an iterator may read the database, and change it
    items = None if items is None else tuple(listed(items, f'prefetch of {", ".join(names)}'))
    scope = scope_of(instances[0])
    scope.check_open()
    scope.flush()
    lookups = [each for name in names for each in _lookups(scope, instances, name, items)]
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
            scope.keep(missing[key].call, entry)


def _lookups(
    scope: RequestScope, instances: tuple[Any, ...], name: str, items: tuple[Any, ...] | None
) -> Iterator[Lookup]:
    for instance in instances:
        found = scope.cache.find(instance, name)
        if isinstance(found, OrmCacheDescriptor):
            declared, owner = scope.cache.resolve(found, instance)
            prop = scope.cache.registry.property_of(declared, owner)
            descriptor = cast('OrmCacheDescriptor[Any]', declared)
            parameters = descriptor.parameters
            if bool(parameters) != (items is not None):
                raise PropertyError(
                    f'prefetch: {descriptor.where} takes {parameters}; '
                    + ('name the arguments: prefetch(name, args=[...])' if parameters else
                       'it has one value, and needs no args')
                )  # fmt: skip
            for each in (NO_ARGUMENTS,) if items is None else map(parameters.of_item, items):
                yield Lookup(scope, descriptor.call(scope, prop, instance, each))
            return
    where = ' nor '.join(type(instance).__qualname__ for instance in instances)
    raise PropertyError(f'prefetch: {where} has no orm-cached property {name!r}')
