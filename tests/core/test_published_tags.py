"""The signal that tags have changed: when it is sent, and what it names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from sqlalchemy import text

from onegov_ormcache import OrmCache, orm_cached, rows
from onegov_ormcache.core.published_tags import PublishedTags
from tests.support.backends import Backend
from tests.support.models import Base, Group, User
from tests.support.redis_sets import wait_until


class Town:
    """An object with a property of each kind of policy."""

    def __init__(self, cache: OrmCache) -> None:
        self.orm_cache = cache

    @orm_cached(policy=User)
    def users(self) -> int:
        return int(self.orm_cache.session().query(User).count())

    @orm_cached(policy=Group)
    def groups(self) -> int:
        return int(self.orm_cache.session().query(Group).count())

    @orm_cached(policy=lambda obj: isinstance(obj, Group) and obj.name == 'a')
    def chosen(self) -> int:
        return int(self.orm_cache.session().query(Group).filter_by(name='a').count())

    @orm_cached(policy=rows(User.id))
    def user(self, id: int) -> Any:
        return self.orm_cache.session().query(User.name).filter_by(id=id).all()


@pytest.fixture
def town(cache: OrmCache) -> Town:
    """A town on each back end in turn."""
    cache.bind(Town)
    return Town(cache)


class Heard:
    """A receiver that keeps what it is told; what it reads meanwhile, too."""

    def __init__(self, read: Callable[[], Any] = lambda: None) -> None:
        self.read = read
        self.schemas: list[str] = []
        self.tags: list[frozenset[str]] = []
        self.properties: list[set[str]] = []
        self.found: list[Any] = []

    def __call__(self, schema: str, **told: Any) -> None:
        assert set(told) == {'tags', 'properties', 'keys'}
        assert told['keys'] == frozenset()
        self.schemas.append(schema)
        self.tags.append(told['tags'])
        self.properties.append({name.rpartition('.')[2] for name in told['properties']})
        self.found.append(self.read())


@contextmanager
def hearing(cache: OrmCache, **options: Any) -> Iterator[Heard]:
    """Listen to a cache while the block runs."""
    heard = Heard(**options)
    with cache.on_tags_published.connected_to(heard):
        yield heard


def add(cache: OrmCache, tenant: str, *objects: object) -> None:
    with cache.scope(tenant):
        cache.session().add_all(objects)
        cache.session().commit()


def test_names_what_a_commit_has_changed(town: Town, tenant: str) -> None:
    """Each commit with changes is told once, with its tags and the properties that have them."""
    cache = town.orm_cache
    add(cache, tenant)
    with hearing(cache) as heard:
        add(cache, tenant, User(name='a'))
        add(cache, tenant, Group(name='b'))
        add(cache, tenant, Group(name='a'))
        with cache.scope(tenant):
            cache.session().query(User).all()
            cache.session().commit()
        with cache.scope(tenant):
            cache.session().add(User(name='c'))
            cache.session().flush()
            cache.session().rollback()
    assert heard.schemas == [tenant] * 3
    assert heard.properties == [{'users', 'user'}, {'groups'}, {'groups', 'chosen'}]
    assert 'table:users' in heard.tags[0]
    assert 'table:groups' in heard.tags[1]
    add(cache, tenant, User(name='d'))
    assert len(heard.tags) == 3


def test_a_receiver_reads_the_new_value(
    town: Town, backend: Backend, stack: ExitStack, tenant: str
) -> None:
    """Who reads when it is told, in this process or another one, reads nothing stale."""
    cache = town.orm_cache
    towns = [town]
    if backend.name == 'servers':
        towns.append(Town(stack.enter_context(OrmCache(base=Base, **backend.settings))))

    def read() -> list[int]:
        found = []
        for each in towns:
            with each.orm_cache.scope(tenant):
                found.append(each.users)
        return found

    read()
    with hearing(cache, read=read) as heard:
        for number in range(1, 4):
            add(cache, tenant, User(name=f'{number}'))
            assert heard.found[-1] == [number] * len(towns)


def test_an_error_of_a_receiver_is_logged(
    town: Town, tenant: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A receiver that raises fails no commit, and keeps nothing from the others."""
    cache = town.orm_cache

    def failing(schema: str, **told: Any) -> None:
        raise ZeroDivisionError

    with cache.on_tags_published.connected_to(failing), hearing(cache) as heard:
        add(cache, tenant, User(name='a'))
    assert len(heard.tags) == 1
    assert [r.levelname for r in caplog.records if 'on_tags_published' in r.message] == ['ERROR']
    with cache.scope(tenant):
        assert town.users == 1


def test_nobody_listens(town: Town, tenant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a receiver, or with one for another tenant, nothing is looked up."""
    cache = town.orm_cache
    calls: list[object] = []
    monkeypatch.setattr(PublishedTags, 'tell', lambda *given: calls.append(given))
    add(cache, tenant, User(name='a'))
    assert not calls
    monkeypatch.undo()
    monkeypatch.setattr(cache.registry, 'evicted_by', calls.append)
    cache.on_tags_published.connect(calls.append, sender='another')
    add(cache, tenant, User(name='b'))
    assert not calls


def test_a_receiver_for_one_tenant(town: Town, make_tenant: Callable[[str], str]) -> None:
    """The sender is the tenant, so a receiver may ask for one alone."""
    cache, heard = town.orm_cache, Heard()
    cache.on_tags_published.connect(heard, sender=make_tenant('one'))
    for name in 'one', 'two', 'one':
        add(cache, make_tenant(name), Group(name='b'))
    assert set(heard.schemas) == {make_tenant('one')}
    assert heard.properties[-2:] == [{'groups'}, {'groups'}]


def test_by_hand(town: Town, tenant: str) -> None:
    """What is evicted or reported by hand is told at the commit."""
    cache = town.orm_cache
    everything = {'users', 'groups', 'chosen', 'user'}
    add(cache, tenant)
    with hearing(cache) as heard:
        for by_hand, properties in (
            (lambda: cache.mark_changed('groups'), {'groups', 'chosen'}),
            (lambda: cache.evict(town, 'users'), {'users'}),
            (lambda: cache.evict(town, 'user', 1), {'user'}),
            (lambda: cache.evict_tags(['table:groups']), {'groups'}),
            (cache.evict_all, everything),
        ):
            with cache.scope(tenant):
                by_hand()
                before = len(heard.tags)
                cache.session().commit()
            assert len(heard.tags) == before + 1
            assert heard.properties[-1] == properties
    assert '#code' in heard.tags[-1]


def test_another_tenant_is_told_of(
    servers_backend: Backend, stack: ExitStack, make_tenant: Callable[[str], str]
) -> None:
    """A commit that changes two tenants is told twice."""
    cache = stack.enter_context(OrmCache(base=Base, **servers_backend.settings))
    here, there = make_tenant('here'), make_tenant('there')
    add(cache, there)
    add(cache, here)
    with hearing(cache) as heard, cache.scope(here):
        cache.session().add(Group(name='a'))
        cache.session().execute(text(f"INSERT INTO {there}.users (name) VALUES ('a')"))
        cache.session().commit()
    assert dict(zip(heard.schemas, heard.tags, strict=True)).keys() == {here, there}
    assert 'table:users' in heard.tags[heard.schemas.index(there)]
    assert 'table:groups' in heard.tags[heard.schemas.index(here)]


def test_a_doubt_that_another_reader_settles(
    servers_backend: Backend, stack: ExitStack, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a writer ends before it publishes, who settles its doubt tells."""
    writer, reader = (
        stack.enter_context(OrmCache(base=Base, **servers_backend.settings)) for _ in range(2)
    )
    for each in writer, reader:
        each.bind(Town)
    town = Town(reader)
    add(writer, tenant)
    with reader.scope(tenant):
        assert town.users == 0
    # the writer does not come to publish
    monkeypatch.setattr(writer.tags, 'publish', lambda *given: None)
    with hearing(reader) as heard:
        add(writer, tenant, User(name='a'))
        assert not heard.tags
        with reader.scope(tenant):
            assert town.users == 1
    assert heard.properties == [{'users', 'user'}]


@pytest.mark.parametrize('on_outage', ['outbox', 'continue'])
def test_an_outage(
    postgres_dsn: str, own_redis: Any, stack: ExitStack, tenant: str, on_outage: str
) -> None:
    """What was committed without Redis is told when it is evicted: its tags if they lay in the
    outbox, otherwise all."""
    cache = stack.enter_context(
        OrmCache(base=Base, dsn=postgres_dsn, redis_url=own_redis.url, on_outage=on_outage)
    )
    cache.bind(Town)
    add(cache, tenant, Group(name='b'))
    with hearing(cache) as heard:
        with cache.scope(tenant):
            cache.session().query(User).all()
            own_redis.kill()
            cache.session().add(User(name='a'))
            cache.session().commit()
        assert not heard.tags
        own_redis.start()

        def is_told() -> bool:
            with cache.scope(tenant):
                return Town(cache).users == 1 and bool(heard.tags)

        wait_until(is_told, 'somebody is told')
    told = set().union(*heard.tags)
    assert 'table:users' in told if on_outage == 'outbox' else '#code' in told
