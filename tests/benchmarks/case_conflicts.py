"""Posts that all change one row at the same time: how many attempts they need."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any

from webtest import TestApp as Client

from onegov_ormcache import OrmCacheApp, OrmCacheMiddleware, orm_cached

from .contestants import POLICY
from .context import Context
from .measuring import Timing
from .results import CaseResult, Column
from .schema import Base, Item, items_of

POSTS = 40
LEVELS = ('READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE')
#: Attempts that no post needs.
ENOUGH = 1000
#: Numbers of attempts for which the failures are counted.
ATTEMPTS = (3, 5, 10, 20)


class Root:
    """The model at /."""


class HotRow(OrmCacheApp):
    """Counts in one row, and shows the row through a cached property."""

    #: The number of attempts of the request that a thread makes.
    attempts = threading.local()

    @orm_cached(policy=POLICY)
    def items(self) -> Any:
        return self.session().execute(items_of(0)).all()


HotRow.path(path='')(Root)


@HotRow.json(model=Root, request_method='POST')
def count(self: Root, request: Any) -> int:
    request.app.attempts.number += 1
    shown = len(request.app.items)
    request.app.session().get_one(Item, 0).value += 1
    return shown


def run(context: Context) -> CaseResult:
    result = CaseResult(
        'conflicts',
        'Posts on one row',
        f'{POSTS} posts at the same moment, each of which reads a cached value of a table and '
        'changes one row of it. A post is made again until it has succeeded; the failures are '
        f'those of {POSTS * context.sizes.slow_rounds} posts that would have been given up after '
        'so many attempts.',
        (
            *(Column(f'after_{n}', f'failures after {n}', 'count') for n in ATTEMPTS),
            Column('most', 'most attempts', 'count'),
            Column('seconds', 'until all have succeeded', 'seconds'),
        ),
    )
    for level in LEVELS:
        needed: Counter[int] = Counter()
        seconds = []
        for _ in range(context.sizes.slow_rounds):
            attempts, taken = posts(context, level)
            needed.update(attempts)
            seconds.append(taken)
        failures = {
            f'after_{n}': sum(times for number, times in needed.items() if number > n)
            for n in ATTEMPTS
        }
        result.add(
            level, 'onegov_ormcache', most=max(needed), seconds=Timing(tuple(seconds)), **failures
        )
    return result


def posts(context: Context, level: str) -> tuple[list[int], float]:
    """Make all posts at once; return the attempts of each, and the seconds until all are done."""

    class Configured(HotRow):
        """The class of this run alone, because settings belong to a class."""

    begin = threading.Barrier(POSTS + 1)
    with context.schema() as schema, ThreadPoolExecutor(POSTS) as pool:
        settings = {
            'base': Base,
            'dsn': context.dsn,
            'redis_url': context.redis_url,
            'namespace': schema,
            'attempts': ENOUGH,
            'engine_options': {'isolation_level': level, 'pool_size': POSTS},
        }
        Configured.setting_section(section='orm_cache')(lambda: settings)
        application = OrmCacheMiddleware(Configured(), schema=schema)

        def post() -> int:
            Configured.attempts.number = 0
            begin.wait()
            Client(application).post('/')
            return int(Configured.attempts.number)

        made = [pool.submit(post) for _ in range(POSTS)]
        begin.wait()
        start = perf_counter()
        attempts = [post.result() for post in made]
        seconds = perf_counter() - start
        application.app.close_orm_cache()
    return attempts, seconds
