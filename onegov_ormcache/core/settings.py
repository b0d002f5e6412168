"""The settings of a cache, with their defaults and their allowed values.

They are read once, when the cache is made or the application is committed, so that a wrong
one is an error then and not at the first request. This module does not know what they are
used for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self, TypeAlias, TypedDict

from ..errors import ConfigurationError
from .object_paths import objects_named, options_named

#: A setting's name, its test, and the expected value in words, for messages.
Rule: TypeAlias = tuple[str, Callable[[Any], bool], str]

#: The name of the section in which an application has the settings.
SECTION = 'orm_cache'

#: The values of ``on_outage``, for the time when the tag store can't be reached. Reads are
#: answered from the database.
#:
#: ``outbox`` leaves what a transaction has changed in a table of the tenant's schema, as a part of
#: the transaction. A process that reaches the store delivers it within a second; until then, it
#: may read stale values. PostgreSQL only.
#: ``refuse`` refuses commits that change tables, so that nothing is ever stale.
#: ``continue`` commits all the same. Other processes may read stale values until the process that
#: has committed reaches the store again, and gives the tenant a new birth; for ever, if it ends
#: before.
#: ``expire`` is ``continue``, and no value lives for longer than ``lease``.
OUTAGE_POLICIES = ('outbox', 'refuse', 'continue', 'expire')

#: The values of ``audit``, for tables that a creator reads and its policy does not mention, and
#: for what it reads of a request and its value does not vary by: nothing is done, a warning is
#: logged once for each property and what it read, or an error is raised.
AUDITS = ('off', 'warn', 'error')


@dataclass(frozen=True)
class OrmCacheSettings:
    """The validated settings of one cache. Those that may have a password are not in its repr."""

    #: SQLAlchemy URL; ``sqlite:///FOLDER`` keeps a database file per schema in FOLDER.
    dsn: str = field(default='sqlite:///tenants', repr=False)
    #: A declarative base (or MetaData), or several; their tables are created per schema.
    base: Any = None
    #: Redis URL of the shared tier and tag store; None keeps both in this process's memory.
    redis_url: str | None = field(default=None, repr=False)
    #: Separates applications that share a Redis.
    namespace: str = 'ormcache'
    #: Seconds after which a value is computed anew, even if nothing has changed; None: never.
    expiration_time: float | None = None
    #: Seconds for which the shared tier keeps a value that has no lifetime of its own, so that
    #: values which nobody reads any longer go; None: as long as Redis keeps them. Values of
    #: ``app.cache`` are computed anew after it.
    shared_lifetime: float | None = 7 * 24 * 3600
    #: Bytes that the process tier may hold, over all tenants.
    process_cache_size: int = 64 * 1024 * 1024
    #: The most bytes that one value may have; a larger one is not stored. Reading it would keep a
    #: process busy for longer than it takes to compute most values.
    max_value_size: int = 16 * 1024 * 1024
    #: Part of every value's key: two releases never read each other's values.
    release: str = ''
    #: One of :data:`OUTAGE_POLICIES`; None: ``outbox`` on PostgreSQL, else ``expire``.
    on_outage: str | None = None
    #: Seconds to wait for an answer of Redis.
    redis_timeout: float = 0.5
    #: Seconds after which nobody waits any longer for another caller's run of a creator: the
    #: lock passes on.
    lock_timeout: float = 10.0
    #: Seconds after which a writer counts as dead if the database can't be asked about its
    #: transaction (SQLite).
    lease: float = 60.0
    #: Refuse the commit of a SERIALIZABLE transaction if another one has changed what it has
    #: read through the cache (promise P5 of the documentation).
    check_write_skew: bool = True
    #: One of :data:`AUDITS`: the reaction to a creator that reads a table which its policy
    #: does not mention, or something of a request which its value does not vary by.
    audit: str = 'warn'
    #: The share of the hits, from 0 to 1, that are recomputed from the database to compare them.
    check_hits: float = 0.0
    #: Connect to Redis and the database before the first scope, and not when the cache is made.
    lazy: bool = False
    #: Refuse to start while Redis or the database can't be reached. Otherwise that is one line in
    #: the log. Settings that are wrong are an error at the start in any case.
    require_servers: bool = False
    #: Seconds between two times that a process adds what it has counted to the numbers of all
    #: processes, on Redis; None: never, and nobody sees them.
    statistics_interval: float | None = 10.0
    #: Listen for changes from outside, which triggers report; PostgreSQL with psycopg only.
    listen: bool = False
    #: SQLAlchemy URL for listening, if ``dsn`` goes through a connection pooler; else None.
    listen_dsn: str | None = field(default=None, repr=False)
    #: The NamedTuple, dataclass and Enum classes that values may contain.
    types: Iterable[type] = ()
    #: Keyword arguments of ``sqlalchemy.create_engine``.
    engine_options: Mapping[str, Any] | None = field(default=None, repr=False)

    def on(self, address: str, *, has_outbox: bool) -> Self:
        """Return the settings for a cache on this database, with :attr:`on_outage` decided.

        :raises ConfigurationError: if it is ``outbox``, and the database has none.
        """
        decided = self.on_outage or ('outbox' if has_outbox else 'expire')
        if decided == 'outbox' and not has_outbox:
            raise ConfigurationError(
                f"setting {SECTION}.on_outage is 'outbox', and {address!r} has no outbox, which "
                "needs PostgreSQL; choose 'refuse', 'continue' or 'expire'"
            )
        return replace(self, on_outage=decided)

    @property
    def lifetime(self) -> float | None:
        """Seconds that a value lives at most; None: as long as nothing has changed."""
        bounds = [self.expiration_time]
        if self.on_outage == 'expire' and self.redis_url is not None:
            bounds.append(self.lease)
        return min((bound for bound in bounds if bound is not None), default=None)

    @classmethod
    def rules(cls) -> tuple[Rule, ...]:
        """Return the rule of each setting that has one."""
        return RULES

    @classmethod
    def by_path(cls) -> tuple[str, ...]:
        """Return the names of the settings that are objects. A text names one:
        ``'town.models:Base'``."""
        return BY_PATH

    @classmethod
    def read(cls, section: Mapping[str, Any], where: str) -> Self:
        """Validate a settings section.

        :param section: the settings that were given, by name.
        :param where: the application or cache that they were given for, for messages.
        :return: all settings, with the defaults of those that were not given.
        :raises ConfigurationError: for an unknown name, a wrong value, or a path to no object.
        """
        known = {each.name for each in fields(cls)}
        secret = {each.name for each in fields(cls) if not each.repr}
        if unknown := sorted(set(section) - known):
            raise ConfigurationError(
                f'{where}: unknown setting {unknown[0]!r} in the section {SECTION!r}; '
                f'known are {", ".join(sorted(known))}'
            )
        given = {name: _as_written(name, value) for name, value in section.items()}
        for name in given.keys() & {*cls.by_path(), 'engine_options'}:
            find = options_named if name == 'engine_options' else objects_named
            given[name] = find(given[name], f'{where}: setting {SECTION}.{name}')
        settings = cls(**given)
        for name, is_valid, expected in cls.rules():
            value = getattr(settings, name)
            if not is_valid(value):
                kind = type(value).__name__
                told = f'of the type {kind}, and not shown' if name in secret else repr(value)
                raise ConfigurationError(
                    f'{where}: setting {SECTION}.{name} is {told}; expected {expected}'
                )
        return settings


class SettingsValues(TypedDict, total=False):
    """The settings as keyword arguments; see :class:`OrmCacheSettings`."""

    dsn: str
    base: Any
    redis_url: str | None
    namespace: str
    expiration_time: float | None
    shared_lifetime: float | None
    process_cache_size: int
    max_value_size: int
    release: str
    on_outage: str | None
    redis_timeout: float
    lock_timeout: float
    lease: float
    check_write_skew: bool
    audit: str
    check_hits: float
    lazy: bool
    require_servers: bool
    statistics_interval: float | None
    listen: bool
    listen_dsn: str | None
    types: Iterable[type | str]
    engine_options: Mapping[str, Any] | None


def _as_written(name: str, value: Any) -> Any:
    """Return a setting's value as the settings file has it: YAML reads an unquoted ``off`` as
    False."""
    return 'off' if name == 'audit' and value is False else value


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def _is_share(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def is_whole(value: Any) -> bool:
    """Return whether a value is an ``int`` and no ``bool``."""
    return isinstance(value, int) and not isinstance(value, bool)


def _are_classes(value: Any) -> bool:
    try:
        return all(isinstance(item, type) for item in value)
    except TypeError:
        return False


BY_PATH = ('base', 'types')

RULES: tuple[Rule, ...] = (
    ('dsn', lambda v: isinstance(v, str) and '://' in v, 'an SQLAlchemy URL, as a string'),
    (
        'redis_url',
        lambda v: v is None or (isinstance(v, str) and '://' in v),
        'a URL, as a string, or None',
    ),
    (
        'namespace',
        lambda v: isinstance(v, str) and re.fullmatch(r'[A-Za-z0-9_.-]{1,100}', v) is not None,
        'up to 100 letters, digits, "_", "-" or "."',
    ),
    ('expiration_time', lambda v: v is None or _is_positive(v), 'seconds above 0, or None'),
    ('shared_lifetime', lambda v: v is None or _is_positive(v), 'seconds above 0, or None'),
    ('process_cache_size', lambda v: is_whole(v) and v >= 0, 'a number of bytes'),
    ('max_value_size', lambda v: is_whole(v) and v >= 1, 'a number of bytes above 0'),
    ('release', lambda v: isinstance(v, str), 'a string'),
    (
        'on_outage',
        lambda v: v is None or v in OUTAGE_POLICIES,
        f'one of {", ".join(OUTAGE_POLICIES)}, or None',
    ),
    ('redis_timeout', _is_positive, 'seconds above 0'),
    ('lock_timeout', _is_positive, 'seconds above 0'),
    ('lease', _is_positive, 'seconds above 0'),
    ('check_write_skew', lambda v: isinstance(v, bool), 'True or False'),
    ('audit', lambda v: v in AUDITS, f'one of {", ".join(AUDITS)}'),
    ('check_hits', _is_share, 'a number from 0 to 1'),
    ('lazy', lambda v: isinstance(v, bool), 'True or False'),
    ('require_servers', lambda v: isinstance(v, bool), 'True or False'),
    (
        'statistics_interval',
        lambda v: v is None or _is_positive(v),
        'seconds above 0, or None',
    ),
    ('listen', lambda v: isinstance(v, bool), 'True or False'),
    (
        'listen_dsn',
        lambda v: v is None or (isinstance(v, str) and '://' in v),
        'an SQLAlchemy URL, as a string, or None',
    ),
    ('types', _are_classes, 'a sequence of classes'),
    ('engine_options', lambda v: v is None or isinstance(v, Mapping), 'a dictionary or None'),
)
