"""The shared tier: values of all processes, on Redis, or in memory.

A value is stored only if the tag store still has the versions of its stamp; both happen in
one atomic step. Beside the values the tier has the locks under which cold values are
computed and, per tenant, a dogpile.cache region for values that an application caches by
hand. It knows nothing of properties and policies.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple, Protocol, cast

import ormsgpack
from cachetools import LRUCache
from dogpile.cache import CacheRegion

from ..redis_client.client import Client, hash_tag
from .batches import BATCH, ToFill, batches
from .bounded import BoundedCache
from .claims import Claim, Crowd, Expected, MemoryClaim, RedisClaim, RedisClaims
from .listing import Listing, of_memory, of_redis
from .locks import NamedLocks
from .process import OVERHEAD, Stamp, StoredValue
from .regions import MEMORY_BACKEND, REDIS_BACKEND, make_region
from .serializer import Serializer
from .stored import (
    MAGIC,
    MAX_LIFETIME,
    MAX_STAMP,
    UNREADABLE,
    DamagedValue,
    Found,
    earlier,
    overhead,
    pack,
    unpack,
)

log = logging.getLogger(__name__)

#: The most bytes of a value: of a quarter of the process tier's default size, the process tier can
#: keep a value that is immutable, which takes four times its bytes. A larger one would be fetched
#: and decoded for each request, in a tenth of a second and more.
MAX_VALUE_SIZE = 16 * 1024 * 1024

#: The number of tenants of which a tier remembers what it has logged.
LOGGED_TENANTS = 10_000


class Fill(NamedTuple):
    """A value to store in the shared tier."""

    key: str
    stored: StoredValue
    #: The part of its stamp that is compared with the tenant's own versions; None: the whole.
    stamp: Stamp | None = None
    #: The claim of who has computed it.
    claim: Claim | None = None


class MemoryFills(Protocol):
    """The part of a tag store in memory that stores values."""

    def fill(self, schema: str, stamp: Stamp, store: Callable[[], None]) -> bool:
        """Call ``store`` if the stamp holds, with no change in between.

        :return: True if it was called.
        """


class RedisFills(RedisClaims, Protocol):
    """The part of a tag store on Redis that stores values."""

    client: Client

    def fill_many(self, schema: str, values: Sequence[ToFill]) -> Sequence[bool]:
        """Store values, each if its stamp holds, in one atomic step.

        :return: for each whether it was stored.
        :raises StoreUnreachable: if Redis can't be reached.
        """

    def look(self, schema: str, keys: Sequence[str], expected: Expected) -> Sequence[Found]:
        """Return the values of keys, in their order, in one command.

        :param keys: full keys of Redis.
        :param expected: what the values must be like; one that has too many bytes is not sent.
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
        :return: True if it was stored. A value that has expired is not.
        :raises StoreUnreachable: if the tier can't be reached.
        """

    def fill_many(self, schema: str, fills: Sequence[Fill]) -> list[bool]:
        """Store several values, each if its stamp holds.

        On Redis that is one round trip, or one for every few megabytes.

        :return: for each whether it was stored.
        :raises StoreUnreachable: if the tier can't be reached; some may be stored then.
        """

    def claim(self, schema: str, key: str, stamp: Stamp, elsewhere: Stamp) -> Claim:
        """Return a claim to compute a value with this stamp.

        Runs for other versions have other claims: a caller does not wait for a value that it
        may not use.

        :param stamp: the versions of the value's tags, as far as they are known before the run.
        :param elsewhere: the versions that the caller knows of tags of other places.
        """

    def look_many(self, claims: Sequence[Claim]) -> list[StoredValue | None]:
        """Call :meth:`.Claim.look` for several claims, in one round trip.

        Whoever has several claims computes and fills what it holds before it waits for what others
        hold. Two that wait for one another would wait until the timeout.

        :param claims: of one tenant and one snapshot; :meth:`.Claim.enter` was True for each.
        :return: the values, in the order of the claims.
        :raises StoreUnreachable: if the tier can't be reached. Some claims may be held then.
        """

    def leave_many(self, claims: Sequence[Claim]) -> None:
        """Call :meth:`.Claim.leave` for several claims, in one round trip.

        :param claims: of one tenant.
        """

    def region(self, schema: str) -> CacheRegion:
        """Return a dogpile.cache region of this tenant alone."""

    def listing(self, schema: str, most: int) -> Listing:
        """Return a list of the tenant's values, without reading them.

        :param most: the most values to list.
        :raises StoreUnreachable: if the tier can't be reached.
        """


class MemoryTier:
    """The shared tier of the embedded default, in the memory of one process.

    :param tags: the tag store.
    :param size: the number of bytes that the values may take. Values that applications cache
        by hand may take as many again. The least recently used values are dropped first.
    :param ttl: the most seconds that a value lives; None for no limit.
    :param lock_timeout: seconds that a caller waits for a lock at most.
    :param max_value_size: the most bytes that a value in a region may have.
    :param kept: the lifetime, in seconds, of values in a region if there is no ``ttl``; None for
        no limit.
    """

    def __init__(
        self,
        tags: MemoryFills,
        serializer: Serializer,
        size: int,
        ttl: float | None,
        lock_timeout: float,
        max_value_size: int = MAX_VALUE_SIZE,
        kept: float | None = None,
    ) -> None:
        self._tags = tags
        self._serializer = serializer
        self._ttl = ttl
        self._region_ttl = kept if ttl is None else ttl
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
        name = f'{schema}|{key}'
        stored = self._values.get(name)
        if stored is not None and _is_past(stored.expires, time.monotonic()):
            self._values.remove(name, only=stored)
            return None
        return stored

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
        now = time.monotonic()
        bounded = stored._replace(expires=earlier(stored.expires, self._ttl, now))
        if _is_past(bounded.expires, now) or not self._values.has_room_for(bounded):
            return False

        def store() -> None:
            self._values.put(f'{schema}|{key}', bounded)

        return self._tags.fill(schema, stored.stamp if stamp is None else stamp, store)

    def fill_many(self, schema: str, fills: Sequence[Fill]) -> list[bool]:
        return [self.fill(schema, *each) for each in fills]

    def claim(self, schema: str, key: str, stamp: Stamp, elsewhere: Stamp) -> Claim:
        lock = self._locks.get(f'{schema}|{key}|{_digest(stamp)}')
        return MemoryClaim(
            lock, self._lock_timeout, self._crowd, lambda: self.get(schema, key)
        )

    def look_many(self, claims: Sequence[Claim]) -> list[StoredValue | None]:
        return [claim.look() for claim in claims]

    def leave_many(self, claims: Sequence[Claim]) -> None:
        for claim in claims:
            claim.leave()

    def listing(self, schema: str, most: int) -> Listing:
        return of_memory(self._values.of(f'{schema}|'), most)

    def region(self, schema: str) -> CacheRegion:
        arguments = {
            'cache_dict': self._regions.of(''),
            'locks': self._locks,
            'lock_timeout': self._lock_timeout,
            'max_value_size': self._max_value_size,
        }
        name = f'{hash_tag("", schema)}:cache:'
        return make_region(name, self._serializer, MEMORY_BACKEND, arguments, self._region_ttl)


class RedisTier:
    """The shared tier on Redis.

    :param tags: the tag store, whose Redis the tier uses.
    :param namespace: the part of all keys that separates applications that share a Redis.
    :param ttl: the most seconds that a value lives; None for no limit.
    :param lock_timeout: seconds that a caller waits for a lock at most.
    :param max_value_size: the most bytes that a value may have. Larger ones are neither stored nor
        read.
    :param kept: the seconds for which Redis keeps a value that does not expire, and the lifetime
        of values in a region if there is no ``ttl``; None for no limit.
    """

    def __init__(
        self,
        tags: RedisFills,
        serializer: Serializer,
        namespace: str,
        ttl: float | None,
        lock_timeout: float,
        max_value_size: int = MAX_VALUE_SIZE,
        kept: float | None = None,
    ) -> None:
        self._tags = tags
        self._serializer = serializer
        self._namespace = namespace
        self._ttl = None if ttl is None else min(ttl, MAX_LIFETIME)
        self._kept = None if kept is None else min(kept, MAX_LIFETIME)
        self._region_ttl = self._kept if self._ttl is None else self._ttl
        self._lock_timeout = lock_timeout
        self._max_value_size = max_value_size
        self._locks = NamedLocks()
        self._crowd = Crowd()
        # the tenants of which this process has logged that a value can't be read
        self._damaged: LRUCache[str, None] = LRUCache(LOGGED_TENANTS)

    @property
    def client(self) -> Client:
        """The client of its Redis."""
        return self._tags.client

    def get(self, schema: str, key: str) -> StoredValue | None:
        return self._look(schema, [self._name(schema, key)], self._ttl)[0]

    def get_many(self, schema: str, keys: Sequence[str]) -> dict[str, StoredValue]:
        names = [self._name(schema, key) for key in keys]
        pairs = zip(keys, self._look(schema, names, self._ttl), strict=True)
        return {key: stored for key, stored in pairs if stored is not None}

    def fill(
        self,
        schema: str,
        key: str,
        stored: StoredValue,
        stamp: Stamp | None = None,
        claim: Claim | None = None,
    ) -> bool:
        (is_stored,) = self.fill_many(schema, [Fill(key, stored, stamp, claim)])
        return is_stored

    def fill_many(self, schema: str, fills: Sequence[Fill]) -> list[bool]:
        are_stored = [False] * len(fills)
        for batch in batches(self._packed(schema, fills)):
            reply = self._tags.fill_many(schema, [packed for _, packed in batch])
            for (number, packed), is_stored in zip(batch, reply, strict=True):
                are_stored[number] = is_stored
                claim = fills[number].claim
                if packed.lock is not None and isinstance(claim, RedisClaim):
                    claim.given_back()
        return are_stored

    def claim(self, schema: str, key: str, stamp: Stamp, elsewhere: Stamp) -> Claim:
        lock = f'{hash_tag(self._namespace, schema)}:lock:{key}:{_digest(stamp)}'
        name = self._name(schema, key)

        def unpack_found(found: Found, asked: float) -> StoredValue | None:
            return self._unpack(schema, name, found, self._ttl, asked)

        return RedisClaim(
            self._locks.get(lock),
            self._lock_timeout,
            self._crowd,
            self._tags,
            schema,
            name,
            lock,
            elsewhere,
            self._expected(name),
            unpack_found,
        )

    def look_many(self, claims: Sequence[Claim]) -> list[StoredValue | None]:
        own = cast('Sequence[RedisClaim]', claims)
        found: list[StoredValue | None] = []
        for first in range(0, len(own), BATCH):
            found += RedisClaim.look_many(own[first : first + BATCH])
        return found

    def leave_many(self, claims: Sequence[Claim]) -> None:
        RedisClaim.leave_many(cast('Sequence[RedisClaim]', claims))

    def listing(self, schema: str, most: int) -> Listing:
        return of_redis(self.client, self._name(schema, ''), self._kept, most)

    def region(self, schema: str) -> CacheRegion:
        name = f'{hash_tag(self._namespace, schema)}:cache:'
        ttl = self._region_ttl
        arguments = {
            'client': self._tags.client,
            'lock_timeout': self._lock_timeout,
            'max_value_size': self._max_value_size,
            'prefix': name,
            'ttl': ttl,
            'look': lambda keys: self._look(schema, keys, ttl),
        }
        return make_region(name, self._serializer, REDIS_BACKEND, arguments, ttl)

    def _packed(self, schema: str, fills: Sequence[Fill]) -> Iterator[tuple[int, ToFill]]:
        """Yield the values that can be stored, with their numbers among the fills."""
        for number, (key, stored, stamp, claim) in enumerate(fills):
            now = time.monotonic()
            expires = earlier(stored.expires, self._ttl, now)
            if _is_past(expires, now) or len(stored.encoded.data) > self._max_value_size:
                continue
            name = self._name(schema, key)
            lifetime = None if expires is None else min(expires - now, MAX_LIFETIME)
            data = pack(name, stored, lifetime)
            if data is None:
                continue
            ttl = self._kept if lifetime is None else lifetime
            lock = claim.lock if isinstance(claim, RedisClaim) and claim.is_held else None
            compared = stored.stamp if stamp is None else stamp
            yield number, ToFill(compared, name, data, ttl, lock)

    def _look(
        self, schema: str, names: Sequence[str], lifetime: float | None
    ) -> list[StoredValue | None]:
        """Return the values of full keys of Redis, in their order.

        :param lifetime: the most seconds that a value lives; None for no limit.
        """
        asked = time.monotonic()
        found = self._tags.look(schema, names, self._expected(max(names, key=len)))
        return [
            self._unpack(schema, name, each, lifetime, asked)
            for name, each in zip(names, found, strict=True)
        ]

    def _unpack(
        self, schema: str, name: str, found: Found, lifetime: float | None, asked: float
    ) -> StoredValue | None:
        """Return a value that was found; None if there is none, or if it can't be used."""
        data, left = found
        try:
            if left == UNREADABLE:
                raise DamagedValue('it is no string, or too large')
            return None if data is None else unpack(name, data, left, lifetime, asked)
        except DamagedValue as damage:
            if schema not in self._damaged:
                self._damaged[schema] = None
                log.warning(
                    '%s: the key %r on Redis was damaged (%s), and is computed anew: does another '
                    'program use the same keys? Other keys of the tenant are not logged.',
                    schema, name, damage,
                )  # fmt: skip
            return None

    def _expected(self, name: str) -> Expected:
        """Return what the value of a full key of Redis, or of a shorter one, must be like."""
        return MAGIC, self._max_value_size + overhead(name), MAX_STAMP

    def _name(self, schema: str, key: str) -> str:
        return f'{hash_tag(self._namespace, schema)}:value:{key}'


def _is_past(expires: float | None, now: float) -> bool:
    return expires is not None and not expires > now  # not a number is no time to come


def _digest(stamp: Stamp) -> str:
    """Return a short text that is the same for equal stamps in all processes."""
    return blake2b(ormsgpack.packb(sorted(stamp.items())), digest_size=9).hexdigest()
