"""Measures how long it takes to find out from each statement which tables it changes and reads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

from sqlalchemy import select, text

from onegov_ormcache.database.protocols import Statement

from .contestants import OrmCache
from .context import Context
from .measuring import interleaved
from .results import CaseResult, Column, Plot
from .schema import Item

OBJECTS = 1000
#: The number of cached values that a request with texts reads.
VALUES = 5

NOTHING = Statement()
CHANGE = Statement(writes=frozenset({'items'}))


def run(context: Context) -> CaseResult:
    result = CaseResult(
        'detection',
        'Detection of changes',
        f'The flush of {OBJECTS:,} changed objects, and requests with textual statements, with '
        'the witnesses, and with a constant in place of them that asks the database nothing. The '
        'bound for the flush is 1.03.',
        (Column('seconds', 'time', 'seconds'), Column('ratio', 'to off', 'ratio')),
        Plot('seconds', log=False),
    )
    with context.schema() as schema:
        contestant = OrmCache(context.dsn, context.redis_url, schema)
        works: dict[str, Callable[[], float]] = {
            f'{OBJECTS:,} objects, in one statement': partial(flush, contestant, False),
            f'{OBJECTS:,} objects, each in a statement of its own': partial(
                flush, contestant, True
            ),
            f'a text that changes, {VALUES} values, a commit': partial(textual_change, contestant),
            f'a text that reads and a value, {VALUES} times': partial(textual_reads, contestant),
        }
        for setting, work in works.items():
            # the noise is larger than the difference that is measured: more rounds are needed
            timings = interleaved(
                {'off': partial(without_witnesses, contestant, work), 'on': work},
                context.sizes.rounds * 4,
            )
            for name, timing in timings.items():
                ratio = timing.ratio(timings['off'])
                result.add(setting, f'detection {name}', seconds=timing, ratio=ratio)
        contestant.close()
    return result


def without_witnesses(contestant: OrmCache, work: Callable[[], float]) -> float:
    """Measure the work while each statement counts as understood, at no cost."""
    database: Any = contestant.app.session_manager.database

    def executing(connection: Any, scope: Any, sql: str, context: Any) -> Statement:
        return CHANGE if sql.startswith('UPDATE') else NOTHING

    database.executing = executing
    try:
        return work()
    finally:
        del database.executing


def flush(contestant: OrmCache, apart: bool) -> float:
    """Change all objects, and return the seconds that their flush takes; then roll back.

    :param apart: True if neighbours change different columns, so that each needs a
        statement of its own.
    """
    with contestant.app.request_scope(contestant.schema) as scope:
        session = scope.session()
        for item in session.scalars(select(Item).order_by(Item.id).limit(OBJECTS)):
            item.value += 1
            if apart and item.id % 2:
                item.name += '!'
        start = perf_counter()
        session.flush()
        return perf_counter() - start


def textual_change(contestant: OrmCache) -> float:
    """Change a row by a text, read values and commit; return the seconds that this takes."""
    app = contestant.app
    start = perf_counter()
    with app.request_scope(contestant.schema) as scope:
        scope.session().execute(text('UPDATE items SET value = value + 1 WHERE id = 1'))
        for number in range(VALUES):
            getattr(app, f'p{number}')
        scope.commit()
    return perf_counter() - start


def textual_reads(contestant: OrmCache) -> float:
    """Read a row by a text and then a cached value, several times; return the seconds."""
    app = contestant.app
    with app.request_scope(contestant.schema):
        for number in range(VALUES):
            getattr(app, f'p{number}')
    start = perf_counter()
    with app.request_scope(contestant.schema) as scope:
        for number in range(VALUES):
            scope.session().execute(text('SELECT value FROM items WHERE id = 1')).scalar()
            getattr(app, f'p{number}')
    return perf_counter() - start
