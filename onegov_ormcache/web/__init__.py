"""The layer for Morepath and WSGI. Beside it, only the demo imports Morepath or WebOb."""

from .answering import response_tween_factory
from .app import OrmCacheApp
from .cached_views import cached
from .middleware import OrmCacheMiddleware
from .request import OrmCacheRequest
from .tween import transaction_tween_factory

__all__ = [
    'OrmCacheApp',
    'OrmCacheMiddleware',
    'OrmCacheRequest',
    'cached',
    'response_tween_factory',
    'transaction_tween_factory',
]
