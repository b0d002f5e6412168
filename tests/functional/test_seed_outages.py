"""Defects of the seed while Redis is away, stalls, or loses a reply: one test each."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from onegov_ormcache.errors import StoreUnreachable
from onegov_ormcache.steps import Step
from tests.consistency.interleaving import before
from tests.functional.every_policy import Library, names
from tests.support.applications import Applications, change, value
from tests.support.models import User
from tests.support.outside import until
from tests.support.servers import RedisServer


def test_reads_go_on_without_redis(
    on_servers: Applications, tenant: str, own_redis: RedisServer
) -> None:
    """Without Redis, reads come from the database, and a commit that changes tables is
    refused; when it is back, all is as before."""
    app = on_servers.start(Library, redis_url=own_redis.url, on_outage='refuse')
    change(app, tenant, User(name='a'))
    assert value(app, tenant, names) == ['a']
    own_redis.kill()
    assert value(app, tenant, names) == ['a']
    with pytest.raises(StoreUnreachable):
        change(app, tenant, User(name='b'))
    assert value(app, tenant, names) == ['a']
    own_redis.start()
    change(app, tenant, User(name='b'))
    assert value(app, tenant, names) == ['a', 'b']


def test_a_stalled_redis_holds_nobody_up(
    on_servers: Applications, tenant: str, own_redis: RedisServer
) -> None:
    """A Redis that does not answer is waited for once per transaction, and no longer than set."""
    app = on_servers.start(Library, redis_url=own_redis.url, redis_timeout=0.05)
    change(app, tenant, User(name='a'))
    asked = 0
    ask = app.orm_cache.tags.snapshot

    def counted(schema: str) -> Any:
        nonlocal asked
        asked += 1
        return ask(schema)

    app.orm_cache.tags.snapshot = counted  # type: ignore[method-assign]
    own_redis.pause()
    try:
        with app.request_scope(tenant):
            assert names(app) == ['a']
            assert len(app.titles) == 0
        assert asked == 1
    finally:
        own_redis.resume()
    assert value(app, tenant, names) == ['a']


def test_outage_policy_continue(
    on_servers: Applications, tenant: str, own_redis: RedisServer
) -> None:
    """With on_outage='continue', commits go through, and nothing stale is left after it."""
    app = on_servers.start(Library, redis_url=own_redis.url, on_outage='continue')
    change(app, tenant, User(name='a'))
    assert value(app, tenant, names) == ['a']
    other = on_servers.elsewhere(app)
    assert value(other, tenant, names) == ['a']
    own_redis.pause()
    try:
        change(app, tenant, User(name='b'))
    finally:
        own_redis.resume()
    assert value(app, tenant, names) == ['a', 'b']
    assert value(other, tenant, names) == ['a', 'b']


def test_a_publish_that_is_tried_twice(
    on_servers: Applications, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is lost when new versions were sent, the value is read and changed again,
    and then the script runs a second time: no old version comes back."""
    app = on_servers.start(Library)
    other = on_servers.elsewhere(app)
    change(app, tenant, User(name='a'))
    assert value(other, tenant, names) == ['a']
    tags: Any = app.orm_cache.tags
    connection_class = type(tags.client.connection_pool.make_connection())
    send = connection_class.send_packed_command
    publishing = False

    def lose_connection(self: Any, *arguments: Any, **options: Any) -> None:
        nonlocal publishing
        send(self, *arguments, **options)
        if publishing:
            publishing = False
            until(lambda: not other.orm_cache.snapshot(tenant).doubts, 30)
            assert value(other, tenant, names) == ['a', 'b']
            change(other, tenant, User(name='c'))
            self.disconnect()
            raise redis.ConnectionError('the connection is lost')

    def about_to_publish() -> None:
        nonlocal publishing
        publishing = True

    monkeypatch.setattr(connection_class, 'send_packed_command', lose_connection)
    with before(Step.PUBLISH, about_to_publish):
        change(app, tenant, User(name='b'))
    assert not publishing
    for reader in other, app:
        assert value(reader, tenant, names) == ['a', 'b', 'c']
