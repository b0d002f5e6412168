"""Runs a random workload in several processes, breaks things meanwhile, and checks the record.

    python -m tests.consistency.history --minutes 5 --isolation 'REPEATABLE READ'

Each process (`worker.py`) has an application of its own (`workload.py`) on one PostgreSQL
and one Redis, and several threads that read cached properties and write what they depend
on. Processes are killed at random moments and steps, the tag store is flushed, killed and
restarted from old dumps, and connections are cut. Every operation is recorded; `checker.py`
compares the record with what the database has in the end.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import psycopg

from onegov_ormcache.statistics.rates import upper_bound
from onegov_ormcache.steps import Step
from tests.consistency.checker import Report, check
from tests.consistency.events import Event, events_of
from tests.consistency.transactions import Written
from tests.consistency.worker import CRITICAL, Settings
from tests.consistency.workload import JOURNAL, ROWS, TABLE, TABLES, TRIGGERS, Book
from tests.support.servers import RedisServer, drop_schemas, libpq_url, postgres_server

LEVELS = ('READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE')
SECOND = 1_000_000_000


@dataclass
class Plan:
    """The size of a run, and how often things are broken."""

    isolation: str = LEVELS[0]
    seconds: float = 60
    processes: int = 4
    threads: int = 3
    tenants: int = 2
    kills_per_minute: float = 12
    losses_per_minute: float = 8
    cuts_per_minute: float = 12
    pauses: float = 0.02
    seed: int = 0
    trace: bool = False
    mutant: str | None = None
    # an outbox has others told later than the commit, if a process loses the store and others
    # do not
    on_outage: str = 'refuse'


class Outcome(NamedTuple):
    """The result of a run."""

    report: Report
    #: The things that were broken, and how often each of them was.
    broken: Counter[str]
    conflicts: int
    failures: int
    creator_runs: int

    @property
    def operations(self) -> int:
        counts = self.report.counts
        return sum(counts[k] for k in ('begin', 'read', 'direct', 'write', 'undo', 'commit'))

    def summary(self, seconds: float) -> str:
        counts, violations = self.report.counts, self.report.violations
        losses = sum(n for name, n in self.broken.items() if name.startswith('store'))
        cuts = sum(n for name, n in self.broken.items() if name.startswith('connection'))
        bound = upper_bound(len(violations), self.report.judged)
        return '\n'.join(
            [
                *map(str, violations[:10]),
                f'{seconds:.0f} s, {self.operations} operations',
                f'reads of properties     {self.report.judged}, {self.report.cached} cached',
                f'commits                 {counts["committed"]} of {counts["commit"]}',
                f'creator runs            {self.creator_runs}',
                f'conflicts               {self.conflicts}',
                f'other failures          {self.failures}',
                f'kills                   {self.broken["kill"]}',
                f'store losses            {losses}',
                f'connection losses       {cuts}',
                *(f'    {name:20}{n}' for name, n in sorted(self.broken.items())),
                f'violations              {len(violations)} {dict(self.kinds())}',
                f'violations per read     below {bound:.2e} with 95 % confidence',
            ]
        )

    def kinds(self) -> Counter[str]:
        return Counter(violation.promise for violation in self.report.violations)


class Parent:
    """Starts workers, breaks what they use, and replaces those that were killed.

    :param dsn: the SQLAlchemy URL of a PostgreSQL server.
    :param store: a Redis server that only this run uses.
    """

    def __init__(self, plan: Plan, dsn: str, store: RedisServer, folder: Path) -> None:
        self.plan = plan
        self.store = store
        self.folder = folder
        self.random = random.Random(plan.seed)
        prefix = f'h{uuid4().hex[:12]}'
        self.connection = psycopg.connect(libpq_url(dsn), autocommit=True)
        self.settings = Settings(
            dsn=dsn,
            redis_url=store.url,
            folder=str(folder),
            prefix=prefix,
            tenants=[f'{prefix}_{number}' for number in range(plan.tenants)],
            isolation=plan.isolation,
            threads=plan.threads,
            seed=plan.seed,
            deadline=0,
            pauses=plan.pauses,
            trace=plan.trace,
            mutant=plan.mutant,
            on_outage=plan.on_outage,
        )
        self.workers: list[subprocess.Popen[str]] = []
        self.started = 0
        self.broken: Counter[str] = Counter()

    # workers

    def start(self, *options: str) -> subprocess.Popen[str]:
        """Start a worker. It ends at the latest when the pipe from this process is closed."""
        arguments = [str(self.started), json.dumps(asdict(self.settings)), *options]
        with (self.folder / f'errors.{self.started}').open('wb') as errors:
            worker = subprocess.Popen(
                [sys.executable, '-m', 'tests.consistency.worker', *arguments],
                stdin=subprocess.PIPE,
                stderr=errors,
                cwd=Path(__file__).parents[2],
                process_group=0,
                text=True,
            )
        self.started += 1
        self.workers.append(worker)
        return worker

    def replace_dead(self) -> None:
        for worker in list(self.workers):
            if worker.poll() is not None:
                self.gone(worker)
                self.start()

    def gone(self, worker: subprocess.Popen[str]) -> None:
        """Forget a worker that has ended; raise RuntimeError if it ended with an error.

        An end by SIGKILL is no error.
        """
        self.workers.remove(worker)
        hang_up(worker)
        if worker.returncode == -signal.SIGKILL:
            self.broken['kill'] += 1
        elif worker.returncode != 0:
            errors = [path.read_text() for path in sorted(self.folder.glob('errors.*'))]
            raise RuntimeError(f'A worker ended with {worker.returncode}:\n{"".join(errors)}')

    def stop(self) -> None:
        """End all workers, also those that hang."""
        for worker in self.workers:
            worker.kill()
        for worker in self.workers:
            worker.wait()
            hang_up(worker)
        self.workers.clear()

    # breaking things

    def kill(self) -> None:
        self.random.choice(self.workers).kill()

    def kill_at_step(self) -> None:
        stdin = self.random.choice(self.workers).stdin
        assert stdin is not None
        try:
            stdin.write(self.random.choice([*Step, *CRITICAL, *CRITICAL]).value + '\n')
            stdin.flush()
        except BrokenPipeError:
            pass  # the worker has just died for another reason

    def flush(self) -> None:
        with closing(self.store.client()) as client:
            client.flushall()
        self.broken['store flushed'] += 1

    def delete_keys(self) -> None:
        with closing(self.store.client()) as client:
            for key in self.random.sample(keys := sorted(client.keys()), len(keys) // 2):
                client.delete(key)
        self.broken['store keys deleted'] += 1

    def restart_empty(self) -> None:
        self.store.kill()
        (self.store.folder / 'dump.rdb').unlink(missing_ok=True)
        time.sleep(self.random.choice((0, 0.3)))
        self.store.start()
        self.broken['store restarted'] += 1

    def save(self) -> None:
        self.store.save()

    def restore(self) -> None:
        self.store.kill()
        self.store.start()
        self.broken['store restored'] += 1

    def cut_database(self) -> None:
        query = 'SELECT pid FROM pg_stat_activity WHERE application_name = %s'
        pids = [pid for (pid,) in self.connection.execute(query, [self.settings.prefix])]
        if pids:
            self.connection.execute(
                'SELECT pg_terminate_backend(%s)', [self.random.choice(sorted(pids))]
            )
            self.broken['connection to database'] += 1

    def cut_store(self) -> None:
        with closing(self.store.client()) as client:
            others = [c['id'] for c in client.client_list() if c['id'] != str(client.client_id())]
            if others:
                client.client_kill_filter(_id=self.random.choice(others))
                self.broken['connection to store'] += 1

    def schedule(self) -> list[tuple[float, Callable[[], None]]]:
        """Return what is broken when, in seconds from the begin.

        Each of the groups of actions below occurs at least once, unless its rate is 0.
        """
        plan, at = self.plan, []
        kinds: tuple[tuple[float, list[Callable[[], None]]], ...] = (
            (plan.kills_per_minute, [self.kill, self.kill_at_step, self.kill_at_step]),
            (plan.losses_per_minute, [self.flush, self.delete_keys, self.restart_empty]),
            (plan.losses_per_minute / 3, [self.restore]),
            (plan.cuts_per_minute, [self.cut_database, self.cut_database, self.cut_store]),
        )
        for rate, actions in kinds:
            number = max(1, round(rate * plan.seconds / 60)) if rate else 0
            for turn in range(number):
                moment = self.random.uniform(0.15, 0.95) * plan.seconds
                action = actions[turn % len(actions)]
                at.append((moment, action))
                if action == self.restore:
                    at.append((moment - 0.12 * plan.seconds * self.random.random(), self.save))
        return sorted(at, key=lambda entry: entry[0])

    # the run

    def prepare(self) -> None:
        """Create the tenants before any worker starts, so that their journals have every write."""
        for tenant in self.settings.tenants:
            self.connection.execute(f'CREATE SCHEMA {tenant}')
            self.connection.execute(f'SET search_path = {tenant}')
            self.connection.execute(JOURNAL)
            for table in TABLES:
                name = table.__tablename__
                made = TABLE if table is Book else TABLE + TRIGGERS
                for statement in made.format(table=name, tenant=tenant).split(';\n'):
                    wanted = [list(ROWS)] if '%s' in statement else None
                    if statement.strip():
                        self.connection.execute(statement, wanted)

    def run(self) -> Outcome:
        """Run the plan, and check what was recorded."""
        try:
            self.prepare()
            begin = time.monotonic_ns()
            self.settings.deadline = begin + int(self.plan.seconds * SECOND)
            for _ in range(self.plan.processes):
                self.start()
            for moment, action in self.schedule():
                while time.monotonic_ns() < begin + moment * SECOND:
                    self.replace_dead()
                    time.sleep(0.02)
                action()
                self.record(action.__name__)
            self.wait(begin + int((self.plan.seconds + 40) * SECOND))
            self.start('--quiet')
            self.wait(time.monotonic_ns() + 120 * SECOND)
            return self.judge()
        finally:
            self.stop()
            self.connection.close()
            drop_schemas(self.settings.dsn, self.settings.prefix)

    def record(self, name: str) -> None:
        """Record that something was broken."""
        with (self.folder / 'events.parent').open('ab') as file:
            file.write(Event('broken', '', time.monotonic_ns(), name=name).line())

    def wait(self, deadline: int) -> None:
        """Wait for all workers to end by themselves."""
        for worker in list(self.workers):
            worker.wait(timeout=max(0, deadline - time.monotonic_ns()) / SECOND)
            self.gone(worker)

    def judge(self) -> Outcome:
        journal: dict[str, list[Written]] = {}
        for tenant in self.settings.tenants:
            rows = self.connection.execute(f'SELECT "row", version, value FROM {tenant}.journal')
            journal[tenant] = [Written(*row) for row in rows]
        events: list[Event] = []
        for path in sorted(self.folder.glob('events.*')):
            with path.open('rb') as lines:
                events += events_of(lines)
        report = check(events, journal, self.plan.isolation)
        ends = [e.name for e in events if e.kind in ('failed', 'rolled back') and e.name]
        conflicts = sum(name.startswith('conflict') for name in ends)
        runs = sum(event.runs for event in events)
        return Outcome(report, self.broken, conflicts, len(ends) - conflicts, runs)


def hang_up(worker: subprocess.Popen[str]) -> None:
    """Close the pipe of a worker that has ended."""
    assert worker.stdin is not None
    try:
        worker.stdin.close()
    except BrokenPipeError:
        pass  # the worker died before it had read the last order


def run(plan: Plan, dsn: str | None = None, keep: str | None = None) -> Outcome:
    """Run the plan on the given PostgreSQL server, or on one that is started for it.

    :param dsn: the SQLAlchemy URL of a PostgreSQL server; its other schemas are left alone.
    :param keep: a new folder for the recorded events; by default they are removed in the end.
    """
    with ExitStack() as stack:
        if keep is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            folder = Path(keep)
            folder.mkdir(parents=True)
        given = dsn or stack.enter_context(postgres_server())
        store = stack.enter_context(RedisServer())
        return Parent(plan, given, store, folder).run()


def main(arguments: Sequence[str]) -> int:
    """Run the command line; return the exit status, 1 if there were violations."""
    parser = argparse.ArgumentParser('python -m tests.consistency.history', description=__doc__)
    parser.add_argument('--minutes', type=float, default=1)
    parser.add_argument('--seconds', type=float, help='instead of --minutes')
    parser.add_argument('--isolation', choices=LEVELS, default=LEVELS[0])
    parser.add_argument('--seed', type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument('--keep', help='a new folder for the recorded events')
    parser.add_argument('--trace', action='store_true', help='record the steps too')
    parser.add_argument('--on-outage', default='refuse', help='the setting of the application')
    parser.add_argument('--mutant', help='remove a guard: a name in tests/consistency/mutants.py')
    defaults = Plan()
    for name in ('processes', 'threads', 'tenants'):
        parser.add_argument(f'--{name}', type=int, default=getattr(defaults, name))
    for name in ('kills_per_minute', 'losses_per_minute', 'cuts_per_minute', 'pauses'):
        option = f'--{name.replace("_", "-")}'
        parser.add_argument(option, type=float, default=getattr(defaults, name))
    chosen = vars(parser.parse_args(arguments))
    minutes, seconds, keep = (chosen.pop(name) for name in ('minutes', 'seconds', 'keep'))
    plan = Plan(seconds=60 * minutes if seconds is None else seconds, **chosen)
    print(f'{plan}', flush=True)
    outcome = run(plan, keep=keep)
    print(outcome.summary(plan.seconds))
    return 1 if outcome.report.violations else 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
