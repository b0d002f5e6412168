"""The tag store does what every tag store must behind Sentinels, and on a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from onegov_ormcache.redis_client.client import connect
from onegov_ormcache.tags.redis import RedisTagStore
from tests.tags.test_redis import TestRedisTagStore as OfOneServer


class TestRedisSets(OfOneServer):
    """Runs the tests that every tag store must pass."""

    @pytest.fixture
    def store(self, set_url: str, namespace: str) -> Iterator[RedisTagStore]:
        """A store on the shared servers, in a namespace of the test's own."""
        with closing(connect(set_url, 10)) as client:
            yield RedisTagStore(client, namespace, quarantined=False)

    @pytest.fixture
    def other(self, set_url: str, namespace: str) -> Iterator[RedisTagStore]:
        """A second store on the same namespace, as another process would have."""
        with closing(connect(set_url, 10)) as client:
            yield RedisTagStore(client, namespace, quarantined=False)
