"""A server that becomes the primary trusts no key, not even one that it has written itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
import redis

from onegov_ormcache.redis_client.client import connect
from onegov_ormcache.tags import scripts
from onegov_ormcache.tags.redis import RedisTagStore
from tests.support.redis_sets import replicate
from tests.support.servers import RedisServer
from tests.tags.conformance import USERS
from tests.tags.redis_store import NAMESPACE, commit, fill


@pytest.fixture
def second() -> Iterator[RedisServer]:
    """A server that replicates the first one, at the beginning."""
    with RedisServer('--repl-diskless-sync-delay', '0') as server:
        yield server


def promote(server: RedisServer) -> None:
    with closing(server.client()) as plain:
        plain.replicaof('NO', 'ONE')


def let_pass(client: redis.Redis, milliseconds: float) -> None:
    """Ask a server for its time until this much has passed."""
    seconds, micro = began = client.time()
    while (seconds - began[0]) * 1000 + (micro - began[1]) / 1000 <= milliseconds:
        seconds, micro = client.time()


@pytest.fixture(params=[True, False], ids=['functions', 'scripts'])
def stores(
    own_redis: RedisServer, second: RedisServer, request: pytest.FixtureRequest
) -> Iterator[list[RedisTagStore]]:
    """A store on each of the two servers, with and without functions."""
    if not request.param:
        for server in own_redis, second:
            with closing(server.client()) as plain:
                plain.execute_command('ACL', 'SETUSER', 'default', '-fcall')
    with closing(connect(own_redis.url, 10)) as one, closing(connect(second.url, 10)) as two:
        yield [RedisTagStore(each, NAMESPACE, quarantined=False) for each in (one, two)]


@pytest.mark.parametrize('resync', ['partial', 'full'])
def test_the_first_primary_again(
    stores: list[RedisTagStore], own_redis: RedisServer, second: RedisServer, resync: str
) -> None:
    """The first primary, never restarted, comes back without what the second one has acknowledged:
    its old versions are not valid again."""
    first_store, second_store = stores
    replicate(second, own_redis)
    commit(first_store, USERS)
    old = first_store.snapshot('main')
    assert fill(first_store, old.stamp([USERS]))
    with closing(own_redis.client()) as plain, closing(second.client()) as copy:
        plain.wait(1, 5000)
        promote(second)
        if resync == 'full':
            copy.execute_command('DEBUG', 'CHANGE-REPL-ID')
        replicate(own_redis, second)
        let_pass(plain, scripts.KNOWN_MILLISECONDS)
    promote(own_redis)  # nothing is sent there yet, so the next commit is one that was lost
    commit(second_store, USERS)
    second.kill()
    assert not first_store.snapshot('main').agrees(old.stamp([USERS]))
    assert not fill(first_store, old.stamp([USERS]))
