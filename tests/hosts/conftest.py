"""Hosts on PostgreSQL and Redis, each of which may stand for a process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from tests.support.backends import Backend
from tests.support.counting import Runs
from tests.support.outside import libpq_url

from .bare import BareHost, MakeBareHost
from .host import Host, make_tenants
from .web_towns import WebTown


@pytest.fixture
def other_tenant(make_tenant: Callable[[str], str]) -> str:
    """A second schema name of the test's own."""
    return make_tenant('other')


@pytest.fixture
def make_host(
    servers_backend: Backend, tenant: str, other_tenant: str, runs: Runs
) -> Iterator[Callable[..., Host]]:
    """Makes hosts, which work for the test's tenant in its thread."""
    make_tenants(servers_backend.settings['dsn'], tenant, other_tenant)
    with ExitStack() as stack:

        def make(redis_url: str | None = None, **options: Any) -> Host:
            settings = dict(servers_backend.settings)
            if redis_url is not None:
                settings['redis_url'] = redis_url
            host = Host(settings, runs, **options)
            stack.callback(host.close)
            host.schema = tenant
            return host

        yield make


@pytest.fixture
def make_bare_host(
    servers_backend: Backend, tenant: str, make_host: Callable[..., Host]
) -> Iterator[MakeBareHost]:
    """Makes hosts without a registry of sessions."""
    with ExitStack() as stack:

        def make(**options: Any) -> BareHost:
            host = BareHost(servers_backend.settings, tenant, **options)
            stack.callback(host.close)
            return host

        yield make


@pytest.fixture
def host(make_host: Callable[..., Host]) -> Host:
    """A host."""
    return make_host()


@pytest.fixture
def elsewhere(make_host: Callable[..., Host]) -> Host:
    """Another host, which stands for another process."""
    return make_host()


@pytest.fixture
def make_database(postgres_dsn: str, tenant: str) -> Iterator[Callable[[str], str]]:
    """Makes databases of the test's own on the server that all tests share; returns their URLs."""
    with ExitStack() as stack:
        server = closing(psycopg.connect(libpq_url(postgres_dsn), autocommit=True))
        connection = stack.enter_context(server)

        def make(name: str) -> str:
            connection.execute(f'CREATE DATABASE {tenant}_{name}')
            stack.callback(connection.execute, f'DROP DATABASE {tenant}_{name} WITH (FORCE)')
            url = make_url(postgres_dsn).set(database=f'{tenant}_{name}')
            return url.render_as_string(hide_password=False)

        yield make


@pytest.fixture
def make_town(
    request: pytest.FixtureRequest, servers_backend: Backend, tenant: str, other_tenant: str
) -> Iterator[Callable[..., WebTown]]:
    """Makes applications of the web framework of the test's module, on two tenants that exist."""
    make_tenants(servers_backend.settings['dsn'], tenant, other_tenant)
    with ExitStack() as stack:

        def make(**options: Any) -> WebTown:
            town: WebTown = request.module.TOWN(servers_backend, **options)
            stack.callback(town.close)
            return town

        yield make


@pytest.fixture
def town(make_town: Callable[..., WebTown]) -> WebTown:
    """An application."""
    return make_town()


@pytest.fixture
def other_town(make_town: Callable[..., WebTown]) -> WebTown:
    """Another one, which stands for another process."""
    return make_town()
