"""Runs the town hall in several processes under mixed load, and breaks things on a schedule.

    python -m tests.soak --minutes 5

One row per kind of fault: requests meanwhile, how many failed and how, how many answers were stale
or showed what was never committed, the slowest, the seconds until each process answers from the
cache again, and memory and connections at the end. Exits with 1 if a row breaks an aim: nothing
stale but where the setting says so, nothing uncommitted, and no failure by a fault of Redis.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import psycopg

from tests.support.outside import libpq_url

from .faults import FAULTS, Fault
from .load import Load, News, Seen, is_cached
from .servers import TENANTS, World, world

#: Seconds within which all processes must answer from the cache again.
PATIENCE = 60.0


@dataclass(frozen=True)
class Row:
    """What was seen during one fault."""

    fault: Fault
    seen: Seen
    #: Seconds from the repair until each process answered from the cache; None: never.
    recovered: float | None
    memory: float
    connections: tuple[int, int]

    @property
    def broken(self) -> list[str]:
        """The aims that are missed."""
        broken = []
        if self.seen.stale and not self.fault.may_be_stale:
            broken.append(f'{self.seen.stale} stale')
        if self.seen.uncommitted:
            broken.append(f'{self.seen.uncommitted} uncommitted')
        if self.seen.failed and self.fault.what == 'store':
            broken.append(f'failed: {dict(self.seen.failed)}')
        if self.recovered is None:
            broken.append('does not cache again')
        if not self.seen.commits:
            broken.append('no commits')
        return broken


HEAD = (
    'fault', 'requests', 'commits', 'failed', 'stale', 'behind s', 'uncommitted', 'slowest s',
    'caches after s', 'MiB', 'PostgreSQL', 'Redis',
)  # fmt: skip


def cells(row: Row) -> tuple[str, ...]:
    """Return the cells of a row, as texts."""
    seen = row.seen
    failed = ', '.join(f'{count} {kind}' for kind, count in sorted(seen.failed.items()))
    recovered = '-' if row.recovered is None else f'{row.recovered:.1f}'
    return (
        row.fault.name, str(seen.requests), str(seen.commits), failed or '0', str(seen.stale),
        f'{seen.behind:.2f}', str(seen.uncommitted), f'{seen.slowest:.2f}', recovered,
        f'{row.memory:.0f}', *map(str, row.connections),
    )  # fmt: skip


def news_of(found: World) -> list[News]:
    """Return two pages of news of each tenant, which the home page shows."""
    news = []
    with closing(psycopg.connect(libpq_url(found.postgres.dsn))) as connection:
        for tenant in TENANTS:
            query = f'SELECT id FROM "{tenant}".news ORDER BY published DESC, id DESC LIMIT 2'
            news += [News(tenant, id) for (id,) in connection.execute(query).fetchall()]
    return news


def wait_until_cached(found: World) -> float | None:
    """Return the seconds until each process answers from the cache; None if that is too long."""
    begun = time.monotonic()
    while time.monotonic() - begun < PATIENCE:
        if all(is_cached(found, tenant) for tenant in TENANTS):
            return time.monotonic() - begun
        time.sleep(0.02)
    return None


def run(
    seconds: float,
    faults: Sequence[Fault] = FAULTS,
    on_outage: str | None = None,
    redis_timeout: float = 0.5,
) -> list[Row]:
    """Run a soak.

    :param seconds: the time for all faults; each also lasts until the processes cache again.
    :param on_outage: the setting of the application.
    :param redis_timeout: the setting of the application.
    """
    rows = []
    each = seconds / len(faults)
    with world(on_outage, redis_timeout) as found:
        assert wait_until_cached(found) is not None, 'the application does not start'
        load = Load(found, news_of(found))
        with load.running():
            for fault in faults:
                fault.begin(found)
                time.sleep(max(each * fault.part, fault.timeouts * redis_timeout))
                fault.end(found)
                recovered = wait_until_cached(found)
                time.sleep(each * (1 - fault.part))
                seen = load.take()
                rows.append(Row(fault, seen, recovered, found.memory(), found.connections()))
        assert all(each.is_running for each in found.gunicorns), 'gunicorn has given up'
    return rows


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a table."""
    lines = [HEAD, *map(cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return '\n'.join(
        '  '.join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


def main() -> int:
    """Run the command."""
    names = [fault.name for fault in FAULTS]
    parser = argparse.ArgumentParser(prog='python -m tests.soak', description=__doc__)
    parser.add_argument('--minutes', type=float, default=1.0)
    parser.add_argument('--fault', action='append', choices=names, help='only this one')
    parser.add_argument('--on-outage', help='the setting on_outage of the application')
    parser.add_argument('--redis-timeout', type=float, default=0.5, help='the setting')
    chosen = parser.parse_args()
    faults = [fault for fault in FAULTS if chosen.fault is None or fault.name in chosen.fault]
    rows = run(chosen.minutes * 60, faults, chosen.on_outage, chosen.redis_timeout)
    print(table(rows))
    broken = [f'{row.fault.name}: {"; ".join(row.broken)}' for row in rows if row.broken]
    print('\n'.join(['', *broken]) if broken else '\nall aims are reached')
    return bool(broken)


if __name__ == '__main__':
    sys.exit(main())
