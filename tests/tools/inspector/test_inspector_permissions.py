"""Who may see the inspector, and of which tenant: nobody, unless the application says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import morepath
import pytest
from webtest import TestApp as Client

from onegov_ormcache import OrmCacheMiddleware
from onegov_ormcache.errors import ConfigurationError
from onegov_ormcache.tools.inspector import (
    AllTenants,
    ChangeCache,
    Inspector,
    Tenant,
    ViewCache,
)
from onegov_ormcache.tools.inspector.forms import secret_of, token
from tests.support.applications import Applications, change
from tests.support.models import User
from tests.support.site_with_inspector import (
    CACHE,
    WHERE,
    Bare,
    Granting,
    Redirecting,
    Site,
    Visitor,
)

#: All pages and addresses of forms, of the tenant ``{tenant}``.
PATHS = (
    '', '/servers', '/tenants/{tenant}', '/tenants/{tenant}/tags',
    '/tenants/{tenant}/property?name=x',
)  # fmt: skip
FORMS = (
    '/tenants/{tenant}/evict', '/tenants/{tenant}/property/evict?name=x',
    '/tenants/{tenant}/property/refresh?name=x',
)  # fmt: skip


def started(applications: Applications, app_class: type[Site], tenant: str) -> Site:
    """Return a site that has one tenant."""
    app = applications.start(app_class)
    change(app, tenant, User(name='Ann'))
    return app


@pytest.mark.parametrize('role', [None, 'clerk', 'admin', 'operator'])
def test_nobody_is_let_in_without_a_rule(
    embedded: Applications, tenant: str, role: str | None
) -> None:
    """Without a rule of the application, all pages and forms are forbidden to everybody."""
    visitor = Visitor(started(embedded, Bare, tenant), tenant, role)
    visitor.client.get('/')
    for path in PATHS:
        page = visitor.get(path.format(tenant=tenant), status=403)
        assert 'You may not see this' in page
        assert tenant not in page.html.main.text
    for path in FORMS:
        visitor.client.post(CACHE + path.format(tenant=tenant), status=403)


def test_anonymous_and_unverified_visitors_are_let_in_by_no_rule(
    site: Granting, tenant: str
) -> None:
    """The application says who somebody is, and whether that is true."""
    visitor = Visitor(site, tenant)
    assert visitor.get(status=403)
    visitor.client.set_cookie('role', 'operator')
    assert visitor.get(status=403)
    visitor.client.set_cookie('user', 'stranger')
    assert visitor.get(status=403)
    visitor.client.set_cookie('user', 'friend')
    assert visitor.get(status=200)


def test_operator_sees_all_tenants(site: Granting, tenant: str, other: str) -> None:
    """A permission for all tenants is one for each, and for the servers."""
    for name in tenant, other:
        Visitor(site, name).client.get('/')
    visitor = Visitor(site, tenant, 'operator')
    page = visitor.get()
    for name in tenant, other:
        assert f'{CACHE}/tenants/{name}' in page
        assert visitor.of(name).html.h1.text == name
    assert 'Servers' in page.html.nav.text
    assert visitor.get('/servers')


@pytest.mark.parametrize('role', ['admin', 'clerk'])
def test_no_tenant_sees_another(site: Granting, tenant: str, other: str, role: str) -> None:
    """Who may see one tenant learns nothing of another, not even that it exists."""
    for name in tenant, other:
        Visitor(site, name).client.get('/')
    visitor = Visitor(site, tenant, role)
    assert visitor.of(tenant)
    for page in visitor.get(), visitor.of(tenant), visitor.of(tenant, '/tags'):
        assert other not in page
        assert 'Servers' not in page.html.nav.text
    assert visitor.get('/servers', status=403)
    for name in other, 'nowhere':
        answers = {
            path: visitor.get(path.format(tenant=name), status=403).html.main.text
            for path in PATHS if '{' in path
        }  # fmt: skip
        assert name not in str(answers)
        for path in FORMS:
            visitor.client.post(CACHE + path.format(tenant=name), status=403)


class WithRuleForEverything(Site):
    """A site with rules from before it had the inspector, for whoever is logged in."""


@WithRuleForEverything.permission_rule(model=object, permission=object)
def anybody_may_all(app: Any, identity: Any, model: object, permission: Any) -> bool:
    return True


def test_rule_for_everything_is_none_for_the_inspector(
    embedded: Applications, tenant: str
) -> None:
    """A rule that names neither the inspector's models nor its permissions lets nobody in: its
    author did not think of other tenants."""
    visitor = Visitor(started(embedded, WithRuleForEverything, tenant), tenant, 'clerk')
    for path in PATHS:
        assert visitor.get(path.format(tenant=tenant), status=403)
    for path in FORMS:
        assert visitor.client.post(CACHE + path.format(tenant=tenant), status=403)


class WithSupport(Site):
    """A site whose support sees all tenants, and changes that of the request."""


@WithSupport.permission_rule(model=AllTenants, permission=ViewCache)
@WithSupport.permission_rule(model=Tenant, permission=ChangeCache)
def support_may(app: Any, identity: Any, model: object, permission: Any) -> bool:
    return not isinstance(model, Tenant) or model.name == app.schema


class WithOperator(WithSupport):
    """That site with an operator, who changes all tenants."""


@WithOperator.permission_rule(model=object, permission=ChangeCache)
def operator_may(identity: Any, model: object, permission: Any) -> bool:
    return bool(identity.role == 'operator')


@pytest.mark.parametrize('app_class', [WithSupport, WithOperator])
def test_function_with_two_rules_has_no_third(
    embedded: Applications, tenant: str, make_tenant: Callable[[str], str], app_class: type[Site]
) -> None:
    """A function that tells who sees all tenants and who changes one is not asked who changes all,
    though Morepath's own lookup does so."""
    other, app = make_tenant('other'), started(embedded, app_class, tenant)
    change(app, other, User(name='Bob'))
    support = Visitor(app, tenant, 'support')
    assert support.of(tenant).forms
    assert not support.of(other).forms
    for path in FORMS:
        assert support.client.post(CACHE + path.format(tenant=other), status=403)
    may_evict_all = bool(Visitor(app, tenant, 'operator').of(other).forms)
    assert may_evict_all is (app_class is WithOperator)


def test_looking_does_not_include_changing(site: Granting, tenant: str) -> None:
    """Who may only look gets no forms, and may send none."""
    Visitor(site, tenant).client.get('/')
    clerk = Visitor(site, tenant, 'clerk')
    assert not clerk.of(tenant).forms
    assert not clerk.property('users').forms
    secret, name = secret_of(site.orm_cache), f'{WHERE}.users'
    for path, deed in (
        ('evict', ('evict', tenant)),
        (f'property/evict?name={name}', ('evict', tenant, name)),
        (f'property/refresh?name={name}', ('refresh', tenant, name)),
    ):
        for role, status in ('clerk', 403), ('admin', 303):
            fields = {'token': token(secret, f'the-{role}', deed), 'sure': 'yes'}
            client = Visitor(site, tenant, role).client
            client.post(f'{CACHE}/tenants/{tenant}/{path}', fields, status=status)


@pytest.mark.parametrize('name', ['nowhere', 'UPPER', 'pg_catalog', '%00', 'a%2F..%2Fb', 'x' * 99])
def test_unknown_tenant_is_not_found(site: Granting, tenant: str, name: str) -> None:
    """A tenant of another application, or a name that no tenant can have, is a page that says so;
    nothing is created."""
    visitor = Visitor(site, tenant, 'operator')
    for path in PATHS[2:]:
        page = visitor.get(path.format(tenant=name), status=404)
        assert 'There is no such page' in page
    manager = site.orm_cache.session_manager
    assert not manager.is_valid_schema(name) or not manager.has_schema(name)


def test_unknown_property_and_page_are_not_found(site: Granting, tenant: str) -> None:
    """A name that is no property's is a page that says so, whatever it consists of."""
    visitor = Visitor(site, tenant, 'operator')
    for name in 'nothing', '', '%3Cscript%3E', 'a.view(b)', '%00':
        page = visitor.of(tenant, f'/property?name={name}', status=404)
        assert '<script' not in page
    assert 'There is no such page' in visitor.get('/nothing', status=404)
    assert 'There is no such page' in visitor.of(tenant, '/nothing', status=404)
    visitor.of(tenant, '/evict', status=(404, 405))


def test_host_answers_those_whom_it_does_not_let_in(embedded: Applications, tenant: str) -> None:
    """A host's view for HTTPForbidden comes first: it may lead to a login."""
    visitor = Visitor(started(embedded, Redirecting, tenant), tenant)
    assert visitor.get(status=302).location.endswith('/login')


def test_each_answer_has_the_headers_that_keep_it_private(site: Granting, tenant: str) -> None:
    """No answer is kept by a browser, shown in a frame, or may run or load anything."""
    visitor = Visitor(site, tenant, 'operator')
    Visitor(site, tenant).client.get('/')
    answers: list[Any] = [
        visitor.get(), visitor.of(tenant), visitor.property('users'), visitor.get('/servers'),
        visitor.get('/nothing', status=404), Visitor(site, tenant).get(status=403),
        visitor.send(visitor.property('users'), 'evict'),
    ]  # fmt: skip
    for answer in answers:
        assert answer.headers['Cache-Control'] == 'no-store'
        policy = answer.headers['Content-Security-Policy']
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert 'unsafe' not in policy
    style = visitor.get('/style.css')
    assert style.content_type == 'text/css'


def test_inspector_needs_an_application_to_inspect() -> None:
    """Served by itself, or mounted where there is no cache, it says what to do."""

    class Plain(morepath.App):
        """An application without a cache."""

    Plain.mount(path='cache', app=Inspector)(Inspector)
    for app, path, words in (
        (Plain(), '/cache', 'derive it from OrmCacheApp'),
        (Inspector(), '/', 'mounted in'),
    ):
        with pytest.raises(ConfigurationError, match=words):
            Client(app).get(path)


def test_middleware_is_not_needed(embedded: Applications, tenant: str) -> None:
    """A request of no tenant gives an operator the tenants, and nobody else anything."""
    app = started(embedded, Granting, tenant)
    Visitor(app, tenant).client.get('/')
    client = Client(app)
    client.set_cookie('user', 'o')
    client.set_cookie('role', 'operator')
    assert tenant in client.get(CACHE)
    client.set_cookie('role', 'nobody')
    assert client.get(CACHE, status=403)
    assert isinstance(OrmCacheMiddleware(app, schema=tenant).app, Granting)
