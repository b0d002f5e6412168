"""The request tier: the values of one request scope, in a dictionary.

It does not know when a value stops being valid: the scope does, and removes the value.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any, NamedTuple

from .serializer import Encoded


class TierEntry(NamedTuple):
    """A value in the request tier."""

    value: Any
    #: All tags that the value depends on.
    tags: frozenset[str]
    #: The bytes of an orm-cached value, from which fresh copies are decoded; None for a
    #: request-cached value.
    encoded: Encoded | None
    #: The number of the snapshot, of all the scope has had, with which the value was made.
    snapshot_number: int
    #: True if a creator that has read this value may still store its own value.
    storable: bool
    #: The time of this process's monotonic clock at which a value that is made of this one must
    #: expire; None: it need not. Within its transaction, the value itself stays.
    expires: float | None
    #: The functions of the app or request by whose results the value differs.
    varies: frozenset[Callable[[Any], Any]]
    #: The app or request whose value this is, if its id is part of the key. This reference
    #: keeps the object alive, so that no other object can get the same id.
    instance: Any = None


class RequestTier(dict[Any, TierEntry]):
    """The request tier: entries by key, and the last hit of each descriptor.

    Each request scope makes one, which lives as long as the scope. The hits make a second
    read cost little more than that of a plain property. They are all cleared whenever an
    entry is added, replaced or removed.

    :param shown: returns another mapping, which is shown the values by their keys; nothing is
        read from it.
    """

    def __init__(self, shown: Callable[[], MutableMapping[Any, Any]] | None = None) -> None:
        super().__init__()
        self._shown = shown
        #: By descriptor: the app or request, the value, the variant and the role. By the function
        #: of an app or request, and its arguments: the value, the variant, the role, and the types
        #: of the arguments.
        self.hits: dict[Any, Any] = {}

    def __setitem__(self, key: Any, entry: TierEntry) -> None:
        self.hits.clear()
        super().__setitem__(key, entry)
        if self._shown is not None:
            self._shown()[key] = entry.value

    def __delitem__(self, key: Any) -> None:
        self.hits.clear()
        super().__delitem__(key)
        self._hide(key)

    def pop(self, key: Any, *default: Any) -> Any:
        self.hits.clear()
        self._hide(key)
        return super().pop(key, *default)

    def clear(self) -> None:
        self.hits.clear()
        for key in self if self._shown is not None else ():
            self._hide(key)
        super().clear()

    def _hide(self, key: Any) -> None:
        if self._shown is not None:
            self._shown().pop(key, None)
