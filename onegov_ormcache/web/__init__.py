"""The layer for Morepath and WSGI. Beside it, only the demo imports Morepath or WebOb."""

from .app import OrmCacheApp
from .middleware import OrmCacheMiddleware
from .tween import transaction_tween_factory

__all__ = ['OrmCacheApp', 'OrmCacheMiddleware', 'transaction_tween_factory']
