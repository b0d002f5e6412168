"""The town hall with an inspector, as it looks after a day: for pictures and for tests."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from webtest import TestApp as Client

from onegov_ormcache import OrmCacheMiddleware
from onegov_ormcache.redis_client.client import hash_tag
from onegov_ormcache.statistics.fields import SEPARATOR
from onegov_ormcache.statistics.redis import KEY
from onegov_ormcache.statistics.stores import HOUR, HOURS
from onegov_ormcache.tiers.shared import RedisTier
from onegov_ormcache.tools.inspector import (
    AllTenants,
    ChangeCache,
    Inspector,
    Tenant,
    ViewCache,
)
from onegov_ormcache.tools.townhall import Town, load
from onegov_ormcache.tools.townhall.app import PageContent
from onegov_ormcache.tools.townhall.models import Base

#: Who is who in the town hall, see ``onegov_ormcache/tools/townhall``.
OPERATOR, READER = {'X-User': 'admin'}, {'X-User': 'editor'}

#: What visitors look at: paths and users; None is anonymous.
VIEWS = (
    ('/', None), ('/', 'admin'), ('/tree', None), ('/tree', 'admin'), ('/pages/1', None),
    ('/search?words=y', None), ('/users', None), ('/tickets', None), ('/tickets/mine', 'editor'),
    ('/documents', None), ('/documents', 'admin'), ('/wiki', None),
)  # fmt: skip

#: The counters that grow with hits, and with misses.
OF_HITS = 'hits', 'request_hits', 'process_hits', 'shared_hits'
OF_MISSES = 'misses', 'runs', 'run_seconds', 'stored', 'stored_bytes'

#: A property that many changes evict.
PROPERTY = f'{Town.__module__}.{Town.__qualname__}.departments'


class InspectedTown(Town):
    """The town hall, whose admins operate it all, and whose editors look at their own tenant."""


InspectedTown.mount(path='cache', app=Inspector)(Inspector)


@InspectedTown.permission_rule(model=AllTenants, permission=ViewCache)
@InspectedTown.permission_rule(model=AllTenants, permission=ChangeCache)
def may_operate(identity: Any, model: AllTenants, permission: Any) -> bool:
    return bool(identity.role == 'admin')


@InspectedTown.permission_rule(model=Tenant, permission=ViewCache)
def may_look(app: Any, identity: Any, model: Tenant, permission: Any) -> bool:
    return bool(identity.role == 'editor' and model.name == app.schema)


def make_town(settings: Mapping[str, Any], tenants: list[str]) -> OrmCacheMiddleware:
    """Return the town hall, with the data of countries; all requests are those of the first.

    :param settings: the settings of the section ``orm_cache``, without those of the town hall.
    :param tenants: names that end with the ISO codes of countries.
    """
    # a class of this application alone, because settings belong to a class
    name = {'__module__': Town.__module__, '__qualname__': Town.__qualname__}
    app_class: Any = type(InspectedTown)('Town', (InspectedTown,), name)  # type: ignore[misc]
    chosen = {'base': Base, 'types': (PageContent,), **settings}
    app_class.setting_section(section='orm_cache')(lambda: chosen)
    application = OrmCacheMiddleware(app_class(), schema=tenants[0])
    for tenant in tenants:
        load(application.app, tenant)
    return application


def visit(application: OrmCacheMiddleware, tenants: list[str], times: int) -> None:
    """Visit each tenant's pages, and change something in between."""
    for at, tenant in enumerate(tenants):
        client = Client(OrmCacheMiddleware(application.app, schema=tenant))
        for number in range(max(2, times // (at + 1))):
            for path, user in VIEWS:
                client.get(path, headers={'X-User': user} if user else {})
            if number % 4 == 3:
                client.post('/users/3/rename', {'name': f'Name {number}'}, headers=OPERATOR)
                client.post('/tickets', {'title': 'New', 'handler': '3'}, headers=OPERATOR)
    application.app.orm_cache.statistics.flush()


def age(application: OrmCacheMiddleware, tenants: list[str]) -> None:
    """Tell Redis that the hours before were like the present one, with fewer visits at night."""
    cache = application.app.orm_cache
    tier = cache.shared_tier
    assert isinstance(tier, RedisTier)
    client: Any = tier.client
    hour = int(client.time()[0]) // HOUR
    for tenant in tenants:
        key = hash_tag(cache.settings.namespace, tenant) + KEY
        present = client.hgetall(f'{key}:{hour}') or client.hgetall(f'{key}:{hour - 1}')
        for ago in range(HOURS):
            factors = _factors(hour, ago)
            fields = {name: _scaled(value, name, *factors) for name, value in present.items()}
            client.hset(f'{key}:{hour - ago}', mapping=fields)
        factors_of_hours = [_factors(hour, ago) for ago in range(HOURS)]
        day = [sum(each) for each in zip(*factors_of_hours, strict=True)]
        sums = {
            name: _scaled(value, name, *day) for name, value in client.hgetall(key).items()
            if name.decode().split(SEPARATOR)[1] in (*OF_HITS, *OF_MISSES)
        }  # fmt: skip
        client.hset(key, mapping=sums)


def _factors(hour: int, ago: int) -> tuple[float, float]:
    """Return how many times as many hits and misses an hour has as the present one."""
    day = 0.5 - 0.48 * math.cos((hour - ago - 3) % 24 / 24 * 2 * math.pi)
    factor = day * (0.4 if ago == 0 else 1) * (1 + 0.25 * math.sin(ago * 2.1))
    # misses come with changes, of which there are few at night, and many in one hour of a release
    return factor, factor * (3 if ago == 7 else 1)


def _scaled(value: bytes, field: bytes, hits: float, misses: float) -> str:
    counter = field.decode().split(SEPARATOR)[1]
    scaled = float(value) * (hits if counter in OF_HITS else misses)
    return repr(scaled if counter == 'run_seconds' else round(scaled))
