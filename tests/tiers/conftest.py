"""A serializer that knows the classes of serializable.py, and processes with a shared tier."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
import redis

from onegov_ormcache.redis_client.client import connect
from onegov_ormcache.tiers.serializer import Serializer
from tests.tiers.processes import Process, in_memory, on
from tests.tiers.serializable import TYPES


@pytest.fixture
def serializer() -> Serializer:
    return Serializer(TYPES)


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """A client of the shared server."""
    with closing(connect(redis_url, 10)) as made:
        yield made


@pytest.fixture
def one(client: redis.Redis, namespace: str) -> Process:
    """One process on Redis."""
    return on(client, namespace)


@pytest.fixture
def other(client: redis.Redis, namespace: str) -> Process:
    """Another process on the same Redis."""
    return on(client, namespace)


@pytest.fixture(params=['memory', 'redis'])
def either(request: pytest.FixtureRequest) -> Process:
    """A process without Redis, then one with it."""
    if request.param == 'memory':
        return in_memory()
    found: Process = request.getfixturevalue('one')
    return found
