"""Measures how long it takes to find out from each statement which tables it changes."""

from __future__ import annotations

from functools import partial
from time import perf_counter
from typing import Any

from sqlalchemy import select

from onegov_ormcache.database.statements import Statement, StatementAnalyzer

from .contestants import OrmCache
from .context import Context
from .measuring import interleaved
from .results import CaseResult, Column, Plot
from .schema import Item

OBJECTS = 1000
SETTINGS = {'in one statement': False, 'each in a statement of its own': True}
NOTHING = Statement()


def run(context: Context) -> CaseResult:
    result = CaseResult(
        'detection',
        'Detection of changes',
        f'The flush of {OBJECTS:,} changed objects with the analysis of statements, and with '
        'the analysis replaced by a constant. The bound is 1.03.',
        (Column('seconds', 'flush', 'seconds'), Column('ratio', 'to off', 'ratio')),
        Plot('seconds', log=False),
    )
    with context.schema() as schema:
        contestant = OrmCache(context.dsn, context.redis_url, schema)
        analyzer: Any = contestant.app.session_manager._analyzer

        def off(apart: bool) -> float:
            analyzer.analyze = lambda statement, context=None: NOTHING
            try:
                return flush(contestant, apart)
            finally:
                del analyzer.analyze

        for setting, apart in SETTINGS.items():
            # the noise is larger than the difference that is measured: more rounds are needed
            timings = interleaved(
                {'off': partial(off, apart), 'on': partial(flush, contestant, apart)},
                context.sizes.rounds * 4,
            )
            for name, timing in timings.items():
                ratio = timing.ratio(timings['off'])
                result.add(
                    f'{OBJECTS:,} objects, {setting}', f'detection {name}',
                    seconds=timing, ratio=ratio,
                )  # fmt: skip
        first = StatementAnalyzer('postgresql', {'items'})
        start = perf_counter()
        first.analyze('UPDATE items SET value=%(value)s WHERE items.id = %(items_id)s')
        result.add(
            'a statement of a new kind', 'parsed once', seconds=perf_counter() - start,
            note='then found in a dictionary',
        )  # fmt: skip
        contestant.close()
    return result


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
