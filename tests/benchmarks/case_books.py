"""Fifty books by their ids, in one request: cold, warm, and after changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from .books import (
    BOOKS,
    WAYS,
    BookContestant,
    DjangoBooks,
    DogpileBooks,
    DogpileManyBooks,
    OrmCacheBooks,
    PlainBooks,
    QueriedBooks,
)
from .context import Context, Cost
from .measuring import Measure, Timing, interleaved
from .peers import PeersMissingError
from .results import CaseResult, Column, Plot

#: What happens before the request that is measured, by setting. Before that, all is warm.
SETTINGS: dict[str, Callable[[BookContestant], object]] = {
    'cold': lambda contestant: contestant.empty(),
    'warm': lambda contestant: None,
    'new process': lambda contestant: contestant.forget(),
    'one book renamed': lambda contestant: contestant.rename_book(),
    'all changed by a statement': lambda contestant: contestant.change_all(),
}
CHANGES = {'one book renamed': 'rename_book', 'all changed by a statement': 'change_all'}


def run(context: Context) -> CaseResult:
    result = CaseResult(
        'books',
        f'{len(BOOKS)} books by their ids',
        f'A request that reads {len(BOOKS)} books, each by its id: when nobody has any, when all '
        'are cached, in a new process when others have filled Redis, after one was renamed by '
        'its object, and after one statement has changed all. The commands of the change are '
        'those of its transaction. Stale are the books that the request shows as they were '
        'before. Without a cache, each query counts as a run. "Told" is cacheops with '
        '``invalidated_update()`` in the place of ``update()``.',
        (
            Column('seconds', 'time', 'seconds'),
            Column('ratio', 'to no cache', 'ratio'),
            Column('redis', 'Redis commands', 'count'),
            Column('sql', 'SQL statements', 'count'),
            Column('runs', 'creator runs', 'count'),
            Column('change', 'Redis commands of the change', 'count'),
            Column('stale', 'stale', 'count'),
        ),
        Plot('seconds'),
    )
    with book_contestants(context, result) as contestants:
        for setting, prepare in SETTINGS.items():
            timings = timed(contestants, prepare, context.sizes.rounds)
            for name, contestant in contestants.items():
                base = timings.get(contestant.base)
                reads, runs, change, stale = counted(context, contestant, setting)
                result.add(
                    setting,
                    name,
                    seconds=timings[name],
                    ratio=None if base is None else timings[name].ratio(base),
                    redis=reads.redis,
                    sql=reads.sql,
                    runs=runs,
                    change=change,
                    stale=stale,
                )
    return result


@contextmanager
def book_contestants(
    context: Context, result: CaseResult
) -> Iterator[dict[str, BookContestant]]:
    """Make all contestants, each on a schema of its own.

    If one can't be made, a row of the result says why.
    """
    dsn, url = context.dsn, context.redis_url
    made: dict[str, BookContestant] = {}
    with ExitStack() as stack:

        def add(make: Callable[[str], BookContestant]) -> None:
            contestant = make(stack.enter_context(context.schema()))
            stack.callback(contestant.close)
            made[contestant.name] = contestant

        add(lambda schema: PlainBooks(dsn, schema))
        add(lambda schema: QueriedBooks(dsn, schema))
        for way in WAYS:
            add(lambda schema, way=way: OrmCacheBooks(dsn, url, schema, way))  # type: ignore[misc]
        add(lambda schema: DogpileBooks(dsn, url, schema))
        add(lambda schema: DogpileManyBooks(dsn, url, schema))
        for kind, is_told in (('django', False), ('cacheops', False), ('cacheops', True)):
            try:
                add(lambda schema, kind=kind, is_told=is_told: DjangoBooks(  # type: ignore[misc]
                    context.peers, kind, dsn, url, schema, is_told
                ))  # fmt: skip
            except PeersMissingError as error:
                result.add('all', kind, note=f'left out: {error}')
        yield made


def timed(
    contestants: dict[str, BookContestant],
    prepare: Callable[[BookContestant], object],
    rounds: int,
) -> dict[str, Timing]:
    def measure(contestant: BookContestant) -> Measure:
        def once() -> float:
            contestant.read_books()
            prepare(contestant)
            return contestant.read_books().seconds

        return once

    return interleaved({name: measure(each) for name, each in contestants.items()}, rounds)


def counted(
    context: Context, contestant: BookContestant, setting: str
) -> tuple[Cost, int | None, int | None, int | None]:
    """Return what the request costs, its creator runs, the Redis commands of the change before
    it, and the number of books that it shows as they were before."""
    before = contestant.read_books().books
    change = None
    if setting in CHANGES:
        change = context.cost(contestant, CHANGES[setting]).redis
    else:
        SETTINGS[setting](contestant)
    runs = contestant.runs
    cost = context.cost(contestant, 'read_books')
    if runs is not None and contestant.runs is not None:
        runs = contestant.runs - runs
    if change is None:
        return cost, runs, None, None
    shown = contestant.read_books().books
    expected = len(BOOKS) if setting == 'all changed by a statement' else 1
    changed = sum(book != old for book, old in zip(shown, before, strict=True))
    return cost, runs, change, expected - changed
