"""The inspector's application, and who may see it: nobody, unless the host says so.

An application mounts it where it likes, and grants its permissions by rules of its own:

.. code-block:: python

    App.mount(path='cache', app=Inspector)(Inspector)

    @App.permission_rule(model=Tenant, permission=ViewCache)
    def may_view(app, identity, model, permission):
        return identity.role == 'admin' and model.name == app.schema

This module does not know the pages: :mod:`.views` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from itertools import product
from typing import Any

import morepath
from dectate import Query
from reg import methodify

from ...core.scope import RequestScope, innermost_scope
from ...errors import ConfigurationError
from ...web.app import OrmCacheApp
from ...web.cache import AppCache
from .models import (
    AllTenants,
    Front,
    Servers,
    Stylesheet,
    Tags,
    Tenant,
    TenantPart,
    TenantProperty,
    ViewCache,
)

#: The identity for which rules are, that of nobody included.
ANYBODY: Any = object


class Inspector(morepath.App):
    """Pages that show the cache of the application in which this one is mounted.

    Morepath makes it for each request. Identity and permissions are those of the application
    that mounts it: its identity policy tells who asks, and its rules for :class:`.Tenant` and
    :class:`.AllTenants` say what they may see.
    """

    @property
    def host(self) -> morepath.App:
        """The application that mounts the inspector.

        :raises ConfigurationError: if none does.
        """
        if self.parent is None:
            raise ConfigurationError(
                'Inspector shows the cache of the application that it is mounted in: '
                "App.mount(path='cache', app=Inspector)(Inspector)"
            )
        return self.parent

    @property
    def root_app(self) -> OrmCacheApp:
        """The root app, which the cache belongs to.

        :raises ConfigurationError: if it has none.
        """
        root = self.host.root
        if not isinstance(root, OrmCacheApp):
            raise ConfigurationError(
                f'Inspector is mounted in {type(root).__qualname__}, which has no cache: derive '
                'it from OrmCacheApp'
            )
        return root

    @property
    def inspected(self) -> AppCache:
        """The cache that is shown."""
        return self.root_app.ensure_orm_cache()

    @property
    def present_scope(self) -> RequestScope | None:
        """The scope of this request; None if it is that of no tenant."""
        cache = self.inspected
        return cache.ambient.present() if cache.ambient is not None else innermost_scope(cache)

    @property
    def present_tenant(self) -> Tenant | None:
        """The tenant of this request; None if it is that of no tenant."""
        scope = self.present_scope
        return None if scope is None else Tenant(scope.schema)

    def permits(self, identity: Any, model: object, permission: type) -> bool:
        """Return whether the application grants a permission for a tenant or for all of them.

        A permission for all tenants is one for each.

        :param model: an :class:`.AllTenants`, or a :class:`.Tenant`.
        """
        with self.uncounted():
            return bool(
                self._grants(identity, AllTenants(), permission)
                or (isinstance(model, Tenant) and self._grants(identity, model, permission))
            )

    def _grants(self, identity: Any, model: object, permission: type) -> bool:
        """Return what the application's most specific rule says; False without any.

        Morepath's own lookup does not do: it takes a function with two rules for one with the
        rules for each model of the one and permission of the other, too.
        """
        for key in product(*(each.__mro__ for each in (type(identity), type(model), permission))):
            # a rule for everything does not know that there are other tenants
            if key in self._rules and key[1:] != (object, object):
                return bool(self._rules[key](self.host, identity, model, permission))
        return False

    @cached_property
    def _rules(self) -> Mapping[tuple[type, ...], Callable[..., Any]]:
        """The application's permission rules, by the classes of identity and model, and the
        permission."""
        declared: Any = Query('permission_rule')(type(self.host))
        return {
            (rule.identity, rule.model, rule.permission): methodify(function, selfname='app')
            for rule, function in declared
        }

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Count nothing that the application reads in a block, so that looking at the figures does
        not change them."""
        try:
            yield
        finally:
            # all that this scope reads is read for a page of the inspector
            if (scope := self.present_scope) is not None:
                scope.counts.clear()


@contextmanager
def as_host(request: Any) -> Iterator[Any]:
    """Let the application that mounts the inspector answer the request while a block runs."""
    inspector = request.app
    request.app = inspector.host
    try:
        with inspector.uncounted():
            yield request.app
    finally:
        request.app = inspector


# who asks, and what they may see


class HostIdentity(morepath.IdentityPolicy):
    """The identity policy of the application that mounts the inspector."""

    def identify(self, request: Any) -> Any:
        with as_host(request) as host:
            return host._identify(request)

    def remember(self, response: Any, request: Any, identity: Any) -> None:
        """Do nothing: nobody logs in here."""

    def forget(self, response: Any, request: Any) -> None:
        """Do nothing: nobody logs out here."""


@Inspector.identity_policy()
def identity_policy() -> HostIdentity:
    """Ask the host who sends a request."""
    return HostIdentity()


@Inspector.verify_identity()
def verify_identity(app: Inspector, identity: Any) -> bool:
    """Ask the host whether somebody is who they claim to be."""
    host: Any = app.host
    with app.uncounted():
        return bool(host._verify_identity(identity))


@Inspector.permission_rule(model=AllTenants, permission=object, identity=ANYBODY)
@Inspector.permission_rule(model=Tenant, permission=object, identity=ANYBODY)
def host_permits(app: Inspector, identity: Any, model: object, permission: type) -> bool:
    """Ask the host's rules about one tenant, or about all."""
    return app.permits(identity, model, permission)


@Inspector.permission_rule(model=TenantPart, permission=object, identity=ANYBODY)
def host_permits_tenant(
    app: Inspector, identity: Any, model: TenantPart, permission: type
) -> bool:
    """Ask the host's rules about the tenant that a page is about."""
    return app.permits(identity, model.tenant, permission)


@Inspector.permission_rule(model=Servers, permission=object, identity=ANYBODY)
def host_permits_all(app: Inspector, identity: Any, model: Servers, permission: type) -> bool:
    """Show the servers to those who may see all tenants."""
    return app.permits(identity, AllTenants(), permission)


@Inspector.permission_rule(model=Front, permission=ViewCache, identity=ANYBODY)
def host_permits_any(app: Inspector, identity: Any, model: Front, permission: type) -> bool:
    """Show the front page to those who may see all tenants, or that of the request."""
    return app.permits(identity, app.present_tenant or AllTenants(), permission)


# where things are


@Inspector.path(model=Front, path='')
def front() -> Front:
    """The list of tenants."""
    return Front()


@Inspector.path(model=Servers, path='servers')
def servers() -> Servers:
    """The page on Redis, the database and the outboxes."""
    return Servers()


@Inspector.path(model=Stylesheet, path='style.css')
def stylesheet() -> Stylesheet:
    """The style sheet of all pages."""
    return Stylesheet()


@Inspector.path(model=Tenant, path='tenants/{tenant}', variables=lambda m: named(m))
def one_tenant(tenant: str) -> Tenant:
    """A tenant. Whether there is one is asked when it is shown, to those who may know."""
    return Tenant(tenant)


@Inspector.path(model=Tags, path='tenants/{tenant}/tags', variables=lambda m: named(m.tenant))
def tags(tenant: str) -> Tags:
    """The tags of a tenant."""
    return Tags(Tenant(tenant))


@Inspector.path(
    model=TenantProperty,
    path='tenants/{tenant}/property',
    variables=lambda m: {**named(m.tenant), 'name': m.name},
)
def tenant_property(tenant: str, name: str = '') -> TenantProperty:
    """A property of a tenant, which the query of the address names."""
    return TenantProperty(Tenant(tenant), name)


def named(tenant: Tenant) -> dict[str, str]:
    """Return a tenant as the variable of a path."""
    return {'tenant': tenant.name}
