"""A property keeps a value for each role and for each key that vary gives."""

from __future__ import annotations

from enum import Enum
from typing import Any

import pytest

from onegov_ormcache import OrmCacheApp, orm_cached, request_cached
from onegov_ormcache.errors import PropertyError, VariantError
from tests.support.applications import Applications, value
from tests.support.counting import Runs
from tests.support.creators import user_count
from tests.support.models import User


def test_by_role(applications: Applications, tenant: str, runs: Runs) -> None:
    """Each role sees a value of its own; None and 'None' are two roles."""

    class App(OrmCacheApp):
        pass

    class Identity:
        def __init__(self, role: Any) -> None:
            self.role = role

    @App.orm_cached(policy='on-table-change:users', by_role=True, target='request')
    def tree(request: Any) -> Any:
        runs('tree')
        return [request.identity.role]

    app = applications.start(App)
    for _ in range(2):
        for role in None, 'None', '', 'admin':
            with app.request_scope(tenant):
                request = app.request({'PATH_INFO': '/', 'REQUEST_METHOD': 'GET'})
                vars(request)['identity'] = Identity(role)
                assert request.tree == [role]
    assert runs.count('tree') == 4


class Tongue(Enum):
    """A language."""

    GERMAN = 'de'


VARIANTS: list[Any] = [
    None, 'None', '', 1, True, 1.0, b'x', 'x', Tongue.GERMAN, (1, 'a'), ('1,a',), (),
]  # fmt: skip


def test_vary(applications: Applications, tenant: str, runs: Runs) -> None:
    """A property keeps a value for each key that vary gives, and for each role."""

    class App(OrmCacheApp):
        language: Any = None
        identity: Any = None

        @orm_cached(policy=User, vary=lambda app: app.language)
        def greeting(self) -> Any:
            runs('greeting')
            return [repr(self.language)]

        @orm_cached(policy=User, by_role=True, vary=lambda app: app.language)
        def both(self) -> Any:
            return [self.language, self.identity.role]

    class Identity:
        def __init__(self, role: str) -> None:
            self.role = role

    app = applications.start(App)
    for _ in range(2):
        with app.request_scope(tenant):
            for language in VARIANTS:
                app.language = language
                assert app.greeting == [repr(language)]
        for language in 'de', 'fr':
            for role in 'admin', 'member':
                app.language, app.identity = language, Identity(role)
                assert value(app, tenant, lambda app: app.both) == [language, role]
    assert runs.count('greeting') == len(VARIANTS)


def test_vary_that_gives_no_key(applications: Applications, tenant: str) -> None:
    """A key without a text that is the same in all processes can't be a variant."""

    class App(OrmCacheApp):
        @orm_cached(policy=User, vary=lambda app: (1, object()))
        def wrong(self) -> int:
            return 1

    app = applications.start(App)
    with pytest.raises(VariantError, match=r'wrong .*vary gave'):
        value(app, tenant, lambda app: app.wrong)
    with pytest.raises(PropertyError, match='vary'):
        orm_cached(policy=User, vary='de')(user_count)  # type: ignore[arg-type]


def test_variants_are_not_hidden(applications: Applications, tenant: str) -> None:
    """A property that reads another one must vary by all that the other one varies by, also if
    a request-cached property is in between."""

    def language(app: Any) -> str:
        return 'de'

    class App(OrmCacheApp):
        identity = None

        @orm_cached(policy=User, vary=language)
        def inner(self) -> int:
            return 1

        @request_cached
        def through(self) -> int:
            return self.inner

        @orm_cached(policy=User, by_role=True)
        def wrong(self) -> int:
            return self.through

        @orm_cached(policy=User, by_role=True, vary=language)
        def right(self) -> int:
            return self.through

    app = applications.start(App)
    assert value(app, tenant, lambda app: app.right) == 1
    with pytest.raises(VariantError, match=r'App\.wrong reads .*App\.through'):
        value(app, tenant, lambda app: app.wrong)
