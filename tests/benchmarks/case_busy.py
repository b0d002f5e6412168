"""Readers of a table that changes all the time: how long the slowest of them waits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from time import perf_counter, sleep
from typing import Any

from onegov_ormcache import OrmCacheApp, orm_cached

from .contestants import POLICY
from .context import Context
from .measuring import Timing, interleaved
from .results import CaseResult, Column, Plot
from .schema import Base, Item, items_of

READERS = 12
#: How long the creator takes.
SECONDS = 0.1
#: From one commit to the next.
PAUSE = 0.03
#: The requests of each reader in one round.
REQUESTS = 5


class Busy(OrmCacheApp):
    """Its properties all take :data:`SECONDS`."""

    def slow_items(self) -> Any:
        rows = self.session().execute(items_of(0)).all()
        sleep(SECONDS)
        return rows

    named = orm_cached(policy=POLICY)(slow_items)
    auto = orm_cached(policy='auto')(slow_items)


READS: dict[str, Callable[[Busy], Any]] = {
    'onegov_ormcache': lambda app: app.named,
    'onegov_ormcache, auto': lambda app: app.auto,
    'no cache': Busy.slow_items,
}


def run(context: Context) -> CaseResult:
    result = CaseResult(
        'busy',
        'A busy table',
        f'{READERS} threads read a value whose creator takes {SECONDS * 1000:.0f} ms, in '
        f'requests that follow one another, while a commit changes its table every '
        f'{PAUSE * 1000:.0f} ms, or never. The slowest request is that of each round, the ratio '
        'is to the time of the creator.',
        (
            Column('slowest', 'slowest request', 'seconds'),
            Column('ratio', 'to the creator', 'ratio'),
            Column('median', 'median request', 'seconds'),
        ),
        Plot('slowest', log=False),
    )
    with context.schema() as schema, application(context, schema) as app:
        for setting, writing in (('a commit every 30 ms', True), ('no commits', False)):
            race(context, result, app, schema, setting, writing)
    return result


def race(
    context: Context, result: CaseResult, app: Busy, schema: str, setting: str, writing: bool
) -> None:
    medians: dict[str, list[float]] = {name: [] for name in READS}

    def slowest(name: str) -> float:
        with commits(app, schema, writing):
            times = requests(app, schema, READS[name])
        medians[name].append(Timing(times).median)
        return max(times)

    timings = interleaved(
        {name: lambda name=name: slowest(name) for name in READS},  # type: ignore[misc]
        context.sizes.slow_rounds,
    )
    for name, timing in timings.items():
        median = Timing(tuple(medians[name]))
        result.add(
            setting, name, slowest=timing, ratio=timing.median / SECONDS, median=median
        )


def requests(app: Busy, schema: str, read: Callable[[Busy], Any]) -> tuple[float, ...]:
    """Return the seconds of each request of all readers."""
    begin = threading.Barrier(READERS)

    def reader(number: int) -> list[float]:
        begin.wait()
        times = []
        for _ in range(REQUESTS):
            start = perf_counter()
            with app.request_scope(schema):
                read(app)
            times.append(perf_counter() - start)
        return times

    with ThreadPoolExecutor(READERS) as pool:
        return tuple(seconds for times in pool.map(reader, range(READERS)) for seconds in times)


@contextmanager
def commits(app: Busy, schema: str, writing: bool) -> Iterator[None]:
    """Change the table every :data:`PAUSE` seconds while the block runs, if `writing`."""
    over = threading.Event()

    def write() -> None:
        while writing and not over.wait(PAUSE):
            with app.request_scope(schema) as scope:
                item = scope.session().get_one(Item, 0)
                item.value += 1
                scope.session().commit()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        over.set()
        writer.join()


@contextmanager
def application(context: Context, schema: str) -> Iterator[Busy]:
    """Make the application, with a database connection for each thread."""

    class Configured(Busy):
        """The class of this run alone, because settings belong to a class."""

    settings = {
        'base': Base,
        'dsn': context.dsn,
        'redis_url': context.redis_url,
        'namespace': schema,
        'engine_options': {'pool_size': READERS + 1},
    }
    Configured.setting_section(section='orm_cache')(lambda: settings)
    app = Configured()
    app.setup_orm_cache()
    try:
        yield app
    finally:
        app.close_orm_cache()
