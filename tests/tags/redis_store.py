"""Shortcuts for tests of the tag store on Redis, in the namespace that they share."""

from __future__ import annotations

from onegov_ormcache.redis_client.client import hash_tag
from onegov_ormcache.tags.redis import RedisTagStore
from onegov_ormcache.tags.snapshot import Snapshot, Stamp
from tests.tags.conformance import put_in_doubt

NAMESPACE = 'town'
KEY = '{town:main}:tags'
VALUE = '{town:main}:value:users'


def fill(store: RedisTagStore, stamp: Stamp, schema: str = 'main') -> bool:
    key = f'{hash_tag(store._namespace, schema)}:value:any'
    return store.fill(schema, stamp, key, b'value', None)


def commit(store: RedisTagStore, *tags: str) -> None:
    put_in_doubt(store, 'main', 'w', *tags)
    store.publish('main', 'w', tags)


def settle_down(store: RedisTagStore) -> Snapshot:
    """Have the tenant born, and its quarantine ended."""
    store.quarantine('main', store.snapshot('main').birth, [])
    return store.snapshot('main')
