"""The town hall's requests per second, with a part of writes."""

from __future__ import annotations

from contextlib import ExitStack

from fixtures import townhall
from fixtures.townhall.models import Base
from onegov_ormcache import OrmCacheApp
from tests.support.servers import drop_schemas

from . import load
from .context import Context
from .measuring import Timing, interleaved
from .results import CaseResult, Column, Plot
from .serving import commands, served

COUNTRY = 'de'
WRITES = (0.0, 0.01, 0.1)
CACHES = {'onegov_ormcache': 'yes', 'no cache': 'no'}


def run(context: Context) -> CaseResult:
    result = CaseResult(
        'http',
        'Requests per second',
        'The town hall of a country with 1,100 cities behind real WSGI servers, asked by four '
        'threads for five pages in turn; writes open tickets. Without the cache it is the '
        'same application without Redis.',
        (
            Column('rate', 'requests per second', 'rate'),
            Column('ratio', 'to no cache', 'ratio'),
            Column('latency', 'median latency', 'seconds'),
        ),
        Plot('rate', log=False),
    )
    tenant = f'{context.name()}_{COUNTRY}'
    environment = {
        'TOWNHALL_DSN': context.dsn,
        'TOWNHALL_REDIS_URL': context.redis_url,
        'TOWNHALL_NAMESPACE': tenant,
        'BENCHMARK_TENANT': tenant,
    }
    fill(context, tenant)
    try:
        for server in commands(0):
            with ExitStack() as stack:
                ports = {
                    name: stack.enter_context(
                        served(server, {**environment, 'BENCHMARK_CACHE': cache})
                    )
                    for name, cache in CACHES.items()
                }
                for writes in WRITES:
                    race(context, result, server, ports, writes)
    finally:
        drop_schemas(context.dsn, tenant)
    return result


def race(
    context: Context, result: CaseResult, server: str, ports: dict[str, int], writes: float
) -> None:
    latencies: dict[str, list[float]] = {name: [] for name in ports}
    failures: dict[str, list[str]] = {name: [] for name in ports}

    def ask(name: str) -> float:
        seen = load.run(ports[name], context.sizes.http_requests, writes)
        latencies[name].append(seen.latencies.median)
        failures[name].extend(seen.failures)
        return seen.seconds / max(1, seen.answers)

    timings = interleaved(
        {name: lambda name=name: ask(name) for name in ports},  # type: ignore[misc]
        context.sizes.http_rounds,
    )
    base = timings['no cache']
    for name, timing in timings.items():
        failed = failures[name]
        result.add(
            f'{server}, {writes:.0%} writes', name,
            rate=1 / timing.median,
            # of rates: more is better
            ratio=base.ratio(timing),
            latency=Timing(tuple(latencies[name])),
            note=f'{len(failed)} failures, {failed[0]}' if failed else '',
        )  # fmt: skip


def fill(context: Context, tenant: str) -> None:
    """Load the country, by an application that is closed again."""

    class Loader(OrmCacheApp):
        """Only its sessions are used."""

    settings = {
        'base': Base,
        'dsn': context.dsn,
        'redis_url': context.redis_url,
        'namespace': tenant,
    }
    Loader.setting_section(section='orm_cache')(lambda: settings)
    app = Loader()
    townhall.load(app, tenant)
    app.close_orm_cache()
