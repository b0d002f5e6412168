"""Cached views: ETag, 304 and the headers beside; tweens, mounts, and wrong declarations."""

from __future__ import annotations

from typing import Any

import pytest
from webob import Response
from webob.exc import HTTPNotFound
from webtest import TestApp as Client

from onegov_ormcache import OrmCacheApp, OrmCacheMiddleware, cached
from tests.support.applications import Applications, change
from tests.support.counting import Runs
from tests.support.models import User
from tests.web.responses.site import App, Root, Site, names_of, show_names


@pytest.mark.parametrize('given', ['{}', 'W/{}', '"x", {}', '"x",W/{} ,"y"', '*', ' * '])
def test_not_modified(applications: Applications, tenant: str, given: str) -> None:
    """A tag that matches, weakly, in a list or as ``*``, gives a 304 without a body."""
    site = Site(applications, tenant, show_names, cached(headers=['Accept-Language']))
    site.add('a')
    whole = site.get()
    assert whole.headers['ETag'].startswith('"')
    found = site.get(status=304, If_None_Match=given.format(whole.headers['ETag']))
    assert found.body == b''
    assert 'Content-Type' not in found.headers
    assert 'Content-Length' not in found.headers
    for name in 'ETag', 'Cache-Control', 'Vary':
        assert found.headers[name] == whole.headers[name]
    assert 'Last-Modified' not in whole.headers
    site.add('b')
    assert site.get(If_None_Match=whole.headers['ETag']).text == 'a,b'


@pytest.mark.parametrize(
    'given', ['', '"', '"x"', 'x', '"x' * 400_000, ', ' * 500_000, '"' * 1_000_000, 'W/' * 9]
)
def test_modified(applications: Applications, tenant: str, given: str) -> None:
    """Tags that do not match, or are none, give the page."""
    site = Site(applications, tenant, show_names)
    site.add('a')
    assert [site.get(If_None_Match=given).text for _ in range(2)] == ['a'] * 2
    tag = site.get().headers['ETag']
    assert site.get(If_None_Match=tag.strip('"')).text == 'a'


def test_unchanged_content_keeps_its_tag(applications: Applications, tenant: str) -> None:
    """A change that the page does not show leaves the browser's copy valid."""
    site = Site(applications, tenant, lambda self, request: str(len(request.app.names) > 0))
    site.add('a')
    tag = site.get().headers['ETag']
    site.add('b')
    site.get(status=304, If_None_Match=tag)
    assert site.view_runs == 2


def test_headers(applications: Applications, tenant: str) -> None:
    """A page is private unless it is the same for all users; what the view says comes first."""
    for options, control in (
        (True, 'private, no-cache'),
        (cached(by_role=True), 'private, no-cache'),
        (cached(public=True), 'no-cache'),
    ):
        site = Site(applications, tenant, show_names, options, {'cache_status': 'towns'})
        found = site.get()
        assert found.headers['Cache-Control'] == control
        assert found.headers['Cache-Status'] == 'towns; fwd=miss'
        assert site.get().headers['Cache-Status'] == 'towns; hit'
        site.app.close_orm_cache()

    def view(self: Root, request: Any) -> Response:
        return Response(names_of(request).encode(), headerlist=[
            ('Cache-Control', 'max-age=60'), ('ETag', '"own"'), ('Content-Encoding', 'identity'),
        ])  # fmt: skip

    site = Site(applications, tenant, view)
    for _ in range(2):
        found = site.get()
        assert found.headers.getall('Cache-Control') == ['max-age=60']
        assert found.headers.getall('ETag') == ['"own"']
        assert found.headers['Content-Encoding'] == 'identity'
        site.get(status=304, If_None_Match='W/"own"')
    assert site.view_runs == 1


def test_methods(applications: Applications, tenant: str) -> None:
    """HEAD is answered as the uncached application does: by a view for HEAD, or not at all."""
    site = Site(applications, tenant, show_names)
    site.client.head('/', status=405)
    site.get()
    site.client.head('/', status=405)
    site.app.close_orm_cache()
    site = Site(applications, tenant, show_names, request_method='HEAD')
    site.add('abc')
    for _ in range(2):
        found = site.client.head('/')
        assert found.body == b''
        assert found.headers['Content-Length'] == '3'
    assert site.view_runs == 1
    site.client.head('/', headers={'If-None-Match': found.headers['ETag']}, status=304)


def test_other_tweens(applications: Applications, tenant: str) -> None:
    """What tweens above ask for is done for each response; what they have set is noticed."""

    class Own(App):
        pass

    from onegov_ormcache import response_tween_factory

    @Own.tween_factory(over=response_tween_factory)
    def tween(app: Any, handler: Any) -> Any:
        def count(request: Any) -> Any:
            request.theme = 'dark'

            @request.after
            def after(response: Any) -> None:
                response.headers.add('X-After', 'yes')

            return handler(request)

        return count

    runs = Runs()

    @Own.view(model=Root, cached=True)
    def view(self: Root, request: Any) -> str:
        runs('view')
        return names_of(request) + (request.theme if 'theme' in request.GET else '')

    app = applications.start(Own)
    client = Client(OrmCacheMiddleware(app, schema=tenant))
    for _ in range(3):
        assert client.get('/').headers.getall('X-After') == ['yes']
    assert runs.count('view') == 1
    for _ in range(2):
        assert client.get('/?theme').text == 'dark'
    assert runs.count('view') == 3


def test_mounted_apps(applications: Applications, tenant: str) -> None:
    """The views of a mounted app are cached, for each of its mounts and for its own identities."""

    class Mounted(OrmCacheApp):
        def __init__(self, name: str) -> None:
            self.name = name

    class Own(App):
        pass

    @Own.mount(path='at/{name}', app=Mounted)
    def mount(name: str) -> Mounted:
        return Mounted(name)

    runs = Runs()
    Mounted.path(path='')(Root)

    @Mounted.view(model=Root, cached=True)
    def view(self: Root, request: Any) -> str:
        runs('view')
        count = request.app.session().query(User).count()
        return f'{request.app.name} {count} {getattr(request.identity, "userid", None)}'

    @Mounted.view(model=Root, name='public', cached=cached(public=True))
    def public(self: Root, request: Any) -> str:
        runs('public')
        return str(request.app.session().query(User).count())

    app = applications.start(Own)
    client = Client(OrmCacheMiddleware(app, schema=tenant))
    for _ in range(3):
        assert client.get('/at/a', headers={'X-User': 'u'}).text == 'a 0 None'
        assert client.get('/at/b').text == 'b 0 None'
        assert client.get('/at/b/public').text == '0'
    assert runs.count('view') == 2
    assert runs.count('public') == 1


def test_overridden_and_inherited_views(applications: Applications, tenant: str) -> None:
    """A derived app has the cached views of its base, unless it overrides them."""

    class Parent(App):
        pass

    class Child(Parent):
        pass

    runs = Runs()

    @Parent.view(model=Root, cached=True)
    def view(self: Root, request: Any) -> str:
        runs('parent')
        return names_of(request)

    @Parent.json(model=Root, name='json', cached=True)
    def as_json(self: Root, request: Any) -> Any:
        runs('json')
        return {'names': names_of(request)}

    @Parent.html(model=Root, name='html', cached=True, render=lambda c, r: Response(f'<{c}>'))
    def as_html(self: Root, request: Any) -> Any:
        runs('html')
        return names_of(request)

    @Child.view(model=Root)
    def own(self: Root, request: Any) -> str:
        runs('child')
        return names_of(request)

    app = applications.start(Child)
    client = Client(OrmCacheMiddleware(app, schema=tenant))
    for _ in range(2):
        assert client.get('/').text == ''
        assert client.get('/json').json == {'names': ''}
        assert client.get('/html').text == '<>'
    assert [runs.count(each) for each in ('parent', 'child', 'json', 'html')] == [0, 2, 1, 1]


def test_wrong_hints(applications: Applications, tenant: str) -> None:
    """A URL that leads to another view than before is answered by that view."""

    class Other:
        pass

    class Own(App):
        pass

    @Own.path(path='by/{name}', model=object)
    def get(app: Any, name: str) -> Any:
        return Other() if app.session().query(User).count() % 2 else Root()

    runs = Runs()

    @Own.view(model=Root, cached=True)
    def root(self: Root, request: Any) -> str:
        runs('root')
        return f'root {names_of(request)}'

    @Own.view(model=Other)
    def other(self: Other, request: Any) -> str:
        runs('other')
        return f'other {names_of(request)}'

    app = applications.start(Own)
    client = Client(OrmCacheMiddleware(app, schema=tenant))
    for name in ('a', 'b', 'c'):
        kind = 'other' if len(name) and name == 'b' else 'root'
        for _ in range(2):
            assert client.get('/by/x').text.startswith(kind)
        change(app, tenant, User(name=name))
        assert client.get('/by/x').text.startswith('other' if kind == 'root' else 'root')
    assert runs.count('root') == 2
    found = app.orm_cache.statistics.of(tenant).properties
    [counted] = [counts for where, counts in found.items() if 'view(' in where]
    assert (counted.runs, counted.failed_runs, counted.misses) == (2, 0, 2)


@pytest.mark.parametrize(
    'directive',
    [
        {'cached': 'yes'}, {'cached': 1}, {'cached': None},
        {'cached': True, 'request_method': 'POST'}, {'cached': True, 'internal': True},
        {'cached': True, 'load': lambda request: None},
        {'cached': True, 'model': HTTPNotFound},
    ],
)  # fmt: skip
def test_wrong_directives(directive: Any) -> None:
    """A view that can't be cached is an error when the app is committed."""
    from onegov_ormcache.errors import PropertyError

    class Own(App):
        pass

    Own.view(**{'model': Root, **directive})(lambda self, request: '')
    with pytest.raises(PropertyError, match=r'test_conditional_requests\.py'):
        Own.commit()


@pytest.mark.parametrize(
    'options',
    [
        {'by_role': 1}, {'public': None}, {'by_role': True, 'public': True}, {'vary': 'x'},
        {'headers': ['a b']}, {'headers': [1]}, {'headers': ['']}, {'headers': None},
        {'statuses': None}, {'statuses': 200}, {'statuses': [[200]]}, {'statuses': (500,)},
        {'statuses': (200, 401)}, {'expires': 0}, {'expires': 'x'}, {'max_size': 0},
        {'max_size': True},
    ],
)  # fmt: skip
def test_wrong_options(options: Any) -> None:
    """Wrong options are errors where they are given."""
    from onegov_ormcache.errors import PropertyError

    with pytest.raises(PropertyError):
        cached(**options)
