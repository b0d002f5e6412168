"""The programs of a run: each has a cache, and sessions of the package or of a host."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from onegov_ormcache import OrmCache
from tests.support.host import Host

from .schema import BASES
from .truth import connect_arguments


@dataclass(frozen=True)
class Settings:
    """What all processes of a run need to know."""

    database: str
    dsn: str
    redis_url: str | None
    namespace: str
    isolation: str
    #: True if the programs have sessions of their own.
    host: bool = False


class Program(Protocol):
    """A cache, and who makes the sessions for it. Made once per process, used by its threads."""

    cache: OrmCache

    def unit(self, tenant: str) -> AbstractContextManager[object]:
        """Work for a tenant while the block runs; then roll back what is not committed."""

    def session(self) -> Session:
        """Return this thread's session of the tenant that it works for."""

    def close(self) -> None:
        """Close the cache, and all connections."""


class OwnProgram:
    """A program with scopes, whose sessions the package makes."""

    def __init__(self, settings: Settings) -> None:
        self.cache = OrmCache(
            base=BASES[settings.database],
            dsn=settings.dsn,
            engine_options=engine_options(settings),
            **cache_options(settings),
        )

    def unit(self, tenant: str) -> AbstractContextManager[object]:
        return self.cache.scope(tenant)

    def session(self) -> Session:
        return self.cache.session()

    def close(self) -> None:
        self.cache.close()


class HostProgram(Host):
    """A host, which sets the search path before each statement, and whose session reads."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(
            create_engine(settings.dsn, **engine_options(settings)),
            BASES[settings.database],
            **cache_options(settings),
        )

    @contextmanager
    def unit(self, tenant: str) -> Iterator[None]:
        with self.at(tenant):
            try:
                yield
            finally:
                self.sessions.remove()
                self.cache.unit_ended()


def make_program(settings: Settings) -> Program:
    """Return the program of one process."""
    return HostProgram(settings) if settings.host else OwnProgram(settings)


def engine_options(settings: Settings) -> dict[str, Any]:
    if settings.database == 'sqlite':
        return {'connect_args': {'timeout': 0.1}}
    return {
        'isolation_level': settings.isolation,
        'connect_args': connect_arguments('-c lock_timeout=50ms'),
    }


def cache_options(settings: Settings) -> dict[str, Any]:
    return {
        'redis_url': settings.redis_url,
        'namespace': settings.namespace,
        'audit': 'off',
        'lock_timeout': 2.0,
    }
