"""A creator that reads of a request what its property does not vary by is reported."""

from __future__ import annotations

from typing import Any

import morepath
import pytest
from webtest import TestApp as Client

from onegov_ormcache import OrmCacheApp, OrmCacheMiddleware, request_cached
from onegov_ormcache.errors import AuditError
from onegov_ormcache.web.auditing import WATCHED
from tests.support.applications import Applications, committed
from tests.support.models import User

REQUESTS: list[Any] = []


class Root:
    """The model at /."""


class App(OrmCacheApp):
    """A property for each way to read something of a request."""

    @request_cached
    def helper(self) -> str:
        return f'{self.session().query(User).count()} {REQUESTS[-1].identity}'


App.path(path='')(Root)


def declare(name: str, **options: Any) -> None:
    @App.orm_cached(policy=User, target='request', name=f'by_{name}', **options)
    def creator(request: Any) -> str:
        return str(getattr(request, name.removesuffix('_in_variants').removesuffix('_by_role')))


for attribute in (*WATCHED, 'path'):
    declare(attribute)
    declare(f'{attribute}_in_variants', vary=lambda request: str(request.params))
    declare(f'{attribute}_by_role', by_role=True)


@App.orm_cached(policy=User)
def through_another_object(app: Any) -> str:
    return str(REQUESTS[-1].cookies)


@App.orm_cached(policy=User)
def through_a_request_cached_property(app: Any) -> str:
    return str(app.helper)


@App.orm_cached(policy=User, target='request')
def of_an_app_property(request: Any) -> str:
    return str(request.app.through_another_object)


@App.orm_cached(policy=User, target='request')
def failing(request: Any) -> str:
    raise ZeroDivisionError


@App.orm_cached(policy=User, target='request')
def changing(request: Any) -> str:
    request.cookies = {'a': 'b'}
    return 'changed'


@App.json(model=Root)
def view(self: Root, request: Any) -> Any:
    REQUESTS[:] = [request]
    usual = type(request)
    assert usual.GET is morepath.Request.GET
    name = request.params['name']
    str([getattr(request, each) for each in WATCHED])  # nothing of it counts
    owner = request if hasattr(type(request), name) else request.app
    try:
        return getattr(owner, name)
    except ZeroDivisionError:
        return 'failed'
    finally:
        assert type(request) is usual
        assert request.cookies.get('a') == ('b' if name == 'changing' else None)


def reports(app: OrmCacheApp, tenant: str, name: str, caplog: Any) -> list[str]:
    """Compute a property in two requests; return what was logged."""
    client = Client(OrmCacheMiddleware(app, schema=tenant))
    for user in 'ab':
        assert client.get(f'/?name={name}').status_code == 200
        with committed(app, tenant) as scope:
            scope.session().add(User(name=user))
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize('name', WATCHED)
def test_creator_that_reads_what_differs(
    applications: Applications, tenant: str, name: str, caplog: Any
) -> None:
    """It is logged once, with the property and the attribute, though the view has read the same
    before."""
    app = applications.start(App)
    (message,) = reports(app, tenant, f'by_{name}', caplog)
    assert f'.App.request.by_{name} reads request.{name},' in message


@pytest.mark.parametrize(
    ('name', 'reported'),
    [
        ('by_path', None),
        ('by_cookies_in_variants', None),
        ('by_identity_in_variants', None),
        ('by_identity_by_role', None),
        ('by_cookies_by_role', 'by_cookies_by_role reads request.cookies'),
        ('through_another_object', 'through_another_object reads request.cookies'),
        (
            'through_a_request_cached_property',
            'through_a_request_cached_property reads request.identity',
        ),
        ('of_an_app_property', 'through_another_object reads request.cookies'),
        ('helper', None),
        ('failing', None),
        ('changing', None),
    ],
)
def test_which_creators_are_reported(
    applications: Applications, tenant: str, name: str, reported: str | None, caplog: Any
) -> None:
    """The property whose value would be wrong is reported, in whatever way its creator gets at
    the request; one that varies by it, or is kept for one request, is not."""
    app = applications.start(App)
    messages = reports(app, tenant, name, caplog)
    assert len(messages) == (0 if reported is None else 1)
    assert all(str(reported) in message for message in messages)


def test_audit_that_is_an_error(applications: Applications, tenant: str) -> None:
    """With `audit='error'` the read raises, and nothing is stored."""
    client = Client(OrmCacheMiddleware(applications.start(App, audit='error'), schema=tenant))
    for _ in range(2):
        with pytest.raises(AuditError, match=r'by_params reads request\.params'):
            client.get('/?name=by_params')
    assert client.get('/?name=by_identity_by_role').status_code == 200


def test_audit_that_is_off(applications: Applications, tenant: str, caplog: Any) -> None:
    """With `audit='off'` nothing is reported."""
    assert reports(applications.start(App, audit='off'), tenant, 'by_params', caplog) == []
