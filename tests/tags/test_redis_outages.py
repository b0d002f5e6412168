"""Each method raises StoreUnreachable while Redis does not answer, and works again after that."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import pytest
import redis

from onegov_ormcache.errors import ConfigurationError, StoreUnreachable
from onegov_ormcache.redis_client.client import connect
from onegov_ormcache.tags.redis import RedisTagStore
from tests.support.servers import RedisServer
from tests.tags.conformance import USERS, put_in_doubt
from tests.tags.redis_store import NAMESPACE, commit, fill


def every_method(store: RedisTagStore) -> dict[str, Callable[[], object]]:
    return {
        'check': store.check,
        'snapshot': lambda: store.snapshot('main'),
        'doubt': lambda: put_in_doubt(store, 'main', 'w', USERS),
        'publish': lambda: store.publish('main', 'w', [USERS]),
        'end_doubt': lambda: store.end_doubt('main', 'w'),
        'settle': lambda: store.settle('main', 'w', None),
        'quarantine': lambda: store.quarantine('main', 'birth', []),
        'renew': lambda: store.renew('main'),
        'fill': lambda: fill(store, {USERS: 'version'}),
    }


def test_killed_server(store: RedisTagStore, own_redis: RedisServer) -> None:
    """Without a server every method raises one error, and works again when it is back."""
    before = store.snapshot('main')
    own_redis.kill()
    for method in every_method(store).values():
        with pytest.raises(StoreUnreachable, match='Redis'):
            method()
    own_redis.start()
    assert store.snapshot('main').birth != before.birth


def test_paused_server(own_redis: RedisServer) -> None:
    """A server that stalls is given up after the timeout, by every method."""
    with closing(connect(own_redis.url, 0.05)) as client:
        store = RedisTagStore(client, NAMESPACE, quarantined=False)
        store.snapshot('main')
        own_redis.pause()
        for method in every_method(store).values():
            with pytest.raises(StoreUnreachable):
                method()
        own_redis.resume()
    with closing(connect(own_redis.url, 10)) as client:
        store = RedisTagStore(client, NAMESPACE, quarantined=False)
        before = store.snapshot('main')
        commit(store, USERS)
        assert not store.snapshot('main').agrees(before.stamp([USERS]))


def test_lost_connections_are_made_again(store: RedisTagStore, own_redis: RedisServer) -> None:
    """A connection that the server closed costs no error."""
    before = store.snapshot('main')
    with closing(own_redis.client()) as plain:
        plain.client_kill_filter(skipme=True, _type='normal')
    assert store.snapshot('main') is before


def test_forgotten_scripts(store: RedisTagStore, client: redis.Redis) -> None:
    """A server that has forgotten the scripts is taught them again."""
    before = store.snapshot('main')
    client.script_flush()
    assert store.snapshot('main') is before
    client.script_flush()
    commit(store, USERS)
    assert not store.snapshot('main').agrees(before.stamp([USERS]))


@pytest.mark.parametrize(
    'url', ['http://localhost', 'localhost:6379', '', 'redis://localhost:port/0']
)
def test_wrong_url(url: str) -> None:
    """A URL of no known kind is refused before anything connects to it."""
    with pytest.raises(ConfigurationError, match='redis_url'):
        connect(url, 1)


def test_wrong_url_keeps_its_password() -> None:
    """The error about a wrong URL can be logged, as it does not show the password."""
    with pytest.raises(ConfigurationError) as raised:
        connect('http://user:secret@localhost', 1)
    assert 'secret' not in str(raised.value)


def test_nobody_listens() -> None:
    """`check` raises StoreUnreachable if nothing listens at the URL."""
    with closing(connect('redis://127.0.0.1:1/0', 1)) as client:
        with pytest.raises(StoreUnreachable):
            RedisTagStore(client, NAMESPACE, quarantined=True).check()
