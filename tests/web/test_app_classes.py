"""Directives and class bodies install properties on an app class and on its requests, and on
no other class.
"""

from __future__ import annotations

from typing import Any

import morepath
import pytest
from webtest import TestApp as Client

from onegov_ormcache import (
    OrmCacheApp,
    OrmCacheDescriptor,
    OrmCacheMiddleware,
    orm_cached,
    request_cached,
)
from tests.support.applications import Applications, change, value
from tests.support.counting import Runs
from tests.support.creators import user_count
from tests.support.models import User


class Root:
    """The model at /."""


def test_directives_of_all_kinds(applications: Applications, tenant: str, runs: Runs) -> None:
    """Directives install properties on the app and the request, by the function's name or
    a given one, and leave the function as it is."""

    class App(OrmCacheApp):
        pass

    @App.orm_cached(policy='on-table-change:users')
    def names(app: Any) -> Any:
        runs('names')
        return app.session().query(User.name)

    @App.orm_cached(policy='on-table-change:users', name='total', target='request')
    def count_all(request: Any) -> int:
        runs('total')
        return user_count(request.app)

    @App.request_cached(name='organisation')
    def load_organisation(app: Any) -> Any:
        runs('organisation')
        return app.session().query(User).first()

    @App.request_cached(target='request')
    def path_words(request: Any) -> list[str]:
        runs('path_words')
        return list(request.path.split('/'))

    App.path(path='')(Root)

    @App.json(model=Root)
    def view(self: Root, request: Any) -> Any:
        for _ in range(2):
            answer = {
                'names': [row.name for row in request.app.names],
                'total': request.total,
                'organisation': request.app.organisation.name,
                'words': request.path_words,
            }
        return answer

    app = applications.start(App)
    change(app, tenant, User(name='a'))
    client = Client(OrmCacheMiddleware(app, schema=tenant))
    expected = {'names': ['a'], 'total': 1, 'organisation': 'a', 'words': ['', '']}
    for _ in range(3):
        assert client.get('/').json == expected
    counted = {n: runs.count(n) for n in ('names', 'total', 'organisation', 'path_words')}
    assert counted == {'names': 1, 'total': 1, 'organisation': 3, 'path_words': 3}
    assert names.__name__ == 'names'
    assert not hasattr(App, 'count_all')
    assert isinstance(app.__class__.names, OrmCacheDescriptor)


def test_properties_made_in_a_loop(applications: Applications, tenant: str) -> None:
    """One function under several names is several properties."""

    class App(OrmCacheApp):
        pass

    def declare(number: int) -> None:
        App.orm_cached(policy='on-table-change:users', name=f'p{number}')(lambda app: number)

    for number in range(3):
        declare(number)
    app = applications.start(App)
    for _ in range(2):
        assert value(app, tenant, lambda app: (app.p0, app.p1, app.p2)) == (0, 1, 2)


def test_subclass_overrides_by_directive_and_body(
    applications: Applications, tenant: str
) -> None:
    """A subclass's property replaces its base's, by directive or class body, on itself alone."""

    class Basic(OrmCacheApp):
        @orm_cached(policy=User)
        def body(self) -> str:
            return 'base'

        @orm_cached(policy=User)
        def kept(self) -> str:
            return type(self).__name__

    Basic.orm_cached(policy=User, name='directed')(lambda app: 'base')
    Basic.orm_cached(policy=User, name='also', target='request')(lambda request: 'base')

    class Derived(Basic):
        @orm_cached(policy=User)
        def body(self) -> str:
            return 'derived'

    Derived.orm_cached(policy=User, name='directed')(lambda app: 'derived')
    Derived.orm_cached(policy=User, name='also', target='request')(lambda request: 'derived')

    seen = []
    for app_class in Basic, Derived, Basic:
        app = applications.start(app_class)
        with app.request_scope(tenant):
            request = app.request({'PATH_INFO': '/', 'REQUEST_METHOD': 'GET'})
            seen.append((app.body, app.directed, app.kept, request.also))
        app.close_orm_cache()
    base = ('base', 'base', 'Basic', 'base')
    assert seen == [base, ('derived', 'derived', 'Derived', 'derived'), base]


def test_committing_twice_installs_once() -> None:
    """A second commit installs the same properties and reports no conflict."""

    class App(OrmCacheApp):
        pass

    App.orm_cached(policy=User, name='one')(lambda app: 1)
    App.orm_cached(policy=User, name='two', target='request')(lambda request: 2)
    for _ in range(2):
        App.commit()
        assert isinstance(App.one, OrmCacheDescriptor)
        assert isinstance(App.request_class.two, OrmCacheDescriptor)


def test_two_classes_in_one_process(applications: Applications, tenant: str) -> None:
    """Two app classes see neither each other's properties nor each other's requests'."""

    class One(OrmCacheApp):
        pass

    class Two(OrmCacheApp):
        pass

    One.orm_cached(policy=User, name='mine')(lambda app: 'one')
    One.orm_cached(policy=User, name='ours', target='request')(lambda request: 'one')
    Two.orm_cached(policy=User, name='mine')(lambda app: 'two')
    One.commit()
    Two.commit()
    assert not hasattr(Two.request_class, 'ours')
    assert not hasattr(morepath.Request, 'ours')
    assert not hasattr(OrmCacheApp, 'mine')
    seen = []
    for app_class in One, Two:
        app = applications.start(app_class)
        seen.append(value(app, tenant, lambda app: app.mine))
        app.close_orm_cache()
    assert seen == ['one', 'two']


def test_own_request_class(applications: Applications, tenant: str) -> None:
    """An app's own request class keeps its attributes and may have properties in its body."""

    class Request(morepath.Request):
        word = 'kept'

        @orm_cached(policy=User)
        def counted(self) -> int:
            return user_count(self.app)

        @request_cached
        def once(self) -> list[int]:
            return []

    class App(OrmCacheApp):
        request_class = Request

    app = applications.start(App)
    for _ in range(2):
        with app.request_scope(tenant):
            request = app.request({'PATH_INFO': '/', 'REQUEST_METHOD': 'GET'})
            assert isinstance(request, Request)
            assert (request.word, request.counted) == ('kept', 0)
            assert request.once is request.once
            with pytest.raises(AttributeError, match='nonsense'):
                request.nonsense
    assert [d.name for d in app.orm_cache_descriptors] == ['counted']
