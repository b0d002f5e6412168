"""The process tier: values of this process, shared by its threads, bounded in bytes.

Values are kept encoded, and beside that as they are if they are deeply
immutable; whatever a request can change is decoded anew for it.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from threading import Lock
from typing import NamedTuple

from cachetools import LRUCache

from ..tags.snapshot import Stamp
from .serializer import Encoded

#: Bytes that an entry takes beside its data: keys, stamp, bookkeeping (measured).
OVERHEAD = 600


class StoredValue(NamedTuple):
    """A value as the tiers keep it, made by the run of a creator."""

    #: The versions of all tags it depends on.
    stamp: Stamp
    encoded: Encoded
    #: When its creator ran: seconds since the epoch of the system's clock.
    created: float


class Slot(NamedTuple):
    """What the process tier holds: the value's bytes, and the value if it is immutable."""

    stored: StoredValue
    value: object


class ProcessTier:
    """Made once per root app; least recently used values go first.

    :param size: how many bytes it may hold, over all tenants.
    """

    def __init__(self, size: int) -> None:
        self._lock = Lock()
        self._slots: LRUCache[str, Slot] = LRUCache(size, getsizeof=_size)

    def get(self, key: str) -> Slot | None:
        with self._lock:
            return self._slots.get(key)

    def put(self, key: str, slot: Slot) -> None:
        """Keep the value, unless it alone is larger than the tier."""
        with self._lock:
            self._slots.pop(key, None)
            if _size(slot) <= self._slots.maxsize:
                self._slots[key] = slot

    def remove(self, key: str) -> None:
        with self._lock:
            self._slots.pop(key, None)

    @property
    def bytes_held(self) -> int:
        """How many bytes the values take now."""
        return int(self._slots.currsize)

    def held(self) -> list[str]:
        """The keys of all tenants' values."""
        with self._lock:
            return list(self._slots)

    def of(self, prefix: str) -> MutableMapping[str, Slot]:
        """The part of one tenant: a mapping of the keys that begin with its prefix."""
        return TenantView(self, prefix)


class TenantView(MutableMapping[str, Slot]):
    """One tenant's part of the process tier, as a mapping."""

    def __init__(self, tier: ProcessTier, prefix: str) -> None:
        self._tier = tier
        self._prefix = prefix

    def __getitem__(self, key: str) -> Slot:
        slot = self._tier.get(self._prefix + key)
        if slot is None:
            raise KeyError(key)
        return slot

    def __setitem__(self, key: str, slot: Slot) -> None:
        self._tier.put(self._prefix + key, slot)

    def __delitem__(self, key: str) -> None:
        self._tier.remove(self._prefix + key)

    def __iter__(self) -> Iterator[str]:
        start = len(self._prefix)
        return (key[start:] for key in self._tier.held() if key.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _size(slot: Slot) -> int:
    # an immutable value is held beside its bytes: about three times their size
    factor = 1 if slot.value is None else 4
    return OVERHEAD + factor * len(slot.stored.encoded.data)
