"""Evictions by hand, outside of a transaction: what goes, what stays, and who is told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from onegov_ormcache.errors import ArgumentError
from onegov_ormcache.tools.inspection.evicting import evict_property, evict_table, evict_tenant
from onegov_ormcache.tools.inspection.sites import NothingThere, Site
from onegov_ormcache.tools.inspection.values import values_of
from tests.support.applications import Applications, change, value
from tests.support.backends import Backend
from tests.support.models import User
from tests.tools.inspection.inspected_town import Town, read


@pytest.fixture
def bare(servers_backend: Backend) -> Iterator[Site]:
    """The site of the same namespace, without the application."""
    settings = servers_backend.settings
    made = Site.at(settings['redis_url'], settings['namespace'])
    yield made
    made.close()


def valid(site: Site, tenant: str) -> set[str]:
    """The short names of the properties whose values are valid."""
    return {
        (each.where or each.key).rpartition('.')[2]
        for each in values_of(site, tenant).values if each.is_valid
    }  # fmt: skip


ALL = {'names', 'name', 'titles', 'short_lived'}


def computed(town: Town, tenant: str) -> set[str]:
    """The short names of the properties whose creators run when all are read."""
    with town.recording() as events:
        value(town, tenant, read)
    return {e.name.rpartition('.')[2] for e in events if e.tier == 'creator'}


def test_property(site: Site, town: Town, tenant: str) -> None:
    """The values of one property go, and no others; this process computes them anew, too."""
    evict_property(site, tenant, site.find_property('names'))
    assert valid(site, tenant) == ALL - {'names'}
    assert computed(town, tenant) == {'names'}
    assert valid(site, tenant) == ALL


def test_arguments(site: Site, town: Town, tenant: str) -> None:
    """The value with some arguments goes; one with other arguments stays."""
    prop = site.find_property('name')
    bind = prop.declaration.parameters.bind
    own = prop.value_tags(bind((1,), {}))
    number = next(n for n in range(2, 100) if prop.value_tags(bind((n,), {})) != own)
    value(town, tenant, lambda app: app.name(number))
    evict_property(site, tenant, prop, (1,))
    left = {each.variant: each.is_valid for each in values_of(site, tenant, prop).values}
    assert left == {'(1)': False, f'({number})': True}
    evict_property(site, tenant, prop)
    assert 'name' not in valid(site, tenant)


def test_arguments_that_do_not_fit(site: Site, tenant: str) -> None:
    """Wrong arguments are an error, and nothing is evicted."""
    for args in (), (1, 2), (object(),):
        with pytest.raises(ArgumentError):
            evict_property(site, tenant, site.find_property('name'), args)
    assert valid(site, tenant) == ALL


def test_table(site: Site, tenant: str) -> None:
    """All that depends on a table goes, also single rows and, to be safe, functions."""
    tags = evict_table(site, tenant, 'users')
    # the database deletes documents with their owner
    assert tags >= {'table:users', 'table:documents'}
    assert valid(site, tenant) == {'short_lived'}


def test_table_that_is_not_there(site: Site, tenant: str) -> None:
    """A table that the application does not have is an error, and nothing is evicted."""
    with pytest.raises(NothingThere, match="did you mean 'users'"):
        evict_table(site, tenant, 'user')
    assert valid(site, tenant) == ALL


def test_tenant(site: Site, town: Town, tenant: str) -> None:
    """All values of a tenant go, and are stored anew when they are read."""
    evict_tenant(site, tenant)
    assert valid(site, tenant) == set()
    assert computed(town, tenant) == ALL
    assert valid(site, tenant) == ALL


def test_another_tenant_keeps_its_values(
    site: Site, town: Town, tenant: str, make_tenant: object
) -> None:
    """An eviction concerns one tenant alone."""
    assert callable(make_tenant)
    other = make_tenant('other')
    change(town, other, User(name='Bea'))
    value(town, other, read)
    evict_tenant(site, tenant)
    evict_table(site, tenant, 'users')
    assert valid(site, other) == ALL


def test_without_application(bare: Site, on_servers: Applications, tenant: str) -> None:
    """Redis and a namespace are enough to evict a table's values or a tenant's, of all
    processes."""
    app = on_servers.start(Town)
    change(app, tenant, User(name='Ada'))
    value(app, tenant, read)
    assert computed(app, tenant) == set()
    evict_table(bare, tenant, 'groups')
    # whether functions and rows are concerned is not known
    assert computed(app, tenant) == {'short_lived', 'titles', 'name'}
    evict_tenant(bare, tenant)
    assert computed(app, tenant) == ALL


def test_listeners_are_told(site: Site, town: Town, tenant: str) -> None:
    """Whoever keeps values elsewhere is told of an eviction by hand."""
    heard = []

    def hear(schema: str, **facts: object) -> None:
        heard.append((schema, facts['tags']))

    town.orm_cache.on_tags_published.connect(hear)
    prop = site.find_property('names')
    evict_property(site, tenant, prop)
    evict_tenant(site, tenant)
    assert heard == [(tenant, frozenset((prop.value_tag,))), (tenant, frozenset(('#code',)))]
