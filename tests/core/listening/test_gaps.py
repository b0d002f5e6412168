"""Changes that no application could hear evict as soon as an application listens again."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from onegov_ormcache.database.postgres import Postgres
from tests.core.listening.listening_town import (
    TAKEN_OVER,
    Program,
    Town,
    active_listeners,
    becomes,
    listening,
    reads,
)
from tests.support.applications import Applications, change
from tests.support.models import User
from tests.support.outside import install, outside, until
from tests.support.servers import RedisServer


def test_start_sees_what_nobody_heard(apps: Applications, program: Program, tenant: str) -> None:
    """An application that begins to listen evicts what was changed while none listened."""
    app = apps.start(Town)
    assert reads(app, tenant, 'names') == ['Ada']
    program.execute("UPDATE users SET name = 'Grace'")
    assert reads(app, tenant, 'names') == ['Ada']
    listening(apps.start(Town, listen=True))
    assert reads(app, tenant, 'names') == ['Grace']


def test_gap_after_a_lost_connection(
    app: Town,
    program: Program,
    tenant: str,
    namespace: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A change made while the connection is lost is seen once there is a connection again."""
    assert reads(app, tenant, 'names') == ['Ada']
    own_connection = Postgres.own_connection
    attempts = []

    def refuse(database: Postgres, url: str | None = None) -> Any:
        attempts.append(url)
        raise ConnectionRefusedError('not yet')

    monkeypatch.setattr(Postgres, 'own_connection', refuse)
    (pid,) = active_listeners(program, namespace)
    program.execute('SELECT pg_terminate_backend(%s)', [pid])
    until(lambda: len(attempts) >= 2, TAKEN_OVER)
    program.execute("UPDATE users SET name = 'Grace'")
    assert reads(app, tenant, 'names') == ['Ada']
    monkeypatch.setattr(Postgres, 'own_connection', own_connection)
    becomes(app, tenant, 'names', ['Grace'], TAKEN_OVER)
    assert 'Changes from outside are not heard; trying again in 0.1 s' in caplog.messages
    assert 'not yet' in caplog.text


def test_gap_after_an_outage_of_redis(
    on_servers: Applications,
    tenant: str,
    postgres_dsn: str,
    own_redis: RedisServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A change that could not be published evicts when the tag store answers again."""
    settings = {'redis_url': own_redis.url, 'redis_timeout': 0.1}
    app = listening(on_servers.start(Town, listen=True, **settings))
    change(app, tenant, User(id=1, name='Ada'))
    install(postgres_dsn, tenant)
    with outside(postgres_dsn, tenant) as program:
        # once this change is seen, the notification of the installation is worked off, too
        program.execute("UPDATE users SET name = 'Alan'")
        becomes(app, tenant, 'names', ['Alan'])
        own_redis.pause()
        program.execute("UPDATE users SET name = 'Grace'")
        until(lambda: 'Redis is lost' in caplog.text, TAKEN_OVER)
        own_redis.resume()
    becomes(app, tenant, 'names', ['Grace'], TAKEN_OVER)


def test_an_error_ends_nothing(
    app: Town,
    program: Program,
    tenant: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An error of any kind is logged, and the thread goes on."""
    assert reads(app, tenant, 'names') == ['Ada']
    with monkeypatch.context() as patched:
        patched.setattr(app.orm_cache.tags, 'publish', lambda *_: 1 / 0)
        program.execute("UPDATE users SET name = 'Grace'")
        until(lambda: 'ZeroDivisionError' in caplog.text, TAKEN_OVER)
    becomes(app, tenant, 'names', ['Grace'], TAKEN_OVER)
    assert {record.levelno for record in caplog.records if record.exc_info} == {logging.WARNING}
