"""Cached views: whose response is whose, and what a view may look at."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select
from webtest import TestApp as Client

from onegov_ormcache import OrmCacheApp, OrmCacheMiddleware, cached, orm_cached
from onegov_ormcache.errors import AuditError, VariantError
from tests.support.applications import Applications
from tests.support.counting import Runs
from tests.support.models import User
from tests.web.responses.site import App, Policy, Root, See, Site, names_of, show_names


@pytest.mark.parametrize('options', [True, cached(by_role=True), cached(public=True)])
def test_users(applications: Applications, tenant: str, options: Any) -> None:
    """No user gets the page of another one, nor an unverified one that of a verified one."""

    def view(self: Root, request: Any) -> str:
        names_of(request)
        return str(getattr(request.identity, 'userid', None))

    site = Site(applications, tenant, view, options)
    for _ in range(3):
        for user in ('a', 'b', 'unverified', None):
            headers = {} if user is None else {'X_User': user, 'X_Role': 'r'}
            expected = 'None' if user == 'unverified' else str(user)
            assert site.get(**headers).text == expected
    # the name of a user is stored only where it is a part of the key
    assert site.view_runs == (3 if options is True else 3 * 4 if options.public else 3 * 2 + 1)


def test_by_role(applications: Applications, tenant: str, caplog: Any) -> None:
    """Users of one role share a page that shows their role alone, with its permission."""
    site = Site(
        applications, tenant, lambda self, request: request.by_role, cached(by_role=True),
        permission=See,
    )  # fmt: skip
    for _ in range(2):
        assert site.get(X_User='a', X_Role='editor').text == 'editor0'
        assert site.get(X_User='b', X_Role='editor').text == 'editor0'
        site.get(X_User='c', X_Role='reader', status=403)
        site.get(status=403)
    assert site.view_runs == 1
    assert [r.getMessage() for r in caplog.records] == []


@pytest.mark.parametrize(
    ('name', 'read'),
    [
        ('header', lambda r: r.headers.get('X-A')),
        ('header', lambda r: 'X-A' in r.headers),
        ('header', lambda r: r.environ.get('HTTP_X_A')),
        ('header', lambda r: r.accept_language.header_value),
        ('cookie', lambda r: r.cookies.get('a')),
        ('environ', lambda r: sorted(map(str, r.environ))),
        ('environ', lambda r: str({**r.environ})),
        ('environ', lambda r: dict(r.environ).get('HTTP_X_A')),
        ('environ', lambda r: r.environ.copy().get('HTTP_X_A')),
        ('environ', lambda r: ({} | r.environ).get('HTTP_X_A')),
        ('address', lambda r: r.remote_addr),
        ('body', lambda r: r.body),
        ('forwarded', lambda r: r.headers.get('X-Forwarded-Host')),
        ('override', lambda r: r.headers.get('X-HTTP-Method-Override')),
        ('if', lambda r: r.if_none_match),
        ('headers', lambda r: list(r.headers.items())),
    ],
)
@pytest.mark.parametrize('audit', ['warn', 'error', 'off'])
def test_unkeyed_reads(
    applications: Applications, tenant: str, name: str, read: Any, audit: str, caplog: Any
) -> None:
    """A page that shows what its key does not have is not stored; with audit, it is an error."""

    def view(self: Root, request: Any) -> str:
        return f'{names_of(request)} {read(request)}'

    site = Site(applications, tenant, view, settings={'audit': audit})
    if audit == 'error':
        with pytest.raises(AuditError):
            site.get()
        return
    for _ in range(2):
        site.get()
    assert site.view_runs == 2
    assert sum('is not stored' in record.message for record in caplog.records) == 1


@pytest.mark.parametrize('is_declared', [True, False])
def test_declared_cookies(applications: Applications, tenant: str, is_declared: bool) -> None:
    """A page may differ by cookies that its key has, also if they were looked at before."""

    def parsed(request: Any) -> bool:
        return 'a' in request.cookies

    def view(self: Root, request: Any) -> str:
        return f'{names_of(request)}{request.cookies["a"]}'

    options = cached(headers=['Cookie'] if is_declared else [])
    site = Site(applications, tenant, view, options, {'cached_responses': parsed})
    for cookie in 'a=1', 'a=2', 'a=1', 'a=2':
        assert site.get(Cookie=cookie).text == cookie[2:]
    assert site.view_runs == (2 if is_declared else 4)


def test_cookies_that_were_parsed_before(applications: Applications, tenant: str) -> None:
    """A page can't show cookies by what WebOb keeps of them in the environment."""

    def parsed(request: Any) -> bool:
        return 'a' in request.cookies

    def view(self: Root, request: Any) -> str:
        return f'{names_of(request)}{request.environ.get("webob._parsed_cookies")}'

    site = Site(applications, tenant, view, settings={'cached_responses': parsed})
    assert [site.get(Cookie=cookie).text for cookie in ('a=1', 'a=2')] == ['None', 'None']


@pytest.mark.parametrize(
    'read',
    [
        lambda r: r.GET.get('a'), lambda r: r.params.get('a'), lambda r: r.path,
        lambda r: r.query_string, lambda r: r.host, lambda r: r.url, lambda r: r.link(Root()),
        lambda r: r.method, lambda r: r.class_link(Root), lambda r: r.application_url,
    ],
)  # fmt: skip
def test_keyed_reads(applications: Applications, tenant: str, read: Any) -> None:
    """Path, query, method, host and scheme are a part of the key."""

    def view(self: Root, request: Any) -> str:
        return f'{names_of(request)} {read(request)}'

    settings = {'cached_responses': lambda request: 'X-Off' not in request.headers}
    site = Site(applications, tenant, view, settings=settings)
    for _ in range(2):
        for url in ('/', '/?a=1', '/?a=2', '/?a=1&a=2', '/?a=2&a=1', '/?a=' + 'x' * 100_000):
            for host in ('one.example', 'two.example:81'):
                plain = site.get(url, Host=host, X_Off='1')
                assert site.get(url, Host=host).body == plain.body
    assert site.view_runs == 12 + 2 * 12


def test_bytes_that_are_no_text(applications: Applications, tenant: str) -> None:
    """A query or a path of other bytes than UTF-8 gets what an uncached application answers."""

    def view(self: Root, request: Any) -> str:
        return f'{names_of(request)} {request.query_string} {request.GET.get("a")}'

    settings = {'cached_responses': lambda request: 'X-Off' not in request.headers}
    site = Site(applications, tenant, view, settings=settings)

    def outcome(url: str, **headers: str) -> Any:
        try:
            found = site.get(url, status='*', **headers)
        except Exception as error:
            return type(error)
        return found.status, found.body

    for url in ('/?a=%ff', '/?%fe=%ff', '/%ff', '/%ff?%ff'):
        for _ in range(2):
            assert outcome(url) == outcome(url, X_Off='1')


def test_without_host(applications: Applications, tenant: str) -> None:
    """With by_host=False all hosts share a page, unless it shows the host."""
    site = Site(applications, tenant, show_names, cached(by_host=False))
    site.get(Host='one.example')
    site.get(Host='two.example')
    assert site.view_runs == 1
    site.app.close_orm_cache()
    site = Site(
        applications, tenant, lambda self, request: names_of(request) + request.link(self),
        cached(by_host=False),
    )  # fmt: skip
    assert 'evil' in site.get(Host='evil.example').text
    assert 'evil' not in site.get(Host='good.example').text


@pytest.mark.parametrize('header', ['Host', 'X-Forwarded-Host', 'X-HTTP-Method-Override', 'X-A'])
def test_no_header_poisons_the_page_of_others(
    applications: Applications, tenant: str, header: str
) -> None:
    """What a visitor puts into a header is on the visitor's page alone."""

    def view(self: Root, request: Any) -> str:
        return f'{names_of(request)} {request.headers.get(header)} {request.link(self)}'

    for options in (True, cached(public=True), cached(headers=[header])):
        site = Site(applications, tenant, view, options)
        for _ in range(2):
            assert 'evil' in site.get(**{header: 'evil.example'}).text
            assert 'evil' not in site.get(**{header: 'good.example'}).text
            assert 'evil' not in site.get().text
        site.app.close_orm_cache()


def test_varies(applications: Applications, tenant: str) -> None:
    """A page differs by the headers and the function that are declared."""
    options = cached(headers=['Accept-Language'], vary=lambda request: request.GET.get('v'))
    site = Site(
        applications, tenant,
        lambda self, request: f'{names_of(request)}{request.headers.get("Accept-Language")}',
        options,
    )  # fmt: skip
    for _ in range(2):
        assert site.get(Accept_Language='de').text == 'de'
        assert site.get(Accept_Language='fr').text == 'fr'
        assert site.get().text == 'None'
        assert site.get().headers['Vary'] == 'Accept-Language'
    assert site.view_runs == 3


@pytest.mark.parametrize('told', ['nothing', 'a list'])
def test_identities_that_are_no_key(
    applications: Applications, tenant: str, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An identity that can't be part of a key gets an uncached page, and the log says once why."""

    class Strange:
        role = 'r'

        if told == 'a list':

            def as_dict(self) -> Any:
                return {'userid': ['a']}

    class StrangePolicy(Policy):
        def identify(self, request: Any) -> Any:
            return Strange()

    class Own(App):
        pass

    @Own.identity_policy()
    def policy() -> Any:
        return StrangePolicy()

    runs = Runs()

    @Own.view(model=Root, cached=True)
    def view(self: Root, request: Any) -> str:
        runs('view')
        return names_of(request)

    @Own.verify_identity(identity=Strange)
    def verify(identity: Any) -> bool:
        return True

    client = Client(OrmCacheMiddleware(applications.start(Own), schema=tenant))
    for _ in range(2):
        assert client.get('/').text == ''
    assert runs.count('view') == 2
    assert len(caplog.records) == 1


def test_an_identity_of_another_app(applications: Applications, tenant: str) -> None:
    """A mounted app that is made for a user known to the root app alone serves that user alone."""

    class Mounted(OrmCacheApp):
        def __init__(self, user: str) -> None:
            self.user = user

    class Own(App):
        pass

    @Own.mount(path='mounted', app=Mounted)
    def mount(request: Any) -> Mounted:
        return Mounted(str(getattr(request.identity, 'userid', None)))

    Mounted.path(path='')(Root)

    @Mounted.view(model=Root, cached=True)
    def view(self: Root, request: Any) -> str:
        return f'{request.app.session().query(User).count()} {request.app.user}'

    client = Client(OrmCacheMiddleware(applications.start(Own), schema=tenant))
    for _ in range(3):
        for user in 'a', 'b':
            assert client.get('/mounted', headers={'X-User': user}).text == f'0 {user}'
        assert client.get('/mounted').text == '0 None'


@pytest.mark.parametrize('audit', ['warn', 'error'])
def test_properties_that_vary(applications: Applications, tenant: str, audit: str) -> None:
    """A page of a value that varies by what the page does not vary by is not stored."""
    language = ['de']

    class Own(App):
        @orm_cached(policy=User, vary=lambda app: language[0])
        def title(self) -> str:
            return f'{language[0]}{len(self.session().execute(select(User)).all())}'

    runs = Runs()

    @Own.view(model=Root, cached=True)
    def view(self: Root, request: Any) -> str:
        runs('view')
        return str(request.app.title)

    app = applications.start(Own, audit=audit)
    client = Client(OrmCacheMiddleware(app, schema=tenant))
    if audit == 'error':
        with pytest.raises(VariantError):
            client.get('/')
        return
    for expected in ('de', 'fr', 'de'):
        language[0] = expected
        assert client.get('/').text == f'{expected}0'
    assert runs.count('view') == 3
