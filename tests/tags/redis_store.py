"""Shortcuts for tests of the tag store on Redis, in the namespace that they share."""

from __future__ import annotations

import pytest

from onegov_ormcache.redis_client.client import hash_tag
from onegov_ormcache.tags import scripts
from onegov_ormcache.tags.redis import RedisTagStore
from onegov_ormcache.tags.snapshot import Snapshot, Stamp
from tests.tags.conformance import put_in_doubt

NAMESPACE = 'town'
KEY = '{town:main}:tags'
LOG = KEY + ':changes'
VALUE = '{town:main}:value:users'

#: What tells the scripts how many fields a hash has that needs no log.
SMALL = 'local SMALL = 32'


def fill(
    store: RedisTagStore,
    stamp: Stamp,
    schema: str = 'main',
    *,
    key: str | None = None,
    value: bytes = b'value',
    ttl: float | None = None,
    lock: tuple[str, str] | None = None,
) -> bool:
    key = key or f'{hash_tag(store.namespace, schema)}:value:any'
    (is_stored,) = store.fill_many(schema, [(stamp, key, value, ttl, lock)])
    return is_stored


def commit(store: RedisTagStore, *tags: str) -> None:
    put_in_doubt(store, 'main', 'w', *tags)
    store.publish('main', 'w', tags)


def settle_down(store: RedisTagStore) -> Snapshot:
    """Have the tenant born, and its quarantine ended."""
    store.quarantine('main', store.snapshot('main').birth, [])
    return store.snapshot('main')


def with_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the stores that are made from now on keep an index and a log for each tenant, not just
    for those with many tags."""
    original = scripts.script

    def script(name: str) -> str:
        text = original(name)
        assert SMALL in text
        return text.replace(SMALL, 'local SMALL = -1')

    monkeypatch.setattr(scripts, 'script', script)
