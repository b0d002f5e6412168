"""Flush and commit of many objects that many cached values depend on."""

from __future__ import annotations

from .baseline_seed import Seed
from .contestants import Contestant
from .context import Context, Cost, ratios
from .measuring import Measure, Timing, interleaved
from .results import CaseResult, Column, Plot


def run(context: Context) -> CaseResult:
    result = CaseResult(
        'flush',
        'Flush and commit',
        'A transaction changes so many objects of a table on which so many properties depend, '
        'all cached, some for 20 roles each. The time is that of flush and commit, the ratio '
        'is to the same commit without a cache; extra SQL is what the cache adds to it. A '
        'setting is objects x properties.',
        (
            Column('seconds', 'time', 'seconds'),
            Column('ratio', 'to no cache', 'ratio'),
            Column('redis', 'Redis commands', 'count'),
            Column('extra', 'extra SQL', 'count'),
        ),
        Plot('ratio'),
    )
    with context.contestants(result) as contestants:
        for objects, properties, roles in context.sizes.flushes:
            flush(context, result, contestants, objects, properties, roles)
    return result


def flush(
    context: Context,
    result: CaseResult,
    contestants: dict[str, Contestant],
    objects: int,
    properties: int,
    roles: int,
) -> None:
    setting = f'{objects} x {properties}' + (f' x {roles} roles' if roles else '')
    racing = {}
    for name, contestant in contestants.items():
        if isinstance(contestant, Seed):
            contestant.forget_used_keys()
            commands = 2 * objects * properties * max(1, roles)
            if commands > context.sizes.most_commands:
                note = f'left out: it would send {commands:,} commands'
                result.add(setting, name, note=note)
                continue
        racing[name] = contestant

    def measure(contestant: Contestant) -> Measure:
        def once() -> float:
            contestant.requests(properties, 1, roles)
            return contestant.change(objects)

        return once

    measures = {n: measure(c) for n, c in racing.items()}
    # the seed's design takes so much longer that it would spread each round over seconds
    alone = {n: measures.pop(n) for n, c in racing.items() if isinstance(c, Seed)}
    timings = interleaved(measures, context.sizes.flush_rounds)
    beside: dict[str, Timing] = {}
    if alone:
        base = {n: measures[n] for n in {racing[n].base for n in alone}}
        beside = interleaved({**base, **alone}, context.sizes.slow_rounds)
    costs: dict[str, Cost] = {}
    for name, contestant in racing.items():
        contestant.requests(properties, 1, roles)
        costs[name] = context.cost(contestant, 'change', objects=objects)
    for name, contestant in racing.items():
        base_cost = costs.get(contestant.base)
        taken = beside if name in alone else timings
        result.add(
            setting,
            name,
            seconds=taken[name],
            ratio=ratios(taken, racing, name),
            redis=costs[name].redis,
            extra=None if base_cost is None else costs[name].sql - base_cost.sql,
        )
