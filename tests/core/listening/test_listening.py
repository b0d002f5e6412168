"""Listening begins by a setting, on PostgreSQL alone, and ends with the application."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from onegov_ormcache.database.postgres import Postgres
from onegov_ormcache.errors import ConfigurationError
from tests.core.listening.listening_town import (
    PROMISED,
    TAKEN_OVER,
    Program,
    Town,
    active_listeners,
    becomes,
    listening,
    reads,
)
from tests.support.applications import Applications
from tests.support.outside import until


def listeners() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if 'outside' in thread.name]


def test_close_ends_thread_and_connection(app: Town, program: Program, namespace: str) -> None:
    """After the close there is no thread, no connection and no lock; it may start again."""
    assert len(listeners()) == 1
    app.close_orm_cache()
    assert listeners() == []
    until(lambda: not active_listeners(program, namespace), PROMISED)
    app.setup_orm_cache()
    listening(app)
    assert len(listeners()) == 1


def test_close_while_it_can_not_connect(
    apps: Applications, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A listener that waits for its next attempt does not hold up the end."""
    own_connection = Postgres.own_connection

    def connect(database: Postgres, url: str | None = None) -> Any:
        if threading.current_thread() is threading.main_thread():
            return own_connection(database, url)
        return 1 / 0

    monkeypatch.setattr(Postgres, 'own_connection', connect)
    monkeypatch.setattr('onegov_ormcache.core.listening.BACKOFF', (60.0, 60.0))
    app = apps.start(Town, listen=True)
    until(lambda: 'ZeroDivisionError' in caplog.text, TAKEN_OVER)
    app.close_orm_cache()
    assert listeners() == []


def test_nobody_listens_by_default(apps: Applications) -> None:
    """Without the setting there is neither thread nor connection."""
    app = apps.start(Town)
    assert app.orm_cache.outside is None
    assert listeners() == []


def test_listen_dsn(
    apps: Applications, program: Program, tenant: str, postgres_dsn: str
) -> None:
    """The listener may have a way to the database of its own."""
    separator = '&' if '?' in postgres_dsn else '?'
    listen_dsn = f'{postgres_dsn}{separator}application_name=the_listener'
    app = listening(apps.start(Town, listen=True, listen_dsn=listen_dsn))
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'the_listener'"
    assert program.execute(query).fetchone() == (1,)
    assert reads(app, tenant, 'names') == ['Ada']
    program.execute("UPDATE users SET name = 'Grace'")
    becomes(app, tenant, 'names', ['Grace'])


def test_listening_needs_postgresql(embedded: Applications) -> None:
    """On SQLite, where there are no notifications, the setting is refused."""
    with pytest.raises(ConfigurationError, match=r'the database is .sqlite:.*psycopg'):
        embedded.start(Town, listen=True)
    assert listeners() == []
