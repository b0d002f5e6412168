"""A cold value that eight threads in two processes ask for at the same moment."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from time import time
from typing import Any

from tests.support.counting import FileRuns

from .context import Context
from .measuring import Timing
from .peers import KINDS, PeersMissingError
from .results import CaseResult, Column, Plot

PROCESSES, THREADS = 2, 4
#: How long the creator takes.
SECONDS = 0.1
#: From the order to the moment when all begin.
LEAD = 0.5
LOCAL = ('no cache', 'onegov_ormcache', 'seed design', 'dogpile.cache')
ROOT = Path(__file__).parents[2]


def run(context: Context) -> CaseResult:
    result = CaseResult(
        'herd',
        'Cold herd',
        f'{PROCESSES * THREADS} threads in {PROCESSES} processes read a value that nobody has, '
        f'at the same moment; its creator takes {SECONDS * 1000:.0f} ms. The runs are the '
        'most that were counted in any round. cacheops is there with its lock, too.',
        (
            Column('runs', 'creator runs', 'count'),
            Column('seconds', 'until all have it', 'seconds'),
        ),
        Plot('runs', log=False),
    )
    samples: dict[str, list[tuple[int, float]]] = {}
    for _ in range(context.sizes.herd_rounds):
        for name in LOCAL:
            samples.setdefault(name, []).append(local(context, name))
        for kind, locked in (('cachalot', False), ('cacheops', False), ('cacheops', True)):
            name = KINDS[kind] + (', lock=True' if locked else '')
            try:
                samples.setdefault(name, []).append(django(context, kind, locked))
            except PeersMissingError as error:
                result.add('8 threads', name, note=f'left out: {error}')
                samples.pop(name, None)
    for name, taken in samples.items():
        timing = Timing(tuple(seconds for _, seconds in taken))
        result.add('8 threads', name, runs=max(runs for runs, _ in taken), seconds=timing)
    return result


def local(context: Context, name: str) -> tuple[int, float]:
    """Creator runs and seconds of one round, in processes made for it."""
    with context.schema() as schema:
        runs = FileRuns(context.out / f'{schema}.runs')
        seconds = herd_of(context.dsn, context.redis_url, schema, name, runs)
        counted = runs.total
        runs.path.unlink(missing_ok=True)
    return counted, seconds


def herd_of(dsn: str, redis_url: str, schema: str, name: str, runs: FileRuns) -> float:
    """Let processes loose on one cold value; seconds until all threads have it."""
    settings = {
        'contestant': name,
        'dsn': dsn,
        'redis_url': redis_url,
        'schema': schema,
        'runs': str(runs.path),
        'threads': THREADS,
        'seconds': SECONDS,
    }
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, '-m', 'tests.benchmarks.herd_worker', json.dumps(settings)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=ROOT,
                )
            )
            for _ in range(PROCESSES)
        ]
        for process in processes:
            answer(process)
        at = time() + LEAD
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(f'{at}\n')
            process.stdin.flush()
        return float(max(answer(process) for process in processes))


def answer(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError('a process of the herd has ended')
    return json.loads(line)


def django(context: Context, kind: str, locked: bool) -> tuple[int, float]:
    """The same with a Django package, whose queries are the creator."""
    with context.schema() as schema, ExitStack() as stack:
        peers = []
        for _ in range(PROCESSES):
            peers.append(context.peer(kind, schema, lock=locked))
            stack.callback(peers[-1].close)
        at = time() + LEAD
        for peer in peers:
            peer.send('herd', threads=THREADS, seconds=SECONDS, at=at)
        results = [peer.result() for peer in peers]
    return sum(one['runs'] for one in results), max(one['seconds'] for one in results)

