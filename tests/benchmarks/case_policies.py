"""Flush and commit of many objects, by the kind of policy that is asked about them."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from onegov_ormcache import OrmCacheApp, orm_cached, rows

from .contestants import POLICY, Contestant, OrmCache, Plain
from .context import Context
from .measuring import Measure, interleaved
from .results import CaseResult, Column, Plot
from .schema import Base, Item

OBJECTS = (1, 100, 1000)


def is_large(item: Item) -> bool:
    return item.value > 1_000_000


#: By the name of the contestant. The categories of all items are of no more buckets than one
#: transaction may change; the ids of 1,000 items are of more, so all rows count as changed.
POLICIES: dict[str, Any] = {
    'a table': POLICY,
    'a function': is_large,
    'rows, primary key': rows(Item.id, argument='key'),
    'rows, other column': rows(Item.category, argument='key'),
    'rows, both': [rows(Item.id, argument='key'), rows(Item.category, argument='key')],
}


def policy_app(policy: Any, dsn: str, redis_url: str, namespace: str) -> Any:
    """Return an application with one property, a function of ``key``, that has this policy."""

    class App(OrmCacheApp):
        @orm_cached(policy=policy)
        def shown(self, key: int) -> int:
            return key

    settings = {'dsn': dsn, 'redis_url': redis_url, 'namespace': namespace, 'base': Base}
    App.setting_section(section='orm_cache')(lambda: settings)
    app = App()
    app.setup_orm_cache()
    return app


class WithPolicy(OrmCache):
    """This package, with one property that has a policy; it can only change objects."""

    def __init__(self, name: str, dsn: str, redis_url: str, schema: str) -> None:
        self.name = name
        self.schema = schema
        self.app = policy_app(POLICIES[name], dsn, redis_url, schema)


def run(context: Context) -> CaseResult:
    result = CaseResult(
        'policies',
        'Flush and commit, by kind of policy',
        'A transaction changes so many objects of a table on which one property depends, by a '
        'policy of this kind. The time is that of flush and commit.',
        (
            Column('seconds', 'time', 'seconds'),
            Column('ratio', 'to no cache', 'ratio'),
            Column('table', 'to a table', 'ratio'),
            Column('redis', 'Redis commands', 'count'),
        ),
        Plot('ratio', log=False),
    )
    with ExitStack() as stack:
        contestants: dict[str, Contestant] = {}
        for name in ('no cache', *POLICIES):
            schema = stack.enter_context(context.schema())
            contestant: Any = (
                WithPolicy(name, context.dsn, context.redis_url, schema)
                if name in POLICIES
                else Plain(context.dsn, schema)
            )
            stack.callback(contestant.close)
            contestants[name] = contestant

        def measure(contestant: Contestant, objects: int) -> Measure:
            return lambda: contestant.change(objects)

        for objects in OBJECTS:
            timings = interleaved(
                {name: measure(c, objects) for name, c in contestants.items()},
                context.sizes.flush_rounds,
            )
            for name, contestant in contestants.items():
                result.add(
                    f'{objects:,} {"object" if objects == 1 else "objects"}',
                    name,
                    seconds=timings[name],
                    ratio=timings[name].ratio(timings['no cache']),
                    table=timings[name].ratio(timings['a table']),
                    redis=context.cost(contestant, 'change', objects=objects).redis,
                )
    return result
