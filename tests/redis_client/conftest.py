"""A client of a Redis server of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from onegov_ormcache.redis_client.client import Client, connect
from tests.support.servers import RedisServer


@pytest.fixture
def client(own_redis: RedisServer) -> Iterator[Client]:
    """A client of the test's own server, made as applications make theirs."""
    with closing(connect(own_redis.url, 10)) as made:
        yield made


@pytest.fixture
def hasty(own_redis: RedisServer) -> Iterator[Client]:
    """A client that does not wait for long."""
    with closing(connect(own_redis.url, 0.2)) as made:
        yield made
