"""A cache of this process, bounded in bytes, that all threads may use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from threading import Lock
from typing import Generic, TypeVar

from cachetools import LRUCache

V = TypeVar('V')


class BoundedCache(Generic[V]):
    """Least recently used values go first.

    :param size: how many bytes it may hold.
    :param size_of: how many bytes a value takes.
    """

    def __init__(self, size: int, size_of: Callable[[V], int]) -> None:
        self._size_of = size_of
        self._lock = Lock()
        self._values: LRUCache[str, V] = LRUCache(size, getsizeof=size_of)

    def get(self, key: str) -> V | None:
        with self._lock:
            return self._values.get(key)

    def put(self, key: str, value: V) -> None:
        """Keep the value, unless it alone is larger than the cache."""
        with self._lock:
            self._values.pop(key, None)
            if self.has_room_for(value):
                self._values[key] = value

    def has_room_for(self, value: V) -> bool:
        """Whether the value is not larger than the whole cache."""
        return self._size_of(value) <= self._values.maxsize

    def remove(self, key: str) -> None:
        with self._lock:
            self._values.pop(key, None)

    @property
    def bytes_held(self) -> int:
        """How many bytes the values take now."""
        return int(self._values.currsize)

    def held(self) -> list[str]:
        """All keys."""
        with self._lock:
            return list(self._values)

    def of(self, prefix: str) -> MutableMapping[str, V]:
        """The values whose keys begin with the prefix, as a mapping of what follows it."""
        return Partition(self, prefix)


class Partition(MutableMapping[str, V]):
    """A part of a :class:`BoundedCache`, for example one tenant's."""

    def __init__(self, cache: BoundedCache[V], prefix: str) -> None:
        self._cache = cache
        self._prefix = prefix

    def __getitem__(self, key: str) -> V:
        value = self._cache.get(self._prefix + key)
        if value is None:
            raise KeyError(key)
        return value

    def __setitem__(self, key: str, value: V) -> None:
        self._cache.put(self._prefix + key, value)

    def __delitem__(self, key: str) -> None:
        self._cache.remove(self._prefix + key)

    def __iter__(self) -> Iterator[str]:
        start = len(self._prefix)
        return (key[start:] for key in self._cache.held() if key.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)
