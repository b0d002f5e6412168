"""What all cases share: the servers, the sizes, the contestants, the counters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from tests.support.counting import RedisCommands, sql_statements
from tests.support.servers import drop_schemas, postgres_server, redis_server

from . import schema as tables
from .baseline_seed import Seed
from .contestants import CAN_FREEZE, Contestant, Dogpile, OrmCache, Plain
from .measuring import Timing
from .peers import DjangoPeer, Environment, PeersMissingError, peers_environment
from .results import CaseResult


class Cost(NamedTuple):
    """What something cost, counted."""

    redis: int
    sql: int


@dataclass(frozen=True)
class Sizes:
    """How much is measured; ``--quick`` takes less of everything."""

    rounds: int = 15
    requests: int = 50
    accesses: int = 200_000
    flush_rounds: int = 15
    #: Of what takes seconds for one round.
    slow_rounds: int = 3
    #: Settings of which the seed's design needs more commands are left out for it.
    most_commands: int = 250_000
    herd_rounds: int = 5
    bare_requests: int = 300
    http_requests: int = 1000
    http_rounds: int = 5
    nodes: int = 30_000
    tenants: tuple[int, ...] = (10, 100, 1000, 10_000)
    properties: tuple[int, ...] = (1, 10, 50, 200, 500)
    #: Objects, properties, role variants.
    flushes: tuple[tuple[int, int, int], ...] = tuple(
        (objects, properties, roles)
        for properties, roles in ((10, 0), (50, 0), (10, 20), (50, 20))
        for objects in (1, 100, 1000)
    )


QUICK = Sizes(
    rounds=5,
    requests=20,
    accesses=50_000,
    flush_rounds=3,
    slow_rounds=2,
    most_commands=50_000,
    herd_rounds=2,
    bare_requests=100,
    http_requests=300,
    http_rounds=2,
    tenants=(10, 100, 1000),
    properties=(1, 10, 100, 500),
    flushes=((1, 10, 0), (100, 10, 0), (1000, 10, 0), (1, 10, 20), (100, 10, 20)),
)


@dataclass
class Context:
    """Made once per run of the benchmarks; its servers start when they are first needed."""

    out: Path
    stack: ExitStack
    sizes: Sizes = field(default_factory=Sizes)
    say: Callable[[str], object] = print

    @cached_property
    def dsn(self) -> str:
        return self.stack.enter_context(postgres_server())

    @cached_property
    def redis_url(self) -> str:
        return self.stack.enter_context(redis_server())

    @cached_property
    def peers(self) -> Environment:
        return peers_environment(self.out)

    @contextmanager
    def schema(self, nodes: int = 0) -> Iterator[str]:
        """A filled schema of the block's own."""
        name = self.name()
        tables.create(self.dsn, name, nodes)
        try:
            yield name
        finally:
            drop_schemas(self.dsn, name)

    def name(self) -> str:
        """A name for a schema or namespace that nobody else has."""
        return f'bench_{uuid4().hex[:8]}'

    @contextmanager
    def contestants(self, result: CaseResult, nodes: int = 0) -> Iterator[dict[str, Contestant]]:
        """All of them, each on a schema of its own; who is missing gets a row that says why."""
        made: dict[str, Contestant] = {}
        with ExitStack() as stack:

            def add(make: Callable[[str], Contestant]) -> None:
                contestant = make(stack.enter_context(self.schema(nodes)))
                stack.callback(contestant.close)
                made[contestant.name] = contestant

            add(lambda schema: Plain(self.dsn, schema))
            add(lambda schema: OrmCache(self.dsn, self.redis_url, schema))
            if nodes and CAN_FREEZE:
                add(lambda schema: OrmCache(self.dsn, self.redis_url, schema, frozen=True))
            add(lambda schema: Seed(self.dsn, self.redis_url, schema))
            add(lambda schema: Dogpile(self.dsn, self.redis_url, schema))
            for kind in ('django', 'cachalot', 'cacheops'):
                try:
                    add(lambda schema, kind=kind: self.peer(kind, schema))  # type: ignore[misc]
                except PeersMissingError as error:
                    result.add('all', kind, note=f'left out: {error}')
            yield made

    def peer(self, kind: str, schema: str, **more: Any) -> DjangoPeer:
        """A Django package's process.

        :raises PeersMissingError: if there can be none.
        """
        return DjangoPeer(self.peers, kind, self.dsn, self.redis_url, schema, **more)

    def cost(self, contestant: Contestant, do: str, **order: Any) -> Cost:
        """What a contestant's work costs, counted outside of the timed rounds."""
        with RedisCommands(self.redis_url) as redis:
            if isinstance(contestant, DjangoPeer):
                sql = contestant.sql(do, **order)
            else:
                before = contestant.uncounted
                with sql_statements() as seen:
                    getattr(contestant, do)(**order)
                sql = seen.count + contestant.uncounted - before
        return Cost(redis.count, sql)


def ratios(
    timings: dict[str, Timing], contestants: dict[str, Contestant], name: str
) -> float | None:
    """A contestant's time over that of the one without a cache, on the same framework."""
    base = contestants[name].base
    return timings[name].ratio(timings[base]) if base in timings else None
