"""The inspector while a server is away: a page that says so, and nobody waits."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.applications import Applications, change
from tests.support.models import User
from tests.support.outages import end_pauses
from tests.support.servers import RedisServer
from tests.support.site_with_inspector import CACHE, WHERE, Granting, Visitor


@pytest.fixture
def lonely(
    on_servers: Applications, own_redis: RedisServer, tenant: str
) -> Granting:
    """A site whose Redis the test may end."""
    app = on_servers.start(Granting, redis_url=own_redis.url)
    change(app, tenant, User(name='Ann'))
    Visitor(app, tenant).client.get('/read')
    return app


def visits(visitor: Visitor, tenant: str) -> list[Any]:
    """Open all pages that need Redis."""
    return [
        visitor.get('', status=503),
        visitor.of(tenant, status=503),
        visitor.of(tenant, '/tags', status=503),
        visitor.property('users', status=503),
    ]


@pytest.mark.parametrize('how', ['kill', 'pause'])
def test_store_that_is_away_is_a_page(
    lonely: Granting, own_redis: RedisServer, tenant: str, how: str
) -> None:
    """Pages say that Redis is away, and what the application does; one that stalls costs one
    command's time, as everywhere."""
    operator = Visitor(lonely, tenant, 'operator')
    page = operator.property('users')
    getattr(own_redis, how)()
    failures = lonely.orm_cache.shared_tier.client.breaker  # type: ignore[attr-defined]
    try:
        for away in visits(operator, tenant):
            assert 'Redis can not be reached' in away
            assert 'The application answers from the database' in away
            assert 'Traceback' not in away
        # the first command was waited for, and no other: the breaker is open
        assert failures.losses == 1
        answer = operator.send(page, '/evict')
        assert answer.status_int == 503
        servers = operator.get('/servers')
        assert 'Redis can not be reached' in servers.html.find('div', class_='bad').text
    finally:
        if how == 'pause':
            own_redis.resume()
    assert Visitor(lonely, tenant).client.get('/read').json[0] == 1


def test_outbox_is_told(lonely: Granting, own_redis: RedisServer, tenant: str) -> None:
    """What an outage has left to do is shown while it lasts, and is gone afterwards."""
    own_redis.kill()
    end_pauses()
    change(lonely, tenant, User(name='Bea'))
    operator = Visitor(lonely, tenant, 'operator')
    page = operator.get('/servers')
    row = page.html.find(id='outbox').find_parent('table').tbody.tr
    assert row.th.text == tenant
    assert 'table:users' in row.text


def test_back_is_back(lonely: Granting, own_redis: RedisServer, tenant: str) -> None:
    """When Redis answers again, so does the inspector."""
    operator = Visitor(lonely, tenant, 'operator')
    own_redis.kill()
    visits(operator, tenant)
    own_redis.start()
    end_pauses()
    Visitor(lonely, tenant).client.get('/read')
    assert operator.of(tenant).status_int == 200
    assert operator.client.get(f'{CACHE}/tenants/{tenant}/property?name={WHERE}.users')
