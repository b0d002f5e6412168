"""The process tier: values of this process, shared by its threads, bounded in bytes.

Values are kept as bytes. A deeply immutable value is kept as it is too, and all requests
share it; any other value is decoded anew for each request. The tier does not know whether
a value is still valid.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

from .bounded import BoundedCache
from .serializer import Encoded

#: The versions of a value's tags, by tag, as the tag store gave them.
Stamp: TypeAlias = Mapping[str, str]

#: Bytes that an entry takes beside its data, as measured: keys, stamp, bookkeeping.
OVERHEAD = 600


class StoredValue(NamedTuple):
    """A value as the process tier and the shared tier store it; made by a run of its creator."""

    #: The versions of all tags that it depends on.
    stamp: Stamp
    encoded: Encoded
    #: The time of this process's monotonic clock at which it expires, by what its property says
    #: or a setting; None: never.
    expires: float | None


class Slot(NamedTuple):
    """An entry of the process tier."""

    stored: StoredValue
    #: The value itself, if it is immutable, so that requests can share it; else None.
    value: object


class ProcessTier(BoundedCache[Slot]):
    """The process tier, made once per cache; ``of(prefix)`` is one tenant's part.

    :param size: the number of bytes that it may hold, over all tenants.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size, _size)


def bytes_taken(encoded: Encoded, is_shared: bool) -> int:
    """Return the number of bytes that a value takes in the process tier.

    :param is_shared: True if all requests share the value itself, which is kept beside its bytes
        then, and takes about three times their size.
    """
    return OVERHEAD + (4 if is_shared else 1) * len(encoded.data)


def _size(slot: Slot) -> int:
    return bytes_taken(slot.stored.encoded, slot.value is not None)
