"""What can go wrong, by name.

Every error that the package raises on purpose derives from
:class:`OrmCacheError`; each says what is wrong, where, and what to do.
"""

from __future__ import annotations


class OrmCacheError(Exception):
    """Base class of all errors of the package."""


class ConfigurationError(OrmCacheError):
    """A setting is missing, unknown or has a value it can't have."""


class PropertyError(OrmCacheError):
    """A cached property is declared wrongly; the message names file and line."""


class PolicyError(PropertyError):
    """A policy is of no known kind, or names no table of the application."""


class PropertyConflictError(PropertyError):
    """Two properties of one name, or one named like an existing attribute."""


class TriggerError(OrmCacheError):
    """The triggers for changes from outside can't be looked at, installed or removed."""


class OutsideScopeError(OrmCacheError):
    """A property, a session or a connection is used outside of a request scope."""


class InvalidSchemaError(OrmCacheError, ValueError):
    """A schema's name is empty, reserved, too long or hostile."""


class UnknownSchemaError(OrmCacheError, LookupError):
    """The database has no schema of this name, and none was to be created."""


class MissingExtraError(OrmCacheError, ImportError):
    """A public name needs a package that is not installed; the message says which extra."""


class DatabaseUnreachable(OrmCacheError):
    """The database of the setting ``dsn`` can't be reached or doesn't let us in."""


class StoreUnreachable(OrmCacheError):
    """The tag store (Redis, the setting ``redis_url``) can't be reached."""


class SecondProcessError(OrmCacheError):
    """Another process uses the embedded default, whose versions live in one process."""


class AutocommitError(OrmCacheError):
    """A connection in AUTOCOMMIT: neither doubt nor search path would hold there."""


class TextualControlError(OrmCacheError):
    """A transaction was begun or ended by the text of a statement: neither SQLAlchemy nor
    the cache would know of it."""


class ValueNotCacheable(OrmCacheError, TypeError):
    """A value is of a kind that can't be cached; the message names the place in it."""


class UndecodableValue(OrmCacheError):
    """Stored bytes that are no value of this release; callers treat them as a miss."""


class CircularPropertyError(OrmCacheError):
    """A property reads itself, directly or through others."""


class VariantError(OrmCacheError):
    """A property that is the same for all roles reads one that is not."""


class AuditError(OrmCacheError):
    """A creator read a table that its policy does not mention (setting ``audit='error'``)."""


class RetryableConflict(OrmCacheError):
    """Base class of conflicts that a new attempt of the transaction resolves."""


class SnapshotConflict(RetryableConflict):
    """A tag of a value that this transaction has read changed before it could hold.

    The tween retries the request; elsewhere, roll back and run the transaction again.
    """
