"""Measures what the middleware and the tween add to the cost of a Morepath request."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import morepath
from webob import Request

from onegov_ormcache import OrmCacheApp, OrmCacheMiddleware, orm_cached
from tests.support.counting import RedisCommands, sql_statements

from .contestants import POLICY
from .context import Context
from .measuring import Measure, interleaved, per_call
from .results import CaseResult, Column, Plot
from .schema import Base, items_of


class Root:
    """The model at /."""


class Bare(morepath.App):
    """A Morepath app without this package; its view returns a constant."""


Bare.path(path='')(Root)


@Bare.view(model=Root)
def bare_view(self: Root, request: Any) -> str:
    return 'constant'


class Tweened(OrmCacheApp):
    """The same with the package's tween, and with two more views.

    One of them reads a cached property, the other one reads the same from the database.
    """

    @orm_cached(policy=POLICY)
    def items(self) -> Any:
        return self.session().execute(items_of(0)).all()


Tweened.path(path='')(Root)


@Tweened.view(model=Root)
def view(self: Root, request: Any) -> str:
    return 'constant'


@Tweened.view(model=Root, name='property')
def view_property(self: Root, request: Any) -> str:
    return str(len(request.app.items))


@Tweened.view(model=Root, name='database')
def view_database(self: Root, request: Any) -> str:
    return str(len(request.app.session().execute(items_of(0)).all()))


def run(context: Context) -> CaseResult:
    result = CaseResult(
        'morepath',
        'A bare Morepath request',
        'A WSGI application called directly, whose view returns a constant; then the same '
        'with the tween, with tween and middleware, and with one cached property read.',
        (
            Column('seconds', 'time', 'seconds'),
            Column('added', 'added to bare', 'seconds'),
            Column('redis', 'Redis commands', 'count'),
            Column('sql', 'SQL statements', 'count'),
        ),
        Plot('seconds', log=False),
    )
    with context.schema() as schema, ExitStack() as stack:
        servers = {'dsn': context.dsn, 'redis_url': context.redis_url, 'namespace': schema}
        Tweened.setting_section(section='orm_cache')(lambda: {'base': Base, **servers})
        Bare.commit()
        app = Tweened()
        stack.callback(app.close_orm_cache)
        application = OrmCacheMiddleware(app, schema=schema)
        served: dict[str, Callable[[], bytes]] = {
            'bare Morepath': requester(Bare(), '/'),
            'with the tween': requester(app, '/'),
            'tween and middleware': requester(application, '/'),
            'and one cached property': requester(application, '/property'),
            'the same from the database': requester(application, '/database'),
        }

        def measure(request: Callable[[], bytes]) -> Measure:
            return lambda: per_call(request, context.sizes.bare_requests)

        timings = interleaved({n: measure(r) for n, r in served.items()}, context.sizes.rounds)
        bare = timings['bare Morepath'].median
        for name, request in served.items():
            with RedisCommands(context.redis_url) as redis, sql_statements() as sql:
                request()
            result.add(
                'one request', name, seconds=timings[name], added=timings[name].median - bare,
                redis=redis.count, sql=sql.count,
            )  # fmt: skip
    return result


def requester(application: Any, path: str) -> Callable[[], bytes]:
    """Return a function that makes one request; any other status than 200 is an error."""
    request = Request.blank(path)

    def ask() -> bytes:
        status, _, body = request.copy().call_application(application)
        if status != '200 OK':
            raise RuntimeError(f'{path}: {status}')
        try:
            return b''.join(body)
        finally:
            if hasattr(body, 'close'):
                body.close()

    return ask
