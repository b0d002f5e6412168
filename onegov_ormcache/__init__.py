"""A cache of SQLAlchemy results that is never stale, for Morepath and for other programs."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .core.cache import OrmCache
from .core.decorators import orm_cached, request_cached
from .core.descriptors import OrmCacheDescriptor
from .core.functions import BoundFunction, OrmCacheFunction
from .core.rows import rows
from .database.hosts import observe
from .database.session_manager import SessionManager
from .errors import MissingExtraError, OrmCacheError, RetryableConflict

if TYPE_CHECKING:
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


def __dir__() -> list[str]:
    return sorted({*globals(), *(__all__ if find_spec('morepath') else ())})


def __getattr__(name: str) -> Any:
    # names that need Morepath are imported at their first use: the core works without it
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    try:
        from . import web
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f'{name} needs {error.name}: python -m pip install "onegov_ormcache[morepath]"'
        ) from error
    found = globals()[name] = getattr(web, name)
    return found
