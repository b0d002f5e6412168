"""The town hall, as its visitors see it: real data, every view, every kind of change.

What a test calls fresh is what the same views answer after all cached values were
made worthless, so that each comes from the database.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import zip_longest
from typing import Any

import pytest
from sqlalchemy import func, select
from webob import Request
from webtest import TestApp

from fixtures.townhall import load, make_application, tenants, wsgi
from fixtures.townhall.geography import cities, country_of, regions
from fixtures.townhall.models import Article, Document, Page, Ticket, User
from fixtures.townhall.serving import tenant_of, without_cache
from onegov_ormcache import OrmCacheMiddleware
from tests.support.backends import Backend

Change = tuple[str, dict[str, str] | str]
Counter = Callable[[int], AbstractContextManager[Any]]

#: What shows all that can be changed: paths and who looks at them.
VIEWS = (
    ('/', None),
    ('/', 'admin'),
    ('/tree', None),
    ('/tree', 'admin'),
    ('/users', None),
    ('/tickets', None),
    ('/documents', None),
    ('/documents', 'admin'),
    ('/wiki', None),
    ('/wiki', 'admin'),
)

# Iceland's data: the page 1 is the country, 2 to 4 are regions, 5 to 10 cities, 14 to 16
# news; the user 3 is the member; the ticket 2 is closed; the document 2 is secret
PAGE_CHANGES: dict[str, Change] = {
    'rename a page': ('/pages/5/rename', {'title': 'Smoky Bay'}),
    'rename the country': ('/pages/1/rename', {'title': 'Ísland'}),
    'add a page': ('/pages/2', {'title': 'New'}),
    'add a page for the admin': ('/pages/2', {'title': 'New', 'visible_to': 'admin'}),
    'move a page': ('/pages/5/move', {'parent': '3'}),
    'delete a page': ('/pages/5/delete', {}),
    'delete a page with all below it': ('/pages/2/delete', {}),
    'import pages': ('/pages/2/import', '7;One\n8;Two'),
    'add news': ('/pages/1/news', {'title': 'New', 'lead': '-', 'published': '2031-01-01'}),
    'change the second table of news': ('/pages/16/lead', {'lead': 'Changed'}),
    'rename news': ('/pages/16/rename', {'title': 'Changed'}),
    'delete news': ('/pages/16/delete', {}),
}
OTHER_CHANGES: dict[str, Change] = {
    'open a ticket': ('/tickets', {'title': 'New', 'handler': '3'}),
    'close a ticket': ('/tickets/1/close', {}),
    'reopen a ticket': ('/tickets/2/reopen', {}),
    'close all tickets': ('/tickets/close-all', {}),
    'add a user': ('/users', {'login': 'new', 'name': 'New', 'role': 'member'}),
    'rename a user': ('/users/3/rename', {'name': 'Changed'}),
    'join a department': ('/users/3/join', {'department': 'Roads'}),
    'leave a department': ('/users/3/leave', {'department': 'Taxes'}),
    'delete a user with tickets': ('/users/3/delete', {}),
    'add a document': ('/documents', {'title': 'New', 'page': '1'}),
    'add a secret document': ('/documents', {'title': 'New', 'page': '1', 'secret': '1'}),
    'rename a document': ('/documents/1/rename', {'title': 'Changed'}),
    'rename a secret document': ('/documents/2/rename', {'title': 'Changed'}),
    'hide a document': ('/documents/1/hide', {}),
    'publish a document': ('/documents/2/publish', {}),
    'delete a secret document': ('/documents/2/delete', {}),
    'add an article': ('/wiki', {'title': 'New'}),
    'rename an article': ('/wiki/articles/1/rename', {'title': 'Changed'}),
}
CHANGES = PAGE_CHANGES | OTHER_CHANGES

#: Requests that change something, and then fail: with their status.
FAILURES: dict[str, tuple[str, dict[str, str] | str, str | None, int]] = {
    'forbidden': ('/pages/5/rename', {'title': 'X'}, 'member', 403),
    'not logged in': ('/tickets/close-all', {}, None, 403),
    'raised 400': ('/pages/5/rename', {'title': ' '}, 'editor', 400),
    'returned 400': ('/pages/2/import', '7;One\n8;', 'editor', 400),
    'raised 409 after a flush': ('/pages/2/move', {'parent': '5'}, 'editor', 409),
    'refused by the database': (
        '/users',
        {'login': 'admin', 'name': 'X', 'role': 'admin'},
        'editor',
        409,
    ),
    'unexpected error after a flush': ('/pages/2/import', '7;One\nx;Two', 'editor', 500),
    'no such page': ('/pages/999/rename', {'title': 'X'}, 'editor', 404),
}


class TownHall:
    """The application of one test, and its visitors."""

    def __init__(self, application: OrmCacheMiddleware, prefix: str) -> None:
        self.application = application
        self.prefix = prefix

    def load(self, *codes: str) -> None:
        for code in codes:
            assert load(self.application.app, self.prefix + code)

    def visitor(self, tenant: str = 'is', user: str | None = None) -> TestApp:
        headers = {'HTTP_X_TENANT': tenant} | ({'HTTP_X_USER': user} if user else {})
        return TestApp(self.application, extra_environ=headers)

    def get(self, path: str, user: str | None = None, tenant: str = 'is') -> Any:
        return self.visitor(tenant, user).get(path).json

    def post(
        self, path: str, form: dict[str, str] | str, user: str | None = 'editor', status: int = 200
    ) -> Any:
        return self.visitor('is', user).post(path, form, status=status)

    def everything(self, tenant: str = 'is') -> dict[tuple[str, str | None], Any]:
        """What all views show."""
        return {(path, user): self.get(path, user, tenant) for path, user in VIEWS}

    def fresh(self, tenant: str = 'is') -> dict[tuple[str, str | None], Any]:
        """What all views show when nothing is cached."""
        self.application.app.orm_cache.tags.renew(self.prefix + tenant)
        with self.application.app.recording() as events:
            seen = self.everything(tenant)
        assert {event.tier for event in events} >= {'creator'}
        return seen

    def computed(self, tenant: str = 'is') -> set[str]:
        """The properties that all views together have to compute now."""
        with self.application.app.recording() as events:
            self.everything(tenant)
        return {e.name.rpartition('.')[2] for e in events if e.tier == 'creator'}

    def titles(self, user: str | None = None, tenant: str = 'is') -> list[str]:
        """The titles of the page tree that a user sees."""
        return titles(self.get('/tree', user, tenant))


def titles(node: dict[str, Any]) -> list[str]:
    return [node['title'], *(title for child in node['children'] for title in titles(child))]


@pytest.fixture
def hall(backend: Backend, make_tenant: Callable[[str], str]) -> Iterator[TownHall]:
    """A town hall with Iceland's data."""
    prefix = make_tenant('x')[:-1]
    application = make_application(backend.settings, prefix=prefix)
    hall = TownHall(application, prefix)
    hall.load('is')
    yield hall
    application.app.close_orm_cache()


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
    """What is not there is answered with 404, in the application's own words."""
    for path in '/nothing', '/pages/999', '/pages/x', '/wiki/articles/999', '/wiki/nothing':
        assert hall.visitor().get(path, status=404).json == {'error': 'Not Found'}


# changes


@pytest.mark.parametrize('change', CHANGES)
def test_change_is_seen_by_the_next_request(hall: TownHall, change: str) -> None:
    """After a change, all views show at once what is in the database, to every role."""
    path, form = CHANGES[change]
    before = hall.everything()
    assert hall.computed() == set()
    hall.post(path, form)
    after = hall.everything()
    assert after != before
    assert hall.fresh() == after


@pytest.mark.parametrize('change', ['rename a page', 'close all tickets', 'join a department'])
def test_change_leaves_what_does_not_depend_on_it(hall: TownHall, change: str) -> None:
    """A change evicts what depends on its tables, and nothing else."""
    hall.everything()
    hall.post(*CHANGES[change])
    dependent = {
        'rename a page': {'page_tree', 'visible_documents', 'latest_news'},
        # a statement without objects is beyond a policy that is a function
        'close all tickets': {
            *('open_tickets', 'unassigned_tickets', 'workload', 'summary', 'secret_documents'),
        },
        'join a department': {'departments', 'summary'},
    }
    assert hall.computed() == dependent[change]


def test_function_policy_looks_at_the_object(hall: TownHall) -> None:
    """A policy that is a function evicts for objects that it is about, before or after."""
    evicts = {}
    for path in '/documents/1/rename', '/documents/2/rename', '/documents/2/publish':
        hall.everything()
        hall.post(path, {'title': 'Changed'})
        evicts[path] = 'secret_documents' in hall.computed()
    assert evicts == {
        '/documents/1/rename': False,
        '/documents/2/rename': True,
        '/documents/2/publish': True,
    }


def test_changing_request_sees_its_own_change(hall: TownHall) -> None:
    """A view that changes something reads it changed, before the commit."""
    assert hall.get('/tickets')['open'] == 4
    assert hall.post('/tickets/1/close', {}).json == {'open': 3}
    assert hall.post('/tickets/close-all', {}).json == {'open': 0}
    assert 'Roads' in hall.get('/users')['departments']
    joined = hall.post('/users/3/join', {'department': 'Roads'}).json
    assert 'Member of Reykjavík' in joined['departments']['Roads']
    assert hall.post('/documents/1/hide', {}).json == {
        'secret': ['Constitution', 'Map of Region of Akureyri', 'Plan for emergencies']
    }


# what fails


@pytest.mark.parametrize('failure', FAILURES)
def test_failed_change_leaves_nothing(
    hall: TownHall, failure: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A request that fails is rolled back, changes no view, and evicts nothing."""
    caplog.set_level(logging.CRITICAL, 'townhall')
    path, form, user, status = FAILURES[failure]
    before = hall.everything()
    with hall.application.app.recording() as events:
        hall.post(path, form, user, status)
    assert [event for event in events if event.kind == 'commit'] == []
    assert hall.computed() == set()
    assert hall.everything() == before
    assert hall.fresh() == before


def test_unexpected_error_is_logged_and_answered(
    hall: TownHall, caplog: pytest.LogCaptureFixture
) -> None:
    """The application's view for exceptions answers, and the log has the reason."""
    response = hall.post('/pages/2/import', 'x;Title', status=500)
    assert response.json == {'error': 'something went wrong'}
    [record] = [record for record in caplog.records if record.name == 'townhall']
    assert record.exc_info
    assert isinstance(record.exc_info[1], ValueError)


# tenants


def test_tenants_are_kept_apart(hall: TownHall) -> None:
    """A change of one tenant is no change of another, whose values stay cached."""
    hall.load('li')
    before = hall.everything('li')
    assert hall.get('/', tenant='li')['title'] == 'Liechtenstein'
    for change in 'rename the country', 'close all tickets', 'rename an article', 'add a user':
        hall.everything()
        hall.post(*CHANGES[change])
        assert hall.computed('li') == set()
        assert hall.computed() != set()
    assert hall.everything('li') == before == hall.fresh('li')


def test_tenant_is_taken_from_the_host(hall: TownHall) -> None:
    """The host's first label names the tenant; the header counts more."""
    hall.load('li')
    visitor = TestApp(hall.application)
    assert visitor.get('http://is.localhost:8080/').json['title'] == 'Iceland'
    assert visitor.get('http://LI.example.org/').json['title'] == 'Liechtenstein'
    named = visitor.get('http://is.localhost/', headers={'X-Tenant': 'li'})
    assert named.json['title'] == 'Liechtenstein'
    assert tenant_of({'HTTP_HOST': 'localhost:8080'}) is None
    assert tenant_of({}) is None


@pytest.mark.parametrize('tenant', ['li', 'nowhere', '../is', 'is%', "is'", 'IS', 'x' * 80])
def test_unknown_tenant_is_404(hall: TownHall, tenant: str) -> None:
    """A tenant that does not exist is answered with 404, and is not created."""
    manager = hall.application.app.session_manager
    before = manager.list_schemas(hall.prefix)
    assert before == [hall.prefix + 'is']
    hall.visitor(tenant).get('/', status=404)
    hall.visitor(tenant, 'editor').post('/tickets', {'title': 'New'}, status=404)
    assert manager.list_schemas(hall.prefix) == before
    assert not manager.has_schema(hall.prefix + tenant)


def test_request_for_nobody_is_404(hall: TownHall) -> None:
    """A request that names no tenant is answered with 404."""
    TestApp(hall.application).get('http://localhost/', status=404)


# roles


def test_roles_see_their_own_tree(hall: TownHall) -> None:
    """Each role sees the pages of the roles before it, and some more; whoever asks first."""
    for users in [None, 'member', 'editor', 'admin'], ['admin', 'editor', 'member', None]:
        hall.application.app.orm_cache.tags.renew(hall.prefix + 'is')
        seen = {user: set(hall.titles(user)) for user in users}
        assert 'Intranet' not in seen[None]
        assert seen['member'] - seen[None] == {'Intranet'}
        assert seen['editor'] - seen['member'] == {'Drafts'}
        assert seen['admin'] - seen['editor'] == {'Salaries'}
        assert seen[None] < seen['member'] < seen['editor'] < seen['admin']


def test_hidden_pages_are_404(hall: TownHall) -> None:
    """A page that a role does not see in the tree is not shown to it either."""
    assert hall.get('/pages/13', 'admin')['title'] == 'Salaries'
    for user in None, 'member', 'editor', 'nobody':
        hall.visitor(user=user).get('/pages/13', status=404)


def test_changed_role_counts_at_once(hall: TownHall) -> None:
    """A user's next request has the role that was given to the user."""
    assert 'Salaries' not in hall.titles('member')
    hall.post('/tickets/1/close', {}, 'member', 403)
    hall.post('/users/3/role', {'role': 'admin'})
    assert 'Salaries' in hall.titles('member')
    hall.post('/tickets/1/close', {}, 'member')
    hall.post('/users/3/delete', {})
    assert hall.titles('member') == hall.titles(None)


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
    """What the wiki changes it sees at once, and its properties alone are evicted."""
    hall.everything()
    renamed = hall.post('/wiki/articles/1/rename', {'title': 'Surface'}).json
    assert 'Surface' in renamed['articles']
    assert hall.computed() == {'articles', 'article_count'}
    assert 'Surface' in hall.get('/wiki')['articles']


# what it costs


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


# the data


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


# for servers


def test_wsgi_module_reads_the_environment(
    backend: Backend, make_tenant: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The factory's application uses what the environment variables name."""
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
