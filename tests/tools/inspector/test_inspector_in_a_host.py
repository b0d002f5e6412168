"""The inspector in an application that has sessions and transactions of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from webtest import TestApp as Client

from fixtures.framework import changes, data, views  # noqa: F401 (they register the views)
from fixtures.framework.server import Server
from fixtures.framework.town import Town
from onegov_ormcache.tools.inspector import (
    AllTenants,
    ChangeCache,
    Inspector,
    ViewCache,
)
from onegov_ormcache.tools.inspector.forms import secret_of, token
from tests.support.servers import drop_schemas

WHERE = f'{Town.__module__}.InspectedTown.users'


class InspectedTown(Town):
    """A town whose administrators operate all towns."""


InspectedTown.__module__ = Town.__module__
InspectedTown.mount(path='cache', app=Inspector)(Inspector)


@InspectedTown.permission_rule(model=AllTenants, permission=ViewCache)
@InspectedTown.permission_rule(model=AllTenants, permission=ChangeCache)
def may_operate(identity: Any, model: AllTenants, permission: Any) -> bool:
    return bool(identity.role == 'admin')


class Hosted:
    """Two towns of a host, and a browser of somebody who operates them."""

    def __init__(self, app: InspectedTown, namespace: str) -> None:
        self.app = app
        self.namespace = namespace
        self.client = Client(Server(app), extra_environ={'HTTP_X_ROLE': 'admin'})

    def schema(self, town: str) -> str:
        """The schema of a town."""
        return f'{self.namespace}-{town}'

    def path(self, town: str, rest: str = '') -> str:
        """The path of a page of a town."""
        return f'/{self.namespace}/{town}{rest}'

    def property(self, town: str, of: str) -> Any:
        """The page of a property, opened in one town, of another or the same."""
        path = f'/cache/tenants/{self.schema(of)}/property?name={WHERE}'
        return self.client.get(self.path(town, path))

    def runs(self, town: str) -> int:
        """How often the creator of the property has run."""
        self.client.get(self.path(town, '/values/users'))
        return self.app.orm_cache.statistics.of(self.schema(town)).properties[WHERE].runs


@pytest.fixture
def hosted(postgres_dsn: str, redis_url: str) -> Iterator[Hosted]:
    """Two towns on the framework."""
    namespace = f't{uuid4().hex[:10]}'
    app = InspectedTown()
    app.configure_application(dsn=postgres_dsn, redis_url=redis_url, namespace=namespace)
    for town in 'here', 'there':
        data.load(app, town)
    yield Hosted(app, namespace)
    app.close()
    drop_schemas(postgres_dsn, namespace)


def test_the_present_tenant_is_evicted_in_the_hosts_transaction(hosted: Hosted) -> None:
    """The button works for the tenant of the request, whose transaction the host commits."""
    assert hosted.runs('here') == hosted.runs('there') == 1
    page = hosted.property('here', 'here')
    (form,) = page.forms.values()
    assert 'commits after this page' in page
    assert 'Evicted.' in form.submit().follow()
    assert hosted.runs('here') == 2
    assert hosted.runs('there') == 1


def test_another_tenant_is_only_looked_at(hosted: Hosted) -> None:
    """There is no button for another tenant, as the host works for one at a time; a form that is
    sent for it all the same says so, and evicts nothing."""
    assert hosted.runs('here') == hosted.runs('there') == 1
    assert not hosted.property('here', 'there').forms
    there = hosted.schema('there')
    secret = secret_of(hosted.app.orm_cache)
    for path, deed in (
        (f'/cache/tenants/{there}/evict', ('evict', there)),
        (f'/cache/tenants/{there}/property/evict?name={WHERE}', ('evict', there, WHERE)),
    ):
        fields = {'token': token(secret, 'admin', deed), 'sure': 'yes'}
        page = hosted.client.post(hosted.path('here', path), fields, status=409)
        assert 'Nothing was evicted' in page
    assert hosted.runs('here') == hosted.runs('there') == 1


def test_tenant_of_nobody_is_not_found(hosted: Hosted) -> None:
    """A tenant that the host has never worked for is a page that says so."""
    hosted.runs('here')
    path = hosted.path('here', '/cache/tenants/nowhere')
    assert 'There is no such page' in hosted.client.get(path, status=404)
    assert hosted.schema('here') in hosted.client.get(hosted.path('here', '/cache'))
