"""The scripts run as functions that know their server, on servers without functions, too."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

import pytest
import redis

from onegov_ormcache.errors import StoreUnreachable
from onegov_ormcache.redis_client.client import Client, connect
from onegov_ormcache.tags import scripts
from onegov_ormcache.tags.redis import RedisTagStore
from tests.support.counting import RedisCommands
from tests.support.servers import RedisServer
from tests.tags.conformance import PAGES, USERS, put_in_doubt
from tests.tags.redis_store import NAMESPACE, commit, fill


@contextmanager
def without_functions(server: RedisServer) -> Iterator[redis.Redis]:
    """A client of a server on which nobody may use functions."""
    with closing(server.client()) as plain:
        plain.execute_command('ACL', 'SETUSER', 'default', '-fcall', '-function')
    with closing(connect(server.url, 10)) as client:
        yield client


@pytest.fixture
def other_redis() -> Iterator[RedisServer]:
    """A second server."""
    with RedisServer() as server:
        yield server


class Proxy:
    """Forwards connections to a server, which can be exchanged: the clients' connections stay."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._listening = socket.create_server(('127.0.0.1', 0))
        self.url = f'redis://127.0.0.1:{self._listening.getsockname()[1]}/0'
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._forward, args=[client], daemon=True).start()

    def _forward(self, client: socket.socket) -> None:
        port, server = self.port, socket.create_connection(('127.0.0.1', self.port))
        with suppress(OSError), client:
            while True:
                ready, _, _ = select.select([client, server], [], [])
                if client in ready:
                    if not (sent := client.recv(1 << 16)):
                        break
                    if port != self.port:
                        server.close()
                        port = self.port
                        server = socket.create_connection(('127.0.0.1', port))
                    server.sendall(sent)
                else:
                    if not (received := server.recv(1 << 16)):
                        break  # the server has ended: this socket would be ready for ever
                    client.sendall(received)
        server.close()


def test_server_behind_a_proxy(own_redis: RedisServer, other_redis: RedisServer) -> None:
    """Another server behind the same connection, which has an older copy, is noticed at once."""
    with closing(Proxy(own_redis.port)) as proxy, closing(connect(proxy.url, 10)) as client:
        store = RedisTagStore(client, NAMESPACE, quarantined=False)
        commit(store, USERS)
        old = store.snapshot('main')
        own_redis.save()
        other_redis.stop()
        (own_redis.folder / 'dump.rdb').rename(other_redis.folder / 'dump.rdb')
        other_redis.start()
        commit(store, USERS)
        assert store.snapshot('main').version(USERS) != old.version(USERS)
        proxy.port = other_redis.port
        assert not fill(store, old.stamp([USERS]))
        assert not store.snapshot('main').agrees(old.stamp([USERS]))


def test_promoted_replica(own_redis: RedisServer, other_redis: RedisServer) -> None:
    """A replica that gets the functions from its primary does not take itself for it."""
    with closing(connect(own_redis.url, 10)) as client, closing(other_redis.client()) as replica:
        store = RedisTagStore(client, NAMESPACE, quarantined=False)
        commit(store, USERS)
        old = store.snapshot('main')
        replica.replicaof('127.0.0.1', str(own_redis.port))
        while replica.info('replication')['master_link_status'] != 'up':
            pass
        assert replica.function_list()
        replica.execute_command('REPLICAOF', 'NO', 'ONE')
    with closing(connect(other_redis.url, 10)) as client:
        store = RedisTagStore(client, NAMESPACE, quarantined=False)
        assert not store.snapshot('main').agrees(old.stamp([USERS]))


def test_the_server_is_asked_now_and_then(
    store: RedisTagStore, client: redis.Redis, own_redis: RedisServer
) -> None:
    """The functions ask the server who it is at most once per 10 ms, and not in each call."""
    store.snapshot('main')
    client.config_resetstat()
    began = time.monotonic()
    for _ in range(100):
        store.snapshot('main')
        commit(store, USERS)
    periods = (time.monotonic() - began) * 1000 // scripts.KNOWN_MILLISECONDS + 1
    asked = client.info('commandstats').get('cmdstat_info', {'calls': 0})['calls']
    assert asked <= 2 * periods


def test_a_server_without_functions(own_redis: RedisServer) -> None:
    """The scripts run one by one, and notice a restart from an older dump as well."""
    with without_functions(own_redis) as client:
        store = RedisTagStore(client, NAMESPACE, quarantined=False)
        commit(store, USERS)
        assert not store.scripts.has_functions
        old = store.snapshot('main')
        assert fill(store, old.stamp([USERS]))
        own_redis.save()
        with RedisCommands(own_redis.url) as seen:
            commit(store, USERS)
            assert not store.snapshot('main').agrees(old.stamp([USERS]))
        assert [command[0] for command in seen.commands] == ['EVALSHA'] * 3
        own_redis.kill()
        own_redis.start()
        assert not store.snapshot('main').agrees(old.stamp([USERS]))


def test_forgotten_by_a_server_without_functions(own_redis: RedisServer) -> None:
    """A doubt teaches all scripts again, also that whose reply nobody waits for."""
    with without_functions(own_redis) as client:
        store = RedisTagStore(client, NAMESPACE, quarantined=False)
        before = store.snapshot('main')
        commit(store, PAGES)
        client.script_flush()
        commit(store, USERS)
        assert not store.snapshot('main').agrees(before.stamp([USERS]))
        assert not store.snapshot('main').doubts


def test_forgotten_functions(store: RedisTagStore, client: redis.Redis) -> None:
    """A server that has forgotten the functions is taught them again, by whatever comes first."""
    before = store.snapshot('main')
    client.function_flush()
    assert store.snapshot('main') is before
    client.function_flush()
    commit(store, USERS)
    assert not store.snapshot('main').agrees(before.stamp([USERS]))
    assert not store.snapshot('main').doubts


def test_functions_forgotten_within_a_commit(
    store: RedisTagStore, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """New versions that were not published are a doubt, which is settled; the log says why."""
    before = store.snapshot('main')
    put_in_doubt(store, 'main', 'w', USERS)
    client.function_flush()
    store.publish('main', 'w', [USERS])
    assert store.snapshot('main').in_doubt == {USERS}
    assert 'main: committed, but the new versions may be lost' in caplog.text
    store.settle('main', 'w', None)
    assert not store.snapshot('main').agrees(before.stamp([USERS]))


def test_other_releases(
    store: RedisTagStore, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release with other scripts uses the same server, each with its own functions."""
    original = scripts.script
    monkeypatch.setattr(scripts, 'script', lambda name: original(name) + '-- another release\n')
    other = RedisTagStore(client, NAMESPACE, quarantined=False)
    for each in (store, other, store):
        commit(each, USERS)
    assert store.snapshot('main') == other.snapshot('main')
    assert len(client.function_list()) == 2


def test_processes_that_start_at_once(client: Client) -> None:
    """A store that loads what another one has loaded meanwhile goes on with that."""
    stores = [RedisTagStore(client, NAMESPACE, quarantined=False) for _ in range(2)]
    stores[0].snapshot('main')
    stores[1].scripts.mend(redis.ResponseError('Function not found'), client)
    assert stores[0].snapshot('main') == stores[1].snapshot('main')
    assert len(client.function_list()) == 1


def test_a_server_without_memory(
    store: RedisTagStore, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """A full server stores no more values, and still takes doubts and new versions."""
    stamp = store.snapshot('main').stamp([PAGES])
    lock = '{town:main}:lock', 'token'
    client.set(*lock)
    client.config_set('maxmemory', '1')
    for _ in range(3):
        assert not fill(store, stamp)
    assert caplog.text.count('maxmemory') == 1
    assert not fill(store, stamp, lock=lock)
    assert store.holder(lock) is None, 'nobody may wait for it'
    before = store.snapshot('main')
    commit(store, USERS)
    assert not store.snapshot('main').agrees(before.stamp([USERS]))


def test_wrong_rights(own_redis: RedisServer) -> None:
    """A user who may run neither functions nor scripts is told so."""
    with closing(own_redis.client()) as plain:
        plain.execute_command('ACL', 'SETUSER', 'default', '-@scripting')
    with closing(connect(own_redis.url, 10)) as client:
        with pytest.raises(StoreUnreachable, match='permission'):
            RedisTagStore(client, NAMESPACE, quarantined=False).snapshot('main')
