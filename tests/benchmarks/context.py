"""Everything that all cases share: the servers, the sizes, the contestants, the counters."""

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
    """The cost of some work: its numbers of Redis commands and SQL statements."""

    redis: int
    sql: int


@dataclass(frozen=True)
class Sizes:
    """How much is measured; ``--quick`` takes less of everything."""

    rounds: int = 15
    requests: int = 50
    accesses: int = 200_000
    flush_rounds: int = 15
    #: Rounds of the cases in which one round takes seconds.
    slow_rounds: int = 3
    #: The seed's design is left out of settings in which it needs more Redis commands.
    most_commands: int = 250_000
    herd_rounds: int = 5
    bare_requests: int = 300
    http_requests: int = 1000
    http_rounds: int = 5
    #: The seconds of one run of the load on pages.
    page_seconds: float = 0.5
    nodes: int = 30_000
    tenants: tuple[int, ...] = (10, 100, 1000, 10_000)
    properties: tuple[int, ...] = (1, 10, 50, 200, 500)
    tags: tuple[int, ...] = (10, 100, 1000, 10_000)
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
    page_seconds=0.3,
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
        """Make a filled schema, and drop it after the block."""
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
        """Make all contestants, each on a schema of its own.

        If one can't be made, a row of the result says why.
        """
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
        """Return the contestant of a Django package, which runs in a process of its own.

        :raises PeersMissingError: if its environment can't be made, or it does not start.
        """
        return DjangoPeer(self.peers, kind, self.dsn, self.redis_url, schema, **more)

    def cost(self, contestant: Contestant, do: str, **order: Any) -> Cost:
        """Do a contestant's work outside of the timed rounds, and return what it cost."""
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
    """Return the ratio of a contestant's time to that of the contestant without a cache on the
    same framework; None if that one was not measured."""
    base = contestants[name].base
    return timings[name].ratio(timings[base]) if base in timings else None
