"""Fetches several values that the process does not have in one round trip."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import morepath

from ..errors import PropertyError, StoreUnreachable
from .descriptors import OrmCacheDescriptor, declared_for, scope_of
from .reading import Reading


def prefetch(instances: Iterable[Any], names: Iterable[str]) -> None:
    """Fetch what the shared tier has of these properties, and this request and process do
    not; nothing is computed.

    :param instances: an app, or a request and its app: where the names are looked for.
    :param names: names of orm-cached properties.
    :raises PropertyError: if there is no such property.
    :raises OutsideScopeError: outside of a request scope.
    """
    readings = [_reading(tuple(instances), name) for name in names]
    missing = {reading.key: reading for reading in readings if reading.is_missing()}
    if not missing:
        return
    scope = next(iter(missing.values())).scope
    try:
        found = scope.runtime.shared_tier.get_many(scope.schema, list(missing))
    except StoreUnreachable:
        scope.store_lost()
        return
    for key, stored in found.items():
        reading = missing[key]
        entry = reading.taken(stored)
        if entry is not None:
            scope.keep(key, entry)


def prefetching(view: Callable[..., Any], names: tuple[str, ...]) -> Callable[..., Any]:
    """The view, with the properties that it names fetched before it runs."""

    @wraps(view)
    def prefetched(model: Any, request: Any, *arguments: Any) -> Any:
        prefetch((request, request.app), names)
        return view(model, request, *arguments)

    return prefetched


def _reading(instances: tuple[Any, ...], name: str) -> Reading:
    for instance in instances:
        descriptor = getattr(type(instance), name, None)
        if descriptor is None and not isinstance(instance, morepath.App):
            # a request is made by the root app's request class, also for a mounted app
            classes = (app.request_class for app in instance.app.ancestors())
            descriptor = next((d for c in classes if (d := getattr(c, name, None))), None)
        if isinstance(descriptor, OrmCacheDescriptor):
            scope = scope_of(instance, descriptor)
            scope.flush()
            declared, owner = declared_for(descriptor, instance)
            prop = scope.runtime.property(declared, owner)
            return Reading(scope, instance, prop, prop.key + declared.variant(instance))
    where = ' nor '.join(type(instance).__qualname__ for instance in instances)
    raise PropertyError(f'prefetch: {where} has no orm-cached property {name!r}')
