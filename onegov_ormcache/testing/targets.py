"""Finds the cache that a test means, by whatever the test has at hand.

This module imports no web framework: an app is known by its method ``ensure_orm_cache``.
"""

from __future__ import annotations

from typing import Any

from ..core.cache import OrmCache
from ..core.descriptors import ATTRIBUTE
from ..core.scope import RequestScope, innermost_scope
from ..errors import ConfigurationError, OutsideScopeError


def cache_of(target: Any, what: str) -> OrmCache:
    """Return the cache of a target; set its app up first, if it is not set up.

    :param target: a cache, an app, a request, or an object with cached properties.
    :param what: the function that was called, for messages.
    :raises ConfigurationError: if it is none of these.
    """
    if isinstance(target, OrmCache):
        return target
    for each in (target, getattr(target, 'app', None)):
        ensure = getattr(each, 'ensure_orm_cache', None)
        if callable(ensure) and not isinstance(each, type):
            of_app: OrmCache = ensure()
            return of_app
    found = getattr(target, ATTRIBUTE, None)
    if isinstance(found, OrmCache):
        return found
    raise ConfigurationError(
        f'{what}: expected an app, a request, an OrmCache, or an object whose attribute '
        f'{ATTRIBUTE!r} is one, and not {target!r:.200}'
    )


def open_scope_of(cache: OrmCache) -> RequestScope | None:
    """Return the scope of a cache that is open in this thread; None if there is none."""
    return innermost_scope(cache) if cache.ambient is None else cache.ambient.present()


def schema_of(cache: OrmCache, schema: str | None, what: str) -> str:
    """Return the tenant that a test means: the one that it names, or that of the open scope.

    :raises OutsideScopeError: if it names none, and no scope is open.
    """
    if schema is not None:
        return schema
    scope = open_scope_of(cache)
    if scope is None:
        raise OutsideScopeError(
            f"{what}: no scope is open, so name the tenant: {what}(..., schema='main')"
        )
    return scope.schema
