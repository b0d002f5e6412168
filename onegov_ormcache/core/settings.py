"""The settings of a cache, with their defaults and their allowed values.

They are read once, when the cache is made or the application is committed, so that a wrong
one is an error then and not at the first request. This module does not know what they are
used for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self, TypeAlias, TypedDict

from ..errors import ConfigurationError

#: A setting's name, its test, and the expected value in words, for messages.
Rule: TypeAlias = tuple[str, Callable[[Any], bool], str]

#: The name of the section in which an application has the settings.
SECTION = 'orm_cache'

#: The values of ``on_outage``, for the time when the tag store can't be reached. Reads are
#: answered from the database. ``refuse`` refuses commits that change tables, so that nothing
#: is ever stale. ``continue`` commits all the same; other processes may read stale values
#: until the store can be reached again and the tenant has got a new birth.
OUTAGE_POLICIES = ('refuse', 'continue')

#: The values of ``audit``, for tables that a creator reads and its policy does not mention, and
#: for what it reads of a request and its value does not vary by: nothing is done, a warning is
#: logged once for each property and what it read, or an error is raised.
AUDITS = ('off', 'warn', 'error')


@dataclass(frozen=True)
class OrmCacheSettings:
    """The validated settings of one cache."""

    #: SQLAlchemy URL; ``sqlite:///FOLDER`` keeps a database file per schema in FOLDER.
    dsn: str = 'sqlite:///tenants'
    #: A declarative base (or MetaData), or several; their tables are created per schema.
    base: Any = None
    #: Redis URL of the shared tier and tag store; None keeps both in this process's memory.
    redis_url: str | None = None
    #: Separates applications that share a Redis.
    namespace: str = 'ormcache'
    #: Seconds after which a value is computed anew, even if nothing has changed; None: never.
    expiration_time: float | None = None
    #: Bytes that the process tier may hold, over all tenants.
    process_cache_size: int = 64 * 1024 * 1024
    #: Part of every value's key: two releases never read each other's values.
    release: str = ''
    #: One of :data:`OUTAGE_POLICIES`.
    on_outage: str = 'refuse'
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
    #: Connect to Redis and the database before the first scope, and not when the cache is made. In
    #: a host, a Redis that can't be reached then counts as an outage, see ``on_outage``.
    lazy: bool = False
    #: Listen for changes from outside, which triggers report; PostgreSQL with psycopg only.
    listen: bool = False
    #: SQLAlchemy URL for listening, if ``dsn`` goes through a connection pooler; else None.
    listen_dsn: str | None = None
    #: The NamedTuple, dataclass and Enum classes that values may contain.
    types: Iterable[type] = ()
    #: Keyword arguments of ``sqlalchemy.create_engine``.
    engine_options: Mapping[str, Any] | None = None

    @classmethod
    def rules(cls) -> tuple[Rule, ...]:
        """Return the rule of each setting that has one."""
        return RULES

    @classmethod
    def read(cls, section: Mapping[str, Any], where: str) -> Self:
        """Validate a settings section.

        :param section: the settings that were given, by name.
        :param where: the application or cache that they were given for, for messages.
        :return: all settings, with the defaults of those that were not given.
        :raises ConfigurationError: for an unknown name or a wrong value.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(section) - known):
            raise ConfigurationError(
                f'{where}: unknown setting {unknown[0]!r} in the section {SECTION!r}; '
                f'known are {", ".join(sorted(known))}'
            )
        settings = cls(**section)
        for name, is_valid, expected in cls.rules():
            value = getattr(settings, name)
            if not is_valid(value):
                raise ConfigurationError(
                    f'{where}: setting {SECTION}.{name} is {value!r}; expected {expected}'
                )
        return settings


class SettingsValues(TypedDict, total=False):
    """The settings as keyword arguments; see :class:`OrmCacheSettings`."""

    dsn: str
    base: Any
    redis_url: str | None
    namespace: str
    expiration_time: float | None
    process_cache_size: int
    release: str
    on_outage: str
    redis_timeout: float
    lock_timeout: float
    lease: float
    check_write_skew: bool
    audit: str
    lazy: bool
    listen: bool
    listen_dsn: str | None
    types: Iterable[type]
    engine_options: Mapping[str, Any] | None


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def is_whole(value: Any) -> bool:
    """Return whether a value is an ``int`` and no ``bool``."""
    return isinstance(value, int) and not isinstance(value, bool)


def _are_classes(value: Any) -> bool:
    try:
        return all(isinstance(item, type) for item in value)
    except TypeError:
        return False


RULES: tuple[Rule, ...] = (
    ('dsn', lambda v: isinstance(v, str) and '://' in v, 'an SQLAlchemy URL'),
    ('redis_url', lambda v: v is None or (isinstance(v, str) and '://' in v), 'a URL or None'),
    (
        'namespace',
        lambda v: isinstance(v, str) and re.fullmatch(r'[A-Za-z0-9_.-]{1,100}', v) is not None,
        'up to 100 letters, digits, "_", "-" or "."',
    ),
    ('expiration_time', lambda v: v is None or _is_positive(v), 'seconds above 0, or None'),
    ('process_cache_size', lambda v: is_whole(v) and v >= 0, 'a number of bytes'),
    ('release', lambda v: isinstance(v, str), 'a string'),
    ('on_outage', lambda v: v in OUTAGE_POLICIES, f'one of {", ".join(OUTAGE_POLICIES)}'),
    ('redis_timeout', _is_positive, 'seconds above 0'),
    ('lock_timeout', _is_positive, 'seconds above 0'),
    ('lease', _is_positive, 'seconds above 0'),
    ('check_write_skew', lambda v: isinstance(v, bool), 'True or False'),
    ('audit', lambda v: v in AUDITS, f'one of {", ".join(AUDITS)}'),
    ('lazy', lambda v: isinstance(v, bool), 'True or False'),
    ('listen', lambda v: isinstance(v, bool), 'True or False'),
    (
        'listen_dsn',
        lambda v: v is None or (isinstance(v, str) and '://' in v),
        'an SQLAlchemy URL or None',
    ),
    ('types', _are_classes, 'a sequence of classes'),
    ('engine_options', lambda v: v is None or isinstance(v, Mapping), 'a dictionary or None'),
)
