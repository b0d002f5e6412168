"""An application with one cached view, and the identities and models that the tests use."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import morepath
from sqlalchemy import select
from webtest import TestApp as Client

from onegov_ormcache import OrmCacheApp, OrmCacheMiddleware, orm_cached
from tests.support.applications import Applications, change
from tests.support.counting import Runs
from tests.support.models import User

View = Callable[[Any, Any], Any]

RELEASES = itertools.count()


class Root:
    """The model at /."""


class Named:
    """The model at /named/NAME, made of a row."""

    def __init__(self, user: User) -> None:
        self.user = user


class Policy(morepath.IdentityPolicy):
    """Identifies a user by the headers X-User and X-Role, by an identity of any class."""

    def __init__(self, make: Any = morepath.Identity) -> None:
        self.make = make

    def identify(self, request: Any) -> Any:
        login = request.headers.get('X-User')
        if login is None:
            return morepath.NO_IDENTITY
        return self.make(login, role=request.headers.get('X-Role'))

    def remember(self, response: Any, request: Any, identity: Any) -> None:
        """Do nothing: each request names its user."""

    def forget(self, response: Any, request: Any) -> None:
        """Do nothing."""


class See:
    """The permission to see."""


class App(OrmCacheApp):
    """Has identities, and properties that differ by them."""

    @orm_cached(policy=User)
    def names(self) -> Any:
        return self.session().query(User.name).order_by(User.name)


@App.orm_cached(policy=User, by_role=True, target='request')
def by_role(request: Any) -> str:
    count = len(request.app.session().execute(select(User)).all())
    return f'{getattr(request.identity, "role", "")}{count}'


@App.identity_policy()
def identity_policy() -> Policy:
    return Policy()


@App.verify_identity()
def verify_identity(identity: Any) -> bool:
    return identity.userid != 'unverified'


@App.permission_rule(model=object, permission=See)
def may_see(identity: Any, model: object, permission: type[See]) -> bool:
    return bool(identity.role == 'editor')


App.path(path='')(Root)


@App.path(path='named/{name}', model=Named)
def get_named(app: Any, name: str) -> Any:
    user = app.session().scalar(select(User).where(User.name == name))
    return None if user is None else Named(user)


def names_of(request: Any) -> str:
    """Return the names of all users."""
    return ','.join(row.name for row in request.app.names)


class Site:
    """An application with one cached view at /, and its client."""

    def __init__(
        self, applications: Applications, tenant: str, view: View, options: Any = True,
        settings: Any = None, **directive: Any,
    ) -> None:  # fmt: skip
        self.runs = Runs()

        class Own(App):
            pass

        def counted(self_: Any, request: Any) -> Any:
            self.runs('view')
            return view(self_, request)

        Own.view(model=Root, cached=options, **directive)(counted)
        self.applications = applications
        own = {'release': f'{next(RELEASES)}', **(settings or {})}
        self.app_class = applications.configure(Own, **own)
        self.tenant = tenant
        self.app, self.client = self.process()

    def process(self) -> tuple[Any, Client]:
        """Return an app of a process of its own, and its client."""
        app = self.applications.again(self.app_class)
        return app, Client(OrmCacheMiddleware(app, schema=self.tenant))

    def get(self, url: str = '/', status: Any = 200, **headers: Any) -> Any:
        named = {name.replace('_', '-'): value for name, value in headers.items()}
        return self.client.get(url, headers=named, status=status)

    def add(self, *names: str) -> None:
        change(self.app, self.tenant, *(User(name=name) for name in names))

    @property
    def view_runs(self) -> int:
        return self.runs.count('view')


def show_names(self: Root, request: Any) -> str:
    return names_of(request)
