"""Measures accesses within one request, in the interpreter that runs it.

Its argument is JSON, so is its output: the samples of each contestant. Contestants that
need servers take part if it is told where those are.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from contextvars import ContextVar
from functools import cached_property
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import create_engine, text

from onegov_ormcache import OrmCacheApp, orm_cached, request_cached

from .measuring import Measure, interleaved, per_call
from .schema import Base, Item


class Identity:
    """The user."""

    role = 'editor'


#: What the least descriptor reads that gives each request a value of its own.
VALUES: ContextVar[dict[str, int]] = ContextVar('values')
VALUES.set({'constant': 1})


class FromContext:
    """A descriptor that returns a context variable's dictionary item, and does no more."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type) -> int:
        return VALUES.get()[self.name]


class App(OrmCacheApp):
    """A constant, by every kind of property."""

    identity = Identity()

    @property
    def plain(self) -> int:
        return 1

    @cached_property
    def functools(self) -> int:
        return 1

    from_context = FromContext('constant')

    @orm_cached(policy=Item)
    def cached(self) -> int:
        return 1

    @orm_cached(policy=Item, by_role=True)
    def cached_by_role(self) -> int:
        return 1

    @orm_cached(policy=Item)
    def with_argument(self, id: int) -> int:
        return id

    @orm_cached(policy=Item)
    def with_arguments(self, id: int, name: str) -> int:
        return id

    @request_cached
    def of_request(self) -> int:
        return 1


#: By the name in tables, the access as it is written after the app and a point.
NAMES = {
    'plain property': 'plain',
    'functools.cached_property': 'functools',
    'context variable': 'from_context',
    'request_cached': 'of_request',
    'orm_cached': 'cached',
    'orm_cached, by role': 'cached_by_role',
    'orm_cached, an argument': 'with_argument(3)',
    'orm_cached, two arguments': "with_arguments(3, 'a')",
}


def accesses(instance: Any, name: str, repeat: int) -> Measure:
    """A loop written out for the name: a call per access would cost more than the access."""
    body = '\n        '.join([f'x.{name}'] * 10)
    code = f"""
def loop(x, times, clock):
    start = clock()
    for _ in range(times):
        {body}
    return (clock() - start) / (times * 10)
"""
    names: dict[str, Any] = {}
    exec(code, names)
    from time import perf_counter

    return lambda: float(names['loop'](instance, repeat // 10, perf_counter))


def with_servers(settings: dict[str, Any], stack: ExitStack) -> dict[str, Measure]:
    """The contestants that have Redis or a database connection on the way to a hit."""
    from uuid import uuid4

    from .baseline_seed import Seed, SeedProperty
    from .contestants import region_of

    schema = f'bench_{uuid4().hex[:8]}'
    seed: Any = Seed(settings['dsn'], settings['redis_url'], schema)
    stack.callback(seed.close)
    type(seed).constant = SeedProperty('constant', 'items', lambda app: 1)
    type(seed).by_role = SeedProperty('by_role', 'items', lambda app: 1, by_role=True)
    seed.identity = Identity()
    region = region_of(settings['redis_url'])
    repeat = settings['accesses']
    few = max(100, repeat // 1000)
    engine = create_engine(settings['dsn'])
    connection = stack.enter_context(engine.connect())
    key = f'{schema}:constant'
    query = text('SELECT 1')
    slow: dict[str, Callable[[], object]] = {
        'dogpile.cache': lambda: region.get_or_create(key, lambda: 1),
        'no cache (SELECT 1)': lambda: connection.execute(query).scalar(),
    }
    stack.callback(engine.dispose)
    return {
        'seed design': accesses(seed, 'constant', max(1000, repeat // 10)),
        'seed design, by role': accesses(seed, 'by_role', max(1000, repeat // 10)),
        **{name: (lambda do=do: per_call(do, few)) for name, do in slow.items()},  # type: ignore[misc]
    }


def main() -> None:
    settings = json.loads(sys.argv[1])
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory())
        App.setting_section(section='orm_cache')(
            lambda: {'base': Base, 'dsn': f'sqlite:///{folder}'}
        )
        app = App()
        app.setup_orm_cache()
        stack.callback(app.close_orm_cache)
        stack.enter_context(app.request_scope('main'))
        # as in a request that has used its session
        app.session().execute(text('SELECT 1'))
        repeat = settings['accesses']
        contestants = {label: accesses(app, name, repeat) for label, name in NAMES.items()}
        if 'dsn' in settings:
            contestants |= with_servers(settings, stack)
        timings = interleaved(contestants, settings['rounds'])
        print(json.dumps({name: timing.samples for name, timing in timings.items()}))


if __name__ == '__main__':
    main()
