"""A cache of SQLAlchemy results that is never stale, for Morepath and for other programs."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .core.cache import OrmCache
    from .core.decorators import orm_cached, request_cached
    from .core.descriptors import OrmCacheDescriptor
    from .core.functions import BoundFunction, OrmCacheFunction
    from .core.rows import rows
    from .database.hosts import observe
    from .database.session_manager import SessionManager
    from .errors import OrmCacheError, RetryableConflict
    from .web import (
        OrmCacheApp,
        OrmCacheMiddleware,
        OrmCacheRequest,
        cached,
        response_tween_factory,
        transaction_tween_factory,
    )

__all__ = [
    'BoundFunction',
    'OrmCache',
    'OrmCacheApp',
    'OrmCacheDescriptor',
    'OrmCacheError',
    'OrmCacheFunction',
    'OrmCacheMiddleware',
    'OrmCacheRequest',
    'RetryableConflict',
    'SessionManager',
    'cached',
    'observe',
    'orm_cached',
    'request_cached',
    'response_tween_factory',
    'rows',
    'transaction_tween_factory',
]


#: The modules of the public names; those that are not here are of ``web``, which needs Morepath.
#: A name is imported at its first use, so that pytest can load the package's plugin for nothing.
_MODULES = {
    'BoundFunction': '.core.functions',
    'OrmCache': '.core.cache',
    'OrmCacheDescriptor': '.core.descriptors',
    'OrmCacheError': '.errors',
    'OrmCacheFunction': '.core.functions',
    'RetryableConflict': '.errors',
    'SessionManager': '.database.session_manager',
    'observe': '.database.hosts',
    'orm_cached': '.core.decorators',
    'request_cached': '.core.decorators',
    'rows': '.core.rows',
}


def __dir__() -> list[str]:
    return sorted({*globals(), *(__all__ if find_spec('morepath') else _MODULES)})


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        found = globals()[name] = getattr(import_module(_MODULES[name], __name__), name)
        return found
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    try:
        from . import web
    except ModuleNotFoundError as error:
        from .errors import MissingExtraError

        raise MissingExtraError(
            f'{name} needs {error.name}: python -m pip install "onegov_ormcache[morepath]"'
        ) from error
    found = globals()[name] = getattr(web, name)
    return found
