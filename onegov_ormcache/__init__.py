"""Orm-cached properties for Morepath applications that are never stale."""

from .app import OrmCacheApp
from .database.session_manager import SessionManager
from .descriptors import OrmCacheDescriptor, orm_cached, request_cached
from .errors import OrmCacheError, RetryableConflict
from .middleware import OrmCacheMiddleware
from .tween import transaction_tween_factory

__all__ = [
    'OrmCacheApp',
    'OrmCacheDescriptor',
    'OrmCacheError',
    'OrmCacheMiddleware',
    'RetryableConflict',
    'SessionManager',
    'orm_cached',
    'request_cached',
    'transaction_tween_factory',
]
