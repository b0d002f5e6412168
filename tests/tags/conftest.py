"""A client and tag stores on a Redis server of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from onegov_ormcache.redis_client.client import Client, connect
from onegov_ormcache.tags.redis import RedisTagStore
from tests.support.servers import RedisServer
from tests.tags.redis_store import NAMESPACE


@pytest.fixture
def client(own_redis: RedisServer) -> Iterator[Client]:
    """A client of the test's own server, made as applications make theirs."""
    with closing(connect(own_redis.url, 10)) as made:
        yield made


@pytest.fixture
def store(client: Client) -> RedisTagStore:
    """A store on the test's own server, without quarantines."""
    return RedisTagStore(client, NAMESPACE, quarantined=False)


@pytest.fixture
def quarantined(client: Client) -> RedisTagStore:
    """A store on the test's own server, beside a database that knows its writers."""
    return RedisTagStore(client, NAMESPACE, quarantined=True)
