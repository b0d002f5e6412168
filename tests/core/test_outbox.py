"""Without the tag store, commits leave their tags in an outbox; whoever reaches it delivers."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from onegov_ormcache import OrmCacheApp, orm_cached
from onegov_ormcache.core import recovery
from onegov_ormcache.errors import ConfigurationError, SnapshotConflict, StoreUnreachable
from tests.support.applications import Applications, change, committed, value
from tests.support.backends import Backend
from tests.support.models import User
from tests.support.outside import outside, until
from tests.support.servers import RedisServer
from tests.support.wires import Wire


class Town(OrmCacheApp):
    @orm_cached(policy='on-table-change:users')
    def users(self) -> list[str]:
        return [name for (name,) in self.session().query(User.name).order_by(User.name)]

    @orm_cached(policy=lambda user: user.name.startswith('b'))
    def of_function(self) -> list[str]:
        return [name for (name,) in self.session().query(User.name).order_by(User.name)]


def users(app: Any) -> Any:
    return app.users


@pytest.fixture
def wire(own_redis: RedisServer) -> Iterator[Wire]:
    """The way of the first process to Redis; others reach Redis without it."""
    with Wire(own_redis.url) as made:
        yield made


@pytest.fixture
def town(on_servers: Applications, wire: Wire, tenant: str) -> Town:
    """The process that will be cut off; it has one user."""
    app = on_servers.start(Town, redis_url=wire.url, redis_timeout=0.5)
    change(app, tenant, User(name='a'))
    return app


@pytest.fixture
def other(on_servers: Applications, own_redis: RedisServer, town: Town, tenant: str) -> Town:
    """A process that is not cut off, and has cached the user."""
    app = on_servers.start(Town, redis_url=own_redis.url)
    assert value(app, tenant, users) == ['a']
    return app


@contextmanager
def no_thread_looks(app: OrmCacheApp) -> Iterator[None]:
    """Keep a process from looking by itself: only what reads need is done in the block."""
    found = app.orm_cache.recovery
    assert found is not None
    found.tick = lambda: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        del found.tick  # type: ignore[method-assign]


def messages(dsn: str, schema: str) -> list[str]:
    with outside(dsn, schema) as connection:
        if connection.execute("SELECT to_regclass('orm_cache_outbox')").fetchone() == (None,):
            return []
        rows = connection.execute('SELECT message FROM orm_cache_outbox ORDER BY id').fetchall()
        return [message for (message,) in rows]


def test_commits_go_on(town: Town, wire: Wire, tenant: str, postgres_dsn: str) -> None:
    """A process that is cut off commits, reads from the database, and leaves its tags."""
    wire.cut()
    change(town, tenant, User(name='b'))
    assert value(town, tenant, users) == ['a', 'b']
    (message,) = messages(postgres_dsn, tenant)
    assert 'table:users' in json.loads(message)['tags']


def test_another_process_delivers(
    town: Town, other: Town, wire: Wire, tenant: str, postgres_dsn: str
) -> None:
    """What a process leaves that is cut off reaches one that is not, without any read."""
    wire.cut()
    change(town, tenant, User(name='b'))
    until(lambda: value(other, tenant, users) == ['a', 'b'], 30)
    assert value(other, tenant, lambda app: app.of_function) == ['a', 'b']
    assert not messages(postgres_dsn, tenant)


def test_nothing_is_served_before_a_delivery(
    town: Town, other: Town, wire: Wire, own_redis: RedisServer, tenant: str
) -> None:
    """A process that was cut off, too, delivers before it uses a cached value."""
    with no_thread_looks(town), no_thread_looks(other):
        wire.cut()
        own_redis.pause()
        assert value(other, tenant, users) == ['a']
        change(town, tenant, User(name='b'))
        own_redis.resume()
        for _ in range(3):
            assert value(other, tenant, users) == ['a', 'b']
        wire.mend()
        assert value(town, tenant, users) == ['a', 'b']


def test_the_writer_delivers_first(
    town: Town, other: Town, wire: Wire, tenant: str, postgres_dsn: str
) -> None:
    """A writer that reaches the store again delivers before it uses a cached value."""
    with no_thread_looks(town), no_thread_looks(other):
        wire.cut()
        change(town, tenant, User(name='b'))
        assert value(other, tenant, users) == ['a'], 'nobody could tell it'
        wire.mend()
        assert value(town, tenant, users) == ['a', 'b']
        assert value(other, tenant, users) == ['a', 'b']
    assert not messages(postgres_dsn, tenant)


def test_a_writer_that_ends(
    on_servers: Applications, town: Town, other: Town, wire: Wire, tenant: str
) -> None:
    """What a process has left is delivered by the next one that starts."""
    with no_thread_looks(town), no_thread_looks(other):
        wire.cut()
        change(town, tenant, User(name='b'))
        town.close_orm_cache()
        third = on_servers.again(type(other))
        with no_thread_looks(third):
            assert value(third, tenant, users) == ['a', 'b']
            assert value(other, tenant, users) == ['a', 'b']


def test_a_rollback_leaves_nothing(
    town: Town, wire: Wire, tenant: str, postgres_dsn: str
) -> None:
    """Nothing is left by a transaction that does not commit."""
    wire.cut()
    with town.request_scope(tenant) as scope:
        scope.session().add(User(name='b'))
        scope.session().flush()
    assert not messages(postgres_dsn, tenant)


def test_function_policies(town: Town, other: Town, wire: Wire, tenant: str) -> None:
    """Values whose policies are functions are evicted, also those that the writer lacks."""
    @orm_cached(policy=lambda user: user.name.startswith('b'))
    def unknown(app: Any) -> list[str]:
        return users(app)

    def read(app: Any) -> Any:
        return app.of_function, app.later

    other_class: Any = type(other)
    other_class.later = unknown
    unknown.__set_name__(other_class, 'later')
    assert value(other, tenant, read) == (['a'], ['a'])
    with no_thread_looks(town), no_thread_looks(other):
        wire.cut()
        change(town, tenant, User(name='b'))
        wire.mend()
        assert value(town, tenant, users) == ['a', 'b']
        assert value(other, tenant, read) == (['a', 'b'], ['a', 'b'])


def test_two_deliver_at_once(
    town: Town, other: Town, wire: Wire, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process does not go on while another one has the tags in hand, and not yet delivered."""
    with no_thread_looks(town), no_thread_looks(other):
        wire.cut()
        change(town, tenant, User(name='b'))
        wire.mend()
        deliver = recovery.Recovery._evict
        seen: list[Any] = []

        def meanwhile(self: Any, *arguments: Any) -> None:
            if self is town.orm_cache.recovery:
                # it has taken the tags, and is about to deliver them; the other process waits
                # for it in vain, and answers from the database
                other.orm_cache.recovery._left += 1
                seen.append(value(other, tenant, users))
            deliver(self, *arguments)

        monkeypatch.setattr(recovery.Recovery, '_evict', meanwhile)
        assert value(town, tenant, users) == ['a', 'b']
        assert seen == [['a', 'b']]


def test_a_process_that_dies_while_it_delivers(
    town: Town, other: Town, wire: Wire, tenant: str, postgres_dsn: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The tags stay in the outbox, and the next process delivers them."""
    with no_thread_looks(town), no_thread_looks(other):
        wire.cut()
        change(town, tenant, User(name='b'))
        wire.mend()

        def die(*arguments: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(recovery.Recovery, '_evict', die)
            value(town, tenant, users)
        assert messages(postgres_dsn, tenant)
        assert value(town, tenant, users) == ['a', 'b']
        assert value(other, tenant, users) == ['a', 'b']


def test_a_listener_delivers_at_once(
    on_servers: Applications, town: Town, other: Town, wire: Wire, own_redis: RedisServer,
    tenant: str, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A process that listens does not wait for its next look."""
    monkeypatch.setattr(recovery, 'INTERVAL', 3600)
    third = on_servers.start(Town, redis_url=own_redis.url, listen=True)
    assert value(third, tenant, users) == ['a']
    assert third.orm_cache.outside is not None
    until(lambda: third.orm_cache.outside.is_active, 30)
    wire.cut()
    with no_thread_looks(other):
        change(town, tenant, User(name='b'))
        until(lambda: value(other, tenant, users) == ['a', 'b'], 30)


@pytest.mark.parametrize(
    'content',
    [
        '', 'null', '[]', '{', '{"tags": 1, "known": []}', '{"known": []}', '{"tags": [[]]}',
        'x' * 200_000,
    ],
)
def test_messages_that_can_not_be_read(
    town: Town, other: Town, tenant: str, postgres_dsn: str, wire: Wire, content: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """All is evicted, because nobody knows what was meant; one line in the log says so."""
    wire.cut()
    namespace = town.orm_cache.settings.namespace
    with no_thread_looks(other), outside(postgres_dsn, tenant) as connection:
        change(town, tenant, User(name='b'))
        connection.execute('DELETE FROM orm_cache_outbox')
        connection.execute(
            'INSERT INTO orm_cache_outbox (namespace, message) VALUES (%s, %s)',
            (namespace, content),
        )
    until(lambda: value(other, tenant, users) == ['a', 'b'], 30)
    assert not messages(postgres_dsn, tenant)
    assert caplog.text.count('all is evicted') == 1


def test_more_messages_than_can_be_read(
    town: Town, other: Town, tenant: str, postgres_dsn: str, wire: Wire,
) -> None:  # fmt: skip
    """Of very many, all are deleted, and all is evicted."""
    wire.cut()
    namespace = town.orm_cache.settings.namespace
    with no_thread_looks(other), outside(postgres_dsn, tenant) as connection:
        change(town, tenant, User(name='b'))
        connection.execute(
            'INSERT INTO orm_cache_outbox (namespace, message) '
            'SELECT %s, \'{"known": [], "tags": ["table:x\' || n || \'"]}\' '
            'FROM generate_series(1, 20000) AS n', [namespace],
        )  # fmt: skip

    def is_delivered() -> bool:
        # a read that can't deliver them in time shows the database's value and leaves them
        return value(other, tenant, users) == ['a', 'b'] and not messages(postgres_dsn, tenant)

    until(is_delivered, 30)


def test_messages_of_others(
    town: Town, other: Town, tenant: str, postgres_dsn: str, wire: Wire
) -> None:
    """Messages of other applications are left alone."""
    wire.cut()
    change(town, tenant, User(name='b'))
    with outside(postgres_dsn, tenant) as connection:
        connection.execute(
            "INSERT INTO orm_cache_outbox (namespace, message) VALUES ('another', 'theirs')"
        )
    until(lambda: value(other, tenant, users) == ['a', 'b'], 30)
    until(lambda: messages(postgres_dsn, tenant) == ['theirs'], 30)


@pytest.mark.parametrize(
    'table',
    [
        'CREATE TABLE orm_cache_outbox (id int)',
        'CREATE VIEW orm_cache_outbox AS SELECT 1 AS id',
        'CREATE TABLE orm_cache_outbox (id int, namespace text, message text CHECK (false))',
    ],
)
def test_a_table_that_is_not_the_outbox(
    town: Town, tenant: str, postgres_dsn: str, wire: Wire, table: str
) -> None:
    """A commit is refused if its tags can't be left, with an error that says so."""
    with outside(postgres_dsn, tenant) as connection:
        connection.execute(table)
    wire.cut()
    with pytest.raises(StoreUnreachable, match='outbox'):
        change(town, tenant, User(name='b'))
    assert value(town, tenant, users) == ['a']
    wire.mend()
    change(town, tenant, User(name='b'))
    assert value(town, tenant, users) == ['a', 'b']


@contextmanager
def role(dsn: str, schema: str, *grants: str) -> Iterator[str]:
    """The URL of a role that may do little in the tenant's schema."""
    name = f'r_{schema}'
    with outside(dsn, schema) as connection:
        connection.execute(f'CREATE ROLE {name} LOGIN')
        for grant in ('USAGE ON SCHEMA {schema}', 'ALL ON ALL TABLES IN SCHEMA {schema}', *grants):
            connection.execute(f'GRANT {grant.format(schema=schema)} TO {name}')
        connection.execute(f'GRANT ALL ON ALL SEQUENCES IN SCHEMA {schema} TO {name}')
        try:
            yield make_url(dsn).set(username=name).render_as_string(hide_password=False)
        finally:
            connection.execute(f'DROP OWNED BY {name}; DROP ROLE {name}')


def test_a_role_that_can_not_make_the_table(
    on_servers: Applications, town: Town, tenant: str, postgres_dsn: str, wire: Wire
) -> None:
    """Its commits are refused, as the table can't be made; nothing is changed."""
    with role(postgres_dsn, tenant) as dsn, ExitStack() as stack:
        poor = Applications(Backend('servers', {**on_servers.backend.settings, 'dsn': dsn}), stack)
        app = poor.start(Town, redis_url=wire.url)
        assert value(app, tenant, users) == ['a']
        wire.cut()
        with pytest.raises(StoreUnreachable, match='outbox'):
            change(app, tenant, User(name='b'))
        assert value(town, tenant, users) == ['a']


def test_a_role_that_may_only_read(
    on_servers: Applications, town: Town, tenant: str, postgres_dsn: str, wire: Wire,
    own_redis: RedisServer,
) -> None:  # fmt: skip
    """It delivers each message that it may not delete once, and goes on caching."""
    wire.cut()
    change(town, tenant, User(name='b'))
    assert messages(postgres_dsn, tenant)
    with role(postgres_dsn, tenant) as dsn, ExitStack() as stack:
        with outside(postgres_dsn, tenant) as connection:
            connection.execute(f'REVOKE DELETE, INSERT ON orm_cache_outbox FROM r_{tenant}')
        with no_thread_looks(town):
            poor = Applications(
                Backend('servers', {**on_servers.backend.settings, 'dsn': dsn}), stack
            )
            app = poor.start(Town, redis_url=own_redis.url)
            assert value(app, tenant, users) == ['a', 'b']
            version = app.orm_cache.snapshot(tenant).version('table:users')
            found: Any = app.orm_cache.recovery
            found._left += 1
            assert value(app, tenant, users) == ['a', 'b']
            assert app.orm_cache.snapshot(tenant).version('table:users') == version
    assert messages(postgres_dsn, tenant)


def test_a_role_that_may_not_even_read(
    on_servers: Applications, town: Town, tenant: str, postgres_dsn: str, wire: Wire,
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """It reads from the database, and one line of the log says why."""
    wire.cut()
    change(town, tenant, User(name='b'))
    with role(postgres_dsn, tenant) as dsn, ExitStack() as stack:
        with outside(postgres_dsn, tenant) as connection:
            connection.execute(f'REVOKE ALL ON orm_cache_outbox FROM r_{tenant}')
        with no_thread_looks(town):
            poor = Applications(
                Backend('servers', {**on_servers.backend.settings, 'dsn': dsn}), stack
            )
            app = poor.start(Town, redis_url=own_redis.url)
            for _ in range(3):
                assert value(app, tenant, users) == ['a', 'b']
            assert caplog.text.count('can not be read') == 1
            assert tenant in caplog.text
            with outside(postgres_dsn, tenant) as connection:
                connection.execute(f'GRANT ALL ON orm_cache_outbox TO r_{tenant}')
            found: Any = app.orm_cache.recovery
            until(lambda: not found._blocked, 30)
            assert value(app, tenant, users) == ['a', 'b']


def test_an_attempt_that_fails_at_an_undeletable_message(
    on_servers: Applications, town: Town, tenant: str, postgres_dsn: str, wire: Wire,
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A message that may not be deleted is delivered at the next attempt."""
    wire.cut()
    with no_thread_looks(town):
        change(town, tenant, User(name='b'))
        with role(postgres_dsn, tenant) as dsn, ExitStack() as stack:
            with outside(postgres_dsn, tenant) as connection:
                connection.execute(f'REVOKE DELETE, INSERT ON orm_cache_outbox FROM r_{tenant}')
            poor = Applications(
                Backend('servers', {**on_servers.backend.settings, 'dsn': dsn}), stack
            )

            def fail(*arguments: Any) -> None:
                raise StoreUnreachable('lost')

            with monkeypatch.context() as patch:
                patch.setattr(recovery.Recovery, '_evict', fail)
                app = poor.start(Town, redis_url=own_redis.url)
                assert app.orm_cache.recovery._blocked == {tenant}
            with no_thread_looks(app):
                app.orm_cache.recovery._left += 1
                assert value(app, tenant, users) == ['a', 'b']
                assert not app.orm_cache.recovery._blocked


def test_the_table_is_made_by_one(
    on_servers: Applications, own_redis: RedisServer, tenant: str
) -> None:
    """Of many that leave the first message of a tenant at once, none is refused."""
    app = on_servers.start(Town, redis_url=own_redis.url, redis_timeout=0.2)
    change(app, tenant, User(name='a'))
    own_redis.kill()
    with ThreadPoolExecutor(8) as pool:
        for number in range(8):
            pool.submit(change, app, tenant, User(name=f'b{number}'))
    assert len(value(app, tenant, users)) == 9


def test_a_tenant_that_is_dropped(
    town: Town, other: Town, wire: Wire, tenant: str, postgres_dsn: str
) -> None:
    """Its messages go with it, and disturb nobody."""
    wire.cut()
    with no_thread_looks(other):
        change(town, tenant, User(name='b'))
        with outside(postgres_dsn, tenant) as connection:
            connection.execute(f'DROP SCHEMA {tenant} CASCADE')
    wire.mend()
    found: Any = town.orm_cache.recovery
    found.look()
    assert found._done == found._progress()


def test_a_store_that_comes_back_older(
    town: Town, other: Town, wire: Wire, own_redis: RedisServer, tenant: str
) -> None:
    """A dump from before the delivery brings no old value back."""
    own_redis.save()
    with no_thread_looks(other):
        wire.cut()
        change(town, tenant, User(name='b'))
        wire.mend()
        assert value(town, tenant, users) == ['a', 'b']
        own_redis.kill()
        own_redis.start()
        for app in (town, other):
            assert value(app, tenant, users) == ['a', 'b']


def test_a_tenant_that_is_read_first_after_the_outage(
    on_servers: Applications, make_tenant: Callable[[str], str], own_redis: RedisServer
) -> None:
    """What is left in one tenant is delivered whichever tenant is read next."""
    app = on_servers.start(Town, redis_url=own_redis.url, redis_timeout=0.2)
    one, two = make_tenant('one'), make_tenant('two')
    for tenant in (one, two):
        change(app, tenant, User(name='a'))
        assert value(app, tenant, users) == ['a']
    with no_thread_looks(app):
        own_redis.pause()
        change(app, one, User(name='b'))
        own_redis.resume()
        assert value(app, two, users) == ['a']
        assert app.orm_cache.recovery._done == app.orm_cache.recovery._progress()
        assert value(app, one, users) == ['a', 'b']


def test_serializable_without_the_store(
    on_servers: Applications, postgres_dsn: str, wire: Wire, own_redis: RedisServer, tenant: str
) -> None:
    """A value that was read from the cache can't be checked, so the transaction is tried again;
    then it reads from the database, and commits."""
    dsn = make_url(postgres_dsn).update_query_dict(
        {'options': '-c default_transaction_isolation=serializable'}
    )
    app = on_servers.start(
        Town, redis_url=wire.url, dsn=dsn.render_as_string(hide_password=False)
    )
    change(app, tenant, User(name='a'))
    assert value(app, tenant, users) == ['a']
    with app.request_scope(tenant) as scope:
        assert app.users == ['a']
        scope.session().add(User(name='b'))
        scope.session().flush()
        wire.cut()
        with pytest.raises(SnapshotConflict, match='lost'):
            scope.session().commit()
    with committed(app, tenant) as scope:
        assert app.users == ['a']
        scope.session().add(User(name='b'))
    assert value(app, tenant, users) == ['a', 'b']


def test_changes_of_raw_sql(town: Town, other: Town, wire: Wire, tenant: str) -> None:
    """What no statement shows is left, too: the database is asked."""
    wire.cut()
    with committed(town, tenant) as scope:
        scope.session().execute(text("DO $$ BEGIN UPDATE users SET name = 'z'; END $$"))
    until(lambda: value(other, tenant, users) == ['z'], 30)


def test_one_line_for_many_commits(
    town: Town, wire: Wire, tenant: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has one line for the loss, however many transactions there are, and one after it."""
    caplog.set_level(logging.INFO)
    wire.cut()
    for number in range(20):
        change(town, tenant, User(name=f'b{number}'))
        value(town, tenant, users)
    wire.mend()
    until(lambda: 'Redis is back' in caplog.text, 30)
    lines = [record.getMessage() for record in caplog.records]
    assert len([line for line in lines if 'Redis is lost' in line]) == 1
    assert len([line for line in lines if 'Redis is back' in line]) == 1
    assert len(lines) == 2, lines


@pytest.mark.parametrize('on_outage', ['continue', 'expire'])
def test_debts_are_paid_for_every_tenant(
    on_servers: Applications, make_tenant: Callable[[str], str], wire: Wire,
    own_redis: RedisServer, on_outage: str,
) -> None:  # fmt: skip
    """Without an outbox, every tenant that was changed gets a new birth when the store is back,
    also if nobody reads it in the process that has changed it."""
    app = on_servers.start(Town, redis_url=wire.url, on_outage=on_outage)
    other = on_servers.start(Town, redis_url=own_redis.url, on_outage=on_outage)
    tenants = [make_tenant(name) for name in ('one', 'two', 'three')]
    for tenant in tenants:
        change(app, tenant, User(name='a'))
        assert value(other, tenant, users) == ['a']
    wire.cut()
    for tenant in tenants:
        change(app, tenant, User(name='b'))
    wire.mend()
    for tenant in tenants:
        until(lambda tenant=tenant: value(other, tenant, users) == ['a', 'b'], 30)  # type: ignore[misc]


def test_debts_are_paid_at_the_end(
    on_servers: Applications, tenant: str, wire: Wire, own_redis: RedisServer
) -> None:
    """A process that ends pays before it does."""
    app = on_servers.start(Town, redis_url=wire.url, on_outage='continue')
    other = on_servers.start(Town, redis_url=own_redis.url, on_outage='continue')
    change(app, tenant, User(name='a'))
    assert value(other, tenant, users) == ['a']
    with no_thread_looks(app):
        wire.cut()
        change(app, tenant, User(name='b'))
        wire.mend()
        app.close_orm_cache()
        assert value(other, tenant, users) == ['a', 'b']


def test_an_outbox_needs_postgres(embedded_backend: Backend) -> None:
    """The setting is refused where there can be no outbox."""
    with ExitStack() as stack:
        apps = Applications(embedded_backend, stack)
        with pytest.raises(ConfigurationError, match='on_outage'):
            apps.start(Town, on_outage='outbox')


def test_the_default(applications: Applications) -> None:
    """It is an outbox where there can be one."""
    settings = applications.start(Town).orm_cache.settings
    has_outbox = applications.backend.name == 'servers'
    assert settings.on_outage == ('outbox' if has_outbox else 'expire')


# another tenant, idle and forked processes, other settings


def test_function_policies_of_another_tenant(
    on_servers: Applications, make_tenant: Callable[[str], str], wire: Wire,
    own_redis: RedisServer,
) -> None:  # fmt: skip
    """A change of another tenant's table evicts its function policies, which nobody has asked."""
    app = on_servers.start(Town, redis_url=wire.url)
    other = on_servers.start(Town, redis_url=own_redis.url)
    one, two = make_tenant('one'), make_tenant('two')

    def read(app: Any) -> Any:
        return app.users, app.of_function

    for tenant in (one, two):
        change(app, tenant, User(name='a'))
        assert value(other, tenant, read) == (['a'], ['a'])
    wire.cut()
    with committed(app, one) as scope:
        scope.session().execute(text(f'UPDATE "{two}".users SET name = \'z\''))
    until(lambda: value(other, two, read) == (['z'], ['z']), 30)


def test_a_process_that_was_idle(
    town: Town, other: Town, wire: Wire, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process whose last look is long ago looks before it uses a cached value."""
    with no_thread_looks(town), no_thread_looks(other):
        wire.cut()
        change(town, tenant, User(name='b'))
        found: Any = other.orm_cache.recovery
        found._looked_at -= 60
        assert value(other, tenant, users) == ['a', 'b']
        assert value(other, tenant, users) == ['a', 'b']


def test_a_child_looks_anew(town: Town, other: Town, wire: Wire, tenant: str) -> None:
    """A process that is forked later does not trust the look of its parent."""
    with no_thread_looks(town), no_thread_looks(other):
        wire.cut()
        change(town, tenant, User(name='b'))
        found: Any = other.orm_cache.recovery
        found.after_fork()
        assert value(other, tenant, users) == ['a', 'b']


@pytest.mark.parametrize('on_outage', ['refuse', 'continue'])
def test_a_process_with_another_setting(
    on_servers: Applications, town: Town, wire: Wire, own_redis: RedisServer, tenant: str,
    on_outage: str,
) -> None:  # fmt: skip
    """It leaves nothing in an outbox, and delivers what others have left."""
    other = on_servers.start(Town, redis_url=own_redis.url, on_outage=on_outage)
    assert value(other, tenant, users) == ['a']
    wire.cut()
    change(town, tenant, User(name='b'))
    until(lambda: value(other, tenant, users) == ['a', 'b'], 30)


def test_a_locked_outbox(
    on_servers: Applications, make_tenant: Callable[[str], str], wire: Wire,
    own_redis: RedisServer, postgres_dsn: str,
) -> None:  # fmt: skip
    """Somebody who has locked the outbox of one tenant keeps nobody from those of others."""
    app = on_servers.start(Town, redis_url=wire.url)
    other = on_servers.start(Town, redis_url=own_redis.url)
    one, two = make_tenant('one'), make_tenant('two')
    for tenant in (one, two):
        change(app, tenant, User(name='a'))
        assert value(other, tenant, users) == ['a']
    with no_thread_looks(other):
        wire.cut()
        for tenant in (one, two):
            change(app, tenant, User(name='b'))
        with outside(postgres_dsn, one) as connection, connection.transaction():
            connection.execute('LOCK TABLE orm_cache_outbox')
            other.orm_cache.recovery._looked_at -= 60
            assert value(other, two, users) == ['a', 'b']
            assert value(other, one, users) == ['a', 'b'], 'by the database'
    until(lambda: not other.orm_cache.recovery._blocked, 30)
    assert value(other, one, users) == ['a', 'b']


def test_an_outbox_that_hides_rows(
    town: Town, tenant: str, postgres_dsn: str, wire: Wire
) -> None:
    """A table in which others would not find what is left is no outbox."""
    with outside(postgres_dsn, tenant) as connection:
        connection.execute(
            'CREATE TABLE orm_cache_outbox (id bigint GENERATED ALWAYS AS IDENTITY, '
            'namespace text, message text) PARTITION BY LIST (namespace)'
        )
        connection.execute(
            'CREATE TABLE orm_cache_outbox_all PARTITION OF orm_cache_outbox DEFAULT'
        )
    wire.cut()
    with pytest.raises(StoreUnreachable, match='outbox'):
        change(town, tenant, User(name='b'))
