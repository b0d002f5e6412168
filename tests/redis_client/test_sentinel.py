"""Through each change that Sentinels make, and by TLS, the client finds the primary."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import quote

import pytest

from onegov_ormcache.errors import StoreUnreachable
from onegov_ormcache.redis_client.client import connect
from onegov_ormcache.tags.redis import RedisTagStore
from tests.support.redis_sets import SERVICE, Sentinel, SentinelSet, TlsFront
from tests.support.servers import RedisServer
from tests.tags.conformance import USERS
from tests.tags.redis_store import NAMESPACE, commit

PASSWORD = 'secret/of#servers'
OF_SENTINELS = 'secret?of@sentinels'


@pytest.fixture
def sentinels() -> Iterator[SentinelSet]:
    with SentinelSet(password=PASSWORD, sentinel_password=OF_SENTINELS) as servers:
        yield servers


def test_primaries_that_change_their_places(sentinels: SentinelSet) -> None:
    """Neither server is restarted, and each fail-over gives the tenant a new birth. The client
    notices that the server which it is connected to is a replica now: no call fails."""
    with closing(connect(sentinels.url, 5)) as client:
        store = RedisTagStore(client, NAMESPACE, quarantined=False)
        births = []
        for _ in range(3):
            commit(store, USERS)
            births.append(store.snapshot('main').birth)
            sentinels.switch()
        assert len(set(births)) == 3


def test_a_primary_that_is_cut_off(own_redis: RedisServer) -> None:
    """A primary without its replicas is lost, if min-replicas-to-write is set: it answers nobody
    that its tenants' versions are unchanged."""
    with closing(connect(own_redis.url, 5)) as client:
        store = RedisTagStore(client, NAMESPACE, quarantined=False)
        store.snapshot('main')
        client.config_set('min-replicas-to-write', 1)
        with pytest.raises(StoreUnreachable, match='NOREPLICAS'):
            store.snapshot('main')
        assert client.breaker.is_open


def test_no_sentinel_and_no_primary(sentinels: SentinelSet) -> None:
    """Without Sentinels, or if they know no such servers, Redis is unreachable. The messages name
    the Sentinels, and no password."""
    wrong = sentinels.url.replace(f'/{SERVICE}/', '/village/')
    with closing(connect(wrong, 5)) as client:
        with pytest.raises(StoreUnreachable, match='village') as unknown:
            client.ask(client.ping)
    for sentinel in sentinels.sentinels:
        sentinel.stop()
    with closing(connect(sentinels.url, 5)) as client:
        with pytest.raises(StoreUnreachable) as away:
            client.ask(client.ping)
    for sentinel in sentinels.sentinels:
        assert f'127.0.0.1:{sentinel.port}' in str(away.value)
    for raised in (unknown, away):
        assert 'secret' not in f'{raised.value} {raised.value.__cause__!r}'


def test_tls(tmp_path: Path) -> None:
    """Sentinel and server are reached by TLS, if their certificates are known."""
    with ExitStack() as stack:
        server = stack.enter_context(RedisServer(password=PASSWORD))
        front = stack.enter_context(TlsFront(server.port, tmp_path))
        # the Sentinel names the address at which it reaches the server: the front
        sentinel = stack.enter_context(Sentinel(front.port, 1, watched=PASSWORD))
        other = stack.enter_context(TlsFront(sentinel.port, tmp_path, front))
        url = (
            f'rediss+sentinel://:{quote(PASSWORD, safe="")}@127.0.0.1:{other.port}/{SERVICE}'
            f'?ssl_ca_certs={front.certificate}'
        )
        plain = url.replace(str(other.port), str(sentinel.port)) + '&sentinel_ssl=no'
        for each in url, plain:
            with closing(connect(each, 5)) as client:
                store = RedisTagStore(client, NAMESPACE, quarantined=False)
                before = store.snapshot('main')
                commit(store, USERS)
                assert not store.snapshot('main').agrees(before.stamp([USERS]))
        unknown = url.partition('?')[0]
        with closing(connect(unknown, 5)) as client:
            with pytest.raises(StoreUnreachable, match='No master found'):
                client.ask(client.ping)
