"""A site with an inspector: its visitors are known by a cookie, and each tenant by the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import morepath
from sqlalchemy import func, select
from webob.exc import HTTPForbidden
from webtest import TestApp as Client

from onegov_ormcache import OrmCacheApp, OrmCacheMiddleware, orm_cached, rows
from onegov_ormcache.tools.inspector import (
    AllTenants,
    ChangeCache,
    Inspector,
    Tenant,
    ViewCache,
)
from tests.support.models import Document, User

#: The path of the inspector.
CACHE = '/cache'

#: The begin of the names of this site's properties.
WHERE = 'tests.support.site_with_inspector.Granting'


class CookieIdentity(morepath.IdentityPolicy):
    """The cookie ``user`` says who it is, the cookie ``role`` what for; nothing is verified."""

    def identify(self, request: Any) -> Any:
        user = request.cookies.get('user')
        if user is None:
            return morepath.NO_IDENTITY
        # the application's own request and app answer, and not the inspector's
        assert isinstance(request.app, OrmCacheApp)
        if 'reads' in request.cookies:
            app: Any = request.app
            assert app.users
        reads = 'reads' in request.cookies
        return morepath.Identity(user, role=request.cookies.get('role'), reads=reads)

    def remember(self, response: Any, request: Any, identity: Any) -> None:
        """Do nothing."""

    def forget(self, response: Any, request: Any) -> None:
        """Do nothing."""


class Site(OrmCacheApp):
    """An application with properties of several kinds."""

    @orm_cached(policy=User)
    def users(self) -> Any:
        """The users' names."""
        return select(User.name).order_by(User.name)

    @orm_cached(policy=rows(User.id))
    def user_name(self, id: int) -> str | None:
        """A function of an argument."""
        name: str | None = self.session().scalar(select(User.name).where(User.id == id))
        return name

    @orm_cached(policy='auto')
    def lucky_user(self) -> Any:
        """Nobody's to store: the database returns another one each time."""
        return self.session().scalar(select(User.name).order_by(func.random()).limit(1))

    @orm_cached(policy=Document)
    def failing(self) -> int:
        """A creator that fails."""
        raise ZeroDivisionError('a secret of the tenant')

    @orm_cached(policy=User, vary=lambda app: 'a')
    def varying(self) -> int:
        """A property with variants."""
        return 1


class Bare(Site):
    """The site without a rule for the inspector."""


class Page:
    """The page at /."""


@Site.path(model=Page, path='')
def page() -> Page:
    return Page()


@Site.json(model=Page, cached=True)
def view_page(self: Page, request: Any) -> Any:
    return [name for name, in request.app.users]


@Site.json(model=Page, request_method='POST')
def add(self: Page, request: Any) -> Any:
    request.app.session().add(User(name=request.params['name']))


@Site.json(model=Page, name='read')
def read(self: Page, request: Any) -> Any:
    app = request.app
    return [len(app.users), app.user_name(1), app.lucky_user]


@Site.identity_policy()
def identity_policy() -> CookieIdentity:
    return CookieIdentity()


@Site.verify_identity()
def verify_identity(identity: Any) -> bool:
    return bool(identity.userid != 'stranger')


Site.mount(path='cache', app=Inspector)(Inspector)


class Redirecting(Site):
    """The site without a rule, which leads those who may not see a page to a login."""


@Redirecting.view(model=HTTPForbidden)
def to_login(self: HTTPForbidden, request: Any) -> Any:
    # the application's own app answers, and not the inspector
    assert isinstance(request.app, Redirecting)
    return morepath.redirect('/login')


class Granting(Site):
    """The site with rules: an operator sees all tenants, an admin his own, a clerk only looks."""


@Granting.permission_rule(model=AllTenants, permission=ViewCache)
@Granting.permission_rule(model=AllTenants, permission=ChangeCache)
def operators(app: Any, identity: Any, model: AllTenants, permission: Any) -> bool:
    assert not identity.reads or app.user_name(1)
    return bool(identity.role == 'operator')


@Granting.permission_rule(model=Tenant, permission=ViewCache)
def viewers(app: Any, identity: Any, model: Tenant, permission: Any) -> bool:
    return identity.role in ('admin', 'clerk') and model.name == app.schema


@Granting.permission_rule(model=Tenant, permission=ChangeCache)
def changers(app: Any, identity: Any, model: Tenant, permission: Any) -> bool:
    return bool(identity.role == 'admin' and model.name == app.schema)


class Visitor:
    """A browser of somebody, on the host of one tenant.

    :param app: the site's root app.
    :param tenant: whose host it visits.
    :param role: None: nobody is logged in.
    """

    def __init__(self, app: OrmCacheApp, tenant: str, role: str | None = None) -> None:
        schema: Callable[[Any], str] = lambda environ: environ['HTTP_HOST'].partition('.')[0]  # noqa: E731
        self.client = Client(
            OrmCacheMiddleware(app, schema=schema),
            extra_environ={'HTTP_HOST': f'{tenant}.localhost'},
        )
        self.tenant = tenant
        if role is not None:
            self.client.set_cookie('user', f'the-{role}')
            self.client.set_cookie('role', role)

    def get(self, path: str = '', **options: Any) -> Any:
        """Open a page of the inspector."""
        return self.client.get(CACHE + path, **options)

    def of(self, tenant: str, path: str = '', **options: Any) -> Any:
        """Open a page of the inspector about a tenant."""
        return self.get(f'/tenants/{tenant}{path}', **options)

    def evict(self, page: Any, **fields: str) -> Any:
        """Send the form that evicts, of a page that was opened; follow where it leads."""
        return self.send(page, '/evict', **fields).follow()

    def send(self, page: Any, action: str, **fields: str) -> Any:
        """Send the form of a page whose address has this part, and return the answer."""
        (form,) = (form for form in page.forms.values() if action in form.action)
        for name, value in fields.items():
            form[name] = value
        return form.submit(expect_errors=True)

    def send_raw(self, path: str, **options: Any) -> Any:
        """Send a request of any method and body."""
        headers = {'Host': f'{self.tenant}.localhost'}
        return self.client.request(CACHE + path, headers=headers, **options)

    def property(self, name: str, tenant: str | None = None, **options: Any) -> Any:
        """Open the page of a property of the site, by its short name."""
        return self.of(tenant or self.tenant, f'/property?name={WHERE}.{name}', **options)
