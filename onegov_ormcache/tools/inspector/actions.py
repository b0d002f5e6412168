"""What a form does: evicts, or computes anew, in a scope of the tenant that is meant.

It goes the way of any other change: a transaction whose commit evicts. This module does not know
who may do so.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from ...core.properties import Property
from ...core.scope import RequestScope
from ...errors import OrmCacheError
from .app import Inspector
from .models import Tenant

log = logging.getLogger(__name__)


class CreatorFailed(OrmCacheError):
    """The creator of a value that was to be computed anew has raised."""


@contextmanager
def committed(app: Inspector, tenant: Tenant) -> Iterator[RequestScope]:
    """Work in a scope of a tenant while a block runs, and commit then.

    A host that has transactions of its own commits its own, at the end of the request.
    """
    cache = app.inspected
    with app.root_app.request_scope(tenant.name, create=False) as scope:
        yield scope
        if cache.ambient is None:
            scope.session().commit()


def evict_all(app: Inspector, tenant: Tenant) -> None:
    """Evict all values of a tenant."""
    with committed(app, tenant):
        app.inspected.evict_all()


def evict(app: Inspector, tenant: Tenant, prop: Property) -> None:
    """Evict all values of a property: of all arguments, roles, variants and releases."""
    with committed(app, tenant):
        app.inspected.evict_tags((prop.value_tag,))


def refresh(app: Inspector, tenant: Tenant, prop: Property) -> None:
    """Evict a property, and compute its value, so that the next request finds it.

    :raises CreatorFailed: if that fails. Its values are evicted then.
    """
    evict(app, tenant, prop)
    # a transaction that evicts can not store: what it computes may be rolled back with it
    with app.root_app.request_scope(tenant.name, create=False):
        try:
            getattr(app.root_app, prop.name)
        except Exception as error:
            log.exception('%s could not be computed anew', prop.where)
            # its message may contain what this visitor must not see
            raise CreatorFailed(type(error).__qualname__) from error


def why_no_refresh(app: Inspector, prop: Property | None) -> str:
    """Return why a property can't be computed by a button, as a sentence; '' if it can."""
    if prop is None:
        return 'The application that answers this page has no such property any more.'
    if app.inspected.ambient is not None:
        return 'It is computed at its next read: this application commits after this page.'
    declared = prop.declaration
    if declared.is_response:
        return 'A page is made anew when somebody asks for it.'
    if prop.takes_arguments:
        return 'It takes arguments, so it has many values; each is computed at its next read.'
    if declared.varies:
        return 'It has a value for each role or variant; each is computed at its next read.'
    if getattr(type(app.root_app), prop.name, None) is not declared:
        return 'It belongs to requests or to a mounted application; these compute it.'
    return ''
