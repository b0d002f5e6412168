"""Measures which costs grow with the number of tenants, properties and tags, and which do not."""

from __future__ import annotations

import gc
import random
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack, closing
from time import perf_counter
from typing import Any

import redis
from sqlalchemy import text

from onegov_ormcache.redis_client.client import connect
from onegov_ormcache.tags.redis import RedisTagStore
from onegov_ormcache.tags.snapshot import new_token
from tests.support.counting import RedisCommands

from .contestants import cached_app, changed
from .context import Context
from .measuring import Timing, interleaved
from .results import CaseResult, Column, Plot
from .schema import create_many, own_database

#: One sample is the mean of this many requests or commits.
REPEAT = 10
#: At most this many tenants are measured, chosen at random from all.
ASKED = 100


def run(context: Context) -> list[CaseResult]:
    return [tenants(context), properties(context), tags(context)]


def tenants(context: Context) -> CaseResult:
    """Tenants of one process, each with a schema and tables of its own."""
    sizes = context.sizes
    result = CaseResult(
        'tenants',
        'Tenants of one process',
        'Each tenant has a schema with tables and rows, and has had a request with a session. '
        f'Warm reads of ten properties and commits happen in {ASKED} of them at most, each in '
        'another one. Memory is what an idle tenant leaves behind in the process (tracemalloc) '
        'and in Valkey (used_memory), with its part of what all of them share.',
        (
            Column('read', 'warm read', 'seconds'),
            Column('commit', 'commit', 'seconds'),
            Column('bytes', 'bytes per idle tenant', 'bytes'),
            Column('redis_bytes', 'bytes in Valkey', 'bytes'),
            Column('redis', 'Redis commands of a warm read', 'count'),
        ),
        Plot('commit', 'lines', x='tenants'),
    )
    namespace = context.name()
    chosen = random.Random(1)
    with ExitStack() as stack:
        dsn = stack.enter_context(own_database(context.dsn, namespace))
        app: Any = cached_app(10, dsn=dsn, redis_url=context.redis_url, namespace=namespace)
        stack.callback(app.close_orm_cache)
        names: list[str] = []
        for number in sizes.tenants:
            added = [f'{namespace}-{at}' for at in range(len(names), number)]
            create_many(dsn, added)
            bytes_, redis_bytes = memory_of(app, context.redis_url, added)
            names += added
            asked = chosen.sample(names, min(ASKED, number))
            for name in asked:
                commit(app, name, 10)

            def read_some(asked: list[str] = asked) -> float:
                return mean(read(app, chosen.choice(asked), 10) for _ in range(REPEAT))

            def commit_some(asked: list[str] = asked) -> float:
                return mean(commit(app, chosen.choice(asked), 10) for _ in range(REPEAT))

            timings = interleaved({'read': read_some, 'commit': commit_some}, sizes.rounds)
            with RedisCommands(context.redis_url) as commands:
                read(app, asked[0], 10)
            result.add(
                f'{number:,} tenants', 'onegov_ormcache', x=float(number),
                bytes=bytes_, redis_bytes=redis_bytes, redis=commands.count,
                read=timings['read'], commit=timings['commit'],
            )  # fmt: skip
    return result


def memory_of(app: Any, redis_url: str, names: list[str]) -> tuple[float | None, float | None]:
    """Return the bytes that each idle tenant costs the process, and Redis.

    Both are None if there are few tenants, because the memory that all of them share would
    then count too much.
    """
    cache = app.orm_cache
    client = redis.Redis.from_url(redis_url)
    idle(cache, 'nobody')
    before_redis = client.info('memory')['used_memory']
    left = bytes_left(cache, names)
    after_redis = client.info('memory')['used_memory']
    client.close()
    if len(names) < ASKED // 2:
        return None, None
    return left, (after_redis - before_redis) / len(names)


def bytes_left(cache: Any, names: list[str]) -> float:
    """Return the bytes that each tenant leaves in the process after a request.

    Garbage is collected on both sides: objects in a circle, such as those of a connection that
    was given back, would else count until the collector happens to run.
    """
    tracemalloc.start()
    try:
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        for name in names:
            idle(cache, name)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return (after - before) / len(names)


def idle(cache: Any, name: str) -> None:
    """Make a request of a tenant as the middleware does; it reads the database and no property."""
    cache.session_manager.has_schema(name)
    scope = cache.open_scope(name, create=False)
    with scope.active():
        scope.session().execute(text('SELECT 1'))
        scope.close()


def properties(context: Context) -> CaseResult:
    """An application of one tenant with more and more properties."""
    sizes = context.sizes
    result = CaseResult(
        'properties',
        'Properties of one application',
        'A warm request that reads all properties, and a commit that evicts all of them; the '
        'Redis commands are those of the transaction that commits.',
        (
            Column('read', 'warm read of all', 'seconds'),
            Column('each', 'for each property', 'seconds'),
            Column('commit', 'commit', 'seconds'),
            Column('redis', 'Redis commands', 'count'),
        ),
        Plot('commit', 'lines', x='properties'),
    )
    with ExitStack() as stack:
        apps: dict[int, tuple[Any, str]] = {}
        for number in sizes.properties:
            schema = stack.enter_context(context.schema())
            app = cached_app(
                number, dsn=context.dsn, redis_url=context.redis_url, namespace=schema
            )
            stack.callback(app.close_orm_cache)
            apps[number] = app, schema
        reads = timed(apps, read, sizes.rounds, REPEAT)
        # few commits per sample, because after each one all values are computed again
        commits = timed(apps, commit, sizes.rounds, 2)
        for number, (app, schema) in apps.items():
            with app.request_scope(schema) as scope, RedisCommands(context.redis_url) as commands:
                changed(scope.session(), 1)
            result.add(
                f'{number} {"property" if number == 1 else "properties"}',
                'onegov_ormcache', x=float(number), read=reads[number],
                each=reads[number].median / number, commit=commits[number],
                redis=commands.count,
            )  # fmt: skip
    return result


def tags(context: Context) -> CaseResult:
    """Tenants with more and more tags, as policies of rows give them."""
    sizes = context.sizes
    result = CaseResult(
        'tags',
        'Tags of one tenant',
        'What a commit of three tags costs in the tag store alone, without the database: the '
        'command before COMMIT and the one after it, and the wait for both. Then the '
        'next snapshot of another process. The ratios are to the tenant with the fewest tags.',
        (
            Column('commit', 'commands of a commit', 'seconds'),
            Column('commit_ratio', 'to the fewest', 'ratio'),
            Column('snapshot', 'next snapshot', 'seconds'),
            Column('snapshot_ratio', 'to the fewest', 'ratio'),
        ),
        Plot('snapshot', 'lines', x='tags'),
    )
    with (
        closing(connect(context.redis_url, 10)) as client,
        closing(connect(context.redis_url, 10)) as other,
    ):
        namespace = context.name()
        writer = RedisTagStore(client, namespace, quarantined=False)
        reader = RedisTagStore(other, namespace, quarantined=False)
        for number in sizes.tags:
            writer.snapshot(str(number))  # loads the scripts into the server
            writer.publish(str(number), 'first', rows(number))
            reader.snapshot(str(number))
        commits = {str(n): lambda n=n: commit_tags(writer, reader, n)[0] for n in sizes.tags}
        snapshots = {str(n): lambda n=n: commit_tags(writer, reader, n)[1] for n in sizes.tags}
        commit_times = interleaved(commits, sizes.rounds)
        snapshot_times = interleaved(snapshots, sizes.rounds)
    fewest = str(sizes.tags[0])
    for number in sizes.tags:
        commit_time, snapshot_time = commit_times[str(number)], snapshot_times[str(number)]
        result.add(
            f'{number:,} tags', 'onegov_ormcache', x=float(number),
            commit=commit_time, commit_ratio=commit_time.ratio(commit_times[fewest]),
            snapshot=snapshot_time, snapshot_ratio=snapshot_time.ratio(snapshot_times[fewest]),
        )  # fmt: skip
    return result


def rows(number: int) -> list[str]:
    """Return so many tags of rows."""
    return [f'rows:books.id:int/{at}' for at in range(number)]


def commit_tags(writer: RedisTagStore, reader: RedisTagStore, number: int) -> tuple[float, float]:
    """Return the mean seconds of a commit's commands, and of the snapshot after it."""
    schema, changed_tags = str(number), rows(number)[:3]
    seconds = [0.0, 0.0]
    for _ in range(REPEAT):
        token = new_token()
        start = perf_counter()
        writer.doubt(schema, token, changed_tags, (), '', {}).result()
        writer.publish(schema, token, changed_tags)
        writer.unidentified(schema)  # by the same connection, so the new versions are there
        between = perf_counter()
        reader.snapshot(schema)
        seconds[0] += between - start
        seconds[1] += perf_counter() - between
    return seconds[0] / REPEAT, seconds[1] / REPEAT


def timed(
    apps: dict[int, tuple[Any, str]], measure: Any, rounds: int, repeat: int
) -> dict[int, Timing]:
    """Measure all applications in turns; return the timings by number of properties."""

    def one(number: int) -> Any:
        app, schema = apps[number]
        return lambda: mean(measure(app, schema, number) for _ in range(repeat))

    timings = interleaved({str(number): one(number) for number in apps}, rounds)
    return {number: timings[str(number)] for number in apps}


def mean(samples: Iterator[float]) -> float:
    taken = list(samples)
    return sum(taken) / len(taken)


def read(app: Any, schema: str, number: int) -> float:
    """Seconds for a request that reads so many properties."""
    names = [f'p{at}' for at in range(number)]
    start = perf_counter()
    with app.request_scope(schema):
        for name in names:
            getattr(app, name)
    return perf_counter() - start


def commit(app: Any, schema: str, number: int) -> float:
    """Return the seconds for the flush and commit of one object; then warm the values again."""
    with app.request_scope(schema) as scope:
        seconds = changed(scope.session(), 1)
    read(app, schema, number)
    return seconds
