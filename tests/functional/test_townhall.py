"""The town hall's visitors see what its database has, in every view and at the promised cost."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import zip_longest
from typing import Any

import pytest
from webob import Request
from webtest import TestApp

from fixtures.townhall import load, make_application, wsgi
from fixtures.townhall.geography import regions
from fixtures.townhall.serving import without_cache
from tests.functional.visitors import VIEWS, TownHall
from tests.support.backends import Backend

Counter = Callable[[int], AbstractContextManager[Any]]


# the views


def test_home_shows_the_tenant(hall: TownHall) -> None:
    """The home page shows the country, its regions, its users and its news."""
    home = hall.get('/')
    assert home['title'] == 'Iceland'
    assert list(home['menu'])[:3] == list(regions('is').values())
    assert home['menu']['Region of Reykjavík'] == 3
    assert home['summary']['open_tickets'] == 4
    assert len(home['summary']['users']) == 6
    assert home['summary']['departments'] == 5
    dates = [news['published'] for news in home['news']]
    assert dates == ['2024-01-03', '2024-01-02', '2024-01-01']


def test_views_show_what_was_loaded(hall: TownHall) -> None:
    """Each view shows what the database has."""
    assert hall.get('/about') == {
        'title': 'Iceland',
        'text': '353,574 people; the capital is Reykjavik.',
    }
    page = hall.get('/pages/2')
    assert page['title'] == 'Region of Reykjavík'
    assert page['children']['Kópavogur'] == 6
    users = hall.get('/users')
    assert {'id': 3, 'name': 'Member of Reykjavík'} in users['users']
    assert users['departments']['Taxes'] == ['Member of Reykjavík']
    tickets = hall.get('/tickets')
    assert tickets['open'] == sum(tickets['workload'].values()) == 4
    assert tickets['unassigned'] == 0
    assert hall.get('/tickets/2') == {
        'title': 'New bus stop, Kópavogur',
        'state': 'closed',
        'handler': 'Editor of Reykjavík',
    }


def test_organisation_is_an_object_of_the_request(hall: TownHall) -> None:
    """The request-cached organisation is one ORM object, of the scope's own session."""
    app: Any = hall.application.app
    with app.request_scope(hall.prefix + 'is') as scope:
        organisation = app.organisation
        assert organisation is app.organisation
        assert organisation in scope.session()
        assert organisation.title == 'Iceland'


def test_unknown_paths_are_404(hall: TownHall) -> None:
    """A path that does not exist is answered with 404, in the application's own words."""
    for path in '/nothing', '/pages/999', '/pages/x', '/wiki/articles/999', '/wiki/nothing':
        assert hall.visitor().get(path, status=404).json == {'error': 'Not Found'}


# the streamed view


def test_stream_shows_the_whole_tree(hall: TownHall) -> None:
    """A response that reads cached properties while it is sent is complete and fresh."""
    for title in 'Reykjavík', 'Smoky Bay':
        hall.post('/pages/5/rename', {'title': title})
        first, *pages = hall.visitor().get('/export').text.splitlines()
        assert first == '4 open tickets'
        assert [page.strip() for page in pages] == hall.titles()
        assert pages[2] == f'    {title}'


def test_streams_of_two_tenants_do_not_mix(hall: TownHall) -> None:
    """Two responses that one thread sends in turns stay with their own tenants."""
    hall.load('li')
    whole = {code: hall.visitor(code).get('/export').body for code in ('is', 'li')}
    parts: dict[str, list[bytes]] = {'is': [], 'li': []}
    bodies = [stream(hall, code) for code in parts]
    for chunks in zip_longest(*bodies, fillvalue=b''):
        for code, chunk in zip(parts, chunks, strict=True):
            parts[code].append(chunk)
    for body in bodies:
        body.close()
    assert {code: b''.join(chunks) for code, chunks in parts.items()} == whole


def test_abandoned_stream_gives_everything_back(hall: TownHall) -> None:
    """A client that goes away in the middle leaves no connection behind."""
    engine = hall.application.app.session_manager.database.engine(hall.prefix + 'is')
    hall.application.app.orm_cache.tags.renew(hall.prefix + 'is')
    body = stream(hall, 'is')
    assert next(iter(body)) == b'4 open tickets\n'
    assert engine.pool.checkedout() == 1
    body.close()
    assert engine.pool.checkedout() == 0
    assert hall.everything() == hall.fresh()


def stream(hall: TownHall, tenant: str) -> Any:
    """The body of the streamed view, not yet read."""
    request = Request.blank('/export', headers={'X-Tenant': tenant})
    return request.get_response(hall.application).app_iter


# the mounted application


def test_mounted_app_has_its_own_properties(hall: TownHall) -> None:
    """The wiki's app and request properties work, with the town hall's roles."""
    public = {'Area': 1, 'Languages': 2, 'Neighbours': 3}
    assert hall.get('/wiki') == {'articles': public, 'count': 5}
    assert hall.get('/wiki', 'member')['articles'] == public | {'Money': 4}
    assert hall.get('/wiki/articles/4', 'member')['title'] == 'Money'
    hall.visitor().get('/wiki/articles/4', status=404)
    hall.post('/wiki', {'title': 'New'}, 'member', 403)


def test_mounted_app_changes_and_sees_its_change(hall: TownHall) -> None:
    """The wiki sees its own change at once, and only the wiki's properties are evicted."""
    hall.everything()
    renamed = hall.post('/wiki/articles/1/rename', {'title': 'Surface'}).json
    assert 'Surface' in renamed['articles']
    assert hall.computed() == {'articles', 'article_count'}
    assert 'Surface' in hall.get('/wiki')['articles']


# costs


def test_warm_request_costs_one_round_trip(
    hall: TownHall, redis_ops: Counter, db_queries: Counter
) -> None:
    """A page of cached values costs one look at the tag store, and no SQL."""
    for path, user in VIEWS:
        hall.get(path, user)
        with redis_ops(1), db_queries(0):
            hall.get(path, user)


def test_without_cache_the_answers_are_the_same(hall: TownHall, backend: Backend) -> None:
    """The plain application gives the same answers, without cached values (but the wiki's)."""
    hall.post('/pages/5/rename', {'title': 'Smoky Bay'})
    before = hall.everything()
    hall.application.app.close_orm_cache()
    application = make_application(backend.settings, prefix=hall.prefix)
    plain = TownHall(without_cache(application), hall.prefix)
    with application.app.recording() as events:
        assert plain.everything() == before
    assert {event.name for event in events if '.Wiki.' not in event.name} == set()
    application.app.close_orm_cache()


# for servers


def test_wsgi_module_reads_the_environment(
    backend: Backend, make_tenant: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The application of the WSGI module uses the settings in the environment variables."""
    prefix = make_tenant('x')[:-1]
    variables = {
        'TOWNHALL_DSN': backend.settings['dsn'],
        'TOWNHALL_REDIS_URL': backend.settings['redis_url'] or '',
        'TOWNHALL_NAMESPACE': backend.settings['namespace'],
        'TOWNHALL_PREFIX': prefix,
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    application = wsgi.application
    del vars(wsgi)['application']
    settings = application.app.orm_cache.settings
    for name, value in backend.settings.items():
        assert getattr(settings, name) == value
    load(application.app, prefix + 'is')
    visitor = TestApp(application, extra_environ={'HTTP_X_TENANT': 'is'})
    assert visitor.get('/').json['title'] == 'Iceland'
    application.app.close_orm_cache()
    with pytest.raises(AttributeError):
        wsgi.nothing
