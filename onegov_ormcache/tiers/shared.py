"""The shared tier: values of all processes, on Redis, or in memory.

A value is stored only if the tag store still has the versions of its stamp; both happen in
one atomic step. Beside the values the tier has the locks under which cold values are
computed and, per tenant, a dogpile.cache region for values that an application caches by
hand. It knows nothing of properties and policies.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Protocol

import ormsgpack
from cachetools import LRUCache
from dogpile.cache import CacheRegion

from ..redis_client.client import Client, hash_tag
from .bounded import BoundedCache
from .claims import Claim, Crowd, Expected, MemoryClaim, RedisClaim, RedisClaims
from .locks import NamedLocks
from .process import OVERHEAD, Stamp, StoredValue
from .regions import MEMORY_BACKEND, REDIS_BACKEND, make_region
from .serializer import Serializer
from .stored import (
    MAX_LIFETIME,
    MAX_STAMP,
    UNREADABLE,
    DamagedValue,
    Found,
    head,
    overhead,
    pack,
    unpack,
)

log = logging.getLogger('onegov_ormcache')

#: The most bytes of a value: of a quarter of the process tier's default size, the process tier can
#: keep a value that is immutable, which takes four times its bytes. A larger one would be fetched
#: and decoded for each request, in a tenth of a second and more.
MAX_VALUE_SIZE = 16 * 1024 * 1024

#: The number of tenants of which a tier remembers what it has logged.
LOGGED_TENANTS = 10_000


class MemoryFills(Protocol):
    """The part of a tag store in memory that stores values."""

    def fill(self, schema: str, stamp: Stamp, store: Callable[[], None]) -> bool:
        """Call ``store`` if the stamp holds, with no change in between.

        :return: True if it was called.
        """


class RedisFills(RedisClaims, Protocol):
    """The part of a tag store on Redis that stores values."""

    client: Client

    def fill(
        self,
        schema: str,
        stamp: Stamp,
        key: str,
        value: bytes,
        ttl: float | None,
        lock: tuple[str, str] | None = None,
    ) -> bool:
        """Store the value under the key if the stamp holds, in one atomic step.

        :param ttl: the value's lifetime in seconds; None for no limit.
        :param lock: the lock of its computation, to give back in any case.
        :return: True if it was stored.
        :raises StoreUnreachable: if Redis can't be reached.
        """

    def look(
        self, schema: str, keys: Sequence[str], most: int, timed: bool
    ) -> Sequence[Found]:
        """Return the values of keys, in their order, in one command.

        :param keys: full keys of Redis.
        :param most: the most bytes that a value may have; a larger one is not sent.
        :param timed: tell what is left of the values' lifetimes.
        :raises StoreUnreachable: if Redis can't be reached.
        """


class SharedTier(Protocol):
    """Stores and returns values by tenant and key. Made once per cache, used by all threads."""

    def get(self, schema: str, key: str) -> StoredValue | None:
        """Return the value; None if there is none.

        :raises StoreUnreachable: if the tier can't be reached.
        """

    def get_many(self, schema: str, keys: Sequence[str]) -> dict[str, StoredValue]:
        """Return the values that are there, by key, in one round trip.

        :raises StoreUnreachable: if the tier can't be reached.
        """

    def fill(
        self,
        schema: str,
        key: str,
        stored: StoredValue,
        stamp: Stamp | None = None,
        claim: Claim | None = None,
    ) -> bool:
        """Store the value if its stamp holds.

        :param stamp: the part of the value's stamp that is compared with the tenant's own
            versions; by default the whole stamp.
        :param claim: the claim of who has computed it.
        :return: True if it was stored.
        :raises StoreUnreachable: if the tier can't be reached.
        """

    def claim(self, schema: str, key: str, stamp: Stamp, elsewhere: Stamp) -> Claim:
        """Return a claim to compute a value with this stamp.

        Runs for other versions have other claims: a caller does not wait for a value that it
        may not use.

        :param stamp: the versions of the value's tags, as far as they are known before the run.
        :param elsewhere: the versions that the caller knows of tags of other places.
        """

    def region(self, schema: str) -> CacheRegion:
        """Return a dogpile.cache region of this tenant alone."""


class MemoryTier:
    """The shared tier of the embedded default, in the memory of one process.

    :param tags: the tag store.
    :param size: the number of bytes that the values may take. Values that applications cache
        by hand may take as many again. The least recently used values are dropped first.
    :param ttl: the lifetime, in seconds, of values in a region; None for no limit.
    :param lock_timeout: seconds that a caller waits for a lock at most.
    :param max_value_size: the most bytes that a value in a region may have.
    """

    def __init__(
        self,
        tags: MemoryFills,
        serializer: Serializer,
        size: int,
        ttl: float | None,
        lock_timeout: float,
        max_value_size: int = MAX_VALUE_SIZE,
    ) -> None:
        self._tags = tags
        self._serializer = serializer
        self._ttl = ttl
        self._lock_timeout = lock_timeout
        self._max_value_size = max_value_size
        self._values: BoundedCache[StoredValue] = BoundedCache(
            size, lambda stored: OVERHEAD + len(stored.encoded.data)
        )
        # dogpile keeps the bytes of a value, with its metadata before them
        self._regions: BoundedCache[bytes] = BoundedCache(size, lambda v: OVERHEAD + len(v))
        self._locks = NamedLocks()
        self._crowd = Crowd()

    def get(self, schema: str, key: str) -> StoredValue | None:
        return self._values.get(f'{schema}|{key}')

    def get_many(self, schema: str, keys: Sequence[str]) -> dict[str, StoredValue]:
        found = {key: self.get(schema, key) for key in keys}
        return {key: stored for key, stored in found.items() if stored is not None}

    def fill(
        self,
        schema: str,
        key: str,
        stored: StoredValue,
        stamp: Stamp | None = None,
        claim: Claim | None = None,
    ) -> bool:
        if not self._values.has_room_for(stored):
            return False

        def store() -> None:
            self._values.put(f'{schema}|{key}', stored)

        return self._tags.fill(schema, stored.stamp if stamp is None else stamp, store)

    def claim(self, schema: str, key: str, stamp: Stamp, elsewhere: Stamp) -> Claim:
        lock = self._locks.get(f'{schema}|{key}|{_digest(stamp)}')
        return MemoryClaim(
            lock, self._lock_timeout, self._crowd, lambda: self.get(schema, key)
        )

    def region(self, schema: str) -> CacheRegion:
        arguments = {
            'cache_dict': self._regions.of(''),
            'locks': self._locks,
            'lock_timeout': self._lock_timeout,
            'max_value_size': self._max_value_size,
        }
        name = f'{hash_tag("", schema)}:cache:'
        return make_region(name, self._serializer, MEMORY_BACKEND, arguments, self._ttl)


class RedisTier:
    """The shared tier on Redis.

    :param tags: the tag store, whose Redis the tier uses.
    :param namespace: the part of all keys that separates applications that share a Redis.
    :param ttl: the lifetime of values in seconds; None for no limit.
    :param lock_timeout: seconds that a caller waits for a lock at most.
    :param max_value_size: the most bytes that a value may have. Larger ones are neither stored nor
        read.
    """

    def __init__(
        self,
        tags: RedisFills,
        serializer: Serializer,
        namespace: str,
        ttl: float | None,
        lock_timeout: float,
        max_value_size: int = MAX_VALUE_SIZE,
    ) -> None:
        self._tags = tags
        self._serializer = serializer
        self._namespace = namespace
        self._ttl = None if ttl is None else min(ttl, MAX_LIFETIME)
        self._lock_timeout = lock_timeout
        self._max_value_size = max_value_size
        self._locks = NamedLocks()
        self._crowd = Crowd()
        # the tenants of which this process has logged that a value can't be read
        self._damaged: LRUCache[str, None] = LRUCache(LOGGED_TENANTS)

    def get(self, schema: str, key: str) -> StoredValue | None:
        return self._look(schema, [self._name(schema, key)])[0]

    def get_many(self, schema: str, keys: Sequence[str]) -> dict[str, StoredValue]:
        found = self._look(schema, [self._name(schema, key) for key in keys])
        pairs = zip(keys, found, strict=True)
        return {key: stored for key, stored in pairs if stored is not None}

    def fill(
        self,
        schema: str,
        key: str,
        stored: StoredValue,
        stamp: Stamp | None = None,
        claim: Claim | None = None,
    ) -> bool:
        name = self._name(schema, key)
        data = pack(name, stored, self._ttl)
        if data is None or len(stored.encoded.data) > self._max_value_size:
            return False
        arguments = schema, stored.stamp if stamp is None else stamp, name, data, self._ttl
        if not (isinstance(claim, RedisClaim) and claim.is_held):
            return self._tags.fill(*arguments)
        is_stored = self._tags.fill(*arguments, claim.lock)
        claim.given_back()
        return is_stored

    def claim(self, schema: str, key: str, stamp: Stamp, elsewhere: Stamp) -> Claim:
        lock = f'{hash_tag(self._namespace, schema)}:lock:{key}:{_digest(stamp)}'
        name = self._name(schema, key)

        def unpack_found(found: Found, asked: float) -> StoredValue | None:
            return self._unpack(schema, name, found, asked)

        expected: Expected = head(name), self._most(name), MAX_STAMP
        return RedisClaim(
            self._locks.get(lock),
            self._lock_timeout,
            self._crowd,
            self._tags,
            schema,
            name,
            lock,
            elsewhere,
            expected,
            unpack_found,
        )

    def region(self, schema: str) -> CacheRegion:
        name = f'{hash_tag(self._namespace, schema)}:cache:'
        arguments = {
            'client': self._tags.client,
            'lock_timeout': self._lock_timeout,
            'max_value_size': self._max_value_size,
            'prefix': name,
            'ttl': self._ttl,
            'look': lambda keys: self._look(schema, keys),
        }
        return make_region(name, self._serializer, REDIS_BACKEND, arguments, self._ttl)

    def _look(self, schema: str, names: Sequence[str]) -> list[StoredValue | None]:
        """Return the values of full keys of Redis, in their order."""
        asked = time.monotonic()
        most = self._most(max(names, key=len))
        found = self._tags.look(schema, names, most, self._ttl is not None)
        return [
            self._unpack(schema, name, each, asked)
            for name, each in zip(names, found, strict=True)
        ]

    def _unpack(
        self, schema: str, name: str, found: Found, asked: float
    ) -> StoredValue | None:
        """Return a value that was found; None if there is none, or if it can't be used."""
        data, left = found
        try:
            if left == UNREADABLE:
                raise DamagedValue('it is no string, or too large')
            return None if data is None else unpack(name, data, left, self._ttl, asked)
        except DamagedValue as damage:
            if schema not in self._damaged:
                self._damaged[schema] = None
                log.warning(
                    '%s: the key %r on Redis was damaged (%s), and is computed anew: does another '
                    'program use the same keys? Other keys of the tenant are not logged.',
                    schema, name, damage,
                )  # fmt: skip
            return None

    def _most(self, name: str) -> int:
        return self._max_value_size + overhead(name)

    def _name(self, schema: str, key: str) -> str:
        return f'{hash_tag(self._namespace, schema)}:value:{key}'


def _digest(stamp: Stamp) -> str:
    """Return a short text that is the same for equal stamps in all processes."""
    return blake2b(ormsgpack.packb(sorted(stamp.items())), digest_size=9).hexdigest()
