"""A tenant keeps no tags of releases that are gone, nor of tables that nobody has any more."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from unittest.mock import Mock

import pytest
import redis

from onegov_ormcache.core import versions as versions_module
from onegov_ormcache.core.versions import FOREIGN_TAGS, Versions
from onegov_ormcache.redis_client.client import connect
from onegov_ormcache.tags.memory import MemoryTagStore
from onegov_ormcache.tags.redis import RedisTagStore
from onegov_ormcache.tags.snapshot import TagStore

TABLES = frozenset(f'table:t{number}' for number in range(50))

#: The most that a tenant keeps beside what its releases use: the tags that make it crowded,
#: and those of the change that does.
MOST = FOREIGN_TAGS + len(TABLES) + 20 + 1


@pytest.fixture
def redis_store(redis_url: str, namespace: str) -> Iterator[RedisTagStore]:
    with closing(connect(redis_url, 10)) as client:
        yield RedisTagStore(client, namespace, quarantined=False)


@pytest.fixture(params=['memory', 'redis'])
def store(request: pytest.FixtureRequest) -> Any:
    """Each store in turn, which knows the tenant's identity."""
    found: TagStore = (
        MemoryTagStore() if request.param == 'memory' else request.getfixturevalue('redis_store')
    )
    found.identify('main', 'any', '')
    return found


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tags may be forgotten at any time, and not just once in a while."""
    monkeypatch.setattr(versions_module, 'FORGET_INTERVAL', 0.0)


def release(store: TagStore, number: int, functions: int = 20) -> Versions:
    """Return the versions as a process of one release has them."""
    tags = frozenset(f'property:{number}:f{function}' for function in range(functions))
    return Versions(store, (), lambda: tags, lambda: TABLES | tags)


def write(store: TagStore, number: int, *tags: str) -> frozenset[str]:
    """Commit a change; return what was in doubt."""
    in_doubt = store.doubt('main', f'w{number}', tags, (), '', {}).result()
    store.publish('main', f'w{number}', tags)
    return in_doubt


@pytest.mark.usefixtures('often')
def test_releases_that_are_gone(store: Any) -> None:
    """After 50 releases with 20 function policies each, snapshot and doubt are as small as after
    a few, and the last release has all its tags."""
    for number in range(50):
        present = release(store, number)
        write(store, number, *TABLES)
        snapshot = present.snapshot('main')
        assert snapshot.versions.keys() >= present._known_tags()
        assert len(snapshot.versions) <= MOST
        assert len(write(store, 1000 + number, 'table:t1')) <= MOST


@pytest.mark.usefixtures('often')
def test_names_of_temporary_tables(store: Any) -> None:
    """1,000 names of tables that nobody has leave no more than a bounded number of tags."""
    present = release(store, 1)
    for number in range(1000):
        write(store, number, f'table:temporary{number}')
        assert len(present.snapshot('main').versions) <= MOST
    assert present.snapshot('main').versions.keys() >= present._known_tags()


@pytest.mark.usefixtures('often')
def test_bytes_of_a_key(redis_store: RedisTagStore, client_of: redis.Redis) -> None:
    """After 50 releases and 1,000 names, a tenant's key takes less than 50 KB, and a doubt less
    than 20 KB."""
    redis_store.identify('main', 'any', '')
    for number in range(50):
        present = release(redis_store, number)
        for name in range(20):
            write(redis_store, number, f'table:temporary{number}_{name}')
            present.snapshot('main')
    redis_store.doubt('main', 'w', ['table:t1'], (), '', {}).result()
    fields: Any = client_of.hgetall(redis_store._key('main', 'any'))
    assert sum(len(name) + len(value) for name, value in fields.items()) < 50_000
    assert len(json.dumps(json.loads(fields[b'd:w']))) < 20_000


@pytest.fixture
def client_of(redis_store: RedisTagStore) -> redis.Redis:
    return redis_store.client


def test_application_with_many_tags(store: Any) -> None:
    """Own tags do not make a tenant crowded, however many; nor do as many of another release."""
    present, before = release(store, 1, 2 * FOREIGN_TAGS), release(store, 0, 2 * FOREIGN_TAGS)
    before.snapshot('main')
    present.snapshot('main')
    again = before.snapshot('main')
    assert present.snapshot('main') == again
    assert len(again.versions) == 4 * FOREIGN_TAGS


def test_asked_for_once(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenant that stays crowded costs one command more once in an interval, and no more."""
    for number in range(FOREIGN_TAGS + 60):
        write(store, number, f'table:temporary{number}')
    store.forget('main', 1e6)
    for number in range(FOREIGN_TAGS + 60):
        write(store, number, f'table:temporary{number}')
    asked: list[str] = []
    monkeypatch.setattr(store, 'forget', lambda schema, interval: asked.append(schema))
    present = release(store, 1)
    for _ in range(3):
        present.snapshot('main')
    assert asked == ['main']


# buckets of rows

WHOLE = frozenset(f'property:rows:t{number}.id:int' for number in range(40))

BUCKETS = [f'rows:t{number}.id:int/{bucket}' for number in range(40) for bucket in range(256)]


def release_with_rows(store: TagStore) -> Versions:
    """Return the versions as a process of an application with policies of rows has them."""
    return Versions(store, (), lambda: WHOLE, lambda: TABLES | WHOLE)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Counts the tags that are looked at to tell whose they are."""
    counted = Mock(wraps=versions_module.whole_tag)
    monkeypatch.setattr(versions_module, 'whole_tag', counted)
    return counted


@pytest.mark.usefixtures('often')
def test_buckets_of_own_rows(store: Any, looks: Mock) -> None:
    """10,240 buckets of an application's own rows are none too many, and each is looked at a few
    times when it is new, and never again."""
    present = release_with_rows(store)
    birth = present.snapshot('main').birth
    for first in range(0, len(BUCKETS), 256):
        write(store, first, *BUCKETS[first : first + 256])
        assert present.snapshot('main').birth == birth
    assert len(present.snapshot('main').versions) == len(BUCKETS) + len(WHOLE)
    assert looks.call_count < 2 * len(BUCKETS)
    looks.reset_mock()
    for number in range(100):
        write(store, number, *BUCKETS[number : number + 3])
        assert present.snapshot('main').birth == birth
    assert not looks.called
    write(store, 1, 'table:t1')
    assert present.snapshot('main').birth == birth
    assert looks.call_count < 2


@pytest.mark.usefixtures('often')
@pytest.mark.parametrize('own', [2000, 0])
def test_buckets_of_rows_that_nobody_has(store: Any, own: int) -> None:
    """Buckets of other applications and of releases that are gone are forgotten, beside own ones
    and for an application without any."""
    present = release_with_rows(store) if own else release(store, 1)
    write(store, 0, *BUCKETS[:own])
    birth = present.snapshot('main').birth
    write(store, 1, *(f'rows:other.id:int/{number}' for number in range(256)))
    assert present.snapshot('main').birth == birth
    write(store, 2, 'rows:t1.id/1', 'rows:t1.id:int/256', *BUCKETS[:own])
    assert present.snapshot('main').birth != birth
    assert len(present.snapshot('main').versions) <= MOST


def test_application_that_gets_policies(store: Any) -> None:
    """What was counted as a tag of others counts as the application's own once it has its
    policy."""
    own = {'tags': TABLES}
    present = Versions(store, (), frozenset, lambda: own['tags'])
    birth = present.snapshot('main').birth
    write(store, 0, *BUCKETS[:250])
    assert present.snapshot('main').birth == birth
    write(store, 0, *TABLES)
    assert present.snapshot('main').birth == birth
    own['tags'] = TABLES | WHOLE
    write(store, 1, *BUCKETS[250:1000])
    assert present.snapshot('main').birth == birth
    write(store, 2, *(f'table:other{number}' for number in range(200)))
    assert present.snapshot('main').birth == birth
