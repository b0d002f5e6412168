"""Directives leave the functions that they decorate as they are; requests know their app."""

from __future__ import annotations

from typing import Any, assert_type

import morepath

from onegov_ormcache import (
    BoundFunction,
    OrmCacheApp,
    OrmCacheMiddleware,
    OrmCacheRequest,
    cached,
    orm_cached,
    request_cached,
    rows,
)
from tests.support.models import User


class Request(OrmCacheRequest['App']):
    #: Installed by directives.
    tree: tuple[str, ...]
    titles: BoundFunction[[int], str]

    @orm_cached(policy=User)
    def double(self) -> int:
        return self.app.count * 2

    @request_cached
    def words(self) -> list[str]:
        return self.path.split('/')


class Plain(OrmCacheApp):
    request_class = OrmCacheRequest['Plain']


class App(OrmCacheApp):
    request_class = Request

    #: Installed by a directive.
    number: int

    @orm_cached(policy=User)
    def count(self) -> int:
        return 1

    @orm_cached(policy=rows(User.id))
    def name(self, id: int) -> str:
        return ''


@App.orm_cached(policy=User, name='number', frozen=True, expires=60)
def number(app: App) -> int:
    return app.count


@App.orm_cached(policy=[User, 'auto'], by_role=True, target='request')
def tree(request: Request) -> tuple[str, ...]:
    return (str(request.app.count),)


@App.orm_cached(policy=rows(User.id), target='request')
def titles(request: OrmCacheRequest[App], id: int) -> str:
    return request.app.name(id)


@App.request_cached()
def user(app: App) -> User | None:
    return app.session().get(User, 1)


@App.request_cached(name='address', target='request', merge=True)
def url_of(request: Request) -> str:
    return request.path


@App.path(path='')
class Root:
    title = 'Home'


@App.json(model=Root, prefetch='count', cached=cached(by_role=True, expires=60))
def view(self: Root, request: Request) -> dict[str, Any]:
    return {'title': self.title}


@App.html(model=Root, name='html', cached=True, prefetch=['count', 'tree'])
def html(self: Root, request: morepath.Request[App]) -> str:
    return self.title


@App.setting_section(section='orm_cache')
def orm_cache_settings() -> dict[str, Any]:
    return {}


def functions_stay(app: App, request: Request, root: Root) -> None:
    assert_type(number(app), int)
    assert_type(tree(request), tuple[str, ...])
    assert_type(titles(request, 1), str)
    assert_type(user(app), User | None)
    assert_type(url_of(request), str)
    assert_type(view(root, request), dict[str, Any])
    assert_type(html(root, request), str)
    assert_type(orm_cache_settings(), dict[str, Any])
    assert_type(root.title, str)
    number(request)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def requests(request: Request, other: OrmCacheRequest[App], any: OrmCacheRequest) -> None:
    assert_type(request.app, App)
    assert_type(request.app.count, int)
    assert_type(request.app.number, int)
    assert_type(request.app.name(1), str)
    assert_type(request.double, int)
    assert_type(request.words, list[str])
    assert_type(request.tree, tuple[str, ...])
    assert_type(request.titles.many([1]), dict[int, str])
    assert_type(other.app.count, int)
    assert_type(any.app, morepath.App)
    given: OrmCacheRequest[OrmCacheApp] = other
    assert_type(given.app.schema, str)
    request.app.counts  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


def requests_of_morepath(request: morepath.Request[App]) -> None:
    assert_type(request.app.count, int)


def middleware_of_any_app(application: OrmCacheMiddleware) -> None:
    assert_type(application.app, OrmCacheApp)


def middleware() -> None:
    application = OrmCacheMiddleware(App(), schema='main')
    assert_type(application.app, App)
    middleware_of_any_app(application)
    with application.app.request_scope('main'):
        assert_type(application.app.count, int)
    OrmCacheMiddleware(morepath.App())  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
    OrmCacheMiddleware(App(), schema=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def wrong_directives() -> None:
    App.orm_cached()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    App.orm_cached(policy=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    App.orm_cached(policy=[1])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    App.orm_cached(policy=User, expires='1h')  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    App.orm_cached(policy=User, target='root')  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    App.orm_cached(policy=User, role=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    App.orm_cached(policy=User, name=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    App.request_cached(policy=User)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    App.json(model=Root, cached=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    App.json(model=Root, prefetch=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    App.json()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    App.html('pages')  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    App.view(model=Root, internal='yes')  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    cached(role=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def wrong_creators() -> None:
    def of_nothing() -> int:
        return 1

    def of_two(app: App, id: int) -> int:
        return id

    App.orm_cached(policy=User)(of_nothing)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
    App.request_cached()(of_nothing)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
    App.request_cached()(of_two)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]


def without_parentheses() -> None:
    def creator(app: App) -> str:
        return ''

    App.orm_cached(creator)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    App.request_cached(creator)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
