"""Attacks on cached views: ways to another user's page, and to another answer than that of the
uncached application."""

from __future__ import annotations

import itertools
from contextvars import ContextVar
from typing import Any

import morepath
import pytest
from webob import Request, Response
from webob.dec import wsgify
from webob.exc import HTTPFound, HTTPNotFound
from webtest import TestApp as Client

from onegov_ormcache import OrmCacheApp, OrmCacheMiddleware, cached, response_tween_factory
from onegov_ormcache.errors import AuditError
from tests.support.applications import Applications, change, value
from tests.support.counting import Runs
from tests.support.models import Base, User
from tests.web.responses.site import Policy

RELEASES = itertools.count()


class Root:
    """The model at /."""


class See:
    """The permission to see."""


class RefreshingPolicy(Policy):
    """Prolongs the session of each user that it identifies."""

    def identify(self, request: Any) -> Any:
        request.after(lambda response: response.set_cookie('session', 'prolonged'))
        return super().identify(request)


def count(request: Any) -> int:
    """Return the number of users: a page needs a table."""
    return int(request.app.session().query(User).count())


def new_app(policy: Any = None, base: Any = OrmCacheApp) -> Any:
    """Return an app class with Root at /, whose identities the policy makes."""

    class App(base):  # type: ignore[misc]
        pass

    App.path(path='')(Root)
    App.identity_policy()(lambda: policy or Policy())
    App.verify_identity()(lambda identity: True)
    return App


def client_of(applications: Applications, tenant: str, app_class: Any) -> Client:
    app = applications.start(app_class, release=f'attacks{next(RELEASES)}')
    return Client(OrmCacheMiddleware(app, schema=tenant))


def user(login: str, role: str = 'r') -> dict[str, str]:
    return {'X-User': login, 'X-Role': role}


# pages of others: what a request has beside its environment


class DefaultRequest(morepath.Request):
    """Has an attribute with a default, which a tween sets."""

    theme = 'light'


class MadeRequest(morepath.Request):
    """Has attributes that are made with it."""

    def __init__(self, environ: Any, app: Any, **options: Any) -> None:
        super().__init__(environ, app, **options)
        self.theme = self.headers.get('X-Theme', 'light')


class StrictRequest(morepath.Request):
    """Can't be made without a header."""

    def __init__(self, environ: Any, app: Any, **options: Any) -> None:
        super().__init__(environ, app, **options)
        self.theme = environ['HTTP_X_THEME']


@pytest.mark.parametrize('request_class', [DefaultRequest, MadeRequest, StrictRequest])
@pytest.mark.parametrize('show', [lambda r: r.theme, lambda r: r.headers['X-Theme']])
def test_attributes_of_the_request(
    applications: Applications, tenant: str, request_class: Any, show: Any
) -> None:
    """A page that shows what a tween or the request's class made of a header is not stored."""
    app = new_app()
    app.request_class = request_class

    @app.tween_factory(over=response_tween_factory)
    def factory(app: Any, handler: Any) -> Any:
        def tween(request: Any) -> Any:
            request.theme = request.headers['X-Theme']
            return handler(request)

        return tween

    app.view(model=Root, cached=True)(lambda self, request: f'{show(request)}{count(request)}')
    client = client_of(applications, tenant, app)
    for _ in range(2):
        for theme in ('dark', 'light', 'blue'):
            assert client.get('/', headers={'X-Theme': theme}).text == f'{theme}0'


def test_attributes_that_some_requests_have(applications: Applications, tenant: str) -> None:
    """A page that shows that an attribute is missing is not for requests that have it."""
    app = new_app()
    app.request_class = DefaultRequest

    @app.tween_factory(over=response_tween_factory)
    def factory(app: Any, handler: Any) -> Any:
        def tween(request: Any) -> Any:
            if 'X-Theme' in request.headers:
                request.theme = request.headers['X-Theme']
            return handler(request)

        return tween

    app.view(model=Root, cached=True)(lambda self, request: f'{request.theme}{count(request)}')
    client = client_of(applications, tenant, app)
    for _ in range(2):
        assert client.get('/').text == 'light0'
        assert client.get('/', headers={'X-Theme': 'dark'}).text == 'dark0'


def test_rest_of_the_path(applications: Applications, tenant: str) -> None:
    """A page differs by the segments that a tween has left of the path, or has added."""
    app = new_app()

    @app.tween_factory(over=response_tween_factory)
    def factory(app: Any, handler: Any) -> Any:
        def tween(request: Any) -> Any:
            request.unconsumed.append(request.headers['X-Town'])
            return handler(request)

        return tween

    class Town:
        def __init__(self, name: str) -> None:
            self.name = name

    app.path(path='{name}', model=Town)(lambda name: Town(name))
    app.view(model=Town, cached=True)(lambda self, request: f'{self.name}{count(request)}')
    client = client_of(applications, tenant, app)
    for _ in range(2):
        for town in ('a', 'b'):
            assert client.get('/', headers={'X-Town': town}).text == f'{town}0'


@pytest.mark.parametrize('operator', ['__ne__', '__eq__'])
def test_comparing_the_environment(
    applications: Applications, tenant: str, operator: str
) -> None:
    """A view that compares its environment with another one reads all of it."""
    app = new_app()
    runs = Runs()

    @app.view(model=Root, cached=True)
    def view(self: Root, request: Any) -> str:
        runs('view')
        return f'{getattr(request.environ, operator)({"a": 1})}{count(request)}'

    client = client_of(applications, tenant, app)
    for _ in range(2):
        client.get('/')
    assert runs.count('view') == 2


# pages of others: identities


class TextIdentity(str):
    """A user's name, with a role."""

    role: str

    def __new__(cls, login: str, role: str) -> TextIdentity:
        made = super().__new__(cls, login)
        made.role = role
        return made


class SlotsIdentity:
    """Has no dictionary."""

    __slots__ = ('role', 'userid')

    def __init__(self, login: str, role: str) -> None:
        self.userid, self.role = login, role


class ComparedIdentity(morepath.Identity):
    """Equals the users of its name."""

    def __eq__(self, other: object) -> bool:
        return bool(self.userid == other)

    __hash__ = None  # type: ignore[assignment]

    @property
    def shown(self) -> str:
        return f'<{self.userid}>'

    def __str__(self) -> str:
        return f'<{self.userid}>'


class Mapped(type):
    """A metaclass that does not allow derived classes, as those of mapped classes may."""

    def __new__(cls, name: str, bases: Any, namespace: Any) -> Any:
        assert not bases
        return super().__new__(cls, name, bases, namespace)


class MappedIdentity(metaclass=Mapped):
    """Its class is not to be derived from."""

    def __init__(self, login: str, role: str) -> None:
        self.userid, self.role = login, role


@pytest.mark.parametrize(
    ('make', 'show'),
    [
        (morepath.Identity, lambda identity: vars(identity)['userid']),
        (morepath.Identity, lambda identity: identity.__dict__['userid']),
        (morepath.Identity, lambda identity: identity.as_dict()['userid']),
        (TextIdentity, lambda identity: str.__str__(identity)),
        (TextIdentity, lambda identity: identity[0]),
        (SlotsIdentity, lambda identity: identity.userid),
        (MappedIdentity, lambda identity: identity.userid),
        (ComparedIdentity, lambda identity: 'a' if identity == 'a' else 'b'),
        (ComparedIdentity, lambda identity: identity.shown[1]),
        (ComparedIdentity, lambda identity: f'{identity}'[1]),
    ],
)
def test_identity_beside_its_role(
    applications: Applications, tenant: str, make: Any, show: Any
) -> None:
    """A page for a role that shows more of its user is not stored, whatever the identity is."""
    app = new_app(Policy(make))
    app.view(model=Root, cached=cached(by_role=True))(
        lambda self, request: f'{show(request.identity)}{count(request)}'
    )
    client = client_of(applications, tenant, app)
    for _ in range(2):
        for login in ('a', 'b'):
            assert client.get('/', headers=user(login)).text == f'{login}0'


class PartialIdentity(morepath.Identity):
    """Tells less of itself by as_dict than it has."""

    def as_dict(self) -> dict[str, Any]:
        return {'userid': 'someone'}


class HiddenIdentity:
    """Has its name in a slot of a mangled name."""

    __slots__ = ('__login', 'role')

    def __init__(self, login: str, role: str) -> None:
        self.__login, self.role = login, role

    @property
    def userid(self) -> str:
        return self.__login


@pytest.mark.parametrize(
    'make', [PartialIdentity, SlotsIdentity, MappedIdentity, TextIdentity, HiddenIdentity]
)
def test_whole_identity(applications: Applications, tenant: str, make: Any) -> None:
    """A page for one user is no other's, though as_dict tells not all of them, or is missing."""
    app = new_app(Policy(make))
    app.view(model=Root, cached=True)(
        lambda self, request: f'{getattr(request.identity, "userid", request.identity)}'
        f'{count(request)}'
    )
    client = client_of(applications, tenant, app)
    for _ in range(2):
        for login in ('a', 'b'):
            assert client.get('/', headers=user(login)).text == f'{login}0'


def test_pages_for_roles_take_no_memory_of_morepath(
    applications: Applications, tenant: str
) -> None:
    """The permission of each run is asked for the same class: Morepath keeps what it has found
    for each class for ever."""
    seen = set()
    app = new_app()

    @app.permission_rule(model=Root, permission=See)
    def may_see(identity: Any, model: Any, permission: Any) -> bool:
        seen.add(type(identity))
        return bool(identity.role)

    app.view(model=Root, permission=See, cached=cached(by_role=True))(
        lambda self, request: f'{count(request)}'
    )
    client = client_of(applications, tenant, app)
    for role in 'abcd':
        client.get('/', headers=user('u', role))
    assert len(seen) <= 2


def test_identity_that_the_routing_has_seen_first(
    applications: Applications, tenant: str
) -> None:
    """A request has the identity of the app that looked at it first, as in Morepath."""

    class Mounted(OrmCacheApp):
        pass

    app = new_app()

    @app.mount(path='at', app=Mounted)
    def mount(request: Any) -> Any:
        return Mounted() if request.identity is not None else None

    Mounted.path(path='')(Root)
    Mounted.view(model=Root, cached=True)(
        lambda self, request: f'{getattr(request.identity, "userid", None)}{count(request)}'
    )
    client = client_of(applications, tenant, app)
    for _ in range(2):
        for login in ('a', 'b'):
            assert client.get('/at', headers=user(login)).text == f'{login}0'


def test_apps_of_one_class_that_know_other_users(applications: Applications, tenant: str) -> None:
    """A page in a mount of the root app's class has the identity that the mount has verified."""

    class App(OrmCacheApp):
        def __init__(self, name: str = '') -> None:
            self.name = name

    App.path(path='')(Root)
    App.identity_policy()(Policy)

    @App.verify_identity()
    def verify(app: Any, identity: Any) -> bool:
        return bool(identity.userid.startswith(app.name))

    App.mount(path='at/{name}', app=App)(lambda name: App(name))
    App.view(model=Root, cached=True)(
        lambda self, request: f'{getattr(request.identity, "userid", None)}{count(request)}'
    )
    settings = {'base': Base, **applications.backend.settings}
    App.setting_section(section='orm_cache')(lambda: settings)
    client = Client(OrmCacheMiddleware(applications.again(App), schema=tenant))
    for _ in range(3):
        for login in ('a', 'b'):
            for mount in ('a', 'b'):
                expected = login if login == mount else None
                assert client.get(f'/at/{mount}', headers=user(login)).text == f'{expected}0'


@pytest.mark.parametrize('options', [cached(by_role=True), cached(public=True)])
def test_proxies_keep_no_page_that_shows_its_user(
    applications: Applications, tenant: str, options: Any
) -> None:
    """A page that differs by role, or that was not stored for all, is for no shared cache."""
    app = new_app()
    app.view(model=Root, cached=options)(
        lambda self, request: f'{request.identity.role}{count(request)}'
    )
    client = client_of(applications, tenant, app)
    for _ in range(2):
        found = client.get('/', headers=user('a'))
        assert found.headers['Cache-Control'] == 'private, no-cache'


LANGUAGE: ContextVar[str] = ContextVar('language', default='en')


@pytest.mark.parametrize(
    ('vary', 'options', 'runs_expected'),
    [
        (lambda request: LANGUAGE.get(), True, 4),
        (lambda request: request.headers['X-Language'], cached(headers=['X-Language']), 2),
    ],
)
def test_properties_that_differ_by_more_than_the_request(
    applications: Applications, tenant: str, vary: Any, options: Any, runs_expected: int
) -> None:
    """A page with a property that differs by what the thread has is not stored for all."""
    app, runs = new_app(), Runs()

    @app.orm_cached(policy=User, vary=vary, target='request')
    def greeting(request: Any) -> str:
        return f'{LANGUAGE.get()}{count(request)}'

    @app.tween_factory(over=response_tween_factory)
    def factory(app: Any, handler: Any) -> Any:
        def tween(request: Any) -> Any:
            token = LANGUAGE.set(request.headers['X-Language'])
            try:
                return handler(request)
            finally:
                LANGUAGE.reset(token)

        return tween

    @app.view(model=Root, cached=options)
    def view(self: Root, request: Any) -> str:
        runs('view')
        # a view that has no other way to the language than the property
        return str(request.greeting)

    client = client_of(applications, tenant, app)
    for _ in range(2):
        for language in ('de', 'fr'):
            found = client.get('/', headers={'X-Language': language})
            assert found.text == f'{language}0'
    assert runs.count('view') == runs_expected


# answers that differ


@pytest.mark.parametrize('options', [True, cached(statuses=(200, 302))])
def test_after_of_a_raised_response(
    applications: Applications, tenant: str, options: Any
) -> None:
    """What a view asks for after a response that it raises is done."""
    app = new_app()

    @app.view(model=Root, cached=options)
    def view(self: Root, request: Any) -> None:
        number = count(request)
        request.after(lambda response: response.set_cookie('number', str(number)))
        raise HTTPFound(location='/x')

    client = client_of(applications, tenant, app)
    for _ in range(3):
        assert 'number=0' in client.get('/', status=302).headers['Set-Cookie']
        client.reset()


@pytest.mark.parametrize('is_stored', [True, False])
@pytest.mark.parametrize('is_raised', [True, False])
def test_after_of_tweens(
    applications: Applications, tenant: str, is_stored: bool, is_raised: bool
) -> None:
    """What tweens above ask for is done once, whether the response is stored or not."""
    app = new_app()

    @app.tween_factory(over=response_tween_factory)
    def factory(app: Any, handler: Any) -> Any:
        def tween(request: Any) -> Any:
            request.after(lambda response: response.headers.add('X-After', 'yes'))
            return handler(request)

        return tween

    @app.view(model=Root, cached=cached(statuses=(200, 302)))
    def view(self: Root, request: Any) -> str:
        text = f'{count(request)}{"" if is_stored else request.headers.get("X-A")}'
        if is_raised:
            raise HTTPFound(text, location='/x')
        return text

    client = client_of(applications, tenant, app)
    for _ in range(3):
        found = client.get('/', status='*')
        assert found.status_code == (302 if is_raised else 200)
        assert found.headers.getall('X-After') == ['yes']


def test_after_of_the_identity_policy(applications: Applications, tenant: str) -> None:
    """A session that the identity policy prolongs is prolonged by cached responses, too."""
    app = new_app(RefreshingPolicy())
    app.view(model=Root, cached=True)(
        lambda self, request: f'{request.identity.userid}{count(request)}'
    )
    client = client_of(applications, tenant, app)
    for _ in range(3):
        found = client.get('/', headers=user('a'))
        assert len(found.headers.getall('Set-Cookie')) == 1
        client.reset()


@pytest.mark.parametrize(
    ('own', 'given'),
    [('v1', '"v10"'), ('v1', 'v10'), ('","', '"a","b"'), ('"v1', '"v1"'), ('W/"v1', '"v1"')],
)
def test_tags_that_are_parts_of_others(
    applications: Applications, tenant: str, own: str, given: str
) -> None:
    """A part of another tag is no tag: the client's page is an older one."""
    app = new_app()
    app.view(model=Root, cached=True)(
        lambda self, request: Response(f'{count(request)}', headers={'ETag': own})
    )
    client = client_of(applications, tenant, app)
    for _ in range(2):
        assert client.get('/', headers={'If-None-Match': given}).text == '0'


def test_writes_of_the_routing(applications: Applications, tenant: str) -> None:
    """What the routing writes is written once for each request."""

    class Visited:
        pass

    app = new_app()

    @app.path(path='visited', model=Visited)
    def visit(app: Any) -> Visited:
        app.session().add(User(name=f'visit{next(RELEASES)}'))
        return Visited()

    app.view(model=Visited, cached=True)(lambda self, request: f'{count(request)}')
    root = applications.start(app)
    client = Client(OrmCacheMiddleware(root, schema=tenant))
    assert [client.get('/visited').text for _ in range(3)] == ['1', '2', '3']
    assert value(root, tenant, lambda app: app.session().query(User).count()) == 3


@pytest.mark.parametrize('way', ['return', 'raise'])
def test_tweens_that_catch_everything(
    applications: Applications, tenant: str, way: str
) -> None:
    """A tween below that makes a page of whatever it catches gets no page stored."""
    app = new_app()

    @app.tween_factory(under=response_tween_factory)
    def factory(app: Any, handler: Any) -> Any:
        def tween(request: Any) -> Any:
            try:
                return handler(request)
            except BaseException as error:
                if way == 'raise':
                    raise HTTPNotFound from error
                return Response('caught')

        return tween

    class Other:
        pass

    @app.path(path='by', model=object)
    def get(app: Any) -> Any:
        return Other() if app.session().query(User).count() % 2 else Root()

    app.view(model=Root, cached=True)(lambda self, request: f'root{count(request)}')
    app.view(model=Other, cached=True)(lambda self, request: f'other{count(request)}')
    root = applications.start(app)
    client = Client(OrmCacheMiddleware(root, schema=tenant))
    for number in range(3):
        kind = 'other' if number % 2 else 'root'
        for _ in range(2):
            assert client.get('/by').text == f'{kind}{number}'
        change(root, tenant, User(name=f'u{number}'))


def test_views_of_exceptions(applications: Applications, tenant: str) -> None:
    """A view for an exception sees what the view has given the request and the exception."""
    app = new_app()

    @app.view(model=Root, cached=cached(statuses=(200, 404)))
    def view(self: Root, request: Any) -> None:
        request.seen = count(request)
        error: Any = HTTPNotFound() if 'found' in request.GET else ZeroDivisionError()
        error.seen = 'seen'
        raise error

    for error in (HTTPNotFound, ZeroDivisionError):
        app.view(model=error)(lambda self, request: f'{request.seen}{self.seen}')
    client = client_of(applications, tenant, app)
    for _ in range(2):
        assert client.get('/').text == '0seen'
        assert client.get('/?found').text == '0seen'


def test_cookies_by_which_a_page_differs(applications: Applications, tenant: str) -> None:
    """A page that differs by the header Cookie may show a cookie."""
    app, runs = new_app(), Runs()

    @app.view(model=Root, cached=cached(headers=['Cookie']))
    def view(self: Root, request: Any) -> str:
        runs('view')
        return f'{request.cookies.get("a")}{count(request)}'

    client = client_of(applications, tenant, app)
    for _ in range(2):
        for cookie in ('x', 'y'):
            assert client.get('/', headers={'Cookie': f'a={cookie}'}).text == f'{cookie}0'
    assert runs.count('view') == 2


def test_long_urls_take_no_memory(applications: Applications, tenant: str) -> None:
    """What is learned of a URL takes the same room for each, however long it is."""

    class Any_:
        pass

    app = new_app()
    app.path(path='by/{name}', model=Any_)(lambda name: Any_())
    app.view(model=Any_, cached=True)(lambda self, request: f'{count(request)}')
    root = applications.start(app)
    client = Client(OrmCacheMiddleware(root, schema=tenant))
    for number in range(3):
        assert client.get(f'/by/{"x" * 50_000}{number}').text == '0'
    learned = list(root.orm_cache.views_reached._views)
    assert len(learned) == 3
    assert max(map(len, learned)) < 100


def test_error_of_the_audit_that_a_view_catches(applications: Applications, tenant: str) -> None:
    """A view that catches the error of the audit gets no page stored."""
    app, runs = new_app(), Runs()

    @app.view(model=Root, cached=True)
    def view(self: Root, request: Any) -> str:
        runs('view')
        try:
            return str(request.headers['X-A'])
        except AuditError:
            return f'{count(request)}'

    root = applications.start(app, audit='error')
    client = Client(OrmCacheMiddleware(root, schema=tenant))
    for _ in range(2):
        client.get('/', headers={'X-A': 'a'})
    assert runs.count('view') == 2


def test_streams_of_views_that_write(applications: Applications, tenant: str) -> None:
    """A streamed body has its session, and what its view writes is written once."""
    app = new_app()

    @app.view(model=Root, cached=True)
    def view(self: Root, request: Any) -> Response:
        session = request.app.session()
        session.add(User(name=f'streamed{next(RELEASES)}'))

        def body() -> Any:
            yield str(session.query(User).count()).encode()

        return Response(app_iter=body(), content_type='text/plain')

    client = client_of(applications, tenant, app)
    assert [client.get('/').text for _ in range(3)] == ['1', '2', '3']


@wsgify
def show_header(request: Any) -> Response:
    """Another WSGI application."""
    return Response(request.headers['X-A'])


@pytest.mark.parametrize('writes', [False, True])
@pytest.mark.parametrize(
    'show',
    [
        lambda request: Request(request.environ).headers['X-A'],
        lambda request: request.get_response(show_header).text,
    ],
)
def test_code_that_takes_a_plain_environment(
    applications: Applications, tenant: str, show: Any, writes: bool
) -> None:
    """A view that makes a request of its own of the environment gets one, and is not stored."""
    app = new_app()

    def view(self: Root, request: Any) -> str:
        if writes:
            request.app.session().add(User(name=f'u{count(request)}'))
        return f'{show(request)} {count(request)}'

    app.view(model=Root, cached=True)(view)
    client = client_of(applications, tenant, app)
    for number, header in enumerate(('a', 'b', 'c'), 1):
        found = client.get('/', headers={'X-A': header}).text
        assert found == f'{header} {number if writes else 0}'


def test_environment_of_the_identity_policy(applications: Applications, tenant: str) -> None:
    """What an identity policy puts into the environment is there for the view, on its own page."""

    class Telling(Policy):
        def identify(self, request: Any) -> Any:
            request.environ['town.language'] = request.headers.get('X-Language')
            return super().identify(request)

    app = new_app(Telling())

    def view(self: Root, request: Any) -> str:
        user = getattr(request.identity, 'userid', None)
        return f'{user} {request.environ["town.language"]} {count(request)}'

    app.view(model=Root, cached=True)(view)
    client = client_of(applications, tenant, app)
    for _ in range(2):
        for language in ('de', 'fr'):
            headers = {'X-User': 'a', 'X-Language': language}
            assert client.get('/', headers=headers).text == f'a {language} 0'
