"""A reader gets fetched rows, a copy of its own, or a frozen value that all readers share."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select

from onegov_ormcache import OrmCacheApp, orm_cached
from tests.support.applications import Applications, change, value
from tests.support.counting import Runs
from tests.support.creators import user_count
from tests.support.models import User


def test_query_and_select_are_fetched(applications: Applications, tenant: str) -> None:
    """A creator may return a query or a select: both are fetched whole, as tuples of rows."""

    class App(OrmCacheApp):
        @orm_cached(policy=User)
        def query(self) -> Any:
            return self.session().query(User.id, User.name).order_by(User.id)

        @orm_cached(policy=User)
        def selected(self) -> Any:
            return select(User.id, User.name).order_by(User.id)

    app = applications.start(App)
    change(app, tenant, User(id=1, name='a'), User(id=2, name='b'))
    for _ in range(2):
        with app.request_scope(tenant):
            for rows in app.query, app.selected:
                assert rows == ((1, 'a'), (2, 'b'))
                assert type(rows) is tuple
                assert rows[0].name == 'a'
                assert rows[0][1] == 'a'
                assert dict(rows[1]._mapping) == {'id': 2, 'name': 'b'}


def test_creators_get_fresh_copies(applications: Applications, tenant: str) -> None:
    """A creator gets fresh copies of other values, without changes that a view made to its own."""

    class App(OrmCacheApp):
        @orm_cached(policy=User)
        def inner(self) -> Any:
            return [1]

        @orm_cached(policy=User)
        def outer(self) -> Any:
            return [self.inner]

    app = applications.start(App)
    with app.request_scope(tenant):
        app.inner.append(2)
        assert app.outer == [[1]]
        assert app.inner == [1, 2]
    assert value(app, tenant, lambda app: app.outer) == [[1]]


@pytest.mark.parametrize('first', [True, False])
def test_frozen_in_one_release_alone(
    on_servers: Applications, tenant: str, first: bool
) -> None:
    """A value stored by a release with `frozen` is mutable in a release without it, a copy for
    each request; a value stored without `frozen` is frozen in a release with it."""

    def start(frozen: bool) -> Any:
        class Town(OrmCacheApp):
            @orm_cached(policy=User, frozen=frozen)
            def names(self) -> Any:
                runs.append(frozen)
                return [['a']]

        return on_servers.start(Town)

    runs: list[bool] = []
    one, other = start(first), start(not first)
    assert value(one, tenant, lambda app: app.names) == ((('a',),) if first else [['a']])
    for _ in range(2):
        read = value(other, tenant, lambda app: app.names)
        if first:
            assert read == [['a']]
            read[0].append('spoilt')
        else:
            assert read == (('a',),)
    assert runs == [first]


def test_frozen(applications: Applications, tenant: str) -> None:
    """A frozen value is immutable at every depth, and one for all requests of a process."""

    class App(OrmCacheApp):
        @orm_cached(policy=User, frozen=True)
        def tree(self) -> Any:
            return {'list': [{'set': {1}}, (2, [3])], 'empty': []}

        @orm_cached(policy=User)
        def outer(self) -> Any:
            return [self.tree]

    app = applications.start(App)
    seen = []
    for _ in range(3):
        with app.request_scope(tenant):
            seen.append(app.tree)
    assert seen[0] == {'list': ({'set': frozenset({1})}, (2, (3,))), 'empty': ()}
    assert seen[1] is seen[2]
    for change_it in (
        lambda: seen[0].update(a=1),
        lambda: seen[0]['list'][0].pop('set'),
        lambda: seen[0]['list'][0]['set'].add(2),
        lambda: seen[0]['list'].append(2),
    ):
        with pytest.raises((AttributeError, TypeError)):
            change_it()
    assert value(app, tenant, lambda app: app.outer) == [seen[0]]


def test_values_that_are_too_large(
    applications: Applications, tenant: str, runs: Runs, caplog: Any
) -> None:
    """A value that does not fit into the process tier, which a text fills four times as much as
    its bytes, is logged once per property, with its size and what follows."""

    class App(OrmCacheApp):
        @orm_cached(policy=User)
        def small(self) -> str:
            return 'x' * 100

        @orm_cached(policy=User)
        def large(self) -> str:
            runs('large')
            return 'x' * (4_000 + user_count(self))

        @orm_cached(policy=User)
        def huge(self) -> Any:
            runs('huge')
            return ['x' * (20_000 + user_count(self))]

    app = applications.start(App, process_cache_size=10_000)
    for name in 'ab':
        for _ in range(2):
            value(app, tenant, lambda app: (app.small, app.large, app.huge))
        change(app, tenant, User(name=name))
    on_servers = applications.backend.name == 'servers'
    assert (runs.count('large'), runs.count('huge')) == (2, 2 if on_servers else 4)
    large, huge = (record.getMessage() for record in caplog.records)
    assert 'App.large has a value of 4,0' in large
    assert 'process_cache_size=10,000' in large
    assert 'each request fetches and decodes it' in large
    assert 'App.huge has a value of 20,0' in huge
    assert ('fetches' if on_servers else 'each request computes it') in huge


def test_values_above_the_limit(
    applications: Applications, tenant: str, runs: Runs, caplog: Any
) -> None:
    """A value above max_value_size is computed for each request, also if others read it, and
    logged once; nobody waits for it."""

    class App(OrmCacheApp):
        @orm_cached(policy=User)
        def large(self) -> Any:
            runs('large')
            return ['x' * (20_000 + user_count(self))]

        @orm_cached(policy=User)
        def small(self) -> int:
            runs('small')
            return len(self.large)

    app = applications.start(App, max_value_size=20_000)
    for _ in range(3):
        assert value(app, tenant, lambda app: (len(app.large[0]), app.small)) == (20_000, 1)
    assert (runs.count('large'), runs.count('small')) == (3, 1)
    (large,) = (record.getMessage() for record in caplog.records)
    assert 'App.large has a value of 20,0' in large
    assert 'max_value_size=20,000' in large


def test_no_process_tier(applications: Applications, tenant: str, caplog: Any) -> None:
    """With a process tier of no bytes, nothing is too large."""

    class App(OrmCacheApp):
        @orm_cached(policy=User)
        def large(self) -> str:
            return 'x' * 10_000

    app = applications.start(App, process_cache_size=0)
    assert value(app, tenant, lambda app: len(app.large)) == 10_000
    assert caplog.records == []
