"""The errors of the package.

Every error that the package raises on purpose derives from :class:`OrmCacheError`. Each
message says what is wrong, where, and what to do.
"""

from __future__ import annotations


class OrmCacheError(Exception):
    """Base class of all errors of the package."""


class ConfigurationError(OrmCacheError):
    """A setting is missing or unknown, or its value is not allowed."""


class PropertyError(OrmCacheError):
    """A cached property is declared wrongly; the message names file and line.

    Also raised for an assignment to a property, for a property that an object does not have,
    when it is prefetched, and for an object with cached properties that does not say which cache
    they belong to.
    """


class PolicyError(PropertyError):
    """A policy is of no known kind, or names a table that the application does not have."""


class PropertyConflictError(PropertyError):
    """Two properties have the same name, or a property has the name of another attribute."""


class TriggerError(OrmCacheError):
    """The triggers for changes from outside can't be inspected, installed or removed."""


class OutsideScopeError(OrmCacheError):
    """A property, a session or a connection is used outside of a request scope."""


class ScopeClosedError(OutsideScopeError):
    """A request scope, or a session or connection of it, is used after the scope was closed."""


class RunSessionError(OrmCacheError):
    """A creator uses its session in a way that would change the connection of its request."""


class InvalidSchemaError(OrmCacheError, ValueError):
    """A tenant can't have this name: it is empty, reserved, too long or malformed."""


class UnknownSchemaError(OrmCacheError, LookupError):
    """The database has no schema of this name, and the caller does not let it be created."""


class UnknownTableError(OrmCacheError, LookupError):
    """A change of a table is reported that the application does not have."""


class UnknownTagError(OrmCacheError, LookupError):
    """Values are evicted by something that is no tag, or by the tag of a table that the
    application does not have."""


class CacheClosedError(OrmCacheError):
    """A cache is used after it was closed, when others may change the database unnoticed."""


class MissingExtraError(OrmCacheError, ImportError):
    """A public name needs a package that is not installed; the message names the extra."""


class DatabaseUnreachable(OrmCacheError):
    """The database of the setting ``dsn`` can't be reached, or is of no supported kind."""

    #: True if it may be reachable later.
    is_temporary = False


class StoreUnreachable(OrmCacheError):
    """Redis (the setting ``redis_url``), with tag store and shared tier, can't be reached, and a
    commit that needs it is refused."""


class StoreFull(StoreUnreachable):
    """Redis stores nothing more, because its memory is full."""


class SecondProcessError(OrmCacheError):
    """A second process uses the embedded default, which keeps versions in one process."""


class InheritedTransactionError(OrmCacheError):
    """A child that was forked within a transaction uses the connection of its parent, on which two
    processes would read each other's answers."""


class AutocommitError(OrmCacheError):
    """A connection is in AUTOCOMMIT mode: without a transaction, neither a doubt nor the
    tenant's search path would last."""


class TextualControlError(OrmCacheError):
    """The text of a statement begins or ends a transaction, and neither SQLAlchemy nor the
    cache would know of it."""


class AttachError(OrmCacheError):
    """A statement attaches another database file to a tenant's connection of SQLite."""


class ValueNotCacheable(OrmCacheError, TypeError):
    """A value, or a part of it, can't be cached; the message names the part."""


class RowKeyError(OrmCacheError, KeyError):
    """A cached row has no value for a column, alias, label or class that is used as a key; the
    message has the names that it has."""

    # the text of a KeyError is the repr of its message
    __str__ = Exception.__str__


class UndecodableValue(OrmCacheError):
    """This release of the package can't decode stored bytes; callers treat them as a miss."""


class CircularPropertyError(OrmCacheError):
    """A property reads itself, directly or through other properties."""


class VariantError(OrmCacheError):
    """A property reads another one that varies by more, by role or ``vary``, than it does.

    Also raised if a ``vary`` function returns a value that can't be part of a key, or an app is
    mounted with one.
    """


class ArgumentError(OrmCacheError, TypeError):
    """A property that takes arguments is called with others than its creator has, or with one that
    can't be part of a key."""


class AuditError(OrmCacheError):
    """A creator read a table that its policy does not mention, or something of a request that its
    value does not vary by (setting ``audit='error'``)."""


class RetryableConflict(OrmCacheError):
    """Base class of conflicts that a new attempt of the transaction can resolve."""


class SnapshotConflict(RetryableConflict):
    """A value that this transaction has read may be out of date: another transaction has
    changed one of its tags, or is about to commit such a change.

    Raised when a transaction begins under REPEATABLE READ or SERIALIZABLE after a cached
    value was read, before COMMIT under SERIALIZABLE, and in a request under READ COMMITTED when
    two of its values belong to different moments. The tween retries the request; elsewhere,
    roll back and run the transaction again.

    :param tag: the tag that has changed or is about to change, if there is one that tells.
    """

    def __init__(self, message: str = '', tag: str | None = None) -> None:
        super().__init__(message)
        self.tag = tag
