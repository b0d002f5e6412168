"""What triggers report is told to the receivers of the signal, too."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from onegov_ormcache import OrmCache
from tests.support.backends import Backend
from tests.support.models import Base
from tests.support.outside import install, outside, until


def test_changes_from_outside_are_told(
    servers_backend: Backend, stack: ExitStack, tenant: str
) -> None:
    """The active process tells which tables other programs have changed."""
    dsn = servers_backend.settings['dsn']
    with OrmCache(base=Base, **servers_backend.settings) as cache, cache.scope(tenant):
        cache.session().commit()
    install(dsn, tenant)
    cache = stack.enter_context(
        OrmCache(base=Base, **servers_backend.settings, listen=True, lazy=True)
    )
    told: list[frozenset[str]] = []

    def receive(schema: str, tags: frozenset[str], **beside: Any) -> None:
        if schema == tenant:
            told.append(tags)

    cache.on_tags_published.connect(receive)
    until(lambda: cache.outside is not None and cache.outside.is_active, 20)
    told.clear()
    with outside(dsn, tenant) as connection:
        connection.execute("INSERT INTO users (name) VALUES ('a')")
        until(lambda: told, 20)
        assert 'table:users' in told[0]
        assert 'table:groups' not in told[0]
