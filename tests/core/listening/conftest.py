"""Applications whose tenant has triggers, one of them listening, and another program."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.core.listening.listening_town import Program, Town, listening
from tests.support.applications import Applications, change
from tests.support.models import Document, User
from tests.support.outside import install, outside


@pytest.fixture
def apps(on_servers: Applications, tenant: str, postgres_dsn: str) -> Applications:
    """Makes applications; the tenant has a user with a document, and triggers."""
    app = on_servers.start(Town)
    change(app, tenant, User(id=1, name='Ada', documents=[Document(id=1, title='Plan')]))
    app.close_orm_cache()
    install(postgres_dsn, tenant)
    return on_servers


@pytest.fixture
def program(apps: Applications, postgres_dsn: str, tenant: str) -> Iterator[Program]:
    """Another program on the tenant's schema."""
    with outside(postgres_dsn, tenant) as connection:
        yield connection


@pytest.fixture
def app(apps: Applications) -> Town:
    """An app that listens already."""
    return listening(apps.start(Town, listen=True))
