"""What is inspected: the tag store and the shared tier of one namespace, and the cache of the
application whose they are, if it is known.

A cache in this process gives all facts. Without an application, Redis and a namespace tell what is
there, and not what it is for. This module prints nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from ...core.cache import OrmCache
from ...core.properties import Property
from ...core.settings import OrmCacheSettings
from ...errors import OrmCacheError
from ...redis_client.client import connect
from ...statistics.collector import Statistics
from ...statistics.redis import RedisStatistics
from ...tags.overview import Overview, overview_of
from ...tags.redis import RedisTagStore
from ...tiers.serializer import Serializer
from ...tiers.shared import RedisTier, SharedTier

#: The most names that a message lists.
SOME = 5


class NothingThere(OrmCacheError, LookupError):
    """A tenant, property, table or key is asked for that is not there."""


@dataclass(frozen=True)
class Site:
    """What is inspected. Made for one command, or once for a cache; used by all threads."""

    namespace: str
    tags: Overview
    values: SharedTier
    serializer: Serializer
    #: What was counted.
    statistics: Statistics
    #: The application's cache; None if it is not known.
    cache: OrmCache | None

    @classmethod
    def of(cls, cache: OrmCache) -> Site:
        """Return the site of a cache in this process."""
        namespace = cache.settings.namespace
        return cls(
            namespace, overview_of(cache.tags), cache.shared_tier, cache.serializer,
            cache.statistics, cache,
        )  # fmt: skip

    @classmethod
    def at(cls, redis_url: str, namespace: str) -> Site:
        """Return the site of a namespace on Redis, without an application.

        :raises ConfigurationError: if the URL or the namespace is wrong.
        """
        settings = OrmCacheSettings.read(
            {'redis_url': redis_url, 'namespace': namespace}, 'the command line'
        )
        client = connect(redis_url, settings.redis_timeout)
        store = RedisTagStore(client, namespace, quarantined=True)
        serializer = Serializer()
        # how long the application keeps values is not known
        tier = RedisTier(store, serializer, namespace, None, settings.lock_timeout)
        statistics = Statistics(RedisStatistics(client, namespace), None)
        return cls(namespace, overview_of(store), tier, serializer, statistics, None)

    @property
    def properties(self) -> list[Property]:
        """The orm-cached properties, and cached views, of the application; none if it is not
        known."""
        if self.cache is None:
            return []
        found = self.cache.registry.properties
        return [prop for prop in found if not prop.declaration.is_request_cached]

    def tenants(self) -> list[str]:
        """Return the schemas of which something is known, sorted.

        :raises StoreUnreachable: if Redis can't be reached.
        """
        return self.tags.schemas()

    def require_tenant(self, tenant: str) -> str:
        """Return the tenant, if something is known of it.

        :raises NothingThere: if nothing is.
        :raises StoreUnreachable: if Redis can't be reached.
        """
        return chosen(
            tenant, self.tenants(), 'tenant',
            f'nothing is known of any tenant in the namespace {self.namespace!r}: is it the '
            'setting namespace of the application, and was the application used?'
            f'{self._other_namespaces()}',
        )  # fmt: skip

    def _other_namespaces(self) -> str:
        """Return the end of a sentence that names the other namespaces of the same Redis."""
        others = self.tags.namespaces() if self.cache is None else []
        return f' There is {", ".join(others[:SOME])}.' if others else ''

    def find_property(self, name: str) -> Property:
        """Return the property of a full name, or of an end of it that only one property has.

        :param name: ``'town.App.users'``, ``'App.users'`` or ``'users'``.
        :raises NothingThere: if there is none, or if several have this end.
        """
        known = {prop.where: prop for prop in self.properties}
        if name in known:
            return known[name]
        ending = [where for where in known if where.endswith(f'.{name}')]
        if len(ending) > 1:
            raise NothingThere(f'{name!r} is the name of {", ".join(sorted(ending))}: which one?')
        if ending:
            return known[ending[0]]
        short = {where.rpartition('.')[2]: where for where in known}
        near = [short[found] for found in get_close_matches(name, short, 1)]
        return known[
            chosen(name, known, 'property', 'the application has no orm-cached property', near)
        ]

    def close(self) -> None:
        """Close the connections of a site without an application."""
        if self.cache is None and isinstance(self.values, RedisTier):
            self.values.client.close()


def chosen(
    name: str, known: Iterable[str], kind: str, if_none: str, near: Iterable[str] = ()
) -> str:
    """Return a name, if it is known.

    :param kind: what it is the name of.
    :param if_none: the message if no name is known.
    :param near: names that may be meant; by default those that are spelled alike.
    :raises NothingThere: if it is not known; the message names one that may be meant.
    """
    names = list(known)
    if name in names:
        return name
    if not names:
        raise NothingThere(if_none)
    near = list(near) or get_close_matches(name, names, 1)
    if near:
        raise NothingThere(f'there is no {kind} {name!r}; did you mean {near[0]!r}?')
    some = ', '.join(sorted(names)[:SOME]) + (', ...' if len(names) > SOME else '')
    raise NothingThere(f'there is no {kind} {name!r}; there is {some}')
