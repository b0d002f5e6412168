"""Runs the matrix of reads and writes, and prints what it found.

    python -m tests.consistency.matrix                                 # the whole of it
    python -m tests.consistency.matrix --isolation SERIALIZABLE --sample 50 --seed 7
    python -m tests.consistency.matrix --sqlite --only 'flush|bulk'
    python -m tests.consistency.matrix --host                          # by sessions of a host

Without ``--isolation`` and ``--sqlite`` it runs PostgreSQL at each isolation level, then SQLite.
With ``--host`` it runs the host instead, which is on PostgreSQL alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from subprocess import PIPE

from sqlalchemy.exc import SAWarning

from tests.support.servers import postgres_server, redis_server

from .entries import Write
from .results import LEVELS, Plan, Report, causes
from .running import run
from .world import make_world


def main() -> int:
    parser = argparse.ArgumentParser(prog='python -m tests.consistency.matrix')
    parser.add_argument('--sample', type=int, help='run so many writes, and some reads of each')
    parser.add_argument('--reads', type=int, default=40, help='reads beside a write of a sample')
    parser.add_argument('--controls', type=int, default=40, help='reads that a write changes not')
    parser.add_argument('--seed', type=int, default=0, help='draws the sample')
    parser.add_argument('--isolation', choices=LEVELS, help='one isolation level')
    parser.add_argument('--sqlite', action='store_true', help='SQLite instead of PostgreSQL')
    parser.add_argument('--host', action='store_true', help='by sessions of a host')
    parser.add_argument('--only', default='', help='writes that this regular expression finds')
    parser.add_argument('--only-reads', default='', help='reads that it finds')
    parser.add_argument('--show', type=int, default=30, help='how many pairs to print')
    parser.add_argument('--quiet', action='store_true', help='print no progress')
    arguments = parser.parse_args()
    if arguments.host and arguments.sqlite:
        parser.error('the host is on PostgreSQL alone: give --host or --sqlite')
    if not arguments.sqlite and not arguments.isolation:
        return all_databases(sys.argv[1:], arguments.host)
    plan = Plan(
        database='sqlite' if arguments.sqlite else 'postgresql',
        isolation=arguments.isolation or 'SQLite',
        sample=arguments.sample,
        reads=arguments.reads,
        controls=arguments.controls,
        seed=arguments.seed,
        only=arguments.only,
        only_reads=arguments.only_reads,
        host=arguments.host,
    )
    warnings.simplefilter('ignore', SAWarning)
    began = time.monotonic()
    with ExitStack() as stack:
        on_servers = plan.database == 'postgresql'
        dsn = stack.enter_context(postgres_server()) if on_servers else ''
        redis_url = stack.enter_context(redis_server()) if on_servers else None
        world = stack.enter_context(make_world(plan, dsn, redis_url))
        report = run(world, silence if arguments.quiet else progress)
        world.count_stored()
    show(report, time.monotonic() - began, arguments.show)
    return 1 if report.failures else 0


def all_databases(arguments: list[str], host: bool) -> int:
    """Run PostgreSQL at each isolation level, and SQLite but for a host; two at a time.

    :return: 0 if all of it holds.
    """
    runs = [['--isolation', level] for level in LEVELS] + ([] if host else [['--sqlite']])
    command = [sys.executable, '-m', 'tests.consistency.matrix', '--quiet', *arguments]
    with ThreadPoolExecutor(2) as threads:
        done = threads.map(
            lambda run: subprocess.run([*command, *run], stdout=PIPE, text=True), runs
        )
        codes = []
        for one in done:
            print(one.stdout, flush=True)
            codes.append(one.returncode)
    return max(codes)


def silence(write: Write, report: Report) -> None:
    """Print nothing."""


def progress(write: Write, report: Report) -> None:
    """Print a line for a write that was run."""
    print(f'{report.writes:4} {len(report.failures):6} failures  {write.name}', flush=True)


def show(report: Report, seconds: float, limit: int) -> None:
    """Print the summary."""
    kinds = Counter(f.kind for f in report.failures)
    pairs = report.pairs()
    print()
    for (read, write), number in pairs.most_common(limit):
        first = next(f for f in report.failures if (f.read, f.write) == (read, write))
        print(f'{number:5}  {read or "(the write itself)"}  x  {write}')
        print(f'       {first.kind}, {first.policy}, {first.ending}, {first.place}, ', end='')
        print(f'{first.moment}: expected {first.expected!r:.120}, found {first.found!r:.200}')
    print('\nFailures by kind, kind of write and kind of read:')
    for (kind, write, read), number in causes(report.failures).most_common(limit):
        print(f'{number:7}  {kind:12} {write:14} x {read}')
    sessions = ' by sessions of a host' if report.plan.host else ''
    print(
        f'\n{report.plan.isolation}{sessions}: {report.reads} reads ({report.properties} '
        f'properties, of which tiers have {report.stored}), {report.writes} writes, '
        f'{report.combinations} combinations, {report.comparisons} comparisons in {seconds:.0f} s'
    )
    print(
        f'{report.failed} combinations fail ({len(pairs)} pairs of read and write): '
        + (', '.join(f'{number} {kind}' for kind, number in kinds.most_common()) or 'none')
        + f'; {report.blocked} reads waited for a lock of the database'
    )


if __name__ == '__main__':
    sys.exit(main())
