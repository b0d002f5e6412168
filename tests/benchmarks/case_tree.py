"""A large value: the tree of 30,000 pages."""

from __future__ import annotations

from .contestants import CAN_FREEZE, Contestant
from .context import Context, ratios
from .measuring import Measure, interleaved
from .results import CaseResult, Column, Plot

REPEAT = 2


def run(context: Context) -> CaseResult:
    nodes = context.sizes.nodes
    result = CaseResult(
        'tree',
        f'A page tree of {nodes:,} pages',
        'A warm request that reads the tree, dictionaries within lists. The Django packages '
        'cache the rows, of which each request makes the tree anew. The seed hands the same '
        'mutable tree to all requests, of which one can spoil it for all.',
        (
            Column('seconds', 'time', 'seconds'),
            Column('ratio', 'to no cache', 'ratio'),
            Column('redis', 'Redis commands', 'count'),
            Column('sql', 'SQL statements', 'count'),
        ),
        Plot('seconds'),
    )
    with context.contestants(result, nodes) as contestants:

        def measure(contestant: Contestant) -> Measure:
            return lambda: contestant.tree(REPEAT)

        rounds = max(3, context.sizes.rounds // 2)
        timings = interleaved({n: measure(c) for n, c in contestants.items()}, rounds)
        for name, contestant in contestants.items():
            cost = context.cost(contestant, 'tree', repeat=1)
            result.add(
                f'{nodes:,} pages', name, seconds=timings[name],
                ratio=ratios(timings, contestants, name), redis=cost.redis, sql=cost.sql,
            )  # fmt: skip
    if not CAN_FREEZE:
        result.add(
            f'{nodes:,} pages',
            'onegov_ormcache, frozen',
            note='left out: this version has no frozen=True',
        )
    return result
