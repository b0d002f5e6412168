"""The process tier: values of this process, shared by its threads, bounded in bytes.

Values are kept encoded, and beside that as they are if they are deeply
immutable; whatever a request can change is decoded anew for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

from .bounded import BoundedCache
from .serializer import Encoded

#: Versions by tag, as the tag store gave them.
Stamp: TypeAlias = Mapping[str, str]

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


class ProcessTier(BoundedCache[Slot]):
    """Made once per root app; ``of(prefix)`` is one tenant's part.

    :param size: how many bytes it may hold, over all tenants.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size, _size)


def _size(slot: Slot) -> int:
    # an immutable value is held beside its bytes: about three times their size
    factor = 1 if slot.value is None else 4
    return OVERHEAD + factor * len(slot.stored.encoded.data)
