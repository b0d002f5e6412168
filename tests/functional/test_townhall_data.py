"""The town hall's data is complete, and is loaded once per tenant."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import func, select

from fixtures.townhall import load, tenants
from fixtures.townhall.geography import cities, country_of, regions
from fixtures.townhall.models import Article, Document, Page, Ticket, User
from tests.functional.visitors import TownHall, titles


@pytest.mark.parametrize('code', ['li', 'ch', 'us'])
def test_the_data_is_complete(hall: TownHall, code: str) -> None:
    """The tree has each city of a country once, below its region, and the counts agree."""
    hall.load(code)
    tree = hall.get('/tree', 'admin', code)
    region_names = regions(code)
    names = list(region_names.values())
    by_region = {node['title']: node['children'] for node in tree['children'][: len(names)]}
    assert list(by_region) == names
    assert sorted(
        (title, city['title']) for title, below in by_region.items() for city in below
    ) == sorted((region_names[city.region], city.name) for city in cities()[code])

    app: Any = hall.application.app
    home, tickets = hall.get('/', None, code), hall.get('/tickets', None, code)
    documents = hall.get('/documents', 'admin', code)
    with app.request_scope(hall.prefix + code) as scope:

        def count(model: Any, *conditions: Any) -> int | None:
            query = select(func.count()).select_from(model).where(*conditions)
            number: int | None = scope.session().scalar(query)
            return number

        assert len(titles(tree)) == count(Page)
        assert len(hall.titles(None, code)) == count(Page, Page.visible_to == 'public')
        assert tickets['open'] == home['summary']['open_tickets']
        assert tickets['open'] == count(Ticket, Ticket.state == 'open')
        assert len(home['summary']['users']) == count(User)
        assert len(documents['documents']) == documents['count'] == count(Document)
        assert documents['secret'] == count(Document, Document.secret)
        assert hall.get('/wiki', None, code)['count'] == count(Article)


def test_loading_twice_changes_nothing(hall: TownHall) -> None:
    """A tenant that has pages is left as it is, whatever has happened to it since."""
    hall.post('/pages/5/rename', {'title': 'Smoky Bay'})
    before = hall.everything()
    assert not load(hall.application.app, hall.prefix + 'is')
    assert hall.computed() == set()
    assert hall.fresh() == before


def test_loading_tells_its_progress(hall: TownHall) -> None:
    """The numbers of cities that progress is told add up to what the tenant has."""
    told: list[int] = []
    assert load(hall.application.app, hall.prefix + 'jp', told.append)
    [japan] = [tenant for tenant in tenants() if tenant.code == 'jp']
    assert sum(told) == japan.cities == len(cities()['jp'])
    assert len(told) > 1


def test_tenants_are_the_countries_with_cities() -> None:
    """Every country that has cities can be loaded, largest first; others can not."""
    found = tenants()
    assert len(found) > 200
    assert sum(tenant.cities for tenant in found) > 20_000
    assert [tenant.cities for tenant in found] == sorted((t.cities for t in found), reverse=True)
    assert all(country_of(f'any_{tenant.code}') == tenant.code for tenant in found)
    for schema in 'nowhere', 'aq', 'a_xx':
        with pytest.raises(LookupError, match=schema):
            country_of(schema)
