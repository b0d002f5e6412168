"""Events: they say what the cache did, for tests, demos and debugging.

This module does not know who records them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, NamedTuple, TypeAlias

Tier: TypeAlias = Literal['request', 'process', 'shared', 'creator']


class CacheEvent(NamedTuple):
    """One read of a property or one commit; made only while somebody records."""

    kind: Literal['read', 'commit']
    schema: str
    #: The property that was read, with its class; '' for a commit.
    name: str = ''
    #: The tier that the value came from, ``'creator'`` if it was computed; None for a commit.
    tier: Tier | None = None
    #: The tags that the value depends on, or those that the commit has changed.
    tags: frozenset[str] = frozenset()

    @classmethod
    def read(cls, schema: str, name: str, tier: Tier, tags: Collection[str]) -> CacheEvent:
        """Return the event of a read."""
        return cls('read', schema, name, tier, frozenset(tags))

    @classmethod
    def commit(cls, schema: str, tags: Collection[str]) -> CacheEvent:
        """Return the event of a commit that changed these tags."""
        return cls('commit', schema, tags=frozenset(tags))
