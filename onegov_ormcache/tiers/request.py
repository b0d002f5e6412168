"""The request tier: values of one request scope, in a dictionary of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .serializer import Encoded


class TierEntry(NamedTuple):
    """A value in the request tier."""

    value: Any
    #: All tags that the value depends on.
    tags: frozenset[str]
    #: Its bytes, if a fresh copy can be made of it; None for request-cached values.
    encoded: Encoded | None
    #: Which of the scope's snapshots it was made with.
    snapshot_number: int
    #: Whether a creator may store what it makes of this value.
    storable: bool
    #: What the value differs by: functions of the app or request.
    varies: frozenset[Callable[[Any], Any]]
    #: Whose value it is, if the key has the instance's id: which is no other's as long as
    #: this lives.
    instance: Any = None


class RequestTier(dict[Any, TierEntry]):
    """The request tier, which knows beside its entries the last hit of each descriptor.

    The hits are what makes a second read cost little more than a plain property; what
    removes or replaces an entry removes them all.
    """

    def __init__(self) -> None:
        super().__init__()
        #: By descriptor: the instance, the value, for which variant, and the role.
        self.hits: dict[Any, tuple[Any, Any, str, Any]] = {}

    def __setitem__(self, key: Any, entry: TierEntry) -> None:
        self.hits.clear()
        super().__setitem__(key, entry)

    def __delitem__(self, key: Any) -> None:
        self.hits.clear()
        super().__delitem__(key)

    def pop(self, key: Any, *default: Any) -> Any:
        self.hits.clear()
        return super().pop(key, *default)

    def clear(self) -> None:
        self.hits.clear()
        super().clear()
