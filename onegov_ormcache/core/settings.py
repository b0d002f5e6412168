"""The settings of a cache: their defaults and what they may be.

They are read once, when the cache is made or the application committed; a wrong one is an
error then, not at the first request. This module knows nothing of what they are for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self, TypeAlias

from ..errors import ConfigurationError

#: A setting's name, its test, and what messages say was expected.
Rule: TypeAlias = tuple[str, Callable[[Any], bool], str]

#: Name of the section in which an application has them.
SECTION = 'orm_cache'

#: What happens when the tag store can't be reached: ``refuse`` answers reads
#: from the database and refuses commits that change tables (nothing is ever
#: stale); ``continue`` commits all the same, and other processes may be stale
#: until the versions that are owed are published.
OUTAGE_POLICIES = ('refuse', 'continue')

#: What an audit of policies does with what it finds: nothing, a warning in the log, once
#: for each property and table, or an error.
AUDITS = ('off', 'warn', 'error')


@dataclass(frozen=True)
class OrmCacheSettings:
    """The validated settings of one cache."""

    #: SQLAlchemy URL; ``sqlite:///FOLDER`` keeps a database file per schema in FOLDER.
    dsn: str = 'sqlite:///tenants'
    #: A declarative base (or MetaData), or several; their tables are created per schema.
    base: Any = None
    #: Redis URL of shared tier and tag store; None keeps both in this process's memory.
    redis_url: str | None = None
    #: Separates applications that share a Redis.
    namespace: str = 'ormcache'
    #: Seconds after which a value is computed anew all the same; None: never.
    expiration_time: float | None = None
    #: Bytes that the process tier may hold, over all tenants.
    process_cache_size: int = 64 * 1024 * 1024
    #: Part of every value's key: two releases never read each other's values.
    release: str = ''
    #: One of :data:`OUTAGE_POLICIES`.
    on_outage: str = 'refuse'
    #: Seconds to wait for an answer of Redis.
    redis_timeout: float = 0.5
    #: Seconds after which the lock for a cold value passes on to another caller.
    lock_timeout: float = 10.0
    #: Seconds after which a writer that can't be asked for is taken for dead.
    lease: float = 60.0
    #: Refuse SERIALIZABLE writers whose cached reads another writer changed (P5).
    check_write_skew: bool = True
    #: One of :data:`AUDITS`: what is done when a creator reads a table that its policy
    #: does not mention.
    audit: str = 'warn'
    #: Hear of changes from outside, which triggers tell of; PostgreSQL only.
    listen: bool = False
    #: The URL for that, if ``dsn`` goes through a pooler.
    listen_dsn: str | None = None
    #: NamedTuples and dataclasses that values may contain.
    types: Iterable[type] = ()
    #: Keyword arguments of ``sqlalchemy.create_engine``.
    engine_options: Mapping[str, Any] | None = None

    @classmethod
    def rules(cls) -> tuple[Rule, ...]:
        """Return the setting, the test, and what messages say was expected, for each."""
        return RULES

    @classmethod
    def read(cls, section: Mapping[str, Any], where: str) -> Self:
        """Validate a settings section.

        :param section: name to value.
        :param where: what messages call the place where they were given.
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


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def is_whole(value: Any) -> bool:
    """Return whether it is a whole number, and no bool."""
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
    ('listen', lambda v: isinstance(v, bool), 'True or False'),
    (
        'listen_dsn',
        lambda v: v is None or (isinstance(v, str) and '://' in v),
        'an SQLAlchemy URL or None',
    ),
    ('types', _are_classes, 'a sequence of classes'),
    ('engine_options', lambda v: v is None or isinstance(v, Mapping), 'a dictionary or None'),
)
