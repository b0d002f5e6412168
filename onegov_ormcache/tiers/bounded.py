"""A cache in the memory of this process, bounded in bytes, for use by all threads.

It does not know what the values and keys are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from typing import Generic, TypeVar

from cachetools import LRUCache

from ..forks import OwnLock

V = TypeVar('V')


class BoundedCache(Generic[V]):
    """A cache that drops the least recently used values when it is full.

    :param size: the number of bytes that the values may take.
    :param size_of: a function that returns the number of bytes that a value takes.
    """

    def __init__(self, size: int, size_of: Callable[[V], int]) -> None:
        self._size_of = size_of
        self._lock = OwnLock()
        self._values: LRUCache[str, V] = LRUCache(size, getsizeof=size_of)

    def get(self, key: str) -> V | None:
        """Return the value of the key; None if there is none."""
        with self._lock.present:
            return self._values.get(key)

    def put(self, key: str, value: V) -> None:
        """Keep the value, unless it alone is larger than the cache."""
        with self._lock.present:
            self._values.pop(key, None)
            if self.has_room_for(value):
                self._values[key] = value

    def has_room_for(self, value: V) -> bool:
        """Return whether the value alone is no larger than the whole cache."""
        return self._size_of(value) <= self._values.maxsize

    def remove(self, key: str, only: V | None = None) -> None:
        """Remove the value of the key, if there is one.

        :param only: removed if it is this object and not one that has replaced it; None: any.
        """
        with self._lock.present:
            if only is None or self._values.get(key) is only:
                self._values.pop(key, None)

    @property
    def bytes_held(self) -> int:
        """The number of bytes that the values take now."""
        return int(self._values.currsize)

    def held(self) -> list[str]:
        """Return all keys."""
        with self._lock.present:
            return list(self._values)

    def of(self, prefix: str) -> MutableMapping[str, V]:
        """Return the values whose keys begin with the prefix, as a mapping. The keys of the
        mapping are without the prefix."""
        return Partition(self, prefix)


class Partition(MutableMapping[str, V]):
    """A view of the part of a :class:`BoundedCache` whose keys have one prefix.

    :meth:`BoundedCache.of` makes it, for example for one tenant. It holds no values itself.
    """

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
