"""What lies in the outboxes: of whom, how many, how old."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from onegov_ormcache.errors import DatabaseUnreachable
from onegov_ormcache.tools.inspection.outboxes import OutboxFacts, outboxes_at, outboxes_of
from tests.support.applications import Applications, change
from tests.support.models import User
from tests.support.outside import outside
from tests.support.servers import RedisServer
from tests.support.wires import Wire
from tests.tools.inspection.inspected_town import Town


@pytest.fixture
def cut_off(on_servers: Applications, own_redis: RedisServer, tenant: str) -> Iterator[Town]:
    """An application that can't reach Redis, and has committed a change."""
    with Wire(own_redis.url) as wire:
        app = on_servers.start(Town, redis_url=wire.url)
        change(app, tenant, User(name='Ada'))
        wire.cut()
        change(app, tenant, User(name='Bea'))
        yield app


def of_tenant(found: list[OutboxFacts], tenant: str) -> list[OutboxFacts]:
    return [each for each in found if each.tenant == tenant]


def test_what_lies_there(cut_off: Town, tenant: str, postgres_dsn: str, namespace: str) -> None:
    """An outbox tells its namespace, its tags and its age; with and without an application."""
    for found in outboxes_of(cut_off.orm_cache), outboxes_at(postgres_dsn, namespace):
        (one,) = of_tenant(found, tenant)
        assert (one.namespace, one.messages, one.problem) == (namespace, 1, '')
        assert 'table:users' in (one.tags or ())
        assert one.age is not None
        assert 0 <= one.age < 60


def test_looking_takes_nothing(cut_off: Town, tenant: str, postgres_dsn: str) -> None:
    """What was looked at lies there still."""
    for _ in range(2):
        assert of_tenant(outboxes_at(postgres_dsn, None), tenant)[0].messages == 1


def test_other_namespaces(cut_off: Town, tenant: str, postgres_dsn: str) -> None:
    """Only the outboxes of the namespace that was asked for are told."""
    assert of_tenant(outboxes_at(postgres_dsn, 'another'), tenant) == []


def test_message_that_can_not_be_read(cut_off: Town, tenant: str, postgres_dsn: str) -> None:
    """What is no message of the package has no tags, and is counted."""
    with outside(postgres_dsn, tenant) as connection:
        connection.execute(
            "INSERT INTO orm_cache_outbox (namespace, message) VALUES ('theirs', 'nonsense')"
        )
    (one,) = of_tenant(outboxes_at(postgres_dsn, 'theirs'), tenant)
    assert (one.messages, one.tags) == (1, None)


def test_table_of_an_earlier_release(cut_off: Town, tenant: str, postgres_dsn: str) -> None:
    """A table without the column for the age is read, and the age is not known."""
    with outside(postgres_dsn, tenant) as connection:
        connection.execute('ALTER TABLE orm_cache_outbox DROP COLUMN left_at')
    (one,) = of_tenant(outboxes_at(postgres_dsn, None), tenant)
    assert (one.messages, one.age) == (1, None)
    change(cut_off, tenant, User(name='Cid'))
    assert of_tenant(outboxes_at(postgres_dsn, None), tenant)[0].messages == 2


def test_outbox_that_can_not_be_read(cut_off: Town, tenant: str, postgres_dsn: str) -> None:
    """A table that is locked, or no outbox of the package, says so, and nobody waits long."""
    with outside(postgres_dsn, tenant) as connection:
        with connection.transaction():
            connection.execute('LOCK TABLE orm_cache_outbox')
            (one,) = of_tenant(outboxes_at(postgres_dsn, None), tenant)
            assert 'lock timeout' in one.problem
        connection.execute('ALTER TABLE orm_cache_outbox DROP COLUMN namespace')
    (one,) = of_tenant(outboxes_at(postgres_dsn, None), tenant)
    assert 'namespace' in one.problem


@pytest.mark.parametrize(
    'dsn',
    [
        'sqlite:///tenants',
        'mysql://me:secret@localhost/db',
        'postgresql+psycopg://me:secret@127.0.0.1:1/db',
        'postgresql+psycopg://me:secret@#/db',
        'nonsense',
    ],
)
def test_wrong_databases(dsn: str) -> None:
    """A database that has no outboxes, or can't be reached, is an error without password."""
    with pytest.raises(DatabaseUnreachable) as caught:
        outboxes_at(dsn, None)
    assert 'secret' not in str(caught.value)
