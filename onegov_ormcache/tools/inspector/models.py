"""What the inspector shows, and the permissions that an application grants for it.

An application is asked about :class:`AllTenants` and :class:`Tenant` alone. What belongs to a
tenant is seen by those who see the tenant.
"""

from __future__ import annotations

from dataclasses import dataclass


class ViewCache:
    """The permission to look at the figures of a tenant's cache, and at the names of its
    properties and tables. No values are shown."""


# no subclass of the above: Morepath would take a rule for that one as a rule for this one
class ChangeCache:
    """The permission to evict a tenant's values and to compute them anew."""


@dataclass(frozen=True)
class AllTenants:
    """All tenants of the application, and the servers that they share.

    A permission for it is one for each tenant.
    """


@dataclass(frozen=True)
class Tenant:
    """One tenant.

    :param name: the schema. There may be no tenant of this name: an application that grants by
        name alone does not tell which ones there are.
    """

    name: str


@dataclass(frozen=True)
class TenantPart:
    """Something that belongs to a tenant; the base class of what its pages show."""

    tenant: Tenant


@dataclass(frozen=True)
class Tags(TenantPart):
    """A tenant's tags: what has changed, and what is in doubt."""


@dataclass(frozen=True)
class TenantProperty(TenantPart):
    """A property of a tenant.

    :param name: the property's :attr:`~onegov_ormcache.core.properties.Property.where`.
    """

    name: str


@dataclass(frozen=True)
class Front:
    """The first page: the tenants that a visitor may see."""


@dataclass(frozen=True)
class Servers:
    """Redis and the database, and what an outage has left to do."""


@dataclass(frozen=True)
class Stylesheet:
    """The style of all pages, which says nothing of anybody."""
