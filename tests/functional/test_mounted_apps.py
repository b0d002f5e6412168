"""Properties of a mounted app differ by the variables with which it is mounted."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import morepath
import pytest
from webtest import TestApp as Client

from onegov_ormcache import OrmCacheApp, OrmCacheMiddleware, orm_cached
from onegov_ormcache.errors import VariantError
from onegov_ormcache.testing import creator_runs
from tests.support.applications import Applications, change
from tests.support.creators import user_count
from tests.support.models import User


class Identity:
    def __init__(self, role: str) -> None:
        self.role = role


class Front:
    """The model at the begin of each app's path."""


class County(OrmCacheApp):
    """The root app: towns are mounted in it."""


class Town(OrmCacheApp):
    """A town of a name; wikis are mounted in it."""

    def __init__(self, name: str) -> None:
        self.own_name = name

    @orm_cached(policy=User)
    def title(self) -> str:
        return f'{self.own_name} {user_count(self)}'


class Wiki(OrmCacheApp):
    """A wiki of a number and a language; it keeps neither under the variable's name."""

    def __init__(self, number: int, language: str | None) -> None:
        self.about = f'{number!r} {language}'

    @orm_cached(policy=User)
    def title(self) -> str:
        parent: Any = self.parent
        return f'{parent.own_name} {self.about} {user_count(self)}'

    @orm_cached(policy=User)
    def process(self) -> int:
        return os.getpid()


@County.orm_cached(policy=User, target='request')
def crumb(request: Any) -> str:
    return f'in {getattr(request.app, "about", None)}'


@Wiki.orm_cached(policy=User, target='request', by_role=True)
def heading(request: Any) -> str:
    return f'{request.app.title} for {request.identity.role}'


@County.mount(path='towns/{name}', app=Town)
def town(name: str) -> Town:
    return Town(name)


# Morepath gives the request to a mount that asks for it: it is no variable
@Town.mount(path='wiki/{number}', app=Wiki, converters={'number': int}, name='wiki')
def wiki(number: int, language: str | None = None, request: Any = None) -> Wiki:
    return Wiki(number, language)


for each in Town, Wiki:
    each.path(path='')(Front)


@Town.json(model=Front)
def town_view(self: Front, request: Any) -> Any:
    return [request.app.title, request.crumb]


@Wiki.json(model=Front, prefetch='title')
def wiki_view(self: Front, request: Any) -> Any:
    vars(request)['identity'] = Identity(request.headers.get('Role', 'guest'))
    return [request.app.title, request.heading, request.crumb]


def test_each_mount_has_its_values(applications: Applications, tenant: str) -> None:
    """A value is that of the app at this URL: by its own variables, in the path and the query,
    and by those of the app that it is mounted in."""
    app = applications.start(County)
    change(app, tenant, User(name='a'))
    client = Client(OrmCacheMiddleware(app, schema=tenant))
    for count in 1, 2:
        for _ in range(2):
            for place in 'a', 'b':
                assert client.get(f'/towns/{place}').json == [f'{place} {count}', 'in None']
                for query, language in ('', 'None'), ('?language=de', 'de'):
                    for number in 1, 2:
                        title = f'{place} {number} {language} {count}'
                        found = client.get(f'/towns/{place}/wiki/{number}{query}').json
                        assert found == [title, f'{title} for guest', f'in {number} {language}']
        change(app, tenant, User(name=f'user {count}'))


def test_mounts_and_roles(applications: Applications, tenant: str) -> None:
    """A property of the requests of a mounted app differs by mount and role."""
    client = Client(OrmCacheMiddleware(applications.start(County), schema=tenant))
    for _ in range(2):
        for role in 'editor', 'guest':
            for number in 1, 2:
                found = client.get(f'/towns/a/wiki/{number}', headers={'Role': role}).json
                assert found[1] == f'a {number} None 0 for {role}'


def test_many_apps_in_one_request(applications: Applications, tenant: str) -> None:
    """One request may use several apps of one class: each has its own values, read or prefetched.
    Two apps of one mount share theirs, also if only one of them was given the default."""
    root = applications.start(County)
    for expected in 4, 0:
        with root.request_scope(tenant), creator_runs(root) as runs:
            for name in 'a', 'b':
                parent: Any = root.child(Town, name=name)
                first: Any = parent.child(Wiki, number=1, language=None)
                second: Any = first.sibling('wiki', number=2, language='de')
                again = parent.child(Wiki, number=1)
                for each in first, second, again:
                    each.prefetch('title')
                assert first.title == again.title == f'{name} 1 None 0'
                assert second.title == f'{name} 2 de 0'
        assert runs.total == expected


def test_prefetch_of_a_mount(on_servers: Applications, tenant: str, redis_ops: Any) -> None:
    """What is prefetched is the value of this mount, so the read that follows costs no command."""
    first = on_servers.start(County)
    with first.request_scope(tenant):
        for number in 1, 2:
            assert mounted(first, number).title.startswith(f'a {number}')
    other = on_servers.elsewhere(first)
    with other.request_scope(tenant):
        app = mounted(other, 2)
        app.prefetch('title')
        with redis_ops(0):
            assert app.title == 'a 2 None 0'


def mounted(root: Any, number: int) -> Any:
    return root.child(Town, name='a').child(Wiki, number=number)


OTHER_PROCESS = """
import sys
from tests.functional.test_mounted_apps import County, mounted
from tests.support.applications import Applications
from tests.support.backends import Backend

dsn, redis_url, namespace, tenant = sys.argv[1:]
with __import__('contextlib').ExitStack() as stack:
    backend = Backend('', dict(dsn=dsn, redis_url=redis_url, namespace=namespace))
    app = Applications(backend, stack).start(County)
    with app.request_scope(tenant):
        print(mounted(app, 1).process, mounted(app, 2).process)
"""


def test_processes_agree(on_servers: Applications, tenant: str) -> None:
    """A process finds the value that another has stored for the same mount."""
    app = on_servers.start(County)
    with app.request_scope(tenant):
        here = mounted(app, 1).process
    chosen = on_servers.backend.settings
    arguments = [chosen[name] for name in ('dsn', 'redis_url', 'namespace')]
    command = [sys.executable, '-c', OTHER_PROCESS, *arguments, tenant]
    for seed in '1', '2':
        environment = {**os.environ, 'PYTHONHASHSEED': seed}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=60
        )
        found, other = map(int, done.stdout.split())
        assert found == here != other


# apps whose mounts tell their variables otherwise, or not at all


def mounted_with(
    wrap: Callable[[type[OrmCacheApp]], Any] = lambda own: lambda value=None: own(value),
    between: type[Any] | None = None,
    **options: Any,
) -> tuple[Any, Any]:
    """Return a root app's class, and a function that mounts an app in a root app.

    :param wrap: given the mounted app's class, returns the function that the mount calls.
    :param between: the class of an app between the two.
    :param options: of the mount.
    """

    class Inner(OrmCacheApp):
        def __init__(self, value: Any) -> None:
            self.own = value

        @orm_cached(policy=User)
        def text(self) -> str:
            return f'{getattr(self.own, "name", self.own)} {user_count(self)}'

    class Outer(OrmCacheApp):
        @orm_cached(policy=User)
        def text(self) -> str:
            return 'outer'

    if between is not None:
        Outer.mount(path='between', app=between)(lambda: between())
    (between or Outer).mount(path='inner/{value}', app=Inner, **options)(wrap(Inner))

    def inner(root: Any, value: Any) -> Any:
        return (root if between is None else root.child(between)).child(Inner, value=value)

    return Outer, inner


@pytest.mark.parametrize(
    'values',
    [
        (1, '1'),
        (True, 1),
        ([1, 2], [1, 3]),
        ({'x': '1'}, {'x': '2'}),
        ('x' * 1000 + 'a', 'x' * 1000 + 'b'),
        ("a',value='b", 'a'),
        (None, 'None'),
    ],
)
def test_values_of_variables(
    applications: Applications, tenant: str, values: tuple[Any, Any]
) -> None:
    """Values that only look alike are other mounts; a key has a bound however long they are."""
    outer, inner = mounted_with()
    app = applications.start(outer)
    with app.request_scope(tenant) as scope:
        for _ in range(2):
            assert [inner(app, value).text for value in values] == [f'{v} 0' for v in values]
        keys = [key for key in scope.tier if isinstance(key, str)]
        assert len(keys) == 2
        assert all(len(key) < 400 for key in keys)


def test_values_that_tell_nothing(applications: Applications, tenant: str) -> None:
    """An object can not be part of a key: the error names app, variable and remedy. The root app's
    properties have no part in it."""
    outer, inner = mounted_with()
    app = applications.start(outer)
    with app.request_scope(tenant):
        for value in object(), User(name='x'), [1, object()]:
            with pytest.raises(
                VariantError, match=r'Inner is mounted with value=.*mount_variables.*UUID'
            ):
                inner(app, value).text
        assert app.text == 'outer'


def test_own_variables(applications: Applications, tenant: str) -> None:
    """An app may say itself by what its values differ."""
    outer, inner = mounted_with()
    app = applications.start(outer)
    told: Any = property(lambda self: {'value': self.own.name})
    with app.request_scope(tenant), creator_runs(app) as runs:
        of_class = type(inner(app, None))
        of_class.mount_variables = told
        texts = [inner(app, User(name=name)).text for name in ('a', 'a', 'b')]
        assert texts == ['a 0', 'a 0', 'b 0']
        assert runs.total == 2


def plain_app() -> type[morepath.App]:
    """Return the class of an app between, which does not record what it mounts."""
    return type('Between', (morepath.App,), {})


def test_app_between_that_is_none_of_ours(applications: Applications, tenant: str) -> None:
    """An app that Morepath's own directive has mounted is asked as for a link: by the mount's
    option `variables`, or by its attributes."""
    outer, inner = mounted_with(
        between=plain_app(), variables=lambda obj: {'value': obj.own.lower()}
    )
    app = applications.start(outer)
    with app.request_scope(tenant):
        assert [inner(app, value).text for value in 'Aab'] == ['A 0', 'A 0', 'b 0']


def test_app_between_and_no_option(applications: Applications, tenant: str) -> None:
    """An app that has no attributes of its variables' names is told what it can do."""
    outer, inner = mounted_with(between=plain_app())
    app = applications.start(outer)
    with app.request_scope(tenant):
        with pytest.raises(VariantError, match=r'Inner is mounted in Between.*derive the app'):
            inner(app, 'a').text
        for value in 'ab':
            found = inner(app, value)
            found.value = value
            assert found.text == f'{value} 0'


def test_app_made_by_hand(applications: Applications, tenant: str) -> None:
    """An app that the program has made itself is asked by its attributes, too."""
    outer, inner = mounted_with()
    app = applications.start(outer)
    with app.request_scope(tenant):
        for value in 'ab':
            found = type(inner(app, None))(value)
            found.value = value
            assert app.child(found).text == f'{value} 0'
        assert inner(app, 'a').text == 'a 0'


def test_app_that_is_mounted_again(applications: Applications, tenant: str) -> None:
    """An app that its mount keeps has in each request the variables of that request."""
    kept: dict[str, Any] = {}

    def keeping(own: type[Any]) -> Callable[[str], Any]:
        def mount(value: str) -> Any:
            found = kept.setdefault('app', own(value))
            found.own = value
            return found

        return mount

    outer, inner = mounted_with(keeping)
    app = applications.start(outer)
    for each in 'aba':
        with app.request_scope(tenant):
            assert inner(app, each).text == f'{each} 0'


def test_mount_of_a_class_and_of_nothing(on_servers: Applications, tenant: str) -> None:
    """A mount may be the class itself, and may find no app."""
    outer, inner = mounted_with(lambda own: own)
    app = on_servers.start(outer)
    with app.request_scope(tenant):
        assert [inner(app, value).text for value in 'ab'] == ['a 0', 'b 0']
    client = Client(OrmCacheMiddleware(app, schema=tenant))
    assert client.get('/inner', status=404)
    finding_none, _ = mounted_with(lambda own: lambda value: None)
    none = on_servers.start(finding_none)
    assert Client(OrmCacheMiddleware(none, schema=tenant)).get('/inner/x', status=404)


def test_app_without_variables(applications: Applications, tenant: str) -> None:
    """An app that is mounted without variables keeps the keys that it had."""

    class Inner(OrmCacheApp):
        pass

    class Outer(OrmCacheApp):
        pass

    Outer.mount(path='inner', app=Inner)(lambda: Inner())
    app = applications.start(Outer)
    for each in app, app.child(Inner):
        assert app.orm_cache.context_key(each) == ''


def test_links_to_mounts(applications: Applications, tenant: str) -> None:
    """Morepath finds the arguments of a mount, their defaults and converters as ever: for links,
    deferred links and URLs that are wrong."""

    class Page:
        def __init__(self, name: str) -> None:
            self.name = name

    class Shop(OrmCacheApp):
        def __init__(self, number: int, language: str) -> None:
            self.number = number
            self.language = language

        @orm_cached(policy=User)
        def text(self) -> str:
            return f'{self.number} {self.language}'

    class Mall(OrmCacheApp):
        pass

    @Mall.mount(path='shops', app=Shop, required=['language'])
    def shop(number: int = 1, language: str = 'de') -> Shop:
        return Shop(number, language)

    @Shop.path(path='pages/{name}', model=Page, absorb=True)
    def page(name: str, absorb: str) -> Page:
        return Page(f'{name}/{absorb}')

    @Shop.path(path='', model=Front)
    def front() -> Front:
        return Front()

    @Shop.json(model=Page)
    def view_page(self: Page, request: Any) -> Any:
        return [self.name, request.app.text]

    @Mall.defer_links(model=Front)
    def defer(app: Any, obj: Front) -> Any:
        return app.child(Shop, number=3, language='fr')

    Mall.path(path='')(County)

    @Mall.json(model=County)
    def view_mall(self: Any, request: Any) -> str:
        return str(request.link(Front()))

    client = Client(OrmCacheMiddleware(applications.start(Mall), schema=tenant))
    assert client.get('/').json == 'http://localhost/shops?language=fr&number=3'
    for number in 1, 2:
        url = f'/shops/pages/x/y/z?number={number}&language=it'
        assert client.get(url).json == ['x/y/z', f'{number} it']
    assert client.get('/shops/pages/x/y?number=no&language=it', status=400)
    assert client.get('/shops/pages/x/y', status=400)
