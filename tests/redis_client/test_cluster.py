"""On a cluster each tenant is on one node: moved keys and lost nodes concern no other tenants."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis

from onegov_ormcache.errors import StoreUnreachable
from onegov_ormcache.redis_client.client import Client, ClusterClient, connect
from onegov_ormcache.tags.redis import RedisTagStore
from onegov_ormcache.tiers.locks import RedisMutex
from tests.support.redis_sets import ClusterNode, ClusterSet
from tests.support.servers import free_port
from tests.tags.conformance import PAGES, USERS, put_in_doubt
from tests.tags.redis_store import NAMESPACE, fill

TENANTS = [f'tenant{number}' for number in range(12)]


@pytest.fixture(scope='module')
def whole_cluster() -> Iterator[ClusterSet]:
    """A cluster for tests that leave it as it was."""
    with ClusterSet(password='secret/of#nodes') as made:
        yield made


@pytest.fixture
def cluster() -> Iterator[ClusterSet]:
    """A cluster of the test's own, with a replica of the first node."""
    with ClusterSet(replicas=1, password='secret/of#nodes') as made:
        yield made


@pytest.fixture
def client(cluster: ClusterSet) -> Iterator[Client]:
    with closing(connect(cluster.url, 5)) as made:
        yield made


@pytest.fixture
def store(client: Client) -> RedisTagStore:
    return RedisTagStore(client, NAMESPACE, quarantined=False)


def key(tenant: str) -> str:
    return f'{{{NAMESPACE}:{tenant}}}:tags'


def tenant_of(cluster: ClusterSet, node: ClusterNode) -> str:
    """Return a tenant whose keys the node has."""
    return next(each for each in TENANTS if cluster.node_of(key(each)) is node)


def changed(store: RedisTagStore, tenant: str) -> bool:
    """Change a tenant's tag; return whether its values are invalid then."""
    before = store.snapshot(tenant)
    assert fill(store, before.stamp([USERS]), tenant)
    put_in_doubt(store, tenant, 'w', USERS)
    store.publish(tenant, 'w', [USERS])
    return not store.snapshot(tenant).agrees(before.stamp([USERS]))


def test_tenants_are_spread(whole_cluster: ClusterSet) -> None:
    """Each node has some tenants, whole; a client that begins with any node finds all."""
    cluster = whole_cluster
    with closing(connect(cluster.url, 5)) as client:
        store = RedisTagStore(client, NAMESPACE, quarantined=False)
        for tenant in TENANTS:
            assert changed(store, tenant)
    assert all(node.ask('DBSIZE') > 0 for node in cluster.nodes)
    for tenant in TENANTS:
        keys = cluster.node_of(key(tenant)).ask('KEYS', f'{{{NAMESPACE}:{tenant}}}*')
        assert key(tenant).encode() in keys
    one = cluster.url.rpartition(',')[0]
    with closing(connect(one, 5)) as other:
        assert RedisTagStore(other, NAMESPACE, quarantined=False).snapshot(TENANTS[0]).versions


def test_a_lost_node_and_its_replica(
    store: RedisTagStore, client: Client, cluster: ClusterSet, caplog: pytest.LogCaptureFixture
) -> None:
    """While a node is lost, the tenants of others go on. Its replica then takes its place, with
    new births for its tenants. A new process may start all the same."""
    lost = tenant_of(cluster, cluster.nodes[0])
    other = tenant_of(cluster, cluster.nodes[1])
    assert changed(store, lost)
    assert changed(store, other)
    old = store.snapshot(lost)
    known = store.snapshot(other)
    cluster.nodes[0].kill()
    with pytest.raises(StoreUnreachable):
        store.snapshot(lost)
    assert store.snapshot(other) is known
    assert changed(store, other)
    client.ask(client.ping)
    with closing(connect(cluster.url, 5)) as another:
        fresh = RedisTagStore(another, NAMESPACE, quarantined=False)
        fresh.check()
        assert fresh.snapshot(other).agrees(store.snapshot(other).stamp([USERS]))
    assert [r.message for r in caplog.records if r.levelno >= logging.WARNING] == [
        message for message in caplog.messages if f':{cluster.nodes[0].port}' in message
    ]
    cluster.fail_over()
    client._cluster._next_look = 0.0  # type: ignore[attr-defined]
    assert not store.snapshot(lost).agrees(old.stamp([USERS]))
    assert changed(store, lost)


def move_slot(cluster: ClusterSet, tenant: str, target: ClusterNode) -> tuple[ClusterNode, int]:
    """Begin to move the slot of a tenant's keys; return the node that has them, and the slot."""
    source = cluster.node_of(key(tenant))
    slot = source.ask('CLUSTER', 'KEYSLOT', key(tenant))
    names = [each.ask('CLUSTER', 'MYID').decode() for each in (source, target)]
    target.ask('CLUSTER', 'SETSLOT', slot, 'IMPORTING', names[0])
    source.ask('CLUSTER', 'SETSLOT', slot, 'MIGRATING', names[1])
    return source, slot


def test_keys_that_move(store: RedisTagStore, client: Client, cluster: ClusterSet) -> None:
    """While the keys of a tenant move, commands with one key reach the node that has it; the
    cluster refuses those with several, which opens no breaker. Afterwards all go on."""
    target = cluster.nodes[2]
    tenant = tenant_of(cluster, cluster.nodes[1])
    assert changed(store, tenant)
    old = store.snapshot(tenant)
    source, slot = move_slot(cluster, tenant, target)
    for name in source.ask('CLUSTER', 'GETKEYSINSLOT', slot, 100):
        auth = 'AUTH', 'secret/of#nodes'
        source.ask('MIGRATE', '127.0.0.1', target.port, name, 0, 5000, *auth)
    assert client.get(f'{{{NAMESPACE}:{tenant}}}:value:any') == b'value'
    store.renew(tenant)
    birth = client.hgetall(key(tenant))[b'birth']
    assert birth != old.birth.encode()
    # a tenant with many tags has a log of changes beside its key; the scripts do without it
    tags = [f'property:{number}' for number in range(50)]
    store.register(tenant, tags)
    assert put_in_doubt(store, tenant, 'w', USERS) == {USERS, *tags}
    store.end_doubt(tenant, 'w')
    with pytest.raises(StoreUnreachable, match='during rehashing'):
        store.snapshot(tenant)
    assert not client.at(key(tenant)).breaker.is_open
    for node in (target, source, cluster.nodes[0]):
        node.ask('CLUSTER', 'SETSLOT', slot, 'NODE', target.ask('CLUSTER', 'MYID').decode())
    moved = store.snapshot(tenant)
    assert moved.birth.encode() == birth
    assert not moved.agrees(old.stamp([USERS]))
    assert moved.property_tags == set(tags)
    assert changed(store, tenant)
    assert source.ask('CLUSTER', 'COUNTKEYSINSLOT', slot) == 0


def test_new_versions_for_keys_that_have_moved(
    store: RedisTagStore, cluster: ClusterSet, caplog: pytest.LogCaptureFixture
) -> None:
    """A doubt whose answer is awaited follows a redirection; new versions that nobody waits for
    are lost, which the log says, and the doubt stands until it is settled."""
    target = cluster.nodes[2]
    tenant = tenant_of(cluster, cluster.nodes[1])
    store.snapshot(tenant)
    source, slot = move_slot(cluster, tenant, target)
    name = target.ask('CLUSTER', 'MYID').decode()
    for each in source.ask('CLUSTER', 'GETKEYSINSLOT', slot, 100):
        source.ask('DEL', each)
    for node in (target, source):
        node.ask('CLUSTER', 'SETSLOT', slot, 'NODE', name)
    before = store.snapshot(tenant)
    # this process does not know of the move
    store.client._cluster._is_outdated = False  # type: ignore[attr-defined]
    assert store.doubt(tenant, 'w', [USERS], [], '1', {}).result() == {USERS}
    store.client._cluster._moved.clear()  # type: ignore[attr-defined]
    store.publish(tenant, 'w', [USERS])
    store.client.at(key(tenant)).ping()
    assert store.snapshot(tenant).in_doubt == {USERS}
    assert 'new versions may be lost' in caplog.text
    store.settle(tenant, 'w', None)
    assert not store.snapshot(tenant).agrees(before.stamp([USERS]))
    assert store.snapshot(tenant).agrees(before.stamp([PAGES]))


def test_locks(whole_cluster: ClusterSet) -> None:
    """The locks of values that applications cache by hand work on each node."""
    with closing(connect(whole_cluster.url, 5)) as client:
        for tenant in TENANTS[:6]:
            name = f'{{{NAMESPACE}:{tenant}}}:cache:x:lock'
            first, second = RedisMutex(client, name, 5), RedisMutex(client, name, 5)
            assert first.acquire()
            assert not second.acquire(wait=False)
            first.release()
            assert second.acquire(wait=False)
            second.release()


def test_connecting_sends_nothing() -> None:
    """A client of a cluster that is away can be made; its use says what is wrong, once per
    second and without a password."""
    ports = free_port(), free_port()
    url = f'redis+cluster://:secret@127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}'
    with closing(connect(url, 5)) as client:
        assert isinstance(client, ClusterClient)
        for _ in range(2):
            with pytest.raises(StoreUnreachable, match='no node of the cluster') as raised:
                client.at('a')
            assert 'secret' not in f'{raised.value} {raised.value.__cause__!r}'
        with pytest.raises(redis.RedisError, match='no node of the cluster'):
            client.get('a')
        assert client.breaker.is_open


def test_a_plain_server_is_no_cluster(redis_url: str) -> None:
    """A server that is in no cluster is named as the reason."""
    url = redis_url.replace('redis://', 'redis+cluster://')
    with closing(connect(url, 5)) as client:
        with pytest.raises(StoreUnreachable, match='Cluster mode is not enabled'):
            client.at('a')


def test_tls_options_reach_the_nodes(tmp_path: Path) -> None:
    """All connections to a cluster use TLS with the options of the URL: those that look at the
    cluster, and those to its nodes."""
    options = f'ssl_ca_certs={tmp_path}/ca.pem&ssl_check_hostname=no'
    with closing(connect(f'rediss+cluster://:secret@127.0.0.1:1?{options}', 5)) as client:
        assert isinstance(client, ClusterClient)
        used = client._cluster.node('127.0.0.1', 1).connection_pool.make_connection()
        assert used.ca_certs == f'{tmp_path}/ca.pem'  # type: ignore[attr-defined]
        assert used.check_hostname is False  # type: ignore[attr-defined]
        assert used.credential_provider is None
        assert client._cluster._options['ssl'] is True
        with pytest.raises(StoreUnreachable):
            client.at('a')


def test_a_stalled_node_gets_each_script_once(whole_cluster: ClusterSet) -> None:
    """A script whose answer does not come in time is not sent again, and the node is not asked
    again for a while; other nodes are."""
    cluster = whole_cluster
    with closing(connect(cluster.url, 0.2)) as client:
        store = RedisTagStore(client, NAMESPACE, quarantined=False)
        node = cluster.nodes[0]
        tenant, other = (tenant_of(cluster, each) for each in cluster.nodes[:2])
        for each in tenant, other:
            store.snapshot(each)
        node.ask('CONFIG', 'RESETSTAT')
        node.pause()
        for _ in range(3):
            with pytest.raises(StoreUnreachable):
                store.renew(tenant)
        assert store.snapshot(other)
        node.resume()
        assert b'cmdstat_fcall:calls=1,' in node.ask('INFO', 'commandstats')
