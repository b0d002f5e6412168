"""What an application evicts by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from onegov_ormcache import OrmCacheApp, orm_cached, rows
from onegov_ormcache.errors import (
    ArgumentError,
    OutsideScopeError,
    PropertyError,
    UnknownTagError,
)
from tests.support.applications import Applications, value
from tests.support.counting import Runs
from tests.support.models import User


class App(OrmCacheApp):
    """Its values are the numbers of their runs."""

    runs: Runs
    language = 'de'

    def number(self, name: str) -> list[int]:
        self.runs(name)
        return [self.runs.count(name)]

    @orm_cached(policy=User)
    def plain(self) -> list[int]:
        return self.number('plain')

    @orm_cached(policy=User)
    def book(self, id: int, lang: str = 'de') -> list[int]:
        return self.number(f'book {id}')

    @orm_cached(policy=User, vary=lambda app: app.language)
    def varied(self, id: int = 1) -> list[int]:
        return self.number(f'varied {self.language}')

    @orm_cached(policy=rows(User.id))
    def row(self, id: int) -> list[int]:
        return self.number(f'row {id}')

    @orm_cached(policy='auto')
    def nested(self) -> list[int]:
        self.session().query(User).count()
        return [*self.number('nested'), *self.plain, *self.book(1)]

    @orm_cached(policy=User)
    def evicting(self) -> list[int]:
        self.evict('book', 1)
        return [*self.number('evicting'), *self.book(1)]


def tree(request: Any, id: int) -> list[int]:
    found: list[int] = request.app.number('tree')
    return found


App.orm_cached(policy=User, target='request')(tree)


@pytest.fixture
def app(applications: Applications, runs: Runs) -> App:
    """The app on each back end in turn."""
    App.runs = runs
    return applications.start(App)


READS: dict[str, Callable[[Any], Any]] = {
    'plain': lambda app: app.plain,
    'book 1': lambda app: app.book(1),
    'book 2': lambda app: app.book(2),
    'varied': lambda app: app.varied(),
    'row': lambda app: app.row(1),
    'nested': lambda app: app.nested,
}

def tag_of(app: App, name: str) -> str:
    """Return the tag of all values of a property."""
    cls = type(app)
    return app.orm_cache.registry.property_of(getattr(cls, name), cls).value_tag


#: What each eviction makes new.
EVICTIONS: dict[str, tuple[Callable[[Any], Any], set[str]]] = {
    'property': (lambda app: app.evict('plain'), {'plain', 'nested'}),
    'one': (lambda app: app.evict('book', 1), {'book 1', 'nested'}),
    'by name': (lambda app: app.evict('book', id=1, lang='de'), {'book 1', 'nested'}),
    'other': (lambda app: app.evict('book', 1, 'fr'), set()),
    'all of it': (lambda app: app.evict('book'), {'book 1', 'book 2', 'nested'}),
    'variants': (lambda app: app.evict('varied', 1), {'varied'}),
    'outer': (lambda app: app.evict('nested'), {'nested'}),
    'table': (lambda app: app.evict(tags=['table:users']), set(READS)),
    'tag': (lambda app: app.evict(tags='table:users'), set(READS)),
    'other table': (lambda app: app.evict(tags=['table:groups']), set()),
    'no tags': (lambda app: app.evict(tags=[]), set()),
    'tag of a property': (
        lambda app: app.evict(tags=[tag_of(app, 'plain')]), {'plain', 'nested'},
    ),
    'tag of a function': (
        lambda app: app.evict(tags=[tag_of(app, 'book')]), {'book 1', 'book 2', 'nested'},
    ),
    'tag of rows': (lambda app: app.evict(tags=['rows:users.id:int']), {'row'}),
    'everything': (lambda app: app.evict_all(), set(READS)),
    'refresh': (lambda app: app.refresh('book', 1), {'book 1', 'nested'}),
    'refresh all': (lambda app: app.refresh('varied'), {'varied'}),
}


def new(app: App, before: dict[str, Any]) -> set[str]:
    """Return the reads that give something else than before; in the current scope."""
    return {name for name, read in READS.items() if read(app) != before[name]}


@pytest.mark.parametrize('name', EVICTIONS)
def test_evictions(
    app: App, applications: Applications, make_tenant: Callable[[str], str], name: str
) -> None:
    """The transaction reads anew at once; others after its commit, and never after its rollback.
    Other tenants keep their values."""
    evict, evicted = EVICTIONS[name]
    tenant, other = make_tenant('main'), make_tenant('other')
    elsewhere = applications.elsewhere(app)
    with app.request_scope(other):
        others = {name: read(app) for name, read in READS.items()}
    for end in 'rollback', 'commit':
        with app.request_scope(tenant):
            before = {name: read(app) for name, read in READS.items()}
        with app.request_scope(tenant) as scope:
            assert new(app, before) == set()
            evict(app)
            assert new(app, before) == evicted
            with elsewhere.request_scope(tenant):
                assert new(elsewhere, before) == set()
            getattr(scope.session(), end)()
        expected = evicted if end == 'commit' else set()
        for each in elsewhere, app:
            with each.request_scope(tenant):
                assert new(each, before) == expected
        with elsewhere.request_scope(other):
            assert new(elsewhere, others) == set()


def test_all_variants(app: App, tenant: str) -> None:
    """The values of all variants are evicted, whichever the caller sees."""
    before = {}
    for language in 'de', 'fr':
        app.language = language
        before[language] = value(app, tenant, READS['varied'])
    with app.request_scope(tenant) as scope:
        app.evict('varied')
        scope.session().commit()
    for language in 'de', 'fr':
        app.language = language
        assert value(app, tenant, READS['varied']) != before[language]


def test_refresh(app: App, tenant: str) -> None:
    """It returns the new value, which the transaction then has; others compute it after the
    commit."""
    first = value(app, tenant, READS['book 1'])
    with app.request_scope(tenant) as scope:
        found = app.refresh('book', 1)
        assert found == app.book(1) != first
        assert app.refresh('book', id=1) != found
        scope.session().commit()
    assert value(app, tenant, READS['book 1']) != first


def test_within_a_creator(app: App, tenant: str, runs: Runs) -> None:
    """A creator that evicts is not stored, and its eviction is part of the transaction."""
    first = value(app, tenant, READS['book 1'])
    with app.request_scope(tenant) as scope:
        assert app.evicting[1:] != first
        scope.session().commit()
    assert value(app, tenant, READS['book 1']) != first
    assert runs.count('evicting') == 1
    assert value(app, tenant, lambda app: app.evicting)[0] == 2


def test_requests(app: App, tenant: str) -> None:
    """A request evicts its own functions, and the app's property of that name stays an error."""
    with app.request_scope(tenant) as scope:
        request = app.request({'PATH_INFO': '/', 'REQUEST_METHOD': 'GET'})
        first = request.tree(1), request.tree(2)
        request.evict('tree', 1)
        assert request.tree(1) != first[0]
        assert request.tree(2) == first[1]
        again = request.refresh('tree', 2)
        assert again == request.tree(2) != first[1]
        scope.session().commit()
        assert request.tree(2) != first[1]
        with pytest.raises(PropertyError, match="no orm-cached property 'tree'"):
            app.evict('tree')


MISTAKES: list[tuple[Callable[[Any], Any], type[Exception], str]] = [
    (lambda app: app.evict(), PropertyError, 'evict'),
    (lambda app: app.evict('nothing'), PropertyError, "no orm-cached property 'nothing'"),
    (lambda app: app.evict('number'), PropertyError, "no orm-cached property 'number'"),
    (lambda app: app.evict(5), PropertyError, 'no orm-cached property 5'),
    (lambda app: app.evict(App.book), PropertyError, 'no orm-cached property'),
    (lambda app: app.evict('plain', 1), ArgumentError, 'plain'),
    (lambda app: app.evict('book', 1, 2, 3), ArgumentError, 'book'),
    (lambda app: app.evict('book', [1]), ArgumentError, 'book'),
    (lambda app: app.evict('book', page=1), ArgumentError, 'book'),
    (lambda app: app.refresh('book'), ArgumentError, 'book'),
    (lambda app: app.refresh('nothing'), PropertyError, "no orm-cached property 'nothing'"),
    (lambda app: app.evict(tags=['users']), UnknownTagError, 'is no tag'),
    (lambda app: app.evict(tags=['table:nothing']), UnknownTagError, 'table:nothing'),
    (lambda app: app.evict(tags=['#code']), UnknownTagError, 'is no tag'),
    (lambda app: app.evict(tags=[5]), UnknownTagError, '5 is no tag'),
    (lambda app: app.evict(tags=5), UnknownTagError, '5'),
]


@pytest.mark.parametrize(('call', 'error', 'message'), MISTAKES)
def test_mistakes(
    app: App, tenant: str, call: Callable[[Any], Any], error: type[Exception], message: str
) -> None:
    """What is no property, argument or tag is an error that names it, and evicts nothing."""
    before = value(app, tenant, READS['plain'])
    with app.request_scope(tenant) as scope:
        with pytest.raises(error, match=message):
            call(app)
        scope.session().commit()
    assert value(app, tenant, READS['plain']) == before


@pytest.mark.parametrize(
    'call',
    [
        lambda app: app.evict('plain'),
        lambda app: app.evict('book', 1),
        lambda app: app.evict(tags=['table:users']),
        lambda app: app.evict_all(),
        lambda app: app.refresh('plain'),
    ],
)
def test_outside_of_a_scope(app: App, call: Callable[[Any], Any]) -> None:
    """An eviction is part of a transaction, so it needs a scope."""
    with pytest.raises(OutsideScopeError):
        call(app)
