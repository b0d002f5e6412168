"""The shared tier: values of all processes, on Redis, or in memory.

A value is stored only if the tag store still has the versions of its stamp; both happen in
one atomic step. Beside the values the tier has the locks under which cold values are
computed and, per tenant, a dogpile.cache region for values that an application caches by
hand. It knows nothing of properties and policies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Any, Protocol

import ormsgpack
import redis
from dogpile.cache import CacheRegion, make_region, register_backend
from dogpile.cache.api import NO_VALUE, CacheMutex, CantDeserializeException
from dogpile.cache.backends.memory import MemoryBackend
from dogpile.cache.backends.redis import RedisBackend

from ..errors import UndecodableValue
from ..redis_client.client import Client, hash_tag
from .bounded import BoundedCache
from .claims import Claim, Crowd, MemoryClaim, RedisClaim, RedisClaims
from .locks import NamedLocks, RedisMutex, ThreadMutex
from .process import OVERHEAD, Stamp, StoredValue
from .serializer import Encoded, Serializer


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
    """

    def __init__(
        self,
        tags: MemoryFills,
        serializer: Serializer,
        size: int,
        ttl: float | None,
        lock_timeout: float,
    ) -> None:
        self._tags = tags
        self._serializer = serializer
        self._ttl = ttl
        self._lock_timeout = lock_timeout
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
        }
        name = f'{hash_tag("", schema)}:cache:'
        return _region(name, self._serializer, MEMORY_BACKEND, arguments, self._ttl)


class RedisTier:
    """The shared tier on Redis.

    :param tags: the tag store, whose Redis the tier uses.
    :param namespace: the part of all keys that separates applications that share a Redis.
    :param ttl: the lifetime of values in seconds; None for no limit.
    :param lock_timeout: seconds that a caller waits for a lock at most.
    """

    def __init__(
        self,
        tags: RedisFills,
        serializer: Serializer,
        namespace: str,
        ttl: float | None,
        lock_timeout: float,
    ) -> None:
        self._tags = tags
        self._serializer = serializer
        self._namespace = namespace
        self._ttl = ttl
        self._lock_timeout = lock_timeout
        self._locks = NamedLocks()
        self._crowd = Crowd()

    def get(self, schema: str, key: str) -> StoredValue | None:
        name = self._name(schema, key)
        client = self._tags.client.at(name)
        data: Any = client.ask(lambda: client.get(name))
        return None if data is None else _unpack(data)

    def get_many(self, schema: str, keys: Sequence[str]) -> dict[str, StoredValue]:
        names = [self._name(schema, key) for key in keys]
        client = self._tags.client.at(names[0])
        datas: Any = client.ask(lambda: client.mget(names))
        found = {key: _unpack(data) for key, data in zip(keys, datas, strict=True) if data}
        return {key: stored for key, stored in found.items() if stored is not None}

    def fill(
        self,
        schema: str,
        key: str,
        stored: StoredValue,
        stamp: Stamp | None = None,
        claim: Claim | None = None,
    ) -> bool:
        holds = stored.stamp if stamp is None else stamp
        arguments = schema, holds, self._name(schema, key), _pack(stored), self._ttl
        if not (isinstance(claim, RedisClaim) and claim.is_held):
            return self._tags.fill(*arguments)
        is_stored = self._tags.fill(*arguments, claim.lock)
        claim.given_back()
        return is_stored

    def claim(self, schema: str, key: str, stamp: Stamp, elsewhere: Stamp) -> Claim:
        name = f'{hash_tag(self._namespace, schema)}:lock:{key}:{_digest(stamp)}'
        return RedisClaim(
            self._locks.get(name),
            self._lock_timeout,
            self._crowd,
            self._tags,
            schema,
            self._name(schema, key),
            name,
            elsewhere,
            _unpack,
        )

    def region(self, schema: str) -> CacheRegion:
        arguments = {'client': self._tags.client, 'lock_timeout': self._lock_timeout}
        name = f'{hash_tag(self._namespace, schema)}:cache:'
        return _region(name, self._serializer, REDIS_BACKEND, arguments, self._ttl)

    def _name(self, schema: str, key: str) -> str:
        return f'{hash_tag(self._namespace, schema)}:value:{key}'


def _digest(stamp: Stamp) -> str:
    """Return a short text that is the same for equal stamps in all processes."""
    return blake2b(ormsgpack.packb(sorted(stamp.items())), digest_size=9).hexdigest()


def _pack(stored: StoredValue) -> bytes:
    return ormsgpack.packb(
        [dict(stored.stamp), stored.encoded.data, stored.encoded.immutable, stored.created]
    )


def _unpack(data: bytes) -> StoredValue | None:
    """Return the stored value; None if the bytes are not those of one."""
    try:
        stamp, value, immutable, created = ormsgpack.unpackb(data)
        if not isinstance(value, bytes):
            return None
        return StoredValue(dict(stamp), Encoded(value, bool(immutable)), float(created))
    except (ValueError, TypeError):
        return None


def _region(
    prefix: str,
    serializer: Serializer,
    backend: str,
    arguments: dict[str, Any],
    ttl: float | None,
) -> CacheRegion:
    def mangle(key: str) -> str:
        return prefix + key

    region = make_region(
        key_mangler=mangle,
        serializer=lambda value: serializer.encode(value, 'app.cache').data,
        deserializer=_tolerant(serializer.decode),
    )
    return region.configure(backend, expiration_time=ttl, arguments=arguments)


def _tolerant(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def deserialize(data: bytes) -> Any:
        try:
            return decode(data)
        except UndecodableValue as error:
            raise CantDeserializeException from error

    return deserialize


class TenantMemoryBackend(MemoryBackend):
    """dogpile's memory back end, with locks for which a caller does not wait for ever."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self._locks = arguments['locks']
        self._lock_timeout = arguments['lock_timeout']
        super().__init__(arguments)  # type: ignore[no-untyped-call]

    def get_mutex(self, key: str) -> CacheMutex:
        return ThreadMutex(self._locks.get(key), self._lock_timeout)


class TenantRedisBackend(RedisBackend):
    """dogpile's Redis back end, with the tag store's client and this package's locks."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self._client: Client = arguments['client']
        super().__init__(  # type: ignore[no-untyped-call]
            {'lock_timeout': arguments['lock_timeout']}
        )

    def _create_client(self) -> None:
        self.writer_client = self.reader_client = self._client

    # a Redis that is lost costs a value, and not the request

    def get_serialized(self, key: str) -> Any:
        try:
            return super().get_serialized(key)  # type: ignore[no-untyped-call]
        except redis.RedisError:
            return NO_VALUE

    def get_serialized_multi(self, keys: Any) -> Any:
        try:
            return super().get_serialized_multi(keys)  # type: ignore[no-untyped-call]
        except redis.RedisError:
            return [NO_VALUE] * len(keys)

    def set_serialized(self, key: str, value: bytes) -> None:
        with suppress(redis.RedisError):
            super().set_serialized(key, value)  # type: ignore[no-untyped-call]

    def set_serialized_multi(self, mapping: Mapping[str, bytes]) -> None:
        with suppress(redis.RedisError):
            super().set_serialized_multi(mapping)  # type: ignore[no-untyped-call]

    # what must not be found any more is another matter

    def delete(self, key: str) -> None:
        client = self._client.at(key)
        client.ask(lambda: client.delete(key))

    def delete_multi(self, keys: Iterable[str]) -> None:
        names = list(keys)  # all of one tenant
        if names:
            client = self._client.at(names[0])
            client.ask(lambda: client.delete(*names))

    def get_mutex(self, key: str) -> CacheMutex:
        assert self.lock_timeout is not None
        return RedisMutex(self._client, f'{key}:lock', self.lock_timeout)


MEMORY_BACKEND = 'onegov_ormcache.memory'
REDIS_BACKEND = 'onegov_ormcache.redis'
for name, backend in ((MEMORY_BACKEND, TenantMemoryBackend), (REDIS_BACKEND, TenantRedisBackend)):
    register_backend(name, __name__, backend.__name__)  # type: ignore[no-untyped-call]
