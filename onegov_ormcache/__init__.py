"""Orm-cached properties for Morepath applications that are never stale."""

from .core.descriptors import OrmCacheDescriptor, orm_cached, request_cached
from .database.session_manager import SessionManager
from .errors import OrmCacheError, RetryableConflict
from .web.app import OrmCacheApp
from .web.middleware import OrmCacheMiddleware
from .web.tween import transaction_tween_factory

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
