"""An application beside a program that writes to the package's keys on Redis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from onegov_ormcache import OrmCacheApp, orm_cached
from tests.support.applications import Applications, change, value
from tests.support.creators import user_count
from tests.support.models import User

DAMAGES: dict[str, Callable[[Any, bytes], object]] = {
    'bytes': lambda client, key: client.set(key, b'\xff\x00' * 100),
    'no bytes': lambda client, key: client.set(key, b''),
    'a list': lambda client, key: (client.delete(key), client.rpush(key, 'x')),
    'a hash': lambda client, key: (client.delete(key), client.hset(key, 'x', b'\xff')),
    'fields': lambda client, key: client.type(key) == b'hash' and client.hset(
        key, mapping={b'birth': b'\xff', b'd:x': b'{', b'v:\xff': b'', b'token': b'\xff',
                      b'i:\xff': b'', b'quarantine': b'x', b'epoch': b'\xfe'},
    ),
    'large': lambda client, key: client.set(key, b'\x91' * 50_000_000),
}  # fmt: skip


class App(OrmCacheApp):
    """Two properties whose values differ, and what it caches by hand."""

    @orm_cached(policy=User)
    def count(self) -> int:
        return user_count(self)

    @orm_cached(policy='auto')
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(user.name for user in self.session().query(User.name)))

    @property
    def by_hand(self) -> Any:
        return self.cache.get_or_create('answer', lambda: 42)


def read(app: Any) -> Any:
    return app.count, app.names, app.by_hand


@pytest.mark.parametrize('damage', DAMAGES)
def test_every_key_is_damaged(on_servers: Applications, tenant: str, damage: str) -> None:
    """Requests get what the database has, changes are committed and seen, and it caches again."""
    app = on_servers.start(App)
    names: list[str] = []
    client: Any = app.orm_cache.tags.client
    others = [app]
    for number in range(3):
        names.append(f'user{number}')
        change(app, tenant, User(name=names[-1]))
        expected = len(names), tuple(names), 42
        for _ in range(2):
            assert [value(each, tenant, read) for each in others] == [expected] * len(others)
        keys = list(client.scan_iter(match=f'*{tenant}*'))
        assert len(keys) >= 4, 'versions, identities, and values'
        for key in keys:
            DAMAGES[damage](client, key)
        others = [app, on_servers.again(type(app))]
        assert [value(each, tenant, read) for each in others] == [expected] * 2
    with app.orm_cache.recording() as events:
        value(app, tenant, read)
        value(app, tenant, read)
    assert {event.tier for event in events[-2:]} == {'process'}


def test_values_are_exchanged(on_servers: Applications, tenant: str) -> None:
    """Each property's value lies at the key of the other one: neither shows the other's."""
    app = on_servers.start(App)
    change(app, tenant, User(name='a'))
    assert value(app, tenant, read) == (1, ('a',), 42)
    client: Any = app.orm_cache.tags.client
    one, other = client.scan_iter(match=f'*{tenant}*:value:*')
    values = client.mget(one, other)
    client.mset({one: values[1], other: values[0]})
    assert value(on_servers.again(type(app)), tenant, read) == (1, ('a',), 42)
