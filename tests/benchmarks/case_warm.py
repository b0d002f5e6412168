"""Requests whose values are all cached, and the first request of a new process."""

from __future__ import annotations

from .contestants import Contestant
from .context import Context, ratios
from .measuring import Measure, interleaved
from .results import CaseResult, Column, Plot

PROPERTIES = (1, 10, 50)


def run(context: Context) -> CaseResult:
    result = CaseResult(
        'warm',
        'Warm requests',
        'A request that reads so many properties, of twenty rows each, which are all cached. '
        'The ratio is to the same framework without a cache. "New process" is the first '
        'request of a process when others have filled Redis.',
        (
            Column('seconds', 'time', 'seconds'),
            Column('ratio', 'to no cache', 'ratio'),
            Column('redis', 'Redis commands', 'count'),
            Column('sql', 'SQL statements', 'count'),
        ),
        Plot('seconds'),
    )
    with context.contestants(result) as contestants:
        for properties in PROPERTIES:
            warm(context, result, contestants, properties)
        new_process(context, result, contestants, 10)
    return result


def warm(
    context: Context, result: CaseResult, contestants: dict[str, Contestant], properties: int
) -> None:
    repeat = context.sizes.requests

    def measure(contestant: Contestant) -> Measure:
        return lambda: contestant.requests(properties, repeat)

    timings = interleaved({n: measure(c) for n, c in contestants.items()}, context.sizes.rounds)
    for name, contestant in contestants.items():
        cost = context.cost(contestant, 'requests', properties=properties, repeat=1, roles=0)
        setting = f'{properties} {"property" if properties == 1 else "properties"}'
        ratio = ratios(timings, contestants, name)
        result.add(
            setting, name, seconds=timings[name], ratio=ratio, redis=cost.redis, sql=cost.sql
        )


def new_process(
    context: Context, result: CaseResult, contestants: dict[str, Contestant], properties: int
) -> None:
    def measure(contestant: Contestant) -> Measure:
        def once() -> float:
            contestant.forget()
            return contestant.requests(properties, 1)

        return once

    timings = interleaved({n: measure(c) for n, c in contestants.items()}, context.sizes.rounds)
    for name, contestant in contestants.items():
        contestant.forget()
        cost = context.cost(contestant, 'requests', properties=properties, repeat=1, roles=0)
        ratio = ratios(timings, contestants, name)
        result.add(
            f'{properties} properties, new process', name,
            seconds=timings[name], ratio=ratio, redis=cost.redis, sql=cost.sql,
        )  # fmt: skip
