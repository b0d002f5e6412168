"""Cached views: what is stored of a response, for whom, and when it is served again."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Callable
from typing import Any

import morepath
import pytest
from sqlalchemy import select, text
from webob import Response
from webob.exc import HTTPForbidden, HTTPFound, HTTPNotFound, HTTPTemporaryRedirect
from webtest import TestApp as Client

from onegov_ormcache import OrmCacheApp, OrmCacheMiddleware, cached, orm_cached
from onegov_ormcache.errors import AuditError, VariantError
from tests.support.applications import Applications, change
from tests.support.counting import Runs
from tests.support.models import Group, User

View = Callable[[Any, Any], Any]

RELEASES = itertools.count()


class Root:
    """The model at /."""


class Named:
    """The model at /named/NAME, made of a row."""

    def __init__(self, user: User) -> None:
        self.user = user


class Policy(morepath.IdentityPolicy):
    """Identifies a user by the headers X-User and X-Role."""

    def identify(self, request: Any) -> Any:
        login = request.headers.get('X-User')
        if login is None:
            return morepath.NO_IDENTITY
        return morepath.Identity(login, role=request.headers.get('X-Role'))

    def remember(self, response: Any, request: Any, identity: Any) -> None:
        """Do nothing: each request names its user."""

    def forget(self, response: Any, request: Any) -> None:
        """Do nothing."""


class See:
    """The permission to see."""


class App(OrmCacheApp):
    """Has identities, and properties that differ by them."""

    @orm_cached(policy=User)
    def names(self) -> Any:
        return self.session().query(User.name).order_by(User.name)


@App.orm_cached(policy=User, by_role=True, target='request')
def by_role(request: Any) -> str:
    count = len(request.app.session().execute(select(User)).all())
    return f'{getattr(request.identity, "role", "")}{count}'


@App.identity_policy()
def identity_policy() -> Policy:
    return Policy()


@App.verify_identity()
def verify_identity(identity: Any) -> bool:
    return identity.userid != 'unverified'


@App.permission_rule(model=object, permission=See)
def may_see(identity: Any, model: object, permission: type[See]) -> bool:
    return bool(identity.role == 'editor')


App.path(path='')(Root)


@App.path(path='named/{name}', model=Named)
def get_named(app: Any, name: str) -> Any:
    user = app.session().scalar(select(User).where(User.name == name))
    return None if user is None else Named(user)


def names_of(request: Any) -> str:
    """Return the names of all users."""
    return ','.join(row.name for row in request.app.names)


class Site:
    """An application with one cached view at /, and its client."""

    def __init__(
        self, applications: Applications, tenant: str, view: View, options: Any = True,
        settings: Any = None, **directive: Any,
    ) -> None:  # fmt: skip
        self.runs = Runs()

        class Own(App):
            pass

        def counted(self_: Any, request: Any) -> Any:
            self.runs('view')
            return view(self_, request)

        Own.view(model=Root, cached=options, **directive)(counted)
        self.applications = applications
        own = {'release': f'{next(RELEASES)}', **(settings or {})}
        self.app_class = applications.configure(Own, **own)
        self.tenant = tenant
        self.app, self.client = self.process()

    def process(self) -> tuple[Any, Client]:
        """Return an app of a process of its own, and its client."""
        app = self.applications.again(self.app_class)
        return app, Client(OrmCacheMiddleware(app, schema=self.tenant))

    def get(self, url: str = '/', status: Any = 200, **headers: Any) -> Any:
        named = {name.replace('_', '-'): value for name, value in headers.items()}
        return self.client.get(url, headers=named, status=status)

    def add(self, *names: str) -> None:
        change(self.app, self.tenant, *(User(name=name) for name in names))

    @property
    def view_runs(self) -> int:
        return self.runs.count('view')


def show_names(self: Root, request: Any) -> str:
    return names_of(request)


def test_a_response_is_stored_and_gone_after_a_change(
    applications: Applications, tenant: str
) -> None:
    """A page is made once, and anew after a commit that changes what it has read."""
    site = Site(applications, tenant, show_names)
    site.add('a')
    assert [site.get().text for _ in range(3)] == ['a'] * 3
    assert site.view_runs == 1
    site.add('b')
    assert [site.get().text for _ in range(2)] == ['a,b'] * 2
    assert site.view_runs == 2
    change(site.app, tenant, Group(name='g'))
    assert site.get().text == 'a,b'
    assert site.view_runs == 2


def test_reads_of_database_and_routing_count(applications: Applications, tenant: str) -> None:
    """The response depends on what the routing has read, and on the session's statements."""
    runs = Runs()

    class Own(App):
        pass

    @Own.view(model=Named, cached=True)
    def view(self: Named, request: Any) -> str:
        runs('view')
        return self.user.name

    app = applications.start(Own)
    client = Client(OrmCacheMiddleware(app, schema=tenant))
    client.get('/named/a', status=404)
    change(app, tenant, User(name='a'))
    assert [client.get('/named/a').text for _ in range(3)] == ['a'] * 3
    assert runs.count('view') == 1
    with app.request_scope(tenant) as scope:
        scope.session().execute(text("DELETE FROM users WHERE name = 'a'"))
        scope.session().commit()
    client.get('/named/a', status=404)


def test_one_command_and_nothing_else(
    applications: Applications, tenant: str, redis_ops: Any, db_queries: Any, sql_statements: Any
) -> None:
    """A cached page, and a 304, are one Redis command, no SQL, no connection and no view."""
    site = Site(applications, tenant, show_names)
    site.add('a')
    tag = site.get().headers['ETag']
    site.get()
    for headers, status in (({}, 200), ({'If_None_Match': tag}, 304)):
        with redis_ops(1), db_queries(0):
            found = site.get(status=status, **headers)
        assert found.headers['ETag'] == tag
    assert site.view_runs == 1


def test_other_processes_find_it(on_servers: Applications, tenant: str) -> None:
    """Another process serves the page that this one has made, with the same ETag."""
    site = Site(on_servers, tenant, show_names)
    site.add('a')
    here = site.get()
    _, there = site.process()
    for _ in range(2):
        found = there.get('/')
        assert (found.text, found.headers['ETag']) == ('a', here.headers['ETag'])
    assert site.view_runs == 1
    site.add('b')
    assert there.get('/').text == 'a,b'
    assert site.get().text == 'a,b'
    assert site.view_runs == 2


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


@pytest.mark.parametrize(
    ('change_response', 'reason'),
    [
        (lambda r: r.set_cookie('a', 'b'), 'cookie'),
        (lambda r: r.headers.add('Cache-Control', 'max-age=1, No-Store'), 'no-store'),
        (lambda r: r.headers.add('Vary', 'X-A'), 'Vary: X-A'),
        (lambda r: r.headers.add('Vary', '*'), r'Vary: \*'),
        (lambda r: setattr(r, 'status', 203), '203'),
        (lambda r: setattr(r, 'status', 500), '500'),
        (lambda r: setattr(r, 'status', 404), '404'),
        (lambda r: setattr(r, 'conditional_response', True), 'conditional'),
        (lambda r: setattr(r, 'body', b'x' * 101), '101 bytes'),
        (lambda r: setattr(r, 'app_iter', iter([b'x'])), 'streamed'),
    ],
)
def test_not_stored(
    applications: Applications, tenant: str, change_response: Any, reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """A response that must not be stored is served as the view has made it, and logged once."""

    def view(self: Root, request: Any) -> Response:
        response = Response(names_of(request), content_type='text/plain')
        change_response(response)
        return response

    site = Site(applications, tenant, view, cached(max_size=100))
    before = 0
    for _ in range(3):
        found = site.get(status='*')
        assert 'ETag' not in found.headers
        assert site.view_runs > before
        before = site.view_runs
    messages = [r.message for r in caplog.records if 'is not stored' in r.message]
    assert len(messages) == 1
    assert re.search(reason, messages[0])


def test_errors_are_not_stored(applications: Applications, tenant: str) -> None:
    """An error that a view raises is the error of an uncached application."""
    errors = iter([HTTPForbidden(), HTTPNotFound(), ZeroDivisionError(), ZeroDivisionError()])

    def view(self: Root, request: Any) -> str:
        names_of(request)
        for error in errors:
            raise error
        return 'well'

    site = Site(applications, tenant, view)
    site.get(status=403)
    site.get(status=404)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            site.get()
    assert [site.get().text for _ in range(2)] == ['well'] * 2
    assert site.view_runs == 5


@pytest.mark.parametrize('way', ['raise', 'return', 'response'])
def test_redirects_and_404(applications: Applications, tenant: str, way: str) -> None:
    """Where they are asked for, redirects and 404 are stored, and sent as they were first."""
    found = {'404': HTTPNotFound, '302': HTTPFound, '307': HTTPTemporaryRedirect}

    def view(self: Root, request: Any) -> Any:
        names_of(request)
        status = request.GET['status']
        made: Any = found[status](detail='of <it>')
        if status != '404':
            made.location = '/x'
        if way == 'response':
            made = Response('of it', status=status, headers={'Location': '/x'})
        if way == 'raise':
            raise made
        return made

    site = Site(applications, tenant, view, cached(statuses=(200, 302, 404)))
    for status in found:
        answers = [
            site.get(f'/?status={status}', status=int(status), Accept=accept)
            for accept in ('text/html', 'text/html', 'text/plain')
        ]
        assert answers[0].body == answers[1].body
        for each in answers:
            assert 'of' in each.text
            assert status == '404' or each.headers['Location'] == 'http://localhost/x'
        assert (answers[2].body != answers[1].body) == (way != 'response')
    assert site.view_runs == 2 + 3


def test_what_a_view_writes_is_kept(applications: Applications, tenant: str) -> None:
    """A view that writes is not stored, whether it returns or raises its response."""

    def view(self: Root, request: Any) -> str:
        request.app.session().add(User(name=f'u{len(request.app.names)}'))
        if 'raise' in request.GET:
            raise HTTPFound(location='/x')
        return names_of(request)

    site = Site(applications, tenant, view)
    assert site.get().text == 'u0'
    site.get('/?raise', status=302)
    assert site.get().text == 'u0,u1,u2'


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


def test_switched_off(applications: Applications, tenant: str) -> None:
    """The setting, or a function of the request, switches cached responses off."""
    for setting, runs in ((False, 3), (lambda request: 'off' not in request.GET, 1)):
        site = Site(applications, tenant, show_names, settings={'cached_responses': setting})
        for _ in range(3):
            site.get()
        assert site.view_runs == runs
        site.get('/?off')
        site.get('/?off')
        assert site.view_runs == runs + 2
        site.app.close_orm_cache()


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


def test_a_herd_runs_the_view_once(applications: Applications, tenant: str) -> None:
    """Eight threads that ask for one page run its view once."""
    barrier = threading.Barrier(8)
    started = threading.Event()

    def view(self: Root, request: Any) -> str:
        started.wait(0.2)
        return names_of(request)

    site = Site(applications, tenant, view)
    site.add('a')
    found: list[str] = []

    def ask() -> None:
        client = Client(site.client.app)
        barrier.wait()
        found.append(client.get('/').text)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ['a'] * 8
    assert site.view_runs == 1


def test_shared_response_objects(applications: Applications, tenant: str) -> None:
    """A view that returns one object for all requests does not change it."""
    shared = Response('one', content_type='text/plain')

    def view(self: Root, request: Any) -> Response:
        names_of(request)
        return shared

    site = Site(applications, tenant, view)
    before = list(shared.headerlist)
    for _ in range(2):
        assert site.get().text == 'one'
    assert shared.headerlist == before
    assert site.view_runs == 1


def test_expiry(applications: Applications, tenant: str) -> None:
    """A response ends by itself, where a function of it says so."""
    from datetime import UTC, datetime

    site = Site(
        applications, tenant, show_names, cached(expires=lambda response: datetime.now(UTC))
    )
    site.get()
    site.get()
    assert site.view_runs == 2


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
    with pytest.raises(PropertyError, match=r'test_cached_views\.py'):
        Own.commit()


@pytest.mark.parametrize(
    'options',
    [
        {'by_role': 1}, {'public': None}, {'by_role': True, 'public': True}, {'vary': 'x'},
        {'headers': ['a b']}, {'headers': [1]}, {'headers': ['']}, {'statuses': (500,)},
        {'statuses': (200, 401)}, {'expires': 0}, {'expires': 'x'}, {'max_size': 0},
        {'max_size': True},
    ],
)  # fmt: skip
def test_wrong_options(options: Any) -> None:
    """Wrong options are errors where they are given."""
    from onegov_ormcache.errors import PropertyError

    with pytest.raises(PropertyError):
        cached(**options)


def test_damaged_response(on_servers: Applications, tenant: str) -> None:
    """A stored response of which a byte was changed is made anew."""
    import redis

    site = Site(on_servers, tenant, lambda self, request: 'abcdefgh' + names_of(request))
    site.get()
    client = redis.Redis.from_url(on_servers.backend.settings['redis_url'])
    damaged = 0
    for key in client.scan_iter('*'):
        if client.type(key) == b'string' and (data := client.get(key)) and b'abcdefgh' in data:
            client.set(key, data.replace(b'abcdefgh', b'abcdXfgh'))
            damaged += 1
    assert damaged
    _, there = site.process()
    assert there.get('/').text == 'abcdefgh'
    assert site.view_runs == 2


def test_streams_see_their_session(applications: Applications, tenant: str) -> None:
    """A streamed body reads the database while it is sent, as in an uncached application."""

    def view(self: Root, request: Any) -> Response:
        session = request.app.session()

        def body() -> Any:
            yield str(session.query(User).count()).encode()

        return Response(app_iter=body(), content_type='text/plain')

    site = Site(applications, tenant, view)
    site.add('a')
    assert [site.get().text for _ in range(3)] == ['1'] * 3
    assert site.view_runs == 4  # once to see that it streams


def test_the_body_of_a_get(applications: Applications, tenant: str) -> None:
    """A body that the routing and the view have read is there for the page that is not stored."""

    def view(self: Root, request: Any) -> Response:
        body = names_of(request).encode() + request.body_file.read()
        return Response(app_iter=iter([body]), content_type='text/plain')

    site = Site(applications, tenant, view)
    for _ in range(3):
        assert site.client.request('/', method='GET', body=b'abc').text == 'abc'


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
