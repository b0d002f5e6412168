"""Says what the cache did, for tests, demos and those who wonder."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, NamedTuple, TypeAlias

Tier: TypeAlias = Literal['request', 'process', 'shared', 'creator']


class CacheEvent(NamedTuple):
    """One thing that the cache did, in the order in which it did it."""

    kind: Literal['read', 'commit']
    schema: str
    #: The property that was read, with its class; '' for a commit.
    name: str = ''
    #: Where the value came from; None for a commit.
    tier: Tier | None = None
    #: What the value depends on, or what the commit evicted.
    tags: frozenset[str] = frozenset()

    @classmethod
    def read(cls, schema: str, name: str, tier: Tier, tags: Collection[str]) -> CacheEvent:
        """A property was read."""
        return cls('read', schema, name, tier, frozenset(tags))

    @classmethod
    def commit(cls, schema: str, tags: Collection[str]) -> CacheEvent:
        """A transaction was committed that changed these tags."""
        return cls('commit', schema, tags=frozenset(tags))
