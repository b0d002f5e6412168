"""The regions of dogpile.cache, for values that an application caches by hand, one per tenant.

dogpile does the work: this module gives it the package's serializer, its locks, and back ends that
take nothing for a value that was not stored under its key. It knows nothing of tags.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import dogpile.cache
from dogpile.cache import CacheRegion, register_backend
from dogpile.cache.api import NO_VALUE, CacheMutex, CantDeserializeException
from dogpile.cache.backends.memory import MemoryBackend
from dogpile.cache.backends.redis import RedisBackend

from ..errors import StoreUnreachable, UndecodableValue
from ..redis_client.client import Client
from .locks import RedisMutex, ThreadMutex
from .process import StoredValue
from .serializer import Encoded, Serializer
from .stored import pack

log = logging.getLogger(__name__)

#: The most bytes of dogpile's own data before a value: its version, and when it was created.
MAX_METADATA = 200


def make_region(
    prefix: str,
    serializer: Serializer,
    backend: str,
    arguments: dict[str, Any],
    ttl: float | None,
) -> CacheRegion:
    """Return a region.

    :param prefix: the beginning of all its keys.
    :param backend: :data:`MEMORY_BACKEND` or :data:`REDIS_BACKEND`.
    :param arguments: those of the back end.
    :param ttl: seconds after which a value is created again; None: never.
    """

    def mangle(key: str) -> str:
        return prefix + key

    region = dogpile.cache.make_region(
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
        self._max_value_size = arguments['max_value_size']
        super().__init__(arguments)  # type: ignore[no-untyped-call]

    def get_mutex(self, key: str) -> CacheMutex:
        return ThreadMutex(self._locks.get(key), self._lock_timeout)

    def set_serialized(self, key: str, value: bytes) -> None:
        if fits(key, value, self._max_value_size):
            self._cache[key] = value
        else:
            self._cache.pop(key, None)

    def set_serialized_multi(self, mapping: Mapping[str, bytes]) -> None:
        for key, value in mapping.items():
            self.set_serialized(key, value)


class TenantRedisBackend(RedisBackend):
    """dogpile's Redis back end, with the tag store's client and this package's locks.

    Its values have the bytes that those of properties have, with an empty stamp.
    """

    def __init__(self, arguments: dict[str, Any]) -> None:
        self._client: Client = arguments['client']
        self._max_value_size: int = arguments['max_value_size']
        self._prefix: str = arguments['prefix']
        self._ttl: float | None = arguments['ttl']
        self._look: Callable[[Sequence[str]], list[StoredValue | None]] = arguments['look']
        super().__init__(  # type: ignore[no-untyped-call]
            {'lock_timeout': arguments['lock_timeout']}
        )

    def _create_client(self) -> None:
        self.writer_client = self.reader_client = self._client

    def get_mutex(self, key: str) -> CacheMutex:
        assert self.lock_timeout is not None
        # no value has the key of a lock
        name = f'{self._prefix[:-1]}-lock:{key.removeprefix(self._prefix)}'
        return RedisMutex(self._client, name, self.lock_timeout)

    def get_serialized(self, key: str) -> Any:
        return self.get_serialized_multi([key])[0]

    def get_serialized_multi(self, keys: Iterable[str]) -> list[Any]:
        names = list(keys)
        try:
            found = self._look(names) if names else []
        except StoreUnreachable:  # it costs a value, and not the request
            return [NO_VALUE] * len(names)
        return [NO_VALUE if stored is None else self._localized(stored) for stored in found]

    def set_serialized(self, key: str, value: bytes) -> None:
        with suppress(StoreUnreachable):
            data = pack(key, StoredValue({}, Encoded(value, False), None), self._ttl)
            if data is None or not fits(key, value, self._max_value_size):
                self.delete(key)
                return
            milliseconds = None if self._ttl is None else max(1, int(self._ttl * 1000))
            client = self._client.at(key)
            client.ask(lambda: client.set(key, data, px=milliseconds))

    def set_serialized_multi(self, mapping: Mapping[str, bytes]) -> None:
        for key, value in mapping.items():
            self.set_serialized(key, value)

    # what must not be found any more is an error if Redis is lost

    def delete(self, key: str) -> None:
        self.delete_multi([key])

    def delete_multi(self, keys: Iterable[str]) -> None:
        names = list(keys)  # all of one tenant
        if names:
            client = self._client.at(names[0])
            client.ask(lambda: client.delete(*names))

    def _localized(self, stored: StoredValue) -> Any:
        """Return the bytes with the time of creation by this host's clock; NO_VALUE if they are
        none of dogpile's.

        dogpile compares that time with the clock, which may be another host's than the one that
        has written it.
        """
        data = stored.encoded.data
        end = data.find(b'|', 0, MAX_METADATA)
        try:
            metadata = json.loads(data[: max(0, end)])
            created = metadata['ct']
            if not math.isfinite(created) or type(metadata['v']) is not int:
                return NO_VALUE
        except (ValueError, TypeError, KeyError, OverflowError):
            return NO_VALUE
        now = time.time()
        if stored.expires is not None and self._ttl is not None:
            created = now - (self._ttl - (stored.expires - time.monotonic()))
        metadata['ct'] = min(created, now)
        return json.dumps(metadata).encode() + data[end:]


def fits(key: str, value: bytes, size: int) -> bool:
    """Return whether a value may be stored; if it is too large, log it."""
    if len(value) <= size:
        return True
    log.warning(
        'app.cache: the value of %r has %s bytes and is not stored, because max_value_size is %s',
        key, f'{len(value):,}', f'{size:,}',
    )  # fmt: skip
    return False


MEMORY_BACKEND = 'onegov_ormcache.memory'
REDIS_BACKEND = 'onegov_ormcache.redis'
for name, backend in ((MEMORY_BACKEND, TenantMemoryBackend), (REDIS_BACKEND, TenantRedisBackend)):
    register_backend(name, __name__, backend.__name__)  # type: ignore[no-untyped-call]
