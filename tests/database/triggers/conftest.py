"""A town with a user, another program on its schema, and an ear for its triggers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, create_engine
from sqlalchemy.pool import NullPool

from tests.database.triggers.triggered_town import Town
from tests.support.applications import Applications, change
from tests.support.models import Group, User
from tests.support.outside import Ear, install, outside


@pytest.fixture
def app(on_servers: Applications, tenant: str) -> Town:
    """An app that does not listen, with a user in its tenant."""
    started = on_servers.start(Town)
    change(started, tenant, User(id=1, name='Ada'), Group(id=1, name='Staff'))
    return started


@pytest.fixture
def ear(app: Town, postgres_dsn: str, tenant: str) -> Iterator[Ear]:
    """Hears what the triggers of the tenant notify; they are installed."""
    install(postgres_dsn, tenant)
    listening = Ear(postgres_dsn, tenant)
    yield listening
    listening.close()


@pytest.fixture
def program(app: Town, postgres_dsn: str, tenant: str) -> Iterator[psycopg.Connection[Any]]:
    """Another program on the tenant's schema."""
    with outside(postgres_dsn, tenant) as connection:
        yield connection


@pytest.fixture
def database(app: Town, postgres_dsn: str) -> Iterator[Connection]:
    """A connection for the functions under test, with a transaction."""
    with create_engine(postgres_dsn, poolclass=NullPool).connect() as connection:
        yield connection
