"""Surrogate keys of cached responses: which have them, and that a CDN that purges by them never
serves a stale page."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
from sqlalchemy import delete, func, select, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from webob import Response
from webob.exc import HTTPOk
from webtest import TestApp as Client

from onegov_ormcache import OrmCacheApp, OrmCacheMiddleware, cached, orm_cached, rows
from onegov_ormcache.errors import ConfigurationError
from onegov_ormcache.web import surrogate_keys
from onegov_ormcache.web.surrogate_keys import SurrogateKeys
from tests.support.applications import Applications, change
from tests.support.models import Document, Group, User

SECRET = 'only the hosts know it'
HEADERS = ('Cache-Tag', 'Surrogate-Key', 'Cache-Groups')
SETTINGS = {'surrogate_keys': HEADERS, 'surrogate_secret': SECRET}


class Root:
    """The model at /."""


class One:
    """The model at /users/ID."""

    def __init__(self, id: int) -> None:
        self.id = id


class App(OrmCacheApp):
    """Has a page of each kind of dependency."""

    @orm_cached(policy=User)
    def names(self) -> Any:
        return self.session().query(User.name).order_by(User.name)

    @orm_cached(policy=rows(User.id))
    def user(self, id: int) -> Any:
        return self.session().query(User.name).filter_by(id=id)

    @orm_cached(policy=lambda obj: isinstance(obj, Group) and obj.name.startswith('a'))
    def chosen(self) -> int:
        return int(self.session().query(Group).filter(Group.name.startswith('a')).count())


App.path(path='')(Root)
PUBLIC = cached(public=True)


@App.path(path='users/{id}', model=One)
def get_one(app: Any, id: int = 0) -> One:
    return One(id)


@App.view(model=Root, cached=PUBLIC)
def names(self: Root, request: Any) -> str:
    return ','.join(row.name for row in request.app.names)


@App.view(model=One, cached=PUBLIC)
def one(self: One, request: Any) -> str:
    return ','.join(row.name for row in request.app.user(self.id))


@App.view(model=Root, name='chosen', cached=PUBLIC)
def chosen(self: Root, request: Any) -> str:
    return str(request.app.chosen)


@App.view(model=Root, name='titles', cached=PUBLIC)
def titles(self: Root, request: Any) -> str:
    found = request.app.session().query(Document.title).order_by(Document.title)
    return ','.join(row.title for row in found)


@App.view(model=Root, name='private', cached=True)
@App.view(model=Root, name='role', cached=cached(by_role=True))
@App.view(model=Root, name='vary', cached=cached(public=True, vary=lambda request: 'a'))
@App.view(model=Root, name='uncached')
def other(self: Root, request: Any) -> str:
    return names(self, request)


@App.view(model=Root, name='gone', cached=cached(public=True, statuses=[200, 410]))
def gone(self: Root, request: Any) -> Response:
    return Response(names(self, request), status=410)


@App.view(model=Root, name='random', cached=PUBLIC)
def unstored(self: Root, request: Any) -> str:
    return str(request.app.session().scalar(select(func.random())))


@App.view(model=Root, name='own', cached=PUBLIC)
def own(self: Root, request: Any) -> Response:
    headers = [('Cache-Tag', 'mine'), ('Surrogate-Key', 'mine'), ('Cache-Groups', '"mine"')]
    return Response(names(self, request).encode(), headerlist=headers)


@App.view(model=Root, name='raised', cached=PUBLIC)
def raised(self: Root, request: Any) -> Response:
    raise HTTPOk(names(self, request))


PATHS = ('/', '/users/1', '/users/2', '/chosen', '/titles')


def client_of(app: Any, tenant: str) -> Client:
    return Client(OrmCacheMiddleware(app, schema=tenant))


def keys_of(response: Any) -> frozenset[str]:
    """Return the keys of a response, which are the same in each header."""
    found = [
        response.headers.get('Cache-Tag', '').split(','),
        response.headers.get('Surrogate-Key', '').split(' '),
        re.findall('"([^"]*)"', response.headers.get('Cache-Groups', '')) or [''],
    ]
    assert found[0] == found[1] == found[2]
    return frozenset(filter(None, found[0]))


class Cdn:
    """A cache in front of a site: keeps what has keys, and asks nobody until it is purged."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], tuple[str, frozenset[str]]] = {}
        self.hits = 0

    def get(self, client: Client, tenant: str, path: str) -> str:
        if (tenant, path) in self.kept:
            self.hits += 1
            return self.kept[tenant, path][0]
        response = client.get(path)
        if keys := keys_of(response):
            self.kept[tenant, path] = response.text, keys
        return str(response.text)

    def purge(self, schema: str, keys: frozenset[str], **told: Any) -> None:
        self.kept = {at: page for at, page in self.kept.items() if page[1].isdisjoint(keys)}


def writes(number: int) -> list[Any]:
    """Return functions that each change something in a session, or by hand."""
    return [
        lambda app, session: session.add(User(name=f'u{number}')),
        lambda app, session: session.add(Group(name=f'{"ab"[number % 2]}{number}')),
        lambda app, session: session.add(Document(kind='document', title=f't{number}')),
        lambda app, session: session.execute(
            update(User).where(User.id == number % 3).values(name=f'x{number}')
        ),
        lambda app, session: session.execute(text(f"UPDATE documents SET title = 'y{number}'")),
        lambda app, session: session.execute(delete(Group).where(Group.name == f'a{number - 9}')),
        lambda app, session: app.evict_all(),
        lambda app, session: app.mark_changed('users'),
    ]


@pytest.mark.parametrize('most', [surrogate_keys.MAX_GROUPS, 3])
def test_a_cdn_is_never_stale(
    applications: Applications, make_tenant: Any, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages that are kept until the signal purges them equal those of the application, after each
    of many random writes by several processes; also if the tags are too many for the header."""
    monkeypatch.setattr(surrogate_keys, 'MAX_GROUPS', most)
    dice, cdn = random.Random(most), Cdn()
    first = applications.start(App, **SETTINGS)
    apps = [first, applications.elsewhere(first)]
    tenants = [make_tenant('one'), make_tenant('two')]
    for app in {id(app): app for app in apps}.values():
        app.orm_cache.on_tags_published.connect(cdn.purge)
        for tenant in tenants:
            change(app, tenant)
    for number in range(60):
        app, tenant = dice.choice(apps), dice.choice(tenants)
        with app.request_scope(tenant) as scope:
            dice.choice(writes(number))(app, scope.session())
            if dice.random() < 0.8:
                scope.session().commit()
        for each in tenants:
            for path in dice.sample(PATHS, 3):
                served = cdn.get(client_of(dice.choice(apps), each), each, path)
                assert served == client_of(first, each).get(path).text
    assert cdn.hits > 100


def test_only_what_depends_on_it_is_purged(applications: Applications, tenant: str) -> None:
    """A change leaves the pages that do not depend on it, and those of other tenants."""
    app, cdn = applications.start(App, **SETTINGS), Cdn()
    app.orm_cache.on_tags_published.connect(cdn.purge)
    change(app, tenant, User(id=1, name='a'), User(id=2, name='b'))
    for schema in tenant, f'{tenant}2':
        change(app, schema)
        for path in PATHS:
            cdn.get(client_of(app, schema), schema, path)
    kept = set(cdn.kept)
    assert len(kept) == 2 * len(PATHS)
    with app.request_scope(tenant) as scope:
        scope.session().get(User, 1).name = 'c'
        scope.session().commit()
    assert kept - set(cdn.kept) == {(tenant, '/'), (tenant, '/users/1')}
    with app.request_scope(tenant) as scope:
        app.evict_all()
        scope.session().commit()
    assert {schema for schema, _ in cdn.kept} == {f'{tenant}2'}


def test_shared_tables(on_servers: Applications, make_tenant: Any) -> None:
    """A change of a shared table by one tenant purges the pages of others that depend on it."""
    shared, one, two = make_tenant('shared'), make_tenant('one'), make_tenant('two')

    class SharedBase(DeclarativeBase):
        pass

    class Country(SharedBase):
        __tablename__ = 'countries'
        __table_args__ = {'schema': shared}
        id: Mapped[int] = mapped_column(primary_key=True)

    class Note(SharedBase):
        __tablename__ = 'notes'
        id: Mapped[int] = mapped_column(primary_key=True)

    class Own(OrmCacheApp):
        pass

    class Model:
        """The model at /."""

    Own.path(path='model')(Model)
    for name, cls in (('countries', Country), ('notes', Note)):
        Own.view(model=Model, name=name, cached=PUBLIC)(
            lambda self, request, cls=cls: str(request.app.session().query(cls).count())
        )
    app, cdn = on_servers.start(Own, base=SharedBase, **SETTINGS), Cdn()
    app.orm_cache.on_tags_published.connect(cdn.purge)
    paths = ['/model/countries', '/model/notes']
    for tenant in one, two, one, two:
        change(app, tenant, Country())
        for each in one, two:
            for path in paths:
                served = cdn.get(client_of(app, each), each, path)
                assert served == client_of(app, each).get(path).text
    kept = set(cdn.kept)
    assert len(kept) == 4
    change(app, one, Country())
    assert set(cdn.kept) == {(one, paths[1]), (two, paths[1])}
    app.orm_cache.renew_later(shared)
    assert {schema for schema, _ in cdn.kept} == {one, two}
    for each in one, two:
        cdn.get(client_of(app, each), each, paths[0])
    app.orm_cache.renew_later(shared)
    assert set(cdn.kept) == {(one, paths[1]), (two, paths[1])}


def test_headers(applications: Applications, tenant: str) -> None:
    """A page, its 304 and the page of another process have the same keys, in each header."""
    app = applications.start(App, **SETTINGS)
    change(app, tenant, User(name='a'))
    client = client_of(app, tenant)
    made = client.get('/')
    assert len(keys_of(made)) >= 2
    assert all(re.fullmatch('[A-Za-z0-9_-]{12}', key) for key in keys_of(made))
    there = client_of(applications.elsewhere(app), tenant)
    for found in (
        client.get('/'),
        there.get('/'),
        client.get('/', headers={'If-None-Match': made.headers['ETag']}, status=304),
        client.get('/raised'),
    ):
        assert keys_of(found) & keys_of(made)
        if found.request.path == '/':
            assert keys_of(found) == keys_of(made)
    assert keys_of(made) & keys_of(client.get('/chosen'))  # the tenant's


@pytest.mark.parametrize(
    'path', ['/private', '/role', '/vary', '/uncached', '/gone', '/random']
)
def test_without_keys(applications: Applications, tenant: str, path: str) -> None:
    """A response that a CDN must not serve to all, or that is not stored, has no key."""
    app = applications.start(App, **SETTINGS)
    for _ in range(2):
        found = client_of(app, tenant).get(path, status='*')
        assert found.status_code in (200, 410)
        assert not keys_of(found)


def test_headers_of_a_view(applications: Applications, tenant: str) -> None:
    """Keys that a view sets stay, also in a 304, and those of its tags come after them."""
    client = client_of(applications.start(App, **SETTINGS), tenant)
    made = client.get('/own')
    for status in 200, 304:
        given = {'If-None-Match': made.headers['ETag']} if status == 304 else {}
        found = client.get('/own', headers=given, status=status)
        for name in HEADERS:
            assert len(found.headers.getall(name)) == 1
        assert 'mine' in keys_of(found)
        assert len(keys_of(found)) > 2


def test_keys_tell_nothing(applications: Applications, make_tenant: Any) -> None:
    """Another secret, namespace or tenant has other keys, and none has a name in it."""
    one, two = make_tenant('one'), make_tenant('two')
    found = []
    for secret, namespace, tenant in (
        (SECRET, 'a', one), (SECRET + '2', 'a', one), (SECRET, 'b', one), (SECRET, 'a', two),
    ):  # fmt: skip
        keys = SurrogateKeys(HEADERS, namespace, secret)
        found.append(keys.of_change(tenant, {'table:users', '#code'}))
        assert SECRET not in repr(keys)
    assert len(frozenset().union(*found)) == 4 * 3
    app = applications.start(App, **SETTINGS)
    assert SECRET not in repr(app.orm_cache.settings)
    for value in client_of(app, one).get('/').headers.values():
        assert 'users' not in value
        assert one not in value


@pytest.mark.parametrize('headers', [*[(name,) for name in HEADERS], HEADERS])
@pytest.mark.parametrize('number', [0, 1, 31, 149, 1000])
def test_the_length_is_bounded(headers: tuple[str, ...], number: int) -> None:
    """A response has at most some 2,000 bytes of keys, 32 in Cache-Groups, and each change of one
    of its tags has a key of it, whatever their number."""
    keys = SurrogateKeys(headers, 'town', SECRET)
    tags = {'one': [f'table:t{n}' for n in range(number)], 'shared': ['table:s']}
    found = keys.of_response(tags)
    response = Response()
    keys.add_to(response, found)
    for name in headers:
        assert 0 < len(response.headers[name]) <= 2000
    assert 'Cache-Groups' not in headers or len(found) <= 32
    for place in tags:
        for tag in (*tags[place], '#code'):
            assert not keys.of_change(place, [tag]).isdisjoint(found)
    assert keys.of_change('another', ['table:s']).isdisjoint(found)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'surrogate_keys': 'Cache-Tag'}, 'needs orm_cache.surrogate_secret'),
        ({'surrogate_keys': 'Cache-Tag', 'surrogate_secret': 'short-secret'}, 'not shown'),
        ({'surrogate_secret': 7}, 'not shown'),
        ({**SETTINGS, 'surrogate_keys': 'X-Tag'}, 'one of Cache-Tag'),
        ({**SETTINGS, 'surrogate_keys': ['Cache-Tag', 'X']}, 'one of Cache-Tag'),
        ({**SETTINGS, 'surrogate_keys': ['Cache-Tag'] * 2}, 'one of Cache-Tag'),
        ({**SETTINGS, 'surrogate_keys': []}, 'one of Cache-Tag'),
        ({**SETTINGS, 'surrogate_keys': 7}, 'one of Cache-Tag'),
        ({**SETTINGS, 'surrogate_keys': [[]]}, 'one of Cache-Tag'),
    ],
)
def test_wrong_settings(
    applications: Applications, settings: dict[str, Any], message: str
) -> None:
    """A wrong setting is an error when the application is committed, and shows no secret."""
    with pytest.raises(ConfigurationError, match=message) as error:
        applications.configure(App, **settings).commit()
    assert 'short-secret' not in str(error.value)


def test_no_setting_no_keys(applications: Applications, tenant: str) -> None:
    """By default there are neither headers nor keys in the signal."""
    app = applications.start(App)
    found: list[frozenset[str]] = []

    def receive(schema: str, keys: frozenset[str], **told: Any) -> None:
        found.append(keys)

    app.orm_cache.on_tags_published.connect(receive)
    change(app, tenant, User(name='a'))
    assert set(found) == {frozenset()}
    assert not keys_of(client_of(app, tenant).get('/'))
