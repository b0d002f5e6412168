"""The shared tiers of processes, on one Redis or in memory."""

from __future__ import annotations

from typing import Any

import redis

from onegov_ormcache.tags.memory import MemoryTagStore
from onegov_ormcache.tags.redis import RedisTagStore
from onegov_ormcache.tiers.claims import Claim
from onegov_ormcache.tiers.process import StoredValue
from onegov_ormcache.tiers.serializer import Encoded, Serializer
from onegov_ormcache.tiers.shared import MemoryTier, RedisTier
from tests.tags.conformance import USERS

#: Seconds that no test lasts.
LONG = 60.0


class Process:
    """The shared tier of one process, with its tag store."""

    def __init__(self, tags: Any, tier: Any) -> None:
        self.tags = tags
        self.tier = tier

    def stamp(self, *tags: str) -> dict[str, str]:
        stamp: dict[str, str] = self.tags.snapshot('main').stamp(tags or (USERS,))
        return stamp

    def claim(self, key: str = 'key', **elsewhere: str) -> Claim:
        """A claim that has entered."""
        claim: Claim = self.tier.claim('main', key, self.stamp(), elsewhere)
        assert claim.enter()
        return claim

    def fill(self, claim: Claim | None = None, data: bytes = b'value', **more: str) -> bool:
        stored = StoredValue({**self.stamp(), **more}, Encoded(data, True), None)
        return bool(self.tier.fill('main', 'key', stored, self.stamp(), claim))

    def value(self, data: bytes = b'value', expires: float | None = None) -> StoredValue:
        """A value that may be stored now."""
        return StoredValue(self.stamp(), Encoded(data, True), expires)

    def get(self, key: str = 'key') -> StoredValue | None:
        found: StoredValue | None = self.tier.get('main', key)
        return found


def on(
    client: redis.Redis,
    namespace: str,
    timeout: float = LONG,
    ttl: float | None = None,
    kept: float | None = None,
) -> Process:
    tags = RedisTagStore(client, namespace, quarantined=False)
    return Process(tags, RedisTier(tags, Serializer(), namespace, ttl, timeout, kept=kept))


def in_memory(ttl: float | None = None, kept: float | None = None) -> Process:
    tags = MemoryTagStore()
    return Process(tags, MemoryTier(tags, Serializer(), 1_000_000, ttl, LONG, kept=kept))
